//! Threads and SIMD on the CPU.
//!
//! - `sum.rs`: sums of squares in `f64`, where the square of an `f32` is exact and cannot over- or underflow;
//!   their error is bounded, and a row whose rounding they leave open is summed exactly.
//! - `apply.rs`: the clip stage on part of a span.
//! - `mean.rs`: the mean of clipped rows.

mod apply;
mod mean;
mod sum;

use std::ops::Range;

use rayon::prelude::*;

use self::apply::apply;
use self::mean::MeanBatch;
use self::sum::{FastSum, Values};
use super::{Backend, check_decisions, check_mean};
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::clip::Clipping;
use crate::error::{Error, Result};
use crate::norms::{Norm, NormClass, Norms};
use crate::report::{BackendKind, Ran};
use crate::threshold::Decision;

/// Elements that one task sums or scales: 256 KiB, so a task's data stays in a core's cache.
const TASK: usize = 1 << 16;

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

    /// `work` on each item, in parallel where there are elements enough for that.
    fn map<I: Sync, T: Send>(
        &self,
        items: &[I],
        elements: usize,
        work: impl Fn(&I) -> T + Sync + Send,
    ) -> Vec<T> {
        if elements <= SEQUENTIAL {
            return items.iter().map(work).collect();
        }
        let at_least = (SEQUENTIAL * items.len() / elements).max(1);
        self.install(elements, || items.par_iter().with_min_len(at_least).map(work).collect())
    }

    /// The norms of spans from their fast sums; those that a sum leaves open are summed exactly.
    fn decide(&self, spans: &[Summed<'_>]) -> Vec<Norm> {
        let mut norms: Vec<Norm> = spans.iter().map(|span| self.certified(span)).collect();
        let open: Vec<usize> = (0..norms.len()).filter(|&i| norms[i] == OPEN).collect();
        let elements = open.iter().map(|&i| spans[i].span.values.values.len()).sum();
        // Hostile clients can make every norm one of these: they are worth all threads.
        let exact_norms = self.map(&open, elements, |&i| spans[i].span.values.exact_norm());
        open.into_iter().zip(exact_norms).for_each(|(i, norm)| norms[i] = norm);
        norms
    }

    /// The norm of a span where its fast sum decides it, else [`OPEN`].
    fn certified(&self, span: &Summed<'_>) -> Norm {
        if !span.span.in_scope {
            Norm::OUT_OF_SCOPE
        } else if self.force_exact && span.sum.is_finite() {
            OPEN
        } else {
            span.sum.norm().unwrap_or(OPEN)
        }
    }
}

/// A row or segment on its way to its norm.
#[derive(Clone, Copy)]
struct Span<'a> {
    /// No elements where it is out of scope.
    values: Values<'a>,
    in_scope: bool,
}

/// A span and its fast sum.
struct Summed<'a> {
    span: Span<'a>,
    sum: FastSum,
}

/// Stands for a norm that the fast sum does not decide: no norm is below an exact zero.
const OPEN: Norm = Norm::new(0, NormClass::Below);

/// What the stages read: the batch and the centre beside it.
struct Batch<'a> {
    layout: &'a Layout,
    data: &'a [f32],
    clipping: &'a Clipping,
    mask: Vec<bool>,
}

impl<'a> Batch<'a> {
    /// Elements of a row, all of it or one of its spans.
    fn span(&self, row: usize, elements: Range<usize>) -> Span<'a> {
        let in_scope = self.mask[row];
        if !in_scope {
            return Span { values: Values::default(), in_scope };
        }
        let center = self.clipping.center.as_deref();
        let center = center.map(|center| &center[coordinates(self.layout, row, &elements)]);
        Span { values: Values { values: &self.data[elements], center }, in_scope }
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
        clipping.check_center(layout)?;
        let batch = Batch { layout, data, clipping, mask: clipping.scope.mask(layout.clients())? };
        let granularity = clipping.granularity;
        let spans: Vec<Span> = (0..layout.clients())
            .flat_map(|row| layout.spans_of(granularity, row).map(move |span| (row, span)))
            .map(|(row, span)| batch.span(row, layout.span(granularity, span)))
            .collect();
        let elements = spans.iter().map(|span| span.values.values.len()).sum();
        if granularity == Granularity::Coordinate {
            let largest = |span: &Span| {
                if span.in_scope { span.values.largest_magnitude() } else { Norm::OUT_OF_SCOPE }
            };
            return Ok(Norms { rows: self.map(&spans, elements, largest), segments: Vec::new() });
        }
        let sums = self.map(&spans, elements, |span| span.values.sum());
        let rows = (0..layout.clients()).map(|row| {
            let sums = sums[layout.spans_of(granularity, row)].iter().copied();
            Summed {
                span: batch.span(row, layout.row(row)),
                sum: sums.fold(FastSum::default(), FastSum::join),
            }
        });
        let rows = self.decide(&rows.collect::<Vec<_>>());
        if granularity == Granularity::Row {
            return Ok(Norms { rows, segments: Vec::new() });
        }
        let segments = spans.into_iter().zip(sums).map(|(span, sum)| Summed { span, sum });
        Ok(Norms { rows, segments: self.decide(&segments.collect::<Vec<_>>()) })
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
        let batch = MeanBatch::new(layout, data, clipping, decisions, &weights, self.force_exact);
        let mut mean = vec![0.0; layout.params()];
        self.install(layout.elements(), || batch.mean(&mut mean));
        Ok(mean)
    }
}
