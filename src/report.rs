//! What a run did: backend, and norm, bound, factor and status per row and per segment.

use std::fmt;

use crate::batch::{Granularity, Layout};
use crate::clip::Status;
use crate::norms::{Norm, NormClass, Norms};
use crate::threshold::Decision;

/// The kinds of backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Exact big-integer arithmetic, one thread: the specification.
    Reference,
    /// Threads and SIMD.
    Cpu,
    /// wgpu.
    Gpu,
}

impl BackendKind {
    /// `reference`, `cpu` or `gpu`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How norms and clip of a batch are spread over a GPU's dispatches; the results have the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Short rows, several to a workgroup.
    Rows,
    /// A workgroup sums, decides and clips a row in one dispatch.
    Fused,
    /// Workgroups take tiles, stage by stage.
    Tiled,
    /// As tiled, all stages for one group of rows after another.
    Grouped,
}

impl Strategy {
    /// `rows`, `fused`, `tiled` or `grouped`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Fused => "fused",
            Self::Tiled => "tiled",
            Self::Grouped => "grouped",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which backend ran, on what, and why that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// The backend.
    pub backend: BackendKind,
    /// The adapter's name, on `gpu`.
    pub adapter: Option<String>,
    /// How the batch was spread over dispatches, in the report of a run of a batch in host memory on `gpu`; of one in
    /// several windows or pieces that of the last, and `None` where the stages ran one by one. A caller's plan tells it
    /// by `Plan::strategy`.
    pub strategy: Option<Strategy>,
    /// Why this backend was taken, for a person.
    pub why: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backend)?;
        if let Some(adapter) = &self.adapter {
            write!(f, " on {adapter}")?;
        }
        if let Some(strategy) = self.strategy {
            write!(f, ", {strategy}")?;
        }
        write!(f, " ({})", self.why)
    }
}

/// One row of a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowReport {
    /// The norm before clipping; see [`Norm::value`](crate::Norm::value) for what is not a number.
    pub norm: f32,
    /// The bound; `None` where the segments of the row have different ones, or it has none.
    pub bound: Option<f32>,
    /// The factor; at segment granularity the least of its segments.
    pub factor: f64,
    /// The status; at segment granularity `zeroed` or `kept` if the row is, else `clipped` if any
    /// segment is.
    pub status: Status,
}

impl RowReport {
    /// Of a row out of scope that has this bound.
    pub(crate) const fn out_of_scope(bound: f32) -> Self {
        Self { norm: f32::NAN, bound: Some(bound), factor: 1.0, status: Status::OutOfScope }
    }
}

/// One segment of a row; see [`Report::segments`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentReport {
    /// The norm before clipping.
    pub norm: f32,
    /// The bound.
    pub bound: f32,
    /// The factor.
    pub factor: f64,
    /// The status.
    pub status: Status,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which backend ran.
    pub ran: Ran,
    /// One entry per row.
    pub rows: Vec<RowReport>,
    /// Those of all rows, and where each row's begin: rows are small, because a batch of short ones has many.
    segments: Vec<SegmentReport>,
    first_segments: Vec<usize>,
}

impl Report {
    /// The report of rows without segments.
    pub(crate) fn of_rows(ran: Ran, rows: Vec<RowReport>) -> Self {
        Self { ran, rows, segments: Vec::new(), first_segments: Vec::new() }
    }

    /// The report of stages that were run one by one: `norms` and `decisions` are theirs, of this layout.
    ///
    /// # Panics
    /// Where norms or decisions are of another layout.
    #[must_use]
    pub fn of_stages(
        ran: Ran,
        layout: &Layout,
        granularity: Granularity,
        norms: &Norms,
        decisions: &[Decision],
    ) -> Self {
        if granularity != Granularity::Segment {
            return Self::of_rows(ran, decisions[..norms.rows.len()].iter().map(row_of_one).collect());
        }
        let spans = |row| layout.spans_of(granularity, row);
        let rows =
            norms.rows.iter().enumerate().map(|(row, norm)| row_of_segments(*norm, &decisions[spans(row)]));
        Self {
            ran,
            rows: rows.collect(),
            segments: decisions.iter().map(segment_of).collect(),
            first_segments: (0..norms.rows.len())
                .map(|row| spans(row).start)
                .chain([decisions.len()])
                .collect(),
        }
    }

    /// The segments of row `row`, at segment granularity; else none.
    ///
    /// # Panics
    /// Where `row >= rows.len()`, as slice indexing does.
    #[must_use]
    pub fn segments(&self, row: usize) -> &[SegmentReport] {
        assert!(row < self.rows.len(), "row {row} of {}", self.rows.len());
        match self.first_segments.get(row..row + 2) {
            Some(&[first, end]) => &self.segments[first..end],
            _ => &[],
        }
    }

    /// Adds the rows of a batch that ran behind this one, as if both had been one.
    ///
    /// What ran is what ran last: a device may be found out only while it runs.
    pub fn append(&mut self, behind: Self) {
        let starts = |report: &Self| match report.first_segments.is_empty() {
            true => vec![0; report.rows.len() + 1],
            false => report.first_segments.clone(),
        };
        if !(self.first_segments.is_empty() && behind.first_segments.is_empty()) {
            self.first_segments = starts(self);
            let moved = starts(&behind).into_iter().skip(1).map(|start| self.segments.len() + start);
            self.first_segments.extend(moved);
        }
        self.rows.extend(behind.rows);
        self.segments.extend(behind.segments);
        self.ran = behind.ran;
    }

    /// The number of rows with this status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.rows.iter().filter(|row| row.status == status).count()
    }
}

#[inline]
pub(crate) fn row_of_one(decision: &Decision) -> RowReport {
    RowReport {
        norm: decision.norm.value(),
        bound: Some(decision.bound),
        factor: decision.factor,
        status: decision.status,
    }
}

fn segment_of(decision: &Decision) -> SegmentReport {
    SegmentReport {
        norm: decision.norm.value(),
        bound: decision.bound,
        factor: decision.factor,
        status: decision.status,
    }
}

fn row_of_segments(norm: Norm, spans: &[Decision]) -> RowReport {
    let bound = spans.first().map(|first| first.bound);
    // Scope and non-finite policy decide whole rows, so clipped mixes only with untouched.
    let status = match spans.first().map(|first| first.status) {
        Some(_) if spans.iter().any(|span| span.status == Status::Clipped) => Status::Clipped,
        Some(status) => status,
        None if norm.class() == NormClass::OutOfScope => Status::OutOfScope,
        None => Status::Untouched,
    };
    RowReport {
        norm: norm.value(),
        bound: bound.filter(|bound| spans.iter().all(|span| span.bound == *bound)),
        factor: spans.iter().map(|span| span.factor).fold(1.0, f64::min),
        status,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Reference};
    use crate::clip::Clipping;

    #[test]
    fn reports_of_parts_joined_are_the_report_of_the_whole() {
        let lengths = [vec![2, 1], vec![], vec![3], vec![1, 0, 4]];
        let (whole, upper, lower) = (
            Layout::ragged_layered(&lengths).unwrap(),
            Layout::ragged_layered(&lengths[..2]).unwrap(),
            Layout::ragged_layered(&lengths[2..]).unwrap(),
        );
        let data: Vec<f32> = (0..whole.len()).map(|i| i as f32 - 4.5).collect();
        for granularity in [Granularity::Row, Granularity::Segment] {
            let clipping = Clipping::fixed(3.0).granularity(granularity);
            let run =
                |layout: &Layout, data: &[f32]| Reference.run(layout, &mut data.to_vec(), &clipping).unwrap();
            let (first, second) = data.split_at(upper.len());
            let mut joined = run(&upper, first);
            joined.append(run(&lower, second));
            assert_eq!(joined, run(&whole, &data));
            let lengths = (0..4).map(|row| joined.segments(row).len());
            let expected = if granularity == Granularity::Row { [0; 4] } else { [2, 0, 1, 3] };
            assert!(lengths.eq(expected));
        }
    }
}
