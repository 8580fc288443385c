//! What happened to every row of a batch, window by window.

use std::io;

use bytemuck::{Pod, Zeroable};
use byzclip::{Granularity, Ran, Report, RowReport, SegmentReport, Status};

use super::batch_file::BatchFile;
use super::failure::Failure;
use super::log::Log;
use super::shown::Shown;

/// A report of which the rows are in a log, or only those that a table shows.
pub(super) struct RowLog {
    pub ran: Ran,
    clients: usize,
    counts: [usize; STATUSES.len()],
    rows: Log<Entry>,
    /// As many for each row as it has segments with bounds of their own.
    segments: Log<Entry>,
}

/// In the order of their numbers.
pub(super) const STATUSES: [Status; 5] =
    [Status::Untouched, Status::Clipped, Status::Zeroed, Status::OutOfScope, Status::Kept];

/// A row or a segment, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Entry {
    pub factor: f64,
    pub norm: f32,
    /// NaN, which no bound is, where there is none.
    bound: f32,
    /// As wide as this, so that no byte is padding.
    status: u64,
}

impl RowLog {
    /// Of no rows yet. `ran` holds for a batch without any; each report that is added brings its own.
    pub(super) fn new(
        ran: Ran,
        batch: &BatchFile,
        granularity: Granularity,
        shown: Shown,
    ) -> Result<Self, Failure> {
        Ok(Self {
            ran,
            clients: batch.layout.clients(),
            counts: Default::default(),
            rows: Log::new(shown, 1)?,
            segments: Log::new(shown, batch.bounded_layers(granularity))?,
        })
    }

    /// Adds the report of the next rows.
    pub(super) fn append(&mut self, report: Report) -> Result<(), Failure> {
        for (count, status) in self.counts.iter_mut().zip(STATUSES) {
            *count += report.count(status);
        }
        let rows = report.rows.len();
        self.rows.append(rows, |row| [Entry::of_row(&report.rows[row])])?;
        self.segments.append(rows, |row| report.segments(row).iter().map(Entry::of_segment))?;
        self.ran = report.ran;
        Ok(())
    }

    /// The number of rows.
    pub(super) const fn clients(&self) -> usize {
        self.clients
    }

    /// The number of rows with this status.
    pub(super) const fn count(&self, status: Status) -> usize {
        self.counts[status as usize]
    }

    /// A row that is shown.
    pub(super) fn row(&self, row: usize) -> io::Result<Entry> {
        Ok(self.rows.row(row)?[0])
    }

    /// Its segments, where those have bounds of their own.
    pub(super) fn segments(&self, row: usize) -> io::Result<Vec<Entry>> {
        self.segments.row(row)
    }
}

impl Entry {
    fn of_row(row: &RowReport) -> Self {
        let &RowReport { norm, bound, factor, status } = row;
        Self { factor, norm, bound: bound.unwrap_or(f32::NAN), status: status as u64 }
    }

    fn of_segment(segment: &SegmentReport) -> Self {
        let &SegmentReport { norm, bound, factor, status } = segment;
        Self { factor, norm, bound, status: status as u64 }
    }

    pub(super) fn bound(&self) -> Option<f32> {
        (!self.bound.is_nan()).then_some(self.bound)
    }

    pub(super) const fn status(&self) -> Status {
        STATUSES[self.status as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_stand_at_their_numbers() {
        assert!(STATUSES.iter().enumerate().all(|(number, status)| *status as usize == number));
    }
}
