//! Halves by the instructions of AVX-512, sixteen f16 or thirty-two bf16 at a time.

use std::arch::x86_64::*;

use super::half_simd::each_group;
use crate::half::Half;

type Group = [u16; 16];

#[target_feature(enable = "avx512f")]
pub(super) fn widen(bits: &[u16], values: &mut [f32]) {
    let (groups, rest) = bits.as_chunks::<16>();
    let (targets, rest_values) = values.as_chunks_mut::<16>();
    for (group, target) in groups.iter().zip(targets) {
        *target = bytemuck::cast(_mm512_cvtph_ps(bytemuck::cast::<Group, __m256i>(*group)));
    }
    rest.iter().zip(rest_values).for_each(|(&bits, value)| *value = Half::F16.widen(bits));
}

/// Of whole groups of sixteen.
#[cfg(feature = "cli")]
#[target_feature(enable = "avx512f")]
pub(super) fn narrow(values: &[f32], bits: &mut [u16]) {
    for (group, target) in values.as_chunks::<16>().0.iter().zip(bits.as_chunks_mut::<16>().0) {
        let values = bytemuck::cast::<[f32; 16], __m512>(*group);
        let nearest = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(values);
        *target = bytemuck::cast::<__m256i, Group>(nearest);
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn scale(half: Half, values: &mut [u16], factor: f32) {
    const TOWARDS_ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    let factors = _mm512_set1_ps(factor);
    match half {
        // Products below the normal numbers of `f32` need no look: f16 cuts all of them to zero.
        Half::F16 => each_group(half, values, factor, |group: &mut [u16; 16]| {
            let values = _mm512_cvtph_ps(bytemuck::cast::<_, __m256i>(*group));
            let products = _mm512_mul_round_ps::<TOWARDS_ZERO>(values, factors);
            *group = bytemuck::cast(_mm512_cvtps_ph::<TOWARDS_ZERO>(products));
        }),
        // One is the upper half of an f32 as it is, its neighbour shifted up.
        Half::Bf16 => each_group(half, values, factor, |group: &mut [u16; 32]| {
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let scaled = |values: __m512i| {
                let products = _mm512_mul_round_ps::<TOWARDS_ZERO>(_mm512_castsi512_ps(values), factors);
                let products = _mm512_castps_si512(products);
                let magnitude = _mm512_and_si512(products, _mm512_set1_epi32(i32::MAX));
                let least = _mm512_set1_epi32(f32::MIN_POSITIVE.to_bits() as i32);
                let vanishes = _mm512_cmplt_epi32_mask(magnitude, least);
                let kept = _mm512_mask_and_epi32(products, vanishes, products, _mm512_set1_epi32(i32::MIN));
                _mm512_and_si512(kept, upper)
            };
            let pairs = bytemuck::cast::<_, __m512i>(*group);
            let even = _mm512_srli_epi32(scaled(_mm512_slli_epi32(pairs, 16)), 16);
            let odd = scaled(_mm512_and_si512(pairs, upper));
            *group = bytemuck::cast(_mm512_or_si512(even, odd));
        }),
    }
}
