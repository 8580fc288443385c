//! Sums of squares on the CPU: in `f64`, or in pairs of `f32`, with a proven error, and exactly where that leaves the norm open.

#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::runs::{RUNS, Runs, run_of};
use super::squares::{LANES, roundings, sum_of_half_squares, sum_of_squares};
use crate::half::Half;
use crate::norms::Norm;
use crate::numerics::{certify, two_sum};

/// Elements that are summed in plain `f64` before the block's sum joins the row's.
pub(super) const BLOCK: usize = 4096;

/// A row's sum is within `1 ± 2^-QUALITY` of the exact one, but for sums of pairs ([`pairs::QUALITY`]).
///
/// An element of a block goes through 136 additions at most, each rounded by 2^-53, and its square is exact or, of a rounded
/// difference from a centre, within three more. Blocks and segments are joined with their rounding error
/// carried along: n joins leave n² · 2^-106, less than as much again for n up to 2^30 (a row of 2^31 elements has
/// 2^19 blocks or 2^21 parts, and a batch has at most 2^28 segments). 2 · 139 · 2^-53 < 2^-44.
pub(super) const QUALITY: u32 = 44;

const _: () = assert!(2 * (roundings(BLOCK) + 3) < 1 << (53 - QUALITY));

/// A sum and the rounding error of its additions, `high + low`.
#[derive(Debug, Clone, Copy)]
pub(super) struct FastSum {
    high: f64,
    low: f64,
    /// It is within `1 ± 2^-quality` of the exact one.
    quality: u32,
}

impl Default for FastSum {
    fn default() -> Self {
        Self::of_block(0.0)
    }
}

impl FastSum {
    /// Of values, or of their differences from the centre's; the first `prefetches` of them ask for memory ahead.
    #[inline(always)]
    pub(super) fn of(values: &[f32], center: Option<&[f32]>, prefetches: usize) -> Self {
        if values.len() <= BLOCK {
            return Self::of_block(sum_of_squares(values, center, prefetches));
        }
        Self::of_blocks(values, center, prefetches)
    }

    #[inline(never)]
    fn of_blocks(values: &[f32], center: Option<&[f32]>, prefetches: usize) -> Self {
        // A centre is one more place to read.
        let run = if center.is_none() { run_of(values.len()) } else { 0 };
        let of_runs = Runs::parts(values, run).map(|part| Self::of_block(part.sum()));
        let of_runs = of_runs.fold(Self::default(), Self::join);
        let begin = RUNS * run;
        values[begin..].chunks(BLOCK).enumerate().fold(of_runs, |sum, (block, values)| {
            let start = begin + block * BLOCK;
            let center = center.map(|center| &center[start..start + values.len()]);
            let prefetches = prefetches.saturating_sub(start);
            sum.join(Self::of_block(sum_of_squares(values, center, prefetches)))
        })
    }

    /// Of rows of one length, side by side.
    pub(super) fn of_rows(rows: &[&[f32]; RUNS]) -> [Self; RUNS] {
        let length = rows[0].len();
        // What is left goes with the chunk before it, because fewer elements than a chunk would be copied first.
        let chunks =
            if length.is_multiple_of(LANES) { length / LANES } else { (length / LANES).saturating_sub(1) };
        let begin = chunks * LANES;
        let mut sums = rows.map(|row| Self::of_block(sum_of_squares(&row[begin..], None, 0)));
        for part in Runs::parts_of_rows(rows, begin) {
            for (sum, high) in sums.iter_mut().zip(part.sums()) {
                *sum = sum.join(Self::of_block(high));
            }
        }
        sums
    }

    /// Of a block's sum.
    pub(super) fn of_block(high: f64) -> Self {
        Self { high, low: 0.0, quality: QUALITY }
    }

    /// Of a part's sum of pairs.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of_pairs(high: f64) -> Self {
        Self { high, low: 0.0, quality: pairs::QUALITY }
    }

    /// Of halves, in the way that is fastest here; `None` where this processor cannot widen them in registers.
    #[inline]
    pub(super) fn of_halves(half: Half, bits: &[u16], prefetches: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if pairs::are_faster(bits.len()) {
            return pairs::sum(half, bits, prefetches);
        }
        Self::of_halves_in_f64(half, bits, prefetches)
    }

    /// The same, to [`QUALITY`].
    pub(super) fn of_halves_in_f64(half: Half, bits: &[u16], prefetches: usize) -> Option<Self> {
        if bits.len() <= BLOCK {
            return Some(Self::of_block(sum_of_half_squares(half, bits, prefetches)?));
        }
        bits.chunks(BLOCK).enumerate().try_fold(Self::default(), |sum, (block, bits)| {
            let high = sum_of_half_squares(half, bits, prefetches.saturating_sub(block * BLOCK))?;
            Some(sum.join(Self::of_block(high)))
        })
    }

    #[inline(always)]
    pub(super) fn join(self, other: Self) -> Self {
        let (high, lost) = two_sum(self.high, other.high);
        Self { high, low: self.low + other.low + lost, quality: self.quality.min(other.quality) }
    }

    /// As one number.
    #[inline(always)]
    pub(super) fn total(self) -> f64 {
        self.high + self.low
    }

    /// The norm where this sum decides it; `None` sends the row to a finer sum, if there is one, and to the exact one.
    #[inline]
    pub(super) fn norm(self) -> Option<Norm> {
        // Not finite exactly where a value was not: squares of finite `f32` cannot overflow `f64`.
        if !self.high.is_finite() {
            return Some(Norm::NON_FINITE);
        }
        certify(self.total(), self.quality)
    }

    /// Whether a sum of [`QUALITY`] may decide what this one leaves open.
    pub(super) fn is_coarse(self) -> bool {
        self.quality < QUALITY
    }

    /// Whether every value was finite.
    pub(super) fn is_finite(self) -> bool {
        self.high.is_finite()
    }
}
