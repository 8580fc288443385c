//! What becomes of every row of a batch that has to be read for its norms first: a bound for each layer, and the norms in a log.

use std::ops::Range;

use byzclip::{
    Decision, Error, Granularity, Layout, NonFinite, Norm, NormClass, Norms, Report, State, threshold,
};

use super::Stream;
use super::piece::{Piece, most_spans, parts};
use crate::cli::failure::Failure;
use crate::cli::log::{self, Log, Shown};
use crate::cli::progress::Progress;

/// All norms and bounds, from which what was decided on a piece is found when it is its turn: a batch may have more rows and layers
/// than memory has room for.
pub(super) struct Decided<'a> {
    stream: &'a Stream<'a>,
    rows: Log<Norm>,
    /// As many of each row as it has layers with bounds of their own.
    layers: Log<Norm>,
    /// One for each of these layers, or one for all of a row; every row has the same.
    bounds: Vec<f32>,
}

impl<'a> Decided<'a> {
    /// Reads the batch for its norms, and finds the bounds.
    pub(super) fn new(
        stream: &'a Stream<'a>,
        state: &mut State,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        let (batch, granularity) = (stream.batch, stream.clipping.granularity);
        let all = Shown::all(batch.layout.clients());
        let layers = if granularity == Granularity::Segment { batch.widths.len() } else { 0 };
        let mut decided =
            Self { stream, rows: Log::new(all, 1)?, layers: Log::new(all, layers)?, bounds: Vec::new() };
        let mut first = 0;
        stream.each_norms(progress, |norms| {
            stream.refuse_non_finite(first, &norms)?;
            first += norms.rows.len();
            decided.rows.append(norms.rows.len(), |row| [norms.rows[row]])?;
            let of_row = |row: usize| norms.segments[row * layers..][..layers].iter().copied();
            decided.layers.append(norms.rows.len(), of_row)
        })?;
        decided.bounds =
            if stream.has_given_bounds() { decided.given(state)? } else { decided.computed(state)? };
        Ok(decided)
    }

    /// Bounds that norms do not matter for are those of any row.
    fn given(&self, state: &mut State) -> Result<Vec<f32>, Failure> {
        let (batch, clipping) = (self.stream.batch, self.stream.clipping);
        let layout = Piece { rows: 0..1, columns: 0..batch.layout.params() }.layout(batch)?;
        let segments = match clipping.granularity {
            Granularity::Segment => vec![Norm::OUT_OF_SCOPE; layout.segment_count()],
            Granularity::Row | Granularity::Coordinate => Vec::new(),
        };
        let norms = Norms { rows: vec![Norm::OUT_OF_SCOPE], segments };
        Ok(threshold::bounds(&layout, &norms, clipping, state)?)
    }

    /// Bounds from norms, some layers at a time; the state moves on by a round.
    fn computed(&self, state: &mut State) -> Result<Vec<f32>, Failure> {
        let (batch, spans) = (self.stream.batch, self.spans());
        let clients = batch.layout.clients();
        let at_once = (most_spans(batch, self.stream.window) / clients.max(1)).max(1);
        let (mut bounds, mut words) = (Vec::with_capacity(spans.len()), Vec::new());
        let words_of_one = state.words().len().checked_div(spans.len()).unwrap_or(0);
        for some in parts(&spans, at_once) {
            let norms = self.norms(&(0..clients), &some)?;
            let of_some = &state.words()[some.start * words_of_one..some.end * words_of_one];
            let mut of_some = State::from_words(of_some.to_vec());
            let layout = alone(clients, some.len())?;
            let found = threshold::bounds(&layout, &norms, self.stream.clipping, &mut of_some)?;
            // Without rows no one asks for a bound.
            bounds.extend((0..some.len()).map(|span| found.get(span).copied().unwrap_or(f32::INFINITY)));
            let of_some = of_some.into_words();
            words.reserve_exact(of_some.len() / some.len() * (spans.end - some.start));
            words.extend(of_some);
        }
        *state = State::from_words(words);
        Ok(bounds)
    }

    /// What was decided on the rows or layers that a piece has elements of.
    pub(super) fn decisions(&self, piece: &Piece) -> Result<Vec<Decision>, Failure> {
        let batch = self.stream.batch;
        if self.stream.clipping.granularity != Granularity::Segment || piece.is_full(batch) {
            return Ok(self.of_spans(&piece.rows, &self.spans())?.1);
        }
        let layers: Vec<usize> = piece.layers(batch).into_iter().map(|(layer, _)| layer).collect();
        let (Some(first), Some(last)) = (layers.first(), layers.last()) else { return Ok(Vec::new()) };
        // Between them may be layers without elements.
        let between = *first..last + 1;
        let (_, decisions) = self.of_spans(&piece.rows, &between)?;
        let rows = decisions.chunks_exact(between.len());
        Ok(rows.flat_map(|row| layers.iter().map(|layer| row[layer - between.start])).collect())
    }

    /// What happened to every row, some rows at a time.
    pub(super) fn reports(
        &self,
        mut take: impl FnMut(Report, Range<usize>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (ran, granularity) = (self.stream.backend.ran(), self.stream.clipping.granularity);
        for rows in Piece::of_some_rows(self.stream.batch).map(|piece| piece.rows) {
            let (norms, decisions) = self.of_spans(&rows, &self.spans())?;
            let layout = alone(rows.len(), self.spans().len())?;
            take(Report::of_stages(ran.clone(), &layout, granularity, &norms, &decisions), rows)?;
        }
        Ok(())
    }

    /// The layers of a row that have bounds of their own, or the row as one.
    fn spans(&self) -> Range<usize> {
        match self.stream.clipping.granularity {
            Granularity::Segment => 0..self.stream.batch.widths.len(),
            Granularity::Row | Granularity::Coordinate => 0..1,
        }
    }

    fn of_spans(&self, rows: &Range<usize>, spans: &Range<usize>) -> Result<(Norms, Vec<Decision>), Failure> {
        let norms = self.norms(rows, spans)?;
        let bounds: Vec<f32> = rows.clone().flat_map(|_| &self.bounds[spans.clone()]).copied().collect();
        let layout = alone(rows.len(), spans.len())?;
        let decisions = threshold::decide_with(&layout, &norms, &bounds, self.stream.clipping)?;
        Ok((norms, decisions))
    }

    fn norms(&self, rows: &Range<usize>, spans: &Range<usize>) -> Result<Norms, Failure> {
        let unreadable = |e| Failure::Failed(log::unreadable(rows.start, &e));
        let segments = match self.stream.clipping.granularity {
            Granularity::Segment => self.layers.part(rows, spans).map_err(unreadable)?,
            Granularity::Row | Granularity::Coordinate => Vec::new(),
        };
        Ok(Norms { rows: self.rows.part(rows, &(0..1)).map_err(unreadable)?, segments })
    }
}

/// A layout of so many rows with so many segments, for what their lengths do not matter.
fn alone(rows: usize, segments: usize) -> Result<Layout, Failure> {
    Ok(Layout::dense(rows, segments)?.layered(&vec![1; segments])?)
}

impl Stream<'_> {
    /// Fails, where it should, with the first row that holds NaN or Inf; `first` is the number of the first row of these.
    fn refuse_non_finite(&self, first: usize, norms: &Norms) -> Result<(), Failure> {
        let is_refused = |norm: &Norm| norm.class() == NormClass::NonFinite;
        match norms.rows.iter().position(is_refused) {
            Some(row) if self.clipping.non_finite == NonFinite::Error => {
                Err(Error::NonFinite { row: first + row }.into())
            }
            _ => Ok(()),
        }
    }
}
