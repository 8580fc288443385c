//! The same code, compiled for the vectors that this processor has.

/// A loop that is worth compiling for each kind of vectors. `run` and all that it calls are `#[inline(always)]`: what
/// is not inlined keeps the vectors of the baseline.
pub(crate) trait Kernel {
    type Output;

    fn run(self) -> Self::Output;
}

/// How far ahead of what is read memory is asked for, in bytes. Nearer is too late, and farther falls out of a core's
/// cache again: of 4, 8, 12, 16 and 24 KiB, rows of a hundred elements and of a hundred thousand took least with this.
pub(crate) const PREFETCH_DISTANCE: usize = 12 << 10;

/// Asks for the memory that lies [`PREFETCH_DISTANCE`] behind what is read now: so many elements from here on.
///
/// Processors follow by themselves what is read in order, but not across pages and only some lines ahead.
#[inline(always)]
pub(crate) fn prefetch_ahead<T>(now: *const T, count: usize) {
    prefetch(now.cast::<u8>().wrapping_add(PREFETCH_DISTANCE), count * size_of::<T>());
}

/// Of `count` elements that are read in order, how many lie at least [`PREFETCH_DISTANCE`] before the end.
pub(crate) const fn prefetches_within<T>(count: usize) -> usize {
    count.saturating_sub(PREFETCH_DISTANCE / size_of::<T>())
}

/// Asks for memory that is to be read soon.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use super::LINE;
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let mut at = 0;
        while at < bytes {
            #[allow(unsafe_code)]
            // SAFETY: a prefetch of whatever address neither faults nor changes what a program sees.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(at).cast());
            }
            at += LINE;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, bytes);
}

/// Runs a kernel with the widest vectors that the processor has.
///
/// The baseline of x86-64 has two `f64` to a vector: sums of squares took three times as long as reading the
/// memory with those, and hardly longer with eight.
#[inline]
pub(crate) fn vectorised<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX-512F, as was just asked, and with it AVX2 and FMA.
            return unsafe { avx512(kernel) };
        }
        if has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

/// The name of the vectors that loops here take, where they ask for any: what is measured depends on them.
#[cfg(feature = "cli")]
pub(crate) fn vectors() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return Some("AVX-512");
        }
        if has_avx2() {
            return Some("AVX2");
        }
    }
    None
}

/// Whether the processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Whether it has those, and F16C.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn has_avx2_for_halves() -> bool {
    has_avx2() && std::arch::is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
