//! Layouts of a batch of client updates, and all of their index arithmetic.
//!
//! A batch is a flat array of `f32` plus a [`Layout`] that says where each client's row lies:
//!
//! | layout | rows | constructor |
//! |---|---|---|
//! | dense | `params` elements each, back to back | [`Layout::dense`] |
//! | strided | `params` elements each, `stride` apart | [`Layout::strided`] |
//! | ragged | any lengths, given by offsets | [`Layout::ragged`] |
//!
//! Each row can be cut in segments (the layers of a model): [`Layout::layered`] cuts every row the
//! same way, [`Layout::ragged_layered`] each row its own way. Zero rows, empty rows, empty segments
//! and an empty batch are legal. Sizes are in elements.

use std::ops::Range;

use crate::error::{Error, Result};

/// The longest row that the numeric contract covers, in elements.
pub const MAX_ROW: usize = 1 << 31;

/// The most rows, and the most segments in all rows together, that a batch may have.
pub const MAX_SPANS: usize = 1 << 28;

/// What gets a norm and a bound of its own: whole rows, or the segments of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Granularity {
    /// One norm, bound and factor per client.
    #[default]
    Row,
    /// One norm, bound and factor per segment (layer) of a client.
    Segment,
    /// One bound per client, on every coordinate: `g' = max(−λ, min(λ, g))`. The norm of a row is its largest
    /// magnitude (the ∞-norm), and its factor is 1, because coordinates are cut, not scaled.
    Coordinate,
}

/// Where the rows of a batch `[clients, params]`, and their segments, lie in a flat array.
///
/// # Examples
/// ```
/// use byzclip::batch::Layout;
///
/// let layout = Layout::strided(2, 3, 4)?.layered(&[1, 2])?;
/// assert_eq!(layout.row(1), 4..7);
/// assert_eq!(layout.segment(layout.segments_of(1).start + 1), 5..7);
/// assert_eq!(layout.len(), 7);
/// # Ok::<(), byzclip::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    rows: Rows,
    segments: Segments,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rows {
    Strided {
        clients: usize,
        params: usize,
        stride: usize,
    },
    /// `offsets[r]..offsets[r + 1]` is row `r`.
    Ragged {
        offsets: Vec<usize>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segments {
    /// Every row is one segment.
    Whole,
    /// Every row is cut at the same places: segment `k` is `ends[k - 1]..ends[k]` of its row.
    Uniform { ends: Vec<usize> },
    /// Row `r` has the segments `first[r]..first[r + 1]`; segment `s` is `offsets[s]..offsets[s + 1]`.
    PerRow { first: Vec<usize>, offsets: Vec<usize> },
}

impl Layout {
    /// `clients` rows of `params` elements, back to back.
    ///
    /// # Errors
    /// [`Error::RowTooLong`], or [`Error::Layout`] where the size overflows.
    pub fn dense(clients: usize, params: usize) -> Result<Self> {
        Self::strided(clients, params, params)
    }

    /// `clients` rows of `params` elements; row `r` begins at element `r * stride`.
    ///
    /// The padding between rows is neither read nor written.
    ///
    /// # Errors
    /// [`Error::Layout`] where `stride < params` or the size overflows; [`Error::RowTooLong`].
    pub fn strided(clients: usize, params: usize, stride: usize) -> Result<Self> {
        if stride < params {
            return Err(Error::Layout {
                got: format!("stride {stride} with {params} params"),
                expected: "a stride of at least params",
            });
        }
        check_row_length(params)?;
        check_span_count(Some(clients), "rows")?;
        if clients.checked_mul(stride).is_none_or(|n| n > isize::MAX as usize / 4) {
            return Err(Error::Layout {
                got: format!("{clients} rows with stride {stride}"),
                expected: "a batch that fits the address space",
            });
        }
        Ok(Self { rows: Rows::Strided { clients, params, stride }, segments: Segments::Whole })
    }

    /// `offsets.len() - 1` rows of any lengths; row `r` is `offsets[r]..offsets[r + 1]`.
    ///
    /// # Errors
    /// [`Error::Layout`] where `offsets` is empty or decreases; [`Error::RowTooLong`].
    pub fn ragged(offsets: &[usize]) -> Result<Self> {
        if offsets.is_empty() {
            return Err(Error::Layout { got: "no offsets".into(), expected: "clients + 1 offsets" });
        }
        check_span_count(Some(offsets.len() - 1), "rows")?;
        for pair in offsets.windows(2) {
            if pair[1] < pair[0] {
                return Err(Error::Layout {
                    got: format!("offset {} after {}", pair[1], pair[0]),
                    expected: "offsets that do not decrease",
                });
            }
            check_row_length(pair[1] - pair[0])?;
        }
        if offsets[offsets.len() - 1] > isize::MAX as usize / 4 {
            return Err(Error::Layout {
                got: format!("offset {}", offsets[offsets.len() - 1]),
                expected: "a batch that fits the address space",
            });
        }
        Ok(Self { rows: Rows::Ragged { offsets: offsets.to_vec() }, segments: Segments::Whole })
    }

    /// Rows back to back, each with segments of its own: `rows[r][k]` is the length of segment `k` of row `r`.
    ///
    /// # Errors
    /// [`Error::RowTooLong`], or [`Error::Layout`] where the size overflows.
    pub fn ragged_layered<R: AsRef<[usize]>>(rows: &[R]) -> Result<Self> {
        let (mut row_offsets, mut first, mut offsets) = (vec![0], vec![0], vec![0]);
        let mut end = 0usize;
        for row in rows {
            for &length in row.as_ref() {
                end = end.checked_add(length).ok_or_else(|| Error::Layout {
                    got: format!("a segment of {length} elements"),
                    expected: "a batch that fits the address space",
                })?;
                offsets.push(end);
            }
            row_offsets.push(end);
            first.push(offsets.len() - 1);
        }
        check_span_count(Some(offsets.len() - 1), "segments")?;
        let mut layout = Self::ragged(&row_offsets)?;
        layout.segments = Segments::PerRow { first, offsets };
        Ok(layout)
    }

    /// Cuts every row of a dense or strided layout in segments of these lengths.
    ///
    /// # Errors
    /// [`Error::Layout`] where the lengths do not sum to `params`, or the layout is ragged
    /// (use [`Layout::ragged_layered`]).
    pub fn layered(mut self, lengths: &[usize]) -> Result<Self> {
        let Rows::Strided { clients, params, .. } = self.rows else {
            return Err(Error::Layout {
                got: "a ragged layout".into(),
                expected: "a dense or strided layout; ragged rows take Layout::ragged_layered",
            });
        };
        let mut ends = Vec::with_capacity(lengths.len());
        let mut end = 0usize;
        for &length in lengths {
            end = end.saturating_add(length);
            ends.push(end);
        }
        if end != params {
            return Err(Error::Layout {
                got: format!("segments of {end} elements in all, in rows of {params}"),
                expected: "segments that sum to params",
            });
        }
        check_span_count(clients.checked_mul(ends.len()), "segments")?;
        self.segments = Segments::Uniform { ends };
        Ok(self)
    }

    /// The number of rows.
    #[must_use]
    pub fn clients(&self) -> usize {
        match &self.rows {
            Rows::Strided { clients, .. } => *clients,
            Rows::Ragged { offsets } => offsets.len() - 1,
        }
    }

    /// The number of elements in the longest row.
    #[must_use]
    pub fn params(&self) -> usize {
        match &self.rows {
            Rows::Strided { params, .. } => *params,
            Rows::Ragged { .. } => (0..self.clients()).map(|r| self.row(r).len()).max().unwrap_or(0),
        }
    }

    /// Elements that the layout reaches: a data slice must be at least this long.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::Strided { clients: 0, .. } => 0,
            Rows::Strided { clients, params, stride } => (clients - 1) * stride + params,
            Rows::Ragged { offsets } => offsets[offsets.len() - 1],
        }
    }

    /// Whether no row has an element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.elements() == 0
    }

    /// Elements in all rows together, padding left out.
    #[must_use]
    pub fn elements(&self) -> usize {
        match &self.rows {
            Rows::Strided { clients, params, .. } => clients * params,
            Rows::Ragged { offsets } => offsets[offsets.len() - 1] - offsets[0],
        }
    }

    /// The elements of row `row`.
    ///
    /// # Panics
    /// Where `row >= clients()`, as slice indexing does.
    #[must_use]
    pub fn row(&self, row: usize) -> Range<usize> {
        match &self.rows {
            Rows::Strided { clients, params, stride } => {
                assert!(row < *clients, "row {row} of {clients}");
                row * stride..row * stride + params
            }
            Rows::Ragged { offsets } => offsets[row]..offsets[row + 1],
        }
    }

    /// The layout of some rows, where the first of them begins at element 0.
    #[cfg(feature = "gpu")]
    pub(crate) fn of_rows(&self, rows: Range<usize>) -> Self {
        let moved = |offsets: &[usize]| offsets.iter().map(|offset| offset - offsets[0]).collect();
        let segments = match &self.segments {
            Segments::PerRow { first, offsets } => {
                let first = &first[rows.start..=rows.end];
                let offsets = moved(&offsets[first[0]..=first[rows.len()]]);
                Segments::PerRow { first: moved(first), offsets }
            }
            alike => alike.clone(),
        };
        let rows = match &self.rows {
            Rows::Strided { params, stride, .. } => {
                Rows::Strided { clients: rows.len(), params: *params, stride: *stride }
            }
            Rows::Ragged { offsets } => Rows::Ragged { offsets: moved(&offsets[rows.start..=rows.end]) },
        };
        Self { rows, segments }
    }

    /// The stride of rows that lie at equal distances; at least one element, and as long as a row.
    pub(crate) fn stride(&self) -> Option<usize> {
        match &self.rows {
            Rows::Strided { stride, .. } if *stride > 0 => Some(*stride),
            _ => None,
        }
    }

    /// The number of segments in all rows together.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        match &self.segments {
            Segments::Whole => self.clients(),
            Segments::Uniform { ends } => self.clients() * ends.len(),
            Segments::PerRow { offsets, .. } => offsets.len() - 1,
        }
    }

    /// The numbers of the segments of row `row`.
    ///
    /// # Panics
    /// Where `row >= clients()`.
    #[must_use]
    pub fn segments_of(&self, row: usize) -> Range<usize> {
        match &self.segments {
            Segments::Whole => row..row + 1,
            Segments::Uniform { ends } => row * ends.len()..(row + 1) * ends.len(),
            Segments::PerRow { first, .. } => first[row]..first[row + 1],
        }
    }

    /// The elements of segment `segment`.
    ///
    /// # Panics
    /// Where `segment >= segment_count()`.
    #[must_use]
    pub fn segment(&self, segment: usize) -> Range<usize> {
        match &self.segments {
            Segments::Whole => self.row(segment),
            Segments::Uniform { ends } => {
                let (row, k) = (segment / ends.len(), segment % ends.len());
                let begin = if k == 0 { 0 } else { ends[k - 1] };
                let start = self.row(row).start;
                start + begin..start + ends[k]
            }
            Segments::PerRow { offsets, .. } => offsets[segment]..offsets[segment + 1],
        }
    }

    /// The number of spans that get a bound at this granularity: rows, or segments.
    #[must_use]
    pub fn span_count(&self, granularity: Granularity) -> usize {
        match granularity {
            Granularity::Row | Granularity::Coordinate => self.clients(),
            Granularity::Segment => self.segment_count(),
        }
    }

    /// The elements of span `span` at this granularity.
    ///
    /// # Panics
    /// Where `span >= span_count(granularity)`.
    #[must_use]
    pub fn span(&self, granularity: Granularity, span: usize) -> Range<usize> {
        match granularity {
            Granularity::Row | Granularity::Coordinate => self.row(span),
            Granularity::Segment => self.segment(span),
        }
    }

    /// The numbers of the spans of row `row` at this granularity.
    ///
    /// # Panics
    /// Where `row >= clients()`.
    #[must_use]
    pub fn spans_of(&self, granularity: Granularity, row: usize) -> Range<usize> {
        match granularity {
            Granularity::Row | Granularity::Coordinate => row..row + 1,
            Granularity::Segment => self.segments_of(row),
        }
    }

    /// Checks that all rows have the same coordinates, cut the same way.
    pub(crate) fn check_alike(&self) -> Result<()> {
        // Alike as they are written down: no need to look at each.
        if let (Rows::Strided { .. }, Segments::Whole | Segments::Uniform { .. }) =
            (&self.rows, &self.segments)
        {
            return Ok(());
        }
        let lengths = |row| self.segments_of(row).map(|segment| self.segment(segment).len());
        let differs =
            |row: &usize| self.row(*row).len() != self.row(0).len() || !lengths(*row).eq(lengths(0));
        match (1..self.clients()).find(differs) {
            None => Ok(()),
            Some(row) => Err(Error::Layout {
                got: format!("row {row} with {} elements or other segments than row 0", self.row(row).len()),
                expected: "rows of one length with the same segments, for an aggregate or a centre",
            }),
        }
    }

    /// Checks that `length` elements hold this layout.
    ///
    /// # Errors
    /// [`Error::DataTooShort`].
    pub fn check(&self, length: usize) -> Result<()> {
        if length < self.len() {
            return Err(Error::DataTooShort { got: length, expected: self.len() });
        }
        Ok(())
    }
}

fn check_span_count(count: Option<usize>, what: &str) -> Result<()> {
    match count {
        Some(count) if count <= MAX_SPANS => Ok(()),
        _ => Err(Error::Layout {
            got: count.map_or_else(|| format!("too many {what} to count"), |count| format!("{count} {what}")),
            expected: "at most 2^28 rows and 2^28 segments in all",
        }),
    }
}

fn check_row_length(length: usize) -> Result<()> {
    if length > MAX_ROW {
        return Err(Error::RowTooLong { got: length });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ragged_layers_partition_their_rows() {
        let layout = Layout::ragged_layered(&[vec![2, 0, 3], vec![], vec![4]]).unwrap();
        assert_eq!(layout.clients(), 3);
        assert_eq!(layout.row(0), 0..5);
        assert_eq!(layout.row(1), 5..5);
        assert_eq!(layout.segments_of(0), 0..3);
        assert_eq!(layout.segments_of(1), 3..3);
        assert_eq!(layout.segment(1), 2..2);
        assert_eq!(layout.segment(3), 5..9);
    }

    #[test]
    fn contradictory_shapes_are_refused() {
        assert!(matches!(Layout::strided(2, 5, 4), Err(Error::Layout { .. })));
        assert!(matches!(Layout::strided(usize::MAX, 2, 2), Err(Error::Layout { .. })));
        assert!(matches!(Layout::dense(1, MAX_ROW + 1), Err(Error::RowTooLong { .. })));
        assert!(matches!(Layout::dense(usize::MAX, 0), Err(Error::Layout { .. })));
        assert!(matches!(Layout::dense(MAX_SPANS, 0).unwrap().layered(&[0; 40]), Err(Error::Layout { .. })));
        assert!(matches!(Layout::ragged(&[]), Err(Error::Layout { .. })));
        assert!(matches!(Layout::ragged(&[3, 2]), Err(Error::Layout { .. })));
        assert!(matches!(Layout::dense(2, 5).unwrap().layered(&[2, 2]), Err(Error::Layout { .. })));
        assert!(matches!(Layout::ragged(&[0, 2]).unwrap().layered(&[2]), Err(Error::Layout { .. })));
    }

    #[cfg(feature = "gpu")]
    #[test]
    fn some_rows_lie_as_they_do_among_all() {
        let layouts = [
            Layout::strided(4, 5, 7).unwrap(),
            Layout::strided(4, 5, 7).unwrap().layered(&[2, 0, 3]).unwrap(),
            Layout::ragged(&[3, 5, 5, 9, 10]).unwrap(),
            Layout::ragged_layered(&[vec![2, 1], vec![], vec![3, 0], vec![4]]).unwrap(),
        ];
        for layout in layouts {
            for rows in [0..4, 1..3, 2..4, 3..4, 2..2] {
                let some = layout.of_rows(rows.clone());
                assert_eq!(some.clients(), rows.len());
                let base = rows.clone().next().map_or(0, |first| layout.row(first).start);
                let moved = |range: Range<usize>| range.start - base..range.end - base;
                for (row, original) in rows.enumerate() {
                    assert_eq!(some.row(row), moved(layout.row(original)));
                    let segments = some.segments_of(row).map(|segment| some.segment(segment));
                    let originals =
                        layout.segments_of(original).map(|segment| moved(layout.segment(segment)));
                    assert!(segments.eq(originals), "{layout:?}, row {original}");
                }
            }
        }
    }

    /// Their rows begin somewhere all the same: a slice has to reach so far.
    #[test]
    fn batches_without_elements_are_empty_and_may_reach_far() {
        let layouts = [
            (Layout::dense(0, 7), 0),
            (Layout::dense(3, 0), 0),
            (Layout::strided(3, 0, 4), 8),
            (Layout::ragged(&[0]), 0),
            (Layout::ragged(&[5, 5, 5]), 5),
        ];
        for (layout, length) in layouts {
            let layout = layout.unwrap();
            assert!(layout.is_empty() && layout.elements() == 0, "{layout:?}");
            assert_eq!(layout.len(), length, "{layout:?}");
            (0..layout.clients()).for_each(|row| assert!(layout.row(row).end <= length, "{layout:?}"));
            assert_eq!(layout.check(length), Ok(()), "{layout:?}");
            if let Some(got) = length.checked_sub(1) {
                assert_eq!(layout.check(got), Err(Error::DataTooShort { got, expected: length }));
            }
        }
        assert!(!Layout::strided(3, 1, 4).unwrap().is_empty());
    }
}
