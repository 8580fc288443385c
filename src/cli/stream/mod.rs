//! Batches of any size: norms, clipping and mean over a window of a batch at a time.
//!
//! A bound that is known clips each window as soon as it is read. Any other needs all norms first, and so does
//! a row that is longer than a window: the batch is read once for the norms and once more to be clipped.

mod piece;
mod pipeline;

use byzclip::{
    Backend, Clipping, Error, Granularity, Norm, NormSum, Norms, Report, State, Threshold, Weights,
};

pub(super) use self::piece::Piece;
use self::pipeline::pass;
use super::batch_file::{BatchFile, Output};
use super::elements::Elements;
use super::failure::Failure;
use super::progress::Progress;

/// The window by default: three of them, and what a device makes of one, stay well below 1 GiB.
pub(super) const WINDOW: &str = "96M";

/// A batch in files, and what is done with it.
pub(super) struct Stream<'a> {
    pub batch: &'a BatchFile,
    pub backend: &'a dyn Backend,
    pub clipping: &'a Clipping,
    /// Elements that are read at a time.
    pub window: usize,
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        batch: &'a BatchFile,
        backend: &'a dyn Backend,
        clipping: &'a Clipping,
        window: usize,
    ) -> Self {
        Self { batch, backend, clipping, window: (window / batch.dtype.bytes()).max(1) }
    }

    /// Bytes that clipping reads.
    pub(super) fn clip_bytes(&self) -> u64 {
        if self.is_one_pass() { self.batch.bytes() } else { 2 * self.batch.bytes() }
    }

    /// Bytes that a mean reads.
    pub(super) fn mean_bytes(&self) -> u64 {
        if self.rows().len() == 1 { self.batch.bytes() } else { 2 * self.batch.bytes() }
    }

    /// The norm of every row.
    pub(super) fn norms(&self, progress: &Progress) -> Result<Norms, Failure> {
        let (batch, clipping, pieces) = (self.batch, self.clipping, self.rows());
        let mut norms = Norms::default();
        let mut long_row = LongRow::default();
        pass("norms", batch, &pieces, None, progress, |piece, elements| {
            if piece.is_full(batch) {
                let of_piece = piece.clipping(batch, clipping)?;
                let more = elements.norms(self.backend, &piece.layout(batch)?, &of_piece)?;
                norms.rows.extend(more.rows);
                norms.segments.extend(more.segments);
                return Ok(());
            }
            if piece.columns.start == 0 {
                long_row = LongRow::new(batch, clipping, piece.rows.start)?;
            }
            long_row.add(batch, clipping, piece, elements);
            if piece.columns.end == batch.layout.params() {
                long_row.append(clipping.granularity, &mut norms);
            }
            Ok(())
        })?;
        Ok(norms)
    }

    /// Every row clipped, to the output.
    pub(super) fn clip(
        &self,
        state: &mut State,
        output: &mut Output,
        progress: &Progress,
    ) -> Result<Report, Failure> {
        let (batch, backend, pieces) = (self.batch, self.backend, self.rows());
        if !self.is_one_pass() {
            let norms = self.norms(progress)?;
            let decisions = backend.threshold(&batch.layout, &norms, self.clipping, state)?;
            pass("clipping", batch, &pieces, Some(output), progress, |piece, elements| {
                let of_piece = piece.decisions(batch, self.clipping.granularity, &decisions);
                let clipping = piece.clipping(batch, self.clipping)?;
                Ok(elements.clip(backend, &piece.layout(batch)?, &clipping, &of_piece)?)
            })?;
            return Ok(self.report(&norms, &decisions));
        }
        let mut report: Option<Report> = None;
        pass("clipping", batch, &pieces, Some(output), progress, |piece, elements| {
            let clipping = piece.clipping(batch, self.clipping)?;
            let of_piece = elements.run_with(backend, &piece.layout(batch)?, &clipping, state);
            let of_piece = of_piece.map_err(|error| match error {
                Error::NonFinite { row } => Error::NonFinite { row: piece.rows.start + row },
                other => other,
            })?;
            match &mut report {
                Some(report) => report.append(of_piece),
                None => report = Some(of_piece),
            }
            Ok(())
        })?;
        Ok(report.unwrap_or_else(|| self.report(&Norms::default(), &[])))
    }

    /// The weighted mean of the clipped rows, `[params]`.
    pub(super) fn mean(
        &self,
        weights: &Weights,
        state: &mut State,
        progress: &Progress,
    ) -> Result<(Vec<f32>, Report), Failure> {
        let (batch, backend) = (self.batch, self.backend);
        if let [whole] = &self.rows()[..] {
            let mut done = None;
            pass("averaging", batch, std::slice::from_ref(whole), None, progress, |_, elements| {
                done = Some(elements.run_mean_with(backend, &batch.layout, self.clipping, weights, state)?);
                Ok(())
            })?;
            return Ok(done.unwrap_or_else(|| (Vec::new(), self.report(&Norms::default(), &[]))));
        }
        let norms = self.norms(progress)?;
        let decisions = backend.threshold(&batch.layout, &norms, self.clipping, state)?;
        let mut mean = Vec::with_capacity(batch.layout.params());
        let pieces = Piece::by_columns(batch, self.window);
        pass("averaging", batch, &pieces, None, progress, |piece, elements| {
            let of_piece = piece.decisions(batch, self.clipping.granularity, &decisions);
            let clipping = piece.clipping(batch, self.clipping)?;
            mean.extend(elements.mean(backend, &piece.layout(batch)?, &clipping, &of_piece, weights)?);
            Ok(())
        })?;
        Ok((mean, self.report(&norms, &decisions)))
    }

    fn rows(&self) -> Vec<Piece> {
        Piece::by_rows(self.batch, self.window)
    }

    /// Whether each piece is a batch of its own: because bounds do not come from norms, or it is the only one.
    fn is_one_pass(&self) -> bool {
        let given = matches!(
            self.clipping.threshold,
            Threshold::Fixed(_) | Threshold::SplitEqual(_) | Threshold::SplitBySize(_)
        );
        self.batch.layout.params() <= self.window && (given || self.rows().len() == 1)
    }

    fn report(&self, norms: &Norms, decisions: &[byzclip::Decision]) -> Report {
        Report::of_stages(self.backend.ran(), &self.batch.layout, self.clipping.granularity, norms, decisions)
    }
}

/// The norms of a row that comes in pieces: of the row, and of each layer. They are summed exactly, on the host,
/// whatever the backend: a rounded norm of a part is of no use for that of the whole.
#[derive(Default)]
struct LongRow {
    in_scope: bool,
    layers: Vec<NormSum>,
}

impl LongRow {
    fn new(batch: &BatchFile, clipping: &Clipping, row: usize) -> Result<Self, Failure> {
        let in_scope = clipping.scope.mask(batch.layout.clients())?[row];
        Ok(Self { in_scope, layers: vec![NormSum::default(); batch.widths.len()] })
    }

    fn add(&mut self, batch: &BatchFile, clipping: &Clipping, piece: &Piece, elements: &Elements) {
        if !self.in_scope {
            return;
        }
        let values = elements.values();
        for (layer, columns) in piece.layers(batch) {
            let part = &values[columns.start - piece.columns.start..columns.end - piece.columns.start];
            match &clipping.center {
                Some(center) => self.layers[layer].add_differences(part, &center[columns]),
                None => self.layers[layer].add(part),
            }
        }
    }

    fn append(&self, granularity: Granularity, norms: &mut Norms) {
        let norm = |sum: &NormSum| if self.in_scope { sum.norm(granularity) } else { Norm::OUT_OF_SCOPE };
        let mut whole = NormSum::default();
        self.layers.iter().for_each(|layer| whole.join(layer));
        norms.rows.push(norm(&whole));
        if granularity == Granularity::Segment {
            norms.segments.extend(self.layers.iter().map(norm));
        }
    }
}
