//! The weighted mean of clipped rows: the contract, and its specification on the host.

use std::ops::Range;

use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::{Error, Result};
use crate::half;
use crate::numerics::{clamped, integer, scaled, scaled_around};
use crate::threshold::{Decision, check_decisions};

/// What each row weighs in a mean, for example the number of its samples.
///
/// # Examples
/// ```
/// use byzclip::{Backend, Clipping, Cpu, Layout, Weights};
///
/// // Two clients with 1 and 3 samples; the norm of the second is above the bound.
/// let updates = [1.0, 0.0, 0.0, 8.0];
/// let (layout, weights) = (Layout::dense(2, 2)?, Weights::PerRow(vec![1.0, 3.0]));
/// let (mean, report) = Cpu::new()?.run_mean(&layout, &updates, &Clipping::fixed(4.0), &weights)?;
/// assert_eq!(mean[0], 0.25);
/// assert!(mean[1] <= 3.0 && mean[1] > 2.999_99);
/// assert_eq!(report.rows[1].norm, 8.0);
/// # Ok::<(), byzclip::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum Weights {
    /// All rows weigh the same.
    #[default]
    Equal,
    /// One weight per row, `[clients]`: finite and at least 0. Only their ratios matter.
    PerRow(Vec<f32>),
}

impl Weights {
    /// The weight of every row, `[clients]`.
    ///
    /// # Errors
    /// [`Error::Setting`] where a weight is NaN, infinite or negative, or their number is not `clients`.
    pub fn of_rows(&self, clients: usize) -> Result<Vec<f32>> {
        let Self::PerRow(weights) = self else { return Ok(vec![1.0; clients]) };
        let invalid = |got, expected| Err(Error::Setting { name: "weights", got, expected });
        if weights.len() != clients {
            return invalid(format!("{} weights for {clients} rows", weights.len()), "one weight per row");
        }
        let is_weight = |weight: f32| (0.0..f32::INFINITY).contains(&weight);
        // All of them without a branch for each, because nearly always all are weights.
        if !weights.iter().fold(true, |all, &weight| all & is_weight(weight)) {
            let row = weights.iter().position(|&weight| !is_weight(weight)).unwrap_or_default();
            return invalid(
                format!("{} for row {row}", weights[row]),
                "finite weights that are not negative",
            );
        }
        // -0 is a legal zero; one zero is enough.
        Ok(weights.iter().map(|weight| weight.abs()).collect())
    }
}

/// The weighted mean of clipped rows, `Σ wᵢ·clip(gᵢ) / Σ wᵢ` for every coordinate, correctly rounded:
/// `[clients, params]` to `[params]`.
///
/// `clip(gᵢ)` has the bits that [`Backend::clip`](crate::Backend::clip) would write, and the sums are exact, so the result is the
/// `f32` nearest to the mean of the clipped batch, ties to even, and depends neither on the order of
/// rows nor on magnitudes: finite values cannot over- or underflow.
///
/// - Rows that are zeroed, or kept with NaN or Inf, do not count: they add nothing to either sum.
/// - Rows out of scope count as they are. They were never checked, so an element of theirs that is NaN or
///   Inf counts as 0: no row can do more to a coordinate than its weight and its values there allow. The same holds
///   where decisions come from other data; a coordinate that they bound is within its bound, whatever it was.
/// - Where the weights that count sum to 0, also in a batch without rows, the mean is the centre, or +0 everywhere where
///   there is none: a round that says nothing moves nothing.
/// - A sum of exactly 0 gives +0; a negative one that rounds to 0 gives −0.
///
/// At segment granularity a row counts if its first segment does; statuses of [`decide`](crate::threshold::decide)
/// are those of whole rows.
///
/// # Errors
/// [`Error::DataTooShort`]; [`Error::Layout`] where rows differ in length or segments, or decisions do not
/// fit the layout; those of [`Weights::of_rows`].
pub fn mean(
    layout: &Layout,
    data: &[f32],
    clipping: &Clipping,
    decisions: &[Decision],
    weights: &Weights,
) -> Result<Vec<f32>> {
    let weights = check_mean(layout, data, clipping, weights)?;
    check_decisions(layout, clipping.granularity, decisions)?;
    let rows = Rows { layout, granularity: clipping.granularity, decisions, weights: &weights };
    let mut sums = vec![ExactMean::default(); layout.params()];
    rows.add_to(&mut sums, 0, 0..layout.clients(), values(data, clipping));
    Ok(over(&sums, &Divisor::new(layout, clipping.granularity, decisions, &weights), clipping))
}

/// Rows as a mean reads them, all of it checked.
pub(super) struct Rows<'a> {
    pub layout: &'a Layout,
    pub granularity: Granularity,
    pub decisions: &'a [Decision],
    pub weights: &'a [f32],
}

impl Rows<'_> {
    /// Adds what some rows have from coordinate `first` on to the sums of these coordinates; `value` is what an element counts as,
    /// by its place, its coordinate and what was decided.
    pub(super) fn add_to(
        &self,
        sums: &mut [ExactMean],
        first: usize,
        rows: Range<usize>,
        value: impl Fn(usize, usize, &Decision) -> f32,
    ) {
        let &Self { layout, granularity, decisions, weights } = self;
        for row in rows.filter(|row| counts(layout, granularity, decisions, *row)) {
            let start = layout.row(row).start;
            for span in layout.spans_of(granularity, row) {
                let elements = layout.span(granularity, span);
                // The coordinates of the span that are asked for.
                let from = (elements.start - start).max(first);
                let to = (elements.end - start).min(first + sums.len()).max(from);
                for (coordinate, sum) in (from..to).zip(sums.iter_mut().skip(from - first)) {
                    sum.add(weights[row], value(start + coordinate, coordinate, &decisions[span]));
                }
            }
        }
    }
}

/// What elements of `data` count as.
pub(super) fn values(data: &[f32], clipping: &Clipping) -> impl Fn(usize, usize, &Decision) -> f32 + Sync {
    move |element, coordinate, decision| {
        let center = clipping.center.as_ref().map(|center| center[coordinate]);
        clipped(data[element], center, decision, clipping.granularity)
    }
}

/// The sums over the divisor; where nothing that counts weighs anything, the centre, or +0.
pub(super) fn over(sums: &[ExactMean], divisor: &Divisor, clipping: &Clipping) -> Vec<f32> {
    match &clipping.center {
        Some(center) if divisor.is_zero() => center.to_vec(),
        _ => sums.iter().map(|sum| sum.over(divisor)).collect(),
    }
}

/// The weights of all rows, where that and all else that a mean asks of the caller's values holds; decisions, which are often not
/// there yet, are checked next.
pub(crate) fn check_mean(
    layout: &Layout,
    data: &[f32],
    clipping: &Clipping,
    weights: &Weights,
) -> Result<Vec<f32>> {
    layout.check(data.len())?;
    layout.check_alike()?;
    clipping.check_center(layout)?;
    weights.of_rows(layout.clients())
}

/// The same of halves.
pub(crate) fn check_mean_half(
    layout: &Layout,
    data: &[u16],
    clipping: &Clipping,
    weights: &Weights,
) -> Result<Vec<f32>> {
    half::check(layout, data.len(), clipping)?;
    layout.check_alike()?;
    weights.of_rows(layout.clients())
}

/// Whether a row counts: by its first span, because statuses are those of whole rows.
pub(crate) fn counts(layout: &Layout, granularity: Granularity, decisions: &[Decision], row: usize) -> bool {
    decisions[layout.spans_of(granularity, row)].first().is_some_and(|decision| decision.status.is_in_mean())
}

/// What a value counts as: the bits that the clip stage would write, and 0 for what is not finite.
#[inline]
pub(crate) fn clipped(value: f32, center: Option<f32>, decision: &Decision, granularity: Granularity) -> f32 {
    let value = match (decision.status, granularity) {
        (Status::Zeroed | Status::Kept, _) => 0.0,
        (Status::Untouched | Status::OutOfScope, _) => value,
        (Status::Clipped, Granularity::Coordinate) => clamped(value, decision.bound),
        (Status::Clipped, Granularity::Row | Granularity::Segment) => match center {
            None => scaled(value, decision.factor),
            Some(center) => scaled_around(value, center, decision.factor),
        },
    };
    if value.is_finite() { value } else { 0.0 }
}

/// Limbs of a sum of products: 2^28 products below 2^256 are below 2^284, in units of 2^-299 below 2^583.
const SUM: usize = 10;

/// An exact sum of weights, as an integer in units of 2^-149: 2^28 of them are below 2^(156 + 149).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Divisor {
    limbs: [u64; SUM],
}

impl Divisor {
    /// The weights of the rows that count.
    pub(crate) fn new(
        layout: &Layout,
        granularity: Granularity,
        decisions: &[Decision],
        weights: &[f32],
    ) -> Self {
        let rows = weights.iter().enumerate();
        Self::of(
            rows.filter(|(row, _)| counts(layout, granularity, decisions, *row)).map(|(_, weight)| *weight),
        )
    }

    /// The sum of weights, at most 2^28 of them.
    pub(crate) fn of(weights: impl Iterator<Item = f32>) -> Self {
        // Those of one exponent are summed in a cell: 2^28 of 24 bits fit.
        let mut cells = [0u64; 254];
        for weight in weights {
            let (mantissa, exponent) = integer(weight);
            cells[exponent as usize] += mantissa;
        }
        let mut sum = Self::default();
        for (exponent, &cell) in cells.iter().enumerate().filter(|(_, cell)| **cell != 0) {
            add_at(&mut sum.limbs, exponent as u32, u128::from(cell));
        }
        sum
    }

    /// The sum of so many weights of 1.
    pub(crate) fn of_ones(count: usize) -> Self {
        let mut sum = Self::default();
        add_at(&mut sum.limbs, 149, count as u128);
        sum
    }

    /// Adds the weights of other rows.
    pub(crate) fn join(&mut self, other: &Self) {
        add(&mut self.limbs, &other.limbs);
    }

    /// Whether nothing that counts weighs anything.
    pub(crate) fn is_zero(&self) -> bool {
        self.limbs == [0; SUM]
    }

    /// As an `f64`, where it has no more than so many significant bits, at most 53.
    pub(crate) fn exact_f64(self, bits: u32) -> Option<f64> {
        let (first, limb) = self.limbs.iter().enumerate().find(|(_, limb)| **limb != 0)?;
        let trailing = first as u32 * 64 + limb.trailing_zeros();
        (bit_length(&self.limbs) - trailing <= bits).then(|| self.to_f64())
    }

    /// An `f64` within a relative error of 2^-49: at most five of the limbs are in use, two roundings each.
    pub(crate) fn to_f64(self) -> f64 {
        let limbs = self.limbs.iter().rev();
        limbs.fold(0.0, |sum, &limb| sum * 2.0f64.powi(64) + limb as f64)
            * crate::numerics::power_of_two(-149)
    }
}

/// Exact sums of the positive and of the negative terms of one coordinate, in units of 2^-299.
///
/// A product of two `f32` is an integer in units of 2^-298; one bit more is what rounds the quotient.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ExactMean {
    positive: [u64; SUM],
    negative: [u64; SUM],
}

impl ExactMean {
    /// Adds `weight · value`, both finite, the weight not negative.
    pub(crate) fn add(&mut self, weight: f32, value: f32) {
        let ((a, a_exponent), (b, b_exponent)) = (integer(weight), integer(value));
        let position = a_exponent + b_exponent + 1;
        let side = if value.is_sign_negative() { &mut self.negative } else { &mut self.positive };
        add_at(side, position, u128::from(a * b));
    }

    /// Adds what another sum holds.
    pub(super) fn join(&mut self, other: &Self) {
        add(&mut self.positive, &other.positive);
        add(&mut self.negative, &other.negative);
    }

    /// The sum over the divisor, rounded to nearest even; +0 where the divisor is 0.
    pub(crate) fn over(&self, divisor: &Divisor) -> f32 {
        let (sign, sum) = match compare(&self.positive, &self.negative) {
            std::cmp::Ordering::Less => (0x8000_0000, difference(&self.negative, &self.positive)),
            _ => (0, difference(&self.positive, &self.negative)),
        };
        if divisor.is_zero() || sum == [0; SUM] {
            return 0.0;
        }
        f32::from_bits(sign | rounded_quotient(sum, &divisor.limbs))
    }
}

/// The magnitude's bits of `sum · 2^-299 / (divisor · 2^-149)`, rounded to nearest even.
///
/// Long division by shifts of the divisor: the quotient has 25 or 26 bits where `f32` has 24, or is counted in
/// halves of the smallest subnormal; the rest of the division says on which side of a tie it lies. A mean is
/// at most the largest value, so nothing overflows.
fn rounded_quotient(sum: [u64; SUM], divisor: &[u64; SUM]) -> u32 {
    let shift = bit_length(&sum).saturating_sub(bit_length(divisor) + 25);
    let (mut quotient, mut rest) = (0u32, sum);
    for bit in (0..26).rev() {
        let part = shifted(divisor, shift + bit);
        if compare(&rest, &part).is_ge() {
            rest = difference(&rest, &part);
            quotient |= 1 << bit;
        }
    }
    let drop = (32 - quotient.leading_zeros()).saturating_sub(24).max(1);
    let (mantissa, low, half) = (quotient >> drop, quotient & ((1 << drop) - 1), 1 << (drop - 1));
    let up = low > half || low == half && (rest != [0; SUM] || mantissa % 2 == 1);
    // The implicit bit of the mantissa, and its carry, add to the exponent field.
    ((shift + drop - 1) << 23) + mantissa + u32::from(up)
}

/// Adds `value · 2^position`; the value is below 2^64.
fn add_at(limbs: &mut [u64; SUM], position: u32, value: u128) {
    let mut carry = value << (position % 64);
    for limb in &mut limbs[(position / 64) as usize..] {
        if carry == 0 {
            return;
        }
        let sum = u128::from(*limb) + (carry & u128::from(u64::MAX));
        *limb = sum as u64;
        carry = (carry >> 64) + (sum >> 64);
    }
}

/// Adds two sums; what both were made of is within what limbs hold.
fn add(limbs: &mut [u64; SUM], other: &[u64; SUM]) {
    let mut carry = false;
    for (limb, &other) in limbs.iter_mut().zip(other) {
        let (sum, first) = limb.overflowing_add(other);
        let (sum, second) = sum.overflowing_add(u64::from(carry));
        (*limb, carry) = (sum, first || second);
    }
}

fn compare(a: &[u64; SUM], b: &[u64; SUM]) -> std::cmp::Ordering {
    a.iter().rev().cmp(b.iter().rev())
}

/// `a - b`, which is not negative.
fn difference(a: &[u64; SUM], b: &[u64; SUM]) -> [u64; SUM] {
    let (mut result, mut borrow) = ([0; SUM], false);
    for ((limb, &a), &b) in result.iter_mut().zip(a).zip(b) {
        let (less, first) = a.overflowing_sub(b);
        let (less, second) = less.overflowing_sub(u64::from(borrow));
        (*limb, borrow) = (less, first || second);
    }
    result
}

fn bit_length(limbs: &[u64; SUM]) -> u32 {
    match limbs.iter().rposition(|&limb| limb != 0) {
        Some(top) => top as u32 * 64 + 64 - limbs[top].leading_zeros(),
        None => 0,
    }
}

/// `limbs · 2^by`, which fits.
fn shifted(limbs: &[u64; SUM], by: u32) -> [u64; SUM] {
    let (whole, bits) = ((by / 64) as usize, by % 64);
    std::array::from_fn(|i| {
        let limb = |i: Option<usize>| i.map_or(0, |i| limbs[i]);
        let (high, low) = (limb(i.checked_sub(whole)), limb(i.checked_sub(whole + 1)));
        ((u128::from(high) << 64 | u128::from(low)) << bits >> 64) as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_of(terms: &[(f32, f32)]) -> f32 {
        let (mut sum, mut divisor) = (ExactMean::default(), Divisor::default());
        for &(weight, value) in terms {
            sum.add(weight, value);
            let (mantissa, exponent) = integer(weight);
            add_at(&mut divisor.limbs, exponent, u128::from(mantissa));
        }
        sum.over(&divisor)
    }

    #[test]
    fn means_are_rounded_to_nearest_even() {
        let tie = 1.0 + f32::EPSILON;
        assert_eq!(mean_of(&[(1.0, 1.0), (1.0, tie)]), 1.0);
        assert_eq!(mean_of(&[(1.0, tie), (1.0, tie + f32::EPSILON)]), tie + f32::EPSILON);
        assert_eq!(mean_of(&[(1.0, 1.0), (1.0, tie), (1e-45, 2.0)]), tie);
        assert_eq!(mean_of(&[(1.0, 1.0), (1.0, tie), (1e-45, 0.5)]), 1.0);
        assert_eq!(mean_of(&[(1.0, 1.0), (2.0, 2.0)]), 5.0 / 3.0);
    }

    #[test]
    fn ones_are_summed_as_any_weights() {
        for count in [0, 1, 2, 1000, (1 << 28) - 1] {
            let (ones, all) = (Divisor::of_ones(count), Divisor::of(std::iter::repeat_n(1.0, count)));
            assert_eq!(ones.limbs, all.limbs, "{count}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        let least = f32::from_bits(1);
        assert_eq!(mean_of(&[(f32::MAX, f32::MAX), (f32::MAX, f32::MAX)]), f32::MAX);
        assert_eq!(mean_of(&[(3.0, -f32::MAX)]), -f32::MAX);
        assert_eq!(mean_of(&[(least, least)]), least);
        assert_eq!(mean_of(&[(f32::MAX, least), (f32::MAX, least)]), least);
        assert_eq!(mean_of(&[(1.0, least), (1.0, 0.0)]), 0.0);
        assert_eq!(mean_of(&[(1.0, 3.0 * least), (1.0, 0.0)]), 2.0 * least);
        assert_eq!(mean_of(&[(1.0, -least), (2.0, 0.0)]).to_bits(), 0x8000_0000);
        assert_eq!(mean_of(&[(1.0, -1.0), (1.0, 1.0)]).to_bits(), 0);
        assert_eq!(mean_of(&[(0.0, 1.0)]).to_bits(), 0);
        assert_eq!(mean_of(&[(1.0, f32::MAX), (1.0, -f32::MAX), (1.0, 3.0 * least)]), least);
    }
}
