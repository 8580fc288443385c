//! Halves by the instructions that x86-64 has for them: the bits are those of [`Half`](crate::Half), but that a signalling
//! NaN of f16 becomes a quiet one.
//!
//! The branch-free integers of `Half::widen` take ten instructions for what one does here, and no product needs a look at
//! whether it was rounded up to a half.

#[cfg(target_arch = "x86_64")]
use super::simd::has_avx2_for_halves;
#[cfg(target_arch = "x86_64")]
use super::{half_256, half_512};
use crate::half::Half;

/// Writes the values of f16; false where this processor has no instructions for it.
#[inline]
pub(crate) fn widen_f16(bits: &[u16], values: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        unsafe {
            half_512::widen(bits, values);
        }
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2_for_halves() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
        unsafe {
            half_256::widen(bits, values);
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
            half_512::narrow(values, bits);
        }
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2_for_halves() && values.len().is_multiple_of(8) {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
        unsafe {
            half_256::narrow(values, bits);
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
            half_512::scale(half, values, factor);
        }
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2_for_halves() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
        unsafe {
            half_256::scale(half, values, factor);
        }
        return true;
    }
    let _ = (half, values, factor);
    false
}

/// What is left behind the last whole group is the end of one more, taken before the others are written.
#[inline(always)]
pub(super) fn each_group<const N: usize>(
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
