//! f16 by the instructions that x86-64 has for it, sixteen at a time: the bits are those of [`Half`](crate::Half), but
//! that a signalling NaN becomes a quiet one.
//!
//! The branch-free integers of `Half::widen` take ten instructions for what one does here, and with them sums
//! of f16 waited for the processor and not for the memory.

/// Writes the values of f16; false where this processor has no instructions for it.
#[inline]
pub(crate) fn widen(bits: &[u16], values: &mut [f32]) -> bool {
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
pub(crate) fn narrow(values: &[f32], bits: &mut [u16]) -> bool {
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

/// Writes what [`Half::scaled_fast`](crate::Half) makes of f16, and says whether all of it is certain; `None` where
/// this processor has no instructions for it.
#[inline]
pub(super) fn scale(bits: &[u16], factor: f32, scaled: &mut [u16]) -> Option<bool> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return Some(unsafe { x86::scale(bits, factor, scaled) });
    }
    let _ = (bits, factor, scaled);
    None
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
    pub(super) fn scale(bits: &[u16], factor: f32, scaled: &mut [u16]) -> bool {
        let (groups, rest) = bits.as_chunks::<16>();
        let (targets, rest_scaled) = scaled.as_chunks_mut::<16>();
        let factors = _mm512_set1_ps(factor);
        // What is below the least f16 is cut to zero, certainly.
        let least = _mm512_set1_epi32(0x3380_0000);
        let (magnitude, below) = (_mm512_set1_epi32(0x7fff_ffff), _mm512_set1_epi32(0x1fff));
        let mut open = 0;
        for (group, target) in groups.iter().zip(targets) {
            let values = _mm512_cvtph_ps(bytemuck::cast::<Group, __m256i>(*group));
            let products = _mm512_mul_ps(values, factors);
            let bits = _mm512_castps_si512(products);
            let seen = _mm512_cmpge_epi32_mask(_mm512_and_si512(bits, magnitude), least);
            open |= _mm512_mask_testn_epi32_mask(seen, bits, below);
            let cut = _mm512_cvtps_ph::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(products);
            *target = bytemuck::cast::<__m256i, Group>(cut);
        }
        let mut certain = open == 0;
        for (&bits, target) in rest.iter().zip(rest_scaled) {
            let (scaled, is_certain) = Half::F16.scaled_fast(bits, factor);
            *target = scaled;
            certain &= is_certain;
        }
        certain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::Half;

    /// On a processor without the instructions there is nothing to compare.
    #[test]
    fn instructions_do_what_the_integers_do() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut values = vec![0.0f32; all.len()];
        if !widen(&all, &mut values) {
            return;
        }
        for (&bits, &value) in all.iter().zip(&values) {
            let want = Half::F16.widen(bits);
            assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{bits:#06x}");
        }
        let finite: Vec<u16> = all.into_iter().filter(|bits| bits & 0x7fff < 0x7c00).collect();
        for factor in [0.749_999_94, 0.5, 0.33, 1e-3, 1e-5, 3e-8, 1e-30, f32::MIN_POSITIVE] {
            for group in finite.chunks(61) {
                let mut scaled = vec![0; group.len()];
                let certain = scale(group, factor, &mut scaled).unwrap_or(false);
                let exact = |bits: u16| Half::F16.scaled(bits, f64::from(factor));
                let right = group.iter().zip(&scaled).all(|(&bits, &scaled)| scaled == exact(bits));
                assert!(right || !certain, "{factor:e}: {:#06x} and on", group[0]);
                // Not so careful that nothing is ever certain.
                let on_grid = |bits: &u16| Half::F16.scaled_fast(*bits, factor).1;
                assert!(certain || !group.iter().all(on_grid), "{factor:e}: {:#06x} and on", group[0]);
            }
        }
    }
}
