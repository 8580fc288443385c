//! Clipping around a centre: the same bits on every backend, and those of big integers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::cmp::Ordering;

use byzclip::{
    Backend, Clipping, Error, Granularity, Layout, NonFinite, Reference, Report, Scope, Status, Threshold,
    Weights,
};
use common::{Class, Rng, all, assert_same_bits, assert_same_report, bounds_for, oracle, others, poison};
use num_bigint::{BigInt, BigUint, Sign};

/// A finite value in units of 2^-149, with its sign.
fn units(value: f32) -> BigInt {
    let sign = if value.is_sign_negative() { Sign::Minus } else { Sign::Plus };
    BigInt::from_biguint(sign, oracle::units(value))
}

fn square_of_difference(values: &[f32], center: &[f32]) -> Option<BigUint> {
    let mut sum = BigUint::ZERO;
    for (&value, &center) in values.iter().zip(center) {
        if !value.is_finite() {
            return None;
        }
        sum += (units(value) - units(center)).magnitude().pow(2);
    }
    Some(sum)
}

/// `mantissa · 2^exponent`.
type Scaled = (BigUint, i64);

fn cut(value: BigUint, exponent: i64) -> Scaled {
    let drop = value.bits().saturating_sub(24);
    (value >> drop, exponent + drop as i64)
}

/// The two cut steps towards the value, in units of 2^-149: what is added to the centre.
fn step(value: f32, center: f32, factor: f64) -> Scaled {
    let difference = units(value) - units(center);
    let (mantissa, exponent) = cut(difference.magnitude().clone(), 0);
    let (factor, factor_exponent) = oracle::factor_parts(factor);
    cut(mantissa * factor, exponent + i64::from(factor_exponent))
}

fn compare((a, a_exponent): &Scaled, (b, b_exponent): &Scaled) -> Ordering {
    let least = a_exponent.min(b_exponent);
    (a << (a_exponent - least) as u64).cmp(&(b << (b_exponent - least) as u64))
}

/// Bits in the order of their values.
fn ordered(value: f32) -> i64 {
    let magnitude = i64::from(value.to_bits() & 0x7fff_ffff);
    if value.is_sign_negative() { -magnitude } else { magnitude }
}

fn from_ordered(order: i64) -> f32 {
    let magnitude = f32::from_bits(order.unsigned_abs() as u32);
    if order < 0 { -magnitude } else { magnitude }
}

/// The `f32` farthest from the centre, towards the value, whose distance from the centre is at most the step:
/// by bisection over all of them.
fn expected_element(value: f32, center: f32, factor: f64) -> f32 {
    if units(value) == units(center) {
        return value;
    }
    let step = step(value, center, factor);
    if step.0 == BigUint::ZERO {
        return center;
    }
    let towards = if value > center { 1 } else { -1 };
    let start = ordered(center);
    let candidate = |steps: i64| from_ordered(start + towards * steps);
    let distance = |at: f32| ((units(at) - units(center)).magnitude().clone(), 0);
    let (mut within, mut beyond) = (0, (ordered(value) - start).abs() + 1);
    while beyond - within > 1 {
        let middle = within + (beyond - within) / 2;
        let fits = compare(&distance(candidate(middle)), &step) != Ordering::Greater;
        (within, beyond) = if fits { (middle, beyond) } else { (within, middle) };
    }
    let result = candidate(within);
    if result != 0.0 {
        return result;
    }
    // A zero has the sign of the exact sum, and is +0 where that is 0.
    let exact = compare(&(oracle::units(center), 0), &step);
    let of_sum = match exact {
        Ordering::Greater => center.is_sign_negative(),
        Ordering::Equal => false,
        Ordering::Less => value < center,
    };
    if of_sum { -0.0 } else { 0.0 }
}

/// Holds one span against the contract; `want` gets what should have been written.
fn verify_span(
    context: &str,
    before: &[f32],
    center: &[f32],
    got: (f32, f32, f64, Status),
    want: &mut [f32],
) {
    let (norm, bound, factor, status) = got;
    let Some(sum) = square_of_difference(before, center) else {
        assert!(norm.is_nan(), "{context}: norm {norm:e}");
        return;
    };
    assert_eq!(norm.to_bits(), oracle::root(&sum).to_bits(), "{context}: norm {norm:e}");
    let clipped = status == Status::Clipped;
    if matches!(status, Status::Clipped | Status::Untouched) {
        assert_eq!(clipped, oracle::exceeds(&sum, bound), "{context}: {status:?} at {bound:e}");
    }
    if !clipped {
        return;
    }
    let pairs = want.iter_mut().zip(before.iter().zip(center));
    pairs.for_each(|(want, (&value, &center))| *want = expected_element(value, center, factor));
    let after = square_of_difference(want, center).expect("finite");
    let square = oracle::units(bound).pow(2);
    assert!(after <= square, "{context}: the clipped difference is above the bound {bound:e}");
    if bound == 0.0 || norm < f32::MIN_POSITIVE {
        return;
    }
    // The steps before the last rounding are no shorter than λ(1 − 2^-20).
    let steps: Vec<Scaled> = before.iter().zip(center).map(|(&x, &v)| step(x, v, factor)).collect();
    let least = steps.iter().map(|step| step.1).min().unwrap_or(0).min(0);
    let sum: BigUint = steps.iter().map(|step| (&step.0 << (step.1 - least) as u64).pow(2)).sum();
    let square = square << (-2 * least) as u64;
    assert!(
        sum << 40u32 >= square * BigUint::from((1u64 << 20) - 1).pow(2),
        "{context}: far below {bound:e}"
    );
}

/// A norm among the subnormals may be rounded down by a large part of itself.
#[test]
fn the_bound_holds_for_subnormal_differences() {
    let tiny = f32::from_bits;
    let mut rng = Rng::new(77);
    for turn in 0..200 {
        // The first is (40, 80) at 67: a norm of 89.44, rounded to 89.
        let difference = if turn == 0 { [40, 80] } else { [0, 1].map(|_| 1 + rng.below(900) as u32) };
        let norm = f64::from(difference[0]).hypot(f64::from(difference[1])) as u32;
        let bound = if turn == 0 { 67 } else { 1 + rng.below(u64::from(norm)) as u32 };
        for center in [0, 1 << 20] {
            let layout = Layout::dense(1, 2).unwrap();
            let values: Vec<f32> = difference.iter().map(|d| tiny(center + d)).collect();
            let clipping = Clipping::fixed(tiny(bound)).around(vec![tiny(center); 2]);
            for (name, backend) in all() {
                let context = format!("{name}: {difference:?} around {center}, bound {bound}");
                let mut clipped = values.clone();
                backend.run(&layout, &mut clipped, &clipping).unwrap();
                let square: u64 =
                    clipped.iter().map(|value| u64::from(value.to_bits() - center).pow(2)).sum();
                assert!(square <= u64::from(bound).pow(2), "{context}: {clipped:?}");
                let once = clipped.clone();
                let again = backend.run(&layout, &mut clipped, &clipping).unwrap();
                assert_eq!(again.count(Status::Clipped), 0, "{context}");
                assert_same_bits(&context, &clipped, &once);
            }
        }
    }
}

/// A round that says nothing moves nothing.
#[test]
fn a_mean_without_weight_is_the_centre() {
    let center = vec![10.0, -20.0, 0.5];
    let clipping = Clipping::fixed(1.0).around(center.clone());
    let broken = [f32::NAN, 1.0, 2.0, 3.0, f32::INFINITY, 4.0];
    let cases = [
        (Layout::dense(2, 3).unwrap(), &broken[..], Weights::Equal),
        (Layout::dense(2, 3).unwrap(), &[7.0; 6][..], Weights::PerRow(vec![0.0; 2])),
        (Layout::dense(0, 3).unwrap(), &[], Weights::Equal),
    ];
    for (name, backend) in all() {
        for (layout, data, weights) in &cases {
            let (mean, _) = backend.run_mean(layout, data, &clipping, weights).unwrap();
            assert_same_bits(name, &mean, &center);
        }
    }
}

fn verify(
    context: &str,
    layout: &Layout,
    clipping: &Clipping,
    before: &[f32],
    after: &[f32],
    report: &Report,
) {
    let center = clipping.center.as_ref().unwrap();
    let mask = oracle::mask(&clipping.scope, layout.clients());
    let mut want = before.to_vec();
    for (row, of_row) in report.rows.iter().enumerate() {
        let elements = layout.row(row);
        if !mask[row] {
            assert_eq!(of_row.status, Status::OutOfScope, "{context}: row {row}");
            continue;
        }
        if before[elements.clone()].iter().any(|value| !value.is_finite()) {
            assert!(matches!(of_row.status, Status::Zeroed | Status::Kept), "{context}: row {row}");
            if of_row.status == Status::Zeroed {
                want[elements].copy_from_slice(center);
            }
            continue;
        }
        let parts: Vec<_> = match clipping.granularity {
            Granularity::Segment => {
                report.segments(row).iter().map(|s| (s.norm, s.bound, s.factor, s.status)).collect()
            }
            _ => vec![(of_row.norm, of_row.bound.unwrap(), of_row.factor, of_row.status)],
        };
        for (part, span) in parts.into_iter().zip(layout.spans_of(clipping.granularity, row)) {
            let span = layout.span(clipping.granularity, span);
            let columns = span.start - elements.start..span.end - elements.start;
            let context = format!("{context}: row {row}, {span:?}");
            verify_span(&context, &before[span.clone()], &center[columns], part, &mut want[span]);
        }
    }
    assert_same_bits(context, after, &want);
}

fn conform(context: &str, layout: &Layout, data: &[f32], clipping: &Clipping) -> Vec<f32> {
    let mut want = data.to_vec();
    let report = Reference.run(layout, &mut want, clipping).unwrap();
    verify(context, layout, clipping, data, &want, &report);
    for (name, backend) in others() {
        let context = format!("{context}: {name}");
        let mut got = data.to_vec();
        let got_report = backend.run(layout, &mut got, clipping).unwrap();
        assert_same_report(&context, &got_report, &report);
        assert_same_bits(&context, &got, &want);
    }
    // Bounds that follow the norms move with them.
    if matches!(clipping.threshold, Threshold::Fixed(_) | Threshold::PerRow(_)) {
        for (name, backend) in all() {
            let context = format!("{context}: {name}, again");
            let mut again = want.clone();
            let second = backend.run(layout, &mut again, clipping).unwrap();
            assert_eq!(second.count(Status::Clipped), 0, "{context}: clipped a clipped batch");
            assert_same_bits(&context, &again, &want);
        }
    }
    want
}

const CENTERS: [Class; 7] = [
    Class::Ordinary,
    Class::Zero,
    Class::NegativeZero,
    Class::Huge,
    Class::Mixed,
    Class::Tiny,
    Class::Subnormal,
];

/// Rows of every class, and rows that have something to do with the centre.
fn rows(center: &[f32], rng: &mut Rng) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = Class::ALL.iter().map(|class| class.row(center.len(), rng)).collect();
    rows.push(center.to_vec());
    rows.push(center.iter().map(|v| -v).collect());
    rows.push(center.iter().map(|v| f32::from_bits(v.to_bits() ^ (rng.below(8) as u32))).collect());
    rows.push(center.iter().map(|v| v * (1.0 + rng.unit() * 1e-3)).collect());
    rows.push(center.iter().map(|v| v + rng.unit()).collect());
    rows.push(center.iter().map(|v| -v * 1e-3).collect());
    rows.push(center.iter().map(|v| v * 0.5 * f32::EPSILON).collect());
    rows
}

fn batch(layout: &Layout, rows: &[Vec<f32>]) -> Vec<f32> {
    let mut data: Vec<f32> = (0..layout.len()).map(poison).collect();
    rows.iter().enumerate().for_each(|(row, values)| data[layout.row(row)].copy_from_slice(values));
    data
}

#[test]
fn every_backend_clips_around_a_centre_as_big_integers_do() {
    let mut rng = Rng::new(31);
    for class in CENTERS {
        for params in [1, 3, 8, 130] {
            let center = class.row(params, &mut rng);
            let rows = rows(&center, &mut rng);
            let norms: Vec<f32> = rows
                .iter()
                .map(|row| square_of_difference(row, &center).map_or(f32::NAN, |sum| oracle::root(&sum)))
                .collect();
            for round in 0..4 {
                let bounds: Vec<f32> = norms
                    .iter()
                    .map(|&norm| {
                        let bounds = bounds_for(norm);
                        bounds[(rng.below(bounds.len() as u64)) as usize]
                    })
                    .collect();
                let layout = Layout::strided(rows.len(), params, params + round % 2).unwrap();
                let layout = if params > 8 { layout.layered(&[5, 0, params - 5]).unwrap() } else { layout };
                let granularity = [Granularity::Row, Granularity::Segment][round / 2];
                let clipping = Clipping::per_row(bounds)
                    .granularity(granularity)
                    .non_finite([NonFinite::Zero, NonFinite::Keep][round % 2])
                    .around(center.clone());
                let context = format!("{class:?}, {params}, round {round}");
                conform(&context, &layout, &batch(&layout, &rows), &clipping);
            }
        }
    }
}

#[test]
fn long_rows_of_several_tiles_and_thresholds_that_look_at_the_batch() {
    let mut rng = Rng::new(32);
    let params = 20_003;
    let center = Class::Ordinary.row(params, &mut rng);
    let near: Vec<Vec<f32>> = (0..7)
        .map(|row| center.iter().map(|v| v + rng.unit() * 0.01 * (1 + row * row) as f32).collect())
        .collect();
    let layout = Layout::dense(near.len(), params).unwrap().layered(&[9_001, 11_002]).unwrap();
    let scope = Scope::Mask((0..near.len()).map(|row| row != 5).collect());
    for threshold in
        [Threshold::Median { factor: 1.0 }, Threshold::Quantile(0.5), Threshold::Arc { byzantine: 2 }]
    {
        for granularity in [Granularity::Row, Granularity::Segment] {
            let clipping = Clipping { threshold: threshold.clone(), ..Clipping::default() }
                .granularity(granularity)
                .scope(scope.clone())
                .around(center.clone());
            conform(&format!("{threshold:?}, {granularity:?}"), &layout, &batch(&layout, &near), &clipping);
        }
    }
}

/// Threads that share a row take the part of the centre that lies beside theirs: in fast sums, exact ones and products.
#[test]
fn rows_that_threads_share_have_their_place_in_the_centre() {
    let mut rng = Rng::new(36);
    let lengths = [70_001, 2, 140_003];
    let params = lengths.iter().sum();
    let center = Class::Ordinary.row(params, &mut rng);
    let near: Vec<Vec<f32>> =
        (1..4).map(|row| center.iter().map(|v| v + rng.unit() * 0.01 * row as f32).collect()).collect();
    let layout = Layout::dense(near.len(), params).unwrap().layered(&lengths).unwrap();
    let data = batch(&layout, &near);
    for granularity in [Granularity::Row, Granularity::Segment] {
        let clipping = Clipping::fixed(2.0).granularity(granularity).around(center.clone());
        let mut want = data.clone();
        let specified = Reference.run(&layout, &mut want, &clipping).unwrap();
        assert!(specified.count(Status::Clipped) > 1);
        for (name, backend) in others() {
            let context = format!("{name}, {granularity:?}");
            let mut got = data.clone();
            let report = backend.run(&layout, &mut got, &clipping).unwrap();
            assert_same_report(&context, &report, &specified);
            assert_same_bits(&context, &got, &want);
        }
    }
}

/// Differences whose fast sums come close to a middle between two norms: whole numbers of 12 bits and a centre
/// of whole numbers give any difference exactly.
#[test]
fn norms_of_differences_that_are_ties_or_nearly_are_rounded_right() {
    let mut rng = Rng::new(33);
    let params = 300;
    let center: Vec<f32> = (0..params).map(|_| rng.below(1 << 13) as f32).collect();
    let rows: Vec<Vec<f32>> = (0..60)
        .map(|row| {
            let class = [Class::Tie, Class::Equal, Class::Losing][row % 3];
            center.iter().zip(class.row(params, &mut rng)).map(|(v, d)| v + d).collect()
        })
        .collect();
    let layout = Layout::dense(rows.len(), params).unwrap();
    conform("ties", &layout, &batch(&layout, &rows), &Clipping::fixed(100.0).around(center));
}

#[test]
fn the_mean_is_that_of_the_rows_clipped_around_the_centre() {
    let mut rng = Rng::new(34);
    for (params, layers) in [(7, vec![7]), (131, vec![31, 100]), (9000, vec![8500, 500])] {
        let center = Class::Ordinary.row(params, &mut rng);
        let rows = rows(&center, &mut rng);
        let layout = Layout::strided(rows.len(), params, params + 1).unwrap().layered(&layers).unwrap();
        let data = batch(&layout, &rows);
        let weights = Weights::PerRow((0..rows.len()).map(|_| rng.unit().abs()).collect());
        for granularity in [Granularity::Row, Granularity::Segment] {
            let clipping = Clipping::fixed(0.3).granularity(granularity).around(center.clone());
            let mut clipped = data.clone();
            let report = Reference.run(&layout, &mut clipped, &clipping).unwrap();
            // What was zeroed does not count; the rest counts as it was clipped.
            let open = Clipping::fixed(f32::INFINITY).granularity(granularity);
            for row in report.rows.iter().enumerate().filter(|(_, r)| r.status == Status::Zeroed) {
                clipped[layout.row(row.0)].fill(f32::NAN);
            }
            let (want, _) = Reference.run_mean(&layout, &clipped, &open, &weights).unwrap();
            for (name, backend) in all() {
                let (got, got_report) = backend.run_mean(&layout, &data, &clipping, &weights).unwrap();
                assert_same_report(name, &got_report, &report);
                assert_same_bits(&format!("{name}, {params}, {granularity:?}"), &got, &want);
            }
        }
    }
}

#[test]
fn centres_that_do_not_fit_are_refused_by_all() {
    let layout = Layout::dense(2, 3).unwrap();
    let ragged = Layout::ragged(&[0, 2, 5]).unwrap();
    let ok = Clipping::fixed(1.0);
    let cases = [
        (&layout, ok.clone().around(vec![0.0; 2]), "2 elements for rows of 3"),
        (&layout, ok.clone().around(vec![0.0, f32::NAN, 0.0]), "NaN in element 1"),
        (&layout, ok.clone().around(vec![0.0, 0.0, f32::INFINITY]), "inf in element 2"),
        (&layout, ok.clone().around(vec![0.0; 3]).granularity(Granularity::Coordinate), "coordinates"),
        (&ragged, ok.around(vec![0.0; 3]), "row 1 with 3 elements"),
    ];
    for (layout, clipping, message) in &cases {
        for (name, backend) in all() {
            let mut data = vec![5.0; layout.len()];
            let error = backend.run(layout, &mut data, clipping).unwrap_err();
            assert!(matches!(error, Error::Setting { .. } | Error::Layout { .. }), "{name}: {error}");
            assert!(error.to_string().contains(message), "{name}: {error}");
            assert_eq!(data, vec![5.0; layout.len()], "{name}");
            assert!(backend.norms(layout, &data, clipping).is_err(), "{name}");
            assert!(backend.run_mean(layout, &data, clipping, &Weights::Equal).is_err(), "{name}");
        }
    }
}

#[test]
fn batches_without_rows_or_columns_take_any_centre_that_fits() {
    for (clients, params) in [(0, 0), (0, 3), (3, 0)] {
        let layout = Layout::dense(clients, params).unwrap();
        let clipping = Clipping::fixed(1.0).around(vec![1.0; params]);
        conform(&format!("{clients} x {params}"), &layout, &[], &clipping);
    }
}

#[cfg(feature = "gpu")]
mod gpu {
    use byzclip::backend::gpu::{Tuning, open};
    use byzclip::{Gpu, wgpu};

    use super::*;

    #[test]
    fn every_strategy_gives_the_bits_of_the_reference() {
        let Some(adapter) = common::gpu::adapter() else { return };
        let (device, queue) = open(&adapter).unwrap();
        let own = Gpu::from_device(device.clone(), queue.clone()).unwrap().tuning().clone();
        let mut rng = Rng::new(35);
        let center = Class::Ordinary.row(700, &mut rng);
        let rows = rows(&center, &mut rng);
        let layout = Layout::dense(rows.len(), 700).unwrap();
        let data = batch(&layout, &rows);
        let clipping = Clipping::fixed(2.0).around(center);
        let mut want = data.clone();
        Reference.run(&layout, &mut want, &clipping).unwrap();
        for tuning in [
            Tuning { wide: false, ..own.clone() },
            Tuning { tile: 64, window: 1024, ..own.clone() },
            Tuning { tile: 4, workgroup: 1, span_workgroup: 1, subgroups: false, ..own.clone() },
            Tuning { subgroups: false, force_exact: true, ..own },
        ] {
            let gpu =
                Gpu::from_device(device.clone(), queue.clone()).unwrap().with_tuning(tuning.clone()).unwrap();
            let mut got = data.clone();
            gpu.run(&layout, &mut got, &clipping).unwrap();
            assert_same_bits(&format!("{tuning:?}"), &got, &want);
        }
    }

    /// Three rounds of v ← mean(clip(xᵢ around v)) that never leave the device.
    #[test]
    fn the_last_mean_becomes_the_next_centre_on_the_device() {
        let Some(adapter) = common::gpu::adapter() else { return };
        let (device, queue) = open(&adapter).unwrap();
        let gpu = Gpu::from_device(device.clone(), queue.clone()).unwrap();
        let mut rng = Rng::new(36);
        let (clients, params) = (9, 150);
        let layout = Layout::dense(clients, params).unwrap();
        let data: Vec<f32> =
            (0..layout.len()).map(|i| rng.unit() * if i < params { 90.0 } else { 1.0 }).collect();
        let mut center = vec![0.0; params];
        let clipping = Clipping::fixed(3.0);

        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: data.len() as u64 * 4,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&data));
        let plan = gpu.plan(&layout, &clipping.clone().around(center.clone()), &buffer).unwrap();
        let mean = plan.mean(&Weights::Equal).unwrap();
        let mut encoder = device.create_command_encoder(&Default::default());
        for round in 0..3 {
            if round > 0 {
                plan.record_center(&mut encoder, mean.buffer(), 0).unwrap();
            }
            plan.record_norms(&mut encoder);
            plan.record_threshold(&mut encoder);
            mean.record(&mut encoder);
        }
        queue.submit([encoder.finish()]);

        for _ in 0..3 {
            let around = clipping.clone().around(center.clone());
            center = Reference.run_mean(&layout, &data, &around, &Weights::Equal).unwrap().0;
        }
        assert_same_bits("after three rounds", &mean.read_blocking().unwrap(), &center);

        let bare = gpu.plan(&layout, &clipping, &buffer).unwrap();
        let mut encoder = device.create_command_encoder(&Default::default());
        assert!(matches!(bare.record_center(&mut encoder, mean.buffer(), 0), Err(Error::Layout { .. })));
        let past = plan.record_center(&mut encoder, mean.buffer(), 4);
        assert!(matches!(past, Err(Error::Buffer { .. })), "{past:?}");
        let uneven = plan.record_center(&mut encoder, mean.buffer(), 2);
        assert!(matches!(uneven, Err(Error::Buffer { .. })), "{uneven:?}");
    }
}
