//! The clip stage on part of a span.

use super::simd::{Kernel, vectorised};
use crate::batch::Granularity;
use crate::clip::Status;
use crate::numerics::{clamped, scaled, scaled_around};
use crate::threshold::Decision;

/// Writes what the decision makes of the values; nothing where the status is not one that is written.
pub(super) fn apply(
    values: &mut [f32],
    center: Option<&[f32]>,
    decision: &Decision,
    granularity: Granularity,
) {
    let (factor, bound) = (decision.factor, decision.bound);
    match (decision.status, center) {
        (Status::Untouched | Status::OutOfScope | Status::Kept, _) => {}
        (Status::Zeroed, None) => values.fill(0.0),
        (Status::Zeroed, Some(center)) => values.copy_from_slice(center),
        (Status::Clipped, _) if granularity == Granularity::Coordinate => vectorised(Clamp { values, bound }),
        (Status::Clipped, None) => vectorised(Scale { values, factor }),
        (Status::Clipped, Some(center)) => vectorised(ScaleAround { values, center, factor }),
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
        // Magnitudes below this may have a product that is not normal. One is taken off the bits, so that 0, whose
        // product is what it should be, becomes the largest of all.
        let limit = (f64::from(f32::MIN_POSITIVE) / factor * (1.0 + 1e-6)) as f32;
        let limit = limit.to_bits() - 1;
        for block in self.values.chunks_mut(BLOCK) {
            let least = block
                .iter()
                .fold(u32::MAX, |least, value| least.min((value.to_bits() & 0x7fff_ffff).wrapping_sub(1)));
            if least <= limit {
                block.iter_mut().for_each(|value| *value = scaled(*value, factor));
            } else {
                block.iter_mut().for_each(|value| *value *= single);
            }
        }
    }
}
