//! Halves by the instructions of AVX2 and F16C.
//!
//! There is no product that is rounded towards zero: one is rounded to nearest, and what that was off by, which a fused
//! multiplication knows exactly enough for its sign, takes it one number down where it was rounded up.

use std::arch::x86_64::*;

use super::half_simd::each_group;
use crate::half::Half;

/// Halves of a vector.
const LANES: usize = 16;

/// Halves that are scaled before any of them is written.
const GROUP: usize = 32;

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
        Half::F16 => each_group(half, values, factor, |group: &mut [u16; GROUP]| {
            let parts: [__m128i; GROUP / 8] = bytemuck::cast(*group);
            let (mut cut, mut open) = (parts, _mm256_setzero_si256());
            for i in 0..parts.len() {
                let products = _mm256_mul_ps(_mm256_cvtph_ps(parts[i]), factors);
                open = _mm256_or_si256(open, last_bits(products));
                cut[i] = _mm256_cvtps_ph::<_MM_FROUND_TO_ZERO>(products);
            }
            // At least 13 zeros at the end, as every f16 has, the subnormal ones too. The sign is no part of it, so zeros do not count.
            if _mm256_testz_si256(open, _mm256_set1_epi32(0x7fff_e000)) == 0 {
                return scale_f16(group, factors);
            }
            // One by one: taken together, they are first put together.
            for (target, cut) in group.as_chunks_mut().0.iter_mut().zip(cut) {
                *target = bytemuck::cast::<_, [u16; 8]>(cut);
            }
        }),
        // One is the upper half of an f32 as it is, its neighbour shifted up.
        Half::Bf16 => each_group(half, values, factor, |group: &mut [u16; GROUP]| {
            let zero = _mm256_setzero_si256();
            let mut vectors: [__m256i; GROUP / LANES] = bytemuck::cast(*group);
            let mut open = zero;
            for vector in &mut vectors {
                let product = |value| _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(value), factors));
                let even = product(_mm256_slli_epi32::<16>(*vector));
                let odd = product(_mm256_blend_epi16::<ODD>(zero, *vector));
                let cut_off = _mm256_blend_epi16::<ODD>(even, _mm256_slli_epi32::<16>(odd));
                let cut = _mm256_blend_epi16::<ODD>(_mm256_srli_epi32::<16>(even), odd);
                let stays = is_normal(_mm256_and_si256(cut, _mm256_set1_epi16(i16::MAX)));
                // Rounded up to a bf16, a product has zeros in all that is cut off; one below the normal numbers becomes a zero anyway.
                open = _mm256_or_si256(open, _mm256_and_si256(stays, _mm256_cmpeq_epi16(cut_off, zero)));
                *vector = _mm256_and_si256(cut, _mm256_or_si256(stays, _mm256_set1_epi16(i16::MIN)));
            }
            if _mm256_testz_si256(open, open) == 0 {
                return scale_bf16(group, factors);
            }
            *group = bytemuck::cast(vectors);
        }),
    }
}

/// For blends: the upper half of each pair.
const ODD: i32 = 0b1010_1010;

/// The lowest bit of each product that is 1: of +0 none, of -0 the sign.
///
/// A product that was rounded up to an f16, or across one, which is the same because all f16 are numbers of `f32`, ends in 13 zeros as they do. Of
/// others one in 2^13 does.
#[inline]
#[target_feature(enable = "avx2")]
fn last_bits(products: __m256) -> __m256i {
    let products = _mm256_castps_si256(products);
    _mm256_and_si256(products, _mm256_sub_epi32(_mm256_setzero_si256(), products))
}

/// All bits for magnitudes of bf16 from the least normal number on, Inf and NaN among them: products below become zeros.
#[inline]
#[target_feature(enable = "avx2")]
fn is_normal(magnitudes: __m256i) -> __m256i {
    _mm256_cmpgt_epi16(magnitudes, _mm256_set1_epi16(0x007f))
}

/// Out of line, so that the way past it keeps its products in registers.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale_f16(group: &mut [u16; GROUP], factors: __m256) {
    for vector in group.as_chunks_mut().0 {
        of_magnitudes(vector, |magnitudes| {
            let cut = |eight| {
                let products = magnitudes_cut(_mm256_cvtph_ps(eight), factors);
                _mm256_cvtps_ph::<_MM_FROUND_TO_ZERO>(_mm256_castsi256_ps(products))
            };
            let (low, high) = (_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256::<1>(magnitudes));
            _mm256_set_m128i(cut(high), cut(low))
        });
    }
}

/// Out of line for the same reason.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale_bf16(group: &mut [u16; GROUP], factors: __m256) {
    for vector in group.as_chunks_mut().0 {
        of_magnitudes(vector, |magnitudes| {
            let scaled = |values| magnitudes_cut(_mm256_castsi256_ps(values), factors);
            let even = scaled(_mm256_slli_epi32::<16>(magnitudes));
            let odd = scaled(_mm256_blend_epi16::<ODD>(_mm256_setzero_si256(), magnitudes));
            let cut = _mm256_blend_epi16::<ODD>(_mm256_srli_epi32::<16>(even), odd);
            _mm256_and_si256(cut, is_normal(cut))
        });
    }
}

/// Writes what `scaled` makes of magnitudes, with the signs that the halves had.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn of_magnitudes(vector: &mut [u16; LANES], scaled: impl Fn(__m256i) -> __m256i) {
    let halves: __m256i = bytemuck::cast(*vector);
    let magnitudes = _mm256_and_si256(halves, _mm256_set1_epi16(i16::MAX));
    let signs = _mm256_xor_si256(halves, magnitudes);
    *vector = bytemuck::cast(_mm256_or_si256(scaled(magnitudes), signs));
}

/// The bits of products that are not negative, as if rounded towards zero.
///
/// The difference of the exact product and the rounded one is negative where that was rounded up, and keeps its sign where it is
/// too small for an `f32`; where there is none it is a zero without a sign. A rounded product of 0 is not above the exact one. Of an infinite
/// one the difference is a NaN of either sign, and nothing is cut.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn magnitudes_cut(values: __m256, factors: __m256) -> __m256i {
    let products = _mm256_mul_ps(values, factors);
    let differences = _mm256_castps_si256(_mm256_fmsub_ps(values, factors, products));
    let products = _mm256_castps_si256(products);
    let is_finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(f32::INFINITY.to_bits() as i32), products);
    _mm256_add_epi32(products, _mm256_and_si256(is_finite, _mm256_srai_epi32::<31>(differences)))
}
