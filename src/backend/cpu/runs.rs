//! Long rows that are summed in several places at once, and rows that are summed side by side.
//!
//! Processors follow by themselves what is read in order, and have some lines under way of each place that is: where eight places are read in
//! turn, more bytes come from memory, or from a cache that cores share, than where one is and its memory is asked for ahead.

use std::ops::Range;

use super::simd;
use super::squares::{LANES, sum_of_squares};
#[cfg(target_arch = "x86_64")]
use super::squares_256;
use super::sum::BLOCK;

/// Runs of a row that are summed side by side.
pub(crate) const RUNS: usize = 8;

/// Elements of each of them that are summed before their sum joins the row's.
pub(super) const RUN_BLOCK: usize = BLOCK / RUNS;

/// From how many elements on a row is summed so.
const LONG: usize = RUNS << 11;

/// How many elements each run of a row has: none where it is summed in order.
pub(crate) fn run_of(length: usize) -> usize {
    if is_long(length) { length / RUNS / LANES * LANES } else { 0 }
}

/// Whether so many elements are read in several places at once.
pub(super) fn is_long(length: usize) -> bool {
    length >= LONG && several_places_pay()
}

/// How many bytes ahead memory is asked for in each run that is written, or whose halves are summed in pairs: in one of `f32` that is only read
/// that takes longer.
const AHEAD: usize = 1 << 10;

/// Asks for memory ahead in a run: so many elements.
#[inline(always)]
pub(crate) fn prefetch_in_run<T>(now: *const T, count: usize) {
    simd::prefetch(now.cast::<u8>().wrapping_add(AHEAD), count * size_of::<T>());
}

/// Whether rows of so many elements are summed [`RUNS`] at a time: their own runs would be too short, and a core's cache has room for as many.
pub(super) fn are_summed_together(length: usize) -> bool {
    BLOCK < length && length < LONG && several_places_pay()
}

/// Whether reading in several places at once has been measured to be faster than in one: with AVX2, and not with AVX-512.
fn several_places_pay() -> bool {
    #[cfg(target_arch = "x86_64")]
    return simd::has_avx2() && !std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A part of each run of a row.
pub(super) struct Runs<'a>([&'a [[f32; LANES]]; RUNS]);

impl<'a> Runs<'a> {
    /// The parts of a row whose runs have so many elements, one after the other.
    #[inline(always)]
    pub(super) fn parts(values: &'a [f32], run: usize) -> impl Iterator<Item = Self> {
        (0..run).step_by(RUN_BLOCK).map(move |start| Self::of(values, run, start..run.min(start + RUN_BLOCK)))
    }

    /// The parts of rows that have so many elements or more.
    #[inline(always)]
    pub(super) fn parts_of_rows(rows: &[&'a [f32]; RUNS], length: usize) -> impl Iterator<Item = Self> {
        (0..length)
            .step_by(RUN_BLOCK)
            .map(move |start| Self::of_rows(rows, start..length.min(start + RUN_BLOCK)))
    }

    #[inline(always)]
    fn of_rows(rows: &[&'a [f32]; RUNS], part: Range<usize>) -> Self {
        let mut runs = [&[][..]; RUNS];
        for (chunks, row) in runs.iter_mut().zip(rows) {
            *chunks = row[part.clone()].as_chunks().0;
        }
        Self(runs)
    }

    #[inline(always)]
    fn of(values: &'a [f32], run: usize, part: Range<usize>) -> Self {
        let mut runs = [&[][..]; RUNS];
        for (i, chunks) in runs.iter_mut().enumerate() {
            *chunks = values[i * run + part.start..i * run + part.end].as_chunks().0;
        }
        Self(runs)
    }

    /// All chunks, one of each run after the other; `work` is told of which run.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[allow(clippy::needless_range_loop)] // All runs are at the same place.
    #[inline(always)]
    pub(super) fn each_chunk(&self, mut work: impl FnMut(usize, &[f32; LANES])) {
        let count = self.0[0].len();
        let mut runs = [&[][..]; RUNS];
        for (run, chunks) in runs.iter_mut().zip(self.0) {
            *run = &chunks[..count];
        }
        for at in 0..count {
            for i in 0..RUNS {
                work(i, &runs[i][at]);
            }
        }
    }

    /// The sum of squares.
    #[inline]
    pub(super) fn sum(&self) -> f64 {
        #[cfg(target_arch = "x86_64")]
        if simd::has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { squares_256::sum_of_runs(self) };
        }
        self.sums().into_iter().sum()
    }

    /// That of each run.
    #[inline]
    pub(super) fn sums(&self) -> [f64; RUNS] {
        #[cfg(target_arch = "x86_64")]
        if simd::has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { squares_256::sums_of_runs(self) };
        }
        self.0.map(|run| sum_of_squares(run.as_flattened(), None, 0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Cpu, Reference};
    use crate::batch::Layout;
    use crate::clip::{Clipping, Scope};

    /// Long rows, rows that are summed together, and short ones that are apart, with some left over and none, dense and padded.
    #[test]
    fn norms_are_those_of_the_reference() {
        let shapes = [
            (8, 20_001, 20_001),
            (4, 8 * LONG + 5, 8 * LONG + 8),
            (19, 5_003, 5_003),
            (9, LONG - 1, LONG + 3),
            (403, 101, 101),
            (400, 101, 104),
            (90, 999, 1_000),
        ];
        for (clients, params, stride) in shapes {
            let layout = Layout::strided(clients, params, stride).unwrap();
            let mut data = vec![f32::NAN; layout.len()];
            for row in 0..clients {
                let row_of = &mut data[layout.row(row)];
                row_of.iter_mut().enumerate().for_each(|(i, element)| *element = value(row * params + i));
                match row % 7 {
                    1 => row_of[params / 2] = 1e30,
                    // A norm that no sum with an error decides.
                    2 => {
                        row_of.fill(0.0);
                        (row_of[params / 3], row_of[params - 1]) = (3.0, -4.0);
                    }
                    4 => row_of[params - 2] = f32::NAN,
                    5 => row_of.iter_mut().for_each(|value| *value *= 1e-30),
                    _ => {}
                }
            }
            let masked = Scope::Mask((0..clients).map(|row| row % 5 != 1).collect());
            for (scope, exact) in [(Scope::All, false), (Scope::All, true), (masked, false)] {
                let cpu = Cpu::new().unwrap().force_exact(exact);
                let clipping = Clipping::fixed(2.0).scope(scope);
                let expected = Reference.norms(&layout, &data, &clipping).unwrap();
                let norms = cpu.norms(&layout, &data, &clipping).unwrap();
                // NaN is a norm too.
                assert_eq!(format!("{norms:?}"), format!("{expected:?}"), "{clients} x {params}");
                let (mut got, mut clipped) = (data.clone(), data.clone());
                let report = cpu.run(&layout, &mut got, &clipping).unwrap().rows;
                let expected = Reference.run(&layout, &mut clipped, &clipping).unwrap().rows;
                assert_eq!(format!("{report:?}"), format!("{expected:?}"), "{clients} x {params}");
                let bits = |data: &[f32]| data.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert!(bits(&got) == bits(&clipped), "{clients} x {params}");
            }
        }
    }

    fn value(i: usize) -> f32 {
        ((i * 7919) % 1000) as f32 * 0.37 - 150.0
    }

    #[test]
    fn every_element_of_a_run_counts_once() {
        for run in [0, LANES, RUN_BLOCK - LANES, RUN_BLOCK, RUN_BLOCK + LANES, 3 * RUN_BLOCK + 7 * LANES] {
            let values: Vec<f32> = (0..RUNS * run).map(value).collect();
            let mut found: Vec<u32> = Vec::new();
            for part in Runs::parts(&values, run) {
                part.each_chunk(|_, chunk| found.extend(chunk.map(f32::to_bits)));
            }
            let mut expected: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{run}");
        }
    }

    #[test]
    fn parts_have_the_sum_of_their_elements_but_for_rounding() {
        for run in [LANES, RUN_BLOCK, RUN_BLOCK + 3 * LANES] {
            let values: Vec<f32> = (0..RUNS * run).map(value).collect();
            let exact: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
            let sum: f64 = Runs::parts(&values, run).map(|part| part.sum()).sum();
            assert!((sum - exact).abs() <= exact * 1e-12, "{run}: {sum} for {exact}");
        }
    }

    #[test]
    fn what_is_not_finite_is_seen_wherever_it_is() {
        let run = RUN_BLOCK + LANES;
        for not_finite in [f32::INFINITY, f32::NAN] {
            for place in 0..RUNS * run {
                let mut values = vec![1e-3f32; RUNS * run];
                values[place] = not_finite;
                let finite = Runs::parts(&values, run).filter(|part| part.sum().is_finite()).count();
                assert_eq!(finite, 1, "{place}");
            }
        }
    }
}
