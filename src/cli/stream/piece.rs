//! Pieces of a batch: runs of whole rows, or the same columns of some rows.

use std::ops::Range;

use byzclip::{Decision, Error, Layout};

use crate::cli::batch_file::{BatchFile, Kind};
use crate::cli::failure::Failure;

/// Bytes that norm, bound, decision and report of a row or layer take while it is worked on.
const KNOWN_OF_SPAN: usize = 64;

/// So many rows and layers are worked on together, however small the window is.
const FEW_SPANS: usize = 1 << 10;

/// A rectangle of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Piece {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Piece {
    /// All of a batch.
    fn whole(batch: &BatchFile) -> Self {
        Self { rows: 0..batch.layout.clients(), columns: 0..batch.layout.params() }
    }

    /// A batch in file order: as many whole rows at a time as a window holds, but not so many short ones that what is known of
    /// them and their layers takes more memory than it, or parts of rows that it does not hold. At least one piece, so that a batch without
    /// rows is worked on too.
    pub(super) fn by_rows(batch: &BatchFile, window: usize) -> Vec<Self> {
        let Self { rows, columns } = Self::whole(batch);
        if columns.len() <= window {
            let height = window.checked_div(columns.len()).unwrap_or(rows.len());
            let most = most_spans(batch, window) / (1 + batch.layers.len());
            let height = height.min(most).max(1);
            let pieces: Vec<Self> =
                parts(&rows, height).map(|rows| Self { rows, columns: columns.clone() }).collect();
            return if pieces.is_empty() { vec![Self { rows, columns }] } else { pieces };
        }
        rows.flat_map(|row| parts(&columns, window).map(move |columns| Self { rows: row..row + 1, columns }))
            .collect()
    }

    /// A batch by columns: as many of all rows at a time as a window holds, but not so many short layers that what is known of
    /// them takes more memory than it.
    pub(super) fn by_columns(batch: &BatchFile, window: usize) -> Vec<Self> {
        let rows = Self::whole(batch).rows;
        let width = (window / rows.len().max(1)).max(1);
        let most_layers = (most_spans(batch, window) / rows.len().max(1)).max(1);
        let mut begin = 0;
        let runs_of_layers = batch.widths.chunks(most_layers).map(|widths| {
            let columns = begin..begin + widths.iter().sum::<usize>();
            begin = columns.end;
            columns
        });
        runs_of_layers
            .flat_map(|columns| parts(&columns, width))
            .map(|columns| Self { rows: rows.clone(), columns })
            .collect()
    }

    /// The number of its elements.
    pub(in crate::cli) fn elements(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Whether it has every column.
    pub(in crate::cli) fn is_full(&self, batch: &BatchFile) -> bool {
        self.columns == (0..batch.layout.params())
    }

    /// The layers that it has elements of, each with those columns of it.
    pub(in crate::cli) fn layers(&self, batch: &BatchFile) -> Vec<(usize, Range<usize>)> {
        let mut end = 0;
        let columns = batch.widths.iter().map(|width| {
            end += width;
            (end - width).max(self.columns.start)..end.min(self.columns.end)
        });
        let columns = columns.enumerate();
        if self.is_full(batch) {
            return columns.collect();
        }
        columns.filter(|(_, columns)| !columns.is_empty()).collect()
    }

    /// Its layout in memory, where it lies alone.
    pub(super) fn layout(&self, batch: &BatchFile) -> Result<Layout, Failure> {
        self.layered(batch, Layout::dense(self.rows.len(), self.columns.len())?)
    }

    /// Its layout among the whole rows that it is cut from, from its first element on.
    pub(super) fn layout_within(&self, batch: &BatchFile) -> Result<Layout, Failure> {
        let layout = Layout::strided(self.rows.len(), self.columns.len(), batch.layout.params())?;
        self.layered(batch, layout)
    }

    fn layered(&self, batch: &BatchFile, layout: Layout) -> Result<Layout, Failure> {
        if batch.kind == Kind::Npy {
            return Ok(layout);
        }
        let lengths: Vec<usize> = self.layers(batch).into_iter().map(|(_, columns)| columns.len()).collect();
        Ok(layout.layered(&lengths)?)
    }

    /// An error in terms of the whole batch.
    pub(super) fn error(&self, error: Error) -> Error {
        match error {
            Error::NonFinite { row } => Error::NonFinite { row: self.rows.start + row },
            other => other,
        }
    }

    /// Of decisions on these layers of each row, those on layers that it has elements of.
    pub(super) fn pick(
        &self,
        batch: &BatchFile,
        layers: &Range<usize>,
        decisions: &[Decision],
    ) -> Vec<Decision> {
        let picked = self.layers(batch);
        let rows = decisions.chunks_exact(layers.len());
        rows.flat_map(|row| picked.iter().map(|(layer, _)| row[layer - layers.start])).collect()
    }
}

/// The most rows and layers that are worked on together: what is known of them takes no more than a window.
pub(super) fn most_spans(batch: &BatchFile, window: usize) -> usize {
    (window.saturating_mul(batch.dtype.bytes()) / KNOWN_OF_SPAN).max(FEW_SPANS)
}

/// A range in parts of this length, the last one shorter.
pub(super) fn parts(range: &Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *range;
    (start..end).step_by(length).map(move |first| first..end.min(first + length))
}
