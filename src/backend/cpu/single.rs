//! Elements in `f32`, and the centre's beside them where there is one.

use super::rows::Storage;
use super::simd::{Kernel, vectorised};
use super::sum::FastSum;
use crate::batch::Granularity;
use crate::clip::{Clipping, Status};
use crate::numerics::{ExactSum, clamped, scaled, scaled_around};
use crate::threshold::Decision;

pub(super) struct Singles<'a> {
    center: Option<&'a [f32]>,
    granularity: Granularity,
}

impl<'a> Singles<'a> {
    pub(super) fn of(clipping: &'a Clipping) -> Self {
        Self { center: clipping.center.as_deref(), granularity: clipping.granularity }
    }

    /// The centre beside elements.
    #[inline(always)]
    fn center(&self, elements: &[f32], first: usize) -> Option<&'a [f32]> {
        self.center.map(|center| &center[first..first + elements.len()])
    }
}

impl Storage for Singles<'_> {
    type Element = f32;

    #[inline(always)]
    fn sum(&self, elements: &[f32], first: usize) -> FastSum {
        FastSum::of(elements, self.center(elements, first))
    }

    fn exact_sum(&self, elements: &[f32], first: usize) -> ExactSum {
        match self.center(elements, first) {
            None => ExactSum::of(elements),
            Some(center) => ExactSum::of_differences(elements, center),
        }
    }

    fn largest_magnitude(&self, elements: &[f32]) -> u32 {
        // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
        elements.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff))
    }

    fn apply(&self, elements: &mut [f32], first: usize, decision: &Decision) {
        let (factor, bound) = (decision.factor, decision.bound);
        let center = self.center(elements, first);
        match (decision.status, center) {
            (Status::Untouched | Status::OutOfScope | Status::Kept, _) => {}
            (Status::Zeroed, None) => elements.fill(0.0),
            (Status::Zeroed, Some(center)) => elements.copy_from_slice(center),
            (Status::Clipped, _) if self.granularity == Granularity::Coordinate => {
                vectorised(Clamp { values: elements, bound });
            }
            (Status::Clipped, None) => vectorised(Scale { values: elements, factor }),
            (Status::Clipped, Some(center)) => vectorised(ScaleAround { values: elements, center, factor }),
        }
    }
}

struct Clamp<'a> {
    values: &'a mut [f32],
    bound: f32,
}

impl Kernel for Clamp<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|value| *value = clamped(*value, self.bound));
    }
}

struct ScaleAround<'a> {
    values: &'a mut [f32],
    center: &'a [f32],
    factor: f64,
}

impl Kernel for ScaleAround<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let pairs = self.values.iter_mut().zip(self.center);
        pairs.for_each(|(value, &center)| *value = scaled_around(*value, center, self.factor));
    }
}

struct Scale<'a> {
    values: &'a mut [f32],
    factor: f64,
}

/// Elements that are looked at before they are multiplied.
const BLOCK: usize = 256;

impl Kernel for Scale<'_> {
    type Output = ();

    /// Multiplies in `f32` where that is the product of the contract, and in `f64` where it may not be.
    ///
    /// A product of two `f32` is rounded to 24 bits either way as long as it is above the smallest normal number: below,
    /// `f32` rounds to fewer bits, and the contract makes a zero. The smallest normal number itself may be either.
    #[inline(always)]
    fn run(self) {
        let factor = self.factor;
        let single = factor as f32;
        if single < f32::MIN_POSITIVE {
            self.values.iter_mut().for_each(|value| *value = scaled(*value, factor));
            return;
        }
        // 2^-126 by the factor's power of two: from there on products are normal. One is taken off all magnitudes, so
        // that 0, whose product is what it should be, becomes the largest of them.
        let exponent = (single.to_bits() >> 23).min(127);
        let limit = ((128 - exponent) << 23) - 1;
        for block in self.values.chunks_mut(BLOCK) {
            let least = block
                .iter()
                .fold(u32::MAX, |least, value| least.min((value.to_bits() & 0x7fff_ffff).wrapping_sub(1)));
            if least < limit {
                block.iter_mut().for_each(|value| *value = scaled(*value, factor));
            } else {
                block.iter_mut().for_each(|value| *value *= single);
            }
        }
    }
}
