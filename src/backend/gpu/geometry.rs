//! How a batch is cut for the device: spans, tiles and windows. Pure arithmetic, no device.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::Tuning;
use super::storage::{Fours, Storage};
use super::tuning::MANY_ROWS;
use crate::batch::{Granularity, Layout};
use crate::error::{Error, Result};
use crate::report::Strategy;

/// Marks the entries that pad a window's list of tiles.
pub(super) const NO_SPAN: u32 = u32::MAX;

/// Tiles that may add to one exact sum: each adds at most 2^16 + 2^8 to a cell of 32 bits.
const TILES_PER_SPAN: usize = 65_000;

/// Segments of a row for which there are always tiles enough: those of its elements alone are half of them at most.
pub(super) const SEGMENTS_PER_ROW: u64 = TILES_PER_SPAN as u64 / 2 - 500;

/// `Tile` of common.wgsl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Tile {
    pub start: u32,
    pub count: u32,
    pub span: u32,
    pub slot: u32,
}

impl Tile {
    /// What pads a list.
    pub(crate) const PADDING: Self = Self { start: 0, count: 0, span: NO_SPAN, slot: 0 };
}

/// `Span` of common.wgsl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Span {
    pub bound: u32,
    pub in_scope: u32,
    pub first_slot: u32,
    pub slot_count: u32,
    pub row: u32,
    pub length: u32,
    pub error_units: u32,
    /// `NO_GROUP` where `bound` holds the bound.
    pub group: u32,
}

/// Part of the batch that one binding holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    /// Elements of the data buffer.
    pub elements: Range<u64>,
    /// Entries of the list of tiles.
    pub tiles: Range<u64>,
}

impl Window {
    /// Bytes of the data buffer: whole words, because a binding has no halves of one.
    pub(crate) fn bytes(&self, storage: Storage) -> Range<u64> {
        self.elements.start * storage.bytes()..(self.elements.end * storage.bytes()).next_multiple_of(4)
    }
}

/// Rows that run through all stages before the next do: spans, and the windows that they alone are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Portion {
    pub spans: Range<usize>,
    pub windows: Range<usize>,
}

/// Portions that a batch is cut in at most: each is a few dispatches more.
const MOST_PORTIONS: u64 = 1024;

/// A batch as the kernels see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The spans that have a bound; then, where these are segments, the rows.
    pub spans: Vec<Span>,
    /// How many spans have a bound.
    pub bounded: usize,
    /// How many groups of spans may share a bound: one, or one for each position of a segment in its row.
    pub most_groups: usize,
    pub tiles: Vec<Tile>,
    /// Partial sums.
    pub slots: usize,
    pub windows: Vec<Window>,
    /// The first coordinate of each tile of a row, where all rows are cut alike; else empty.
    pub tile_starts: Vec<u32>,
    /// How norms and clip are spread over dispatches.
    pub strategy: Strategy,
    /// The portions of [`Strategy::Grouped`]; else empty.
    pub portions: Vec<Portion>,
    /// Whether no span has many tiles.
    pub few: bool,
    /// Whether exact sums are those of whole spans, in one dispatch.
    pub few_exact: bool,
    /// Whether one dispatch settles all spans, those included that take exact sums.
    pub at_once: bool,
    /// Whether a workgroup shares the rows of a mean that takes an exact sum.
    pub many_rows: bool,
    /// Elements of the longest tile.
    pub longest: u64,
    /// Whether norms are those of differences from a centre.
    pub centered: bool,
    /// How kernels read and write the elements of a tile.
    pub fours: Fours,
    pub storage: Storage,
}

/// Where the spans of a batch lie in the device's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Elements of each span that has a bound, in ascending order.
    pub spans: Vec<Range<u64>>,
    /// Elements of the buffer.
    pub length: u64,
}

impl Placement {
    /// The layout as it is, in a buffer of `length` elements.
    pub(crate) fn in_place(layout: &Layout, granularity: Granularity, length: u64) -> Self {
        let spans = (0..layout.span_count(granularity)).map(|span| {
            let span = layout.span(granularity, span);
            span.start as u64..span.end as u64
        });
        Self { spans: spans.collect(), length }
    }

    /// The spans packed anew, each from a multiple of four elements, so that tiles are wide.
    pub(crate) fn packed(layout: &Layout, granularity: Granularity) -> Self {
        let mut length = 0;
        let spans = (0..layout.span_count(granularity)).map(|span| {
            let start = length;
            let elements = layout.span(granularity, span).len() as u64;
            length += elements.next_multiple_of(4);
            start..start + elements
        });
        Self { spans: spans.collect(), length }
    }
}

impl Geometry {
    pub(crate) fn new(
        layout: &Layout,
        granularity: Granularity,
        placement: &Placement,
        tuning: &Tuning,
        centered: bool,
        storage: Storage,
    ) -> Result<Self> {
        let starts_aligned = placement.spans.iter().all(|span| span.start % 4 == 0 || span.is_empty());
        let ends_inside = placement
            .spans
            .iter()
            .all(|span| span.end.next_multiple_of(4) <= placement.length || span.is_empty());
        let longest = placement.spans.iter().map(|span| span.end - span.start).max().unwrap_or(0);
        let bytes = placement.spans.iter().map(|span| span.end - span.start).sum::<u64>() * storage.bytes();
        let by_row = granularity == Granularity::Row;
        let filled = placement.spans.iter().all(|span| !span.is_empty());
        // A tile has to fit a window, which begins at a multiple of the alignment.
        let longest_fused =
            u64::from(tuning.fused_row).min(tuning.window.saturating_sub(tuning.offset_alignment / 2));
        let short =
            granularity != Granularity::Segment && filled && tuning.are_short(placement.spans.len(), longest);
        let strategy = if short {
            Strategy::Rows
        } else if by_row && !centered && filled && longest > 0 && longest <= longest_fused {
            Strategy::Fused
        } else if by_row && tuning.group_bytes > 0 && placement.spans.len() > 1 && bytes > tuning.group_bytes
        {
            Strategy::Grouped
        } else {
            Strategy::Tiled
        };
        let fours = match storage {
            _ if !tuning.wide || !ends_inside => Fours::None,
            _ if starts_aligned => Fours::Aligned,
            // The elements of a centre lie beside those of a row from its first one on.
            Storage::Single if !centered && tuning.loose => Fours::Loose,
            Storage::Single | Storage::Half(_) => Fours::None,
        };
        let mut geometry = Self {
            spans: Vec::new(),
            bounded: placement.spans.len(),
            most_groups: (0..layout.clients())
                .map(|row| layout.spans_of(granularity, row).len())
                .max()
                .unwrap_or(0),
            tiles: Vec::new(),
            slots: 0,
            windows: Vec::new(),
            tile_starts: Vec::new(),
            strategy,
            portions: Vec::new(),
            few: false,
            few_exact: false,
            at_once: false,
            many_rows: layout.clients() as u64 >= MANY_ROWS,
            longest: 0,
            centered,
            fours,
            storage,
        };
        let portion = tuning.group_bytes.max(bytes / MOST_PORTIONS);
        geometry.cut(layout, granularity, placement, tuning, portion)?;
        geometry.few = geometry.spans.iter().all(|span| span.slot_count <= tuning.few_tiles);
        let (tiles, elements) = geometry.largest_span();
        geometry.few_exact = geometry.windows.len() == 1 && tuning.sums_whole(tiles, elements);
        geometry.at_once = strategy == Strategy::Tiled
            && geometry.few
            && geometry.few_exact
            && tuning.settles_at_once(tiles, elements);
        if layout.check_alike().is_ok() {
            geometry.tile_starts = geometry.first_coordinates(layout.clients());
        }
        Ok(geometry)
    }

    /// Whether a run whose rows are decided alone leaves the tiles out of scope out: where one list has all of them, and spans are rows.
    pub(crate) fn lists_scope(&self) -> bool {
        let by_row = self.spans.len() == self.bounded;
        self.strategy == Strategy::Tiled && by_row && self.windows.len() == 1
    }

    /// The tiles of spans in scope.
    pub(crate) fn tiles_in_scope(&self) -> impl Iterator<Item = Tile> {
        let is_in_scope = |tile: &&Tile| tile.span != NO_SPAN && self.spans[tile.span as usize].in_scope != 0;
        self.tiles.iter().filter(is_in_scope).copied()
    }

    /// The most tiles and elements that a span has.
    pub(crate) fn largest_span(&self) -> (u32, u64) {
        let largest = |most: (u32, u32), span: &Span| (most.0.max(span.slot_count), most.1.max(span.length));
        let (tiles, elements) = self.spans.iter().fold((0, 0), largest);
        (tiles, u64::from(elements))
    }

    /// Where the tiles of the first row begin in it; those of all other rows do the same.
    fn first_coordinates(&self, clients: usize) -> Vec<u32> {
        let tiles_per_row = self.slots.checked_div(clients).unwrap_or(0);
        // The tiles of the first row come first, but for the padding between windows.
        let tiles = self
            .windows
            .iter()
            .flat_map(|window| &self.tiles[window.tiles.start as usize..window.tiles.end as usize]);
        let begin = |next: &mut u32, tile: &Tile| {
            let first = *next;
            *next += tile.count;
            Some(first)
        };
        tiles.take(tiles_per_row).scan(0, begin).collect()
    }

    fn cut(
        &mut self,
        layout: &Layout,
        granularity: Granularity,
        placement: &Placement,
        tuning: &Tuning,
        portion: u64,
    ) -> Result<()> {
        let mut rows = Vec::new();
        let mut filled = 0;
        for row in 0..layout.clients() {
            if self.strategy == Strategy::Grouped {
                let bytes = layout.row(row).len() as u64 * self.storage.bytes();
                filled += bytes;
                if self.portions.is_empty() || filled > portion {
                    filled = bytes;
                    let (span, window) = (self.spans.len(), self.windows.len());
                    self.portions.push(Portion { spans: span..span, windows: window..window });
                }
            }
            let first_slot = self.slots;
            let first_span = self.spans.len();
            for span in layout.spans_of(granularity, row) {
                self.cut_span(
                    span as u32,
                    placement.spans[span].clone(),
                    layout.row(row).len() as u64,
                    tuning,
                );
            }
            if let Some(portion) = self.portions.last_mut() {
                (portion.spans.end, portion.windows.end) = (self.spans.len(), self.windows.len());
            }
            if granularity == Granularity::Segment {
                let row_span = (self.bounded + row) as u32;
                self.spans[first_span..].iter_mut().for_each(|span| span.row = row_span);
                let length = layout.row(row).len() as u64;
                rows.push(self.span(row_span, first_slot, length, tuning));
            }
            if self.slots - first_slot > TILES_PER_SPAN {
                return Err(Error::Layout {
                    got: format!("row {row} in {} tiles", self.slots - first_slot),
                    expected: "at most 65,000 tiles to a row; cut it in fewer segments",
                });
            }
        }
        self.spans.extend(rows);
        self.pad_tiles(tuning);
        Ok(())
    }

    /// Appends a span of a row of so many elements, and its tiles.
    fn cut_span(&mut self, index: u32, elements: Range<u64>, row: u64, tuning: &Tuning) {
        let length = elements.end - elements.start;
        let whole = if self.strategy == Strategy::Fused { length } else { 0 };
        let tile =
            u64::from(tuning.tile).max(whole).max((row / (TILES_PER_SPAN as u64 / 2)).next_power_of_two());
        let first_slot = self.slots;
        let mut start = elements.start;
        while start < elements.end {
            let end = (start + tile).min(elements.end);
            self.push_tile(index, start..end, tuning);
            start = end;
        }
        let span = self.span(index, first_slot, length, tuning);
        self.spans.push(span);
    }

    /// Appends a tile to the window that is being filled, or to a new one where it does not fit.
    fn push_tile(&mut self, span: u32, elements: Range<u64>, tuning: &Tuning) {
        let alignment = tuning.offset_alignment / self.storage.bytes();
        let end = if self.fours == Fours::None { elements.end } else { elements.end.next_multiple_of(4) };
        // A portion begins with a window of its own.
        let first = self.portions.last().is_some_and(|portion| portion.windows.start == self.windows.len());
        let fits = !first && self.windows.last().is_some_and(|w| end - w.elements.start <= tuning.window);
        if !fits {
            self.pad_tiles(tuning);
            let base = elements.start / alignment * alignment;
            let tiles = self.tiles.len() as u64;
            self.windows.push(Window { elements: base..base, tiles: tiles..tiles });
        }
        self.longest = self.longest.max(elements.end - elements.start);
        let slot = self.slots as u32;
        self.slots += 1;
        if let Some(window) = self.windows.last_mut() {
            window.elements.end = end;
            window.tiles.end += 1;
            self.tiles.push(Tile {
                start: (elements.start - window.elements.start) as u32,
                count: (elements.end - elements.start) as u32,
                span,
                slot,
            });
        }
    }

    /// Pads the list of tiles so that the next window's begins where a binding can.
    fn pad_tiles(&mut self, tuning: &Tuning) {
        let alignment = tuning.offset_alignment as usize / size_of::<Tile>();
        let padded = self.tiles.len().next_multiple_of(alignment);
        self.tiles.resize(padded, Tile::PADDING);
    }

    fn span(&self, row: u32, first_slot: usize, length: u64, tuning: &Tuning) -> Span {
        let slot_count = self.slots - first_slot;
        Span {
            bound: 0,
            in_scope: 1,
            first_slot: first_slot as u32,
            slot_count: slot_count as u32,
            row,
            length: length as u32,
            error_units: tuning.error_units(
                slot_count,
                length,
                self.strategy == Strategy::Rows,
                self.centered,
            ),
            group: super::rules::NO_GROUP,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tuning() -> Tuning {
        Tuning { tile: 64, window: 128, ..Tuning::portable() }
    }

    #[test]
    fn every_element_is_in_one_tile_of_a_window_that_holds_it() {
        for layout in [
            Layout::dense(5, 200).unwrap(),
            Layout::strided(3, 5, 7).unwrap(),
            Layout::ragged(&[3, 3, 90, 91, 400]).unwrap(),
        ] {
            let placement = Placement::in_place(&layout, Granularity::Row, layout.len() as u64);
            let geometry =
                Geometry::new(&layout, Granularity::Row, &placement, &tuning(), false, Storage::Single)
                    .unwrap();
            let mut covered = vec![0; layout.len()];
            for window in &geometry.windows {
                assert_eq!(window.elements.start % 64, 0);
                assert!(window.elements.end - window.elements.start <= 128);
                assert_eq!(window.tiles.start % 16, 0);
                for tile in &geometry.tiles[window.tiles.start as usize..window.tiles.end as usize] {
                    let start = window.elements.start + u64::from(tile.start);
                    assert!(start + u64::from(tile.count) <= window.elements.end);
                    assert!(layout.row(tile.span as usize).contains(&(start as usize)));
                    (start..start + u64::from(tile.count)).for_each(|i| covered[i as usize] += 1);
                }
            }
            let expected: Vec<i32> = (0..layout.len())
                .map(|i| i32::from((0..layout.clients()).any(|r| layout.row(r).contains(&i))))
                .collect();
            assert_eq!(covered, expected);
        }
    }

    #[test]
    fn rows_of_segments_own_the_slots_of_their_segments() {
        let layout = Layout::ragged_layered(&[vec![70, 0, 3], vec![], vec![64]]).unwrap();
        let placement = Placement::packed(&layout, Granularity::Segment);
        let geometry =
            Geometry::new(&layout, Granularity::Segment, &placement, &tuning(), false, Storage::Single)
                .unwrap();
        assert_eq!(geometry.fours, Fours::Aligned);
        assert_eq!(geometry.bounded, 4);
        let rows: Vec<_> =
            geometry.spans[4..].iter().map(|s| (s.first_slot, s.slot_count, s.length)).collect();
        assert_eq!(rows, [(0, 3, 73), (3, 0, 0), (3, 1, 64)]);
        assert_eq!(geometry.spans[1].slot_count, 0);
        assert_eq!(geometry.spans[3].row, 6);
    }

    #[test]
    fn rows_are_read_in_groups_of_four_wherever_a_buffer_holds_whole_ones() {
        let fours = |params, length, centered, storage, loose| {
            let layout = Layout::dense(3, params).unwrap();
            let placement = Placement::in_place(&layout, Granularity::Row, length);
            let tuning = Tuning { loose, ..tuning() };
            Geometry::new(&layout, Granularity::Row, &placement, &tuning, centered, storage).unwrap().fours
        };
        let half = Storage::Half(crate::Half::F16);
        assert_eq!(fours(8, 24, false, Storage::Single, false), Fours::Aligned);
        assert_eq!(fours(9, 28, false, Storage::Single, true), Fours::Loose);
        assert_eq!(fours(9, 28, false, Storage::Single, false), Fours::None);
        assert_eq!(fours(9, 27, false, Storage::Single, true), Fours::None);
        assert_eq!(fours(9, 28, true, Storage::Single, true), Fours::None);
        assert_eq!(fours(10, 32, false, half, true), Fours::None);
    }

    #[test]
    fn a_row_of_two_to_the_31_elements_stays_within_the_tiles_of_an_exact_sum() {
        let layout = Layout::dense(1, crate::batch::MAX_ROW).unwrap();
        let placement = Placement::packed(&layout, Granularity::Row);
        let tuning = Tuning { window: 1 << 29, ..Tuning::portable() };
        let geometry =
            Geometry::new(&layout, Granularity::Row, &placement, &tuning, false, Storage::Single).unwrap();
        assert!(geometry.slots <= TILES_PER_SPAN);
        assert_eq!(geometry.windows.len(), 4);
    }
}
