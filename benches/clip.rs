//! The cases of `byzclip bench` under criterion: on the CPU, and on the adapter named by `BYZCLIP_BENCH_ADAPTER`.
//!
//! ```text
//! cargo bench --bench clip
//! ```
//!
//! Shapes, data and verification are those of `byzclip bench`: every case is held against exact results before it is
//! timed, and the rows that were written are restored outside of the timed region. Throughput counts the bytes that
//! one pass needs.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use byzclip::bench::cases::{Batch, Case, MAX_NORM, SHAPES, Shape, Stage};
use byzclip::bench::element::Dtype;
use byzclip::bench::expected::Expected;
use byzclip::bench::host::AnyBatch;
use byzclip::bench::measure::timed;
use byzclip::bench::{CLIPPED_IN_MEAN, Settings, host, plain};
use byzclip::{Backend, Clipping, Cpu, Layout, Norms, Reference, Weights};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let cpu: (String, Box<dyn Backend>) = ("cpu".into(), Box::new(Cpu::new().unwrap()));
    #[cfg(feature = "gpu")]
    if let Ok(name) = std::env::var("BYZCLIP_BENCH_ADAPTER") {
        let gpu = byzclip::Gpu::open(Some(&name)).unwrap();
        return vec![cpu, (gpu.ran().to_string(), Box::new(gpu))];
    }
    vec![cpu]
}

/// Rows of one magnitude, as sign compression makes them. Where `params` is a square their norms are exact,
/// and no fast sum decides them: the worst case.
fn signs(shape: Shape) -> Vec<f32> {
    (0..shape.elements()).map(|i| if i % 3 == 0 { -0.5 } else { 0.5 }).collect()
}

fn norms(backend: &dyn Backend, layout: &Layout, data: &[f32]) -> Norms {
    backend.norms(layout, black_box(data), &Clipping::default()).unwrap()
}

fn mean(backend: &dyn Backend, batch: &Batch, expected: &Expected, weights: &Weights) -> Vec<f32> {
    let (clipping, decisions) = (Clipping::fixed(MAX_NORM), expected.decisions());
    backend.mean(&batch.layout, black_box(&batch.work), &clipping, decisions, weights).unwrap()
}

fn clip(criterion: &mut Criterion) {
    let settings = Settings { clipped: vec![0.0, 0.2, 1.0], scope_share: 0.1, runs: 1 };
    for (name, backend) in backends() {
        for shape in SHAPES {
            let mut batch = Batch::<f32>::new(shape).unwrap();
            let mut group = criterion.benchmark_group(format!("{name}/{shape}"));
            group.sample_size(10);
            for case in settings.cases() {
                batch.fill(&case);
                // Verified, and run once more.
                let any: &mut (dyn AnyBatch + 'static) = &mut batch;
                host::measure(backend.as_ref(), [any], &case, 1, &mut false).unwrap();
                let expected = Expected::of(&batch, &case).unwrap();
                group.throughput(Throughput::Bytes(case.traffic(shape, Dtype::F32).one_pass()));
                group.bench_function(BenchmarkId::new("byzclip", case), |bencher| {
                    bencher.iter_custom(|runs| {
                        total(runs, || ours(backend.as_ref(), &mut batch, &case, &expected))
                    });
                });
                group.bench_function(BenchmarkId::new("plain", case), |bencher| {
                    bencher
                        .iter_custom(|runs| total(runs, || without_exactness(&mut batch, &case, &expected)));
                });
            }
            let case = Case::mean(CLIPPED_IN_MEAN);
            batch.fill(&case);
            let expected = Expected::of(&batch, &case).unwrap();
            let equal = |backend: &dyn Backend| mean(backend, &batch, &expected, &Weights::Equal);
            let bits = |mean: Vec<f32>| mean.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(equal(backend.as_ref())) == bits(equal(&Reference)), "{name}, {shape}");
            group.throughput(Throughput::Bytes(case.traffic(shape, Dtype::F32).one_pass()));
            group.bench_function("byzclip/mean, equal weights", |bencher| {
                bencher.iter(|| equal(backend.as_ref()));
            });

            let data = signs(shape);
            batch.original.copy_from_slice(&data);
            let expected = Expected::of(&batch, &Case::norms()).unwrap();
            expected.check_norms(&name, &norms(backend.as_ref(), &batch.layout, &data)).unwrap();
            group.throughput(Throughput::Bytes(Case::norms().traffic(shape, Dtype::F32).one_pass()));
            group.bench_function("byzclip/norms of signs", |bencher| {
                bencher.iter(|| norms(backend.as_ref(), &batch.layout, &data));
            });
            group.finish();
        }
    }
}

/// Seconds of one run; the rows that it wrote are restored afterwards.
fn ours(backend: &dyn Backend, batch: &mut Batch, case: &Case, expected: &Expected) -> f64 {
    let clipping = case.clipping(batch.shape.clients);
    let seconds = match case.stage {
        Stage::Norms => timed(|| norms(backend, &batch.layout, &batch.work)).1,
        Stage::Clip => {
            let run = || backend.run(&batch.layout, black_box(&mut batch.work), &clipping).unwrap();
            timed(run).1
        }
        Stage::Mean => {
            let weights = Case::weights(batch.shape.clients);
            timed(|| mean(backend, batch, expected, &weights)).1
        }
    };
    batch.restore(case);
    seconds
}

fn without_exactness(batch: &mut Batch, case: &Case, expected: &Expected) -> f64 {
    let seconds = match case.stage {
        Stage::Norms | Stage::Clip => timed(|| plain::run(batch.shape, case, black_box(&mut batch.work))).1,
        Stage::Mean => {
            let samples = Case::samples(batch.shape.clients);
            timed(|| plain::mean(batch.shape, &expected.shares(&samples), black_box(&batch.work))).1
        }
    };
    batch.restore(case);
    seconds
}

fn total(runs: u64, mut run: impl FnMut() -> f64) -> Duration {
    Duration::from_secs_f64((0..runs).map(|_| run()).sum())
}

criterion_group!(benches, clip);
criterion_main!(benches);
