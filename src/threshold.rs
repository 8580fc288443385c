//! Stage 2: a policy turns norms into bounds, and bounds into one factor and status per row or segment.

use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite, Status};
use crate::error::{Error, Result};
use crate::norms::{Norm, NormClass, Norms};
use crate::numerics;

/// The policy that yields the bound λ of each row or segment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Threshold {
    /// The same λ everywhere.
    Fixed(f32),
    /// One λ per row, `[clients]`; at segment granularity each segment of a row has the row's λ.
    PerRow(Vec<f32>),
}

impl Threshold {
    /// The bound of every span of the batch.
    ///
    /// # Errors
    /// [`Error::InvalidBound`] for NaN or negative bounds, [`Error::BoundCount`] where their number
    /// is not the number of rows.
    pub fn bounds(&self, layout: &Layout, granularity: Granularity) -> Result<Vec<f32>> {
        match self {
            Self::Fixed(bound) => Ok(vec![checked(*bound)?; layout.span_count(granularity)]),
            Self::PerRow(bounds) => {
                if bounds.len() != layout.clients() {
                    return Err(Error::BoundCount { got: bounds.len(), expected: layout.clients() });
                }
                let mut spans = Vec::with_capacity(layout.span_count(granularity));
                for (row, &bound) in bounds.iter().enumerate() {
                    let bound = checked(bound)?;
                    spans.extend(layout.spans_of(granularity, row).map(|_| bound));
                }
                Ok(spans)
            }
        }
    }
}

fn checked(bound: f32) -> Result<f32> {
    if bound.is_nan() || bound < 0.0 {
        return Err(Error::InvalidBound { got: bound });
    }
    // -0 is a legal zero; one zero is enough.
    Ok(bound.abs())
}

/// What happens to one row or segment, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// The norm before clipping.
    pub norm: Norm,
    /// The bound λ.
    pub bound: f32,
    /// The multiplier: 1 where nothing is written, 0 where the row is zeroed.
    ///
    /// It has 24 significant bits and is exact as `f64`, also below the range of `f32`.
    pub factor: f64,
    /// The outcome.
    pub status: Status,
}

/// Decides every span of the batch: bound, factor and status.
///
/// A row with NaN or Inf anywhere is decided as a whole, also at segment granularity: under
/// [`NonFinite::Zero`] all of its segments are zeroed.
///
/// # Errors
/// [`Error::NonFinite`] under [`NonFinite::Error`]; [`Error::Layout`] where the norms are of another
/// layout or granularity; those of [`Threshold::bounds`].
pub fn decide(layout: &Layout, norms: &Norms, clipping: &Clipping) -> Result<Vec<Decision>> {
    let bounds = clipping.threshold.bounds(layout, clipping.granularity)?;
    if clipping.non_finite == NonFinite::Error {
        refuse_non_finite(&norms.rows)?;
    }
    let spans = norms.spans(clipping.granularity);
    check_norms(layout, norms, clipping.granularity)?;
    let mut decisions = Vec::with_capacity(spans.len());
    for (row, &row_norm) in norms.rows.iter().enumerate() {
        for span in layout.spans_of(clipping.granularity, row) {
            decisions.push(decide_span(spans[span], row_norm, bounds[span], clipping.non_finite));
        }
    }
    Ok(decisions)
}

/// Checks that the norms are of this layout at this granularity.
pub(crate) fn check_norms(layout: &Layout, norms: &Norms, granularity: Granularity) -> Result<()> {
    let spans = norms.spans(granularity).len();
    let expected = layout.span_count(granularity);
    if norms.rows.len() == layout.clients() && spans == expected {
        return Ok(());
    }
    Err(Error::Layout {
        got: format!("norms of {} rows and {spans} spans for {expected} spans", norms.rows.len()),
        expected: "the norms of this layout at this granularity",
    })
}

/// Fails with the first row that holds NaN or Inf.
pub(crate) fn refuse_non_finite(rows: &[Norm]) -> Result<()> {
    match rows.iter().position(|norm| norm.class() == NormClass::NonFinite) {
        Some(row) => Err(Error::NonFinite { row }),
        None => Ok(()),
    }
}

fn decide_span(norm: Norm, row: Norm, bound: f32, policy: NonFinite) -> Decision {
    let (factor, status) = match (row.class(), policy) {
        (NormClass::OutOfScope, _) => (1.0, Status::OutOfScope),
        (NormClass::NonFinite, NonFinite::Keep) => (1.0, Status::Kept),
        (NormClass::NonFinite, NonFinite::Zero | NonFinite::Error) => (0.0, Status::Zeroed),
        _ if norm.exceeds(bound) => (numerics::factor(bound, norm), Status::Clipped),
        _ => (1.0, Status::Untouched),
    };
    Decision { norm, bound, factor, status }
}
