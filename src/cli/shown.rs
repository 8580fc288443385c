//! The rows of a batch that are shown.

use std::ops::Range;

/// Of a batch with so many rows those that a report shows, and a log therefore keeps: all, or the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    rows: usize,
    /// How many of the first, and of the last; no row is both.
    ends: (usize, usize),
}

impl Shown {
    /// All of so many rows.
    pub(super) const fn all(rows: usize) -> Self {
        Self { rows, ends: (rows, 0) }
    }

    /// Of so many rows all of them in JSON, else those of a table.
    pub(super) const fn of(rows: usize, json: bool) -> Self {
        if json { Self::all(rows) } else { Self::in_table(rows) }
    }

    /// As many of them as a table has.
    pub(super) const fn in_table(rows: usize) -> Self {
        if rows <= SHOWN { Self::all(rows) } else { Self { rows, ends: (SHOWN / 2, SHOWN - SHOWN / 2) } }
    }

    /// The shown rows; nothing lies between the two where all are.
    pub(super) const fn ranges(self) -> [Range<usize>; 2] {
        [0..self.ends.0, self.rows - self.ends.1..self.rows]
    }

    pub(super) fn is_all(self) -> bool {
        self.count() == self.rows
    }

    /// How many rows are shown.
    pub(super) const fn count(self) -> usize {
        self.ends.0 + self.ends.1
    }

    /// Where a shown row stands among the shown.
    pub(super) fn place(self, row: usize) -> Option<usize> {
        let [first, last] = self.ranges();
        if first.contains(&row) {
            return Some(row);
        }
        last.contains(&row).then(|| first.len() + row - last.start)
    }
}

/// Rows that a table shows; longer ones lose their middle.
const SHOWN: usize = 20;
