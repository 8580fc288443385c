//! Where the layers of each file begin.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::failure::Failure;
use super::log::{self, Log};
use super::shown::Shown;

/// Where each layer begins, in bytes behind the head, for each file. Files of one model mostly agree with the first; of those
/// that do not, it is in a log.
#[derive(Default)]
pub(super) struct Starts {
    first: Vec<u64>,
    /// For each file, where it differs from the first, its row in the log.
    in_log: Vec<Option<usize>>,
    /// Behind a lock, because files are read and written by threads of their own.
    log: Mutex<Option<Log<u64>>>,
}

impl Starts {
    /// Adds those of the next of so many files.
    pub(super) fn add(&mut self, files: usize, starts: Vec<u64>) -> Result<(), Failure> {
        if self.in_log.is_empty() {
            self.first = starts;
            self.in_log.push(None);
            return Ok(());
        }
        if starts == self.first {
            self.in_log.push(None);
            return Ok(());
        }
        let log = self.log.get_mut().unwrap_or_else(PoisonError::into_inner);
        let log = log.get_or_insert_with(|| Log::of_at_most(Shown::all(files), starts.len()));
        self.in_log.push(Some(log.rows()));
        log.append(1, |_| starts.iter().copied())
    }

    /// Those of some layers of a file.
    pub(super) fn of(&self, file: usize, layers: &Range<usize>) -> Result<Cow<'_, [u64]>, Failure> {
        let Some(row) = self.in_log[file] else { return Ok(Cow::Borrowed(&self.first[layers.clone()])) };
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let part = match log.as_ref() {
            Some(log) => log.part(&(row..row + 1), layers),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        let unreadable = |e| log::unreadable(&format!("where the layers of client {file} begin"), &e);
        part.map(Cow::Owned).map_err(|e| Failure::Failed(unreadable(e)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_file_has_its_own() {
        let files: [[u64; 3]; 5] = [[0, 4, 8], [0, 4, 8], [8, 0, 4], [0, 4, 8], [4, 0, 8]];
        let mut starts = Starts::default();
        files.iter().for_each(|file| starts.add(files.len(), file.to_vec()).unwrap());
        for (number, file) in files.iter().enumerate() {
            for layers in [0..3, 1..2, 1..3, 3..3] {
                assert_eq!(*starts.of(number, &layers).unwrap(), file[layers], "{number}");
            }
        }
    }
}
