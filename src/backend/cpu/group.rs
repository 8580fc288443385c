//! Some short rows that are worked on together.

use std::ops::Range;

use super::simd::prefetch_ahead;

/// Rows that are summed together.
pub(super) const ROWS: usize = 8;

/// Some of the rows: the least bit is the first.
pub(super) type RowSet = u8;

/// [`ROWS`] short rows of one length at equal distances.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowGroup<'a, T> {
    /// From the first element of the first row to the last of the last, or beyond.
    pub(super) elements: &'a [T],
    pub(super) stride: usize,
    /// Elements of a row.
    pub(super) params: usize,
    /// Whether the memory of the next group is asked for while this one is summed: not where rows lie apart, because what is behind the last
    /// row is none of the next group. (Only `f32` with AVX2 are summed apart.)
    pub(super) asks_ahead: bool,
}

impl<'a, T> RowGroup<'a, T> {
    #[inline(always)]
    pub(super) fn rows(&self) -> [&'a [T]; ROWS] {
        let mut rows: [&[T]; ROWS] = [&[]; ROWS];
        // Not `from_fn`: it leaves the slices in memory.
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &self.elements[i * self.stride..i * self.stride + self.params];
        }
        rows
    }

    /// What `sums` makes of the rows, when the memory of as many has been asked for at once.
    #[inline]
    pub(super) fn one_by_one(&self, sums: impl FnOnce(&[&[T]; ROWS]) -> [f64; ROWS]) -> [f64; ROWS] {
        if self.asks_ahead {
            self.prefetch_ahead(0..ROWS * self.stride);
        }
        sums(&self.rows())
    }

    /// Asks for as much memory ahead as some of the elements take, padding included.
    #[inline(always)]
    pub(super) fn prefetch_ahead(&self, elements: Range<usize>) {
        prefetch_ahead(self.elements.as_ptr().wrapping_add(elements.start), elements.len());
    }
}

/// The places in a set, least first.
#[inline(always)]
pub(super) fn members(mut set: RowSet) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (set != 0).then(|| set.trailing_zeros() as usize);
        set &= set.wrapping_sub(1);
        next
    })
}
