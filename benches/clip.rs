//! Norms and clipping on the CPU, and on the adapter named by `BYZCLIP_BENCH_ADAPTER`.
//!
//! ```text
//! cargo bench --bench clip
//! ```
//!
//! Every case is held against the reference before it is timed, and the data is restored outside of the
//! timed region. Throughput counts the batch's bytes once, whatever is read and written: a norm reads
//! 4 bytes an element, a clipped row is read again and written.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use byzclip::{Backend, Clipping, Cpu, Layout, Reference};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SHAPES: [(usize, usize); 4] = [(64, 100_000), (64, 1_000_000), (1024, 10_000), (100_000, 100)];

/// The share of rows that a bound of 2 clips.
const CLIPPED: [(&str, usize); 3] = [("none", usize::MAX), ("a fifth", 5), ("all", 1)];

fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let cpu: (String, Box<dyn Backend>) = ("cpu".into(), Box::new(Cpu::new().unwrap()));
    #[cfg(feature = "gpu")]
    if let Ok(name) = std::env::var("BYZCLIP_BENCH_ADAPTER") {
        let gpu = byzclip::Gpu::open(Some(&name)).unwrap();
        return vec![cpu, (gpu.ran().to_string(), Box::new(gpu))];
    }
    vec![cpu]
}

/// Rows of norm about 1, every `every`-th about 50 times that: uniform values with all their bits in use.
fn updates(clients: usize, params: usize, every: usize) -> Vec<f32> {
    let scale = (3.0 / params as f32).sqrt();
    let unit = |i: usize| {
        let hash = (i as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
        (hash >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let size = |client: usize| if (client + 1).is_multiple_of(every) { 50.0 * scale } else { scale };
    (0..clients * params).map(|i| unit(i) * size(i / params)).collect()
}

/// Rows of one magnitude, as sign compression makes them. Where `params` is a square their norms are exact,
/// and no fast sum decides them: the worst case.
fn signs(clients: usize, params: usize) -> Vec<f32> {
    (0..clients * params).map(|i| if i % 3 == 0 { -0.5 } else { 0.5 }).collect()
}

fn verify(backend: &dyn Backend, layout: &Layout, data: &[f32], clipping: &Clipping) {
    let (mut got, mut expected) = (data.to_vec(), data.to_vec());
    let report = backend.run(layout, &mut got, clipping).unwrap();
    let specified = Reference.run(layout, &mut expected, clipping).unwrap();
    assert_eq!(report.rows, specified.rows);
    assert!(got.iter().zip(&expected).all(|(got, expected)| got.to_bits() == expected.to_bits()));
}

fn clip(criterion: &mut Criterion) {
    for (name, backend) in backends() {
        for (clients, params) in SHAPES {
            let layout = Layout::dense(clients, params).unwrap();
            let mut group = criterion.benchmark_group(format!("{name}/{clients}x{params}"));
            group.throughput(Throughput::Bytes((clients * params * 4) as u64)).sample_size(10);
            for (clipped, every) in CLIPPED {
                let data = updates(clients, params, every);
                let clipping = Clipping::fixed(2.0);
                verify(backend.as_ref(), &layout, &data, &clipping);
                group.bench_function(BenchmarkId::new("clip", clipped), |bencher| {
                    bencher.iter_batched_ref(
                        || data.clone(),
                        |data| black_box(backend.run(&layout, data, &clipping).unwrap()),
                        BatchSize::PerIteration,
                    );
                });
            }
            let data = updates(clients, params, 5);
            group.bench_function("norms", |bencher| {
                bencher.iter(|| black_box(backend.norms(&layout, &data, &Clipping::default()).unwrap()));
            });
            let data = signs(clients, params);
            group.bench_function("norms of signs", |bencher| {
                bencher.iter(|| black_box(backend.norms(&layout, &data, &Clipping::default()).unwrap()));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, clip);
criterion_main!(benches);
