//! The clip stage on part of a span.

use super::simd::vectorised;
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
        (Status::Clipped, _) if granularity == Granularity::Coordinate => {
            vectorised(|| values.iter_mut().for_each(|value| *value = clamped(*value, bound)));
        }
        (Status::Clipped, None) => vectorised(|| scale(values, factor)),
        (Status::Clipped, Some(center)) => vectorised(|| {
            let pairs = values.iter_mut().zip(center);
            pairs.for_each(|(value, &center)| *value = scaled_around(*value, center, factor));
        }),
    }
}

/// Elements that are multiplied in `f32` before one looks at what came out.
const BLOCK: usize = 256;

/// Multiplies in `f32` where that is the product of the contract, and in `f64` where it may not be.
///
/// A product of two `f32` is rounded to 24 bits either way, as long as it is above the smallest normal number: below,
/// `f32` rounds to fewer bits, and the contract makes a zero. The smallest normal number itself may be either.
#[inline(always)]
fn scale(values: &mut [f32], factor: f64) {
    let single = factor as f32;
    if single < f32::MIN_POSITIVE {
        values.iter_mut().for_each(|value| *value = scaled(*value, factor));
        return;
    }
    for block in values.chunks_mut(BLOCK) {
        let mut tiny = false;
        for &value in block.iter() {
            tiny |= (value * single).abs() <= f32::MIN_POSITIVE && value != 0.0;
        }
        if tiny {
            block.iter_mut().for_each(|value| *value = scaled(*value, factor));
        } else {
            block.iter_mut().for_each(|value| *value *= single);
        }
    }
}
