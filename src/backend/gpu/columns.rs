//! The mean of a batch in host memory that a device's buffers do not hold: some columns of all rows at a time, since a
//! coordinate of the mean depends on nothing else of the batch but what is decided of its rows. Where there are more rows than a
//! buffer holds exact sums for, the mean is the CPU backend's.

use std::ops::Range;

use bytemuck::Pod;

use super::Gpu;
use super::buffers::EXACT_SUM_BYTES;
use super::mean::{LONGEST_STRIP, SUM_BYTES};
use super::on_host::OnHost;
use super::storage::Storage;
use crate::aggregate::{Weights, counts};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::threshold::Decision;

/// Columns of all rows, within one span of each: the span's place in its row, and which of its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Columns {
    span: usize,
    elements: Range<usize>,
}

/// A batch, and all of its columns.
struct ByColumns<'a> {
    gpu: &'a Gpu,
    layout: &'a Layout,
    clipping: &'a Clipping,
    storage: Storage,
    columns: Vec<Columns>,
}

/// The most columns that are a batch which one buffer holds, and its mean too; `None` where not even those of one group of
/// four are, because a buffer has no room for what is kept of each row.
fn widest(limits: &wgpu::Limits, layout: &Layout, storage: Storage) -> Option<usize> {
    let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    let rows = layout.clients().max(1) as u64;
    if rows > bound / EXACT_SUM_BYTES {
        return None;
    }
    // Each row begins at a multiple of four elements.
    let held = limits.max_buffer_size / storage.bytes() / rows;
    // The centre, which shares a binding with the starts of tiles, has half of it. Four columns always fit: they take less than the row's exact sum, for which there is room.
    let width = (held.saturating_sub(3).min(summed(bound)).min(bound / 8) / 4 * 4).max(4);
    Some(usize::try_from(width).unwrap_or(usize::MAX))
}

/// The most columns of a mean where a binding holds so many bytes: the list of those that are open, which has a word more than the
/// mean, and the exact sums of columns, of which it keeps [`LONGEST_STRIP`] at once, or all where these are fewer.
fn summed(bound: u64) -> u64 {
    if bound / SUM_BYTES < LONGEST_STRIP { bound / SUM_BYTES } else { bound / 4 - 1 }
}

impl Gpu {
    /// Whether the mean of a batch is taken at once, where one buffer holds the batch.
    pub(super) fn holds_mean(&self, layout: &Layout) -> bool {
        let limits = self.context.device.limits();
        let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        layout.params() as u64 <= summed(bound)
    }

    /// The mean of a batch that no buffer holds.
    pub(super) fn mean_by_columns<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        let Some(width) = self.widest_columns(layout, storage) else {
            return OnHost::of(storage)?.mean(layout, data, clipping, decisions, weights);
        };
        let columns = cut(width, layout, clipping.granularity);
        ByColumns { gpu: self, layout, clipping, storage, columns }.mean(data, decisions, weights)
    }

    /// The columns that the mean of such a batch takes at a time; `None` where the CPU takes it.
    pub(super) fn widest_columns(&self, layout: &Layout, storage: Storage) -> Option<usize> {
        widest(&self.context.device.limits(), layout, storage)
    }
}

/// At most `width` elements of a row at a time, in the order of the columns.
fn cut(width: usize, layout: &Layout, granularity: Granularity) -> Vec<Columns> {
    let mut columns = Vec::new();
    if layout.clients() == 0 {
        return columns;
    }
    for (place, span) in layout.spans_of(granularity, 0).enumerate() {
        let length = layout.span(granularity, span).len();
        let starts = (0..length).step_by(width);
        columns.extend(
            starts.map(|start| Columns { span: place, elements: start..(start + width).min(length) }),
        );
    }
    columns
}

impl ByColumns<'_> {
    fn mean<T: Pod>(&self, data: &[T], decisions: &[Decision], weights: &Weights) -> Result<Vec<f32>> {
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
        for Columns { span, elements } in &self.columns {
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
            let layout = Layout::dense(layout.clients(), elements.len())?;
            mean.extend(gpu.mean_of(self.storage, &layout, &part, &clipping, &of_rows, &weights)?);
        }
        Ok(mean)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn columns_are_in_order_and_lie_in_one_span_each() {
        let layout = Layout::dense(3, 10).unwrap().layered(&[4, 0, 6]).unwrap();
        let of = |granularity, width| -> Vec<(usize, Range<usize>)> {
            cut(width, &layout, granularity)
                .into_iter()
                .map(|columns| (columns.span, columns.elements))
                .collect()
        };
        assert_eq!(of(Granularity::Row, 4), [(0, 0..4), (0, 4..8), (0, 8..10)]);
        assert_eq!(of(Granularity::Row, 100), [(0, 0..10)]);
        assert_eq!(of(Granularity::Segment, 4), [(0, 0..4), (2, 0..4), (2, 4..6)]);
        assert_eq!(cut(4, &Layout::dense(0, 5).unwrap(), Granularity::Row), []);
    }
}
