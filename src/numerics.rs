//! The arithmetic of the contract on the host: exact sum, certified sum, root, factor, product.
//!
//! Everything here is defined by the values alone. `NUMERICS.md` has the proofs; the shaders
//! under `shaders/` compute the same functions on 32-bit integers.

use crate::norms::{Norm, NormClass};

/// Elements are integers in units of 2^-149, so their squares are integers in units of 2^-298.
const UNIT: i32 = 298;

/// The exact sum of squares of any number of finite `f32` up to 2^31, as an integer in units of 2^-298.
///
/// The largest sum is below 2^31 · 2^256 = 2^(585 - 298), so ten 64-bit limbs hold it with room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExactSum {
    limbs: [u64; 10],
}

impl ExactSum {
    /// Adds the square of a finite value.
    pub fn add_square(&mut self, value: f32) {
        let bits = value.to_bits() & 0x7fff_ffff;
        let (field, fraction) = (bits >> 23, u64::from(bits & 0x007f_ffff));
        // A subnormal has the exponent of the first normal binade and no implicit bit.
        let (mantissa, exponent) =
            if field == 0 { (fraction, 0) } else { (fraction | 0x0080_0000, field - 1) };
        let position = 2 * exponent;
        let square = u128::from(mantissa * mantissa) << (position % 64);
        self.add_at((position / 64) as usize, square);
    }

    /// The exact sum of the squares of the differences of finite values, `Σ (xᵢ − vᵢ)²`.
    ///
    /// As `Σ xᵢ² + vᵢ² − 2·xᵢ·vᵢ`, with what is added and what is taken off in sums of their own: a difference
    /// of two `f32` may have 277 bits, but its terms have 48.
    #[must_use]
    pub fn of_differences(values: &[f32], center: &[f32]) -> Self {
        let (mut added, mut taken) = (Self::default(), Self::default());
        for (&value, &center) in values.iter().zip(center) {
            added.add_square(value);
            added.add_square(center);
            let ((a, a_exponent), (b, b_exponent)) = (integer(value), integer(center));
            let position = a_exponent + b_exponent + 1;
            let same_sign = value.is_sign_negative() == center.is_sign_negative();
            let side = if same_sign { &mut taken } else { &mut added };
            side.add_at((position / 64) as usize, u128::from(a * b) << (position % 64));
        }
        added.minus(&taken)
    }

    /// `self - other`, which is not negative.
    fn minus(mut self, other: &Self) -> Self {
        let mut borrow = false;
        for (limb, &theirs) in self.limbs.iter_mut().zip(&other.limbs) {
            let (less, first) = limb.overflowing_sub(theirs);
            let (less, second) = less.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (less, first || second);
        }
        self
    }

    /// The exact sum of squares of finite values, like adding them one by one, several times as fast.
    #[must_use]
    pub fn of(values: &[f32]) -> Self {
        let mut sum = Self::default();
        // Squares of one exponent field are summed in a cell: 2^16 of 48 bits fit.
        for block in values.chunks(1 << 16) {
            let mut cells = [0u64; 255];
            for value in block {
                let bits = value.to_bits() & 0x7fff_ffff;
                let field = bits >> 23;
                let mantissa = u64::from(bits & 0x007f_ffff | u32::from(field != 0) << 23);
                // A field of 255 is not finite, and not a value that may be asked for.
                if let Some(cell) = cells.get_mut(field as usize) {
                    *cell += mantissa * mantissa;
                }
            }
            for (field, &cell) in cells.iter().enumerate().filter(|(_, cell)| **cell != 0) {
                let position = 2 * field.saturating_sub(1);
                sum.add_at(position / 64, u128::from(cell) << (position % 64));
            }
        }
        sum
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        let mut carry = 0u128;
        for (limb, &theirs) in self.limbs.iter_mut().zip(&other.limbs) {
            let sum = u128::from(*limb) + u128::from(theirs) + carry;
            *limb = sum as u64;
            carry = sum >> 64;
        }
    }

    fn add_at(&mut self, first: usize, value: u128) {
        let mut carry = value;
        for limb in &mut self.limbs[first..] {
            if carry == 0 {
                return;
            }
            let sum = u128::from(*limb) + (carry & u128::from(u64::MAX));
            *limb = sum as u64;
            carry = (carry >> 64) + (sum >> 64);
        }
    }

    /// The correctly rounded norm: the root of this sum.
    #[must_use]
    pub fn norm(&self) -> Norm {
        let length = self.bit_length();
        if length == 0 {
            return Norm::new(0, NormClass::Exact);
        }
        let scale = root_scale(length);
        // scale >= -1, and scale == -1 only for sums below 2^48: the shift loses nothing there.
        let (radicand, inexact) = if scale < 0 {
            (self.limbs[0] << 2, false)
        } else {
            (self.bits_from(2 * scale as u32), self.any_below(2 * scale as u32))
        };
        let root = radicand.isqrt();
        let exact = !inexact && root * root == radicand;
        let (half, class) = match (root % 2 == 1, exact) {
            (false, true) => (root / 2, NormClass::Exact),
            (false, false) => (root / 2, NormClass::Above),
            (true, false) => (root / 2 + 1, NormClass::Below),
            // A tie: to even.
            (true, true) if (root / 2) % 2 == 0 => (root / 2, NormClass::Above),
            (true, true) => (root / 2 + 1, NormClass::Below),
        };
        Norm::new(half as u32 + (((scale + 1) as u32) << 23), class)
    }

    fn bit_length(&self) -> u32 {
        match self.limbs.iter().rposition(|&limb| limb != 0) {
            Some(top) => top as u32 * 64 + 64 - self.limbs[top].leading_zeros(),
            None => 0,
        }
    }

    /// The 64 bits that begin at bit `position`.
    fn bits_from(&self, position: u32) -> u64 {
        let (limb, shift) = ((position / 64) as usize, position % 64);
        let high = self.limbs.get(limb + 1).copied().unwrap_or(0);
        ((u128::from(self.limbs[limb]) | u128::from(high) << 64) >> shift) as u64
    }

    fn any_below(&self, position: u32) -> bool {
        let (limb, shift) = ((position / 64) as usize, position % 64);
        self.limbs[..limb].iter().any(|&l| l != 0) || self.limbs[limb] & ((1 << shift) - 1) != 0
    }
}

/// The scale `k` of a root: a sum of `length` bits shifted right by `2k` has 49 or 50 bits, so its
/// root has 25, the 24 of an `f32` and one that decides the rounding.
///
/// `k = -1` for sums below 2^48, whose roots lie on the fixed grid of the subnormals.
fn root_scale(length: u32) -> i32 {
    if length <= 48 { -1 } else { (length as i32 - 49) / 2 }
}

/// The norm of a row whose sum of squares lies within `sum · (1 ± 2^-quality)`, where that is
/// enough to know it for certain; `None` sends the row to the exact sum, as it does where the sum is NaN, Inf or negative.
///
/// The squares of all 25-bit integers, scaled, are the only sums at which the rounded norm or its
/// comparison with the exact one changes: between two neighbours both are constant.
#[must_use]
#[inline]
pub fn certify(sum: f64, quality: u32) -> Option<Norm> {
    // An f64 knows no sum better than to 2^-52, and a sum that may be twice as large says nothing.
    let quality = quality.clamp(1, 52);
    if sum == 0.0 {
        // An f64 holds the square of every nonzero f32, so a zero sum has no nonzero term.
        return Some(Norm::new(0, NormClass::Exact));
    }
    let root = certify_root(sum, quality);
    if !root.is_open {
        return Some(Norm::rounded(root.wide, root.up));
    }
    if !(sum > 0.0 && sum < f64::INFINITY) {
        return None;
    }
    let bits = sum.to_bits();
    let mantissa = bits & ((1 << 52) - 1) | 1 << 52;
    let exponent = (bits >> 52) as i32 - 1075 + UNIT;
    let length = 53 + exponent;
    if length <= 48 {
        return None;
    }
    let scale = root_scale(length as u32);
    // The radicand in sixteenths: 49 or 50 bits and four more.
    let radicand = mantissa << (exponent - 2 * scale + 4);
    let error = (radicand >> quality) + 1;
    // Below 2^50, where the root in f64 is too far from the next integer to be rounded up to it.
    let root = ((radicand >> 4) as f64).sqrt() as u64;
    let (below, above) = (root * root * 16, (root + 1) * (root + 1) * 16);
    if radicand - error <= below || radicand + error >= above {
        return None;
    }
    let (half, class) =
        if root.is_multiple_of(2) { (root / 2, NormClass::Above) } else { (root / 2 + 1, NormClass::Below) };
    Some(Norm::new(half as u32 + (((scale + 1) as u32) << 23), class))
}

/// A root, rounded to 24 bits up or down, where it is not open.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Root {
    pub(crate) wide: u32,
    pub(crate) up: bool,
    pub(crate) is_open: bool,
}

/// [`certify`] for nearly all sums, from the root in `f64` and without a branch; of the others, and of those that are not
/// finite, it says only that they are open.
///
/// The root of a sum within `1 ± 2^-quality` is off by half of that, relatively, and by its own rounding: by at
/// most `2^(52 - quality) + 1` units in the last of its 53 bits. If the 28 bits behind the first 25 are farther than
/// that from all zeros and all ones, the exact root begins with the same 25 bits and has more behind them.
#[inline(always)]
pub(crate) fn certify_root(sum: f64, quality: u32) -> Root {
    const BEHIND: u64 = 1 << 28;
    const LEAST: u64 = (1023 - 126) << 52;
    let bits = sum.sqrt().to_bits();
    let error = (2 << (52 - quality)).min(BEHIND / 2);
    let is_normal = bits.wrapping_sub(LEAST) < f64::INFINITY.to_bits() - LEAST;
    let is_far = (bits & (BEHIND - 1)).wrapping_sub(error) < BEHIND - 2 * error;
    // The exponent counts from another bias; the last of the 25 bits rounds the others, and may carry.
    let odd = (bits >> 28) & 1;
    let wide = (bits >> 29).wrapping_sub((1023 - 127) << 23).wrapping_add(odd);
    Root { wide: wide as u32, up: odd == 1, is_open: !(is_normal & is_far) }
}

/// The factor that brings a row of this norm to a bound below it; 1 where the norm does not exceed the
/// bound or there is none. The bound is one that thresholds allow: a number that is not negative, or Inf.
///
/// The quotient of bound and rounded norm has 26 bits here, and 8 of its units are taken off: at least
/// 2^-23 of it. The exact norm is at most `1 + 2^-24` times the rounded one, and a product rounds up by
/// at most as much again; `(1 - 2^-23) · (1 + 2^-24)² < 1`, so the clipped row's exact norm is at most
/// `bound`. A subnormal norm may have been rounded down by more, by up to half its last unit: then the next number
/// takes its place, which is above the exact norm. What is lost, two truncations included, is below 12 · 2^-25: far less than 2^-20, where the norm is not subnormal.
///
/// It has 24 bits and is exact as `f64`, also where an `f32` would underflow (1e-30 / 1e38).
#[must_use]
#[inline]
pub fn factor(bound: f32, norm: Norm) -> f64 {
    if norm.exceeds(bound) { factor_below_one(bound, norm) } else { 1.0 }
}

/// [`factor`] where the norm exceeds the bound.
///
/// The quotient in `f64` begins with the 26 bits of the exact one: where that has more, it is a 2^24th of their last
/// unit or more away from the next such number, and the rounding moves it by a 2^28th.
#[inline(always)]
pub(crate) fn factor_below_one(bound: f32, norm: Norm) -> f64 {
    let above = norm.wide() < 1 << 23 && norm.class() == NormClass::Above;
    let quotient = f64::from(bound) / wide_value(norm.wide() + u32::from(above));
    let exponent = f64::from_bits(quotient.to_bits() & !((1 << 52) - 1));
    f64::from_bits((quotient - exponent * power_of_two(-22)).to_bits() & !BELOW_24_BITS)
}

/// The value of a wide norm.
#[inline(always)]
fn wide_value(wide: u32) -> f64 {
    // A subnormal norm has no leading one, and the exponent of the smallest that has.
    let subnormal = f64::from(wide) * power_of_two(-149);
    let normal = f64::from_bits((u64::from(wide) << 29) + ((1023 - 127) << 52));
    if wide < 1 << 23 { subnormal } else { normal }
}

/// `total` · √(part / whole), rounded down to 24 bits; 0 where `whole` is 0.
///
/// Both are at most 2^31, so the integers fit 128 bits: 48 for the square of the mantissa, 31 for `part`,
/// 49 more so that the root keeps 24 bits.
pub(crate) fn root_of_share(total: f32, part: usize, whole: usize) -> f32 {
    if whole == 0 || part == 0 || total == 0.0 {
        return 0.0;
    }
    if total == f32::INFINITY {
        return total;
    }
    let (mantissa, field) = normalised(total.to_bits());
    let square = u128::from(mantissa) * u128::from(mantissa);
    // part <= whole: the root has at most 24 + 24 bits, and at least 24 + 24 - 16.
    let root = (((square * part as u128) << 48) / whole as u128).isqrt();
    let excess = (128 - root.leading_zeros()).saturating_sub(24);
    let mantissa = (root >> excess) as f64;
    // Below the range of normal numbers the conversion may round: downwards keeps the promise.
    let exact = mantissa * power_of_two(field - 150 - 24 + excess as i32);
    let rounded = exact as f32;
    if f64::from(rounded) > exact { rounded.next_down() } else { rounded }
}

/// A 24-bit mantissa and the exponent field of the same value in the bits of an `f32` (or of a
/// wide norm), subnormals normalised.
fn normalised(bits: u32) -> (u32, i32) {
    let (field, fraction) = (bits >> 23, bits & 0x007f_ffff);
    if field == 0 {
        let shift = fraction.leading_zeros() - 8;
        (fraction << shift, 1 - shift as i32)
    } else {
        (fraction | 0x0080_0000, field as i32)
    }
}

/// 2^exponent, for exponents in the normal range of `f64`.
pub(crate) const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The magnitude of a finite value as `mantissa · 2^exponent` in units of 2^-149.
pub(crate) fn integer(value: f32) -> (u64, u32) {
    let bits = value.to_bits() & 0x7fff_ffff;
    let field = bits >> 23;
    (u64::from(bits & 0x007f_ffff | u32::from(field != 0) << 23), field.saturating_sub(1))
}

/// `value` cut to a magnitude of at most `bound`; its sign and, where it is within, all its bits stay. NaN is beyond any bound,
/// which is not negative.
#[must_use]
#[inline(always)]
pub fn clamped(value: f32, bound: f32) -> f32 {
    // As integers, magnitudes have the order of their values, and NaN is above all.
    f32::from_bits(value.abs().to_bits().min(bound.abs().to_bits())).copysign(value)
}

/// Products below this round to a subnormal `f32` when rounded to 24 bits.
const TINY: f64 = f64::from_bits(((1023 - 126 - 1) << 52) | 0x000f_ffff_f000_0000);

/// The bits of an `f64` behind the first 24 of its mantissa.
const BELOW_24_BITS: u64 = (1 << 29) - 1;

/// A factor as an `f32`, where it is one. Below the normal numbers it may be rounded to another, and to the smallest of
/// those too.
#[inline(always)]
pub(crate) fn single_factor(factor: f64) -> Option<f32> {
    (factor >= f64::from(f32::MIN_POSITIVE)).then_some(factor as f32)
}

/// `factor · value` rounded to nearest even; a zero of the same sign where that would be subnormal. NaN and Inf stay what they are.
///
/// The `f64` product of two 24-bit numbers is exact. "Would be subnormal" is meant after rounding
/// to 24 bits with an unbounded exponent, as IEEE 754 defines tininess after rounding.
#[must_use]
#[inline(always)]
pub fn scaled(value: f32, factor: f64) -> f32 {
    let product = f64::from(value) * factor;
    let finite = if product.abs() < TINY { 0.0f32.copysign(value) } else { product as f32 };
    if value.is_finite() { finite } else { value }
}

/// `center + factor · (value − center)`, never farther from the centre than that.
///
/// Three steps, and each rounds towards the centre: the difference and its product with the factor are cut
/// to 24 bits, with an exponent that knows no bounds, and their sum with the centre is rounded to the `f32` on
/// the centre's side. So `|result − center| ≤ factor · |value − center|` exactly, whatever the magnitudes.
///
/// A value that equals the centre keeps its bits; a factor of 0 gives the centre. A result of 0 has the sign
/// of the exact sum, and is +0 where that is 0.
#[must_use]
#[inline(always)]
pub fn scaled_around(value: f32, center: f32, factor: f64) -> f32 {
    const SIGN: u64 = 1 << 63;
    let (x, v) = (f64::from(value), f64::from(center));
    let (difference, lost) = two_sum(x, -v);
    // What was rounded up, away from 0, goes one step down before it is cut.
    let up = lost != 0.0 && (lost.to_bits() ^ difference.to_bits()) & SIGN != 0;
    let cut = f64::from_bits((difference.to_bits() - u64::from(up)) & !BELOW_24_BITS);
    // 24 bits by 24 bits: exact.
    let step = f64::from_bits((cut * factor).to_bits() & !BELOW_24_BITS);
    let (sum, lost) = two_sum(v, step);
    let nearest = sum as f32;
    // Differences of neighbours are exact.
    let beyond = f64::from(nearest) - sum;
    let too_far = if step > 0.0 { beyond > lost } else { beyond < lost };
    let outwards = nearest.is_sign_negative() == step.is_sign_negative();
    let back = if outwards { nearest.to_bits().wrapping_sub(1) } else { nearest.to_bits().wrapping_add(1) };
    let result = if too_far { f32::from_bits(back) } else { nearest };
    // NaN and Inf stay what they are, on every processor.
    if difference == 0.0 || !value.is_finite() {
        value
    } else if step == 0.0 {
        center
    } else {
        result
    }
}

/// Knuth's TwoSum: the rounded sum, and what rounding lost. Rust neither reassociates nor contracts
/// floating point, so nothing here can be optimised away.
#[inline(always)]
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let of_b = sum - a;
    (sum, (a - (sum - of_b)) + (b - of_b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_at_once_is_the_sum_one_by_one() {
        let value = |i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b9) & 0xff7f_ffff);
        let values: Vec<f32> =
            (0..200_000).map(value).chain([f32::MAX; 70_000]).filter(|v| v.is_finite()).collect();
        let mut one_by_one = ExactSum::default();
        values.iter().for_each(|&value| one_by_one.add_square(value));
        assert_eq!(ExactSum::of(&values), one_by_one);
    }

    #[test]
    fn a_sum_that_is_no_sum_of_squares_is_never_certain() {
        for sum in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -2.5e-300, f64::MIN] {
            for quality in [0, 1, 30, 44, 52, 60] {
                assert_eq!(certify(sum, quality), None, "{sum} to {quality}");
            }
        }
    }

    #[test]
    fn tiny_is_the_midpoint_below_the_first_normal() {
        assert_eq!(TINY, power_of_two(-126) - power_of_two(-151));
    }

    /// The factor as NUMERICS.md has it, in integers.
    fn factor_of_integers(bound: f32, norm: Norm) -> f64 {
        let (a, a_exponent) = normalised(bound.to_bits());
        let above = u32::from(norm.wide() < 1 << 23 && norm.class() == NormClass::Above);
        let (b, b_exponent) = normalised(norm.wide() + above);
        let less = u32::from(a < b);
        // 2^25 <= quotient < 2^26
        let quotient = (u64::from(a) << (25 + less)) / u64::from(b) - 8;
        let borrow = u32::from(quotient < 1 << 25);
        let mantissa = quotient >> (2 - borrow);
        mantissa as f64 * power_of_two(a_exponent - b_exponent - (less + borrow) as i32 - 23)
    }

    #[test]
    fn factors_are_those_of_integers() {
        // Mantissas whose quotient is, or is next to, a number of few bits, and others.
        const MANTISSAS: [u32; 10] =
            [0, 1, 2, 8, 0x20_0000, 0x40_0000, 0x40_0001, 0x7f_fff7, 0x7f_fffe, 0x7f_ffff];
        let mut state = 11u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 32) as u32
        };
        let check = |bound: u32, wide: u32, class| {
            let (bound, norm) = (f32::from_bits(bound), Norm::new(wide, class));
            if bound > 0.0 && norm.exceeds(bound) {
                assert_eq!(factor(bound, norm), factor_of_integers(bound, norm), "{bound:e} {norm:?}");
            }
        };
        let classes = [NormClass::Below, NormClass::Exact, NormClass::Above];
        for (field, wide_field) in
            [(0, 0), (0, 1), (0, 271), (1, 1), (100, 100), (100, 101), (3, 250), (254, 254), (254, 271)]
        {
            for bound in MANTISSAS {
                for wide in MANTISSAS {
                    for class in classes {
                        check(field << 23 | bound, wide_field << 23 | wide, class);
                    }
                }
            }
            for _ in 0..100_000 {
                let [bound, wide] = [(); 2].map(|()| random() >> 9 >> (random() % 23));
                let [bound, wide] = if random().is_multiple_of(2) {
                    [bound, wide]
                } else {
                    [0x7f_ffff - bound, 0x7f_ffff - wide]
                };
                check(field << 23 | bound, wide_field << 23 | wide, classes[wide as usize % 3]);
            }
        }
    }

    #[test]
    fn rows_that_need_no_factor_get_one() {
        let zero = Norm::new(0, NormClass::Exact);
        let one = Norm::new(1.0f32.to_bits(), NormClass::Exact);
        for norm in [zero, one, Norm::NON_FINITE, Norm::OUT_OF_SCOPE] {
            assert_eq!(factor(1.0, norm), 1.0);
            assert_eq!(factor(f32::INFINITY, norm), 1.0);
        }
        assert_eq!(factor(0.0, zero), 1.0);
        assert_eq!(factor(0.0, one), 0.0);
    }

    #[test]
    fn products_at_the_edge_of_the_normals_round_before_they_flush() {
        let smallest = f32::MIN_POSITIVE;
        assert_eq!(scaled(smallest, 1.0 - power_of_two(-24)), 0.0);
        assert_eq!(scaled(f32::from_bits(0x0080_0001), 1.0 - power_of_two(-24)), f32::from_bits(0x0080_0000));
        assert_eq!(scaled(-smallest, 0.5).to_bits(), 0x8000_0000);
        assert_eq!(scaled(f32::from_bits(1), 0.99), 0.0);
    }
}
