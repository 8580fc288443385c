//! Batches in host memory that a device's buffers do not hold, or not what is kept for each of their rows: a piece at a
//! time, of as many whole rows as they hold. A row that they do not hold alone is the CPU backend's: it is in host memory, where its
//! elements are read faster than they are shipped, and a norm needs them all.
//!
//! Where bounds are given, a piece is a batch of its own. Where they come from the norms, or a row may be refused, all
//! norms are computed first and decided on the host, and what is to be written goes to the device once more.

use std::ops::Range;

use bytemuck::Pod;

use super::Gpu;
use super::buffers::EXACT_SUM_BYTES;
use super::context::GpuContext;
use super::geometry::SEGMENTS_PER_ROW;
use super::on_host::OnHost;
use super::storage::Storage;
use crate::backend::Backend;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite};
use crate::error::Result;
use crate::norms::Norms;
use crate::report::{Ran, Report};
use crate::threshold::{self, Decision, Source, State};

/// A batch cut in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pieces(Vec<Rows>);

/// The rows of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rows {
    OnDevice(Range<usize>),
    /// One that is too large for the device's buffers.
    OnHost(usize),
}

/// What a piece may have at most.
struct Room {
    /// Elements, each span's from a multiple of four.
    elements: u64,
    /// Spans, those of rows that have segments included.
    spans: u64,
    /// Elements of a row alone: around a centre no more than one binding holds, with the starts of tiles beside it.
    row: u64,
    /// Segments of a row, where these have norms.
    segments: u64,
}

impl Room {
    fn holds_row(&self, elements: u64, spans: u64) -> bool {
        elements <= self.elements.min(self.row) && spans <= self.spans.min(self.segments)
    }
}

impl Pieces {
    /// The pieces of a batch; `None` where it is one, on the device.
    pub(super) fn of(
        context: &GpuContext,
        layout: &Layout,
        clipping: &Clipping,
        storage: Storage,
    ) -> Option<Self> {
        let limits = context.device.limits();
        // Whatever else there is for each span is smaller than its exact sum.
        let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let granularity = clipping.granularity;
        let room = Room {
            elements: limits.max_buffer_size / storage.bytes(),
            spans: bound / EXACT_SUM_BYTES,
            row: if clipping.center.is_some() { bound / 8 } else { u64::MAX },
            segments: if granularity == Granularity::Segment { SEGMENTS_PER_ROW } else { u64::MAX },
        };
        Self::within(&room, layout, granularity)
    }

    fn within(room: &Room, layout: &Layout, granularity: Granularity) -> Option<Self> {
        let rows = if granularity == Granularity::Segment { layout.clients() } else { 0 };
        let spans = (layout.span_count(granularity) + rows) as u64;
        let holds = |elements, spans| elements <= room.elements && spans <= room.spans;
        let holds_row = |row| {
            let (elements, spans) = needs(layout, granularity, row);
            room.holds_row(elements, spans)
        };
        let have_limits = room.row.min(room.segments) < u64::MAX;
        if holds(layout.elements() as u64 + 3 * spans, spans)
            && (!have_limits || (0..layout.clients()).all(holds_row))
        {
            return None;
        }
        let mut pieces = Vec::new();
        let (mut first, mut elements, mut spans) = (0, 0, 0);
        for row in 0..layout.clients() {
            let (of_row, spans_of_row) = needs(layout, granularity, row);
            let is_on_host = !room.holds_row(of_row, spans_of_row);
            if is_on_host || !holds(elements + of_row, spans + spans_of_row) {
                if row > first {
                    pieces.push(Rows::OnDevice(first..row));
                }
                (first, elements, spans) = (row, 0, 0);
            }
            if is_on_host {
                pieces.push(Rows::OnHost(row));
                first = row + 1;
                continue;
            }
            elements += of_row;
            spans += spans_of_row;
        }
        if first < layout.clients() {
            pieces.push(Rows::OnDevice(first..layout.clients()));
        }
        let is_one = matches!(&pieces[..], [] | [Rows::OnDevice(_)]);
        (!is_one).then_some(Self(pieces))
    }

    /// For each piece, what it is: where its rows go, its layout, its clipping, and where its elements lie.
    fn each<'a>(
        &'a self,
        layout: &'a Layout,
        clipping: &'a Clipping,
    ) -> impl Iterator<Item = Result<Piece>> + 'a {
        self.0.iter().map(move |piece| {
            let (rows, is_on_host) = match piece {
                Rows::OnDevice(rows) => (rows.clone(), false),
                Rows::OnHost(row) => (*row..row + 1, true),
            };
            let base = layout.row(rows.start).start;
            let elements = base..layout.row(rows.end - 1).end;
            let spans = layout.spans_of(clipping.granularity, rows.start).start
                ..layout.spans_of(clipping.granularity, rows.end - 1).end;
            let clipping = clipping.of_rows(layout, rows.clone())?;
            Ok(Piece { is_on_host, layout: layout.of_rows(rows), clipping, elements, spans })
        })
    }

    /// What is told of a batch in pieces.
    pub(super) fn ran(&self, gpu: &Gpu, is_one_pass: bool) -> Ran {
        let ran = gpu.ran();
        let decided = if is_one_pass { "" } else { ", decided on the host" };
        let on_host = self.0.iter().filter(|rows| matches!(rows, Rows::OnHost(_))).count();
        let on_host = match on_host {
            0 => String::new(),
            1 => "; 1 row, too large for them, on the CPU".to_owned(),
            rows => format!("; {rows} rows, too large for them, on the CPU"),
        };
        let (why, count) = (ran.why, self.0.len());
        let pieces = if count == 1 { "1 piece".to_owned() } else { format!("{count} pieces") };
        let why = format!("{why}; in {pieces}, because its buffers do not hold the batch{decided}{on_host}");
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
    is_on_host: bool,
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
            let Piece { is_on_host, layout, clipping, elements, .. } = piece?;
            let data = &data[elements];
            let of_piece = if is_on_host {
                OnHost::of(storage)?.norms(&layout, data, &clipping)?
            } else {
                self.norms_of(storage, &layout, data, &clipping)?
            };
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
            let Piece { is_on_host, layout, clipping, elements, spans } = piece?;
            let (data, decisions) = (&mut data[elements], &decisions[spans]);
            if !decisions.iter().any(|decision| decision.status.is_written()) {
                continue;
            }
            if is_on_host {
                OnHost::of(storage)?.clip(&layout, data, &clipping, decisions)?;
            } else {
                self.clip_of(storage, &layout, data, &clipping, decisions)?;
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
        let (mut report, mut strategy) = (Report::of_rows(self.ran(), Vec::new()), None);
        for piece in pieces.each(layout, clipping) {
            let Piece { is_on_host, layout, clipping, elements, .. } = piece?;
            let data = &mut data[elements];
            let of_piece = if is_on_host {
                OnHost::of(storage)?.run(&layout, data, &clipping, state)?
            } else {
                self.run_of(storage, &layout, data, &clipping, state)?
            };
            strategy = of_piece.ran.strategy.or(strategy);
            report.append(of_piece);
        }
        report.ran = Ran { strategy, ..pieces.ran(self, true) };
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
            let room = Room { elements, spans, row: u64::MAX, segments: u64::MAX };
            Pieces::within(&room, layout, granularity)
        };
        let on_device =
            |rows: &[Range<usize>]| Some(Pieces(rows.iter().cloned().map(Rows::OnDevice).collect()));
        let dense = Layout::dense(5, 10).unwrap();
        // A row takes twelve elements, because the next one begins at a multiple of four.
        assert_eq!(of(60, 5, &dense, Granularity::Row), None);
        assert_eq!(of(59, 5, &dense, Granularity::Row), on_device(&[0..4, 4..5]));
        assert_eq!(of(24, 5, &dense, Granularity::Row), on_device(&[0..2, 2..4, 4..5]));
        assert_eq!(of(60, 2, &dense, Granularity::Row), on_device(&[0..2, 2..4, 4..5]));
        // Rows that no buffer holds.
        let on_host = (0..5).map(Rows::OnHost).collect();
        assert_eq!(of(11, 5, &dense, Granularity::Row), Some(Pieces(on_host)));
        let long = Layout::ragged(&[0, 4, 13, 17, 21, 31, 40]).unwrap();
        let pieces = vec![
            Rows::OnDevice(0..1),
            Rows::OnHost(1),
            Rows::OnDevice(2..4),
            Rows::OnHost(4),
            Rows::OnHost(5),
        ];
        assert_eq!(of(8, 9, &long, Granularity::Row), Some(Pieces(pieces)));
        assert_eq!(
            of(8, 9, &Layout::dense(1, 9).unwrap(), Granularity::Row),
            Some(Pieces(vec![Rows::OnHost(0)]))
        );
        let ragged = Layout::ragged_layered(&[vec![1, 1], vec![], vec![9], vec![4]]).unwrap();
        assert_eq!(of(16, 9, &ragged, Granularity::Segment), on_device(&[0..2, 2..4]));
        assert_eq!(of(16, 9, &ragged, Granularity::Row), on_device(&[0..3, 3..4]));
        // Three segments and three rows.
        assert_eq!(of(99, 6, &ragged, Granularity::Segment), on_device(&[0..3, 3..4]));
        // Rows that are too large by other limits, in a batch that a buffer holds.
        let limited = |row, segments, layout: &Layout, granularity| {
            Pieces::within(&Room { elements: 99, spans: 99, row, segments }, layout, granularity)
        };
        assert_eq!(limited(12, u64::MAX, &dense, Granularity::Row), None);
        let on_host = (0..5).map(Rows::OnHost).collect();
        assert_eq!(limited(11, u64::MAX, &dense, Granularity::Row), Some(Pieces(on_host)));
        assert_eq!(limited(u64::MAX, 3, &ragged, Granularity::Segment), None);
        let pieces = vec![Rows::OnHost(0), Rows::OnDevice(1..4)];
        assert_eq!(limited(u64::MAX, 2, &ragged, Granularity::Segment), Some(Pieces(pieces)));
        assert_eq!(of(0, 0, &Layout::dense(0, 5).unwrap(), Granularity::Row), None);
        assert_eq!(of(0, 7, &Layout::dense(7, 0).unwrap(), Granularity::Row), None);
    }
}
