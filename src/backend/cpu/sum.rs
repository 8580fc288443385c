//! Sums of squares on the CPU: in `f64` with a proven error, and exactly where that leaves the norm open.

use rayon::prelude::*;

use super::TASK;
use super::squares::{roundings, sum_of_squares};
use crate::norms::{INFINITY_BITS, Norm, NormClass};
use crate::numerics::{ExactSum, certify, two_sum};

/// Elements that are summed in plain `f64` before the block's sum joins the row's.
const BLOCK: usize = 4096;

/// A row's sum is within `1 ± 2^-QUALITY` of the exact one.
///
/// An element of a block goes through 133 additions, each rounded by 2^-53, and its square is exact or, of a rounded
/// difference from a centre, within three more. Blocks and segments are joined with their rounding error
/// carried along: n joins leave n² · 2^-106, less than as much again for n up to 2^30 (a row of 2^31 elements has
/// 2^19 blocks, and a batch has at most 2^28 segments). 2 · 136 · 2^-53 < 2^-44.
const QUALITY: u32 = 44;

const _: () = assert!(2 * (roundings(BLOCK) + 3) < 1 << (53 - QUALITY));

/// Elements of a row or segment, and the centre's beside them where there is one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Values<'a> {
    pub values: &'a [f32],
    pub center: Option<&'a [f32]>,
}

impl<'a> Values<'a> {
    #[inline(always)]
    fn chunks(self, length: usize) -> impl Iterator<Item = Self> {
        (0..self.values.len()).step_by(length).map(move |start| self.part(start, length))
    }

    fn par_chunks(self, length: usize) -> impl IndexedParallelIterator<Item = Self> + 'a {
        let parts = self.values.len().div_ceil(length);
        (0..parts).into_par_iter().map(move |part| self.part(part * length, length))
    }

    #[inline(always)]
    pub(super) fn part(self, start: usize, length: usize) -> Self {
        let range = start..self.values.len().min(start + length);
        Self { values: &self.values[range.clone()], center: self.center.map(|center| &center[range]) }
    }

    /// The fast sum, by all threads where it is longer than one task.
    pub(super) fn sum(self, task: usize) -> FastSum {
        if self.values.len() <= task {
            return FastSum::of(self);
        }
        self.par_chunks(TASK).map(FastSum::of).reduce(FastSum::default, FastSum::join)
    }

    /// The exact norm of finite values, by all threads where they are many.
    pub(super) fn exact_norm(self) -> Norm {
        if self.values.len() <= TASK {
            return self.exact_sum().norm();
        }
        let join = |mut a: ExactSum, b: ExactSum| {
            a.add(&b);
            a
        };
        self.par_chunks(TASK).map(Self::exact_sum).reduce(ExactSum::default, join).norm()
    }

    fn exact_sum(self) -> ExactSum {
        match self.center {
            None => ExactSum::of(self.values),
            Some(center) => ExactSum::of_differences(self.values, center),
        }
    }

    /// The largest magnitude: the norm of a row whose coordinates are bounded.
    pub(super) fn largest_magnitude(self) -> Norm {
        // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
        let bits =
            |part: Self| part.values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
        let largest = if self.values.len() <= TASK {
            bits(self)
        } else {
            self.par_chunks(TASK).map(bits).max().unwrap_or(0)
        };
        if largest >= INFINITY_BITS { Norm::NON_FINITE } else { Norm::new(largest, NormClass::Exact) }
    }
}

/// A sum and the rounding error of its additions, `high + low`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FastSum {
    high: f64,
    low: f64,
}

impl FastSum {
    pub(super) fn of(values: Values<'_>) -> Self {
        if values.values.len() <= BLOCK {
            return Self { high: sum_of_squares(values.values, values.center), low: 0.0 };
        }
        let mut sum = Self::default();
        for block in values.chunks(BLOCK) {
            sum = sum.join(Self { high: sum_of_squares(block.values, block.center), low: 0.0 });
        }
        sum
    }

    #[inline(always)]
    pub(super) fn join(self, other: Self) -> Self {
        let (high, lost) = two_sum(self.high, other.high);
        Self { high, low: self.low + other.low + lost }
    }

    /// The norm where this sum decides it; `None` sends the row to the exact sum.
    pub(super) fn norm(self) -> Option<Norm> {
        // Not finite exactly where a value was not: squares of finite `f32` cannot overflow `f64`.
        if !self.high.is_finite() {
            return Some(Norm::NON_FINITE);
        }
        certify(self.high + self.low, QUALITY)
    }

    /// Whether every value was finite.
    pub(super) fn is_finite(self) -> bool {
        self.high.is_finite()
    }
}
