//! Elements in half precision: widened in registers where the processor can (with AVX-512, or AVX2 and F16C), else on the stack, a
//! block at a time, and summed in `f64` as `f32` are, but for rows of many with AVX2 (`pairs.rs`). Long rows of bf16 are not widened where
//! there is AVX-512: their bits move to where an `f64` has them (`squares_512.rs`).
//!
//! Half the bytes come from memory, and what is widened never goes back there.

use super::group::{ROWS, RowGroup, RowSet};
use super::half_simd;
use super::mean::MeanStorage;
use super::rows::Storage;
use super::simd::{Kernel, vectorised};
use super::squares::{sums_of_half_group, sums_of_half_squares};
use super::sum::FastSum;
use super::terms::Add;
use crate::batch::Granularity;
use crate::clip::{Clipping, Status};
use crate::half::Half;
use crate::numerics::{ExactSum, single_factor};
use crate::threshold::Decision;

/// Elements that are widened at a time on the stack, which is cleared for each row: 2 KiB of `f32`.
const BLOCK: usize = 512;

pub(super) struct Halves {
    half: Half,
    granularity: Granularity,
}

impl Halves {
    pub(super) fn of(half: Half, clipping: &Clipping) -> Self {
        Self { half, granularity: clipping.granularity }
    }

    /// `work` on each block, widened, perhaps without signs.
    fn blocks<T>(
        &self,
        bits: &[u16],
        mut work: impl FnMut(&[f32]) -> T,
        join: impl Fn(T, T) -> T,
    ) -> Option<T> {
        let mut widened = [0.0f32; BLOCK];
        let mut joined = None;
        for block in bits.chunks(BLOCK) {
            let widened = &mut widened[..block.len()];
            // Squares have no signs, and need none.
            if self.half != Half::F16 || !half_simd::widen_f16(block, widened) {
                vectorised(Widen { half: self.half, bits: block, values: widened });
            }
            let of_block = work(widened);
            joined = Some(match joined.take() {
                Some(joined) => join(joined, of_block),
                None => of_block,
            });
        }
        joined
    }

    fn sum_on_the_stack(&self, elements: &[u16]) -> FastSum {
        self.blocks(elements, |values| FastSum::of(values, None, 0), FastSum::join).unwrap_or_default()
    }
}

impl Storage for Halves {
    type Element = u16;

    #[inline]
    fn sum(&self, elements: &[u16], _first: usize, prefetches: usize) -> FastSum {
        FastSum::of_halves(self.half, elements, prefetches).unwrap_or_else(|| self.sum_on_the_stack(elements))
    }

    fn finer_sum(&self, elements: &[u16], _first: usize) -> FastSum {
        FastSum::of_halves_in_f64(self.half, elements, 0).unwrap_or_else(|| self.sum_on_the_stack(elements))
    }

    /// To widen halves takes longer than to read them; rows of many are read in several places all the same ([`pairs`](super::pairs)).
    fn reads_apart(&self) -> bool {
        false
    }

    #[inline]
    fn sums(&self, rows: &[&[u16]; ROWS], which: RowSet) -> [f64; ROWS] {
        let on_the_stack = || rows.map(|row| self.sum_on_the_stack(row).total());
        sums_of_half_squares(self.half, rows, which).unwrap_or_else(on_the_stack)
    }

    #[inline]
    fn sums_of_group(&self, group: RowGroup<'_, u16>) -> [f64; ROWS] {
        sums_of_half_group(self.half, group, |rows| self.sums(rows, RowSet::MAX))
    }

    // Not inlined into the vectors of who calls: it asks for its own.
    fn scale(&self, elements: &mut [u16], factor: f64) {
        scale(self.half, elements, factor);
    }

    fn exact_sum(&self, elements: &[u16], _first: usize) -> ExactSum {
        let join = |mut a: ExactSum, b: ExactSum| {
            a.add(&b);
            a
        };
        self.blocks(elements, ExactSum::of, join).unwrap_or_default()
    }

    fn largest_magnitude(&self, elements: &[u16]) -> u32 {
        // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
        self.half.widen(vectorised(Largest(elements))).to_bits()
    }

    fn apply(&self, elements: &mut [u16], _first: usize, decision: &Decision) {
        apply(self.half, elements, decision, self.granularity);
    }
}

impl MeanStorage for Halves {
    fn factor(&self, decision: &Decision) -> Option<f32> {
        matches!(decision.status, Status::Untouched | Status::OutOfScope).then_some(1.0)
    }

    fn significant_bits(&self) -> i32 {
        match self.half {
            Half::F16 => 11,
            Half::Bf16 => 8,
        }
    }

    #[inline]
    fn value(&self, element: u16, _coordinate: usize, decision: &Decision) -> f32 {
        self.half.clipped(element, decision, self.granularity)
    }

    fn add<const EQUAL: bool, const TESTED: bool>(&self, add: Add<'_, '_, u16, EQUAL, TESTED>) {
        add.halves(self.half);
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

/// Writes the values of halves, without their signs.
struct Widen<'a> {
    half: Half,
    bits: &'a [u16],
    values: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    /// A loop for each format, so that each is vectorised for itself.
    #[inline(always)]
    fn run(self) {
        let pairs = self.values.iter_mut().zip(self.bits);
        match self.half {
            Half::F16 => pairs.for_each(|(value, &bits)| *value = Half::F16.widen(bits & 0x7fff)),
            Half::Bf16 => pairs.for_each(|(value, &bits)| *value = Half::Bf16.widen(bits & 0x7fff)),
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
            scale(half, values, factor);
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

fn scale(half: Half, values: &mut [u16], factor: f64) {
    if !single_factor(factor).is_some_and(|single| half_simd::scale(half, values, single)) {
        vectorised(Scale { half, values, factor });
    }
}

/// Without instructions for halves.
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
            Half::F16 => scale_blocks(self.values, self.factor, Half::F16),
            Half::Bf16 => scale_blocks(self.values, self.factor, Half::Bf16),
        }
    }
}

#[inline(always)]
fn scale_blocks(values: &mut [u16], factor: f64, half: Half) {
    let Some(single) = single_factor(factor) else {
        return values.iter_mut().for_each(|bits| *bits = half.scaled(*bits, factor));
    };
    for block in values.chunks_mut(LOOK) {
        let mut cut = [0; LOOK];
        if scale_fast(block, single, &mut cut[..block.len()], half) {
            block.copy_from_slice(&cut[..block.len()]);
            continue;
        }
        for bits in block {
            *bits = match half.scaled_fast(*bits, single) {
                (scaled, true) => scaled,
                (_, false) => half.scaled(*bits, factor),
            };
        }
    }
}

/// Whether the scaled halves are certain.
#[inline(always)]
fn scale_fast(bits: &[u16], factor: f32, scaled: &mut [u16], half: Half) -> bool {
    let mut certain = true;
    for (target, &bits) in scaled.iter_mut().zip(bits) {
        let (scaled, is_certain) = half.scaled_fast(bits, factor);
        *target = scaled;
        certain &= is_certain;
    }
    certain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norms::Norm;

    /// Whichever way this processor does not take runs nowhere else.
    #[test]
    fn halves_have_the_same_norm_on_the_stack_and_in_registers() {
        for half in [Half::F16, Half::Bf16] {
            let halves = Halves::of(half, &Clipping::default());
            for length in [0, 1, 33, 511, 512, 513, 4097, 10_000] {
                let mut bits: Vec<u16> =
                    (0..length).map(|i| half.truncate(((i * 7919) % 1000) as f32 * 0.37 - 150.0)).collect();
                let exact = halves.exact_sum(&bits, 0).norm();
                for sum in [halves.sum(&bits, 0, bits.len()), halves.sum_on_the_stack(&bits)] {
                    assert!(sum.norm().is_none_or(|norm| norm == exact), "{half:?}, {length}");
                }
                if let Some(last) = bits.last_mut() {
                    *last = half.truncate(f32::INFINITY);
                    assert_eq!(halves.sum(&bits, 0, bits.len()).norm(), Some(Norm::NON_FINITE));
                    assert_eq!(halves.sum_on_the_stack(&bits).norm(), Some(Norm::NON_FINITE));
                }
            }
        }
    }

    #[test]
    fn products_with_and_without_instructions_are_those_of_single_halves() {
        for half in [Half::F16, Half::Bf16] {
            // All there are, and blocks in which every product needs more bits than a half has.
            let finite = (0..=u16::MAX).filter(|bits| half.widen(*bits).is_finite());
            let finite: Vec<u16> = finite.chain([0x6001; 2 * LOOK]).collect();
            // 25 · 0.04 is rounded up to 1 in f32, and the last two factors are no f32: one is rounded to a normal number.
            let factors = [0.749_999_94f32, 0.33, 0.04, 1e-5, 1e-30, f32::MIN_POSITIVE].map(f64::from);
            let others = [2f64.powi(-127) * (2.0 - 2f64.powi(-23)), 2.7 * 2f64.powi(-149)];
            for factor in factors.into_iter().chain(others) {
                let want: Vec<u16> = finite.iter().map(|bits| half.scaled(*bits, factor)).collect();
                let (mut portable, mut fast) = (finite.clone(), finite.clone());
                vectorised(Scale { half, values: &mut portable, factor });
                scale(half, &mut fast, factor);
                assert!(portable == want && fast == want, "{half:?} {factor:e}");
            }
        }
    }
}
