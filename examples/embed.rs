//! Clipping in a program that owns its `wgpu::Device`: the caller's buffer, the caller's encoder, one
//! submission, no readback until the report is asked for.
//!
//! ```text
//! cargo run --release --example embed [PART OF AN ADAPTER'S NAME]
//! ```

use byzclip::backend::gpu::{choose_adapter, open};
use byzclip::{Clipping, Gpu, Layout, Status, wgpu};

fn main() -> byzclip::Result<()> {
    // A training program has these already.
    let adapter = choose_adapter(std::env::args().nth(1).as_deref())?;
    let (device, queue) = open(&adapter)?;
    let (clients, params) = (8, 100_000);
    let updates = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("updates"),
        size: (clients * params * 4) as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    // Client 3 is hostile: its update is a hundred times as large.
    let magnitude = |client: usize| if client == 3 { 0.3 } else { 0.003 };
    let values: Vec<f32> = (0..clients * params).map(|i| magnitude(i / params)).collect();
    queue.write_buffer(&updates, 0, bytemuck::cast_slice(&values));

    // Once for a shape and a buffer; recording it allocates nothing.
    let gpu = Gpu::from_device(device.clone(), queue.clone())?;
    let plan = gpu.plan(&Layout::dense(clients, params)?, &Clipping::fixed(2.0), &updates)?;

    // In every round: norms, threshold and clip go into the caller's encoder.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    plan.record(&mut encoder);
    queue.submit([encoder.finish()]);

    let report = plan.report_blocking()?;
    println!("{}: {} of {clients} clipped", report.ran, report.count(Status::Clipped));
    for (client, row) in report.rows.iter().enumerate() {
        println!("client {client}: norm {:<10} factor {:<12} {}", row.norm, row.factor, row.status.name());
    }
    Ok(())
}
