//! `--scope`: which clients may be clipped, as ranges of rows, however many there are.

use std::ops::Range;

use byzclip::{Error, Scope};

use super::failure::Failure;

/// All rows, or those in some ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Rows {
    #[default]
    All,
    /// In ascending order, and disjoint once `check` has passed.
    Ranges(Vec<Range<usize>>),
}

impl Rows {
    /// Reads `all`, or `rows:` and a list of rows and ranges, both ends included.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected all, or rows:0,3,5-8";
        if text == "all" {
            return Ok(Self::All);
        }
        let list = text.strip_prefix("rows:").ok_or(EXPECTED)?;
        let mut ranges = Vec::new();
        for item in list.split(',').filter(|_| !list.is_empty()) {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let row = |text: &str| text.parse::<u32>().map_err(|_| format!("got \"{item}\"; {EXPECTED}"));
            let (first, last) = (row(first)?, row(last)?);
            if last < first {
                return Err(format!("got the range {item}, which runs backwards; {EXPECTED}"));
            }
            ranges.push(first as usize..last as usize + 1);
        }
        ranges.sort_by_key(|range| range.start);
        Ok(Self::Ranges(ranges))
    }

    /// Checks that a batch of so many rows has all of these, and that each is named once.
    pub(super) fn check(&self, clients: usize) -> Result<(), Failure> {
        let Self::Ranges(ranges) = self else { return Ok(()) };
        if let Some([_, again]) = ranges.windows(2).find(|pair| pair[1].start < pair[0].end) {
            return Err(Error::DuplicateRow { row: again.start }.into());
        }
        match ranges.iter().find(|range| range.end > clients) {
            Some(range) => Err(Error::RowOutOfRange { row: range.start.max(clients), clients }.into()),
            None => Ok(()),
        }
    }

    /// Whether a row is one of these.
    pub(super) fn contains(&self, row: usize) -> bool {
        match self {
            Self::All => true,
            Self::Ranges(ranges) => {
                let behind = ranges.partition_point(|range| range.start <= row);
                behind.checked_sub(1).is_some_and(|last| ranges[last].contains(&row))
            }
        }
    }

    /// The scope of a batch that has these rows alone.
    pub(super) fn of(&self, rows: &Range<usize>) -> Scope {
        let Self::Ranges(ranges) = self else { return Scope::All };
        let mut mask = vec![false; rows.len()];
        let first = ranges.partition_point(|range| range.end <= rows.start);
        for range in ranges[first..].iter().take_while(|range| range.start < rows.end) {
            mask[range.start.max(rows.start) - rows.start..range.end.min(rows.end) - rows.start].fill(true);
        }
        Scope::Mask(mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_lists_of_rows_and_ranges() {
        assert_eq!(Rows::parse("all"), Ok(Rows::All));
        assert_eq!(Rows::parse("rows:3,0,5-8"), Ok(Rows::Ranges(vec![0..1, 3..4, 5..9])));
        assert_eq!(Rows::parse("rows:"), Ok(Rows::Ranges(vec![])));
        for wrong in ["", "row:1", "rows:x", "rows:1,", "rows:5-3", "rows:-1", "rows:0-4294967296"] {
            assert!(Rows::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_of_a_batch_have_their_part_of_the_scope() {
        let scope = Rows::parse("rows:8,0,2-4,6-7");
        let listed = [0, 2, 3, 4, 6, 7, 8];
        for (start, end) in (0..12).flat_map(|start| (start..12).map(move |end| (start, end))) {
            let mask = (start..end).map(|row| listed.contains(&row)).collect();
            assert_eq!(scope.as_ref().map(|scope| scope.of(&(start..end))), Ok(Scope::Mask(mask)));
            assert_eq!(scope.as_ref().map(|scope| scope.contains(start)), Ok(listed.contains(&start)));
        }
        assert_eq!(Rows::All.of(&(3..5)), Scope::All);
    }

    #[test]
    fn rows_are_there_and_named_once() {
        let message = |text: &str, clients| {
            let checked = Rows::parse(text).map(|rows| rows.check(clients));
            checked.map(|checked| checked.err().map(|failure| format!("{failure:?}")))
        };
        assert_eq!(message("rows:0-2,4", 5), Ok(None));
        assert_eq!(message("all", 0), Ok(None));
        for (text, words) in [
            ("rows:0-2,4", "row 4"),
            ("rows:0-9", "row 4"),
            ("rows:9,2,6-7", "row 6"),
            ("rows:0-2,1", "row 1 twice"),
            ("rows:3,3", "row 3 twice"),
            ("rows:0-4294967295,1", "row 1 twice"),
        ] {
            let got = message(text, 4);
            assert!(
                got.as_ref().is_ok_and(|got| got.as_ref().is_some_and(|got| got.contains(words))),
                "{got:?}"
            );
        }
    }
}
