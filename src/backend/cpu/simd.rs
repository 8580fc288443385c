//! The same code, compiled for the vectors that this processor has.

/// A loop that is worth compiling for each kind of vectors. `run` and all that it calls are `#[inline(always)]`: what
/// is not inlined keeps the vectors of the baseline.
pub(crate) trait Kernel {
    type Output;

    fn run(self) -> Self::Output;
}

/// Asks for memory that is to be read soon.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let mut at = 0;
        while at < bytes {
            #[allow(unsafe_code)]
            // SAFETY: a prefetch of whatever address neither faults nor changes what a program sees. Without it rows
            // of a hundred elements took a fifth longer, and half as long again where all were clipped.
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
        use std::arch::is_x86_feature_detected;
        if is_x86_feature_detected!("avx512f") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX-512F, as was just asked, and with it AVX2 and FMA.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
