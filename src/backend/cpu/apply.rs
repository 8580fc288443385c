//! The clip stage on part of a span.

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
            values.iter_mut().for_each(|value| *value = clamped(*value, bound));
        }
        (Status::Clipped, None) => values.iter_mut().for_each(|value| *value = scaled(*value, factor)),
        (Status::Clipped, Some(center)) => {
            let pairs = values.iter_mut().zip(center);
            pairs.for_each(|(value, &center)| *value = scaled_around(*value, center, factor));
        }
    }
}
