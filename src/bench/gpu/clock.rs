//! How long a submission takes: on the wall, on the CPU, and by the device's own clock.

use std::time::Instant;

use crate::backend::gpu::{GpuContext, guard, read_mapped, wait_for_device};
use crate::error::Result;

/// Two timestamps on their way to the host.
const BYTES: u64 = 16;

/// A clock of the device, where it has one.
pub(super) struct Clock {
    timestamps: Option<Timestamps>,
}

struct Timestamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    /// Seconds of a tick.
    tick: f64,
}

/// Seconds that a submission took.
pub(super) struct Took {
    /// From the first command recorded until the device was done.
    pub wall: f64,
    /// Of these, the CPU's to record and submit.
    pub submit: f64,
    /// Between the device's own timestamps around the commands.
    pub device: Option<f64>,
}

impl Clock {
    pub(super) fn new(context: &GpuContext) -> Result<Self> {
        let needed = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        if !context.device.features().contains(needed) {
            return Ok(Self { timestamps: None });
        }
        let resolve = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let queries = guard(&context.device, "making a clock", || {
            context.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("a clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        })?;
        Ok(Self {
            timestamps: Some(Timestamps {
                queries,
                resolved: context.buffer("timestamps", BYTES, resolve)?,
                staging: context.staging("timestamps", BYTES)?,
                tick: f64::from(context.queue.get_timestamp_period()) * 1e-9,
            }),
        })
    }

    pub(super) fn time(
        &self,
        context: &GpuContext,
        what: &'static str,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<Took> {
        let (device, queue) = (&context.device, &context.queue);
        let stamp = |encoder: &mut wgpu::CommandEncoder, index| {
            if let Some(timestamps) = &self.timestamps {
                encoder.write_timestamp(&timestamps.queries, index);
            }
        };
        let (submit, wall, waited) = guard(device, what, || {
            let start = Instant::now();
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(what) });
            stamp(&mut encoder, 0);
            record(&mut encoder);
            stamp(&mut encoder, 1);
            queue.submit([encoder.finish()]);
            let submit = start.elapsed();
            let waited = wait_for_device(device, None, what);
            (submit.as_secs_f64(), start.elapsed().as_secs_f64(), waited)
        })?;
        waited?;
        Ok(Took { wall, submit, device: self.read(context)? })
    }

    /// The time between the two timestamps.
    fn read(&self, context: &GpuContext) -> Result<Option<f64>> {
        let Some(Timestamps { queries, resolved, staging, tick }) = &self.timestamps else { return Ok(None) };
        context.submit("reading the clock", |encoder| {
            encoder.resolve_query_set(queries, 0..2, resolved, 0);
            encoder.copy_buffer_to_buffer(resolved, 0, staging, 0, BYTES);
        })?;
        let read = |bytes: &[u8]| {
            let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
            stamps[1].checked_sub(stamps[0])
        };
        let ticks =
            context.wait_for(read_mapped(staging, BYTES, "reading the clock", read), "reading the clock")?;
        // A clock that stands or runs backwards is none.
        Ok(ticks.filter(|ticks| *ticks > 0).map(|ticks| ticks as f64 * tick))
    }
}
