//! Rows of many halves, whose squares are summed in pairs of `f32`: a sum, and beside it what its additions lost.
//!
//! On the way to an `f64` a half is converted twice, and the second conversion takes longer than all else. In `f32` its square is exact too, and
//! what a sum with it is rounded by, one more multiplication tells, as long as the sum stays in one binade: it begins at an anchor, a power of two
//! that it must not double. NUMERICS.md ("The fast sum, certified") has the proof.

use super::pairs_256;
use super::runs::is_long;
use super::simd::has_avx2_for_halves;
use super::squares::{LANES, sum_of_half_squares};
use super::sum::{BLOCK, FastSum};
use crate::half::Half;

/// A sum of pairs is within `1 ± 2^-QUALITY` of the exact one: far less than in `f64`, so that one row in 250 is summed there as well.
pub(super) const QUALITY: u32 = 33;

/// Elements of a part: 32 for each of 32 sums.
pub(super) const PART: usize = 32 * LANES;

/// In how many places a long row is read at once.
const PLACES: usize = 4;

/// Elements from which the first anchor is taken, at least.
const SAMPLE: usize = PART / 4;

/// Whether rows of so many halves are summed in this way: shorter ones are one block, and with AVX-512 halves become `f64` faster.
pub(super) fn are_faster(length: usize) -> bool {
    length > BLOCK && has_avx2_for_halves() && !std::arch::is_x86_feature_detected!("avx512f")
}

/// The sum of squares of halves; the first `prefetches` ask for memory ahead, where they are read in order. `None` where this processor has no
/// instructions for it.
pub(super) fn sum(half: Half, bits: &[u16], prefetches: usize) -> Option<FastSum> {
    if !has_avx2_for_halves() {
        return None;
    }
    let rest = bits.len() % PART;
    let sample = if rest < SAMPLE { rest + PART } else { rest };
    let (sample, parts) = bits.split_at(sample.min(bits.len()));
    let of_sample = sum_of_half_squares(half, sample, prefetches)?;
    let mut row = RowSum {
        half,
        total: FastSum::of_block(of_sample),
        anchor: anchor(of_sample * PART as f64 / sample.len() as f64),
        pause: Pause::default(),
    };
    if is_long(parts.len()) {
        const OF_PART: usize = PART / PLACES;
        // A whole number of parts, each of which has as many elements of each run.
        let run = parts.len() / PLACES;
        for start in (0..run).step_by(OF_PART) {
            let piece = |i: usize| &parts[i * run + start..][..OF_PART];
            row.add(std::array::from_fn::<_, PLACES, _>(piece), true)?;
        }
    } else {
        for (index, part) in parts.chunks_exact(PART).enumerate() {
            row.add([part], sample.len() + index * PART < prefetches)?;
        }
    }
    Some(row.total)
}

/// The sum of a row so far.
struct RowSum {
    half: Half,
    total: FastSum,
    /// For the next part.
    anchor: Option<f32>,
    pause: Pause,
}

impl RowSum {
    /// Adds a part, in pieces: in `f64` where its sum is too far from the one before.
    #[inline(always)]
    fn add<const N: usize>(&mut self, pieces: [&[u16]; N], asks_ahead: bool) -> Option<()> {
        let anchor_now = self.anchor.filter(|_| self.pause.is_over());
        let of_pairs = anchor_now.and_then(|anchor| {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2, FMA and F16C, as [`sum`] asked.
            let of_pairs = unsafe { pairs_256::sum(self.half, &pieces, anchor, asks_ahead) };
            self.pause.goes_on(of_pairs.is_none());
            of_pairs
        });
        let (of_part, sum) = match of_pairs {
            Some(of_part) => (of_part, FastSum::of_pairs(of_part)),
            None => {
                let of_part = in_f64(self.half, &pieces)?;
                (of_part, FastSum::of_block(of_part))
            }
        };
        self.total = self.total.join(sum);
        self.anchor = anchor(of_part);
        Some(())
    }
}

/// How many parts go in `f64` at once: twice as many after each that was summed in vain, so that a row whose parts all are takes hardly longer.
#[derive(Debug, Default)]
struct Pause {
    length: u32,
    left: u32,
}

impl Pause {
    const MOST: u32 = 63;

    #[inline]
    fn is_over(&mut self) -> bool {
        let is_over = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_over
    }

    #[inline]
    fn goes_on(&mut self, in_vain: bool) {
        self.length = if in_vain { Self::MOST.min(2 * self.length + 1) } else { 0 };
        self.left = self.length;
    }
}

#[cold]
#[inline(never)]
fn in_f64(half: Half, pieces: &[&[u16]]) -> Option<f64> {
    pieces.iter().map(|piece| sum_of_half_squares(half, piece, 0)).sum()
}

/// The anchor for a part of which this sum is expected: at least 4 times and at most 8 times a 32nd of it. `None` where that is below 2^-60, beside
/// which what tiny squares of bf16 lose counts, or above 2^125.
#[inline]
fn anchor(sum: f64) -> Option<f32> {
    const LEAST: u64 = 1023 - 60;
    const MOST: u64 = 1023 + 125;
    // A 32nd has an exponent less by 5, eight times that one more by 3; what is behind the first bit goes.
    let exponent = (sum.to_bits() >> 52).wrapping_sub(5 - 3);
    (LEAST..=MOST).contains(&exponent).then(|| f32::from_bits(((exponent - (1023 - 127)) << 23) as u32))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Cpu, Reference};
    use crate::batch::Layout;
    use crate::clip::Clipping;
    use crate::numerics::two_sum;

    const HALVES: [Half; 2] = [Half::F16, Half::Bf16];

    fn skips() -> bool {
        let skips = !has_avx2_for_halves();
        if skips {
            eprintln!("skipped: no AVX2, FMA and F16C here");
        }
        skips
    }

    /// By how much a sum of pairs may be off.
    fn most(sum: f64) -> f64 {
        sum * 2f64.powi(-(QUALITY as i32))
    }

    /// The sum of squares, which are exact in `f64`, with what its additions lost.
    fn exact(half: Half, bits: &[u16]) -> (f64, f64) {
        let square = |bits: &u16| f64::from(half.widen(*bits)).powi(2);
        bits.iter().map(square).fold((0.0, 0.0), |(sum, rest), square| {
            let (sum, lost) = two_sum(sum, square);
            (sum, rest + lost)
        })
    }

    fn random(i: usize) -> f32 {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Of a part in four pieces, and in one, with memory asked for and without.
    fn sums_of_part(half: Half, bits: &[u16], anchor: f32) -> Vec<Option<f64>> {
        let pieces: [&[u16]; PLACES] = std::array::from_fn(|i| &bits[i * PART / PLACES..][..PART / PLACES]);
        #[allow(unsafe_code)]
        // SAFETY: the tests ask for AVX2, FMA and F16C.
        unsafe {
            [true, false]
                .map(|ahead| {
                    [
                        pairs_256::sum(half, &pieces, anchor, ahead),
                        pairs_256::sum(half, &[bits], anchor, ahead),
                    ]
                })
                .concat()
        }
    }

    #[test]
    fn a_part_is_as_near_as_it_says_or_left_to_f64() {
        if skips() {
            return;
        }
        let ordinary = |i: usize| random(i);
        let values: [(&dyn Fn(usize) -> f32, bool); 9] = [
            (&ordinary, true),
            (&|i| random(i) * 1e-3, true),
            (&|i| random(i).powi(5), true),
            // What a number grows by is at times less than half a last place, and at times most of it.
            (&|i| random(i) * if i % 3 == 0 { 1.0 } else { 3e-4 }, true),
            (&|i| random(i) * (1.0 + i as f32 / 100.0), true),
            (&|_| 1.0, true),
            // One of the 32 numbers has everything, too much for an anchor of the whole.
            (&|i| if i % 32 == 5 { random(i) } else { 0.0 }, false),
            (&|i| if i == 700 { 1.0 } else { 0.0 }, false),
            (&|_| 0.0, false),
        ];
        for half in HALVES {
            for (kind, (value, is_spread)) in values.iter().enumerate() {
                for scale in [1.0, 2f32.powi(if half == Half::Bf16 { -15 } else { -9 })] {
                    let bits: Vec<u16> = (0..PART).map(|i| half.truncate(value(i) * scale)).collect();
                    let (sum, rest) = exact(half, &bits);
                    let mut taken = 0;
                    for power in -9..=9 {
                        let Some(anchor) = anchor(sum * f64::from(2f32.powi(power))) else { continue };
                        for got in sums_of_part(half, &bits, anchor).into_iter().flatten() {
                            let off = ((got - sum) - rest).abs();
                            assert!(off <= most(sum), "{half:?}, {kind}, {power}: {got} for {sum}");
                            taken += 1;
                        }
                    }
                    assert_eq!(taken > 12, *is_spread, "{half:?}, {kind}: {taken}");
                }
            }
        }
    }

    #[test]
    fn a_part_with_an_element_that_is_not_finite_or_too_large_has_no_sum_of_pairs() {
        if skips() {
            return;
        }
        for half in HALVES {
            // Of f16 no part has sums as small or large as the limits.
            let sizes = if half == Half::Bf16 { &[0.0, -34.0, 57.0][..] } else { &[0.0] };
            for size in sizes.iter().map(|power| 2f32.powf(*power)) {
                let ordinary = vec![half.truncate(size); PART];
                let anchor = anchor(PART as f64 * f64::from(size).powi(2)).unwrap();
                assert!(sums_of_part(half, &ordinary, anchor).iter().all(Option::is_some));
                for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, size * 100.0] {
                    for place in 0..PART {
                        let mut bits = ordinary.clone();
                        bits[place] = half.truncate(value);
                        let sums = sums_of_part(half, &bits, anchor);
                        assert!(sums.iter().all(Option::is_none), "{half:?}, {size}, {value}, {place}");
                    }
                }
            }
        }
    }

    #[test]
    fn anchors_are_powers_of_two_above_what_one_number_gets() {
        for sum in [1.0, 1.5, 1023.0, 1024.0, 1e-10, 1e30, 2f64.powi(-58), 2f64.powi(127) * 1.999] {
            let anchor = anchor(sum).unwrap();
            assert_eq!(anchor.to_bits() & 0x007f_ffff, 0);
            let times = f64::from(anchor) / (sum / 32.0);
            assert!((4.0..=8.0).contains(&times), "{sum}: {times}");
        }
        for sum in [0.0, 2f64.powi(-58) * 0.99, 2f64.powi(128), 1e300, f64::INFINITY, f64::NAN, -f64::NAN] {
            assert_eq!(anchor(sum), None, "{sum}");
        }
    }

    #[test]
    fn parts_in_vain_become_rare_and_one_that_is_taken_ends_that() {
        let mut pause = Pause::default();
        let tries: Vec<usize> = (0..1000)
            .filter(|_| {
                let tries = pause.is_over();
                if tries {
                    pause.goes_on(true);
                }
                tries
            })
            .collect();
        assert_eq!(tries[..7], [0, 2, 6, 14, 30, 62, 126]);
        assert!(tries.len() < 21, "{}", tries.len());
        while !pause.is_over() {}
        pause.goes_on(false);
        assert!((0..100).all(|_| pause.is_over()));
    }

    /// In order and in four places, with and without a rest, of elements of one size and of many.
    #[test]
    fn rows_are_as_near_as_they_say() {
        if skips() {
            return;
        }
        let sizes = |i: usize| random(i) * 4f32.powi((i / 3000 * 7 % 5) as i32 - 2);
        let stretches_of_zeros = |i: usize| if (i / 1500).is_multiple_of(2) { 0.0 } else { random(i) };
        let values: [&dyn Fn(usize) -> f32; 3] = [&random, &sizes, &stretches_of_zeros];
        for half in HALVES {
            for (kind, value) in values.iter().enumerate() {
                for length in [BLOCK + 1, 5 * PART, 5 * PART + 300, 9999, 17 * PART + 1, 40_000] {
                    let bits: Vec<u16> = (0..length).map(|i| half.truncate(value(i))).collect();
                    let (high, low) = exact(half, &bits);
                    let sum = sum(half, &bits, length).unwrap();
                    let off = ((sum.total() - high) - low).abs();
                    assert!(off <= most(high), "{half:?}, {kind}, {length}");
                    assert!(sum.is_coarse(), "{half:?}, {kind}, {length}: no part was taken");
                }
            }
        }
    }

    /// Rows whose exact sums are the square of the middle between two `f32`, nearly: sums of pairs leave all of them open, one in `f64` decides some,
    /// and the exact sum the others.
    #[test]
    fn norms_that_a_coarse_sum_leaves_open_are_those_of_the_reference() {
        let (clients, params) = (64, 5 * PART + 300);
        let layout = Layout::dense(clients, params).unwrap();
        for half in HALVES {
            let mut bits: Vec<u16> = Vec::with_capacity(layout.len());
            for row in 0..clients {
                let mut of_row: Vec<u16> =
                    (0..params).map(|i| half.truncate(random(row * params + i))).collect();
                // The last 40 elements bring the sum to its aim, the greatest first.
                let begin = params - 40;
                let below = exact(half, &of_row[..begin]).0.sqrt() as f32;
                let middle = (f64::from(below) + f64::from(below.next_up())) / 2.0;
                let aim = middle * middle * (1.0 + f64::from(row as i32 % 5 - 2) * 2f64.powi(-41));
                for i in begin..params {
                    let (sum, _) = exact(half, &of_row[..i]);
                    of_row[i] = half.truncate((aim - sum).max(0.0).sqrt() as f32);
                }
                bits.extend(of_row);
            }
            if are_faster(params) {
                let rows = || bits.chunks(params);
                let decided = |sum: Option<FastSum>| sum.unwrap().norm().is_some();
                assert!(!rows().any(|row| decided(FastSum::of_halves(half, row, 0))), "{half:?}");
                let in_f64 = rows().filter(|row| decided(FastSum::of_halves_in_f64(half, row, 0))).count();
                assert!((20..60).contains(&in_f64), "{half:?}: {in_f64}");
            }
            let clipping = Clipping::fixed(2.0);
            let expected = Reference.norms_half(&layout, half, &bits, &clipping).unwrap();
            let norms = Cpu::new().unwrap().norms_half(&layout, half, &bits, &clipping).unwrap();
            assert_eq!(norms, expected, "{half:?}");
        }
    }
}
