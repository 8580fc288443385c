//! What the memory allows: a read, a copy, and a scaling in place of the whole batch, in the same buffers.

use std::hint::black_box;

use super::cases::{Batch, Case, Shape, copy};
use super::element::{Dtype, Element};
use super::measure::{Place, Record, Times, timed};
use crate::backend::cpu::runs::{RUNS, prefetch_in_run, run_of};
use crate::backend::cpu::simd::{Kernel, prefetch_ahead, vectorised};
use crate::backend::cpu::{LINE, PART, Team};
use crate::error::{Error, Result};

/// What the loops of this file are called in errors.
const LOOPS: &str = "a plain loop";

/// The times that the whole batch takes.
#[derive(Debug, Clone)]
pub struct Ceilings {
    /// Every element read.
    pub read: Times,
    /// Every element read in one buffer and written in another.
    pub copy: Times,
    /// Every element multiplied in place: f32 by a half, halves by minus one, which is one operation on their bits.
    pub scale: Times,
    /// Bytes of the batch.
    pub bytes: u64,
}

impl Ceilings {
    /// A record for each ceiling.
    #[must_use]
    pub fn records(&self, place: &Place, shape: Shape, dtype: Dtype) -> Vec<Record> {
        let record =
            |method, times: &Times, bytes| Record::ceiling(place, (shape, dtype), method, times, bytes);
        vec![
            record("read", &self.read, self.bytes),
            record("copy", &self.copy, 2 * self.bytes),
            record("scale", &self.scale, 2 * self.bytes),
        ]
    }
}

/// Measures the ceilings of host memory with as many threads as a batch of this size gets; it is as before afterwards.
///
/// The caches are as cases find them: what is only read was read by the run before, and what is scaled was restored.
///
/// # Errors
/// [`Error::Mismatch`] where a loop did not do what it is timed for.
pub fn measure<E: Element>(batch: &mut Batch<E>, runs: usize) -> Result<Ceilings> {
    batch.restore_all();
    let sum = batch.original.iter().fold(0u32, |sum, value| sum.wrapping_add(value.bits()));
    // The first round verifies and warms up; it is not counted.
    let mut read = Times::default();
    for round in 0..=runs {
        let (got, seconds) = timed(|| sum_of_bits(black_box(&batch.work)));
        check(LOOPS, "read", got == sum)?;
        read.push_if(round > 0, seconds);
    }
    let mut scaled = Times::default();
    for round in 0..=runs {
        let ((), seconds) = timed(|| rescale(black_box(&mut batch.work)));
        check(LOOPS, "scale", round > 0 || batch.holds(E::RESCALED))?;
        scaled.push_if(round > 0, seconds);
        batch.restore_all();
    }
    let mut copied = Times::default();
    rescale(&mut batch.work);
    for round in 0..=runs {
        let ((), seconds) = timed(|| copy(black_box(&batch.original), black_box(&mut batch.work)));
        check(LOOPS, "copy", round > 0 || batch.holds(1.0))?;
        copied.push_if(round > 0, seconds);
    }
    let bytes = Case::norms().traffic(batch.shape, E::DTYPE).one_pass();
    Ok(Ceilings { read, copy: copied, scale: scaled, bytes })
}

/// The sum of all bits: integers, so that no order of additions holds the loop up.
fn sum_of_bits<E: Element>(values: &[E]) -> u32 {
    let sums = Team::global(values.len()).collect(values.chunks(PART), |part| vectorised(Sum(part)));
    sums.into_iter().fold(0, u32::wrapping_add)
}

/// The same of one task.
pub(super) struct Sum<'a, E>(pub(super) &'a [E]);

impl<E: Element> Kernel for Sum<'_, E> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        // Independent sums, so that loads do not wait for additions.
        const LANES: usize = 64;
        let mut sums = [0u32; LANES];
        let (groups, rest) = self.0.as_chunks::<LANES>();
        let run = groups_of_run(groups);
        let mut add = |group: &[E; LANES]| {
            for (sum, value) in sums.iter_mut().zip(group) {
                *sum = sum.wrapping_add(value.bits());
            }
        };
        for at in 0..run {
            for i in 0..RUNS {
                add(&groups[i * run + at]);
            }
        }
        for group in &groups[RUNS * run..] {
            prefetch_ahead(group.as_ptr(), LANES);
            add(group);
        }
        for (sum, value) in sums.iter_mut().zip(rest) {
            *sum = sum.wrapping_add(value.bits());
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                sums[i] = sums[i].wrapping_add(sums[i + width]);
            }
            width /= 2;
        }
        sums[0]
    }
}

/// Multiplies in place by what no format has to round.
fn rescale<E: Element>(values: &mut [E]) {
    Team::global(values.len()).share(values.chunks_mut(PART), |part| vectorised(Rescaled(part)));
}

/// How many groups are a run of those that are read in several places at once, which is how most bytes come, whatever they mean.
fn groups_of_run<E, const N: usize>(groups: &[[E; N]]) -> usize {
    run_of(groups.len() * N) / N
}

pub(super) struct Rescaled<'a, E>(pub(super) &'a mut [E]);

impl<E: Element> Kernel for Rescaled<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const GROUP: usize = 64;
        // From the beginning of a cache line on, as the backend does.
        let before = self.0.as_ptr().align_offset(LINE).min(self.0.len());
        let (before, from_line) = self.0.split_at_mut(before);
        before.iter_mut().for_each(|element| *element = element.rescaled());
        let (groups, rest) = from_line.as_chunks_mut::<GROUP>();
        let run = groups_of_run(groups);
        for at in 0..run {
            for i in 0..RUNS {
                let group = &mut groups[i * run + at];
                prefetch_in_run(group.as_ptr(), GROUP);
                group.iter_mut().for_each(|element| *element = element.rescaled());
            }
        }
        for group in &mut groups[RUNS * run..] {
            prefetch_ahead(group.as_ptr(), GROUP);
            group.iter_mut().for_each(|element| *element = element.rescaled());
        }
        rest.iter_mut().for_each(|element| *element = element.rescaled());
    }
}

pub(super) fn check(loops: &str, method: &'static str, right: bool) -> Result<()> {
    if right {
        return Ok(());
    }
    Err(Error::Mismatch {
        backend: loops.into(),
        stage: method,
        row: 0,
        got: "other bits".into(),
        expected: "those of one serial loop".into(),
    })
}

/// The size of a core's own cache in bytes: the second level where the system tells it.
#[must_use]
pub fn core_cache() -> u64 {
    /// What cores of the last ten years have at least.
    const LEAST: u64 = 256 << 10;
    let told = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").ok();
    let kib = told.and_then(|text| text.trim().strip_suffix('K')?.parse::<u64>().ok());
    kib.map_or(LEAST, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bench::element::{Bf16, F16};

    fn leaves_the_batch_as_it_was<E: Element>() {
        let mut batch = Batch::<E>::new("19x1003".parse().unwrap()).unwrap();
        batch.fill(&Case::clip(0.5));
        let ceilings = measure(&mut batch, 9).unwrap();
        assert!(batch.work == batch.original);
        assert_eq!((ceilings.read.wall.count(), ceilings.bytes), (9, 19 * 1003 * E::DTYPE.bytes()));
    }

    #[test]
    fn a_ceiling_leaves_the_batch_as_it_was() {
        leaves_the_batch_as_it_was::<f32>();
        leaves_the_batch_as_it_was::<F16>();
        leaves_the_batch_as_it_was::<Bf16>();
    }

    #[test]
    fn a_loop_that_did_something_else_is_found() {
        let mut batch = Batch::<f32>::new("2x9".parse().unwrap()).unwrap();
        batch.fill(&Case::norms());
        assert!(check(LOOPS, "read", batch.holds(1.0)).is_ok());
        batch.work[17] = 0.25;
        assert!(matches!(check(LOOPS, "copy", batch.holds(1.0)), Err(Error::Mismatch { .. })));
    }
}
