//! Batches of any size: norms, clipping and mean over a window of a batch at a time.
//!
//! A bound that is known clips each window as soon as it is read. Any other needs all norms first, and so does
//! a row that is longer than a window: the batch is read once for the norms and once more to be clipped.

mod piece;
mod pipeline;

use byzclip::{
    Backend, Clipping, Decision, Error, Granularity, Norm, NormSum, Norms, Reference, Report, Scope, State,
    Threshold, Weights,
};

pub(super) use self::piece::Piece;
use self::pipeline::pass;
use super::batch_file::BatchFile;
use super::batch_output::{MeanOutput, Output};
use super::center::Center;
use super::elements::Elements;
use super::failure::Failure;
use super::options::WindowArgs;
use super::progress::Progress;

/// The window by default: three of them, and what a device makes of one, stay well below 1 GiB.
pub(super) const WINDOW: &str = "96M";

/// A batch in files, and what is done with it.
pub(super) struct Stream<'a> {
    pub batch: &'a BatchFile,
    pub backend: &'a dyn Backend,
    /// How, but for the centre.
    pub clipping: &'a Clipping,
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
        Self { batch, backend, clipping, center: None, window: window.elements(batch) }
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
        let mut norms = Norms { rows: Vec::with_capacity(batch.layout.clients()), segments: Vec::new() };
        let mut long_row = LongRow::default();
        let work = |piece: &Piece, elements: &mut Elements| {
            if piece.is_full(batch) {
                let of_piece = self.clipping_of(piece)?;
                let more = elements.norms(self.backend, &piece.layout(batch)?, &of_piece)?;
                norms.rows.extend(more.rows);
                norms.segments.extend(more.segments);
                return Ok(());
            }
            if piece.columns.start == 0 {
                long_row = LongRow::new(batch, clipping, piece.rows.start)?;
            }
            if long_row.in_scope {
                let center = self.center.map(|center| center.of(&piece.columns)).transpose()?;
                long_row.add(batch, piece, elements, center.as_deref());
            }
            if piece.columns.end == batch.layout.params() {
                long_row.append(clipping.granularity, &mut norms);
            }
            Ok(())
        };
        pass("norms", batch, &pieces, progress, work, |_, _, ()| Ok(()))?;
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
        let write = |piece: &Piece, elements: &Elements, ()| output.write(batch, piece, elements);
        if !self.is_one_pass() {
            let norms = self.norms(progress)?;
            let decisions = self.decide(&norms, state)?;
            let work = |piece: &Piece, elements: &mut Elements| {
                let of_piece = piece.decisions(batch, self.clipping.granularity, &decisions);
                if !of_piece.iter().any(|decision| decision.status.is_written()) {
                    return Ok(());
                }
                let (layout, clipping) = (piece.layout(batch)?, self.clipping_of(piece)?);
                Ok(elements.clip(backend, &layout, &clipping, &of_piece)?)
            };
            pass("clipping", batch, &pieces, progress, work, write)?;
            return Ok(self.report(&norms, &decisions));
        }
        let mut report: Option<Report> = None;
        let work = |piece: &Piece, elements: &mut Elements| {
            let (layout, clipping) = (piece.layout(batch)?, self.clipping_of(piece)?);
            let of_piece = elements.run_with(backend, &layout, &clipping, state);
            let of_piece = of_piece.map_err(|error| match error {
                Error::NonFinite { row } => Error::NonFinite { row: piece.rows.start + row },
                other => other,
            })?;
            match &mut report {
                Some(report) => report.append(of_piece),
                None => {
                    let first = report.insert(of_piece);
                    first.rows.reserve_exact(batch.layout.clients() - first.rows.len());
                }
            }
            Ok(())
        };
        pass("clipping", batch, &pieces, progress, work, write)?;
        Ok(report.unwrap_or_else(|| self.report(&Norms::default(), &[])))
    }

    /// The weighted mean of the clipped rows, to the output.
    pub(super) fn mean(
        &self,
        weights: &Weights,
        state: &mut State,
        output: &mut MeanOutput,
        progress: &Progress,
    ) -> Result<Report, Failure> {
        let (batch, backend) = (self.batch, self.backend);
        let write = |piece: &Piece, _: &Elements, mean: Vec<f32>| output.write(piece.columns.start, &mean);
        if let [whole] = &self.rows()[..] {
            let mut done = None;
            let work = |piece: &Piece, elements: &mut Elements| {
                let clipping = self.clipping_of(piece)?;
                let (mean, report) =
                    elements.run_mean_with(backend, &batch.layout, &clipping, weights, state)?;
                done = Some(report);
                Ok(mean)
            };
            pass("averaging", batch, std::slice::from_ref(whole), progress, work, write)?;
            return Ok(done.unwrap_or_else(|| self.report(&Norms::default(), &[])));
        }
        let norms = self.norms(progress)?;
        let decisions = self.decide(&norms, state)?;
        let work = |piece: &Piece, elements: &mut Elements| {
            let of_piece = piece.decisions(batch, self.clipping.granularity, &decisions);
            let (layout, clipping) = (piece.layout(batch)?, self.clipping_of(piece)?);
            Ok(elements.mean(backend, &layout, &clipping, &of_piece, weights)?)
        };
        pass("averaging", batch, &Piece::by_columns(batch, self.window), progress, work, write)?;
        Ok(self.report(&norms, &decisions))
    }

    /// Fails where a file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        self.batch.check_unchanged()?;
        self.center.map_or(Ok(()), Center::check_unchanged)
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

    /// The same clipping for the rows and columns of a piece alone; the threshold stays as it is.
    fn clipping_of(&self, piece: &Piece) -> Result<Clipping, Failure> {
        let scope = match &self.clipping.scope {
            Scope::All => Scope::All,
            scope => Scope::Mask(scope.mask(self.batch.layout.clients())?[piece.rows.clone()].to_vec()),
        };
        let center = self.center.map(|center| center.of(&piece.columns)).transpose()?;
        Ok(Clipping { scope, center, ..self.clipping.clone() })
    }

    /// What becomes of every row, by the specification: norms are on the host, and a device would take room for the whole batch to decide.
    fn decide(&self, norms: &Norms, state: &mut State) -> Result<Vec<Decision>, Failure> {
        Ok(Reference.threshold(&self.batch.layout, norms, self.clipping, state)?)
    }

    fn report(&self, norms: &Norms, decisions: &[Decision]) -> Report {
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

    /// `center` is that of the piece's columns.
    fn add(&mut self, batch: &BatchFile, piece: &Piece, elements: &Elements, center: Option<&[f32]>) {
        let values = elements.values();
        for (layer, columns) in piece.layers(batch) {
            let columns = columns.start - piece.columns.start..columns.end - piece.columns.start;
            match center {
                Some(center) => {
                    self.layers[layer].add_differences(&values[columns.clone()], &center[columns])
                }
                None => self.layers[layer].add(&values[columns]),
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
