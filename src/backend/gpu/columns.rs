//! The mean of a batch in host memory that a device's buffers do not hold: some columns of all rows at a time, since a
//! coordinate of the mean depends on nothing else of the batch but what is decided of its rows.

use std::ops::Range;

use bytemuck::Pod;

use super::Gpu;
use super::buffers::EXACT_SUM_BYTES;
use super::context::GpuContext;
use super::mean::{LONGEST_STRIP, SUM_BYTES};
use super::storage::Storage;
use crate::aggregate::{Weights, counts};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::{Error, Result};
use crate::threshold::Decision;

/// Columns of all rows, within one span of each: the span's place in its row, and which of its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Strip {
    span: usize,
    elements: Range<usize>,
}

/// A batch, and all of its columns.
pub(super) struct Strips<'a> {
    gpu: &'a Gpu,
    layout: &'a Layout,
    clipping: &'a Clipping,
    storage: Storage,
    strips: Vec<Strip>,
}

/// The most elements of a row that a strip has, so that it is a batch which one buffer holds, and its mean too.
fn widest(context: &GpuContext, layout: &Layout, storage: Storage) -> Result<usize> {
    let limits = context.device.limits();
    let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    let rows = layout.clients().max(1) as u64;
    if rows > bound / EXACT_SUM_BYTES {
        let (what, adapter) = ("the exact sums", context.adapter.clone());
        return Err(Error::BatchTooLarge { adapter, what, got: rows * EXACT_SUM_BYTES, limit: bound });
    }
    // Each row begins at a multiple of four elements.
    let held = limits.max_buffer_size / storage.bytes() / rows;
    // A mean keeps the sums of this many columns at once, or of all where these are fewer: they have to fit too.
    let summed = if bound / SUM_BYTES < LONGEST_STRIP { bound / SUM_BYTES } else { bound / 4 };
    // Four always fit: they take less than the row's exact sum, for which there is room.
    let width = (held.saturating_sub(3).min(summed) / 4 * 4).max(4);
    Ok(usize::try_from(width).unwrap_or(usize::MAX))
}

impl<'a> Strips<'a> {
    /// Strips as wide as the device's buffers allow.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`] where a buffer has no room for what is kept of each row.
    pub(super) fn of(
        gpu: &'a Gpu,
        layout: &'a Layout,
        clipping: &'a Clipping,
        storage: Storage,
    ) -> Result<Self> {
        let width = widest(&gpu.context, layout, storage)?;
        let strips = Self::cut(width, layout, clipping.granularity);
        Ok(Self { gpu, layout, clipping, storage, strips })
    }

    /// Strips of at most `width` elements a row, in the order of the columns.
    fn cut(width: usize, layout: &Layout, granularity: Granularity) -> Vec<Strip> {
        let mut strips = Vec::new();
        if layout.clients() == 0 {
            return strips;
        }
        for (place, span) in layout.spans_of(granularity, 0).enumerate() {
            let length = layout.span(granularity, span).len();
            let starts = (0..length).step_by(width);
            strips.extend(
                starts.map(|start| Strip { span: place, elements: start..(start + width).min(length) }),
            );
        }
        strips
    }

    /// The mean, strip by strip.
    pub(super) fn mean<T: Pod>(
        &self,
        data: &[T],
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        let &Self { gpu, layout, clipping, .. } = self;
        let granularity = clipping.granularity;
        // A row that does not count weighs nothing: the sums are the same.
        let mut weights = weights.of_rows(layout.clients())?;
        let in_mean: Vec<bool> =
            (0..layout.clients()).map(|row| counts(layout, granularity, decisions, row)).collect();
        for (weight, _) in weights.iter_mut().zip(&in_mean).filter(|(_, counts)| !**counts) {
            *weight = 0.0;
        }
        let weights = Weights::PerRow(weights);
        let mut mean = Vec::with_capacity(layout.params());
        for Strip { span, elements } in &self.strips {
            let mut part = Vec::with_capacity(layout.clients() * elements.len());
            let mut of_rows = Vec::with_capacity(layout.clients());
            for (row, &counts) in in_mean.iter().enumerate() {
                let span = layout.spans_of(granularity, row).start + span;
                let decision = decisions[span];
                if counts && matches!(decision.status, Status::Zeroed | Status::Kept) {
                    // It counts by its first span, and adds nothing here.
                    part.resize(part.len() + elements.len(), T::zeroed());
                    of_rows.push(Decision { factor: 1.0, status: Status::OutOfScope, ..decision });
                } else {
                    let start = layout.span(granularity, span).start;
                    part.extend_from_slice(&data[start + elements.start..start + elements.end]);
                    of_rows.push(decision);
                }
            }
            let columns = mean.len()..mean.len() + elements.len();
            let clipping = Clipping {
                granularity: if granularity == Granularity::Coordinate {
                    granularity
                } else {
                    Granularity::Row
                },
                center: clipping.center.as_ref().map(|center| center[columns].into()),
                ..Clipping::default()
            };
            let strip = Layout::dense(layout.clients(), elements.len())?;
            mean.extend(gpu.mean_of(self.storage, &strip, &part, &clipping, &of_rows, &weights)?);
        }
        Ok(mean)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn strips_are_all_columns_in_order_and_lie_in_one_span_each() {
        let layout = Layout::dense(3, 10).unwrap().layered(&[4, 0, 6]).unwrap();
        let of = |granularity, width| -> Vec<(usize, Range<usize>)> {
            Strips::cut(width, &layout, granularity)
                .into_iter()
                .map(|strip| (strip.span, strip.elements))
                .collect()
        };
        assert_eq!(of(Granularity::Row, 4), [(0, 0..4), (0, 4..8), (0, 8..10)]);
        assert_eq!(of(Granularity::Row, 100), [(0, 0..10)]);
        assert_eq!(of(Granularity::Segment, 4), [(0, 0..4), (2, 0..4), (2, 4..6)]);
        assert_eq!(Strips::cut(4, &Layout::dense(0, 5).unwrap(), Granularity::Row), []);
    }
}
