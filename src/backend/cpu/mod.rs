//! Threads and SIMD on the CPU.
//!
//! - `sum.rs`: sums of squares in `f64`, where the square of an `f32` is exact and cannot over- or underflow;
//!   their error is bounded, and a row whose rounding they leave open is summed exactly.
//! - `squares.rs`, `simd.rs`: the vectors of this processor.
//! - `apply.rs`: the clip stage on part of a span.
//! - `mean.rs`: the mean of clipped rows.
//! - `half.rs`, `f16.rs`: rows in half precision.

mod apply;
pub(crate) mod f16;
mod half;
mod mean;
pub(crate) mod simd;
mod squares;
mod sum;

use std::ops::Range;

use rayon::prelude::*;

use self::apply::apply;
use self::mean::{Elements, MeanBatch};
use self::sum::{FastSum, Values};
use super::{Backend, check_decisions, check_mean, check_mean_half};
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite};
use crate::error::{Error, Result};
use crate::half::Half;
use crate::norms::{Norm, Norms};
use crate::report::{BackendKind, Ran, Report, RowReport, row_of_one};
use crate::threshold::{Decision, Source, State, decide_span};

/// Elements that one task sums or scales: 256 KiB, so a task's data stays in a core's cache.
const TASK: usize = 1 << 16;

/// Elements of a row that a thread reads, then writes, without the help of others: 8 MiB, its part of a last-level
/// cache, where the clip stage then finds the row.
const OWN: usize = 1 << 21;

/// Elements below which one thread is faster than waking others.
const SEQUENTIAL: usize = 1 << 15;

/// The CPU backend: the default where no GPU is.
#[derive(Debug)]
pub struct Cpu {
    /// `None` is rayon's global pool.
    pool: Option<rayon::ThreadPool>,
    force_exact: bool,
    why: String,
}

impl Cpu {
    /// All the threads that rayon's global pool has.
    ///
    /// # Errors
    /// None at present; see [`Cpu::with_threads`].
    pub fn new() -> Result<Self> {
        Ok(Self { pool: None, force_exact: false, why: "asked for by name".into() })
    }

    /// A pool of this many threads of its own.
    ///
    /// # Errors
    /// [`Error::Threads`] where they cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::Threads { threads, message: e.to_string() })?;
        Ok(Self { pool: Some(pool), ..Self::new()? })
    }

    /// Sums every row exactly, as if no fast sum could ever be certified: slower, same bits.
    #[must_use]
    pub fn force_exact(mut self, force: bool) -> Self {
        self.force_exact = force;
        self
    }

    pub(crate) fn because(mut self, why: String) -> Self {
        self.why = why;
        self
    }

    fn install<T: Send>(&self, elements: usize, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) if elements > SEQUENTIAL => pool.install(work),
            _ => work(),
        }
    }

    /// The norm of a span in scope: certain from its fast sum, or exact.
    fn norm(&self, values: Values<'_>, sum: FastSum) -> Norm {
        let certain = if self.force_exact && sum.is_finite() { None } else { sum.norm() };
        certain.unwrap_or_else(|| values.exact_norm())
    }

    /// The norm of a row, and of its segments where those have bounds.
    fn row_norm(&self, batch: &Batch<'_>, row: usize, elements: &[f32]) -> (Norm, Vec<Norm>) {
        let granularity = batch.clipping.granularity;
        let segments = || batch.layout.segments_of(row).map(|segment| batch.layout.segment(segment));
        if !batch.mask[row] {
            let of_segments = if granularity == Granularity::Segment { segments().len() } else { 0 };
            return (Norm::OUT_OF_SCOPE, vec![Norm::OUT_OF_SCOPE; of_segments]);
        }
        let values = Values { values: elements, center: batch.clipping.center.as_deref() };
        match granularity {
            Granularity::Coordinate => (values.largest_magnitude(), Vec::new()),
            Granularity::Row => (self.norm(values, values.sum(batch.own)), Vec::new()),
            Granularity::Segment => {
                let start = batch.layout.row(row).start;
                let mut total = FastSum::default();
                let norms = segments().map(|segment| {
                    let part = values.part(segment.start - start, segment.len());
                    let sum = part.sum(batch.own);
                    total = total.join(sum);
                    self.norm(part, sum)
                });
                let norms = norms.collect();
                (self.norm(values, total), norms)
            }
        }
    }

    /// `work` on each number below `count`, in parallel where there are elements enough for that.
    fn map<T: Send>(&self, count: usize, elements: usize, work: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        if elements <= SEQUENTIAL {
            return (0..count).map(work).collect();
        }
        let at_least = rows_of_task(count, elements);
        self.install(elements, || (0..count).into_par_iter().with_min_len(at_least).map(work).collect())
    }

    /// Norm, decision and clip of each row while it is in a cache, for bounds that are known before the norms.
    fn run_rows(&self, batch: &Batch<'_>, data: &mut [f32], bounds: &[f32]) -> Vec<RowReport> {
        let run = |(row, values): (usize, &mut [f32])| {
            let norm = self.row_norm(batch, row, values).0;
            let decision = decide_span(norm, norm, bounds[row], batch.clipping);
            if decision.status.is_written() {
                batch.clip(values, &decision);
            }
            row_of_one(&decision)
        };
        let (layout, elements) = (batch.layout, batch.elements);
        if elements <= SEQUENTIAL {
            return rows_mut(layout, data).enumerate().map(run).collect();
        }
        let at_least = rows_of_task(layout.clients(), elements);
        self.install(elements, || match layout.stride() {
            Some(stride) => {
                let rows = data.par_chunks_mut(stride).take(layout.clients());
                let rows = rows.map(|row| &mut row[..layout.params()]);
                rows.enumerate().with_min_len(at_least).map(run).collect()
            }
            None => {
                let rows: Vec<&mut [f32]> = rows_mut(layout, data).collect();
                rows.into_par_iter().enumerate().with_min_len(at_least).map(run).collect()
            }
        })
    }
}

/// How many rows are a task.
fn rows_of_task(rows: usize, elements: usize) -> usize {
    (SEQUENTIAL * rows / elements).max(1)
}

/// The rows of a batch, one after the other.
fn rows_mut<'a, T>(layout: &'a Layout, data: &'a mut [T]) -> impl Iterator<Item = &'a mut [T]> {
    let mut rest = data;
    let mut position = 0;
    (0..layout.clients()).map(move |row| {
        let row = layout.row(row);
        let (_, after) = std::mem::take(&mut rest).split_at_mut(row.start - position);
        let (values, after) = after.split_at_mut(row.len());
        (rest, position) = (after, row.end);
        values
    })
}

/// What the stages read beside the elements.
struct Batch<'a> {
    layout: &'a Layout,
    clipping: &'a Clipping,
    mask: Vec<bool>,
    /// Elements in scope.
    elements: usize,
    /// Elements up to which a thread keeps a row to itself.
    own: usize,
}

impl<'a> Batch<'a> {
    fn new(layout: &'a Layout, clipping: &'a Clipping) -> Result<Self> {
        clipping.check_center(layout)?;
        let mask = clipping.scope.mask(layout.clients())?;
        let rows = mask.iter().filter(|in_scope| **in_scope).count();
        let elements = match layout.stride() {
            Some(_) => layout.params() * rows,
            None => (0..mask.len()).filter(|&row| mask[row]).map(|row| layout.row(row).len()).sum(),
        };
        // Few rows are shared by all threads, and so are rows that fit no cache.
        let own = if rows >= 4 * rayon::current_num_threads() { OWN } else { TASK };
        Ok(Self { layout, clipping, mask, elements, own })
    }

    /// The clip stage on a whole row, by all threads where it is long.
    fn clip(&self, values: &mut [f32], decision: &Decision) {
        let (center, granularity) = (self.clipping.center.as_deref(), self.clipping.granularity);
        if values.len() <= self.own {
            return apply(values, center, decision, granularity);
        }
        values.par_chunks_mut(TASK).enumerate().for_each(|(part, values)| {
            let start = part * TASK;
            apply(values, center.map(|center| &center[start..start + values.len()]), decision, granularity);
        });
    }
}

/// The coordinates of a row that its elements are.
fn coordinates(layout: &Layout, row: usize, elements: &Range<usize>) -> Range<usize> {
    let start = layout.row(row).start;
    elements.start - start..elements.end - start
}

impl Backend for Cpu {
    fn ran(&self) -> Ran {
        Ran { backend: BackendKind::Cpu, adapter: None, why: self.why.clone() }
    }

    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms> {
        layout.check(data.len())?;
        let batch = Batch::new(layout, clipping)?;
        let norm = |row| self.row_norm(&batch, row, &data[layout.row(row)]);
        if clipping.granularity != Granularity::Segment {
            let rows = self.map(layout.clients(), batch.elements, |row| norm(row).0);
            return Ok(Norms { rows, segments: Vec::new() });
        }
        let norms = self.map(layout.clients(), batch.elements, norm);
        let mut segments = Vec::with_capacity(layout.segment_count());
        let rows = norms.into_iter().map(|(row, of_row)| {
            segments.extend(of_row);
            row
        });
        Ok(Norms { rows: rows.collect(), segments })
    }

    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        let granularity = clipping.granularity;
        layout.check(data.len())?;
        clipping.check_center(layout)?;
        check_decisions(layout, granularity, decisions)?;
        let mut elements = 0;
        let mut tasks = Vec::new();
        let (mut rest, mut position) = (data, 0);
        for row in 0..layout.clients() {
            for index in layout.spans_of(granularity, row) {
                let decision = &decisions[index];
                if !decision.status.is_written() {
                    continue;
                }
                let span = layout.span(granularity, index);
                elements += span.len();
                let (values, tail) = rest.split_at_mut(span.start - position).1.split_at_mut(span.len());
                (rest, position) = (tail, span.end);
                let first = coordinates(layout, row, &span).start;
                for (part, values) in values.chunks_mut(TASK).enumerate() {
                    let start = first + part * TASK;
                    let center = clipping.center.as_ref().map(|center| &center[start..start + values.len()]);
                    tasks.push((values, center, decision));
                }
            }
        }
        if elements <= SEQUENTIAL {
            tasks.into_iter().for_each(|(part, center, decision)| apply(part, center, decision, granularity));
        } else {
            self.install(elements, || {
                tasks
                    .into_par_iter()
                    .for_each(|(part, center, decision)| apply(part, center, decision, granularity));
            });
        }
        Ok(())
    }

    fn run_with(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        layout.check(data.len())?;
        // Settings are checked before the data is read.
        let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
        source.prepare(&mut state.clone())?;
        match &source {
            // One row is as good as done before the next is read, unless a later one may make an error of all.
            Source::Given(bounds)
                if clipping.granularity != Granularity::Segment
                    && clipping.non_finite != NonFinite::Error =>
            {
                let batch = Batch::new(layout, clipping)?;
                Ok(Report { ran: self.ran(), rows: self.run_rows(&batch, data, bounds) })
            }
            _ => super::run_stages(self, layout, data, clipping, state),
        }
    }

    fn mean(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_mean(layout, data, clipping, weights)?;
        check_decisions(layout, clipping.granularity, decisions)?;
        let weights = weights.of_rows(layout.clients())?;
        let data = Elements::Single(data);
        let batch = MeanBatch::new(layout, data, clipping, decisions, &weights, self.force_exact);
        let mut mean = vec![0.0; layout.params()];
        self.install(layout.elements(), || batch.mean(&mut mean));
        Ok(mean)
    }

    fn norms_half(&self, layout: &Layout, half: Half, data: &[u16], clipping: &Clipping) -> Result<Norms> {
        self.half_norms(layout, half, data, clipping)
    }

    fn clip_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        self.half_clip(layout, half, data, clipping, decisions)
    }

    fn run_half_with(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        crate::half::check(layout, data.len(), clipping)?;
        let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
        source.prepare(&mut state.clone())?;
        match &source {
            Source::Given(bounds)
                if clipping.granularity != Granularity::Segment
                    && clipping.non_finite != NonFinite::Error =>
            {
                let batch = Batch::new(layout, clipping)?;
                Ok(Report { ran: self.ran(), rows: self.run_half_rows(&batch, half, data, bounds) })
            }
            _ => super::run_half_stages(self, layout, half, data, clipping, state),
        }
    }

    fn mean_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &[u16],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_mean_half(layout, data, clipping, weights)?;
        check_decisions(layout, clipping.granularity, decisions)?;
        let weights = weights.of_rows(layout.clients())?;
        let data = Elements::Half(half, data);
        let batch = MeanBatch::new(layout, data, clipping, decisions, &weights, self.force_exact);
        let mut mean = vec![0.0; layout.params()];
        self.install(layout.elements(), || batch.mean(&mut mean));
        Ok(mean)
    }
}
