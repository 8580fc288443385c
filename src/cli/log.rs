//! What is known of every row of a batch, until it is asked for: a little in memory, more in a file without a name.

use std::cell::RefCell;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;
use tempfile::SpooledTempFile;

use super::failure::Failure;
use super::shown::Shown;

/// Entries of the rows that will be asked for, as many for each row; they come in the order of the rows.
pub(super) struct Log<T> {
    shown: Shown,
    per_row: usize,
    /// Rows that have come.
    rows: usize,
    /// Read through a shared reference, which is all that serialization has.
    file: RefCell<SpooledTempFile>,
    block: RefCell<Block>,
    entries: PhantomData<T>,
}

/// Entries that were read together.
#[derive(Default)]
struct Block {
    /// The place of the first row.
    first: usize,
    bytes: Vec<u8>,
}

/// Bytes of a log that stay in memory.
const IN_MEMORY: usize = 16 << 20;

/// Bytes that are read, or written, at a time.
const BLOCK: usize = 64 << 10;

impl<T: Pod> Log<T> {
    /// Fails where there will be more than stays in memory, and no file for it.
    pub(super) fn new(shown: Shown, per_row: usize) -> Result<Self, Failure> {
        let mut log = Self::of_at_most(shown, per_row);
        if shown.count().saturating_mul(per_row * size_of::<T>()) > IN_MEMORY {
            log.file.get_mut().roll().map_err(|error| unwritable(&error))?;
        }
        Ok(log)
    }

    /// The same where most rows may not come: a file is asked for when there is more than stays in memory.
    pub(super) fn of_at_most(shown: Shown, per_row: usize) -> Self {
        let (file, block) = (RefCell::new(SpooledTempFile::new(IN_MEMORY)), RefCell::default());
        Self { shown, per_row, rows: 0, file, block, entries: PhantomData }
    }

    /// The number of rows that have come.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// Adds the next rows; `entries` are those of the row with this number among them.
    pub(super) fn append<E>(&mut self, rows: usize, entries: impl Fn(usize) -> E) -> Result<(), Failure>
    where
        E: IntoIterator<Item = T>,
    {
        let new = self.rows..self.rows + rows;
        let file = self.file.get_mut();
        let mut write = |part: &mut Vec<T>| {
            let written =
                file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(bytemuck::cast_slice(part)));
            part.clear();
            written.map_err(|error| unwritable(&error))
        };
        let mut part = Vec::new();
        for shown in self.shown.ranges() {
            for row in shown.start.clamp(new.start, new.end)..shown.end.clamp(new.start, new.end) {
                part.extend(entries(row - new.start));
                if size_of_val(&part[..]) >= BLOCK {
                    write(&mut part)?;
                }
            }
        }
        self.rows = new.end;
        write(&mut part)
    }

    /// The entries of a shown row that has come.
    pub(super) fn row(&self, row: usize) -> io::Result<Vec<T>> {
        let size = self.per_row * size_of::<T>();
        let place = self.shown.place(row).filter(|_| row < self.rows);
        let place = place.ok_or_else(|| io::Error::other(format!("row {row} was not kept")))?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut block = self.block.borrow_mut();
        let rows = block.bytes.len() / size;
        if !(block.first..block.first + rows).contains(&place) {
            block.first = place;
            block.bytes.clear();
            let mut file = self.file.borrow_mut();
            file.seek(SeekFrom::Start((place * size) as u64))?;
            let most = (BLOCK / size).max(1) * size;
            (&mut *file).take(most as u64).read_to_end(&mut block.bytes)?;
        }
        let start = (place - block.first) * size;
        let bytes = block.bytes.get(start..start + size).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(bytemuck::pod_collect_to_vec(bytes))
    }

    /// Some entries of each of some rows that have come, row by row, where all rows are kept.
    pub(super) fn part(&self, rows: &Range<usize>, entries: &Range<usize>) -> io::Result<Vec<T>> {
        if !self.shown.is_all() || rows.end > self.rows || entries.end > self.per_row {
            return Err(io::Error::other(format!("rows {rows:?} were not kept")));
        }
        let mut part = vec![T::zeroed(); rows.len() * entries.len()];
        if part.is_empty() {
            return Ok(part);
        }
        let bytes = |entries: usize| entries * size_of::<T>();
        let (row, taken) = (bytes(self.per_row), bytes(entries.len()));
        // Short rows are read with the gaps between their parts: a call for each costs more. Longer reads pass a buffer by.
        let buffer = if row <= BLOCK && rows.len() > 1 { BLOCK } else { taken.min(BLOCK) };
        let mut file = self.file.borrow_mut();
        let mut file = BufReader::with_capacity(buffer, &mut *file);
        file.seek(SeekFrom::Start((rows.start * row + bytes(entries.start)) as u64))?;
        for of_row in bytemuck::cast_slice_mut::<T, u8>(&mut part).chunks_exact_mut(taken) {
            file.read_exact(of_row)?;
            file.seek_relative((row - taken) as i64)?;
        }
        Ok(part)
    }
}

/// What is kept of a row, in words.
pub(super) fn row(row: usize) -> String {
    format!("what is known of row {row}")
}

/// That what was kept cannot be read back.
pub(super) fn unreadable(what: &str, error: &io::Error) -> String {
    format!(
        "cannot read back {what}: got \"{error}\"; expected what was written to {}; try again",
        std::env::temp_dir().display()
    )
}

fn unwritable(error: &io::Error) -> Failure {
    Failure::Failed(format!(
        "cannot keep what is known of each row in {}: got \"{error}\"; expected space for a file there; free some, or name \
         another folder with TMPDIR",
        std::env::temp_dir().display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Some rows at a time, and more than stays in memory.
    #[test]
    fn rows_come_back_as_they_went() {
        for (rows, per_row, at_a_time) in
            [(7, 2, 3), (20, 1, 20), (21, 1, 4), (5, 0, 2), (50, 9000, 7), (3_000_000, 2, 250_001)]
        {
            let entry = |row: usize, k: usize| (row * 31 + k) as u64;
            for shown in [Shown::all(rows), Shown::in_table(rows)] {
                let mut log = Log::new(shown, per_row).unwrap();
                for start in (0..rows).step_by(at_a_time) {
                    let entries = |row: usize| (0..per_row).map(move |k| entry(start + row, k));
                    log.append(at_a_time.min(rows - start), entries).unwrap();
                    // What is read in between stays where it is.
                    assert!(log.row(0).unwrap().into_iter().eq((0..per_row).map(|k| entry(0, k))));
                }
                let is_large = rows > 1000;
                assert_eq!(log.file.get_mut().is_rolled(), is_large && shown == Shown::all(rows));
                let all = || shown.ranges().into_iter().flatten();
                assert_eq!(all().count(), if shown == Shown::all(rows) { rows } else { 20 });
                let backwards = || all().collect::<Vec<_>>().into_iter().rev().step_by(999);
                for row in all().chain(backwards()) {
                    let want: Vec<u64> = (0..per_row).map(|k| entry(row, k)).collect();
                    assert_eq!(log.row(row).unwrap(), want, "{row}");
                }
                if shown == Shown::all(rows) {
                    for (some, entries) in parts_of(rows, per_row) {
                        let want = some.clone().flat_map(|row| entries.clone().map(move |k| entry(row, k)));
                        assert_eq!(log.part(&some, &entries).unwrap(), want.collect::<Vec<_>>());
                    }
                }
                assert_eq!(log.part(&(0..rows), &(0..0)).is_err(), shown != Shown::all(rows));
                assert!(log.row(rows).is_err());
                assert!(log.part(&(0..rows + 1), &(0..per_row)).is_err());
                assert!(log.part(&(0..rows), &(0..per_row + 1)).is_err());
                assert_eq!(log.row(rows / 2).is_err(), shown != Shown::all(rows));
            }
        }
    }

    /// A file is asked for at once where all rows will come, so that there is an error before the work, and else when it is needed.
    #[test]
    fn a_file_is_made_at_once_or_when_it_is_needed() {
        let shown = Shown::all(1000);
        assert!(Log::<u64>::new(shown, 1 << 20).unwrap().file.get_mut().is_rolled());
        let mut log = Log::<u64>::of_at_most(shown, 1 << 20);
        let mut is_rolled = || {
            log.append(1, |_| vec![7; 1 << 20]).unwrap();
            log.file.get_mut().is_rolled()
        };
        assert_eq!([(); 3].map(|()| is_rolled()), [false, false, true]);
    }

    /// All, none, the last row, one entry of most rows, and all but one of the first two.
    fn parts_of(rows: usize, per_row: usize) -> [(Range<usize>, Range<usize>); 5] {
        [
            (0..rows, 0..per_row),
            (1..1, 0..per_row),
            (rows - 1..rows, 0..per_row),
            (1..rows - 1, per_row / 2..per_row.min(per_row / 2 + 1)),
            (0..2, per_row.min(1)..per_row),
        ]
    }
}
