//! Halves by the instructions that x86-64 has for them: the bits are those of [`Half`](crate::Half), but that a signalling
//! NaN of f16 becomes a quiet one.
//!
//! The branch-free integers of `Half::widen` take ten instructions for what one does here, and where a
//! product may have been rounded up to a half, no more than 32 are multiplied again, and not a whole block.

#[cfg(target_arch = "x86_64")]
use super::runs::{RUNS, prefetch_in_run, run_of};
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

/// Multiplies halves by a factor that is a normal number, as [`Half::scaled`] does but for the bits of NaN; false where this
/// processor has no instructions for it.
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
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn each_group<const N: usize>(
    half: Half,
    values: &mut [u16],
    factor: f32,
    scale: impl Fn(&mut [u16; N]),
) {
    let end = values.last_chunk::<N>().copied();
    let (groups, rest) = values.as_chunks_mut::<N>();
    let run = run_of(groups.len() * N) / N;
    for at in 0..run {
        for i in 0..RUNS {
            let group = &mut groups[i * run + at];
            prefetch_in_run(group.as_ptr(), N);
            scale(group);
        }
    }
    for group in &mut groups[RUNS * run..] {
        scale(group);
    }
    if rest.is_empty() {
        return;
    }
    match (end, values.last_chunk_mut::<N>()) {
        (Some(end), Some(last)) => {
            *last = end;
            scale(last);
        }
        _ => values.iter_mut().for_each(|bits| *bits = half.scaled(*bits, f64::from(factor))),
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    type Widen = unsafe fn(&[u16], &mut [f32]);
    type Scale = unsafe fn(Half, &mut [u16], f32);

    /// The kinds of vectors that this processor has: those that it does not take run nowhere else. Without any there is nothing
    /// to compare.
    fn kinds<F>(of_512: F, of_256: F) -> Vec<F> {
        let has_512 = std::arch::is_x86_feature_detected!("avx512f");
        let kinds = [has_512.then_some(of_512), has_avx2_for_halves().then_some(of_256)];
        kinds.into_iter().flatten().collect()
    }

    #[test]
    fn instructions_do_what_the_integers_do() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let kinds: Vec<Widen> = kinds(half_512::widen, half_256::widen);
        for widen in kinds {
            for length in [1, 7, 8, 9, 15, 16, 17, 4096] {
                for bits in all.chunks(length) {
                    let mut values = vec![0.0f32; bits.len()];
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has these vectors, as `kinds` asked.
                    unsafe {
                        widen(bits, &mut values);
                    }
                    for (&bits, &value) in bits.iter().zip(&values) {
                        let want = Half::F16.widen(bits);
                        let same = value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan();
                        assert!(same, "{bits:#06x} of {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_groups_are_those_of_single_halves() {
        let kinds: Vec<Scale> = kinds(half_512::scale, half_256::scale);
        for half in [Half::F16, Half::Bf16] {
            let numbers: Vec<u16> = (0..=u16::MAX).filter(|bits| !half.widen(*bits).is_nan()).collect();
            // 25 · 0.04 would be rounded up to 1.
            for factor in [0.749_999_94, 0.5, 0.33, 0.04, 1e-5, 3e-8, 1e-30, 1e-37, f32::MIN_POSITIVE] {
                let want: Vec<u16> =
                    numbers.iter().map(|bits| half.scaled(*bits, f64::from(factor))).collect();
                for scale in &kinds {
                    // The last is long enough to go in runs.
                    for length in [1, 15, 16, 17, 31, 32, 33, 61, 256, 20_011] {
                        // Each half at its own place, and together with others.
                        for (group, want) in numbers.chunks(length).zip(want.chunks(length)) {
                            let mut got = group.to_vec();
                            #[allow(unsafe_code)]
                            // SAFETY: the processor has these vectors, as `kinds` asked.
                            unsafe {
                                scale(half, &mut got, factor);
                            }
                            assert_eq!(got, want, "{half:?} {factor:e}: {:#06x} and on", group[0]);
                        }
                    }
                }
            }
        }
    }

    /// Of halves in a row nearly all groups hold a product that is looked at twice; here only one of 67 does.
    #[test]
    fn products_that_are_rounded_up_are_seen_among_others() {
        let kinds: Vec<Scale> = kinds(half_512::scale, half_256::scale);
        for (half, one) in [(Half::F16, 0x3c00), (Half::Bf16, 0x3f80)] {
            let (other, value) = (half.truncate(25.0), half.truncate(1.5));
            let mut rounded_up = 0;
            // The halves from 1 on, odd ones and even ones, as products of 1.5.
            for product in one..one + 0x40 {
                let factor = half.widen(product) / 1.5;
                let scaled = |bits| half.scaled(bits, f64::from(factor));
                rounded_up += u32::from(scaled(value) < product && half.widen(product) == 1.5 * factor);
                for (place, sign) in (0..67).flat_map(|place| [(place, 0), (place, 0x8000)]) {
                    let mut halves = [other; 67];
                    halves[place] = sign | value;
                    for scale in &kinds {
                        let mut got = halves;
                        #[allow(unsafe_code)]
                        // SAFETY: the processor has these vectors, as `kinds` asked.
                        unsafe {
                            scale(half, &mut got, factor);
                        }
                        assert_eq!(got, halves.map(scaled), "{half:?}, {product:#06x} at {place}");
                    }
                }
            }
            assert!(rounded_up > 16, "{half:?}: {rounded_up}");
        }
    }
}
