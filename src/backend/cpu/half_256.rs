//! Halves by the instructions of AVX2 and F16C, sixteen at a time.
//!
//! There is no product that is rounded towards zero: one is rounded to nearest, and what that was off by, which a fused
//! multiplication knows exactly enough for its sign, takes it one number down where it was rounded up.

use std::arch::x86_64::*;

use super::half_simd::each_group;
use crate::half::Half;

const LANES: usize = 16;

/// Writes the values of f16.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen(bits: &[u16], values: &mut [f32]) {
    let (groups, rest) = bits.as_chunks::<8>();
    let (targets, rest_values) = values.as_chunks_mut::<8>();
    for (group, target) in groups.iter().zip(targets) {
        *target = bytemuck::cast(_mm256_cvtph_ps(bytemuck::cast(*group)));
    }
    rest.iter().zip(rest_values).for_each(|(&bits, value)| *value = Half::F16.widen(bits));
}

/// Writes the nearest f16. Of whole groups of eight.
#[cfg(feature = "cli")]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn narrow(values: &[f32], bits: &mut [u16]) {
    for (group, target) in values.as_chunks::<8>().0.iter().zip(bits.as_chunks_mut::<8>().0) {
        *target = bytemuck::cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(bytemuck::cast(*group)));
    }
}

/// [`half_simd::scale`](super::half_simd::scale).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scale(half: Half, values: &mut [u16], factor: f32) {
    let factors = _mm256_set1_ps(factor);
    match half {
        // Products below the normal numbers of `f32` need no look: f16 cuts all of them to zero.
        Half::F16 => each_group(half, values, factor, |group: [u16; LANES]| {
            of_magnitudes(group, |magnitudes| {
                let cut = |eight| {
                    let products = magnitudes_cut(_mm256_cvtph_ps(eight), factors);
                    _mm256_cvtps_ph::<_MM_FROUND_TO_ZERO>(_mm256_castsi256_ps(products))
                };
                let (low, high) =
                    (_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256::<1>(magnitudes));
                _mm256_set_m128i(cut(high), cut(low))
            })
        }),
        // One is the upper half of an f32 as it is, its neighbour shifted up.
        Half::Bf16 => each_group(half, values, factor, |group: [u16; LANES]| {
            of_magnitudes(group, |magnitudes| {
                const ODD: i32 = 0b1010_1010;
                let zero = _mm256_setzero_si256();
                let scaled = |values| magnitudes_cut(_mm256_castsi256_ps(values), factors);
                let even = scaled(_mm256_slli_epi32::<16>(magnitudes));
                let odd = scaled(_mm256_blend_epi16::<ODD>(zero, magnitudes));
                let cut = _mm256_blend_epi16::<ODD>(_mm256_srli_epi32::<16>(even), odd);
                // Below the normal numbers of `f32` a zero.
                let is_normal = _mm256_cmpgt_epi16(cut, _mm256_set1_epi16(0x007f));
                _mm256_and_si256(cut, is_normal)
            })
        }),
    }
}

/// What `scaled` makes of magnitudes, with the signs of the halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn of_magnitudes(group: [u16; LANES], scaled: impl Fn(__m256i) -> __m256i) -> [u16; LANES] {
    let group: __m256i = bytemuck::cast(group);
    let magnitudes = _mm256_and_si256(group, _mm256_set1_epi16(i16::MAX));
    let signs = _mm256_xor_si256(group, magnitudes);
    bytemuck::cast(_mm256_or_si256(scaled(magnitudes), signs))
}

/// The bits of products that are not negative, as if rounded towards zero.
///
/// The difference of the exact product and the rounded one is negative where that was rounded up, and keeps its sign where it is
/// too small for an `f32`; where there is none it is a zero without a sign. A rounded product of 0 is not above the exact one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn magnitudes_cut(values: __m256, factors: __m256) -> __m256i {
    let products = _mm256_mul_ps(values, factors);
    let differences = _mm256_castps_si256(_mm256_fmsub_ps(values, factors, products));
    _mm256_add_epi32(_mm256_castps_si256(products), _mm256_srai_epi32::<31>(differences))
}
