//! Batches in host memory that a device's buffers do not hold, or not what is kept for each of their rows: a piece at a
//! time, of as many whole rows as they hold.
//!
//! Where bounds are given, a piece is a batch of its own. Where they come from the norms, or a row may be refused, all
//! norms are computed first and decided on the host, and what is to be written goes to the device once more.

use std::ops::Range;

use bytemuck::Pod;

use super::Gpu;
use super::buffers::EXACT_SUM_BYTES;
use super::context::GpuContext;
use super::storage::Storage;
use crate::backend::Backend;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite};
use crate::error::{Error, Result};
use crate::norms::Norms;
use crate::report::{Ran, Report};
use crate::threshold::{self, Decision, Source, State};

/// The rows of each piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pieces(Vec<Range<usize>>);

/// What a piece may have at most.
struct Room {
    /// Elements, each span's from a multiple of four.
    elements: u64,
    /// Spans, those of rows that have segments included.
    spans: u64,
}

impl Pieces {
    /// The pieces of a batch; `None` where it is one.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`] where a row alone is too much for a buffer.
    pub(super) fn of(
        context: &GpuContext,
        layout: &Layout,
        granularity: Granularity,
        storage: Storage,
    ) -> Result<Option<Self>> {
        let limits = context.device.limits();
        // Whatever else there is for each span is smaller than its exact sum.
        let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let room =
            Room { elements: limits.max_buffer_size / storage.bytes(), spans: bound / EXACT_SUM_BYTES };
        let pieces = Self::within(&room, layout, granularity);
        let too_large = |what, got, limit| {
            Err(Error::BatchTooLarge { adapter: context.adapter.clone(), what, got, limit })
        };
        // Before anything of another piece is written.
        for rows in pieces.iter().flat_map(|pieces| &pieces.0).filter(|rows| rows.len() == 1) {
            let (elements, spans) = needs(layout, granularity, rows.start);
            if elements > room.elements {
                return too_large("the batch", elements * storage.bytes(), limits.max_buffer_size);
            }
            if spans > room.spans {
                return too_large("the exact sums", spans * EXACT_SUM_BYTES, bound);
            }
        }
        Ok(pieces)
    }

    fn within(room: &Room, layout: &Layout, granularity: Granularity) -> Option<Self> {
        let rows = if granularity == Granularity::Segment { layout.clients() } else { 0 };
        let spans = (layout.span_count(granularity) + rows) as u64;
        if layout.elements() as u64 + 3 * spans <= room.elements && spans <= room.spans {
            return None;
        }
        let mut pieces = Vec::new();
        let (mut first, mut elements, mut spans) = (0, 0, 0);
        for row in 0..layout.clients() {
            let (of_row, spans_of_row) = needs(layout, granularity, row);
            let is_full = elements + of_row > room.elements || spans + spans_of_row > room.spans;
            if is_full && row > first {
                pieces.push(first..row);
                (first, elements, spans) = (row, 0, 0);
            }
            elements += of_row;
            spans += spans_of_row;
        }
        pieces.push(first..layout.clients());
        (pieces.len() > 1).then_some(Self(pieces))
    }

    /// For each piece, what it is: its rows, its layout, its clipping, and where its elements lie.
    fn each<'a>(
        &'a self,
        layout: &'a Layout,
        clipping: &'a Clipping,
    ) -> impl Iterator<Item = Result<Piece>> + 'a {
        self.0.iter().map(move |rows| {
            let base = layout.row(rows.start).start;
            let elements = base..layout.row(rows.end - 1).end;
            let spans = layout.spans_of(clipping.granularity, rows.start).start
                ..layout.spans_of(clipping.granularity, rows.end - 1).end;
            let clipping = clipping.of_rows(layout, rows.clone())?;
            Ok(Piece { layout: layout.of_rows(rows.clone()), clipping, elements, spans })
        })
    }

    /// What is told of a batch in pieces.
    pub(super) fn ran(&self, gpu: &Gpu, is_one_pass: bool) -> Ran {
        let ran = gpu.ran();
        let decided = if is_one_pass { "" } else { ", decided on the host" };
        let count = self.0.len();
        let why =
            format!("{}; in {count} pieces, because its buffers do not hold the batch{decided}", ran.why);
        Ran { why, ..ran }
    }
}

/// The elements and spans that a row takes on the device.
fn needs(layout: &Layout, granularity: Granularity, row: usize) -> (u64, u64) {
    let spans = layout.spans_of(granularity, row);
    let count = spans.len() as u64 + u64::from(granularity == Granularity::Segment);
    let elements = spans.map(|span| (layout.span(granularity, span).len() as u64).next_multiple_of(4));
    (elements.sum(), count)
}

/// A run of rows.
struct Piece {
    layout: Layout,
    clipping: Clipping,
    elements: Range<usize>,
    spans: Range<usize>,
}

impl Gpu {
    /// The norms stage, piece by piece.
    pub(super) fn norms_in_pieces<T: Pod>(
        &self,
        pieces: &Pieces,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
    ) -> Result<Norms> {
        let mut norms = Norms::default();
        for piece in pieces.each(layout, clipping) {
            let Piece { layout, clipping, elements, .. } = piece?;
            let of_piece = self.norms_of(storage, &layout, &data[elements], &clipping)?;
            norms.rows.extend(of_piece.rows);
            norms.segments.extend(of_piece.segments);
        }
        Ok(norms)
    }

    /// The clip stage, piece by piece; a piece of which nothing is written stays where it is.
    pub(super) fn clip_in_pieces<T: Pod>(
        &self,
        pieces: &Pieces,
        storage: Storage,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        for piece in pieces.each(layout, clipping) {
            let Piece { layout, clipping, elements, spans } = piece?;
            let decisions = &decisions[spans];
            if decisions.iter().any(|decision| decision.status.is_written()) {
                self.clip_of(storage, &layout, &mut data[elements], &clipping, decisions)?;
            }
        }
        Ok(())
    }

    /// All stages, piece by piece.
    pub(super) fn run_in_pieces<T: Pod>(
        &self,
        pieces: &Pieces,
        storage: Storage,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        // Before anything is written.
        clipping.check(layout, state)?;
        let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
        // A piece has whole rows, so bounds of segments may be given as well as those of rows.
        if !matches!(source, Source::Given(_)) || clipping.non_finite == NonFinite::Error {
            let norms = self.norms_in_pieces(pieces, storage, layout, data, clipping)?;
            let decisions = threshold::decide(layout, &norms, clipping, state)?;
            self.clip_in_pieces(pieces, storage, layout, data, clipping, &decisions)?;
            let ran = pieces.ran(self, false);
            return Ok(Report::of_stages(ran, layout, clipping.granularity, &norms, &decisions));
        }
        let mut report = Report::of_rows(self.ran(), Vec::new());
        for piece in pieces.each(layout, clipping) {
            let Piece { layout, clipping, elements, .. } = piece?;
            report.append(self.run_of(storage, &layout, &mut data[elements], &clipping, state)?);
        }
        report.ran = Ran { strategy: report.ran.strategy, ..pieces.ran(self, true) };
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_hold_as_many_rows_as_a_buffer() {
        let of = |elements, spans, layout: &Layout, granularity| {
            Pieces::within(&Room { elements, spans }, layout, granularity)
        };
        let dense = Layout::dense(5, 10).unwrap();
        // A row takes twelve elements, because the next one begins at a multiple of four.
        assert_eq!(of(60, 5, &dense, Granularity::Row), None);
        assert_eq!(of(59, 5, &dense, Granularity::Row), Some(Pieces(vec![0..4, 4..5])));
        assert_eq!(of(24, 5, &dense, Granularity::Row), Some(Pieces(vec![0..2, 2..4, 4..5])));
        assert_eq!(of(60, 2, &dense, Granularity::Row), Some(Pieces(vec![0..2, 2..4, 4..5])));
        assert_eq!(of(1, 5, &dense, Granularity::Row).unwrap().0.len(), 5);
        let ragged = Layout::ragged_layered(&[vec![1, 1], vec![], vec![9], vec![4]]).unwrap();
        assert_eq!(of(16, 9, &ragged, Granularity::Segment), Some(Pieces(vec![0..2, 2..4])));
        assert_eq!(of(16, 9, &ragged, Granularity::Row), Some(Pieces(vec![0..3, 3..4])));
        // Three segments and three rows.
        assert_eq!(of(99, 6, &ragged, Granularity::Segment), Some(Pieces(vec![0..3, 3..4])));
        assert_eq!(of(0, 0, &Layout::dense(0, 5).unwrap(), Granularity::Row), None);
        assert_eq!(of(0, 7, &Layout::dense(7, 0).unwrap(), Granularity::Row), None);
    }
}
