//! Half precision: every bit pattern against arithmetic that is not the library's, and the contract on every
//! backend: norms and decisions of the widened values, what is written cut towards zero.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use byzclip::{
    AdversaryMode, Backend, Clipping, Cpu, Decision, Error, Granularity, Half, Layout, NonFinite, Reference,
    Report, Result, Scope, State, Status, Threshold, Weights,
};
use common::{Rng, all, assert_same_bits, assert_same_norms, assert_same_report, bounds_for, oracle, power};
use num_bigint::BigUint;
use proptest::prelude::*;

const FORMATS: [Half; 2] = [Half::F16, Half::Bf16];
const GRANULARITIES: [Granularity; 3] = [Granularity::Row, Granularity::Segment, Granularity::Coordinate];

/// What a format is, from its definition: significant bits, exponent of the smallest normal number, bias.
fn shape(half: Half) -> (u32, i32, i32) {
    match half {
        Half::F16 => (11, -14, 15),
        Half::Bf16 => (8, -126, 127),
    }
}

/// The bits of +inf.
fn infinity(half: Half) -> u16 {
    let (digits, _, bias) = shape(half);
    ((2 * bias + 1) as u16) << (digits - 1)
}

/// A finite magnitude as `mantissa · 2^exponent`.
fn parts(half: Half, bits: u16) -> (u64, i32) {
    let (digits, least, bias) = shape(half);
    let magnitude = bits & 0x7fff;
    assert!(magnitude < infinity(half), "{bits:#06x} is not finite");
    let (field, fraction) =
        (i32::from(magnitude >> (digits - 1)), u64::from(magnitude) % (1 << (digits - 1)));
    match field {
        0 => (fraction, least - (digits as i32 - 1)),
        _ => (fraction + (1 << (digits - 1)), field - bias - (digits as i32 - 1)),
    }
}

/// The half of `mantissa · 2^exponent`, cut towards zero, by integer division; the largest one beyond the range.
fn cut(half: Half, mantissa: u64, exponent: i32) -> u16 {
    let (digits, least, bias) = shape(half);
    if mantissa == 0 {
        return 0;
    }
    let top = 63 - mantissa.leading_zeros() as i32 + exponent;
    let unit = top.max(least) - (digits as i32 - 1);
    let steps = match unit - exponent {
        down @ 1..64 => mantissa >> down,
        up @ -63..=0 => mantissa << -up,
        64.. => 0,
        _ => panic!("mantissa {mantissa} has far too few bits"),
    };
    if steps < 1 << (digits - 1) {
        return steps as u16;
    }
    let field = unit + digits as i32 - 1 + bias;
    let bits = ((field as u64) << (digits - 1)) + steps - (1 << (digits - 1));
    bits.min(u64::from(infinity(half)) - 1) as u16
}

/// What the clip stage makes of a finite half: the exact product cut to the grid, a zero below 2^-126.
fn product(half: Half, bits: u16, factor: f64) -> u16 {
    let ((mantissa, exponent), (of_factor, factor_exponent)) =
        (parts(half, bits), oracle::factor_parts(factor));
    let (exact, exponent) = (mantissa * of_factor, exponent + factor_exponent);
    let vanishes = exact == 0 || (63 - exact.leading_zeros() as i32) + exponent < -126;
    bits & 0x8000 | if vanishes { 0 } else { cut(half, exact, exponent) }
}

/// The largest half that is at most a bound.
fn cut_bound(half: Half, bound: f32) -> u16 {
    let (mantissa, exponent) = ((bound.to_bits() & 0x007f_ffff), (bound.to_bits() >> 23) as i32);
    match exponent {
        0 => cut(half, u64::from(mantissa), -149),
        _ => cut(half, u64::from(mantissa | 0x0080_0000), exponent - 150),
    }
}

#[test]
fn every_half_widens_to_its_value() {
    for half in FORMATS {
        for bits in 0..=u16::MAX {
            let value = half.widen(bits);
            assert_eq!(value.is_sign_negative(), bits >> 15 == 1, "{half:?} {bits:#06x}");
            let magnitude = bits & 0x7fff;
            if magnitude < infinity(half) {
                let (mantissa, exponent) = parts(half, bits);
                let want = mantissa as f64 * power(exponent);
                assert_eq!(f64::from(value.abs()), want, "{half:?} {bits:#06x}");
            } else if magnitude == infinity(half) {
                assert_eq!(value.abs(), f32::INFINITY);
            } else {
                let (digits, _, _) = shape(half);
                let payload = u32::from(magnitude) << (24 - digits) & 0x007f_ffff;
                assert_eq!(value.to_bits() & 0x7fff_ffff, 0x7f80_0000 | payload, "{half:?} {bits:#06x}");
            }
        }
    }
}

#[test]
fn every_half_survives_widening_and_truncating_and_so_do_its_neighbours_on_the_side_of_zero() {
    for half in FORMATS {
        for bits in 0..=u16::MAX {
            let value = half.widen(bits);
            if value.is_nan() {
                assert!(half.widen(half.truncate(value)).is_nan(), "{half:?} {bits:#06x}");
                continue;
            }
            assert_eq!(half.truncate(value), bits, "{half:?} {bits:#06x}");
            if value == 0.0 || value.is_infinite() {
                continue;
            }
            // One f32 closer to zero is the half before; one farther is still this one.
            let (inside, outside) =
                (f32::from_bits(value.to_bits() - 1), f32::from_bits(value.to_bits() + 1));
            assert_eq!(half.truncate(inside), bits - 1, "{half:?} {bits:#06x}");
            if outside.is_finite() {
                assert_eq!(half.truncate(outside), bits, "{half:?} {bits:#06x}");
            }
        }
        assert_eq!(half.truncate(f32::MAX), infinity(half) - 1);
        assert_eq!(half.truncate(-f32::MAX), 0x8000 | (infinity(half) - 1));
        assert_eq!(half.truncate(f32::from_bits(1)), 0);
        assert_eq!(half.truncate(-f32::from_bits(1)), 0x8000);
        // A NaN whose payload is out of reach stays one.
        for nan in [0x7f80_0001, 0xff80_0001, 0x7fc0_0000, 0xffff_ffff] {
            assert!(half.widen(half.truncate(f32::from_bits(nan))).is_nan(), "{half:?} {nan:#x}");
        }
    }
}

#[test]
fn values_of_every_magnitude_are_cut_towards_zero() {
    let mut rng = Rng::new(1);
    for half in FORMATS {
        for _ in 0..1_000_000 {
            let value = rng.finite();
            let want = cut_bound(half, value.abs()) | if value.is_sign_negative() { 0x8000 } else { 0 };
            assert_eq!(half.truncate(value), want, "{half:?} {value:e}");
        }
    }
}

/// Factors of the threshold stage: 24 bits below 1, of every size, and those that put products on a grid point.
fn factors(rng: &mut Rng) -> Vec<f64> {
    let mantissa = |rng: &mut Rng| (1 << 23) + rng.below(1 << 23);
    let mut factors =
        vec![0.0, 0.5, 0.25, 0.75, 1.0 - power(-24), 1.0 - power(-22), power(-126), power(-293)];
    for exponent in [-24, -25, -30, -37, -38, -39, -48, -100, -149, -170, -280] {
        let mantissa = mantissa(rng);
        factors.push(mantissa as f64 * power(exponent));
    }
    factors.retain(|factor| *factor < 1.0);
    factors
}

#[test]
fn every_half_times_a_factor_is_the_exact_product_cut_towards_zero() {
    let mut rng = Rng::new(2);
    for half in FORMATS {
        for factor in factors(&mut rng) {
            for bits in (0..=u16::MAX).filter(|bits| bits & 0x7fff < infinity(half)) {
                let (got, want) = (half.scaled(bits, factor), product(half, bits, factor));
                assert_eq!(got, want, "{half:?} {bits:#06x} · {factor:e}: {got:#06x} for {want:#06x}");
            }
        }
    }
}

/// A row of every finite half, as the stages of every backend see it.
#[test]
fn every_half_is_the_same_on_every_backend() {
    let mut rng = Rng::new(10);
    for half in FORMATS {
        let row: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7fff < infinity(half)).collect();
        let layout = Layout::dense(1, row.len()).unwrap();
        let clipping = Clipping::default();
        let norm = Reference.norms_half(&layout, half, &row, &clipping).unwrap().rows[0];
        let untouched = Decision { norm, bound: f32::INFINITY, factor: 1.0, status: Status::Untouched };
        // The mean of one row is the row, but for the sign of zero.
        let values: Vec<f32> = row.iter().map(|&bits| half.widen(bits) + 0.0).collect();
        for (name, backend) in all() {
            let mean =
                backend.mean_half(&layout, half, &row, &clipping, &[untouched], &Weights::Equal).unwrap();
            assert_same_bits(&format!("{half:?}: {name}"), &mean, &values);
        }
        for factor in factors(&mut rng) {
            let decision = Decision { factor, status: Status::Clipped, ..untouched };
            let want: Vec<u16> = row.iter().map(|&bits| product(half, bits, factor)).collect();
            for (name, backend) in all() {
                let mut got = row.clone();
                backend.clip_half(&layout, half, &mut got, &clipping, &[decision]).unwrap();
                assert_same_halves(&format!("{half:?} · {factor:e}: {name}"), &got, &want);
            }
        }
    }
}

/// Factors whose product with a value rounds up to a half in 24 bits, while the exact one is below it.
#[test]
fn a_product_that_rounds_up_to_a_half_in_24_bits_is_still_cut_below_it() {
    // The last two are subnormal in f16.
    for (half, target) in FORMATS.into_iter().flat_map(|half| [0, -15, -24].map(|e| (half, power(e)))) {
        let (one, bits_of_target) = (half.truncate(1.0), half.truncate(target as f32));
        let (mut values, mut decisions) = (Vec::new(), Vec::new());
        for bits in one + 1..half.truncate(2.0) {
            let value = f64::from(half.widen(bits));
            // The largest factor of 24 bits whose product is at most the target.
            let factor = f64::from_bits((target / value).to_bits() & !((1 << 29) - 1));
            if f64::from((value * factor) as f32) == target && value * factor < target {
                let layout = Layout::dense(1, 1).unwrap();
                let norms = Reference.norms(&layout, &[value as f32], &Clipping::default()).unwrap();
                values.push(bits);
                decisions.push(Decision { norm: norms.rows[0], bound: 1.0, factor, status: Status::Clipped });
            }
        }
        assert!(values.len() > 10, "{half:?}: {}", values.len());
        // Rows that are whole vectors, and rows that are less than one.
        for length in [32, 3] {
            let layout = Layout::dense(values.len(), length).unwrap();
            let data: Vec<u16> = values.iter().flat_map(|&bits| vec![bits; length]).collect();
            let want = vec![bits_of_target - 1; data.len()];
            for (name, backend) in all() {
                let mut got = data.clone();
                backend.clip_half(&layout, half, &mut got, &Clipping::default(), &decisions).unwrap();
                assert_same_halves(&format!("{half:?} to {target:e}: {name}"), &got, &want);
            }
        }
    }
}

/// As an `f32` it is the smallest normal number, whose product is another half.
#[test]
fn a_factor_just_below_the_normal_numbers_is_taken_as_it_is() {
    for length in [3, 32, 100, 1500] {
        let mut row = vec![0u16; length];
        row[0] = 0x71a0;
        let layout = Layout::dense(3, length).unwrap();
        let clipping = Clipping::fixed(f32::from_bits(0x32a0_0002));
        let mut clipped = row.repeat(3);
        let report = Reference.run_half(&layout, Half::Bf16, &mut clipped, &clipping).unwrap();
        assert_eq!((report.rows[2].factor, clipped[0]), (power(-127) * (2.0 - power(-23)), 0x329f));
        conform(&format!("{length} elements"), &layout, Half::Bf16, &row.repeat(3), &clipping);
    }
}

#[test]
fn every_half_is_clamped_to_the_largest_half_within_the_bound() {
    let mut rng = Rng::new(3);
    for half in FORMATS {
        for turn in 0..40 {
            let bound = match turn {
                0 => 0.0,
                1 => f32::from_bits(1),
                2 => f32::MIN_POSITIVE,
                3 => 65_504.0,
                4 => 6.0e-8,
                5 => f32::MAX,
                _ => rng.finite().abs(),
            };
            let within = cut_bound(half, bound);
            for bits in (0..=u16::MAX).filter(|bits| bits & 0x7fff < infinity(half)) {
                let got = half.clamped(bits, bound);
                let want = bits & 0x8000 | (bits & 0x7fff).min(within);
                assert_eq!(got, want, "{half:?} {bits:#06x} to {bound:e}");
                assert!(half.widen(got).abs() <= bound);
            }
        }
    }
}

/// What a run is expected to leave, from the contract of the widened values and the oracle's products.
fn expected(
    layout: &Layout,
    half: Half,
    data: &[u16],
    clipping: &Clipping,
) -> Result<(Report, Vec<Decision>, Vec<u16>)> {
    let widened: Vec<f32> = data.iter().map(|&bits| half.widen(bits)).collect();
    let report = Reference.run(layout, &mut widened.clone(), clipping)?;
    let norms = Reference.norms(layout, &widened, clipping)?;
    let decisions = Reference.threshold(layout, &norms, clipping, &mut State::default())?;
    let mut want = data.to_vec();
    for (span, decision) in decisions.iter().enumerate() {
        let values = &mut want[layout.span(clipping.granularity, span)];
        match (decision.status, clipping.granularity) {
            (Status::Zeroed, _) => values.fill(0),
            (Status::Clipped, Granularity::Coordinate) => {
                let within = cut_bound(half, decision.bound);
                values.iter_mut().for_each(|bits| *bits = *bits & 0x8000 | (*bits & 0x7fff).min(within));
            }
            (Status::Clipped, _) => {
                values.iter_mut().for_each(|bits| *bits = product(half, *bits, decision.factor));
            }
            _ => {}
        }
    }
    Ok((report, decisions, want))
}

#[track_caller]
fn assert_same_halves(context: &str, got: &[u16], want: &[u16]) {
    assert_eq!(got.len(), want.len(), "{context}: length");
    if let Some(i) = (0..got.len()).find(|&i| got[i] != want[i]) {
        panic!("{context}: element {i}: got {:#06x}, expected {:#06x}", got[i], want[i]);
    }
}

/// The contract in big integers: what exceeds λ is clipped and nothing else, clipped rows are within λ, and not
/// far below it.
fn hold_the_bound(
    context: &str,
    layout: &Layout,
    half: Half,
    before: &[u16],
    after: &[u16],
    clipping: &Clipping,
    decisions: &[Decision],
) {
    for (span, decision) in decisions.iter().enumerate() {
        let range = layout.span(clipping.granularity, span);
        let values = |bits: &[u16]| bits[range.clone()].iter().map(|&b| half.widen(b)).collect::<Vec<f32>>();
        let (old, new) = (values(before), values(after));
        let norm_exceeds = |values: &[f32]| match clipping.granularity {
            Granularity::Coordinate => values.iter().any(|value| value.abs() > decision.bound),
            _ => oracle::exceeds(&oracle::exact_sum(values).unwrap(), decision.bound),
        };
        match decision.status {
            Status::Untouched => assert!(!norm_exceeds(&old), "{context}: span {span} should be clipped"),
            Status::Clipped => {
                assert!(norm_exceeds(&old), "{context}: span {span} should not be clipped");
                assert!(!norm_exceeds(&new), "{context}: span {span} is above its bound");
            }
            _ => continue,
        }
        let (digits, least, _) = shape(half);
        let normal = |bits: &u16| f64::from(half.widen(*bits)).abs() >= power(least) || *bits & 0x7fff == 0;
        let kept = before[range.clone()].iter().zip(&after[range.clone()]);
        let kept = kept.into_iter().all(|(b, a)| normal(a) && (a & 0x7fff != 0) == (b & 0x7fff != 0));
        if decision.status == Status::Clipped && clipping.granularity != Granularity::Coordinate && kept {
            // ‖g'‖ ≥ λ · (1 − 2^(1 − digits)) · (1 − 2^-20)
            let sum = oracle::exact_sum(&new).unwrap();
            let least = oracle::units(decision.bound).pow(2)
                * BigUint::from((1u64 << (digits - 1)) - 1).pow(2)
                * BigUint::from((1u64 << 20) - 1).pow(2);
            let scale = 2 * (digits - 1) + 40;
            assert!(sum << scale >= least, "{context}: span {span} is clipped to far below its bound");
        }
    }
}

/// Runs on every backend in one call, stage by stage, and as a mean.
fn conform(context: &str, layout: &Layout, half: Half, data: &[u16], clipping: &Clipping) {
    let context = format!("{context}, {half:?}");
    let weights: Vec<f32> = (0..layout.clients()).map(|row| [1.0, 0.5, 3.0, 0.0, 7.25][row % 5]).collect();
    let weights = Weights::PerRow(weights);
    let (report, decisions, want) = match expected(layout, half, data, clipping) {
        Ok(expected) => expected,
        Err(error) => {
            for (name, backend) in all() {
                let mut got = data.to_vec();
                let result = backend.run_half(layout, half, &mut got, clipping);
                assert_eq!(result.unwrap_err(), error, "{context}: {name}");
                assert_same_halves(&format!("{context}: {name}"), &got, data);
            }
            return;
        }
    };
    hold_the_bound(&context, layout, half, data, &want, clipping, &decisions);
    let widened: Vec<f32> = data.iter().map(|&bits| half.widen(bits)).collect();
    let norms = Reference.norms(layout, &widened, clipping).unwrap();
    let mean = expected_mean(layout, half, &want, clipping.granularity, &decisions, &weights);
    for (name, backend) in all() {
        let context = format!("{context}: {name}");
        let mut got = data.to_vec();
        let got_report = backend.run_half(layout, half, &mut got, clipping).unwrap();
        assert_same_report(&context, &got_report, &report);
        assert_same_halves(&context, &got, &want);

        let context = format!("{context}, stage by stage");
        assert_same_norms(&context, &backend.norms_half(layout, half, data, clipping).unwrap(), &norms);
        let mut got = data.to_vec();
        backend.clip_half(layout, half, &mut got, clipping, &decisions).unwrap();
        assert_same_halves(&context, &got, &want);

        let result = backend.mean_half(layout, half, data, clipping, &decisions, &weights);
        let context = format!("{context}, mean");
        match &mean {
            Some(mean) => {
                assert_same_bits(&context, &result.unwrap(), mean);
                let (in_one, report_too) =
                    backend.run_mean_half(layout, half, data, clipping, &weights).unwrap();
                assert_same_bits(&context, &in_one, mean);
                assert_same_report(&context, &report_too, &report);
            }
            None => assert!(matches!(result, Err(Error::Layout { .. })), "{context}: {result:?}"),
        }
    }
}

/// The `f32` mean of what was written, rows that do not count weighing nothing; `None` where rows differ.
fn expected_mean(
    layout: &Layout,
    half: Half,
    clipped: &[u16],
    granularity: Granularity,
    decisions: &[Decision],
    weights: &Weights,
) -> Option<Vec<f32>> {
    let mut weights = weights.of_rows(layout.clients()).unwrap();
    for (row, weight) in weights.iter_mut().enumerate() {
        let status = decisions[layout.spans_of(granularity, row)].first().map(|decision| decision.status);
        if matches!(status, None | Some(Status::Zeroed | Status::Kept)) {
            *weight = 0.0;
        }
    }
    // As if nobody were in scope: values count as they are.
    let nobody = Clipping::default().scope(Scope::Mask(vec![false; layout.clients()]));
    let widened: Vec<f32> = clipped.iter().map(|&bits| half.widen(bits)).collect();
    Reference.run_mean(layout, &widened, &nobody, &Weights::PerRow(weights)).ok().map(|(mean, _)| mean)
}

/// What the halves of a row are like.
#[derive(Debug, Clone, Copy)]
enum Class {
    Ordinary,
    Any,
    Zero,
    LeastSubnormal,
    Subnormal,
    EdgeOfNormal,
    Tiny,
    Largest,
    Grid,
    OneHot,
    Nan,
    Inf,
}

impl Class {
    const ALL: [Self; 12] = [
        Self::Ordinary,
        Self::Any,
        Self::Zero,
        Self::LeastSubnormal,
        Self::Subnormal,
        Self::EdgeOfNormal,
        Self::Tiny,
        Self::Largest,
        Self::Grid,
        Self::OneHot,
        Self::Nan,
        Self::Inf,
    ];

    fn row(self, half: Half, length: usize, rng: &mut Rng) -> Vec<u16> {
        let mut row: Vec<u16> = (0..length).map(|_| self.element(half, rng)).collect();
        if length == 0 {
            return row;
        }
        let at = rng.below(length as u64) as usize;
        match self {
            Self::OneHot => row[at] = half.truncate(3.0 + rng.unit()),
            Self::Nan => row[at] = infinity(half) + 1 + rng.below(0x70) as u16 + (rng.next() as u16 & 0x8000),
            Self::Inf => row[at] = infinity(half) | rng.next() as u16 & 0x8000,
            _ => {}
        }
        row
    }

    fn element(self, half: Half, rng: &mut Rng) -> u16 {
        let normal = 1u64 << (shape(half).0 - 1);
        let sign = rng.next() as u16 & 0x8000;
        sign | match self {
            Self::Any => rng.below(u64::from(infinity(half))) as u16,
            Self::Zero | Self::OneHot => 0,
            Self::LeastSubnormal => rng.below(2) as u16,
            Self::Subnormal => rng.below(normal) as u16,
            Self::EdgeOfNormal => (normal - 4 + rng.below(normal + 8)) as u16,
            Self::Tiny => rng.below(6 * normal) as u16,
            Self::Largest => infinity(half) - 1 - rng.below(3) as u16,
            Self::Grid => half.truncate(rng.below(4) as f32),
            Self::Ordinary | Self::Nan | Self::Inf => half.truncate(rng.unit().abs()),
        }
    }
}

/// Rows of every class, every other element outside of the rows a NaN, and bounds around the norms.
fn fill(layout: &Layout, half: Half, turn: usize, rng: &mut Rng) -> (Vec<u16>, Vec<f32>) {
    let mut data: Vec<u16> = (0..layout.len() + 5).map(|i| infinity(half) + 1 + i as u16 % 0x7f).collect();
    let mut bounds = Vec::new();
    for row in 0..layout.clients() {
        let range = layout.row(row);
        let class = Class::ALL[row % Class::ALL.len()];
        data[range.clone()].copy_from_slice(&class.row(half, range.len(), rng));
        let measured = match layout.segments_of(row) {
            segments if !segments.is_empty() && (row + turn).is_multiple_of(2) => {
                layout.segment(segments.start + (row / 2) % segments.len())
            }
            _ => range,
        };
        let values: Vec<f32> = data[measured].iter().map(|&bits| half.widen(bits)).collect();
        let norm = oracle::exact_sum(&values).map_or(f32::NAN, |sum| oracle::root(&sum));
        let candidates = bounds_for(norm);
        bounds.push(candidates[((row / Class::ALL.len() + turn) * 5 + row) % candidates.len()]);
    }
    (data, bounds)
}

fn layouts() -> Vec<Layout> {
    let rows = 3 * Class::ALL.len();
    let lengths: Vec<Vec<usize>> = (0..rows)
        .map(|row| match row % 5 {
            0 => vec![7, 0, 60, 33],
            1 => vec![],
            2 => vec![1; 50],
            3 => vec![0, 211],
            _ => vec![130, 1],
        })
        .collect();
    let offsets: Vec<usize> = (0..rows)
        .scan(3, |end, row| Some(std::mem::replace(end, *end + [101, 0, 1, 256, 37][row % 5])))
        .collect();
    vec![
        Layout::dense(rows, 101).unwrap(),
        Layout::dense(rows, 1).unwrap(),
        Layout::strided(rows, 97, 99).unwrap(),
        Layout::strided(rows, 64, 67).unwrap().layered(&[0, 17, 1, 46]).unwrap(),
        Layout::dense(rows, 128).unwrap().layered(&[64, 63, 1]).unwrap(),
        Layout::ragged(&offsets).unwrap(),
        Layout::ragged_layered(&lengths).unwrap(),
    ]
}

#[test]
fn every_backend_does_what_the_contract_says_in_every_layout_under_every_policy_and_scope() {
    let mut rng = Rng::new(4);
    for layout in layouts() {
        let modes = [AdversaryMode::None, AdversaryMode::GradAscent, AdversaryMode::LabelFlip];
        let scopes = [
            Scope::All,
            Scope::Mask((0..layout.clients()).map(|row| row % 3 != 1).collect()),
            Scope::Adversaries((0..layout.clients()).map(|row| modes[row % 3]).collect()),
        ];
        for granularity in GRANULARITIES {
            for (turn, scope) in scopes.iter().enumerate() {
                let policy = [NonFinite::Zero, NonFinite::Keep, NonFinite::Error][turn];
                for half in FORMATS {
                    let (data, bounds) = fill(&layout, half, turn, &mut rng);
                    let clipping = Clipping::per_row(bounds)
                        .granularity(granularity)
                        .non_finite(policy)
                        .scope(scope.clone());
                    conform(
                        &format!("{layout:.60?}, {granularity:?}, {policy:?}"),
                        &layout,
                        half,
                        &data,
                        &clipping,
                    );
                }
            }
        }
    }
}

#[test]
fn every_class_conforms_at_every_bound() {
    let mut rng = Rng::new(5);
    for half in FORMATS {
        let (mut offsets, mut data, mut bounds) = (vec![0], Vec::new(), Vec::new());
        for class in Class::ALL {
            for length in [1, 2, 33, 100] {
                let row = class.row(half, length, &mut rng);
                let values: Vec<f32> = row.iter().map(|&bits| half.widen(bits)).collect();
                let norm = oracle::exact_sum(&values).map_or(f32::NAN, |sum| oracle::root(&sum));
                for bound in bounds_for(norm) {
                    data.extend_from_slice(&row);
                    offsets.push(data.len());
                    bounds.push(bound);
                }
            }
        }
        let layout = Layout::ragged(&offsets).unwrap();
        for granularity in [Granularity::Row, Granularity::Coordinate] {
            let clipping = Clipping::per_row(bounds.clone()).granularity(granularity);
            conform("classes × bounds", &layout, half, &data, &clipping);
            for bound in [0.0, -0.0, 1e-45, 1e-30, 1.0, f32::MAX, f32::INFINITY] {
                conform(&format!("all at {bound:e}"), &layout, half, &data, &Clipping::fixed(bound));
            }
        }
    }
}

#[test]
fn rows_of_every_length_around_blocks_and_tasks_conform() {
    let mut rng = Rng::new(6);
    let lengths = [2, 3, 5, 31, 33, 255, 257, 1021, 4095, 4096, 4097, 8191, 8193, 65_535, 65_537, 131_073];
    for (turn, cols) in lengths.into_iter().enumerate() {
        let layout = Layout::strided(Class::ALL.len(), cols, cols + turn % 3).unwrap();
        let half = FORMATS[turn % 2];
        let (data, bounds) = fill(&layout, half, turn, &mut rng);
        conform(&format!("{cols} columns"), &layout, half, &data, &Clipping::per_row(bounds));
    }
}

#[test]
fn thresholds_that_look_at_the_batch_see_the_widened_norms() {
    let mut rng = Rng::new(7);
    let layout = Layout::dense(24, 301).unwrap().layered(&[100, 201]).unwrap();
    for half in FORMATS {
        let (data, _) = fill(&layout, half, 0, &mut rng);
        for threshold in
            [Threshold::Median { factor: 1.5 }, Threshold::Quantile(0.7), Threshold::Arc { byzantine: 4 }]
        {
            for granularity in GRANULARITIES {
                let clipping = Clipping { threshold: threshold.clone(), granularity, ..Clipping::default() };
                conform(&format!("{threshold:?}, {granularity:?}"), &layout, half, &data, &clipping);
            }
        }
    }
}

#[test]
fn clipping_twice_changes_nothing_and_untouched_rows_keep_every_bit() {
    let mut rng = Rng::new(8);
    for half in FORMATS {
        for layout in layouts() {
            let (data, bounds) = fill(&layout, half, 1, &mut rng);
            for granularity in GRANULARITIES {
                let clipping =
                    Clipping::per_row(bounds.clone()).granularity(granularity).non_finite(NonFinite::Keep);
                for (name, backend) in all() {
                    let mut once = data.clone();
                    backend.run_half(&layout, half, &mut once, &clipping).unwrap();
                    let mut twice = once.clone();
                    let report = backend.run_half(&layout, half, &mut twice, &clipping).unwrap();
                    assert_eq!(report.count(Status::Clipped), 0, "{name}");
                    assert_same_halves(name, &twice, &once);
                }
            }
        }
    }
}

/// bf16 rows whose norms are below 2^-126: the norm is not rounded to 24 bits there, and products of the factor
/// could exceed the bound, were they not zeros.
#[test]
fn rows_of_subnormal_norm_stay_within_any_bound() {
    let mut rng = Rng::new(9);
    // The one of NUMERICS.md: (3, 15) would be above its bound.
    let (mut data, mut bounds) = (vec![4, 20], vec![f32::from_bits(1_002_508)]);
    let rows = 4000;
    for _ in 1..rows {
        let row = [rng.below(60) as u16 + 1, rng.below(60) as u16 + 1];
        let values = row.map(|bits| Half::Bf16.widen(bits));
        let norm = oracle::root(&oracle::exact_sum(&values).unwrap());
        let share = norm.to_bits() / 64 * rng.below(64) as u32;
        bounds.push(f32::from_bits(share + rng.below(3) as u32));
        data.extend(row);
    }
    let layout = Layout::dense(rows, 2).unwrap();
    conform("subnormal norms", &layout, Half::Bf16, &data, &Clipping::per_row(bounds));
}

#[test]
fn batches_without_elements_conform() {
    for layout in [
        Layout::dense(0, 5).unwrap(),
        Layout::dense(3, 0).unwrap(),
        Layout::ragged(&[0]).unwrap(),
        Layout::ragged_layered(&[vec![], vec![0, 0]]).unwrap(),
    ] {
        for half in FORMATS {
            for granularity in GRANULARITIES {
                let data = vec![0x7fff; layout.len() + 3];
                conform("empty", &layout, half, &data, &Clipping::fixed(1.0).granularity(granularity));
            }
        }
    }
}

#[test]
fn a_centre_is_refused_by_every_backend_and_call() {
    let layout = Layout::dense(2, 3).unwrap();
    let clipping = Clipping::fixed(1.0).around(vec![0.0; 3]);
    let is_refused = |error: Error| matches!(error, Error::Setting { name: "center", .. });
    for (name, backend) in all() {
        let mut data = vec![0x4000; 6];
        assert!(
            is_refused(backend.run_half(&layout, Half::F16, &mut data, &clipping).unwrap_err()),
            "{name}"
        );
        assert!(is_refused(backend.norms_half(&layout, Half::F16, &data, &clipping).unwrap_err()), "{name}");
        assert!(
            is_refused(backend.clip_half(&layout, Half::F16, &mut data, &clipping, &[]).unwrap_err()),
            "{name}"
        );
        let mean = backend.run_mean_half(&layout, Half::F16, &data, &clipping, &Weights::Equal);
        assert!(is_refused(mean.unwrap_err()), "{name}");
        let mean = backend.mean_half(&layout, Half::F16, &data, &clipping, &[], &Weights::Equal);
        assert!(is_refused(mean.unwrap_err()), "{name}");
        let short = backend.run_half(&layout, Half::F16, &mut data[..5], &clipping).unwrap_err();
        assert_eq!(short, Error::DataTooShort { got: 5, expected: 6 }, "{name}");
        assert_eq!(data, [0x4000; 6], "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// On the backends that cost nothing to call; the others go through the same batches above.
    #[test]
    fn any_halves_under_any_bound_do_what_the_contract_says(
        bits in proptest::collection::vec(any::<u16>(), 1..60),
        bf16 in any::<bool>(),
        bound in any::<u32>(),
    ) {
        let half = FORMATS[usize::from(bf16)];
        let layout = Layout::dense(1, bits.len()).unwrap();
        let values: Vec<f32> = bits.iter().map(|&bits| half.widen(bits)).collect();
        let norm = oracle::exact_sum(&values).map_or(1.0, |sum| oracle::root(&sum));
        // Anywhere, or a share of the norm.
        let bound = match bound % 3 {
            0 => f32::from_bits(bound >> 1),
            _ => norm * (bound >> 8) as f32 / (1 << 24) as f32,
        };
        let bound = if bound.is_nan() { 1.0 } else { bound };
        let clipping = Clipping::fixed(bound);
        let (report, decisions, want) = expected(&layout, half, &bits, &clipping).unwrap();
        hold_the_bound("any", &layout, half, &bits, &want, &clipping, &decisions);
        let cpu = Cpu::new().unwrap();
        for backend in [&Reference as &dyn Backend, &cpu] {
            let mut got = bits.clone();
            let got_report = backend.run_half(&layout, half, &mut got, &clipping).unwrap();
            assert_same_report("any", &got_report, &report);
            assert_same_halves("any", &got, &want);
        }
    }
}

#[cfg(feature = "gpu")]
mod on_a_device {
    use std::sync::OnceLock;

    use super::*;
    use byzclip::backend::gpu::{Tuning, open};
    use byzclip::{Gpu, wgpu};

    /// One device in several tunings, which all tests share: each tuning is checked once.
    fn gpus() -> impl Iterator<Item = (&'static str, &'static Gpu)> {
        static GPUS: OnceLock<Vec<(&str, Gpu)>> = OnceLock::new();
        GPUS.get_or_init(tuned).iter().map(|(name, gpu)| (*name, gpu))
    }

    fn tuned() -> Vec<(&'static str, Gpu)> {
        let Some(adapter) = common::gpu::adapter() else { return Vec::new() };
        let (device, queue) = open(&adapter).unwrap();
        let own = Gpu::from_device(device.clone(), queue.clone()).unwrap();
        let tuning = own.tuning().clone();
        let portable = Tuning {
            window: tuning.window.min(Tuning::portable().window),
            // Every window has as many of them, and there are hundreds of windows.
            exact_workgroups: 8,
            ..Tuning::portable()
        };
        let with =
            |tuning| Gpu::from_device(device.clone(), queue.clone()).unwrap().with_tuning(tuning).unwrap();
        let pairs =
            tuning.doubles.then(|| ("pairs of f32", with(Tuning { doubles: false, ..tuning.clone() })));
        let others = [
            ("two elements at a time", with(Tuning { wide: false, ..tuning.clone() })),
            ("small tiles, f16 by integers", with(Tuning { tile: 64, unpacks: false, ..tuning.clone() })),
            ("small windows", with(Tuning { tile: 256, window: 1024, ..tuning.clone() })),
            (
                "small windows, two at a time",
                with(Tuning { tile: 64, window: 256, wide: false, ..portable.clone() }),
            ),
            ("exact sums only", with(Tuning { force_exact: true, tile: 64, window: 256, ..portable })),
            ("its own", own),
        ];
        others.into_iter().chain(pairs).collect()
    }

    fn buffer_of(gpu: &Gpu, data: &[u16]) -> wgpu::Buffer {
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("the caller's updates"),
            size: (data.len() as u64 * 2).next_multiple_of(4),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut bytes = bytemuck::cast_slice(data).to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0xee);
        gpu.queue().write_buffer(&buffer, 0, &bytes);
        buffer
    }

    fn contents(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u16> {
        let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        gpu.queue().submit([encoder.finish()]);
        staging.slice(..).map_async(wgpu::MapMode::Read, |result| result.unwrap());
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
        bytemuck::cast_slice(&staging.slice(..).get_mapped_range().unwrap()).to_vec()
    }

    #[test]
    fn every_strategy_does_what_the_contract_says_to_host_batches() {
        let mut rng = Rng::new(20);
        for (strategy, (name, gpu)) in gpus().enumerate() {
            for (turn, layout) in layouts().into_iter().chain([Layout::dense(12, 2001).unwrap()]).enumerate()
            {
                for granularity in GRANULARITIES {
                    let half = FORMATS[turn % 2];
                    let (data, bounds) = fill(&layout, half, turn, &mut rng);
                    let clipping = Clipping::per_row(bounds).granularity(granularity);
                    let (report, decisions, want) = expected(&layout, half, &data, &clipping).unwrap();
                    let context = format!("{name}, layout {turn}, {granularity:?}, {half:?}");
                    let mut got = data.clone();
                    assert_same_report(
                        &context,
                        &gpu.run_half(&layout, half, &mut got, &clipping).unwrap(),
                        &report,
                    );
                    assert_same_halves(&context, &got, &want);
                    // Of long rows in small windows it takes minutes on some software adapters.
                    let averaged = strategy == 0 || layout.params() <= 400;
                    let mean = expected_mean(&layout, half, &want, granularity, &decisions, &Weights::Equal);
                    if let Some(mean) = mean.filter(|_| averaged) {
                        let got =
                            gpu.run_mean_half(&layout, half, &data, &clipping, &Weights::Equal).unwrap().0;
                        assert_same_bits(&context, &got, &mean);
                    }
                }
            }
        }
    }

    /// Those that do not cut a batch in hundreds of windows, which takes minutes on some software adapters.
    fn in_one_window() -> impl Iterator<Item = (&'static str, &'static Gpu)> {
        gpus().filter(|(_, gpu)| gpu.tuning().window > 1 << 20)
    }

    #[test]
    fn every_half_counts_in_a_norm() {
        for half in FORMATS {
            // Eight to a row, which is two groups, and the root of no square.
            let layout = Layout::dense(1 << 13, 8).unwrap();
            let data: Vec<u16> = (0..=u16::MAX).collect();
            let want = Reference.norms_half(&layout, half, &data, &Clipping::default()).unwrap();
            for (name, gpu) in in_one_window() {
                let got = gpu.norms_half(&layout, half, &data, &Clipping::default()).unwrap();
                let differs = (0..layout.clients()).find(|&row| got.rows[row] != want.rows[row]);
                assert_eq!(differs, None, "{half:?}: {name}");
            }
        }
    }

    /// Elements of a bf16 whose squares are no normal numbers, beside one whose square is.
    #[test]
    fn squares_that_vanish_in_f32_are_in_the_norm() {
        let power = |exponent: i32| Half::Bf16.truncate(1.5 * 2.0f32.powi(exponent));
        let layout = Layout::dense(16, 10_000).unwrap();
        let mut data = Vec::new();
        for row in 0..layout.clients() as i32 {
            data.extend(vec![power(-60 - row); layout.params()]);
            let first = data.len() - layout.params();
            data[first] = power(-48 - 2 * (row % 4));
        }
        let want = Reference.norms_half(&layout, Half::Bf16, &data, &Clipping::default()).unwrap();
        for (name, gpu) in in_one_window() {
            let got = gpu.norms_half(&layout, Half::Bf16, &data, &Clipping::default()).unwrap();
            assert_eq!(got.rows, want.rows, "{name}");
        }
    }

    #[test]
    fn a_plan_clips_halves_in_the_callers_buffer_and_keeps_what_lies_between_the_rows() {
        let mut rng = Rng::new(21);
        let layouts = [
            Layout::dense(12, 640).unwrap(),
            Layout::dense(12, 642).unwrap(),
            Layout::strided(24, 1001, 1004).unwrap(),
            Layout::strided(24, 333, 338).unwrap(),
            Layout::strided(24, 1, 2).unwrap(),
            Layout::ragged(&[2, 8, 8, 310, 1312]).unwrap(),
            Layout::strided(12, 101, 106).unwrap().layered(&[64, 36, 1]).unwrap(),
        ];
        for (name, gpu) in gpus() {
            for (turn, layout) in layouts.iter().enumerate() {
                for granularity in GRANULARITIES {
                    let half = FORMATS[turn % 2];
                    let (data, bounds) = fill(layout, half, turn, &mut rng);
                    let clipping = Clipping::per_row(bounds).granularity(granularity);
                    let (report, decisions, want) = expected(layout, half, &data, &clipping).unwrap();
                    let context = format!("{name}, layout {turn}, {granularity:?}, {half:?}");
                    let buffer = buffer_of(gpu, &data);
                    let plan = gpu.plan_half(layout, half, &clipping, &buffer).unwrap();
                    plan.poison().unwrap();
                    let mean = plan.mean(&Weights::Equal);
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    plan.record_norms(&mut encoder);
                    plan.record_threshold(&mut encoder);
                    if let Ok(mean) = &mean {
                        mean.record(&mut encoder);
                    }
                    plan.record_clip(&mut encoder);
                    gpu.queue().submit([encoder.finish()]);
                    assert_same_report(&context, &plan.report_blocking().unwrap(), &report);
                    assert_same_halves(&context, &contents(gpu, &buffer)[..data.len()], &want);
                    let want = expected_mean(layout, half, &want, granularity, &decisions, &Weights::Equal);
                    assert_eq!(mean.is_ok(), want.is_some(), "{context}");
                    if let (Ok(mean), Some(want)) = (mean, want) {
                        assert_same_bits(&context, &mean.read_blocking().unwrap(), &want);
                    }
                }
            }
        }
    }

    #[test]
    fn buffers_whose_rows_share_words_are_refused() {
        let Some((_, gpu)) = gpus().next() else { return };
        let buffer = buffer_of(gpu, &[0; 64]);
        let plan = |layout: &Layout, granularity| {
            gpu.plan_half(layout, Half::F16, &Clipping::default().granularity(granularity), &buffer).map(drop)
        };
        let odd = [
            (Layout::dense(2, 3).unwrap(), Granularity::Row),
            (Layout::ragged(&[1, 4]).unwrap(), Granularity::Coordinate),
            (Layout::dense(2, 8).unwrap().layered(&[3, 5]).unwrap(), Granularity::Segment),
        ];
        for (layout, granularity) in odd {
            assert!(matches!(plan(&layout, granularity), Err(Error::Layout { .. })), "{layout:?}");
        }
        // The same segments in one row, and a row without elements, share none.
        assert_eq!(plan(&Layout::dense(2, 8).unwrap().layered(&[3, 5]).unwrap(), Granularity::Row), Ok(()));
        assert_eq!(plan(&Layout::ragged(&[0, 7, 7]).unwrap(), Granularity::Row), Ok(()));
        let long = Layout::dense(1, 65).unwrap();
        assert_eq!(plan(&long, Granularity::Row), Err(Error::DataTooShort { got: 64, expected: 65 }));
        let center = Clipping::default().around(vec![0.0; 4]);
        let refused = gpu.plan_half(&Layout::dense(2, 4).unwrap(), Half::Bf16, &center, &buffer);
        assert!(matches!(refused, Err(Error::Setting { name: "center", .. })));
    }

    #[test]
    fn batches_of_all_storages_take_turns_on_one_device() {
        let layout = Layout::dense(3, 4).unwrap();
        let single: Vec<f32> = (0..12).map(|i| i as f32 - 3.0).collect();
        for (name, gpu) in gpus() {
            for _ in 0..2 {
                let (mut got, mut want) = (single.clone(), single.clone());
                gpu.run(&layout, &mut got, &Clipping::fixed(4.0)).unwrap();
                Reference.run(&layout, &mut want, &Clipping::fixed(4.0)).unwrap();
                assert_same_bits(name, &got, &want);
                for half in FORMATS {
                    let data: Vec<u16> = single.iter().map(|&value| half.truncate(value)).collect();
                    let (mut got, mut want) = (data.clone(), data);
                    gpu.run_half(&layout, half, &mut got, &Clipping::fixed(4.0)).unwrap();
                    Reference.run_half(&layout, half, &mut want, &Clipping::fixed(4.0)).unwrap();
                    assert_same_halves(name, &got, &want);
                }
            }
        }
    }
}

#[cfg(feature = "cli")]
#[path = "common/cli.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;

#[cfg(feature = "cli")]
mod on_the_command_line {
    use super::*;
    use std::fs;
    use std::path::Path;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::fixtures::{
        Tensor, assert_norms, assert_rows, fails, half_bytes, json_of, npy_bytes, raw_safetensors, refused,
        safetensors,
    };

    #[track_caller]
    fn on_cpu(folder: &Path, arguments: &[&str]) -> Value {
        json_of(folder, &[arguments, &["--backend", "cpu"]].concat())
    }

    /// A file of one row, its tensors not in name order: `w.2`, `b.0`, `w.10`.
    fn file_of(dtype: &str, row: &[u16]) -> Vec<u8> {
        let elements = half_bytes(row);
        let (w2, rest) = elements.split_at(elements.len() - 6);
        let (b0, w10) = rest.split_at(2);
        let tensors: [Tensor; 3] =
            [("w.2", dtype, &[row.len() - 3], w2), ("b.0", dtype, &[1], b0), ("w.10", dtype, &[2], w10)];
        safetensors(&tensors, "{\"round\": \"7\"}")
    }

    fn batch(half: Half, layout: &Layout) -> Vec<u16> {
        let mut data = fill(layout, half, 0, &mut Rng::new(30)).0;
        data.truncate(layout.len());
        data
    }

    #[test]
    fn npy_files_of_float16_are_read_and_written_back() {
        let folder = TempDir::new().unwrap();
        let layout = Layout::dense(24, 37).unwrap();
        let data = batch(Half::F16, &layout);
        let file = npy_bytes("<f2", "(24, 37)", &half_bytes(&data));
        fs::write(folder.path().join("in.npy"), &file).unwrap();

        let (report, _, want) = expected(&layout, Half::F16, &data, &Clipping::fixed(0.5)).unwrap();
        assert!(report.count(Status::Clipped) > 3 && report.count(Status::Zeroed) > 3);
        let clipped = on_cpu(folder.path(), &["clip", "in.npy", "-o", "out.npy", "--max-norm", "0.5"]);
        assert_rows(&clipped, &report);
        let header = &file[..file.len() - 2 * data.len()];
        assert_eq!(fs::read(folder.path().join("out.npy")).unwrap(), [header, &half_bytes(&want)].concat());
        assert_norms(&on_cpu(folder.path(), &["norms", "in.npy"]), &report);
        assert_eq!(on_cpu(folder.path(), &["analyze", "in.npy"])["params"], 37);
    }

    #[test]
    fn safetensors_of_both_formats_are_read_and_written_back() {
        for (half, dtype) in [(Half::F16, "F16"), (Half::Bf16, "BF16")] {
            let folder = TempDir::new().unwrap();
            // Layers in name order: b.0, w.10, w.2.
            let layout = Layout::dense(12, 21).unwrap().layered(&[1, 2, 18]).unwrap();
            let data = batch(half, &layout);
            let in_file = |row: &[u16]| [&row[3..], &row[..1], &row[1..3]].concat();
            let names: Vec<String> = (0..12).map(|row| format!("{row:02}.safetensors")).collect();
            for (row, name) in data.chunks(21).zip(&names) {
                fs::write(folder.path().join(name), file_of(dtype, &in_file(row))).unwrap();
            }
            let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
            for (granularity, flag) in
                [(Granularity::Row, &[][..]), (Granularity::Segment, &["--per-layer"][..])]
            {
                let clipping = Clipping::fixed(0.5).granularity(granularity);
                let (report, _, want) = expected(&layout, half, &data, &clipping).unwrap();
                let clip = ["clip", "-o", "out", "--max-norm", "0.5"];
                assert_rows(&on_cpu(folder.path(), &[&clip, &inputs[..], flag].concat()), &report);
                for (row, name) in want.chunks(21).zip(&names) {
                    let got = fs::read(folder.path().join("out").join(name)).unwrap();
                    assert_eq!(got, file_of(dtype, &in_file(row)), "{name}");
                }
                assert_norms(&on_cpu(folder.path(), &[&["norms"], &inputs[..], flag].concat()), &report);
            }
        }
    }

    /// There is none to read here.
    #[test]
    fn a_centre_for_halves_is_refused_before_it_is_read() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("x.npy"), npy_bytes("<f2", "(2, 2)", &[0; 8])).unwrap();
        for command in ["clip", "mean"] {
            let arguments = [command, "x.npy", "-o", "y.npy", "--max-norm", "2", "--center", "none.npy"];
            fails(folder.path(), &arguments, 2, &["a centre for rows in half precision"]);
        }
    }

    #[test]
    fn files_of_other_or_mixed_types_are_refused() {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        for descr in [">f2", "<V2", "<u2"] {
            write("x.npy", &npy_bytes(descr, "(2, 2)", &[0; 8]));
            refused(folder.path(), &["x.npy"], &[descr, "float32 or float16", "numpy.save"]);
        }
        write("x.npy", &npy_bytes("<f2", "(2, 2)", &[0; 6]));
        refused(folder.path(), &["x.npy"], &["truncated", "136 bytes"]);
        write("x.npy", &npy_bytes("<f2", "(2, 2)", &[0; 16]));
        refused(folder.path(), &["x.npy"], &["longer than its header says"]);

        write("a.safetensors", &file_of("F16", &[0; 5]));
        write("b.safetensors", &file_of("BF16", &[0; 5]));
        let words = ["b.safetensors", "tensor 'b.0' of type BF16", "type F16 of a.safetensors"];
        refused(folder.path(), &["a.safetensors", "b.safetensors"], &words);
        let mixed = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\
                     \"b\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[4,6]}}";
        write("m.safetensors", &raw_safetensors(mixed, &[0; 6]));
        refused(folder.path(), &["m.safetensors"], &["tensor 'b' of type F16", "expected F32", "one type"]);
    }
}
