//! The weighted mean of clipped rows: the same bits on every backend, and those of big integers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use byzclip::{
    Backend, Clipping, Decision, Error, Granularity, Half, Layout, MeanSum, NonFinite, Reference, Report,
    Scope, State, Status, Threshold, Weights,
};
use common::{Class, Rng, all, assert_same_bits, assert_same_report, oracle, others, poison};
use num_bigint::{BigInt, BigUint, Sign};

/// Magnitude in units of 2^-149 with its sign.
fn units(value: f32) -> BigInt {
    let sign = if value.is_sign_negative() { Sign::Minus } else { Sign::Plus };
    BigInt::from_biguint(sign, oracle::units(value))
}

/// `sum / divisor`, the sum in units of 2^-298 and the divisor in units of 2^-149, to the nearest `f32`.
///
/// By bisection over all magnitudes: twice the sum against the middle between neighbours.
fn rounded(sum: &BigInt, divisor: &BigUint) -> f32 {
    if *sum == BigInt::ZERO || *divisor == BigUint::ZERO {
        return 0.0;
    }
    let twice = sum.magnitude() * 2u32;
    let middle = |bits: u32| oracle::units(f32::from_bits(bits)) + oracle::units(f32::from_bits(bits + 1));
    let (mut low, mut high) = (0u32, f32::MAX.to_bits());
    // The least magnitude whose middle with the next is not below the quotient.
    while low < high {
        let at = low + (high - low) / 2;
        let middle = middle(at) * divisor;
        let enough = middle > twice || middle == twice && at % 2 == 0;
        (low, high) = if enough { (low, at) } else { (at + 1, high) };
    }
    f32::from_bits(low | if sum.sign() == Sign::Minus { 0x8000_0000 } else { 0 })
}

/// What one row adds to a coordinate, from the report alone.
fn clipped(value: f32, granularity: Granularity, (factor, bound, status): (f64, f32, Status)) -> f32 {
    match status {
        Status::Clipped if granularity == Granularity::Coordinate => value.clamp(-bound, bound),
        Status::Clipped => oracle::product(value, factor),
        _ if value.is_finite() => value,
        _ => 0.0,
    }
}

/// The mean that the contract asks for, by big integers.
fn expected(
    layout: &Layout,
    data: &[f32],
    clipping: &Clipping,
    weights: &[f32],
    report: &Report,
) -> Vec<f32> {
    let params = layout.params();
    let (mut sums, mut divisor) = (vec![BigInt::ZERO; params], BigUint::ZERO);
    for (row, of_row) in report.rows.iter().enumerate() {
        if matches!(of_row.status, Status::Zeroed | Status::Kept) || params == 0 {
            continue;
        }
        divisor += oracle::units(weights[row]);
        let whole = [(of_row.factor, of_row.bound.unwrap_or(f32::INFINITY), of_row.status)];
        let parts: Vec<_> = report.segments(row).iter().map(|s| (s.factor, s.bound, s.status)).collect();
        let parts = if clipping.granularity == Granularity::Segment { &parts[..] } else { &whole[..] };
        let mut coordinate = 0;
        for (part, span) in parts.iter().zip(layout.spans_of(clipping.granularity, row)) {
            for &value in &data[layout.span(clipping.granularity, span)] {
                let value = clipped(value, clipping.granularity, *part);
                sums[coordinate] += units(weights[row]) * units(value);
                coordinate += 1;
            }
        }
    }
    sums.iter().map(|sum| rounded(sum, &divisor)).collect()
}

/// Holds the reference to the oracle, and every other backend to the reference, as one call and by stages.
fn conform(context: &str, layout: &Layout, data: &[f32], clipping: &Clipping, weights: &Weights) -> Vec<f32> {
    let (want, report) = Reference.run_mean(layout, data, clipping, weights).unwrap();
    let of_rows = weights.of_rows(layout.clients()).unwrap();
    assert_same_bits(context, &want, &expected(layout, data, clipping, &of_rows, &report));
    for (name, backend) in others() {
        let context = format!("{context}: {name}");
        let (got, got_report) = backend.run_mean(layout, data, clipping, weights).unwrap();
        assert_same_report(&context, &got_report, &report);
        assert_same_bits(&context, &got, &want);
        let norms = backend.norms(layout, data, clipping).unwrap();
        let decisions = backend.threshold(layout, &norms, clipping, &mut Default::default()).unwrap();
        let got = backend.mean(layout, data, clipping, &decisions, weights).unwrap();
        assert_same_bits(&format!("{context}, by stages"), &got, &want);
    }
    want
}

/// Rows of all classes, padding poisoned.
fn batch(layout: &Layout, rng: &mut Rng) -> Vec<f32> {
    let mut data: Vec<f32> = (0..layout.len() + 5).map(poison).collect();
    for row in 0..layout.clients() {
        let class = Class::ALL[row % Class::ALL.len()];
        let values = class.row(layout.row(row).len(), rng);
        data[layout.row(row)].copy_from_slice(&values);
    }
    data
}

fn layouts() -> Vec<(&'static str, Layout)> {
    let rows = 2 * Class::ALL.len();
    vec![
        ("dense", Layout::dense(rows, 131).unwrap()),
        ("one column", Layout::dense(rows, 1).unwrap()),
        ("strided", Layout::strided(rows, 66, 71).unwrap()),
        ("layered", Layout::strided(rows, 140, 141).unwrap().layered(&[7, 0, 100, 33]).unwrap()),
        ("ragged of equal rows", Layout::ragged_layered(&vec![vec![0, 3, 70]; rows]).unwrap()),
        ("several tiles", Layout::dense(5, 20_011).unwrap()),
    ]
}

fn weights(rng: &mut Rng, clients: usize, kind: usize) -> Weights {
    let mut weight = |row: usize| match kind {
        1 => (1 + rng.below(1000)) as f32,
        2 if row.is_multiple_of(3) => 0.0,
        2 => rng.finite().abs(),
        _ => rng.unit().abs(),
    };
    if kind == 0 { Weights::Equal } else { Weights::PerRow((0..clients).map(&mut weight).collect()) }
}

#[test]
fn every_backend_rounds_the_exact_mean() {
    let mut rng = Rng::new(1);
    for (name, layout) in layouts() {
        let data = batch(&layout, &mut rng);
        for (i, granularity) in
            [Granularity::Row, Granularity::Segment, Granularity::Coordinate].into_iter().enumerate()
        {
            let scopes = [Scope::All, Scope::Mask((0..layout.clients()).map(|row| row % 5 != 2).collect())];
            for (j, scope) in scopes.into_iter().enumerate() {
                let weights = weights(&mut rng, layout.clients(), (i + 2 * j) % 4);
                let policy = [NonFinite::Zero, NonFinite::Keep][(i + j) % 2];
                for bound in [0.7, 1e-30, f32::INFINITY] {
                    let clipping = Clipping::fixed(bound)
                        .granularity(granularity)
                        .scope(scope.clone())
                        .non_finite(policy);
                    conform(
                        &format!("{name}, {granularity:?}, bound {bound}, scope {j}"),
                        &layout,
                        &data,
                        &clipping,
                        &weights,
                    );
                }
            }
        }
    }
}

#[test]
fn the_mean_is_within_two_ulp_of_f64_where_sums_do_not_cancel() {
    let (mut rng, layout) = (Rng::new(2), Layout::dense(64, 3000).unwrap());
    for exponent in [-30, 0, 60] {
        let scale = 2.0f32.powi(exponent);
        let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit().abs() * scale).collect();
        let weights: Vec<f32> = (0..64).map(|_| (1 + rng.below(600)) as f32).collect();
        let clipping = Clipping::fixed(31.6 * scale);
        let (_, report) = Reference.run_mean(&layout, &data, &clipping, &Weights::Equal).unwrap();
        assert!(report.count(Status::Clipped) > 20 && report.count(Status::Untouched) > 0);
        let mean = conform("positive", &layout, &data, &clipping, &Weights::PerRow(weights.clone()));
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for (i, &got) in mean.iter().enumerate() {
            let term = |row: usize| {
                f64::from(weights[row]) * report.rows[row].factor * f64::from(data[layout.row(row).start + i])
            };
            let want = (0..64).map(term).sum::<f64>() / total;
            let ulp = f64::from(got.next_up()) - f64::from(got);
            assert!((f64::from(got) - want).abs() <= 2.0 * ulp, "{i}: got {got:e}, expected {want:e}");
        }
    }
}

#[test]
fn equal_weights_of_any_size_give_the_bits_of_no_weights() {
    let (mut rng, layout) = (Rng::new(3), Layout::dense(9, 400).unwrap());
    let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
    let equal = conform("equal", &layout, &data, &Clipping::fixed(3.0), &Weights::Equal);
    for weight in [f32::from_bits(1), 1e-30, 600.0, f32::MAX] {
        let weights = Weights::PerRow(vec![weight; 9]);
        let got = conform("of a size", &layout, &data, &Clipping::fixed(3.0), &weights);
        assert_same_bits(&format!("weight {weight}"), &got, &equal);
    }
}

#[test]
fn rows_may_come_in_any_order() {
    let (mut rng, layout) = (Rng::new(4), Layout::dense(12, 77).unwrap());
    let data: Vec<f32> = (0..layout.len()).map(|_| rng.finite()).collect();
    let weights: Vec<f32> = (0..12).map(|_| rng.finite().abs()).collect();
    let clipping = Clipping::fixed(1e20);
    let want = conform("in order", &layout, &data, &clipping, &Weights::PerRow(weights.clone()));
    let mut order: Vec<usize> = (0..12).collect();
    rng.shuffle(&mut order);
    let shuffled: Vec<f32> = order.iter().flat_map(|&row| data[layout.row(row)].to_vec()).collect();
    let weights = Weights::PerRow(order.iter().map(|&row| weights[row]).collect());
    let got = conform("shuffled", &layout, &shuffled, &clipping, &weights);
    assert_same_bits("shuffled", &got, &want);
}

#[test]
fn the_mean_is_that_of_the_clipped_batch() {
    let (mut rng, layout) = (Rng::new(5), Layout::strided(8, 90, 95).unwrap().layered(&[40, 50]).unwrap());
    let data = batch(&layout, &mut rng);
    let clipping = Clipping::fixed(0.5).granularity(Granularity::Segment);
    let mean = conform("unclipped", &layout, &data, &clipping, &Weights::Equal);
    let mut after = data.clone();
    let report = Reference.run(&layout, &mut after, &clipping).unwrap();
    let scope = Scope::Mask(report.rows.iter().map(|row| row.status == Status::Zeroed).collect());
    // Zeroed rows are zeros now: without weight they do not count either.
    let weights = report.rows.iter().map(|row| f32::from(row.status != Status::Zeroed));
    let weights = Weights::PerRow(weights.collect());
    let again = conform("clipped", &layout, &after, &Clipping::fixed(1.0).scope(scope), &weights);
    assert_same_bits("mean of the clipped batch", &again, &mean);
}

#[test]
fn hostile_rows_do_not_change_the_mean_of_the_others() {
    let honest = [1.0, 2.0, 3.0, 4.0];
    let layout = Layout::dense(4, 2).unwrap();
    let weights = Weights::PerRow(vec![1.0, f32::MAX, 3.0, 1e-45]);
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
        let data = [honest[0], honest[1], bad, 1e38, honest[2], honest[3], 7.0, bad];
        for policy in [NonFinite::Zero, NonFinite::Keep] {
            let clipping = Clipping::fixed(100.0).non_finite(policy);
            let mean = conform("hostile", &layout, &data, &clipping, &weights);
            assert_eq!(mean, [2.5, 3.5], "{bad} {policy:?}");
        }
        for (_, backend) in all() {
            let clipping = Clipping::fixed(100.0).non_finite(NonFinite::Error);
            let got = backend.run_mean(&layout, &data, &clipping, &weights);
            assert_eq!(got.unwrap_err(), Error::NonFinite { row: 1 });
        }
    }
}

#[test]
fn elements_that_are_not_finite_count_as_zero_in_rows_out_of_scope() {
    let layout = Layout::dense(2, 3).unwrap();
    let data = [f32::NAN, f32::NEG_INFINITY, 5.0, 2.0, 4.0, -1.0];
    let clipping = Clipping::fixed(f32::INFINITY).scope(Scope::Rows(vec![1]));
    let mean = conform("out of scope", &layout, &data, &clipping, &Weights::Equal);
    assert_eq!(mean, [1.0, 2.0, 2.0]);
}

/// Whose statuses promise norms that the data does not have.
#[test]
fn elements_that_are_not_finite_count_as_zero_whatever_was_decided() {
    for bound in [1.0, 1e-3, f32::INFINITY] {
        counts_alike_where_nothing_is_finite(&Clipping::fixed(bound), |_| {});
        let center = (0..COORDINATES).map(|i| i as f32 * 0.01 - 0.4).collect::<Vec<_>>();
        counts_alike_where_nothing_is_finite(&Clipping::fixed(bound).around(center), |_| {});
    }
}

/// Where coordinates are bounded they are within their bounds, whatever they were: in halves within the greatest of those.
#[test]
fn elements_that_are_not_finite_count_as_their_bound_whatever_was_decided() {
    let clipping = Clipping { granularity: Granularity::Coordinate, ..Clipping::fixed(1e-3) };
    for bound in [1e-3, 0.0, 1.0, 1e5, 3e38, f32::INFINITY] {
        counts_alike_where_nothing_is_finite(&clipping, |decision| decision.bound = bound);
    }
}

const COORDINATES: usize = 83;

/// Every backend takes the means that the reference does, of rows that were decided before they had NaN and Inf.
fn counts_alike_where_nothing_is_finite(clipping: &Clipping, decide: impl Fn(&mut Decision)) {
    // As many as the CPU adds together.
    let clients = 8;
    let layout = Layout::dense(clients, COORDINATES).unwrap();
    let finite = |i: usize| (i % 17) as f32 * 0.25 - 2.0;
    let decided: Vec<f32> = (0..layout.len()).map(finite).collect();
    let norms = Reference.norms(&layout, &decided, clipping).unwrap();
    let mut decisions = Reference.threshold(&layout, &norms, clipping, &mut Default::default()).unwrap();
    decisions.iter_mut().filter(|decision| decision.status == Status::Clipped).for_each(decide);
    for bad in [[f32::NAN; 2], [-f32::NAN; 2], [f32::INFINITY; 2], [f32::INFINITY, f32::NEG_INFINITY]] {
        for every in [1, 7] {
            let mut data = decided.clone();
            let places = data.iter_mut().enumerate().step_by(every);
            places.for_each(|(i, value)| *value = bad[(i / COORDINATES) % 2]);
            for weights in [Weights::Equal, Weights::PerRow((1..=clients).map(|row| row as f32).collect())] {
                let want = Reference.mean(&layout, &data, clipping, &decisions, &weights).unwrap();
                let context =
                    format!("{:?}, {bad:?} every {every}, {:?}", clipping.granularity, decisions[0]);
                for (name, backend) in others() {
                    let got = backend.mean(&layout, &data, clipping, &decisions, &weights).unwrap();
                    assert_same_bits(&format!("{name}, {context}"), &got, &want);
                }
                for half in [Half::F16, Half::Bf16].into_iter().filter(|_| clipping.center.is_none()) {
                    let data: Vec<u16> = data.iter().map(|value| half.truncate(*value)).collect();
                    let want = Reference.mean_half(&layout, half, &data, clipping, &decisions, &weights);
                    let want = want.unwrap();
                    for (name, backend) in others() {
                        let got = backend.mean_half(&layout, half, &data, clipping, &decisions, &weights);
                        assert_same_bits(&format!("{name}, {half:?}, {context}"), &got.unwrap(), &want);
                    }
                }
            }
        }
    }
}

/// Statuses are those of whole rows; what else a caller brings counts as it says.
#[test]
fn segments_of_other_statuses_than_their_rows_count_as_they_say() {
    let layout = Layout::dense(7, 20).unwrap().layered(&[5, 15]).unwrap();
    let data: Vec<f32> = (0..layout.len()).map(|i| (i % 17) as f32 * 0.25 - 2.0).collect();
    let clipping = Clipping::fixed(3.0).granularity(Granularity::Segment);
    let norms = Reference.norms(&layout, &data, &clipping).unwrap();
    let decisions = Reference.threshold(&layout, &norms, &clipping, &mut Default::default()).unwrap();
    for status in [Status::Kept, Status::Zeroed, Status::Untouched, Status::OutOfScope] {
        let mut decisions = decisions.clone();
        decisions.iter_mut().skip(1).step_by(4).for_each(|decision| decision.status = status);
        let want = Reference.mean(&layout, &data, &clipping, &decisions, &Weights::Equal).unwrap();
        for (name, backend) in others() {
            let got = backend.mean(&layout, &data, &clipping, &decisions, &Weights::Equal).unwrap();
            assert_same_bits(&format!("{name}, {status:?}"), &got, &want);
        }
    }
}

/// A sum in `f64` would be the middle between two `f32`, and the exact one is not.
#[test]
fn what_f64_loses_decides_ties() {
    let (two, low) = (2.0f32, 2f32.powi(-30));
    let up = 1.0 + f32::EPSILON;
    let columns = [
        ([two, two.next_up(), low * up, -low], up),
        ([two, two.next_up(), low, -low * up], 1.0),
        ([two, two.next_up(), low, -low], 1.0),
        ([two, two.next_up(), low * up, 0.0], up),
    ];
    let layout = Layout::dense(4, columns.len()).unwrap();
    let data: Vec<f32> = (0..4).flat_map(|row| columns.map(|(column, _)| column[row])).collect();
    for weight in [1.0, 0.7] {
        let weights = Weights::PerRow(vec![weight; 4]);
        let mean = conform("lost bits", &layout, &data, &Clipping::fixed(f32::INFINITY), &weights);
        assert_same_bits("lost bits", &mean, &columns.map(|(_, mean)| mean));
    }
}

/// The same of bf16, which have fewer bits: 2^-29, that a sum of 2^24 has no room for. f16 have no values so far apart.
#[test]
fn what_f64_loses_of_halves_decides_ties() {
    let (large, low) = (2f32.powi(24), 2f32.powi(-22));
    let up = 1.0 + 2f32.powi(-7);
    let (below, above) = (2f32.powi(22), 2f32.powi(22) + 0.5);
    let columns = [
        ([large, 1.0, low * up, -low], above),
        ([large, 1.0, low, -low * up], below),
        ([large, 1.0, low, -low], below),
        ([large, 1.0, low * up, 0.0], above),
    ];
    let layout = Layout::dense(4, columns.len()).unwrap();
    let value = |row: usize| columns.map(|(column, _)| Half::Bf16.truncate(column[row]));
    let data: Vec<u16> = (0..4).flat_map(value).collect();
    let clipping = Clipping::fixed(f32::INFINITY);
    for weights in [Weights::Equal, Weights::PerRow(vec![0.7; 4])] {
        for (name, backend) in all() {
            let (mean, _) = backend.run_mean_half(&layout, Half::Bf16, &data, &clipping, &weights).unwrap();
            assert_same_bits(name, &mean, &columns.map(|(_, mean)| mean));
        }
    }
}

/// In a mean of values that are not much larger, whose last bits they would change.
#[test]
fn subnormal_products_count_as_zero() {
    let layout = Layout::dense(2, 4).unwrap();
    let large = 2f32.powi(20);
    for power in -130..-105 {
        let value = 2f32.powi(power + 20) * 1.3;
        let data = [1.7 * 2f32.powi(-118), 2f32.powi(-115), -1e-36, 0.0, value, value, value, large];
        conform(&format!("2^{power}"), &layout, &data, &Clipping::fixed(1.0), &Weights::Equal);
    }
}

/// More than are summed at a time, with weights of which the least vanish beside the greatest.
#[test]
fn many_rows_of_any_weights_have_the_exact_mean() {
    let mut rng = Rng::new(29);
    let (clients, params) = (1100, 37);
    let layout = Layout::dense(clients, params).unwrap();
    for power in [0, 3, 70, 148] {
        let weights = |rng: &mut Rng| 2f32.powi(rng.below(1 + 2 * power) as i32 - power as i32 / 2 * 2);
        let weights = Weights::PerRow((0..clients).map(|_| weights(&mut rng).min(1e38)).collect());
        for (kind, scale) in [1.0, 1e-38, 1e-44, 3e35].into_iter().enumerate() {
            // Of one sign, of two, and with columns of little and of nothing.
            let value = |i: usize, rng: &mut Rng| match (i % params) % 4 {
                0 => rng.unit().abs() * scale,
                1 => rng.unit() * scale,
                2 if i / params == 7 * (i % params) => -scale,
                2 => 0.0,
                _ => (rng.below(9) as f32 - 4.0) * scale,
            };
            let data: Vec<f32> = (0..layout.len()).map(|i| value(i, &mut rng)).collect();
            for clipping in [Clipping::fixed(f32::INFINITY), Clipping::fixed(2.0 * scale)] {
                conform(&format!("2^{power}, values {kind}"), &layout, &data, &clipping, &weights);
            }
        }
    }
}

#[test]
fn the_ends_of_the_range_neither_over_nor_underflow() {
    let (max, least) = (f32::MAX, f32::from_bits(1));
    let columns = [
        ([max, max, max, max], max),
        ([-max, -max, -max, -max], -max),
        ([1e38, -1e38, 1e-38, 0.0], 1e-38 / 4.0),
        ([max, -max, 4.0 * least, 0.0], least),
        // What f64 would lose: 2^40 beside 2^-24.
        ([2.0f32.powi(40), 3.0 * 2.0f32.powi(-24), -2.0f32.powi(40), 0.0], 3.0 * 2.0f32.powi(-26)),
        ([least, least, least, least], least),
        ([least, 0.0, 0.0, 0.0], 0.0),
        ([-least, 0.0, 0.0, 0.0], -0.0),
        ([3.0 * least, 3.0 * least, 0.0, 0.0], 2.0 * least),
        ([-0.0, -0.0, -0.0, -0.0], 0.0),
        ([1.0, -1.0, 0.0, -0.0], 0.0),
    ];
    let layout = Layout::dense(4, columns.len()).unwrap();
    let data: Vec<f32> = (0..4).flat_map(|row| columns.iter().map(move |(column, _)| column[row])).collect();
    let want: Vec<f32> = columns.iter().map(|(_, mean)| *mean).collect();
    for weight in [1.0, least, max] {
        let weights = Weights::PerRow(vec![weight; 4]);
        let mean = conform("ends", &layout, &data, &Clipping::fixed(f32::INFINITY), &weights);
        assert_same_bits("ends", &mean, &want);
    }
}

/// Sums of few bits, which `f64` holds, over small numbers of rows.
#[test]
fn means_of_equal_weights_that_are_often_ties_go_to_even() {
    let mut rng = Rng::new(16);
    for (clients, weight) in [(2, 1.0), (3, 0.1), (6, 600.0), (10, 1.0), (64, 3.0)] {
        let layout = Layout::dense(clients, 300).unwrap();
        for exponent in [-148, -127, -24, 0, 80] {
            let unit = 2.0f32.powi(exponent);
            // Sums of 24 or 25 bits, and some of far fewer.
            let mut value = |i: usize| {
                let bits = [8, 23, 24][i % 3];
                (rng.below(1 << bits) as f32 - rng.below(1 << bits) as f32) * unit
            };
            let data: Vec<f32> = (0..layout.len()).map(&mut value).collect();
            let weights = Weights::PerRow(vec![weight; clients]);
            let clipping = Clipping::fixed(f32::INFINITY);
            conform(&format!("{clients} rows, 2^{exponent}"), &layout, &data, &clipping, &weights);
        }
    }
}

/// Bits of a weight, or all of it, that a device may flush, times values so large that they matter.
#[test]
fn tiny_weights_keep_their_bits() {
    let layout = Layout::dense(2, 2).unwrap();
    for (weights, values) in [
        ([1e-40, 2.0f32.powi(-60)], [1e36, 1.0]),
        ([1.234_567_8e-36, 2.0f32.powi(-30)], [1.234_567_8e36, 1.0]),
        ([1.234_567_8e-36, 1e-9], [1.234_567_8e30, 0.0]),
        ([f32::from_bits(1), 1e-3], [3e38, 1e-10]),
        ([f32::from_bits((24 << 23) - 1), 1.0], [3e38, 1e-3]),
        ([f32::from_bits((24 << 23) + 1), 1.0], [3e38, 1e-3]),
    ] {
        let data = [values[0], -values[0], values[1], values[1]];
        let clipping = Clipping::fixed(f32::INFINITY);
        conform("tiny weights", &layout, &data, &clipping, &Weights::PerRow(weights.to_vec()));
    }
}

/// Of a row whose factor is no normal `f32`, what is left is small, and not nothing.
#[test]
fn rows_with_tiny_factors_count_with_what_is_left_of_them() {
    let layout = Layout::dense(2, 41).unwrap();
    for exponent in 120..128 {
        let mut data = vec![1e-5f32; layout.len()];
        for (i, value) in data[..41].iter_mut().enumerate() {
            *value = 2.0f32.powi(88) * (0.5 + i as f32 / 41.0);
        }
        data[40] = 2.0f32.powi(exponent) * 1.4;
        let mean = conform("tiny factors", &layout, &data, &Clipping::fixed(1.0), &Weights::Equal);
        assert!(mean[..40].iter().all(|&value| value > 5e-6), "{mean:?}");
    }
}

#[test]
fn ties_go_to_even_and_what_lies_beside_them_to_its_own_side() {
    // Means in the middle of two neighbours, and 2^-149 off it.
    let tie = 1.0 + f32::EPSILON;
    let layout = Layout::dense(4, 4).unwrap();
    let columns = [[1.0, tie, 0.0], [tie, tie + f32::EPSILON, 0.0], [1.0, tie, 1e-45], [1.0, tie, -1e-45]];
    let row = |i: usize| columns.iter().map(move |column| if i < 3 { column[i] } else { 0.0 });
    let data: Vec<f32> = (0..4).flat_map(row).collect();
    let mut weights = vec![1.0, 1.0, 1e-45, 0.0];
    let mean = |weights: &[f32]| {
        conform("ties", &layout, &data, &Clipping::fixed(f32::INFINITY), &Weights::PerRow(weights.to_vec()))
    };
    // The third row's weight takes all means down from the tie.
    assert_eq!(mean(&weights), [1.0, tie, 1.0, 1.0]);
    weights[2] = 0.0;
    assert_eq!(mean(&weights), [1.0, tie + f32::EPSILON, 1.0, 1.0]);
}

#[test]
fn batches_without_weight_rows_or_columns_have_means() {
    let clipping = Clipping::default();
    let mean =
        |layout: &Layout, data: &[f32], weights: &Weights| conform("edge", layout, data, &clipping, weights);
    let zeros = Weights::PerRow(vec![0.0, -0.0]);
    assert_eq!(mean(&Layout::dense(2, 3).unwrap(), &[1.0; 6], &zeros), [0.0; 3]);
    assert_eq!(mean(&Layout::dense(1, 2).unwrap(), &[f32::NAN, 1.0], &Weights::Equal), [0.0; 2]);
    assert_eq!(mean(&Layout::dense(0, 3).unwrap(), &[], &Weights::Equal), [0.0; 3]);
    assert_eq!(mean(&Layout::dense(3, 0).unwrap(), &[], &Weights::Equal), [0.0; 0]);
    assert_eq!(mean(&Layout::ragged(&[0]).unwrap(), &[], &Weights::Equal), [0.0; 0]);
    let empty = Layout::dense(2, 0).unwrap().layered(&[]).unwrap();
    assert_eq!(mean(&empty, &[], &Weights::Equal), [0.0; 0]);
}

/// Rows that come in parts, as `f32` and as halves: for one thread, for several that share the columns, and for several that share
/// the rows.
#[test]
fn a_mean_of_parts_has_the_bits_of_the_whole() {
    let rng = &mut Rng::new(53);
    let shapes = [(9, vec![17]), (300, vec![500, 0, 200]), (5_000, vec![30, 10]), (70_000, vec![1])];
    let clippings = [
        Clipping::fixed(0.7),
        Clipping::fixed(0.7).granularity(Granularity::Segment).non_finite(NonFinite::Keep),
        Clipping::fixed(0.1).granularity(Granularity::Coordinate),
    ];
    for (clients, segments) in shapes {
        let params = segments.iter().sum();
        let layout = Layout::dense(clients, params).unwrap().layered(&segments).unwrap();
        let data = batch(&layout, rng);
        let center: Vec<f32> = (0..params).map(|_| rng.unit()).collect();
        for (kind, clipping) in clippings.iter().chain([&Clipping::fixed(0.7).around(center)]).enumerate() {
            let masked = (0..clients).map(|row| row % 5 != 0).collect();
            let clipping = clipping.clone().scope(Scope::Mask(masked));
            let weights = weights(rng, clients, kind).of_rows(clients).unwrap();
            let cuts = [0, clients / 3, clients / 3 + 1, clients / 3 + 1, clients];
            let parts = || cuts.windows(2).map(|cut| cut[0]..cut[1]);
            let of_parts = |decisions: &[Decision], add: &dyn Fn(&mut MeanSum, Part<'_>)| {
                let mut sum = MeanSum::new(params);
                for rows in parts().rev() {
                    let spans = layout.spans_of(clipping.granularity, 0).len();
                    let part = Layout::dense(rows.len(), params).unwrap().layered(&segments).unwrap();
                    let weights = Weights::PerRow(weights[rows.clone()].to_vec());
                    let decisions = &decisions[rows.start * spans..rows.end * spans];
                    add(&mut sum, (part, rows.start * params, decisions, weights));
                }
                sum.mean(&clipping).unwrap()
            };
            let context = format!("{clients} x {segments:?} {clipping:?}");
            let of = |norms: &byzclip::Norms| {
                Reference.threshold(&layout, norms, &clipping, &mut State::default()).unwrap()
            };
            let all_weights = Weights::PerRow(weights.clone());
            let decisions = of(&Reference.norms(&layout, &data, &clipping).unwrap());
            let got = of_parts(&decisions, &|sum, (layout, first, decisions, weights)| {
                sum.add(&layout, &data[first..], &clipping, decisions, &weights).unwrap();
            });
            for (name, backend) in all() {
                let whole = backend.mean(&layout, &data, &clipping, &decisions, &all_weights).unwrap();
                assert_same_bits(&format!("{context} on {name}"), &got, &whole);
            }
            if clipping.center.is_some() {
                continue;
            }
            for half in [Half::F16, Half::Bf16] {
                let bits: Vec<u16> = data.iter().map(|value| half.truncate(*value)).collect();
                let decisions = of(&Reference.norms_half(&layout, half, &bits, &clipping).unwrap());
                let got = of_parts(&decisions, &|sum, (layout, first, decisions, weights)| {
                    sum.add_half(&layout, half, &bits[first..], &clipping, decisions, &weights).unwrap();
                });
                let whole =
                    Reference.mean_half(&layout, half, &bits, &clipping, &decisions, &all_weights).unwrap();
                assert_same_bits(&format!("{context} {half:?}"), &got, &whole);
            }
        }
    }
}

/// Rows of a batch: layout, first element, decisions and weights.
type Part<'a> = (Layout, usize, &'a [Decision], Weights);

#[test]
fn a_sum_refuses_what_a_mean_refuses_and_stays_as_it_is() {
    let (layout, clipping) = (Layout::dense(2, 2).unwrap(), Clipping::default());
    let data = [1.0, 2.0, 3.0, 4.0];
    let norms = Reference.norms(&layout, &data, &clipping).unwrap();
    let decisions = Reference.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
    let mut sum = MeanSum::new(2);
    sum.add(&layout, &data, &clipping, &decisions, &Weights::Equal).unwrap();
    let mean = sum.mean(&clipping).unwrap();
    let refused = |sum: &mut MeanSum, layout: &Layout, clipping: &Clipping, weights: Weights| {
        sum.add(layout, &data, clipping, &decisions, &weights).unwrap_err()
    };
    let got = refused(&mut sum, &Layout::dense(2, 1).unwrap(), &clipping, Weights::Equal);
    assert!(matches!(got, Error::Layout { .. }), "{got}");
    let got = refused(&mut sum, &Layout::dense(3, 2).unwrap(), &clipping, Weights::Equal);
    assert_eq!(got, Error::DataTooShort { got: 4, expected: 6 });
    let got = refused(&mut sum, &Layout::dense(1, 2).unwrap(), &clipping, Weights::Equal);
    assert!(matches!(got, Error::Layout { .. }), "{got}");
    let got = refused(&mut sum, &layout, &clipping, Weights::PerRow(vec![1.0, f32::NAN]));
    assert!(matches!(got, Error::Setting { name: "weights", .. }), "{got}");
    let around = |center: &[f32]| Clipping::default().around(center);
    let got = refused(&mut sum, &layout, &around(&[1.0; 3]), Weights::Equal);
    assert!(matches!(got, Error::Setting { name: "center", .. }), "{got}");
    let got = sum.add_half(&layout, Half::F16, &[0; 4], &around(&[1.0; 2]), &decisions, &Weights::Equal);
    assert!(matches!(got, Err(Error::Setting { name: "center", .. })), "{got:?}");
    let got = sum.mean(&around(&[1.0; 3])).unwrap_err();
    assert!(matches!(got, Error::Setting { name: "center", .. }), "{got}");
    assert_eq!(sum.mean(&clipping), Ok(mean));
    // Nothing weighs anything: the centre, or zero.
    let mut none = MeanSum::new(2);
    none.add(&layout, &data, &clipping, &decisions, &Weights::PerRow(vec![0.0; 2])).unwrap();
    assert_eq!(none.mean(&clipping), Ok(vec![0.0; 2]));
    assert_eq!(none.mean(&around(&[1.0, -2.0])), Ok(vec![1.0, -2.0]));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (layout, clipping) = (Layout::dense(2, 2).unwrap(), Clipping::default());
    for (name, backend) in all() {
        let weights = |weights: &[f32]| {
            let weights = Weights::PerRow(weights.to_vec());
            backend.run_mean(&layout, &[1.0; 4], &clipping, &weights).unwrap_err()
        };
        for bad in [&[1.0][..], &[1.0; 3], &[1.0, f32::NAN], &[1.0, f32::INFINITY], &[-1.0, 1.0]] {
            assert!(matches!(weights(bad), Error::Setting { name: "weights", .. }), "{name}: {bad:?}");
        }
        let unequal = [
            Layout::ragged(&[0, 2, 3]).unwrap(),
            Layout::ragged_layered(&[vec![1, 1], vec![2]]).unwrap(),
            Layout::ragged_layered(&[vec![1, 2], vec![2, 1]]).unwrap(),
        ];
        for layout in unequal {
            let got = backend.run_mean(&layout, &[1.0; 6], &clipping, &Weights::Equal).unwrap_err();
            assert!(matches!(got, Error::Layout { .. }), "{name}: {got}");
        }
        let got = backend.run_mean(&layout, &[1.0; 3], &clipping, &Weights::Equal).unwrap_err();
        assert_eq!(got, Error::DataTooShort { got: 3, expected: 4 });
        let got = backend.mean(&layout, &[1.0; 4], &Clipping::default(), &[], &Weights::Equal).unwrap_err();
        assert!(matches!(got, Error::Layout { .. }), "{name}: {got}");
    }
}

#[test]
fn the_state_moves_only_where_there_is_a_mean() {
    let threshold = Threshold::History { window: 3, factor: 1.0 };
    let clipping = Clipping { threshold, ..Clipping::default() };
    let layout = Layout::dense(3, 2).unwrap();
    let rounds = [[1.0, 0.0, 0.0, 2.0, 3.0, 0.0], [9.0, 0.0, 0.0, 8.0, 7.0, 0.0]];
    for (name, backend) in all() {
        let (mut state, mut other) = Default::default();
        for mut data in rounds {
            backend.run_mean_with(&layout, &data, &clipping, &Weights::Equal, &mut state).unwrap();
            Reference.run_with(&layout, &mut data, &clipping, &mut other).unwrap();
            assert_eq!(state, other, "{name}");
        }
        let weights = Weights::PerRow(vec![f32::NAN; 3]);
        backend.run_mean_with(&layout, &rounds[0], &clipping, &weights, &mut state).unwrap_err();
        assert_eq!(state, other, "{name}");
    }
}

/// More rows than one dispatch takes, and than the weights of one workgroup.
#[test]
fn many_rows_are_averaged_in_several_dispatches() {
    let clients = 40_000;
    let (mut rng, layout) = (Rng::new(6), Layout::dense(clients, 2).unwrap());
    let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
    let clipping = Clipping::fixed(0.5);
    let norms = Reference.norms(&layout, &data, &Clipping::default()).unwrap();
    let decisions = Reference.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
    for kind in 0..4 {
        let weights = weights(&mut rng, clients, kind);
        let want = Reference.mean(&layout, &data, &Clipping::default(), &decisions, &weights).unwrap();
        for (name, backend) in others() {
            let got = backend.mean(&layout, &data, &Clipping::default(), &decisions, &weights).unwrap();
            assert_same_bits(name, &got, &want);
        }
    }
}

#[cfg(feature = "gpu")]
mod gpu {
    use byzclip::backend::gpu::Tuning;
    use byzclip::{Gpu, Half, wgpu};

    use super::*;

    fn open() -> Option<Gpu> {
        let (device, queue) = byzclip::backend::gpu::open(&common::gpu::adapter()?).unwrap();
        Some(Gpu::from_device(device, queue).unwrap())
    }

    #[test]
    fn every_strategy_gives_the_bits_of_the_reference() {
        let Some(gpu) = open() else { return };
        let own = gpu.tuning().clone();
        // Software adapters take their time for workgroups that find nothing open.
        let window = own.window.min(Tuning::portable().window);
        let portable = Tuning { window, exact_workgroups: 8, ..Tuning::portable() };
        let tunings = [
            Tuning { tile: 64, window: 256, ..portable.clone() },
            Tuning {
                tile: 64,
                window: 256,
                wide: false,
                workgroup: 4,
                span_workgroup: 4,
                ..portable.clone()
            },
            Tuning { tile: 256, window: 1024, ..own.clone() },
            Tuning { wide: false, ..own },
            Tuning { workgroup: 1, span_workgroup: 1, ..portable },
        ];
        let layouts = [
            Layout::dense(24, 1000).unwrap(),
            Layout::strided(13, 333, 341).unwrap().layered(&[1, 0, 300, 32]).unwrap(),
            Layout::dense(700, 3).unwrap(),
            Layout::dense(3, 9001).unwrap(),
        ];
        let mut rng = Rng::new(7);
        for tuning in tunings {
            let name = format!("{tuning:?}");
            let gpu = Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap();
            let gpu = gpu.with_tuning(tuning).unwrap();
            for (i, layout) in layouts.iter().enumerate() {
                let data = batch(layout, &mut rng);
                for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
                    let clipping = Clipping::fixed(1.5).granularity(granularity);
                    let weights = weights(&mut rng, layout.clients(), 1 + i % 3);
                    let (want, _) = Reference.run_mean(layout, &data, &clipping, &weights).unwrap();
                    let (got, _) = gpu.run_mean(layout, &data, &clipping, &weights).unwrap();
                    assert_same_bits(&format!("{name}, layout {i}, {granularity:?}"), &got, &want);
                }
            }
        }
    }

    #[test]
    fn strips_of_coordinates_share_the_buffer_of_sums() {
        let Some(gpu) = open() else { return };
        let tuning = Tuning { tile: 1 << 14, window: 1 << 17, ..gpu.tuning().clone() };
        let gpu = gpu.with_tuning(tuning).unwrap();
        let (mut rng, layout) = (Rng::new(8), Layout::dense(3, 300_007).unwrap());
        let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
        let (want, _) = byzclip::Cpu::new()
            .unwrap()
            .run_mean(&layout, &data, &Clipping::fixed(3.0), &Weights::Equal)
            .unwrap();
        let (got, _) = gpu.run_mean(&layout, &data, &Clipping::fixed(3.0), &Weights::Equal).unwrap();
        assert_same_bits("strips", &got, &want);
    }

    /// A buffer with these updates, for a plan.
    fn upload(gpu: &Gpu, data: &[f32]) -> wgpu::Buffer {
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: (data.len() * 4) as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(data));
        buffer
    }

    /// The mean by a plan, and how many coordinates its fast sums left open: in buffers that begin as zeros, and with nonsense in them.
    fn mean_and_open(
        gpu: &Gpu,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        weights: &Weights,
    ) -> (Vec<f32>, u32) {
        // With room behind it, rows that begin anywhere are read four elements at a time.
        let buffer = upload(gpu, &[data, &[0.0; 8]].concat());
        let plan = gpu.plan(layout, clipping, &buffer).unwrap();
        let mean = plan.mean(weights).unwrap();
        let run = || {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.record_norms(&mut encoder);
            plan.record_threshold(&mut encoder);
            mean.record(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
            (mean.read_blocking().unwrap(), mean.open_blocking().unwrap())
        };
        let (first, open) = run();
        mean.poison().unwrap();
        let (again, still_open) = run();
        assert_same_bits("nonsense in the buffers", &again, &first);
        assert_eq!(still_open, open);
        (first, open)
    }

    fn tuned(gpu: &Gpu, tuning: Tuning) -> Gpu {
        Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap().with_tuning(tuning).unwrap()
    }

    /// Else every mean would be right, and slow.
    #[test]
    fn fast_sums_leave_few_means_open() {
        let Some(gpu) = open() else { return };
        let mut rng = Rng::new(10);
        for tuning in [gpu.tuning().clone(), Tuning::portable()] {
            let gpu = tuned(&gpu, Tuning { window: gpu.tuning().window.min(tuning.window), ..tuning });
            for (clients, params) in [(64, 3_000), (10, 20_011), (1_500, 300)] {
                let layout = Layout::dense(clients, params).unwrap();
                let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
                let weights = weights(&mut rng, clients, 1);
                // About half of the rows are above.
                let clipping = Clipping::fixed((params as f32 / 3.0).sqrt());
                let (want, report) = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap();
                assert!((1..clients).contains(&report.count(Status::Clipped)));
                let (got, open) = mean_and_open(&gpu, &layout, &data, &clipping, &weights);
                assert_same_bits(&format!("{clients} x {params}"), &got, &want);
                assert!((open as usize) < params / 10, "{clients} x {params}: {open} are open");
            }
        }
    }

    /// A window may have all rows of some columns, and of others a part.
    #[test]
    fn columns_that_one_window_holds_are_settled_once() {
        let Some(gpu) = open() else { return };
        let mut rng = Rng::new(14);
        for doubles in [false, gpu.tuning().doubles] {
            let gpu = tuned(&gpu, Tuning { tile: 64, window: 256, doubles, ..gpu.tuning().clone() });
            for (clients, params) in [(1, 1_000), (2, 150), (2, 700), (3, 400), (13, 90)] {
                let layout = Layout::dense(clients, params).unwrap();
                let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
                let weights = weights(&mut rng, clients, 1);
                let clipping = Clipping::fixed(f32::INFINITY);
                let want = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap().0;
                let (got, open) = mean_and_open(&gpu, &layout, &data, &clipping, &weights);
                assert_same_bits(&format!("{clients} x {params}"), &got, &want);
                assert!((open as usize) < params / 10, "{clients} x {params}: {open} are open");
            }
        }
    }

    /// One hostile client must not make everybody wait for exact sums.
    #[test]
    fn a_boosted_row_leaves_no_more_means_open() {
        let Some(gpu) = open() else { return };
        let (mut rng, layout) = (Rng::new(15), Layout::dense(64, 1_000).unwrap());
        let mut data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
        data[..1_000].iter_mut().for_each(|value| *value *= 1e36);
        let (weights, clipping) = (weights(&mut rng, 64, 1), Clipping::fixed(10.0));
        let want = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap().0;
        let (got, open) = mean_and_open(&gpu, &layout, &data, &clipping, &weights);
        assert_same_bits("boosted", &got, &want);
        assert!(open < 50, "{open} are open");
    }

    /// Of ordinary values, so that fast sums decide.
    #[test]
    fn fast_sums_are_of_what_every_kind_of_clipping_writes() {
        let Some(gpu) = open() else { return };
        let mut rng = Rng::new(13);
        let (clients, widths) = (70, [90, 0, 200, 11]);
        let params = widths.iter().sum();
        let layout = Layout::dense(clients, params).unwrap().layered(&widths).unwrap();
        let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
        let center: Vec<f32> = (0..params).map(|_| 0.1 * rng.unit()).collect();
        let scope = Scope::Mask((0..clients).map(|row| row % 5 != 2).collect());
        for tuning in [gpu.tuning().clone(), Tuning { doubles: false, wide: false, ..gpu.tuning().clone() }] {
            let gpu = tuned(&gpu, tuning);
            for (granularity, bound) in
                [(Granularity::Row, 10.0), (Granularity::Segment, 5.0), (Granularity::Coordinate, 0.6)]
            {
                let plain = Clipping::fixed(bound).granularity(granularity).scope(scope.clone());
                let weights = weights(&mut rng, clients, 1);
                for clipping in [plain.clone(), plain.clone().around(center.clone())] {
                    if granularity == Granularity::Coordinate && clipping.center.is_some() {
                        continue;
                    }
                    let context = format!("{granularity:?}, centre: {}", clipping.center.is_some());
                    let (want, report) = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap();
                    let clipped = report.count(Status::Clipped);
                    assert!((10..clients).contains(&clipped), "{context}: {clipped} clipped");
                    let (got, open) = mean_and_open(&gpu, &layout, &data, &clipping, &weights);
                    assert_same_bits(&context, &got, &want);
                    assert!((open as usize) < params / 10, "{context}: {open} are open");
                }
                for half in [Half::F16, Half::Bf16] {
                    let bits: Vec<u16> = data.iter().map(|&value| half.truncate(value)).collect();
                    let want = Reference.run_mean_half(&layout, half, &bits, &plain, &weights).unwrap().0;
                    let got = gpu.run_mean_half(&layout, half, &bits, &plain, &weights).unwrap().0;
                    assert_same_bits(&format!("{half:?}, {granularity:?}"), &got, &want);
                }
            }
        }
    }

    /// Every third coordinate is a sum that cancels, but for its last term, which fast sums lose nearly all of.
    #[test]
    fn parts_of_rows_in_windows_of_any_size_make_one_mean() {
        let Some(gpu) = open() else { return };
        let (own, mut rng) = (gpu.tuning().clone(), Rng::new(11));
        let small = Tuning { tile: 64, window: 1024, ..own.clone() };
        let pairs = Tuning { doubles: false, workgroup: 16, span_workgroup: 16, ..small.clone() };
        for tuning in [small, pairs, Tuning { tile: 64, window: 4096, wide: false, ..own.clone() }, own] {
            let name = format!("{tuning:?}");
            let gpu = tuned(&gpu, tuning);
            for (clients, params) in [(201, 130), (1_101, 37), (129, 70), (2_051, 1)] {
                let layout = Layout::dense(clients, params).unwrap();
                let half = clients / 2;
                let mut data: Vec<f32> = (0..layout.len()).map(|_| 1.5 + rng.unit()).collect();
                for i in (0..half * params).filter(|i| i % params % 3 == 0) {
                    data[i] *= (1 << rng.below(20)) as f32;
                    data[i + half * params] = -data[i];
                }
                let mut weights: Vec<f32> = (0..half).map(|_| 1.5 + rng.unit()).collect();
                weights.extend_from_within(..);
                weights.push(1.0);
                let (weights, clipping) = (Weights::PerRow(weights), Clipping::fixed(f32::INFINITY));
                let want = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap().0;
                let (got, open) = mean_and_open(&gpu, &layout, &data, &clipping, &weights);
                assert_same_bits(&format!("{clients} x {params}, {name}"), &got, &want);
                let cancelling = params.div_ceil(3);
                assert!(
                    (cancelling..=cancelling + params / 3).contains(&(open as usize)),
                    "{open} of {params}"
                );
            }
        }
    }

    #[test]
    fn a_device_whose_fast_means_are_wrong_is_found_out_and_sums_exactly() {
        let Some(gpu) = open() else { return };
        let gpu = tuned(&gpu, Tuning { zero: 1, ..gpu.tuning().clone() });
        let (mut rng, layout) = (Rng::new(12), Layout::dense(64, 500).unwrap());
        let data: Vec<f32> = (0..layout.len()).map(|_| rng.unit()).collect();
        let (weights, clipping) = (weights(&mut rng, 64, 1), Clipping::fixed(10.0));
        let (want, _) = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap();
        let (got, open) = mean_and_open(&gpu, &layout, &data, &clipping, &weights);
        assert_same_bits("spoiled sums", &got, &want);
        assert_eq!(open, 500);
        assert!(gpu.ran().why.contains("every mean takes the exact sum"), "{}", gpu.ran().why);
    }

    #[test]
    fn a_mean_without_decisions_or_of_a_refused_batch_is_an_error_and_leaves_the_centre() {
        let Some(gpu) = open() else { return };
        let layout = Layout::dense(3, 2).unwrap();
        let buffer = upload(&gpu, &[3e6, 4e6, 1.0, f32::NAN, 0.5, 0.5]);
        let submit = |record: &dyn Fn(&mut wgpu::CommandEncoder)| {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            record(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
        };
        let bare = gpu.plan(&layout, &Clipping::fixed(1.0), &buffer).unwrap();
        let mean = bare.mean(&Weights::Equal).unwrap();
        submit(&|encoder| mean.record(encoder));
        assert_eq!(mean.read_blocking().unwrap_err(), Error::NotRecorded);
        submit(&|encoder| {
            bare.record_norms(encoder);
            mean.record(encoder);
        });
        assert_eq!(mean.read_blocking().unwrap_err(), Error::NotRecorded);

        let center = vec![10.0, 20.0];
        let refusing = Clipping::fixed(1.0).non_finite(NonFinite::Error).around(center.clone());
        let plan = gpu.plan(&layout, &refusing, &buffer).unwrap();
        let mean = plan.mean(&Weights::Equal).unwrap();
        submit(&|encoder| {
            plan.record_norms(encoder);
            plan.record_threshold(encoder);
            mean.record(encoder);
            plan.record_center(encoder, mean.buffer(), 0).unwrap();
        });
        assert_eq!(mean.read_blocking().unwrap_err(), Error::NonFinite { row: 1 });
        assert_eq!(plan.report_blocking().unwrap_err(), Error::NonFinite { row: 1 });
        // The centre is as it was: a batch that is fine is clipped around it.
        let fine = [3e6, 4e6, 1.0, 2.0, 0.5, 0.5];
        gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&fine));
        submit(&|encoder| {
            plan.record_norms(encoder);
            plan.record_threshold(encoder);
            mean.record(encoder);
        });
        let (want, _) = Reference.run_mean(&layout, &fine, &refusing, &Weights::Equal).unwrap();
        assert_same_bits("the round after", &mean.read_blocking().unwrap(), &want);
    }

    #[test]
    fn a_plan_averages_the_callers_buffer_in_one_submission_and_writes_no_row() {
        let Some(gpu) = open() else { return };
        let (mut rng, layout) = (Rng::new(9), Layout::strided(9, 500, 511).unwrap());
        let data = batch(&layout, &mut rng);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: (data.len() * 4) as u64,
            usage,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&data));
        let clipping = Clipping::fixed(1.0);
        let plan = gpu.plan(&layout, &clipping, &buffer).unwrap();
        let mean = plan.mean(&Weights::Equal).unwrap();
        assert_eq!(mean.read_blocking().unwrap_err(), Error::NotRecorded);
        for kind in [0, 1] {
            let weights = weights(&mut rng, 9, kind);
            mean.set_weights(&weights).unwrap();
            plan.poison().unwrap();
            mean.poison().unwrap();
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.record_norms(&mut encoder);
            plan.record_threshold(&mut encoder);
            mean.record(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
            let (want, _) = Reference.run_mean(&layout, &data, &clipping, &weights).unwrap();
            assert_same_bits("the caller's buffer", &mean.read_blocking().unwrap(), &want);
        }
        let contents = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&buffer, 0, &contents, 0, buffer.size());
        gpu.queue().submit([encoder.finish()]);
        contents.slice(..).map_async(wgpu::MapMode::Read, |result| result.unwrap());
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let after: Vec<f32> = bytemuck::pod_collect_to_vec(&contents.slice(..).get_mapped_range().unwrap());
        assert_same_bits("the updates", &after, &data);
    }
}
