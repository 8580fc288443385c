//! Sums of squares of halves in pairs of `f32`, with the vectors of AVX2: [`pairs`](super::pairs) has why, and what they are worth.

use std::arch::x86_64::*;

use super::pairs::PART;
use super::runs::prefetch_in_run;
use super::simd::prefetch_ahead;
use super::squares::LANES;
use crate::half::Half;

/// Numbers of a vector.
const WIDTH: usize = 8;

/// Vectors of a chunk.
const VECTORS: usize = LANES / WIDTH;

/// The sum of a part, given in pieces; `None` where one of the 32 sums became twice the anchor or is not finite, or where together they grew by less
/// than the anchor. Memory ahead may be asked for in each piece.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum<const N: usize>(
    half: Half,
    pieces: &[&[u16]; N],
    anchor: f32,
    asks_ahead: bool,
) -> Option<f64> {
    match (half, asks_ahead) {
        (Half::F16, true) => sum_of::<N, true>(pieces, anchor, |chunk| f16_values(chunk)),
        (Half::F16, false) => sum_of::<N, false>(pieces, anchor, |chunk| f16_values(chunk)),
        (Half::Bf16, true) => sum_of::<N, true>(pieces, anchor, |chunk| bf16_values(chunk)),
        (Half::Bf16, false) => sum_of::<N, false>(pieces, anchor, |chunk| bf16_values(chunk)),
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn f16_values(chunk: &[u16; LANES]) -> [__m256; VECTORS] {
    let [a, b, c, d]: [__m128i; VECTORS] = bytemuck::cast(*chunk);
    [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b), _mm256_cvtph_ps(c), _mm256_cvtph_ps(d)]
}

/// One is the upper half of an `f32` as it is, its neighbour shifted up: sums know no order.
#[inline]
#[target_feature(enable = "avx2")]
fn bf16_values(chunk: &[u16; LANES]) -> [__m256; VECTORS] {
    let [a, b]: [__m256i; VECTORS / 2] = bytemuck::cast(*chunk);
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let even = |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
    let odd = |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
    [even(a), odd(a), even(b), odd(b)]
}

#[allow(clippy::needless_range_loop)] // All pieces are at the same chunk.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_of<const N: usize, const ASKS_AHEAD: bool>(
    pieces: &[&[u16]; N],
    anchor: f32,
    widen: impl Fn(&[u16; LANES]) -> [__m256; VECTORS],
) -> Option<f64> {
    let mut chunks: [&[[u16; LANES]]; N] = [&[]; N];
    for (chunks, piece) in chunks.iter_mut().zip(pieces) {
        *chunks = &piece.as_chunks().0[..PART / N / LANES];
    }
    let anchors = _mm256_set1_ps(anchor);
    let (mut sums, mut rests) = ([anchors; VECTORS], [_mm256_setzero_ps(); VECTORS]);
    for at in 0..PART / N / LANES {
        for i in 0..N {
            let chunk = &chunks[i][at];
            match (ASKS_AHEAD, N) {
                (false, _) => {}
                (true, 1) => prefetch_ahead(chunk.as_ptr(), LANES),
                (true, _) => prefetch_in_run(chunk.as_ptr(), LANES),
            }
            let values = widen(chunk);
            for v in 0..VECTORS {
                let sum = _mm256_fmadd_ps(values[v], values[v], sums[v]);
                let grown = _mm256_sub_ps(sum, sums[v]);
                rests[v] = _mm256_add_ps(rests[v], _mm256_fmsub_ps(values[v], values[v], grown));
                sums[v] = sum;
            }
        }
    }
    joined(sums, rests, anchor)
}

/// All sums and rests as one number; `None` as [`sum`] has it.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn joined(sums: [__m256; VECTORS], rests: [__m256; VECTORS], anchor: f32) -> Option<f64> {
    // How many last pieces of the anchor each has grown by: 2^23 make it twice as large. Infinities and NaN have more.
    let grown = |sum| _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_set1_epi32(anchor.to_bits() as i32));
    let [a, b, c, d] = [grown(sums[0]), grown(sums[1]), grown(sums[2]), grown(sums[3])];
    let any = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
    if _mm256_testz_si256(any, _mm256_set1_epi32(!0x7f_ffff)) == 0 {
        return None;
    }
    let grown = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
    let [a, b, c, d] = rests;
    let rests = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    let (low, high) = (_mm256_castsi256_si128(grown), _mm256_extracti128_si256::<1>(grown));
    let grown = _mm256_add_pd(_mm256_cvtepi32_pd(low), _mm256_cvtepi32_pd(high));
    let (low, high) = (_mm256_castps256_ps128(rests), _mm256_extractf128_ps::<1>(rests));
    let rests = _mm256_add_pd(_mm256_cvtps_pd(low), _mm256_cvtps_pd(high));
    let unit = _mm256_set1_pd(f64::from(anchor) * f64::from(f32::EPSILON));
    let [a, b, c, d]: [f64; 4] = bytemuck::cast(_mm256_fmadd_pd(grown, unit, rests));
    let sum = (a + c) + (b + d);
    (sum >= f64::from(anchor)).then_some(sum)
}
