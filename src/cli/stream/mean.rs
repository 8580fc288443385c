//! The mean of a batch in windows.
//!
//! Every coordinate needs what was decided on every row. A batch of one window is averaged at once; of a larger one norms
//! are found first, and then some coordinates of all rows are averaged at a time. Where there are so many rows that decisions on
//! all of them, or a coordinate of all of them, would not fit in memory, the coordinates are summed row by row instead, exactly, on
//! the host.

use std::ops::Range;

use byzclip::{BackendKind, Clipping, MeanSum, Report, State, Weights, threshold};

use super::{Decided, Piece, Stream, pass};
use crate::cli::batch_output::MeanOutput;
use crate::cli::elements::Elements;
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::cli::row_log::RowLog;
use crate::cli::shown::Shown;
use crate::cli::weights::{Counted, WeightsOf};

/// Bytes of a window for each row whose decision is held, which takes about twice as much with its norm and bound.
const WINDOW_OF_ROW: usize = 32;

/// Bytes of the sums of a coordinate.
const SUM_BYTES: usize = 160;

/// How a mean is found.
enum Way {
    /// All at once: the batch is one piece.
    Whole(Piece),
    /// Norms first, then some coordinates of all rows at a time.
    ByColumns,
    /// So many coordinates at a time, row by row, each time with the norms.
    ByRows(usize),
}

impl Stream<'_> {
    /// Bytes that a mean reads.
    pub(in crate::cli) fn mean_bytes(&self) -> u64 {
        let passes = match self.way() {
            Way::Whole(_) => 1,
            Way::ByColumns => 2,
            Way::ByRows(width) => self.batch.layout.params().div_ceil(width) as u64,
        };
        passes * self.batch.bytes()
    }

    /// The weighted mean of the clipped rows, to the output.
    pub(in crate::cli) fn mean(
        &self,
        weights: &WeightsOf,
        shown: Shown,
        state: &mut State,
        output: &mut MeanOutput,
        progress: &Progress,
    ) -> Result<(RowLog, Counted), Failure> {
        let log = RowLog::new(self.backend.ran(), self.batch, self.clipping.granularity, shown)?;
        let mut averaging =
            Averaging { stream: self, weights, output, progress, log, counted: Counted::default() };
        match self.way() {
            Way::Whole(piece) => averaging.whole(&piece, state)?,
            Way::ByColumns => averaging.by_columns(state)?,
            Way::ByRows(width) => averaging.by_rows(width)?,
        }
        Ok((averaging.log, averaging.counted))
    }

    fn way(&self) -> Way {
        let (layout, mut pieces) = (&self.batch.layout, self.rows());
        if pieces.len() == 1 {
            return Way::Whole(pieces.remove(0));
        }
        let is_held = layout.clients().saturating_mul(WINDOW_OF_ROW) <= self.window_bytes();
        // A threshold that looks at norms takes at most 2,097,152 rows, and no file system holds more rows that are longer than the
        // window is by default: decisions on all of them fit. Rows without elements have no pass over columns that could note them.
        if is_held
            || self.clipping.threshold.looks_at_norms()
            || layout.params() > self.window
            || layout.params() == 0
        {
            return Way::ByColumns;
        }
        Way::ByRows((self.window_bytes() / SUM_BYTES).max(1))
    }
}

/// A mean that is being found.
struct Averaging<'a> {
    stream: &'a Stream<'a>,
    weights: &'a WeightsOf,
    output: &'a mut MeanOutput,
    progress: &'a Progress,
    log: RowLog,
    counted: Counted,
}

impl Averaging<'_> {
    /// Notes what happened to the next rows, and what of them is in the mean.
    fn note(&mut self, report: Report, weights: &Weights) -> Result<(), Failure> {
        self.counted.add(weights, &report)?;
        self.log.append(report)
    }

    fn whole(&mut self, piece: &Piece, state: &mut State) -> Result<(), Failure> {
        let &mut Self { stream, progress, .. } = self;
        let (batch, clipping) = (stream.batch, stream.clipping_of(piece)?);
        let clients = batch.layout.clients();
        let weights = self.weights.read()?.next(clients)?;
        let (mut report, mut mean) = (None, Vec::new());
        let work = |_: &Piece, elements: &mut Elements| {
            let done = elements.run_mean_with(stream.backend, &batch.layout, &clipping, &weights, state)?;
            mean = done.0;
            report = Some(done.1);
            Ok(())
        };
        pass("averaging", batch, std::slice::from_ref(piece), progress, work, |_, _, ()| Ok(()))?;
        self.output.write(0, &mean)?;
        report.map_or(Ok(()), |report| self.note(report, &weights))
    }

    fn by_columns(&mut self, state: &mut State) -> Result<(), Failure> {
        let &mut Self { stream, progress, .. } = self;
        let batch = stream.batch;
        let weights = self.weights.read()?.next(batch.layout.clients())?;
        let decided = Decided::new(stream, state, progress)?;
        let work = |piece: &Piece, elements: &mut Elements| {
            let of_piece = decided.decisions(piece)?;
            let (layout, clipping) = (piece.layout(batch)?, stream.clipping_of(piece)?);
            Ok(elements.mean(stream.backend, &layout, &clipping, &of_piece, &weights)?)
        };
        let output = &mut *self.output;
        let write = |piece: &Piece, _: &Elements, mean: Vec<f32>| output.write(piece.columns.start, &mean);
        pass("averaging", batch, &Piece::by_columns(batch, stream.window), progress, work, write)?;
        decided.reports(|report, rows| {
            let of_rows = match &weights {
                Weights::PerRow(weights) => Weights::PerRow(weights[rows].to_vec()),
                equal => equal.clone(),
            };
            self.note(report, &of_rows)
        })
    }

    fn by_rows(&mut self, width: usize) -> Result<(), Failure> {
        let params = self.stream.batch.layout.params();
        for start in (0..params).step_by(width) {
            let columns = start..params.min(start + width);
            let mean = self.mean_of(&columns)?;
            self.output.write(columns.start, &mean)?;
        }
        if self.log.ran.backend == BackendKind::Gpu {
            self.log.ran.why.push_str("; the mean of so many rows is summed on the host");
        }
        Ok(())
    }

    /// The mean of some coordinates, in a pass over whole rows, because their norms are needed; the first of these passes notes them.
    fn mean_of(&mut self, columns: &Range<usize>) -> Result<Vec<f32>, Failure> {
        let &mut Self { stream, progress, .. } = self;
        let (batch, backend, pieces) = (stream.batch, stream.backend, stream.rows());
        let mut weights = self.weights.read()?;
        let mut sum = MeanSum::new(columns.len());
        let work = |piece: &Piece, elements: &mut Elements| {
            let (layout, clipping) = (piece.layout(batch)?, stream.clipping_of(piece)?);
            let norms = elements.norms(backend, &layout, &clipping)?;
            let decisions = threshold::decide(&layout, &norms, &clipping, &mut State::default());
            let decisions = decisions.map_err(|error| piece.error(error))?;
            let weights = weights.next(piece.rows.len())?;
            let part = Piece { rows: 0..piece.rows.len(), columns: columns.clone() };
            let of_part = match batch.bounded_layers(clipping.granularity) {
                0 => decisions.clone(),
                layers => part.pick(batch, &(0..layers), &decisions),
            };
            let of_columns = Clipping { center: stream.center_of(columns)?, ..clipping.clone() };
            let layout_of_part = part.layout_within(batch)?;
            elements.add_to(&mut sum, &layout_of_part, columns.start, &of_columns, &of_part, &weights)?;
            if columns.start == 0 {
                let report =
                    Report::of_stages(backend.ran(), &layout, clipping.granularity, &norms, &decisions);
                self.note(report, &weights)?;
            }
            Ok(())
        };
        pass("averaging", batch, &pieces, progress, work, |_, _, ()| Ok(()))?;
        let center = stream.center_of(columns)?;
        Ok(sum.mean(&Clipping { center, ..stream.clipping.clone() })?)
    }
}
