//! Threads and SIMD on the CPU.
//!
//! The sum of squares runs in `f64`, where the square of an `f32` is exact and cannot over- or
//! underflow; its error is bounded, and a row whose rounding it leaves open is summed exactly.

use rayon::prelude::*;

use super::{Backend, check_decisions};
use crate::batch::{Granularity, Layout};
use crate::clip::{Scope, Status};
use crate::error::{Error, Result};
use crate::norms::{INFINITY_BITS, Norm, NormClass, Norms};
use crate::numerics::{ExactSum, certify, clamped, scaled};
use crate::report::{BackendKind, Ran};
use crate::threshold::Decision;

/// Elements that one task sums or scales: 256 KiB, so a task's data stays in a core's cache.
const TASK: usize = 1 << 16;

/// Elements below which one thread is faster than waking others.
const SEQUENTIAL: usize = 1 << 15;

/// Elements that are summed in plain `f64` before the block's sum joins the row's.
const BLOCK: usize = 4096;

/// Independent sums of a block, for SIMD and to hide the latency of addition.
const LANES: usize = 32;

/// A row's sum is within `1 ± 2^-QUALITY` of the exact one.
///
/// Each lane adds BLOCK / LANES = 128 exact squares, five more levels join the lanes: 133 roundings
/// of 2^-53. Blocks and segments are joined with their rounding error carried along: n joins leave
/// n² · 2^-106, less than as much again for n up to 2^30 (a row of 2^31 elements has 2^19 blocks, and
/// a batch has at most 2^28 segments). 266 · 2^-53 < 2^-44.
const QUALITY: u32 = 44;

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

    /// The sum of squares of each span, in parallel over spans and over the parts of long ones.
    fn sums(&self, data: &[f32], spans: &[std::ops::Range<usize>]) -> Vec<FastSum> {
        let elements: usize = spans.iter().map(ExactSizeIterator::len).sum();
        let sum = |span: &std::ops::Range<usize>| {
            let values = &data[span.clone()];
            if values.len() <= TASK {
                return FastSum::of(values);
            }
            values.par_chunks(TASK).map(FastSum::of).reduce(FastSum::default, FastSum::join)
        };
        if elements <= SEQUENTIAL {
            return spans.iter().map(sum).collect();
        }
        let at_least = (SEQUENTIAL * spans.len() / elements).max(1);
        self.install(elements, || spans.par_iter().with_min_len(at_least).map(sum).collect())
    }

    /// The largest magnitude of each row in scope, in parallel.
    fn largest_magnitudes(&self, data: &[f32], rows: &[std::ops::Range<usize>], mask: &[bool]) -> Vec<Norm> {
        let elements = rows.iter().map(ExactSizeIterator::len).sum();
        let largest = |(row, &in_scope): (&std::ops::Range<usize>, &bool)| {
            if !in_scope {
                return Norm::OUT_OF_SCOPE;
            }
            // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
            let bits =
                |part: &[f32]| part.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
            let values = &data[row.clone()];
            let largest = if values.len() <= TASK {
                bits(values)
            } else {
                values.par_chunks(TASK).map(bits).max().unwrap_or(0)
            };
            if largest >= INFINITY_BITS { Norm::NON_FINITE } else { Norm::new(largest, NormClass::Exact) }
        };
        if elements <= SEQUENTIAL {
            return rows.iter().zip(mask).map(largest).collect();
        }
        self.install(elements, || rows.par_iter().zip(mask).map(largest).collect())
    }

    /// The norms of spans from their fast sums; those that a sum leaves open are summed exactly.
    fn decide(&self, data: &[f32], spans: &[Span]) -> Vec<Norm> {
        let mut norms: Vec<Norm> = spans.iter().map(|span| self.certified(span)).collect();
        let open: Vec<usize> = (0..norms.len()).filter(|&i| norms[i] == OPEN).collect();
        let values = |i: &usize| &data[spans[*i].elements.clone()];
        let elements = open.iter().map(|i| values(i).len()).sum();
        let exact_norm = |i: usize| (i, exact(values(&i)));
        // Hostile clients can make every norm one of these: they are worth all threads.
        let exact_norms: Vec<(usize, Norm)> = if elements <= SEQUENTIAL {
            open.into_iter().map(exact_norm).collect()
        } else {
            self.install(elements, || open.into_par_iter().map(exact_norm).collect())
        };
        exact_norms.into_iter().for_each(|(i, norm)| norms[i] = norm);
        norms
    }

    /// The norm of a span where its fast sum decides it, else [`OPEN`].
    fn certified(&self, span: &Span) -> Norm {
        let sum = span.sum.total();
        if !span.in_scope {
            Norm::OUT_OF_SCOPE
        } else if !sum.is_finite() {
            Norm::NON_FINITE
        } else if self.force_exact {
            OPEN
        } else {
            certify(sum, QUALITY).unwrap_or(OPEN)
        }
    }
}

/// A row or segment on its way to its norm.
struct Span {
    elements: std::ops::Range<usize>,
    in_scope: bool,
    sum: FastSum,
}

/// Stands for a norm that the fast sum does not decide: no norm is below an exact zero.
const OPEN: Norm = Norm::new(0, NormClass::Below);

impl Backend for Cpu {
    fn ran(&self) -> Ran {
        Ran { backend: BackendKind::Cpu, adapter: None, why: self.why.clone() }
    }

    fn norms(&self, layout: &Layout, data: &[f32], scope: &Scope, granularity: Granularity) -> Result<Norms> {
        layout.check(data.len())?;
        let mask = scope.mask(layout.clients())?;
        let read = |row: usize, span: std::ops::Range<usize>| if mask[row] { span } else { 0..0 };
        let elements: Vec<_> = (0..layout.clients())
            .flat_map(|row| layout.spans_of(granularity, row).map(move |span| (row, span)))
            .map(|(row, span)| read(row, layout.span(granularity, span)))
            .collect();
        if granularity == Granularity::Coordinate {
            return Ok(Norms { rows: self.largest_magnitudes(data, &elements, &mask), segments: Vec::new() });
        }
        let sums = self.sums(data, &elements);

        let rows = (0..layout.clients()).map(|row| Span {
            elements: read(row, layout.row(row)),
            in_scope: mask[row],
            sum: sums[layout.spans_of(granularity, row)]
                .iter()
                .copied()
                .fold(FastSum::default(), FastSum::join),
        });
        let rows = self.decide(data, &rows.collect::<Vec<_>>());
        if granularity == Granularity::Row {
            return Ok(Norms { rows, segments: Vec::new() });
        }
        let mut segments: Vec<Span> = Vec::with_capacity(elements.len());
        for (row, &in_scope) in mask.iter().enumerate() {
            segments.extend(layout.spans_of(granularity, row).map(|span| Span {
                elements: elements[span].clone(),
                in_scope,
                sum: sums[span],
            }));
        }
        Ok(Norms { rows, segments: self.decide(data, &segments) })
    }

    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        granularity: Granularity,
        decisions: &[Decision],
    ) -> Result<()> {
        layout.check(data.len())?;
        check_decisions(layout, granularity, decisions)?;
        let mut elements = 0;
        let mut tasks = Vec::new();
        let (mut rest, mut position) = (data, 0);
        for (span, decision) in decisions.iter().enumerate() {
            if !decision.status.is_written() {
                continue;
            }
            let span = layout.span(granularity, span);
            elements += span.len();
            let (values, tail) = rest.split_at_mut(span.start - position).1.split_at_mut(span.len());
            (rest, position) = (tail, span.end);
            tasks.extend(values.chunks_mut(TASK).map(|part| (part, decision)));
        }
        if elements <= SEQUENTIAL {
            tasks.into_iter().for_each(|(part, decision)| apply(part, decision, granularity));
        } else {
            self.install(elements, || {
                tasks.into_par_iter().for_each(|(part, decision)| apply(part, decision, granularity))
            });
        }
        Ok(())
    }
}

/// The clip stage on part of a span.
fn apply(values: &mut [f32], decision: &Decision, granularity: Granularity) {
    let (factor, bound) = (decision.factor, decision.bound);
    if decision.status == Status::Zeroed {
        values.fill(0.0);
    } else if granularity == Granularity::Coordinate {
        values.iter_mut().for_each(|value| *value = clamped(*value, bound));
    } else {
        values.iter_mut().for_each(|value| *value = scaled(*value, factor));
    }
}

/// A sum and the rounding error of its additions, `high + low`.
#[derive(Debug, Clone, Copy, Default)]
struct FastSum {
    high: f64,
    low: f64,
}

impl FastSum {
    fn of(values: &[f32]) -> Self {
        values
            .chunks(BLOCK)
            .map(|block| Self { high: block_sum(block), low: 0.0 })
            .fold(Self::default(), Self::join)
    }

    /// Knuth's TwoSum: `high` is rounded, `low` takes the exact error. Rust neither reassociates
    /// nor contracts floating point, so nothing here can be optimised away.
    fn join(self, other: Self) -> Self {
        let high = self.high + other.high;
        let theirs = high - self.high;
        let error = (self.high - (high - theirs)) + (other.high - theirs);
        Self { high, low: self.low + other.low + error }
    }

    /// Not finite exactly where a value was not: squares of finite `f32` cannot overflow `f64`.
    fn total(self) -> f64 {
        if self.high.is_finite() { self.high + self.low } else { self.high }
    }
}

fn block_sum(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (groups, rest) = block.as_chunks::<LANES>();
    for group in groups {
        for (lane, &value) in lanes.iter_mut().zip(group) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value) * f64::from(value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The exact norm of finite values, in parallel.
fn exact(values: &[f32]) -> Norm {
    if values.len() <= TASK {
        return ExactSum::of(values).norm();
    }
    let join = |mut a: ExactSum, b: ExactSum| {
        a.add(&b);
        a
    };
    values.par_chunks(TASK).map(ExactSum::of).reduce(ExactSum::default, join).norm()
}
