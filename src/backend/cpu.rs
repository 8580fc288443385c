//! Threads and SIMD on the CPU.
//!
//! The sum of squares runs in `f64`, where the square of an `f32` is exact and cannot over- or
//! underflow; its error is bounded, and a row whose rounding it leaves open is summed exactly.

use rayon::prelude::*;

use super::{Backend, check_decisions, check_mean};
use crate::aggregate::{Divisor, ExactMean, Weights, clipped, counts};
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

    fn mean(
        &self,
        layout: &Layout,
        data: &[f32],
        granularity: Granularity,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_mean(layout, data, weights)?;
        check_decisions(layout, granularity, decisions)?;
        let weights = weights.of_rows(layout.clients())?;
        let divisor = Divisor::new(layout, granularity, decisions, &weights);
        let rows = (0..layout.clients())
            .filter(|&row| weights[row] > 0.0 && counts(layout, granularity, decisions, row))
            .map(|row| MeanRow { weight: weights[row], spans: layout.spans_of(granularity, row) });
        let batch = MeanBatch {
            layout,
            data,
            granularity,
            decisions,
            rows: rows.collect(),
            divisor,
            force_exact: self.force_exact,
        };
        let mut mean = vec![0.0; layout.params()];
        let strips = batch.strips(&mut mean);
        if layout.elements() <= SEQUENTIAL {
            strips.into_iter().for_each(|strip| batch.mean(strip));
        } else {
            self.install(layout.elements(), || strips.into_par_iter().for_each(|strip| batch.mean(strip)));
        }
        Ok(mean)
    }
}

/// Coordinates that one task averages: their sums stay in a core's cache while the rows pass.
const STRIP: usize = 1024;

/// What the mean is taken of.
struct MeanBatch<'a> {
    layout: &'a Layout,
    data: &'a [f32],
    granularity: Granularity,
    decisions: &'a [Decision],
    /// The rows that count and weigh anything.
    rows: Vec<MeanRow>,
    divisor: Divisor,
    force_exact: bool,
}

struct MeanRow {
    weight: f32,
    spans: std::ops::Range<usize>,
}

/// Coordinates within the `span`-th span of every row, from element `first` of it.
struct Strip<'a> {
    span: usize,
    first: usize,
    mean: &'a mut [f32],
}

/// The sum of a coordinate's terms and of their magnitudes.
#[derive(Clone, Copy, Default)]
struct MeanSum {
    sum: f64,
    size: f64,
}

impl MeanBatch<'_> {
    fn strips<'a>(&self, mean: &'a mut [f32]) -> Vec<Strip<'a>> {
        let Some(row) = self.rows.first() else { return Vec::new() };
        let (mut strips, mut rest) = (Vec::new(), mean);
        for (span, index) in row.spans.clone().enumerate() {
            let length = self.layout.span(self.granularity, index).len();
            let (of_span, tail) = rest.split_at_mut(length);
            rest = tail;
            let parts = of_span.chunks_mut(STRIP).enumerate();
            strips.extend(parts.map(|(part, mean)| Strip { span, first: part * STRIP, mean }));
        }
        strips
    }

    /// The means of a strip from fast sums; coordinates that those leave open are summed exactly.
    fn mean(&self, strip: Strip<'_>) {
        let mut sums = [MeanSum::default(); STRIP];
        for row in &self.rows {
            let (values, decision) = self.values(&strip, row);
            add_row(&mut sums, values, row.weight, decision, self.granularity);
        }
        let divisor = self.divisor.to_f64();
        for (i, sum) in sums[..strip.mean.len()].iter().enumerate() {
            let certain = if self.force_exact { None } else { sum.certify(self.rows.len(), divisor) };
            strip.mean[i] = certain.unwrap_or_else(|| self.exact(&strip, i));
        }
    }

    fn values(&self, strip: &Strip<'_>, row: &MeanRow) -> (&[f32], &Decision) {
        let span = row.spans.start + strip.span;
        let start = self.layout.span(self.granularity, span).start + strip.first;
        (&self.data[start..start + strip.mean.len()], &self.decisions[span])
    }

    fn exact(&self, strip: &Strip<'_>, i: usize) -> f32 {
        let mut sum = ExactMean::default();
        for row in &self.rows {
            let (values, decision) = self.values(strip, row);
            sum.add(row.weight, clipped(values[i], decision, self.granularity));
        }
        sum.over(&self.divisor)
    }
}

/// Adds the terms of one row: a loop for each status, so that each is vectorised for itself.
fn add_row(sums: &mut [MeanSum], values: &[f32], weight: f32, decision: &Decision, granularity: Granularity) {
    let (factor, bound) = (decision.factor, decision.bound);
    let finite = |value: f32| if value.is_finite() { value } else { 0.0 };
    match (decision.status, granularity) {
        (Status::Zeroed | Status::Kept, _) => {}
        (Status::Untouched | Status::OutOfScope, _) => add_terms(sums, values, weight, finite),
        (Status::Clipped, Granularity::Coordinate) => {
            add_terms(sums, values, weight, |value| finite(clamped(value, bound)));
        }
        (Status::Clipped, Granularity::Row | Granularity::Segment) => {
            add_terms(sums, values, weight, |value| finite(scaled(value, factor)));
        }
    }
}

/// The product of two `f32` is exact in `f64`.
fn add_terms(sums: &mut [MeanSum], values: &[f32], weight: f32, counted: impl Fn(f32) -> f32) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        let term = f64::from(weight) * f64::from(counted(value));
        sum.sum += term;
        sum.size += term.abs();
    }
}

impl MeanSum {
    /// The mean, where every sum within the error of this one rounds to the same.
    ///
    /// Of `rows` additions each rounds by at most 2^-53 of the magnitudes so far; magnitudes, divisor and
    /// what is computed here round as well. Twice as many units and eight more cover all of it.
    fn certify(self, rows: usize, divisor: f64) -> Option<f32> {
        if self.size == 0.0 {
            return Some(0.0);
        }
        let error = self.size * (2 * rows + 8) as f64 * f64::EPSILON;
        let (least, most) = ((self.sum - error) / divisor, (self.sum + error) / divisor);
        let (least, most) = (least as f32, most as f32);
        (least.to_bits() == most.to_bits()).then_some(least)
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
