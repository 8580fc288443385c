//! Halves by the instructions that x86-64 has for them, sixteen f16 or thirty-two bf16 at a time: the bits are those of
//! [`Half`](crate::Half), but that a signalling NaN of f16 becomes a quiet one.
//!
//! The branch-free integers of `Half::widen` take ten instructions for what one does here, and a product that is rounded
//! towards zero needs no look at whether it was rounded up to a half.

use crate::half::Half;

/// Writes the values of f16; false where this processor has no instructions for it.
#[inline]
pub(crate) fn widen_f16(bits: &[u16], values: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        unsafe {
            x86::widen(bits, values);
        }
        return true;
    }
    let _ = (bits, values);
    false
}

/// Writes the f16 nearest to values, ties to even; false where this processor has no instructions for it. What the plain
/// loops of benchmarks do: the clip stage cuts.
#[cfg(feature = "cli")]
#[inline]
pub(crate) fn narrow_f16(values: &[f32], bits: &mut [u16]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") && values.len().is_multiple_of(16) {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        unsafe {
            x86::narrow(values, bits);
        }
        return true;
    }
    let _ = (values, bits);
    false
}

/// Multiplies finite halves by a factor that is a normal number, as [`Half::scaled`] does; false where this processor has
/// no instructions for it.
#[inline]
pub(super) fn scale(half: Half, values: &mut [u16], factor: f32) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        unsafe {
            x86::scale(half, values, factor);
        }
        return true;
    }
    let _ = (half, values, factor);
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

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
            Half::F16 => each_group(half, values, factor, |group: [u16; 16]| {
                let values = _mm512_cvtph_ps(bytemuck::cast::<_, __m256i>(group));
                let products = _mm512_mul_round_ps::<TOWARDS_ZERO>(values, factors);
                bytemuck::cast(_mm512_cvtps_ph::<TOWARDS_ZERO>(products))
            }),
            // One is the upper half of an f32 as it is, its neighbour shifted up.
            Half::Bf16 => each_group(half, values, factor, |group: [u16; 32]| {
                let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                let scaled = |values: __m512i| {
                    let products = _mm512_mul_round_ps::<TOWARDS_ZERO>(_mm512_castsi512_ps(values), factors);
                    let products = _mm512_castps_si512(products);
                    let magnitude = _mm512_and_si512(products, _mm512_set1_epi32(i32::MAX));
                    let least = _mm512_set1_epi32(f32::MIN_POSITIVE.to_bits() as i32);
                    let vanishes = _mm512_cmplt_epi32_mask(magnitude, least);
                    let kept =
                        _mm512_mask_and_epi32(products, vanishes, products, _mm512_set1_epi32(i32::MIN));
                    _mm512_and_si512(kept, upper)
                };
                let pairs = bytemuck::cast::<_, __m512i>(group);
                let even = _mm512_srli_epi32(scaled(_mm512_slli_epi32(pairs, 16)), 16);
                let odd = scaled(_mm512_and_si512(pairs, upper));
                bytemuck::cast(_mm512_or_si512(even, odd))
            }),
        }
    }

    /// What is left behind the last whole group is the end of one more, taken before the others are written.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn each_group<const N: usize>(
        half: Half,
        values: &mut [u16],
        factor: f32,
        scaled: impl Fn([u16; N]) -> [u16; N],
    ) {
        let end = values.last_chunk::<N>().copied();
        let (groups, rest) = values.as_chunks_mut::<N>();
        for group in groups {
            *group = scaled(*group);
        }
        if rest.is_empty() {
            return;
        }
        match (end, values.last_chunk_mut::<N>()) {
            (Some(end), Some(last)) => *last = scaled(end),
            _ => values.iter_mut().for_each(|bits| *bits = half.scaled(*bits, f64::from(factor))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a processor without the instructions there is nothing to compare.
    #[test]
    fn instructions_do_what_the_integers_do() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut values = vec![0.0f32; all.len()];
        if !widen_f16(&all, &mut values) {
            return;
        }
        for (&bits, &value) in all.iter().zip(&values) {
            let want = Half::F16.widen(bits);
            assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{bits:#06x}");
        }
    }

    #[test]
    fn products_of_groups_are_those_of_single_halves() {
        for half in [Half::F16, Half::Bf16] {
            let finite: Vec<u16> = (0..=u16::MAX).filter(|bits| half.widen(*bits).is_finite()).collect();
            // 25 · 0.04 would be rounded up to 1.
            for factor in [0.749_999_94, 0.5, 0.33, 0.04, 1e-5, 3e-8, 1e-30, 1e-37, f32::MIN_POSITIVE] {
                for length in [1, 15, 16, 17, 31, 32, 33, 61, 256] {
                    // Each half at its own place, and together with others.
                    for group in finite.chunks(length) {
                        let mut got = group.to_vec();
                        if !scale(half, &mut got, factor) {
                            return;
                        }
                        let want: Vec<u16> =
                            group.iter().map(|bits| half.scaled(*bits, f64::from(factor))).collect();
                        assert_eq!(got, want, "{half:?} {factor:e}: {:#06x} and on", group[0]);
                    }
                }
            }
        }
    }
}
