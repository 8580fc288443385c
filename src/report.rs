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
    /// Why this backend was taken, for a person.
    pub why: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.adapter {
            Some(adapter) => write!(f, "{} on {adapter} ({})", self.backend, self.why),
            None => write!(f, "{} ({})", self.backend, self.why),
        }
    }
}

/// One row of a [`Report`].
#[derive(Debug, Clone, PartialEq)]
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
    /// The segments, at segment granularity; else empty.
    pub segments: Vec<SegmentReport>,
}

/// One segment of a [`RowReport`].
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
}

impl Report {
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
        let rows = norms.rows.iter().enumerate().map(|(row, norm)| {
            let spans = &decisions[layout.spans_of(granularity, row)];
            match granularity {
                Granularity::Row | Granularity::Coordinate => row_of_one(&spans[0]),
                Granularity::Segment => row_of_segments(*norm, spans),
            }
        });
        Self { ran, rows: rows.collect() }
    }

    /// The number of rows with this status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.rows.iter().filter(|row| row.status == status).count()
    }
}

pub(crate) fn row_of_one(decision: &Decision) -> RowReport {
    RowReport {
        norm: decision.norm.value(),
        bound: Some(decision.bound),
        factor: decision.factor,
        status: decision.status,
        segments: Vec::new(),
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
        segments: spans
            .iter()
            .map(|span| SegmentReport {
                norm: span.norm.value(),
                bound: span.bound,
                factor: span.factor,
                status: span.status,
            })
            .collect(),
    }
}
