//! The specification: every norm from an exact big-integer sum, every product from exact `f64`, one
//! element after the other.

use std::ops::Range;

use super::Backend;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::norms::{Norm, NormClass, Norms};
use crate::numerics::{ExactSum, clamped, scaled, scaled_around};
use crate::report::{BackendKind, Ran};
use crate::threshold::{Decision, check_decisions};

/// Exact, short and obvious; slow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Backend for Reference {
    fn ran(&self) -> Ran {
        Ran {
            backend: BackendKind::Reference,
            adapter: None,
            strategy: None,
            why: "asked for by name".into(),
        }
    }

    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms> {
        layout.check(data.len())?;
        clipping.check_center(layout)?;
        let mut norms = Norms::default();
        for (row, in_scope) in clipping.scope.mask(layout.clients())?.into_iter().enumerate() {
            let norm_of = |span: Range<usize>| match (in_scope, clipping.granularity) {
                (false, _) => Norm::OUT_OF_SCOPE,
                (true, Granularity::Coordinate) => largest_magnitude(&data[span]),
                (true, Granularity::Row | Granularity::Segment) => {
                    norm(&data[span.clone()], center_of(clipping, layout, row, &span))
                }
            };
            norms.rows.push(norm_of(layout.row(row)));
            if clipping.granularity == Granularity::Segment {
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
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        let granularity = clipping.granularity;
        layout.check(data.len())?;
        clipping.check_center(layout)?;
        check_decisions(layout, granularity, decisions)?;
        for row in 0..layout.clients() {
            for span in layout.spans_of(granularity, row) {
                let (decision, elements) = (&decisions[span], layout.span(granularity, span));
                let center = center_of(clipping, layout, row, &elements);
                clip(&mut data[elements], center, decision, granularity);
            }
        }
        Ok(())
    }
}

/// The centre beside these elements of a row.
fn center_of<'a>(
    clipping: &'a Clipping,
    layout: &Layout,
    row: usize,
    elements: &Range<usize>,
) -> Option<&'a [f32]> {
    let start = layout.row(row).start;
    clipping.center.as_ref().map(|center| &center[elements.start - start..elements.end - start])
}

fn clip(span: &mut [f32], center: Option<&[f32]>, decision: &Decision, granularity: Granularity) {
    match (decision.status, center) {
        (Status::Clipped, _) if granularity == Granularity::Coordinate => {
            span.iter_mut().for_each(|g| *g = clamped(*g, decision.bound));
        }
        (Status::Clipped, None) => span.iter_mut().for_each(|g| *g = scaled(*g, decision.factor)),
        (Status::Clipped, Some(center)) => {
            span.iter_mut().zip(center).for_each(|(g, &v)| *g = scaled_around(*g, v, decision.factor));
        }
        (Status::Zeroed, None) => span.fill(0.0),
        (Status::Zeroed, Some(center)) => span.copy_from_slice(center),
        (Status::Untouched | Status::OutOfScope | Status::Kept, _) => {}
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

/// The correctly rounded norm of a slice, or of its difference from the centre.
fn norm(values: &[f32], center: Option<&[f32]>) -> Norm {
    if values.iter().any(|value| !value.is_finite()) {
        return Norm::NON_FINITE;
    }
    if let Some(center) = center {
        return ExactSum::of_differences(values, center).norm();
    }
    let mut sum = ExactSum::default();
    values.iter().for_each(|&value| sum.add_square(value));
    sum.norm()
}
