//! Stage 1: the correctly rounded L2 norm of every row or segment.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use crate::batch::Granularity;
use crate::error::{Error, Result};
use crate::numerics::ExactSum;
use crate::pool;

/// How a rounded norm relates to the exact one, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NormClass {
    /// The exact norm is less than the rounded one.
    Below = 0,
    /// The exact norm is the rounded one.
    Exact = 1,
    /// The exact norm is greater than the rounded one.
    Above = 2,
    /// The row holds NaN or Inf.
    NonFinite = 3,
    /// The row is out of scope and was not read.
    OutOfScope = 4,
}

/// The norm of one row or segment: the `f32` nearest to the exact norm, and on which side of it
/// the exact norm lies.
///
/// With the side, `exact norm > λ` is decided exactly from 8 bytes, long after the row was read.
/// Norms above the largest `f32` keep their value internally, so such a row is still clipped right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Norm {
    /// The bits of the norm as an `f32` whose exponent field may grow past 254.
    wide: u32,
    class: u32,
}

/// The bits of +inf: every finite `f32` is below, every wide norm above the range is at or beyond it.
pub(crate) const INFINITY_BITS: u32 = 0x7f80_0000;

impl Norm {
    pub(crate) const NON_FINITE: Self = Self { wide: 0, class: NormClass::NonFinite as u32 };
    /// What a row has that is out of scope.
    pub const OUT_OF_SCOPE: Self = Self { wide: 0, class: NormClass::OutOfScope as u32 };

    pub(crate) const fn new(wide: u32, class: NormClass) -> Self {
        Self { wide, class: class as u32 }
    }

    /// One whose exact norm is not a number of 24 bits, and was rounded up or down.
    #[inline(always)]
    pub(crate) const fn rounded(wide: u32, up: bool) -> Self {
        Self { wide, class: NormClass::Above as u32 - NormClass::Above as u32 * up as u32 }
    }

    #[inline(always)]
    pub(crate) const fn wide(self) -> u32 {
        self.wide
    }

    /// How the rounded norm relates to the exact one.
    #[must_use]
    pub const fn class(self) -> NormClass {
        match self.class {
            0 => NormClass::Below,
            1 => NormClass::Exact,
            2 => NormClass::Above,
            3 => NormClass::NonFinite,
            _ => NormClass::OutOfScope,
        }
    }

    /// The norm, in the unit of the parameters: +inf where the exact norm is too large for an `f32` (by
    /// half a unit in the last place or more, as IEEE 754 rounds), NaN where the row holds NaN or Inf or was out of scope.
    #[must_use]
    pub const fn value(self) -> f32 {
        if !self.has_value() {
            return f32::NAN;
        }
        if self.wide >= INFINITY_BITS { f32::INFINITY } else { f32::from_bits(self.wide) }
    }

    #[inline(always)]
    pub(crate) const fn has_value(self) -> bool {
        self.class <= NormClass::Above as u32
    }

    /// Whether the exact norm is greater than `bound`; false for rows without a norm.
    ///
    /// `bound` is not negative and not NaN.
    #[must_use]
    #[inline(always)]
    pub const fn exceeds(self, bound: f32) -> bool {
        let bits = bound.to_bits() & 0x7fff_ffff;
        // Without branches on the side, which is as good as random.
        let above = (self.class == NormClass::Above as u32) as u32;
        self.has_value() & (bits != INFINITY_BITS) & (self.wide.saturating_add(above) > bits)
    }
}

impl std::fmt::Debug for Norm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Norm({:?}, {:#010x}, {:?})", self.value(), self.wide, self.class())
    }
}

/// The output of the norms stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Norms {
    /// One norm per row.
    pub rows: Vec<Norm>,
    /// One norm per segment, row by row; empty unless segments have bounds ([`Granularity::Segment`]).
    pub segments: Vec<Norm>,
}

impl Norms {
    /// The norms that bounds apply to: of the segments where there are any asked for, else of the rows.
    #[must_use]
    pub fn spans(&self, granularity: Granularity) -> &[Norm] {
        match granularity {
            Granularity::Row | Granularity::Coordinate => &self.rows,
            Granularity::Segment => &self.segments,
        }
    }
}

/// The norm of a row or segment that comes in parts, for example from a file that does not fit in memory.
///
/// The parts are summed exactly, so the norm has the bits that a [`Backend`](crate::Backend) finds for the whole,
/// whatever the parts and their order. Up to 2^31 elements.
///
/// # Examples
/// ```
/// use byzclip::{Granularity, NormSum};
///
/// let mut sum = NormSum::default();
/// sum.add(&[3.0, 0.0]);
/// sum.add(&[4.0]);
/// assert_eq!(sum.norm(Granularity::Row).value(), 5.0);
/// assert_eq!(sum.norm(Granularity::Coordinate).value(), 4.0);
/// ```
#[derive(Debug, Clone, Default)]
pub struct NormSum {
    squares: ExactSum,
    /// The bits of the largest magnitude; beyond those of +inf for NaN.
    largest: u32,
}

impl NormSum {
    /// Adds elements, by the threads of the pool that this runs in, or by this one alone where those cannot be started. NaN and
    /// Inf make the whole not finite.
    pub fn add(&mut self, values: &[f32]) {
        self.add_parts(values, |part, _| ExactSum::of(part));
    }

    /// Adds the differences of elements from a centre, `[n]` and `[n]`. Elements that are NaN or Inf make the whole not finite.
    ///
    /// The largest magnitude is that of the elements: bounds on coordinates have no centre.
    ///
    /// # Errors
    /// [`Error::Setting`] where the centre is not as long, or not finite; nothing is added then.
    pub fn add_differences(&mut self, values: &[f32], center: &[f32]) -> Result<()> {
        let invalid = |got: String, expected| Err(Error::Setting { name: "center", got, expected });
        if center.len() != values.len() {
            return invalid(
                format!("{} elements for {}", center.len(), values.len()),
                "one for each element",
            );
        }
        if let Some(at) = center.iter().position(|value| !value.is_finite()) {
            return invalid(format!("{} in element {at}", center[at]), "finite elements");
        }
        self.add_parts(values, |part, first| {
            ExactSum::of_differences(part, &center[first..first + part.len()])
        });
        Ok(())
    }

    /// `squares` is told where a part begins.
    fn add_parts(&mut self, values: &[f32], squares: impl Fn(&[f32], usize) -> ExactSum + Sync) {
        let sum = |(part, values): (usize, &[f32])| {
            let largest = largest_bits(values);
            let is_finite = largest < INFINITY_BITS;
            let squares = if is_finite { squares(values, part * PART) } else { ExactSum::default() };
            Self { squares, largest }
        };
        let joined = |mut a: Self, b: Self| {
            a.join(&b);
            a
        };
        let is_shared = values.len() > PART && pool::threads().is_ok();
        let added = if is_shared {
            values.par_chunks(PART).enumerate().map(sum).reduce(Self::default, joined)
        } else {
            values.chunks(PART).enumerate().map(sum).fold(Self::default(), joined)
        };
        self.join(&added);
    }

    /// Adds what another sum holds.
    pub fn join(&mut self, other: &Self) {
        self.squares.add(&other.squares);
        self.largest = self.largest.max(other.largest);
    }

    /// The norm of everything that was added: the largest magnitude at coordinate granularity, else the L2 norm.
    #[must_use]
    pub fn norm(&self, granularity: Granularity) -> Norm {
        match granularity {
            _ if self.largest >= INFINITY_BITS => Norm::NON_FINITE,
            Granularity::Coordinate => Norm::new(self.largest, NormClass::Exact),
            Granularity::Row | Granularity::Segment => self.squares.norm(),
        }
    }
}

/// Elements that one task sums.
const PART: usize = 1 << 16;

fn largest_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_have_the_norm_of_the_whole() {
        let values: Vec<f32> = (0..200_000).map(|i| (i as f32 * 0.37).sin() * 1e-3).collect();
        let center: Vec<f32> = (0..200_000).map(|i| (i as f32 * 0.11).cos() * 1e-3).collect();
        for cut in [0, 1, 65_536, 100_001] {
            let (mut sum, mut differences) = (NormSum::default(), NormSum::default());
            sum.add(&values[cut..]);
            sum.add(&values[..cut]);
            assert_eq!(sum.norm(Granularity::Row), ExactSum::of(&values).norm());
            assert_eq!(sum.norm(Granularity::Coordinate).value(), 1e-3);
            differences.add_differences(&values[..cut], &center[..cut]).unwrap();
            differences.add_differences(&values[cut..], &center[cut..]).unwrap();
            let whole = ExactSum::of_differences(&values, &center).norm();
            assert_eq!(differences.norm(Granularity::Segment), whole);
        }
    }

    #[test]
    fn a_centre_that_does_not_fit_is_an_error_and_adds_nothing() {
        let mut sum = NormSum::default();
        for center in [&[1.0][..], &[1.0, 1.0, 1.0], &[1.0, f32::NAN], &[f32::INFINITY, 1.0]] {
            assert!(sum.add_differences(&[3.0, 4.0], center).is_err(), "{center:?}");
        }
        assert_eq!(sum.norm(Granularity::Row).value(), 0.0);
        assert_eq!(sum.add_differences(&[4.0, 5.0], &[1.0, 1.0]), Ok(()));
        assert_eq!(sum.norm(Granularity::Row).value(), 5.0);
    }

    #[test]
    fn what_is_not_finite_makes_the_whole_so() {
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let mut sum = NormSum::default();
            sum.add(&[1.0, value]);
            sum.add(&[2.0]);
            assert_eq!(sum.norm(Granularity::Row).class(), NormClass::NonFinite);
            assert_eq!(sum.norm(Granularity::Coordinate).class(), NormClass::NonFinite);
        }
        assert_eq!(NormSum::default().norm(Granularity::Row).value(), 0.0);
    }
}
