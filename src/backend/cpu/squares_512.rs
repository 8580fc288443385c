//! Sums of squares with the vectors of AVX-512: eight `f64` to one, four of them to hide what an addition takes.
//!
//! What is left behind the last chunk of four goes eight at a time, and of the eight that end a row the last few.

use std::arch::x86_64::*;

use super::group::{ROWS, RowGroup, RowSet, members};
use super::simd::prefetch_ahead;
use super::squares::LANES;
use crate::half::Half;

/// Numbers of a vector.
pub(super) const WIDTH: usize = 8;

/// The first `prefetches` values ask for memory ahead.
#[target_feature(enable = "avx512f")]
pub(super) fn sum(values: &[f32], center: Option<&[f32]>, prefetches: usize) -> f64 {
    _mm512_reduce_add_pd(match center {
        None => squares_of_singles(values, prefetches),
        Some(center) => squares_around(values, center, prefetches),
    })
}

/// The same of halves: a block of them at most.
#[target_feature(enable = "avx512f")]
pub(super) fn half_sum(half: Half, bits: &[u16], prefetches: usize) -> f64 {
    if half == Half::Bf16 {
        let (chunks, rest) = bits.as_chunks();
        let sum = moved_squares(chunks, prefetches);
        if (SMALLEST_MOVED..1.0).contains(&sum) {
            return sum * MOVED_BACK + _mm512_reduce_add_pd(squares_of_halves(half, rest, 0));
        }
    }
    _mm512_reduce_add_pd(squares_of_halves(half, bits, prefetches))
}

/// The squares of [`moved_squares`] are those of the values divided by this.
const MOVED_BACK: f64 = f64::from_bits((1023 + 256) << 52);

/// Sums of a block of [`moved_squares`] from here on are right: what is wrong in them is less than 4,096 · 2^-508, 2^-96 of this.
const SMALLEST_MOVED: f64 = f64::from_bits((1023 - 400) << 52);

/// The sum of squares of bf16 as they become `f64` without a conversion, which takes longer than all else: eight exponent and seven
/// mantissa bits move to where an `f64` has them, and the other exponent bits are those of 2^-128. Only for zeros and subnormal numbers that is
/// wrong, by less than 2^-508 each, and for what is not finite, which adds 1 or more as numbers do not.
#[inline]
#[target_feature(enable = "avx512f")]
fn moved_squares(chunks: &[[u16; 2 * LANES]], prefetches: usize) -> f64 {
    let (prefetching, others) = chunks.split_at(chunks.len().min(prefetches / (2 * LANES)));
    let mut lanes = [[_mm512_setzero_pd(); 4]; 2];
    for chunk in prefetching {
        prefetch_ahead(chunk.as_ptr(), 2 * LANES);
        lanes = add_moved_squares(lanes, chunk);
    }
    for chunk in others {
        lanes = add_moved_squares(lanes, chunk);
    }
    _mm512_reduce_add_pd(_mm512_add_pd(joined(lanes[0]), joined(lanes[1])))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_moved_squares(mut lanes: [[__m512d; 4]; 2], chunk: &[u16; 2 * LANES]) -> [[__m512d; 4]; 2] {
    let moved = _mm512_set1_epi64(0x7fff << 45);
    let exponent = _mm512_set1_epi64(0x300 << 52);
    // Both bits of the first two, or that of the third.
    const MASKED_OR: i32 = 0xea;
    let parts: [__m512i; 2] = bytemuck::cast(*chunk);
    for (lanes, four) in lanes.iter_mut().zip(parts) {
        let places = [
            _mm512_slli_epi64(four, 45),
            _mm512_slli_epi64(four, 29),
            _mm512_slli_epi64(four, 13),
            _mm512_srli_epi64(four, 3),
        ];
        for (lane, place) in lanes.iter_mut().zip(places) {
            let value = _mm512_ternarylogic_epi64::<MASKED_OR>(place, moved, exponent);
            *lane = add_square(*lane, _mm512_castsi512_pd(value));
        }
    }
    lanes
}

/// Of some short rows; `center` begins where they do.
#[target_feature(enable = "avx512f")]
pub(super) fn sums(rows: &[&[f32]; ROWS], which: RowSet, center: Option<&[f32]>) -> [f64; ROWS] {
    let mut of_rows = [_mm512_setzero_pd(); ROWS];
    // Loops here, and not `map`, which is not inlined into vectors of this kind.
    for i in members(which) {
        of_rows[i] = match center {
            None => squares_of_singles(rows[i], 0),
            Some(center) => squares_around(rows[i], &center[..rows[i].len()], 0),
        };
    }
    totals(of_rows)
}

/// The same of halves.
#[target_feature(enable = "avx512f")]
pub(super) fn half_sums(half: Half, rows: &[&[u16]; ROWS], which: RowSet) -> [f64; ROWS] {
    let mut of_rows = [_mm512_setzero_pd(); ROWS];
    for i in members(which) {
        of_rows[i] = squares_of_halves(half, rows[i], 0);
    }
    totals(of_rows)
}

/// Of a group of rows of at least a vector.
#[target_feature(enable = "avx512f")]
pub(super) fn sums_of_group(group: RowGroup<'_, f32>) -> [f64; ROWS] {
    totals(squares_side_by_side(&group, bytemuck::cast))
}

/// The same of halves.
#[target_feature(enable = "avx512f")]
pub(super) fn sums_of_half_group(half: Half, group: RowGroup<'_, u16>) -> [f64; ROWS] {
    totals(match half {
        Half::F16 => squares_side_by_side(&group, |part| wide_f16(part)),
        Half::Bf16 => squares_side_by_side(&group, |part| wide_bf16(part)),
    })
}

/// A vector of each row at a time: there are as many chains of additions as it takes to hide what one takes, and nothing
/// to join within a row. Asked for beside each step, the memory ahead costs nothing; all at once it took a third of the
/// time of rows in a cache.
#[allow(clippy::needless_range_loop)] // All rows are at the same step.
#[inline]
#[target_feature(enable = "avx512f")]
fn squares_side_by_side<T: Copy>(
    group: &RowGroup<'_, T>,
    widen: impl Fn([T; WIDTH]) -> __m256,
) -> [__m512d; ROWS] {
    const STEP: usize = ROWS * WIDTH;
    debug_assert!(group.params >= WIDTH, "the end of a row is the end of a vector");
    let rows = group.rows();
    let whole = group.params / WIDTH;
    let mut parts: [&[[T; WIDTH]]; ROWS] = [&[]; ROWS];
    for i in 0..ROWS {
        parts[i] = &rows[i].as_chunks().0[..whole];
    }
    let mut sums = [_mm512_setzero_pd(); ROWS];
    for at in 0..whole {
        group.prefetch_ahead(at * STEP..(at + 1) * STEP);
        for i in 0..ROWS {
            sums[i] = add_square(sums[i], _mm512_cvtps_pd(widen(parts[i][at])));
        }
    }
    group.prefetch_ahead(whole * STEP..ROWS * group.stride);
    let rest = group.params % WIDTH;
    if rest > 0 {
        for i in 0..ROWS {
            if let Some(last) = rows[i].last_chunk() {
                sums[i] = add_end_square(sums[i], _mm512_cvtps_pd(widen(*last)), rest);
            }
        }
    }
    sums
}

/// The sum of each vector's numbers, of all vectors at once: one alone waits for each of its three additions.
#[inline]
#[target_feature(enable = "avx512f")]
fn totals(rows: [__m512d; ROWS]) -> [f64; ROWS] {
    // Neighbours: 0 of a, 0 of b, 1 of a, 1 of b, and so on.
    let pairs = |a, b| _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    // Neighbouring pairs: of a, then of b.
    let quads = |a, b| {
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        _mm512_add_pd(_mm512_shuffle_f64x2::<EVEN>(a, b), _mm512_shuffle_f64x2::<ODD>(a, b))
    };
    let [a, b, c, d, e, f, g, h] = rows;
    let low = quads(pairs(a, b), pairs(c, d));
    let high = quads(pairs(e, f), pairs(g, h));
    bytemuck::cast(quads(low, high))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn squares_of_singles(values: &[f32], prefetches: usize) -> __m512d {
    squares(values, prefetches, |chunk| bytemuck::cast(*chunk), bytemuck::cast)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn squares_of_halves(half: Half, bits: &[u16], prefetches: usize) -> __m512d {
    match half {
        // Eight at a time: taking sixteen apart costs a third of the speed.
        Half::F16 => squares(
            bits,
            prefetches,
            |chunk| {
                let [a, b, c, d]: [[u16; WIDTH]; 4] = bytemuck::cast(*chunk);
                [wide_f16(a), wide_f16(b), wide_f16(c), wide_f16(d)]
            },
            |part| wide_f16(part),
        ),
        // One is the upper half of an f32 as it is, its neighbour shifted up: sums know no order.
        Half::Bf16 => squares(
            bits,
            prefetches,
            |chunk| {
                let [a, b]: [__m256i; 2] = bytemuck::cast(*chunk);
                let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                    _mm256_castsi256_ps(_mm256_and_si256(a, upper)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
                    _mm256_castsi256_ps(_mm256_and_si256(b, upper)),
                ]
            },
            |part| wide_bf16(part),
        ),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn squares<T: Copy + Default>(
    values: &[T],
    prefetches: usize,
    widen_chunk: impl Fn(&[T; LANES]) -> [__m256; 4],
    widen: impl Fn([T; WIDTH]) -> __m256,
) -> __m512d {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (prefetching, others) = chunks.split_at(chunks.len().min(prefetches / LANES));
    let mut lanes = [_mm512_setzero_pd(); 4];
    for chunk in prefetching {
        prefetch_ahead(chunk.as_ptr(), LANES);
        lanes = add_squares(lanes, wide_chunk(widen_chunk(chunk)));
    }
    for chunk in others {
        lanes = add_squares(lanes, wide_chunk(widen_chunk(chunk)));
    }
    let (parts, end) = rest.as_chunks();
    for part in parts {
        lanes[0] = add_square(lanes[0], _mm512_cvtps_pd(widen(*part)));
    }
    if !end.is_empty() {
        lanes[1] = match values.last_chunk() {
            Some(last) => add_end_square(lanes[1], _mm512_cvtps_pd(widen(*last)), end.len()),
            None => add_square(lanes[1], _mm512_cvtps_pd(widen(padded(end)))),
        };
    }
    joined(lanes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn squares_around(values: &[f32], center: &[f32], prefetches: usize) -> __m512d {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (centers, rest_of_center) = center.as_chunks::<LANES>();
    let (prefetching, others) = chunks.split_at(chunks.len().min(prefetches / LANES));
    let (beside_prefetching, beside_others) = centers.split_at(prefetching.len());
    let mut lanes = [_mm512_setzero_pd(); 4];
    for (chunk, center) in prefetching.iter().zip(beside_prefetching) {
        prefetch_ahead(chunk.as_ptr(), LANES);
        lanes = add_squares(lanes, differences(chunk, center));
    }
    for (chunk, center) in others.iter().zip(beside_others) {
        lanes = add_squares(lanes, differences(chunk, center));
    }
    let ((parts, end), (centers, end_of_center)) = (rest.as_chunks::<WIDTH>(), rest_of_center.as_chunks());
    for (part, center) in parts.iter().zip(centers) {
        lanes[0] = add_square(lanes[0], _mm512_sub_pd(wide(*part), wide(*center)));
    }
    if !end.is_empty() {
        lanes[1] = match (values.last_chunk(), center.last_chunk()) {
            (Some(last), Some(center)) => {
                add_end_square(lanes[1], _mm512_sub_pd(wide(*last), wide(*center)), end.len())
            }
            _ => add_square(lanes[1], _mm512_sub_pd(wide(padded(end)), wide(padded(end_of_center)))),
        };
    }
    joined(lanes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn differences(chunk: &[f32; LANES], center: &[f32; LANES]) -> [__m512d; 4] {
    let (mut values, center) = (wide_chunk(bytemuck::cast(*chunk)), wide_chunk(bytemuck::cast(*center)));
    for i in 0..4 {
        values[i] = _mm512_sub_pd(values[i], center[i]);
    }
    values
}

#[inline]
#[target_feature(enable = "avx512f")]
fn wide_f16(part: [u16; WIDTH]) -> __m256 {
    _mm256_cvtph_ps(bytemuck::cast(part))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn wide_bf16(part: [u16; WIDTH]) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bytemuck::cast(part)), 16))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn wide_chunk([a, b, c, d]: [__m256; 4]) -> [__m512d; 4] {
    [_mm512_cvtps_pd(a), _mm512_cvtps_pd(b), _mm512_cvtps_pd(c), _mm512_cvtps_pd(d)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn wide(part: [f32; WIDTH]) -> __m512d {
    _mm512_cvtps_pd(bytemuck::cast(part))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_squares(mut lanes: [__m512d; 4], values: [__m512d; 4]) -> [__m512d; 4] {
    for i in 0..4 {
        lanes[i] = add_square(lanes[i], values[i]);
    }
    lanes
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_square(lane: __m512d, value: __m512d) -> __m512d {
    _mm512_fmadd_pd(value, value, lane)
}

/// Where only the last `count` of eight are meant.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_end_square(lane: __m512d, value: __m512d, count: usize) -> __m512d {
    _mm512_mask3_fmadd_pd(value, value, lane, 0xff << (WIDTH - count))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn joined(lanes: [__m512d; 4]) -> __m512d {
    _mm512_add_pd(_mm512_add_pd(lanes[0], lanes[1]), _mm512_add_pd(lanes[2], lanes[3]))
}

/// Elements fewer than a vector, and zeros. Out of line, so that the way past it keeps its vectors in registers.
#[cold]
#[inline(never)]
fn padded<T: Copy + Default>(end: &[T]) -> [T; WIDTH] {
    let mut padded = [T::default(); WIDTH];
    padded[..end.len()].copy_from_slice(end);
    padded
}
