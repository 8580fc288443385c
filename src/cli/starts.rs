//! Where the layers of each file begin.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::failure::Failure;
use super::log::{self, Log, Shown};

/// Where each layer begins, in bytes behind the head, for each file. Files of one model mostly agree with the first; of those
/// that do not, what they have waits in a log.
pub(super) struct Starts {
    first: Vec<u64>,
    /// For each file its number among those that differ from the first.
    others: Vec<Option<usize>>,
    /// Of those; files are read and written by threads of their own.
    log: Mutex<Option<Log<u64>>>,
    different: usize,
}

impl Starts {
    /// Of no files yet.
    pub(super) const fn new() -> Self {
        Self { first: Vec::new(), others: Vec::new(), log: Mutex::new(None), different: 0 }
    }

    /// Adds those of the next of so many files.
    pub(super) fn add(&mut self, files: usize, starts: Vec<u64>) -> Result<(), Failure> {
        if self.others.is_empty() {
            self.first = starts;
        } else if starts != self.first {
            let log = self.log.get_mut().unwrap_or_else(PoisonError::into_inner);
            let log = match log {
                Some(log) => log,
                None => log.insert(Log::new(Shown::all(files), starts.len())?),
            };
            log.append(1, |_| starts.iter().copied())?;
            self.others.push(Some(self.different));
            self.different += 1;
            return Ok(());
        }
        self.others.push(None);
        Ok(())
    }

    /// Those of some layers of a file.
    pub(super) fn of(&self, file: usize, layers: &Range<usize>) -> Result<Cow<'_, [u64]>, Failure> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.others[file], log.as_ref()) {
            (Some(number), Some(log)) => {
                let part = log.part(&(number..number + 1), layers);
                part.map(Cow::Owned).map_err(|e| Failure::Failed(log::unreadable(file, &e)))
            }
            _ => Ok(Cow::Borrowed(&self.first[layers.clone()])),
        }
    }
}
