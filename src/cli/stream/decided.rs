//! What becomes of every row of a batch that has to be read for its norms first: the norms in a log, and a bound for each layer.

use std::borrow::Cow;
use std::ops::Range;

use byzclip::{
    Decision, Error, Granularity, Layout, NonFinite, Norm, NormClass, Norms, Report, State, threshold,
};

use super::Stream;
use super::piece::{Piece, most_spans, parts};
use crate::cli::failure::Failure;
use crate::cli::log::{self, Log};
use crate::cli::progress::Progress;
use crate::cli::shown::Shown;

/// Rows and layers that are reported together.
const REPORTED: usize = 1 << 14;

/// The norms of all rows, in logs, and the bounds. Where there are too many rows and layers to hold what is decided on them, each
/// piece is decided anew.
pub(super) struct Decided<'a> {
    stream: &'a Stream<'a>,
    row_norms: Log<Norm>,
    /// As many of each row as it has layers with bounds of their own.
    layer_norms: Log<Norm>,
    /// One for each of these layers, or one for all of a row; every row has the same.
    bounds: Vec<f32>,
    /// All decisions, where they are held.
    held: Vec<Decision>,
}

impl<'a> Decided<'a> {
    /// Reads the batch for its norms, and finds the bounds.
    pub(super) fn new(
        stream: &'a Stream<'a>,
        state: &mut State,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        let (batch, clipping) = (stream.batch, stream.clipping);
        let (all, layers) = (Shown::all(batch.layout.clients()), batch.bounded_layers(clipping.granularity));
        let mut decided = Self {
            stream,
            row_norms: Log::new(all, 1)?,
            layer_norms: Log::new(all, layers)?,
            bounds: Vec::new(),
            held: Vec::new(),
        };
        stream.each_norms(progress, |norms| {
            if clipping.non_finite == NonFinite::Error {
                refuse_non_finite(decided.row_norms.rows(), &norms)?;
            }
            decided.row_norms.append(norms.rows.len(), |row| [norms.rows[row]])?;
            let of_row = |row: usize| norms.segments[row * layers..][..layers].iter().copied();
            decided.layer_norms.append(norms.rows.len(), of_row)
        })?;
        decided.bounds = match clipping.threshold.looks_at_norms() {
            true => decided.bounds_from_norms(state)?,
            false => decided.given_bounds(state)?,
        };
        let (rows, groups) = (0..batch.layout.clients(), decided.groups());
        // As many as a window has bytes for: a decision takes less than what is known of a span while it is worked on.
        if rows.len().saturating_mul(groups.len()) <= 2 * most_spans(batch, stream.window) {
            decided.held = decided.decide(&rows, &groups)?.1;
        }
        Ok(decided)
    }

    /// Given bounds are the same for every row: one row is asked for, with norms that are not looked at.
    fn given_bounds(&self, state: &mut State) -> Result<Vec<f32>, Failure> {
        let (batch, clipping) = (self.stream.batch, self.stream.clipping);
        let layout = Piece { rows: 0..1, columns: 0..batch.layout.params() }.layout(batch)?;
        let segments = vec![Norm::OUT_OF_SCOPE; batch.bounded_layers(clipping.granularity)];
        let norms = Norms { rows: vec![Norm::OUT_OF_SCOPE], segments };
        Ok(threshold::bounds(&layout, &norms, clipping, state)?)
    }

    /// Bounds from norms, some groups at a time; the state moves on by a round.
    fn bounds_from_norms(&self, state: &mut State) -> Result<Vec<f32>, Failure> {
        let (batch, groups) = (self.stream.batch, self.groups());
        let clients = batch.layout.clients();
        let at_once = (most_spans(batch, self.stream.window) / clients.max(1)).max(1);
        // A long state is not held twice. It was checked with the clipping: each group has as many words.
        let mut words = std::mem::take(state).into_words();
        let (is_first_round, words_of_group) =
            (words.is_empty(), words.len().checked_div(groups.len()).unwrap_or(0));
        let mut bounds = Vec::with_capacity(groups.len());
        for some in parts(&groups, at_once) {
            let norms = self.norms(&(0..clients), &some)?;
            let place = some.start * words_of_group..some.end * words_of_group;
            let mut state_of_some = State::from_words(words[place.clone()].to_vec());
            let layout = without_lengths(clients, some.len())?;
            let found = threshold::bounds(&layout, &norms, self.stream.clipping, &mut state_of_some)?;
            // The first row's: all have the same.
            bounds.extend(found.into_iter().take(some.len()));
            let after = state_of_some.into_words();
            if is_first_round {
                words.reserve_exact(after.len() / some.len() * (groups.end - some.start));
                words.extend(after);
            } else {
                words[place].copy_from_slice(&after);
            }
        }
        *state = State::from_words(words);
        Ok(bounds)
    }

    /// What was decided on the rows or layers that a piece has elements of.
    pub(super) fn decisions(&self, piece: &Piece) -> Result<Cow<'_, [Decision]>, Failure> {
        let groups = self.groups();
        if !self.held.is_empty() {
            let of_rows = &self.held[piece.rows.start * groups.len()..piece.rows.end * groups.len()];
            return Ok(self.pick(piece, &groups, of_rows.into()));
        }
        if self.stream.clipping.granularity != Granularity::Segment {
            return Ok(self.decide(&piece.rows, &groups)?.1.into());
        }
        let layers = piece.layers(self.stream.batch);
        let (Some((first, _)), Some((last, _))) = (layers.first(), layers.last()) else {
            return Ok(Cow::default());
        };
        // Between them may be layers without elements.
        let between = *first..last + 1;
        let (_, decisions) = self.decide(&piece.rows, &between)?;
        Ok(self.pick(piece, &between, decisions.into()))
    }

    /// Of decisions on these groups of each of its rows, those on what a piece has elements of.
    fn pick<'b>(
        &self,
        piece: &Piece,
        groups: &Range<usize>,
        decisions: Cow<'b, [Decision]>,
    ) -> Cow<'b, [Decision]> {
        match self.stream.clipping.granularity {
            Granularity::Segment if !decisions.is_empty() => {
                piece.pick(self.stream.batch, groups, &decisions).into()
            }
            Granularity::Segment | Granularity::Row | Granularity::Coordinate => decisions,
        }
    }

    /// What happened to every row, some rows at a time.
    pub(super) fn reports(
        &self,
        mut take: impl FnMut(Report, Range<usize>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (ran, granularity) = (self.stream.backend.ran(), self.stream.clipping.granularity);
        let groups = self.groups();
        let at_once = (REPORTED / (1 + groups.len())).max(1);
        for rows in parts(&(0..self.stream.batch.layout.clients()), at_once) {
            let (norms, decisions) = self.decide(&rows, &groups)?;
            let layout = without_lengths(rows.len(), groups.len())?;
            take(Report::of_stages(ran.clone(), &layout, granularity, &norms, &decisions), rows)?;
        }
        Ok(())
    }

    /// The groups of spans that share a bound: all rows, or a layer of all of them each.
    fn groups(&self) -> Range<usize> {
        match self.stream.clipping.granularity {
            Granularity::Segment => 0..self.stream.batch.widths.len(),
            Granularity::Row | Granularity::Coordinate => 0..1,
        }
    }

    fn decide(&self, rows: &Range<usize>, groups: &Range<usize>) -> Result<(Norms, Vec<Decision>), Failure> {
        let norms = self.norms(rows, groups)?;
        let bounds: Vec<f32> = rows.clone().flat_map(|_| &self.bounds[groups.clone()]).copied().collect();
        let layout = without_lengths(rows.len(), groups.len())?;
        let decisions = threshold::decide_from_bounds(&layout, &norms, &bounds, self.stream.clipping)?;
        Ok((norms, decisions))
    }

    fn norms(&self, rows: &Range<usize>, groups: &Range<usize>) -> Result<Norms, Failure> {
        let what = || format!("the norms of rows {} to {}", rows.start, rows.end);
        let unreadable = |e| Failure::Failed(log::unreadable(&what(), &e));
        let segments = match self.stream.clipping.granularity {
            Granularity::Segment => self.layer_norms.part(rows, groups).map_err(unreadable)?,
            Granularity::Row | Granularity::Coordinate => Vec::new(),
        };
        Ok(Norms { rows: self.row_norms.part(rows, &(0..1)).map_err(unreadable)?, segments })
    }
}

/// Fails with the first row that holds NaN or Inf; `first` is the number of the first row of these.
fn refuse_non_finite(first: usize, norms: &Norms) -> Result<(), Failure> {
    match norms.rows.iter().position(|norm| norm.class() == NormClass::NonFinite) {
        Some(row) => Err(Error::NonFinite { row: first + row }.into()),
        None => Ok(()),
    }
}

/// A layout of so many rows with so many segments, where their lengths do not matter.
fn without_lengths(rows: usize, segments: usize) -> Result<Layout, Failure> {
    Ok(Layout::dense(rows, segments)?.layered(&vec![1; segments])?)
}
