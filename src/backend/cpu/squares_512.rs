//! Sums of squares with the vectors of AVX-512: eight `f64` to one, four of them to hide what an addition takes.
//!
//! What is left behind the last group of four goes eight at a time, and the last few are masked out of the eight that
//! end with them, as in `squares.rs`.

use std::arch::x86_64::*;

use super::squares::{LANES, MASKS, ROWS};
use crate::half::Half;

/// Numbers of a vector.
const WIDTH: usize = 8;

#[target_feature(enable = "avx512f")]
pub(super) fn sum(values: &[f32], center: Option<&[f32]>) -> f64 {
    _mm512_reduce_add_pd(match center {
        None => squares(values),
        Some(center) => squares_around(values, center),
    })
}

/// Of short rows; `center` begins where they do.
#[target_feature(enable = "avx512f")]
pub(super) fn sums(rows: &[&[f32]; ROWS], center: Option<&[f32]>) -> [f64; ROWS] {
    let mut of_rows = [_mm512_setzero_pd(); ROWS];
    // Loops here, and not `map`, which is not inlined into vectors of this kind.
    for i in 0..ROWS {
        of_rows[i] = match center {
            None => squares(rows[i]),
            Some(center) => squares_around(rows[i], &center[..rows[i].len()]),
        };
    }
    totals(of_rows)
}

#[target_feature(enable = "avx512f")]
pub(super) fn half_sum(half: Half, bits: &[u16]) -> f64 {
    _mm512_reduce_add_pd(squares_of_half(half, bits))
}

#[target_feature(enable = "avx512f")]
pub(super) fn half_sums(half: Half, rows: &[&[u16]; ROWS]) -> [f64; ROWS] {
    let mut of_rows = [_mm512_setzero_pd(); ROWS];
    for i in 0..ROWS {
        of_rows[i] = squares_of_half(half, rows[i]);
    }
    totals(of_rows)
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
fn squares(values: &[f32]) -> __m512d {
    let (groups, rest) = values.as_chunks::<LANES>();
    let mut lanes = [_mm512_setzero_pd(); 4];
    for group in groups {
        let parts: [[f32; WIDTH]; 4] = bytemuck::cast(*group);
        for i in 0..4 {
            lanes[i] = add_square(lanes[i], wide(parts[i]));
        }
    }
    let (parts, end) = rest.as_chunks::<WIDTH>();
    for part in parts {
        lanes[0] = add_square(lanes[0], wide(*part));
    }
    if !end.is_empty() {
        lanes[1] = add_square(lanes[1], wide(last(values, end)));
    }
    joined(lanes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn squares_around(values: &[f32], center: &[f32]) -> __m512d {
    let (groups, rest) = values.as_chunks::<LANES>();
    let (centers, rest_of_center) = center.as_chunks::<LANES>();
    let mut lanes = [_mm512_setzero_pd(); 4];
    for (group, center) in groups.iter().zip(centers) {
        let parts: [[f32; WIDTH]; 4] = bytemuck::cast(*group);
        let centers: [[f32; WIDTH]; 4] = bytemuck::cast(*center);
        for i in 0..4 {
            lanes[i] = add_square(lanes[i], _mm512_sub_pd(wide(parts[i]), wide(centers[i])));
        }
    }
    let ((parts, end), (centers, end_of_center)) = (rest.as_chunks::<WIDTH>(), rest_of_center.as_chunks());
    for (part, center) in parts.iter().zip(centers) {
        lanes[0] = add_square(lanes[0], _mm512_sub_pd(wide(*part), wide(*center)));
    }
    if !end.is_empty() {
        let (end, center) = (last(values, end), last(center, end_of_center));
        lanes[1] = add_square(lanes[1], _mm512_sub_pd(wide(end), wide(center)));
    }
    joined(lanes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn squares_of_half(half: Half, bits: &[u16]) -> __m512d {
    match half {
        // Eight at a time: taking sixteen apart costs a third of the speed.
        Half::F16 => half_squares(
            bits,
            |group| {
                let [a, b, c, d]: [__m128i; 4] = bytemuck::cast(*group);
                [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b), _mm256_cvtph_ps(c), _mm256_cvtph_ps(d)]
            },
            |part| _mm256_cvtph_ps(bytemuck::cast(part)),
        ),
        // One is the upper half of an f32 as it is, its neighbour shifted up: sums know no order.
        Half::Bf16 => half_squares(
            bits,
            |group| {
                let [a, b]: [__m256i; 2] = bytemuck::cast(*group);
                let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                    _mm256_castsi256_ps(_mm256_and_si256(a, upper)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
                    _mm256_castsi256_ps(_mm256_and_si256(b, upper)),
                ]
            },
            |part| {
                let wide = _mm256_cvtepu16_epi32(bytemuck::cast(part));
                _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
            },
        ),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn half_squares(
    bits: &[u16],
    widen_group: impl Fn(&[u16; LANES]) -> [__m256; 4],
    widen: impl Fn([u16; WIDTH]) -> __m256,
) -> __m512d {
    let (groups, rest) = bits.as_chunks::<LANES>();
    let mut lanes = [_mm512_setzero_pd(); 4];
    for group in groups {
        let parts = widen_group(group);
        for i in 0..4 {
            lanes[i] = add_square(lanes[i], _mm512_cvtps_pd(parts[i]));
        }
    }
    let (parts, end) = rest.as_chunks::<WIDTH>();
    for part in parts {
        lanes[0] = add_square(lanes[0], _mm512_cvtps_pd(widen(*part)));
    }
    if !end.is_empty() {
        lanes[1] = add_square(lanes[1], _mm512_cvtps_pd(widen(last_halves(bits, end))));
    }
    joined(lanes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn wide(part: [f32; WIDTH]) -> __m512d {
    _mm512_cvtps_pd(bytemuck::cast(part))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_square(lane: __m512d, value: __m512d) -> __m512d {
    _mm512_fmadd_pd(value, value, lane)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn joined(lanes: [__m512d; 4]) -> __m512d {
    _mm512_add_pd(_mm512_add_pd(lanes[0], lanes[1]), _mm512_add_pd(lanes[2], lanes[3]))
}

/// Bits that are left of the last eight values where only the last `count` are meant.
#[inline(always)]
fn masks(count: usize) -> Option<&'static [u32; WIDTH]> {
    MASKS[LANES - WIDTH + count..].first_chunk()
}

/// The end of values, and zeros.
#[inline(always)]
fn last(values: &[f32], end: &[f32]) -> [f32; WIDTH] {
    let mut last = [0.0; WIDTH];
    if let (Some(eight), Some(masks)) = (values.last_chunk::<WIDTH>(), masks(end.len())) {
        for i in 0..WIDTH {
            last[i] = f32::from_bits(eight[i].to_bits() & masks[i]);
        }
    } else {
        last[..end.len()].copy_from_slice(end);
    }
    last
}

/// The same of halves.
#[inline(always)]
fn last_halves(bits: &[u16], end: &[u16]) -> [u16; WIDTH] {
    let mut last = [0; WIDTH];
    if let (Some(eight), Some(masks)) = (bits.last_chunk::<WIDTH>(), masks(end.len())) {
        for i in 0..WIDTH {
            last[i] = eight[i] & masks[i] as u16;
        }
    } else {
        last[..end.len()].copy_from_slice(end);
    }
    last
}
