//! The stages over rows, however their elements are stored: what threads share, and what one row takes.

use rayon::prelude::*;

use super::group::{RowGroup, RowSet};
use super::short::ShortRows;
use super::simd::prefetches_within;
use super::squares::ROWS;
use super::sum::FastSum;
use super::{Cpu, LEAST, OWN, SEQUENTIAL, TASK};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Scope};
use crate::error::Result;
use crate::norms::{INFINITY_BITS, Norm, NormClass, Norms};
use crate::numerics::ExactSum;
use crate::report::{RowReport, row_of_one};
use crate::threshold::{Decision, decide_span};

/// What norm, decision and report of a row cost beside its elements, as a number of those.
const ROW: usize = 32;

/// How elements are stored, and what one thread does with some of a row that lie side by side. `first` is the
/// coordinate of the first of them.
pub(super) trait Storage: Sync {
    type Element: Send + Sync;

    /// Their sum of squares; the first `prefetches` of them ask for memory ahead.
    fn sum(&self, elements: &[Self::Element], first: usize, prefetches: usize) -> FastSum;

    /// The fast sums of some short rows, from their first element on; 0 of the others, which are empty.
    fn sums(&self, rows: &[&[Self::Element]; ROWS], which: RowSet) -> [f64; ROWS];

    /// The same of all rows of a group, while memory ahead of it is asked for.
    fn sums_of_group(&self, group: RowGroup<'_, Self::Element>) -> [f64; ROWS];

    /// Scales a row, from its first element on.
    fn scale(&self, elements: &mut [Self::Element], factor: f64);

    /// The sum of squares of finite elements without any error.
    fn exact_sum(&self, elements: &[Self::Element], first: usize) -> ExactSum;

    /// The largest magnitude, as the bits of an `f32`; those of infinity or more where one is not finite.
    fn largest_magnitude(&self, elements: &[Self::Element]) -> u32;

    /// Writes what the decision makes of them.
    fn apply(&self, elements: &mut [Self::Element], first: usize, decision: &Decision);
}

/// A batch, and how its rows are worked on.
pub(super) struct Rows<'a, S> {
    pub(super) layout: &'a Layout,
    pub(super) clipping: &'a Clipping,
    pub(super) storage: S,
    pub(super) cpu: &'a Cpu,
    /// Which rows are in scope; `None` is all.
    pub(super) mask: Option<Vec<bool>>,
    /// What is to be done, in elements.
    pub(super) work: usize,
    /// Elements up to which a thread keeps a row to itself.
    own: usize,
}

impl<'a, S: Storage> Rows<'a, S> {
    pub(super) fn new(cpu: &'a Cpu, layout: &'a Layout, clipping: &'a Clipping, storage: S) -> Result<Self> {
        clipping.check_center(layout)?;
        let clients = layout.clients();
        let mask = match &clipping.scope {
            Scope::All => None,
            scope => Some(scope.mask(clients)?),
        };
        let in_scope =
            mask.as_ref().map_or(clients, |mask| mask.iter().filter(|in_scope| **in_scope).count());
        let elements = match (&mask, layout.stride()) {
            (None, _) => layout.elements(),
            (Some(_), Some(_)) => layout.params() * in_scope,
            (Some(mask), None) => {
                (0..clients).filter(|&row| mask[row]).map(|row| layout.row(row).len()).sum()
            }
        };
        // Few rows are shared by all threads, and so are rows that fit no cache.
        let own = if in_scope >= 4 * rayon::current_num_threads() { OWN } else { TASK };
        let work = elements + ROW * clients;
        Ok(Self { layout, clipping, storage, cpu, mask, work, own })
    }

    fn in_scope(&self, row: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[row])
    }

    /// The norms stage.
    pub(super) fn norms(&self, data: &[S::Element]) -> Norms {
        let row = |row: usize| &data[self.layout.row(row)];
        if self.clipping.granularity != Granularity::Segment {
            let rows = match ShortRows::of(self) {
                Some(short) => short.norms(data),
                None => self.map(|index| self.row_norm(index, row(index))),
            };
            return Norms { rows, segments: Vec::new() };
        }
        let norms = self.map(|index| self.segment_norms(index, row(index)));
        let mut segments = Vec::with_capacity(self.layout.segment_count());
        let rows = norms.into_iter().map(|(row, of_row)| {
            segments.extend(of_row);
            row
        });
        Norms { rows: rows.collect(), segments }
    }

    /// Norm, decision and clip of each row while it is in a cache, for bounds of rows that are known before the norms.
    pub(super) fn run(&self, data: &mut [S::Element], bounds: &[f32]) -> Vec<RowReport> {
        let run = |(row, elements): (usize, &mut [S::Element])| self.run_row(row, elements, bounds[row]);
        let (layout, params) = (self.layout, self.layout.params());
        if let Some(short) = ShortRows::of(self) {
            return short.run(data, bounds);
        }
        if self.work <= SEQUENTIAL {
            return rows_mut(layout, data).enumerate().map(run).collect();
        }
        let at_least = self.rows_of_task();
        self.cpu.install(self.work, || match self.stride() {
            Some(stride) => {
                let rows = data.par_chunks_mut(stride).take(layout.clients());
                let rows = rows.map(|row| &mut row[..params]);
                rows.enumerate().with_min_len(at_least).map(run).collect()
            }
            None => {
                let rows: Vec<&mut [S::Element]> = rows_mut(layout, data).collect();
                rows.into_par_iter().enumerate().with_min_len(at_least).map(run).collect()
            }
        })
    }

    /// The stride of rows that lie at equal distances and have elements: cut there, data has a chunk for each row.
    pub(super) fn stride(&self) -> Option<usize> {
        self.layout.stride().filter(|_| self.layout.params() > 0)
    }

    /// All stages of a row.
    #[inline(never)]
    pub(super) fn run_row(&self, row: usize, elements: &mut [S::Element], bound: f32) -> RowReport {
        let norm = self.row_norm(row, elements);
        let decision = decide_span(norm, norm, bound, self.clipping);
        if decision.status.is_written() {
            self.clip_row(elements, &decision);
        }
        row_of_one(&decision)
    }

    /// The clip stage. A long span is cut in parts, so that threads share it.
    pub(super) fn clip(&self, data: &mut [S::Element], decisions: &[Decision]) {
        let mut work = 0;
        let mut tasks = Vec::new();
        let (mut rest, mut position) = (data, 0);
        for row in 0..self.layout.clients() {
            let start = self.layout.row(row).start;
            for index in self.layout.spans_of(self.clipping.granularity, row) {
                let decision = &decisions[index];
                if !decision.status.is_written() {
                    continue;
                }
                let span = self.layout.span(self.clipping.granularity, index);
                work += span.len() + ROW;
                let (elements, tail) = rest.split_at_mut(span.start - position).1.split_at_mut(span.len());
                (rest, position) = (tail, span.end);
                let parts = elements.chunks_mut(TASK).enumerate();
                tasks.extend(
                    parts.map(|(part, elements)| (elements, span.start - start + part * TASK, decision)),
                );
            }
        }
        let apply = |(elements, first, decision): (&mut [S::Element], usize, &Decision)| {
            self.storage.apply(elements, first, decision);
        };
        if work <= SEQUENTIAL {
            tasks.into_iter().for_each(apply);
        } else {
            let at_least = (LEAST * tasks.len() / work).max(1);
            self.cpu.install(work, || tasks.into_par_iter().with_min_len(at_least).for_each(apply));
        }
    }

    /// The clip stage on a whole row, by all threads where it is long.
    fn clip_row(&self, elements: &mut [S::Element], decision: &Decision) {
        if elements.len() <= self.own {
            return self.storage.apply(elements, 0, decision);
        }
        let parts = elements.par_chunks_mut(TASK).enumerate();
        parts.for_each(|(part, elements)| self.storage.apply(elements, part * TASK, decision));
    }

    /// The norm of a row, where rows have bounds.
    #[inline(never)]
    pub(super) fn row_norm(&self, row: usize, elements: &[S::Element]) -> Norm {
        if !self.in_scope(row) {
            return Norm::OUT_OF_SCOPE;
        }
        match self.clipping.granularity {
            Granularity::Coordinate => self.largest_magnitude(elements),
            Granularity::Row | Granularity::Segment => self.norm(elements, 0, self.sum(elements, 0)),
        }
    }

    /// The norm of a row, and of its segments, where those have bounds.
    fn segment_norms(&self, row: usize, elements: &[S::Element]) -> (Norm, Vec<Norm>) {
        let segments = self.layout.segments_of(row);
        if !self.in_scope(row) {
            return (Norm::OUT_OF_SCOPE, vec![Norm::OUT_OF_SCOPE; segments.len()]);
        }
        let start = self.layout.row(row).start;
        let mut total = FastSum::default();
        let norms = segments.map(|segment| {
            let segment = self.layout.segment(segment);
            let (first, end) = (segment.start - start, segment.end - start);
            let sum = self.sum(&elements[first..end], first);
            total = total.join(sum);
            self.norm(&elements[first..end], first, sum)
        });
        let norms = norms.collect();
        (self.norm(elements, 0, total), norms)
    }

    /// The norm of a span in scope: certain from its fast sum, or exact.
    #[inline(always)]
    fn norm(&self, elements: &[S::Element], first: usize, sum: FastSum) -> Norm {
        let certain = if self.cpu.force_exact && sum.is_finite() { None } else { sum.norm() };
        certain.unwrap_or_else(|| self.exact_norm(elements, first))
    }

    /// The fast sum, by all threads where it is longer than a thread keeps to itself.
    #[inline(always)]
    fn sum(&self, elements: &[S::Element], first: usize) -> FastSum {
        let sum = |elements: &[S::Element], first| {
            // Behind a row there may be one out of scope.
            let count = elements.len();
            let prefetches = if self.mask.is_none() { count } else { prefetches_within::<S::Element>(count) };
            self.storage.sum(elements, first, prefetches)
        };
        if elements.len() <= self.own {
            return sum(elements, first);
        }
        let sums = parts(elements).map(|(start, part)| sum(part, first + start));
        sums.reduce(FastSum::default, FastSum::join)
    }

    /// The exact norm of finite elements, by all threads where they are many.
    #[cold]
    #[inline(never)]
    fn exact_norm(&self, elements: &[S::Element], first: usize) -> Norm {
        if elements.len() <= TASK {
            return self.storage.exact_sum(elements, first).norm();
        }
        let join = |mut a: ExactSum, b: ExactSum| {
            a.add(&b);
            a
        };
        let sums = parts(elements).map(|(start, part)| self.storage.exact_sum(part, first + start));
        sums.reduce(ExactSum::default, join).norm()
    }

    /// The norm of a row whose coordinates are bounded.
    fn largest_magnitude(&self, elements: &[S::Element]) -> Norm {
        let largest = if elements.len() <= self.own {
            self.storage.largest_magnitude(elements)
        } else {
            parts(elements).map(|(_, part)| self.storage.largest_magnitude(part)).max().unwrap_or(0)
        };
        if largest >= INFINITY_BITS { Norm::NON_FINITE } else { Norm::new(largest, NormClass::Exact) }
    }

    /// `work` on each row, in parallel where there is enough of it.
    fn map<T: Send>(&self, work: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        let rows = 0..self.layout.clients();
        if self.work <= SEQUENTIAL {
            return rows.map(work).collect();
        }
        let at_least = self.rows_of_task();
        self.cpu.install(self.work, || rows.into_par_iter().with_min_len(at_least).map(work).collect())
    }

    /// How many rows are worth a task: all of them where one thread takes the batch.
    pub(super) fn rows_of_task(&self) -> usize {
        let clients = self.layout.clients();
        if self.work <= SEQUENTIAL { clients.max(1) } else { (LEAST * clients / self.work).max(1) }
    }
}

/// The tasks that elements are cut in, each with its place.
fn parts<T: Sync>(elements: &[T]) -> impl IndexedParallelIterator<Item = (usize, &[T])> {
    elements.par_chunks(TASK).enumerate().map(|(part, elements)| (part * TASK, elements))
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
