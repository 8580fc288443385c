//! What the contract says, from big integers alone: nothing here calls the library's arithmetic.
//!
//! Every finite `f32` is an integer in units of 2^-149, so its square is one in units of 2^-298 and
//! every comparison of norms, bounds and clipped rows is one of integers.

use byzclip::{AdversaryMode, Clipping, Granularity, Layout, NonFinite, Report, Scope, Status, Threshold};
use num_bigint::BigUint;

/// The magnitude of a finite value as `mantissa · 2^exponent` units of 2^-149.
fn integer(value: f32) -> (u64, u32) {
    let bits = value.to_bits() & 0x7fff_ffff;
    assert!(bits < 0x7f80_0000, "{bits:#x} is not finite");
    match bits >> 23 {
        0 => (u64::from(bits), 0),
        field => (u64::from(bits % (1 << 23) + (1 << 23)), field - 1),
    }
}

/// A finite value's magnitude in units of 2^-149.
pub fn units(value: f32) -> BigUint {
    let (mantissa, exponent) = integer(value);
    BigUint::from(mantissa) << exponent
}

/// The exact sum of squares in units of 2^-298, or `None` where a value is NaN or infinite.
///
/// One 128-bit sum of squared mantissas per exponent (below 2^79 for 2^31 elements), joined at the end.
pub fn exact_sum(values: &[f32]) -> Option<BigUint> {
    let mut buckets = [0u128; 254];
    for &value in values {
        if !value.is_finite() {
            return None;
        }
        let (mantissa, exponent) = integer(value);
        buckets[exponent as usize] += u128::from(mantissa * mantissa);
    }
    let joined = buckets.iter().zip(0u32..).filter(|(bucket, _)| **bucket != 0);
    Some(joined.map(|(&bucket, exponent)| BigUint::from(bucket) << (2 * exponent)).sum())
}

/// The root of an exact sum, rounded to the nearest `f32`, ties to even; +inf where that is not finite.
pub fn root(sum: &BigUint) -> f32 {
    let floor = sum.sqrt();
    // The spacing of f32 at the root: one unit among the subnormals and in the first binade.
    let shift = floor.bits().saturating_sub(24);
    let low: BigUint = &floor >> shift;
    // The middle between two neighbours in half units, squared, against four times the sum.
    let middle = ((&low << 1u32) + 1u32) << shift;
    let up = match (sum << 2u32).cmp(&(&middle * &middle)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => low.bit(0),
    };
    let rounded = (low + u32::from(up)) << shift;
    from_units(&rounded)
}

/// The `f32` of this many units of 2^-149, which has at most 24 significant bits; +inf above the range.
fn from_units(value: &BigUint) -> f32 {
    let shift = value.bits().saturating_sub(24);
    let mantissa = u32::try_from(value >> shift).expect("24 bits");
    let field = shift as u32 + u32::from(mantissa >= 1 << 23);
    if field > 254 {
        return f32::INFINITY;
    }
    f32::from_bits((field << 23) | (mantissa % (1 << 23)))
}

/// Whether the root of the sum is above the bound.
pub fn exceeds(sum: &BigUint, bound: f32) -> bool {
    bound != f32::INFINITY && *sum > units(bound).pow(2)
}

/// A nonnegative finite `f64` of at most 24 significant bits as `mantissa · 2^exponent`.
pub fn factor_parts(factor: f64) -> (u64, i32) {
    let bits = factor.to_bits();
    assert!(bits >> 63 == 0 && (factor == 0.0 || factor.is_normal()), "factor {factor:e} ({bits:#x})");
    if factor == 0.0 {
        return (0, 0);
    }
    assert_eq!(bits & ((1 << 29) - 1), 0, "factor {factor:e} ({bits:#x}) has more than 24 bits");
    (((bits & ((1 << 52) - 1)) >> 29) | 1 << 23, (bits >> 52) as i32 - 1023 - 23)
}

/// Contract 8: the exact product, rounded to 24 bits and nearest even with an unbounded exponent;
/// a zero of the value's sign where that is below the normal range.
pub fn product(value: f32, factor: f64) -> f32 {
    let (m, e) = integer(value);
    let (fm, fe) = factor_parts(factor);
    let sign = value.to_bits() & 0x8000_0000;
    let exact = m * fm;
    if exact == 0 {
        return f32::from_bits(sign);
    }
    let exponent = e as i32 - 149 + fe;
    let length = 64 - exact.leading_zeros() as i32;
    let mut shift = length - 24;
    let mut mantissa = if shift <= 0 { exact << -shift } else { exact >> shift };
    if shift > 0 {
        let (rest, half) = (exact & ((1 << shift) - 1), 1u64 << (shift - 1));
        mantissa += u64::from(rest > half || rest == half && mantissa % 2 == 1);
        if mantissa == 1 << 24 {
            (mantissa, shift) = (1 << 23, shift + 1);
        }
    }
    let field = exponent + shift + 23 + 127;
    assert!(field < 255, "a factor up to 1 cannot overflow");
    if field < 1 {
        return f32::from_bits(sign);
    }
    f32::from_bits(sign | ((field as u32) << 23) | (mantissa as u32 % (1 << 23)))
}

/// Which rows are in scope.
pub fn mask(scope: &Scope, clients: usize) -> Vec<bool> {
    match scope {
        Scope::All => vec![true; clients],
        Scope::Mask(mask) => mask.clone(),
        Scope::Rows(rows) => (0..clients).map(|row| rows.contains(&row)).collect(),
        Scope::Adversaries(modes) => modes.iter().map(|mode| *mode != AdversaryMode::None).collect(),
    }
}

/// What is expected of a span from its values: the norm, and the sum where there is one.
struct Expected {
    norm: f32,
    sum: Option<BigUint>,
}

fn expected(values: &[f32], in_scope: bool) -> Expected {
    let sum = if in_scope { exact_sum(values) } else { None };
    Expected { norm: sum.as_ref().map_or(f32::NAN, root), sum }
}

fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

/// Holds a whole run against the contract: norms, statuses, bounds, factors, products, the bound on
/// the clipped rows, and every bit outside of the rows written.
pub fn verify(
    context: &str,
    layout: &Layout,
    clipping: &Clipping,
    before: &[f32],
    after: &[f32],
    report: &Report,
) {
    let clients = layout.clients();
    assert_eq!(report.rows.len(), clients, "{context}: rows in the report");
    if clipping.granularity == Granularity::Coordinate {
        return verify_coordinates(context, layout, clipping, before, after, report);
    }
    let mask = mask(&clipping.scope, clients);
    let mut want = before.to_vec();
    for (row, got) in report.rows.iter().enumerate() {
        let context = format!("{context}: row {row}");
        let whole = expected(&before[layout.row(row)], mask[row]);
        let hostile = mask[row] && whole.sum.is_none();
        assert!(same(got.norm, whole.norm), "{context}: norm {} for {}", Bits(got.norm), Bits(whole.norm));

        let spans: Vec<_> = match clipping.granularity {
            Granularity::Row | Granularity::Coordinate => vec![layout.row(row)],
            Granularity::Segment => layout.segments_of(row).map(|s| layout.segment(s)).collect(),
        };
        let reported: Vec<_> = match clipping.granularity {
            Granularity::Row | Granularity::Coordinate => {
                vec![(got.norm, got.bound.expect("a bound"), got.factor, got.status)]
            }
            Granularity::Segment => {
                report.segments(row).iter().map(|s| (s.norm, s.bound, s.factor, s.status)).collect()
            }
        };
        assert_eq!(reported.len(), spans.len(), "{context}: spans in the report");
        assert_eq!(
            report.segments(row).is_empty(),
            clipping.granularity == Granularity::Row || spans.is_empty()
        );
        for (index, (span, &(norm, bound, factor, status))) in spans.iter().zip(&reported).enumerate() {
            let context = format!("{context}: span {index} {span:?}");
            let want_span = expected(&before[span.clone()], mask[row]);
            assert!(
                same(norm, want_span.norm),
                "{context}: norm {} for {}",
                Bits(norm),
                Bits(want_span.norm)
            );
            let want_bound = match &clipping.threshold {
                Threshold::Fixed(bound) => bound.abs(),
                Threshold::PerRow(bounds) => bounds[row].abs(),
                _ => bound,
            };
            assert_eq!(
                bound.to_bits(),
                want_bound.to_bits(),
                "{context}: bound {bound:e} for {want_bound:e}"
            );
            let want_status = match (&want_span.sum, clipping.non_finite) {
                _ if !mask[row] => Status::OutOfScope,
                (_, NonFinite::Keep) if hostile => Status::Kept,
                _ if hostile => Status::Zeroed,
                (Some(sum), _) if exceeds(sum, bound) => Status::Clipped,
                _ => Status::Untouched,
            };
            assert_eq!(status, want_status, "{context}: norm {} bound {}", Bits(norm), Bits(bound));
            match status {
                Status::Clipped => {
                    let sum = want_span.sum.as_ref().expect("a sum");
                    check_factor(&context, sum, norm, bound, factor);
                    want[span.clone()].iter_mut().for_each(|v| *v = product(*v, factor));
                    check_bound(&context, &before[span.clone()], &after[span.clone()], bound);
                }
                Status::Zeroed => {
                    assert_eq!(factor, 0.0, "{context}");
                    want[span.clone()].fill(0.0);
                }
                _ => assert_eq!(factor, 1.0, "{context}"),
            }
        }
        let statuses: Vec<_> = reported.iter().map(|r| r.3).collect();
        let want_status = match statuses.first() {
            _ if statuses.contains(&Status::Clipped) => Status::Clipped,
            Some(&status) => status,
            None if mask[row] => Status::Untouched,
            None => Status::OutOfScope,
        };
        assert_eq!(got.status, want_status, "{context}: the row's status");
        assert_eq!(got.factor, reported.iter().map(|r| r.2).fold(1.0, f64::min), "{context}: least factor");
        let bounds: Vec<_> = reported.iter().map(|r| r.1).collect();
        let common = bounds.first().filter(|first| bounds.iter().all(|bound| bound == *first));
        assert_eq!(got.bound, common.copied(), "{context}: the row's bound");
    }
    super::assert_same_bits(context, after, &want);
}

/// The same for bounds on coordinates: the largest magnitude, and every value cut to the bound.
fn verify_coordinates(
    context: &str,
    layout: &Layout,
    clipping: &Clipping,
    before: &[f32],
    after: &[f32],
    report: &Report,
) {
    let mask = mask(&clipping.scope, layout.clients());
    let mut want = before.to_vec();
    for (row, got) in report.rows.iter().enumerate() {
        let context = format!("{context}: row {row}");
        let values = &mut want[layout.row(row)];
        let hostile = values.iter().any(|v| !v.is_finite());
        let bound = match &clipping.threshold {
            Threshold::Fixed(bound) => bound.abs(),
            Threshold::PerRow(bounds) => bounds[row].abs(),
            _ => got.bound.expect("a bound"),
        };
        let largest = values.iter().map(|v| v.abs()).fold(0.0, f32::max);
        let norm = if mask[row] && !hostile { largest } else { f32::NAN };
        let status = match (mask[row], hostile, clipping.non_finite) {
            (false, ..) => Status::OutOfScope,
            (true, true, NonFinite::Keep) => Status::Kept,
            (true, true, _) => Status::Zeroed,
            (true, false, _) if largest > bound => Status::Clipped,
            (true, false, _) => Status::Untouched,
        };
        let factor = if status == Status::Zeroed { 0.0 } else { 1.0 };
        assert!(same(got.norm, norm), "{context}: norm {} for {}", Bits(got.norm), Bits(norm));
        assert_eq!((got.bound, got.factor, got.status), (Some(bound), factor, status), "{context}");
        match status {
            Status::Clipped => values.iter_mut().for_each(|v| *v = v.signum() * v.abs().min(bound)),
            Status::Zeroed => values.fill(0.0),
            _ => {}
        }
    }
    super::assert_same_bits(context, after, &want);
}

/// The factor leaves room for every product to round up, and is no smaller than it has to be.
fn check_factor(context: &str, sum: &BigUint, norm: f32, bound: f32, factor: f64) {
    if bound == 0.0 {
        assert_eq!(factor, 0.0, "{context}: factor");
        return;
    }
    let (mantissa, exponent) = factor_parts(factor);
    assert!(0.0 < factor && factor < 1.0, "{context}: factor {factor:e}");
    if norm < f32::MIN_POSITIVE {
        // Every product of such a row is subnormal and becomes zero.
        return;
    }
    // factor² · sum against bound², all times 2^(-2 · exponent).
    let scaled = BigUint::from(mantissa).pow(2) * sum;
    let bound = units(bound).pow(2) << (-2 * exponent) as u32;
    let up = BigUint::from((1u64 << 24) + 1).pow(2);
    assert!(&scaled * up <= &bound << 48u32, "{context}: factor {factor:e} leaves no room to round up");
    let down = BigUint::from((1u64 << 22) - 2).pow(2);
    assert!(scaled << 44u32 >= bound * down, "{context}: factor {factor:e} is too small");
}

/// Contract 3, in integers.
fn check_bound(context: &str, before: &[f32], after: &[f32], bound: f32) {
    let sum = exact_sum(after).expect("a clipped row is finite");
    let square = units(bound).pow(2);
    assert!(
        sum <= square,
        "{context}: the clipped norm {} is above the bound {}",
        Bits(root(&sum)),
        Bits(bound)
    );
    let flushed = before.iter().zip(after).any(|(b, a)| *b != 0.0 && *a == 0.0);
    if !flushed {
        let least = square * BigUint::from((1u64 << 20) - 1).pow(2);
        assert!(sum << 40u32 >= least, "{context}: clipped to far below {}", Bits(bound));
    }
}

/// A value and its bits.
pub struct Bits(pub f32);

impl std::fmt::Display for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:e} ({:#010x})", self.0, self.0.to_bits())
    }
}
