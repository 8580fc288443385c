//! Batches of any size: norms, clipping and mean over a window of a batch at a time.
//!
//! A bound that is known clips each window as soon as it is read. Any other needs all norms first, and so does
//! a row that is longer than a window: the batch is read once for the norms and once more to be clipped.

mod decided;
mod long_row;
mod mean;
mod piece;
mod pipeline;

use std::ops::Range;
use std::sync::Arc;

use byzclip::{Backend, Clipping, Norms, State};

use self::decided::Decided;
use self::long_row::LongRow;
pub(super) use self::piece::Piece;
use self::pipeline::pass;
use super::batch_file::BatchFile;
use super::batch_output::Output;
use super::center::Center;
use super::elements::Elements;
use super::failure::Failure;
use super::options::WindowArgs;
use super::progress::Progress;
use super::row_log::RowLog;
use super::scope;
use super::shown::Shown;

/// The window by default: three of them, and what a device makes of one, stay well below 1 GiB.
pub(super) const WINDOW: &str = "96M";

/// A batch in files, and what is done with it.
pub(super) struct Stream<'a> {
    pub batch: &'a BatchFile,
    pub backend: &'a dyn Backend,
    /// How, but for the centre and the scope.
    pub clipping: &'a Clipping,
    /// The rows that may be clipped.
    pub scope: &'a scope::Rows,
    pub center: Option<&'a Center>,
    /// Elements that are read at a time.
    pub window: usize,
}

impl<'a> Stream<'a> {
    pub(super) fn without_center(
        batch: &'a BatchFile,
        backend: &'a dyn Backend,
        clipping: &'a Clipping,
        window: &WindowArgs,
    ) -> Self {
        Self {
            batch,
            backend,
            clipping,
            scope: &scope::Rows::All,
            center: None,
            window: window.elements(batch),
        }
    }

    /// Bytes that clipping reads.
    pub(super) fn clip_bytes(&self) -> u64 {
        if self.is_one_pass() { self.batch.bytes() } else { 2 * self.batch.bytes() }
    }

    /// The norm of every row.
    pub(super) fn norms(&self, progress: &Progress) -> Result<Norms, Failure> {
        let mut norms = Norms { rows: Vec::with_capacity(self.batch.layout.clients()), segments: Vec::new() };
        self.each_norms(progress, |more| {
            norms.rows.extend(more.rows);
            norms.segments.extend(more.segments);
            Ok(())
        })?;
        Ok(norms)
    }

    /// The norms of all rows, some rows at a time, each handed on as soon as it is found.
    pub(super) fn each_norms(
        &self,
        progress: &Progress,
        mut take: impl FnMut(Norms) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (batch, clipping) = (self.batch, self.clipping);
        let mut long_row = LongRow::default();
        let work = |piece: &Piece, elements: &mut Elements| {
            if piece.is_full(batch) {
                let of_piece = self.clipping_of(piece)?;
                return take(elements.norms(self.backend, &piece.layout(batch)?, &of_piece)?);
            }
            if piece.columns.start == 0 {
                long_row = LongRow::new(batch, self.scope.contains(piece.rows.start));
            }
            if long_row.in_scope {
                let center = self.center_of(&piece.columns)?;
                long_row.add(batch, piece, elements, center.as_deref())?;
            }
            if piece.columns.end == batch.layout.params() {
                return take(long_row.norms(clipping.granularity));
            }
            Ok(())
        };
        pass("norms", batch, &self.rows(), progress, work, |_, _, ()| Ok(()))
    }

    /// Every row clipped, to the output.
    pub(super) fn clip(
        &self,
        shown: Shown,
        state: &mut State,
        output: &mut Output,
        progress: &Progress,
    ) -> Result<RowLog, Failure> {
        let (batch, backend, pieces) = (self.batch, self.backend, self.rows());
        let mut log = RowLog::new(backend.ran(), batch, self.clipping.granularity, shown)?;
        let write = |piece: &Piece, elements: &Elements, ()| output.write(batch, piece, elements);
        if self.is_one_pass() {
            let work = |piece: &Piece, elements: &mut Elements| {
                let (layout, clipping) = (piece.layout(batch)?, self.clipping_of(piece)?);
                let report = elements.run_with(backend, &layout, &clipping, state);
                log.append(report.map_err(|error| piece.error(error))?)
            };
            pass("clipping", batch, &pieces, progress, work, write)?;
            return Ok(log);
        }
        let decided = Decided::new(self, state, progress)?;
        let work = |piece: &Piece, elements: &mut Elements| {
            let of_piece = decided.decisions(piece)?;
            if !of_piece.iter().any(|decision| decision.status.is_written()) {
                return Ok(());
            }
            let (layout, clipping) = (piece.layout(batch)?, self.clipping_of(piece)?);
            Ok(elements.clip(backend, &layout, &clipping, &of_piece)?)
        };
        pass("clipping", batch, &pieces, progress, work, write)?;
        decided.reports(|report, _| log.append(report))?;
        Ok(log)
    }

    /// Fails where a file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        self.batch.check_unchanged()?;
        self.center.map_or(Ok(()), Center::check_unchanged)
    }

    fn rows(&self) -> Vec<Piece> {
        Piece::by_rows(self.batch, self.window)
    }

    /// Bytes of a window.
    const fn window_bytes(&self) -> usize {
        self.window.saturating_mul(self.batch.dtype.bytes())
    }

    /// Whether each piece is a batch of its own: because bounds do not come from norms, or it is the only one.
    fn is_one_pass(&self) -> bool {
        self.batch.layout.params() <= self.window
            && (!self.clipping.threshold.looks_at_norms() || self.rows().len() == 1)
    }

    /// The same clipping for the rows and columns of a piece alone; the threshold stays as it is.
    fn clipping_of(&self, piece: &Piece) -> Result<Clipping, Failure> {
        let (scope, center) = (self.scope.of(&piece.rows), self.center_of(&piece.columns)?);
        Ok(Clipping { scope, center, ..self.clipping.clone() })
    }

    /// These columns of the centre, where there is one.
    fn center_of(&self, columns: &Range<usize>) -> Result<Option<Arc<[f32]>>, Failure> {
        self.center.map(|center| center.of(columns)).transpose()
    }
}
