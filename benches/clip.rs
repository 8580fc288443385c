//! The cases of `byzclip bench` under criterion, and the mean: on the CPU, and on the adapter named by `BYZCLIP_BENCH_ADAPTER`.
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
use byzclip::bench::{Settings, host, plain};
use byzclip::{Backend, Clipping, Cpu, Half, Layout, Norms, Reference, Weights};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;

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
                group.throughput(Throughput::Bytes(case.traffic(shape, Dtype::F32).one_pass()));
                group.bench_function(BenchmarkId::new("byzclip", case), |bencher| {
                    bencher.iter_custom(|runs| total(runs, || ours(backend.as_ref(), &mut batch, &case)));
                });
                group.bench_function(BenchmarkId::new("plain", case), |bencher| {
                    bencher.iter_custom(|runs| total(runs, || without_exactness(&mut batch, &case)));
                });
            }
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

/// The mean of a batch of which a fifth is clipped, weighted by samples and equally, and of halves; host batches go to a GPU and back.
fn mean(criterion: &mut Criterion) {
    let case = Case::clip(0.2);
    for (name, backend) in backends() {
        for shape in SHAPES {
            let mut batch = Batch::<f32>::new(shape).unwrap();
            batch.fill(&case);
            let (layout, data, clipping) = (&batch.layout, &batch.original[..], Clipping::fixed(MAX_NORM));
            let norms = norms(backend.as_ref(), layout, data);
            let decisions = backend.threshold(layout, &norms, &clipping, &mut Default::default()).unwrap();
            let samples: Vec<f32> = (0..shape.clients).map(|row| (100 + row % 500) as f32).collect();
            let weights = Weights::PerRow(samples.clone());
            let run = |weights: &Weights| {
                backend.mean(layout, black_box(data), &clipping, &decisions, weights).unwrap()
            };
            let same = |mean: &[f32], expected: &[f32]| {
                assert!(
                    mean.iter().map(|m| m.to_bits()).eq(expected.iter().map(|m| m.to_bits())),
                    "{name}, {shape}"
                );
            };
            for weights in [&weights, &Weights::Equal] {
                let expected = Reference.mean(layout, data, &clipping, &decisions, weights).unwrap();
                same(&run(weights), &expected);
            }
            let total: f32 = samples.iter().sum();
            let of_rows: Vec<f32> = (samples.iter().zip(&decisions))
                .map(|(samples, decision)| samples / total * decision.factor as f32)
                .collect();

            let mut group = criterion.benchmark_group(format!("{name}/{shape}"));
            group.sample_size(10);
            group.throughput(Throughput::Bytes(4 * shape.elements() as u64));
            group.bench_function("byzclip/mean", |bencher| bencher.iter(|| run(&weights)));
            group.bench_function("byzclip/mean, equal weights", |bencher| {
                bencher.iter(|| run(&Weights::Equal))
            });
            group.bench_function("plain/mean", |bencher| {
                bencher.iter(|| plain_mean(shape, black_box(data), &of_rows));
            });
            group.throughput(Throughput::Bytes(2 * shape.elements() as u64));
            for half in [Half::F16, Half::Bf16] {
                let bits: Vec<u16> = data.iter().map(|value| half.truncate(*value)).collect();
                let norms = backend.norms_half(layout, half, &bits, &clipping).unwrap();
                let decisions =
                    backend.threshold(layout, &norms, &clipping, &mut Default::default()).unwrap();
                let run = || {
                    backend
                        .mean_half(layout, half, black_box(&bits), &clipping, &decisions, &weights)
                        .unwrap()
                };
                let expected = Reference.mean_half(layout, half, &bits, &clipping, &decisions, &weights);
                same(&run(), &expected.unwrap());
                group.bench_function(format!("byzclip/mean of {half:?}"), |bencher| bencher.iter(run));
            }
            group.finish();
        }
    }
}

/// In `f32`, as it comes: a strip of coordinates at a time, a thread to each.
fn plain_mean(shape: Shape, data: &[f32], of_rows: &[f32]) -> Vec<f32> {
    const STRIP: usize = 1024;
    let mut mean = vec![0.0f32; shape.params];
    mean.par_chunks_mut(STRIP).enumerate().for_each(|(i, strip)| {
        for (row, of_row) in data.chunks_exact(shape.params).zip(of_rows) {
            for (mean, value) in strip.iter_mut().zip(&row[i * STRIP..]) {
                *mean += of_row * value;
            }
        }
    });
    mean
}

/// Seconds of one run; the rows that it wrote are restored afterwards.
fn ours(backend: &dyn Backend, batch: &mut Batch, case: &Case) -> f64 {
    let clipping = case.clipping(batch.shape.clients);
    let seconds = match case.stage {
        Stage::Norms => timed(|| norms(backend, &batch.layout, &batch.work)).1,
        Stage::Clip => {
            let run = || backend.run(&batch.layout, black_box(&mut batch.work), &clipping).unwrap();
            timed(run).1
        }
    };
    batch.restore(case);
    seconds
}

fn without_exactness(batch: &mut Batch, case: &Case) -> f64 {
    let (_, seconds) = timed(|| plain::run(batch.shape, case, black_box(&mut batch.work)));
    batch.restore(case);
    seconds
}

fn total(runs: u64, mut run: impl FnMut() -> f64) -> Duration {
    Duration::from_secs_f64((0..runs).map(|_| run()).sum())
}

criterion_group!(benches, clip, mean);
criterion_main!(benches);
