//! Elements in `f32`, and the centre's beside them where there is one.

use super::group::{ROWS, RowGroup, RowSet};
use super::mean::MeanStorage;
use super::rows::Storage;
use super::runs::{RUNS, prefetch_in_run, run_of};
use super::simd::{Kernel, vectorised};
use super::squares::{sums_of_group, sums_of_squares};
use super::sum::FastSum;
use super::terms::Add;
use crate::aggregate::clipped;
use crate::batch::Granularity;
use crate::clip::{Clipping, Status};
use crate::numerics::{ExactSum, clamped, scaled, scaled_around, single_factor};
use crate::threshold::Decision;

pub(super) struct Singles<'a> {
    center: Option<&'a [f32]>,
    granularity: Granularity,
}

impl<'a> Singles<'a> {
    pub(super) fn of(clipping: &'a Clipping) -> Self {
        Self { center: clipping.center.as_deref(), granularity: clipping.granularity }
    }

    /// The centre beside elements.
    #[inline(always)]
    fn center(&self, elements: &[f32], first: usize) -> Option<&'a [f32]> {
        self.center.map(|center| &center[first..first + elements.len()])
    }
}

impl Storage for Singles<'_> {
    type Element = f32;

    #[inline(always)]
    fn sum(&self, elements: &[f32], first: usize, prefetches: usize) -> FastSum {
        FastSum::of(elements, self.center(elements, first), prefetches)
    }

    /// A centre is one more place to read.
    fn reads_apart(&self) -> bool {
        self.center.is_none()
    }

    fn sums_of_rows(&self, rows: &[&[f32]; ROWS]) -> [FastSum; ROWS] {
        FastSum::of_rows(rows)
    }

    #[inline(always)]
    fn sums(&self, rows: &[&[f32]; ROWS], which: RowSet) -> [f64; ROWS] {
        sums_of_squares(rows, which, self.center)
    }

    #[inline]
    fn sums_of_group(&self, group: RowGroup<'_, f32>) -> [f64; ROWS] {
        let sums = |rows: &[&[f32]; ROWS]| self.sums(rows, RowSet::MAX);
        if self.center.is_some() { group.one_by_one(sums) } else { sums_of_group(group, sums) }
    }

    #[inline(always)]
    fn scale(&self, values: &mut [f32], factor: f64) {
        match self.center(values, 0) {
            None => Scale { values, factor }.run(),
            Some(center) => ScaleAround { values, center, factor }.run(),
        }
    }

    fn exact_sum(&self, elements: &[f32], first: usize) -> ExactSum {
        match self.center(elements, first) {
            None => ExactSum::of(elements),
            Some(center) => ExactSum::of_differences(elements, center),
        }
    }

    fn largest_magnitude(&self, elements: &[f32]) -> u32 {
        vectorised(Largest(elements))
    }

    fn apply(&self, elements: &mut [f32], first: usize, decision: &Decision) {
        let (factor, bound) = (decision.factor, decision.bound);
        let center = self.center(elements, first);
        match (decision.status, center) {
            (Status::Untouched | Status::OutOfScope | Status::Kept, _) => {}
            (Status::Zeroed, None) => elements.fill(0.0),
            (Status::Zeroed, Some(center)) => elements.copy_from_slice(center),
            (Status::Clipped, _) if self.granularity == Granularity::Coordinate => {
                vectorised(Clamp { values: elements, bound });
            }
            (Status::Clipped, None) => vectorised(Scale { values: elements, factor }),
            (Status::Clipped, Some(center)) => vectorised(ScaleAround { values: elements, center, factor }),
        }
    }
}

impl MeanStorage for Singles<'_> {
    fn factor(&self, decision: &Decision) -> Option<f32> {
        match (decision.status, self.granularity) {
            (Status::Untouched | Status::OutOfScope, _) => Some(1.0),
            (Status::Clipped, Granularity::Row | Granularity::Segment) if self.center.is_none() => {
                single_factor(decision.factor)
            }
            _ => None,
        }
    }

    fn significant_bits(&self) -> i32 {
        24
    }

    #[inline]
    fn value(&self, element: f32, coordinate: usize, decision: &Decision) -> f32 {
        clipped(element, self.center.map(|center| center[coordinate]), decision, self.granularity)
    }

    fn add<const EQUAL: bool, const TESTED: bool>(&self, add: Add<'_, '_, f32, EQUAL, TESTED>) {
        add.singles();
    }
}

/// The bits of the largest magnitude.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
        self.0.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff))
    }
}

struct Clamp<'a> {
    values: &'a mut [f32],
    bound: f32,
}

impl Kernel for Clamp<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|value| *value = clamped(*value, self.bound));
    }
}

struct ScaleAround<'a> {
    values: &'a mut [f32],
    center: &'a [f32],
    factor: f64,
}

impl Kernel for ScaleAround<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let pairs = self.values.iter_mut().zip(self.center);
        pairs.for_each(|(value, &center)| *value = scaled_around(*value, center, self.factor));
    }
}

struct Scale<'a> {
    values: &'a mut [f32],
    factor: f64,
}

/// Elements that are multiplied before any of them is written.
const CHUNK: usize = 64;

/// The same in rows that are shorter than that.
const SHORT_CHUNK: usize = 16;

impl Kernel for Scale<'_> {
    type Output = ();

    /// Multiplies in `f32` where that is the product of the contract, and in `f64` where it may not be.
    ///
    /// A product of two `f32` is rounded to 24 bits either way as long as it is above the smallest normal number: below,
    /// `f32` rounds to fewer bits, and the contract makes a zero. The smallest normal number itself may be either.
    #[inline(always)]
    fn run(self) {
        let factor = self.factor;
        match single_factor(factor) {
            None => one_by_one(self.values, factor),
            Some(single) if self.values.len() >= CHUNK => scale_all::<CHUNK>(self.values, factor, single),
            Some(single) => scale_all::<SHORT_CHUNK>(self.values, factor, single),
        }
    }
}

/// In chunks of `N`. What is left behind the last whole one is multiplied as the end of one more, taken before the
/// others are written: one by one it would take as long as all of them.
#[inline(always)]
fn scale_all<const N: usize>(values: &mut [f32], factor: f64, single: f32) {
    let Some(end) = values.last_chunk::<N>() else {
        return OneByOne { values, factor }.run();
    };
    let end = (!values.len().is_multiple_of(N)).then(|| products(end, factor, single));
    let chunks = values.as_chunks_mut::<N>().0;
    let run = run_of(chunks.len() * N) / N;
    for at in 0..run {
        for i in 0..RUNS {
            let chunk = &mut chunks[i * run + at];
            prefetch_in_run(chunk.as_ptr(), N);
            *chunk = products(chunk, factor, single);
        }
    }
    // Not `for_each`: what it calls is not always inlined.
    for chunk in &mut chunks[RUNS * run..] {
        *chunk = products(chunk, factor, single);
    }
    if let (Some(end), Some(last)) = (end, values.last_chunk_mut::<N>()) {
        *last = end;
    }
}

#[inline(always)]
fn products<const N: usize>(chunk: &[f32; N], factor: f64, single: f32) -> [f32; N] {
    // Not `map`: a build without optimisation across units keeps its closure out of these vectors.
    let mut products = *chunk;
    for product in &mut products {
        *product *= single;
    }
    // From the least subnormal number to the smallest normal one; 0 becomes the largest of all.
    let is_open = |open: bool, product: &f32| {
        open | ((product.to_bits() & 0x7fff_ffff).wrapping_sub(1) < f32::MIN_POSITIVE.to_bits())
    };
    if products.iter().fold(false, is_open) {
        let mut chunk = *chunk;
        one_by_one(&mut chunk, factor);
        return chunk;
    }
    products
}

/// Out of line, so that the way past it keeps its products in registers.
#[cold]
#[inline(never)]
fn one_by_one(values: &mut [f32], factor: f64) {
    vectorised(OneByOne { values, factor });
}

struct OneByOne<'a> {
    values: &'a mut [f32],
    factor: f64,
}

impl Kernel for OneByOne<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|value| *value = scaled(*value, self.factor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::power_of_two;

    /// Values whose products with a factor are of all kinds: normal, the smallest normal number in `f32` though not
    /// in 24 bits, subnormal, and zero.
    fn values(factor: f64) -> Vec<f32> {
        let around = |value: f32| {
            (-3..=3).map(move |step: i32| f32::from_bits(value.to_bits().saturating_add_signed(step)))
        };
        let least = (power_of_two(-126) / factor) as f32;
        let magnitudes = [0.0, f32::MIN_POSITIVE, least, 1.0, 1e-38, 3e38].into_iter().flat_map(around);
        magnitudes.filter(|value| value.is_finite()).flat_map(|value| [value, -value]).collect()
    }

    #[test]
    fn products_of_groups_are_those_of_single_elements() {
        for factor in [
            1.0 - 2f64.powi(-24),
            0.75,
            0.5,
            2f64.powi(-60),
            2f64.powi(-126) * 1.5,
            // As an f32 the smallest normal number, which it is not.
            2f64.powi(-127) * (2.0 - 2f64.powi(-23)),
            2f64.powi(-140) * (2.0 - 2f64.powi(-23)),
        ] {
            // Its products are normal, so that the others are not taken one by one because of it.
            let ordinary = (1.0 / factor).min(1e36) as f32;
            for value in values(factor) {
                // Alone among ordinary ones, at every place of rows with and without a rest.
                for (length, place) in [
                    (1, 0),
                    (15, 3),
                    (16, 15),
                    (17, 0),
                    (48, 40),
                    (63, 62),
                    (64, 0),
                    (65, 64),
                    (65, 1),
                    (80, 64),
                    (100, 40),
                    (100, 99),
                    (128, 70),
                    (131, 7),
                ] {
                    let mut row: Vec<f32> = (0..length).map(|i| (i as f32 - 5.5) * ordinary).collect();
                    row[place] = value;
                    let expected: Vec<u32> =
                        row.iter().map(|value| scaled(*value, factor).to_bits()).collect();
                    vectorised(Scale { values: &mut row, factor });
                    let got: Vec<u32> = row.iter().map(|value| value.to_bits()).collect();
                    assert_eq!(got, expected, "{value:e} by {factor:e} at {place} of {length}");
                }
            }
        }
    }
}
