//! Rows in half precision: widened on the stack, a block at a time, and summed as `f32` rows are.
//!
//! Half the bytes come from memory, and what is widened never goes back there.

use rayon::prelude::*;

use super::f16;
use super::simd::{Kernel, vectorised};
use super::sum::{FastSum, Values};
use super::{Batch, Cpu, SEQUENTIAL, TASK, rows_mut, rows_of_task};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::half::{self, Half};
use crate::norms::{Norm, NormClass, Norms};
use crate::numerics::ExactSum;
use crate::report::{RowReport, row_of_one};
use crate::threshold::{Decision, decide_span};

/// Elements that are widened at a time: 16 KiB of `f32`, half of a core's first cache.
const BLOCK: usize = 4096;

/// Elements of a row or segment.
#[derive(Debug, Clone, Copy)]
struct Halves<'a> {
    half: Half,
    bits: &'a [u16],
}

impl<'a> Halves<'a> {
    /// `work` on each block, widened, perhaps without signs.
    fn blocks<T>(self, mut work: impl FnMut(&[f32]) -> T, join: impl Fn(T, T) -> T) -> Option<T> {
        let mut widened = [0.0f32; BLOCK];
        let mut joined = None;
        for block in self.bits.chunks(BLOCK) {
            let widened = &mut widened[..block.len()];
            // Squares have no signs, and need none.
            if self.half != Half::F16 || !f16::widen(block, widened) {
                vectorised(Widen::<false> { half: self.half, bits: block, values: widened });
            }
            let of_block = work(widened);
            joined = Some(match joined.take() {
                Some(joined) => join(joined, of_block),
                None => of_block,
            });
        }
        joined
    }

    fn par_chunks(self) -> impl IndexedParallelIterator<Item = Self> + 'a {
        self.bits.par_chunks(TASK).map(move |bits| Self { bits, ..self })
    }

    /// The fast sum, by all threads where it is longer than one task.
    fn sum(self, task: usize) -> FastSum {
        if self.bits.len() <= task {
            return self.task_sum();
        }
        self.par_chunks().map(Self::task_sum).reduce(FastSum::default, FastSum::join)
    }

    fn task_sum(self) -> FastSum {
        let sum = self.blocks(|values| FastSum::of(Values { values, center: None }), FastSum::join);
        sum.unwrap_or_default()
    }

    /// The exact norm of finite values, by all threads where they are many.
    fn exact_norm(self) -> Norm {
        let join = |mut a: ExactSum, b: ExactSum| {
            a.add(&b);
            a
        };
        let of_task = |task: Self| task.blocks(ExactSum::of, join).unwrap_or_default();
        self.par_chunks().map(of_task).reduce(ExactSum::default, join).norm()
    }

    /// The largest magnitude: the norm of a row whose coordinates are bounded.
    fn largest_magnitude(self) -> Norm {
        // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
        let largest = self.par_chunks().map(|task| vectorised(Largest(task.bits))).max().unwrap_or(0);
        if largest >= self.half.infinity() {
            return Norm::NON_FINITE;
        }
        Norm::new(self.half.widen(largest).to_bits(), NormClass::Exact)
    }
}

struct Largest<'a>(&'a [u16]);

impl Kernel for Largest<'_> {
    type Output = u16;

    #[inline(always)]
    fn run(self) -> u16 {
        self.0.iter().fold(0, |most, bits| most.max(bits & 0x7fff))
    }
}

/// Writes the values of halves.
pub(super) fn widen(half: Half, bits: &[u16], values: &mut [f32]) {
    if half != Half::F16 || !f16::widen(bits, values) {
        vectorised(Widen::<true> { half, bits, values });
    }
}

struct Widen<'a, const SIGNED: bool> {
    half: Half,
    bits: &'a [u16],
    values: &'a mut [f32],
}

impl<const SIGNED: bool> Kernel for Widen<'_, SIGNED> {
    type Output = ();

    /// A loop for each format, so that each is vectorised for itself.
    #[inline(always)]
    fn run(self) {
        let mask = if SIGNED { 0xffff } else { 0x7fff };
        let pairs = self.values.iter_mut().zip(self.bits);
        match self.half {
            Half::F16 => pairs.for_each(|(value, &bits)| *value = Half::F16.widen(bits & mask)),
            Half::Bf16 => pairs.for_each(|(value, &bits)| *value = Half::Bf16.widen(bits & mask)),
        }
    }
}

/// Writes what the decision makes of the halves; nothing where the status is not one that is written.
pub(super) fn apply(half: Half, values: &mut [u16], decision: &Decision, granularity: Granularity) {
    let (factor, bound) = (decision.factor, decision.bound);
    match (decision.status, granularity) {
        (Status::Untouched | Status::OutOfScope | Status::Kept, _) => {}
        (Status::Zeroed, _) => values.fill(0),
        (Status::Clipped, Granularity::Coordinate) => vectorised(Clamp { half, values, bound }),
        (Status::Clipped, Granularity::Row | Granularity::Segment) => {
            vectorised(Scale { half, values, factor });
        }
    }
}

struct Clamp<'a> {
    half: Half,
    values: &'a mut [u16],
    bound: f32,
}

impl Kernel for Clamp<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|bits| *bits = self.half.clamped(*bits, self.bound));
    }
}

struct Scale<'a> {
    half: Half,
    values: &'a mut [u16],
    factor: f64,
}

/// Elements that are multiplied in `f32` before one looks whether that was certain.
const LOOK: usize = 128;

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.half {
            Half::F16 => scale(self.values, self.factor, Half::F16),
            Half::Bf16 => scale(self.values, self.factor, Half::Bf16),
        }
    }
}

#[inline(always)]
fn scale(values: &mut [u16], factor: f64, half: Half) {
    let single = factor as f32;
    // Below the normal numbers the factor may be another in `f32`.
    let normal = single >= f32::MIN_POSITIVE;
    for block in values.chunks_mut(LOOK) {
        let mut cut = [0; LOOK];
        if normal && scale_fast(block, single, &mut cut[..block.len()], half) {
            block.copy_from_slice(&cut[..block.len()]);
        } else {
            block.iter_mut().for_each(|bits| *bits = half.scaled(*bits, factor));
        }
    }
}

/// Whether the scaled halves are certain.
#[inline(always)]
fn scale_fast(bits: &[u16], factor: f32, scaled: &mut [u16], half: Half) -> bool {
    if half == Half::F16
        && let Some(certain) = f16::scale(bits, factor, scaled)
    {
        return certain;
    }
    let mut certain = true;
    for (target, &bits) in scaled.iter_mut().zip(bits) {
        let (scaled, is_certain) = half.scaled_fast(bits, factor);
        *target = scaled;
        certain &= is_certain;
    }
    certain
}

/// The same by all threads where the span is long.
fn apply_by_all(half: Half, values: &mut [u16], decision: &Decision, batch: &Batch<'_>) {
    let granularity = batch.clipping.granularity;
    if values.len() <= batch.own {
        return apply(half, values, decision, granularity);
    }
    values.par_chunks_mut(TASK).for_each(|values| apply(half, values, decision, granularity));
}

impl Cpu {
    fn half_norm(&self, values: Halves<'_>, sum: FastSum) -> Norm {
        let certain = if self.force_exact && sum.is_finite() { None } else { sum.norm() };
        certain.unwrap_or_else(|| values.exact_norm())
    }

    /// The norm of a row, and of its segments where those have bounds.
    fn half_row_norm(&self, batch: &Batch<'_>, row: usize, values: Halves<'_>) -> (Norm, Vec<Norm>) {
        let granularity = batch.clipping.granularity;
        let segments = || batch.layout.segments_of(row).map(|segment| batch.layout.segment(segment));
        if !batch.mask[row] {
            let of_segments = if granularity == Granularity::Segment { segments().len() } else { 0 };
            return (Norm::OUT_OF_SCOPE, vec![Norm::OUT_OF_SCOPE; of_segments]);
        }
        match granularity {
            Granularity::Coordinate => (values.largest_magnitude(), Vec::new()),
            Granularity::Row => (self.half_norm(values, values.sum(batch.own)), Vec::new()),
            Granularity::Segment => {
                let start = batch.layout.row(row).start;
                let mut total = FastSum::default();
                let norms = segments().map(|segment| {
                    let bits = &values.bits[segment.start - start..segment.end - start];
                    let part = Halves { bits, ..values };
                    let sum = part.sum(batch.own);
                    total = total.join(sum);
                    self.half_norm(part, sum)
                });
                let norms = norms.collect();
                (self.half_norm(values, total), norms)
            }
        }
    }

    pub(super) fn half_norms(
        &self,
        layout: &Layout,
        half: Half,
        data: &[u16],
        clipping: &Clipping,
    ) -> Result<Norms> {
        half::check(layout, data.len(), clipping)?;
        let batch = Batch::new(layout, clipping)?;
        let norm = |row| self.half_row_norm(&batch, row, Halves { half, bits: &data[layout.row(row)] });
        let mut norms = Norms::default();
        for (row, segments) in self.map(layout.clients(), batch.elements, norm) {
            norms.rows.push(row);
            norms.segments.extend(segments);
        }
        Ok(norms)
    }

    pub(super) fn half_clip(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        let granularity = clipping.granularity;
        half::check(layout, data.len(), clipping)?;
        super::check_decisions(layout, granularity, decisions)?;
        let mut elements = 0;
        let mut tasks = Vec::new();
        let (mut rest, mut position) = (data, 0);
        for (index, decision) in decisions.iter().enumerate().filter(|(_, d)| d.status.is_written()) {
            let span = layout.span(granularity, index);
            elements += span.len();
            let (values, tail) = rest.split_at_mut(span.start - position).1.split_at_mut(span.len());
            (rest, position) = (tail, span.end);
            tasks.extend(values.chunks_mut(TASK).map(|values| (values, decision)));
        }
        let work = |(values, decision): (&mut [u16], &Decision)| apply(half, values, decision, granularity);
        if elements <= SEQUENTIAL {
            tasks.into_iter().for_each(work);
        } else {
            self.install(elements, || tasks.into_par_iter().for_each(work));
        }
        Ok(())
    }

    /// Norm, decision and clip of each row while it is in a cache, for bounds that are known before the norms.
    pub(super) fn run_half_rows(
        &self,
        batch: &Batch<'_>,
        half: Half,
        data: &mut [u16],
        bounds: &[f32],
    ) -> Vec<RowReport> {
        let run = |(row, bits): (usize, &mut [u16])| {
            let norm = self.half_row_norm(batch, row, Halves { half, bits }).0;
            let decision = decide_span(norm, norm, bounds[row], batch.clipping);
            if decision.status.is_written() {
                apply_by_all(half, bits, &decision, batch);
            }
            row_of_one(&decision)
        };
        let (layout, elements) = (batch.layout, batch.elements);
        if elements <= SEQUENTIAL {
            return rows_mut(layout, data).enumerate().map(run).collect();
        }
        let at_least = rows_of_task(layout.clients(), elements);
        let rows: Vec<&mut [u16]> = rows_mut(layout, data).collect();
        self.install(elements, || rows.into_par_iter().enumerate().with_min_len(at_least).map(run).collect())
    }
}
