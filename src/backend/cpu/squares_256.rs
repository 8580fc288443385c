//! Sums of squares with the vectors of AVX2: four `f64` to one, eight of them to hide what an addition takes.

use std::arch::x86_64::*;

use super::group::{ROWS, RowGroup};
use super::runs::{RUN_BLOCK, RUNS, Runs};
use super::squares::{LANES, MASKS, each_chunk, roundings};
use super::sum::BLOCK;
use crate::half::Half;

/// Numbers of a vector.
const WIDTH: usize = 4;

/// Vectors of a chunk.
const VECTORS: usize = LANES / WIDTH;

/// The most elements of a row that is summed in one chain of additions, beside others.
const CHAIN: usize = 512;

/// On its way an element of such a row meets an addition for each vector of the row, one for the rest, and two that join
/// a vector's numbers.
const _: () = assert!(CHAIN / WIDTH + 1 + 2 <= roundings(BLOCK));

/// Whether rows of so many elements have a sum of their group.
pub(super) const fn goes_side_by_side(params: usize) -> bool {
    WIDTH <= params && params <= CHAIN
}

/// The first `prefetches` values ask for memory ahead.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sum(values: &[f32], center: Option<&[f32]>, prefetches: usize) -> f64 {
    let mut lanes = [_mm256_setzero_pd(); VECTORS];
    each_chunk(values, center, prefetches, |chunk, center, rest| {
        let parts = parts_of_4(chunk, rest);
        let centers = center.map(|center| parts_of_4(center, rest));
        for i in 0..VECTORS {
            let mut value = _mm256_cvtps_pd(parts[i]);
            if let Some(centers) = centers {
                value = _mm256_sub_pd(value, _mm256_cvtps_pd(centers[i]));
            }
            lanes[i] = add_square(lanes[i], value);
        }
    });
    joined(lanes)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn parts_of_4(chunk: &[f32; LANES], rest: Option<usize>) -> [__m128; VECTORS] {
    let mut parts: [__m128; VECTORS] = bytemuck::cast(*chunk);
    if let Some(masks) = rest.and_then(|rest| MASKS[rest..].first_chunk::<LANES>()) {
        let masks: [__m128; VECTORS] = bytemuck::cast(*masks);
        for i in 0..VECTORS {
            parts[i] = _mm_and_ps(parts[i], masks[i]);
        }
    }
    parts
}

/// The same of halves: a block of them at most.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn half_sum(half: Half, bits: &[u16], prefetches: usize) -> f64 {
    match half {
        // Four at a time: taking eight apart costs a quarter of the speed.
        Half::F16 => squares_of_halves(bits, prefetches, |eight| {
            [_mm_cvtph_ps(eight), _mm_cvtph_ps(_mm_unpackhi_epi64(eight, eight))]
        }),
        // One is the upper half of an f32 as it is, its neighbour shifted up: sums know no order.
        Half::Bf16 => squares_of_halves(bits, prefetches, |eight| {
            let upper = _mm_set1_epi32(0xffff_0000_u32 as i32);
            [_mm_castsi128_ps(_mm_slli_epi32(eight, 16)), _mm_castsi128_ps(_mm_and_si128(eight, upper))]
        }),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn squares_of_halves(bits: &[u16], prefetches: usize, widen: impl Fn(__m128i) -> [__m128; 2]) -> f64 {
    let mut lanes = [_mm256_setzero_pd(); VECTORS];
    each_chunk(bits, None, prefetches, |chunk, _, rest| {
        let mut parts: [__m128i; VECTORS / 2] = bytemuck::cast(*chunk);
        let masks: &[u16] = bytemuck::cast_slice(&MASKS);
        if let Some(masks) = rest.and_then(|rest| masks[LANES + rest..].first_chunk::<LANES>()) {
            let masks: [__m128i; VECTORS / 2] = bytemuck::cast(*masks);
            for i in 0..VECTORS / 2 {
                parts[i] = _mm_and_si128(parts[i], masks[i]);
            }
        }
        for (lanes, part) in lanes.as_chunks_mut::<2>().0.iter_mut().zip(parts) {
            let [low, high] = widen(part);
            lanes[0] = add_square(lanes[0], _mm256_cvtps_pd(low));
            lanes[1] = add_square(lanes[1], _mm256_cvtps_pd(high));
        }
    });
    joined(lanes)
}

/// Of all runs.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sum_of_runs(runs: &Runs<'_>) -> f64 {
    let mut lanes = [_mm256_setzero_pd(); VECTORS];
    runs.each_chunk(|_, chunk| {
        let parts: [__m128; VECTORS] = bytemuck::cast(*chunk);
        for i in 0..VECTORS {
            lanes[i] = add_square(lanes[i], _mm256_cvtps_pd(parts[i]));
        }
    });
    joined(lanes)
}

/// Of each run: an element meets no more additions than in a group of rows of [`CHAIN`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn sums_of_runs(runs: &Runs<'_>) -> [f64; ROWS] {
    const { assert!(RUNS == ROWS && RUN_BLOCK <= CHAIN) };
    let mut sums = [_mm256_setzero_pd(); ROWS];
    runs.each_chunk(|i, chunk| {
        let parts: [__m128; VECTORS] = bytemuck::cast(*chunk);
        for part in parts {
            sums[i] = add_square(sums[i], _mm256_cvtps_pd(part));
        }
    });
    totals(sums)
}

/// Of a group whose rows go side by side.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sums_of_group(group: RowGroup<'_, f32>) -> [f64; ROWS] {
    totals(match group.asks_ahead {
        true => squares_side_by_side::<_, true>(&group, bytemuck::cast),
        false => squares_side_by_side::<_, false>(&group, bytemuck::cast),
    })
}

/// The same of halves.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sums_of_half_group(half: Half, group: RowGroup<'_, u16>) -> [f64; ROWS] {
    let of_four = |four: [u16; WIDTH]| _mm_cvtsi64_si128(bytemuck::cast(four));
    totals(match half {
        Half::F16 => squares_side_by_side::<_, true>(&group, |four| _mm_cvtph_ps(of_four(four))),
        Half::Bf16 => squares_side_by_side::<_, true>(&group, |four| {
            _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(of_four(four)), 16))
        }),
    })
}

/// A vector of each row at a time: there are as many chains of additions as it takes to hide what one takes. Where memory ahead
/// is asked for, that is beside each step.
#[allow(clippy::needless_range_loop)] // All rows are at the same step.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn squares_side_by_side<T: Copy, const ASKS_AHEAD: bool>(
    group: &RowGroup<'_, T>,
    widen: impl Fn([T; WIDTH]) -> __m128,
) -> [__m256d; ROWS] {
    const STEP: usize = ROWS * WIDTH;
    let rows = group.rows();
    let whole = group.params / WIDTH;
    let mut parts: [&[[T; WIDTH]]; ROWS] = [&[]; ROWS];
    for i in 0..ROWS {
        parts[i] = &rows[i].as_chunks().0[..whole];
    }
    let mut sums = [_mm256_setzero_pd(); ROWS];
    for at in 0..whole {
        if ASKS_AHEAD {
            group.prefetch_ahead(at * STEP..(at + 1) * STEP);
        }
        for i in 0..ROWS {
            sums[i] = add_square(sums[i], _mm256_cvtps_pd(widen(parts[i][at])));
        }
    }
    if ASKS_AHEAD {
        group.prefetch_ahead(whole * STEP..ROWS * group.stride);
    }
    let rest = group.params % WIDTH;
    if rest > 0 {
        let mask: [u32; WIDTH] = std::array::from_fn(|i| MASKS[LANES - WIDTH + rest + i]);
        for i in 0..ROWS {
            if let Some(last) = rows[i].last_chunk() {
                let last = _mm_and_ps(widen(*last), bytemuck::cast(mask));
                sums[i] = add_square(sums[i], _mm256_cvtps_pd(last));
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_square(lane: __m256d, value: __m256d) -> __m256d {
    _mm256_fmadd_pd(value, value, lane)
}

/// The sum of all numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn joined(mut lanes: [__m256d; VECTORS]) -> f64 {
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] = _mm256_add_pd(lanes[i], lanes[i + width]);
        }
    }
    let [a, b, c, d]: [f64; WIDTH] = bytemuck::cast(lanes[0]);
    (a + c) + (b + d)
}

/// The sum of each vector's numbers, of all vectors at once: one alone waits for each of its additions.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn totals(rows: [__m256d; ROWS]) -> [f64; ROWS] {
    let quads = |a, b, c, d| {
        // Neighbours: of a, of b, of a, of b.
        let (ab, cd) = (_mm256_hadd_pd(a, b), _mm256_hadd_pd(c, d));
        const INNER: i32 = 0x21;
        const OUTER: i32 = 0b1100;
        _mm256_add_pd(_mm256_permute2f128_pd::<INNER>(ab, cd), _mm256_blend_pd::<OUTER>(ab, cd))
    };
    let [a, b, c, d, e, f, g, h] = rows;
    bytemuck::cast([quads(a, b, c, d), quads(e, f, g, h)])
}
