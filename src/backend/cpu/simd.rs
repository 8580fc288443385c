//! The same code, compiled for the vectors that this processor has.

/// Runs `work` with all of its inlined code compiled for AVX2 where the processor has it.
///
/// The baseline of x86-64 has vectors of two `f64`; sums of squares ran at a third of the speed of memory with
/// those, and at all of it with four. Results are the same: nothing is fused or reordered.
#[inline]
pub(super) fn vectorised<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2, as was just asked.
        return unsafe { avx2(work) };
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<T>(work: impl FnOnce() -> T) -> T {
    work()
}
