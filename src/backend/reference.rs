//! The specification: every norm from an exact big-integer sum, every product from exact `f64`, one
//! element after the other.

use super::{Backend, check_decisions};
use crate::batch::{Granularity, Layout};
use crate::clip::{Scope, Status};
use crate::error::Result;
use crate::norms::{Norm, NormClass, Norms};
use crate::numerics::{ExactSum, clamped, scaled};
use crate::report::{BackendKind, Ran};
use crate::threshold::Decision;

/// Exact, short and obvious; slow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Backend for Reference {
    fn ran(&self) -> Ran {
        Ran { backend: BackendKind::Reference, adapter: None, why: "asked for by name".into() }
    }

    fn norms(&self, layout: &Layout, data: &[f32], scope: &Scope, granularity: Granularity) -> Result<Norms> {
        layout.check(data.len())?;
        let mut norms = Norms::default();
        for (row, in_scope) in scope.mask(layout.clients())?.into_iter().enumerate() {
            let norm_of = |span: std::ops::Range<usize>| match (in_scope, granularity) {
                (false, _) => Norm::OUT_OF_SCOPE,
                (true, Granularity::Coordinate) => largest_magnitude(&data[span]),
                (true, Granularity::Row | Granularity::Segment) => norm(&data[span]),
            };
            norms.rows.push(norm_of(layout.row(row)));
            if granularity == Granularity::Segment {
                norms
                    .segments
                    .extend(layout.segments_of(row).map(|segment| norm_of(layout.segment(segment))));
            }
        }
        Ok(norms)
    }

    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        granularity: Granularity,
        decisions: &[Decision],
    ) -> Result<()> {
        layout.check(data.len())?;
        check_decisions(layout, granularity, decisions)?;
        for (span, decision) in decisions.iter().enumerate() {
            let span = &mut data[layout.span(granularity, span)];
            match decision.status {
                Status::Clipped if granularity == Granularity::Coordinate => {
                    span.iter_mut().for_each(|g| *g = clamped(*g, decision.bound));
                }
                Status::Clipped => span.iter_mut().for_each(|g| *g = scaled(*g, decision.factor)),
                Status::Zeroed => span.fill(0.0),
                Status::Untouched | Status::OutOfScope | Status::Kept => {}
            }
        }
        Ok(())
    }
}

/// The largest magnitude of a slice, which is exact.
fn largest_magnitude(values: &[f32]) -> Norm {
    if values.iter().any(|value| !value.is_finite()) {
        return Norm::NON_FINITE;
    }
    let largest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
    Norm::new(largest.to_bits(), NormClass::Exact)
}

/// The correctly rounded norm of a slice.
fn norm(values: &[f32]) -> Norm {
    if values.iter().any(|value| !value.is_finite()) {
        return Norm::NON_FINITE;
    }
    let mut sum = ExactSum::default();
    values.iter().for_each(|&value| sum.add_square(value));
    sum.norm()
}
