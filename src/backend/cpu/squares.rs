//! Sums of squares of a block in `f64`, in the vectors that this processor has.
//!
//! Written with intrinsics: of the loop in [`portable`] compilers make one element at a time, a quarter of the speed.

#[cfg(target_arch = "x86_64")]
use super::squares_512;
use crate::half::Half;

/// Independent sums, for SIMD and to hide the latency of addition.
pub(super) const LANES: usize = 32;

type Group = [f32; LANES];

/// Rows that are summed together.
pub(super) const ROWS: usize = 8;

/// The sum of squares of values, or of their differences from the centre's, each rounded to `f64`.
///
/// Whether a square is rounded before it is added makes no difference: the square of an `f32` is exact, and the
/// bound of the error counts that of a difference.
#[inline]
pub(super) fn sum_of_squares(values: &[f32], center: Option<&[f32]>) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected;
        if is_x86_feature_detected!("avx512f") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { squares_512::sum(values, center) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { avx2::sum(values, center) };
        }
    }
    portable(values, center)
}

/// The same of halves, widened in registers; `None` where this processor has no instructions for it.
#[inline]
pub(super) fn sum_of_half_squares(half: Half, bits: &[u16]) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return Some(unsafe { squares_512::half_sum(half, bits) });
    }
    let _ = (half, bits);
    None
}

/// The sums of squares of short rows: those of [`sum_of_squares`] but for the order of their last additions, which all
/// rows may take together.
#[inline]
pub(super) fn sums_of_squares(rows: &[&[f32]; ROWS], center: Option<&[f32]>) -> [f64; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return unsafe { squares_512::sums(rows, center) };
    }
    rows.map(|row| sum_of_squares(row, center.map(|center| &center[..row.len()])))
}

/// The same of halves; `None` where this processor has no instructions for it.
#[inline]
pub(super) fn sums_of_half_squares(half: Half, rows: &[&[u16]; ROWS]) -> Option<[f64; ROWS]> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return Some(unsafe { squares_512::half_sums(half, rows) });
    }
    let _ = (half, rows);
    None
}

/// Roundings on the way of an element of a block of `length` to the sum, its own square's apart.
pub(super) const fn roundings(length: usize) -> usize {
    // Behind the last whole group a lane of AVX-512 may take three more.
    length.div_ceil(LANES) + 3 + LANES.ilog2() as usize
}

/// Bits that are left of each element of a group.
type Mask = [u32; LANES];

/// `MASKS[n..n + LANES]` leaves the last `n` elements.
pub(super) static MASKS: [u32; 2 * LANES] = {
    let mut masks = [0; 2 * LANES];
    let mut i = LANES;
    while i < 2 * LANES {
        masks[i] = u32::MAX;
        i += 1;
    }
    masks
};

/// All groups of the values. What is left behind the last whole one is masked out of the group that ends with it: a
/// copy into zeros would have to wait until it is written before it can be read.
#[inline(always)]
fn each_group(
    values: &[f32],
    center: Option<&[f32]>,
    mut work: impl FnMut(&Group, Option<&Group>, Option<&Mask>),
) {
    let (groups, rest) = values.as_chunks::<LANES>();
    match center {
        None => {
            for group in groups {
                work(group, None, None);
            }
        }
        Some(center) => {
            for (group, center) in groups.iter().zip(center.as_chunks::<LANES>().0) {
                work(group, Some(center), None);
            }
        }
    }
    if rest.is_empty() {
        return;
    }
    let mask = MASKS[rest.len()..].first_chunk::<LANES>();
    match (values.last_chunk::<LANES>(), center) {
        (Some(last), None) => work(last, None, mask),
        (Some(last), Some(center)) => work(last, center.last_chunk::<LANES>(), mask),
        (None, None) => work(&padded(rest), None, None),
        (None, Some(center)) => work(&padded(rest), Some(&padded(center)), None),
    }
}

/// Values fewer than a group.
fn padded(values: &[f32]) -> Group {
    let mut group = [0.0; LANES];
    group[..values.len()].copy_from_slice(values);
    group
}

fn portable(values: &[f32], center: Option<&[f32]>) -> f64 {
    let mut lanes = [0.0f64; LANES];
    each_group(values, center, |group, center, mask| {
        for i in 0..LANES {
            let mask = mask.map_or(u32::MAX, |mask| mask[i]);
            let masked = |group: &Group| f64::from(f32::from_bits(group[i].to_bits() & mask));
            let value = masked(group) - center.map_or(0.0, masked);
            lanes[i] += value * value;
        }
    });
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Group, Mask, each_group};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn sum(values: &[f32], center: Option<&[f32]>) -> f64 {
        let mut lanes = [_mm256_setzero_pd(); 8];
        each_group(values, center, |group, center, mask| {
            let parts = parts_of_4(group, mask);
            let centers = center.map(|center| parts_of_4(center, mask));
            for i in 0..8 {
                let mut value = _mm256_cvtps_pd(parts[i]);
                if let Some(centers) = centers {
                    value = _mm256_sub_pd(value, _mm256_cvtps_pd(centers[i]));
                }
                lanes[i] = _mm256_fmadd_pd(value, value, lanes[i]);
            }
        });
        for width in [4, 2, 1] {
            for i in 0..width {
                lanes[i] = _mm256_add_pd(lanes[i], lanes[i + width]);
            }
        }
        let [a, b, c, d]: [f64; 4] = bytemuck::cast(lanes[0]);
        (a + c) + (b + d)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn parts_of_4(group: &Group, mask: Option<&Mask>) -> [__m128; 8] {
        let parts: [__m128; 8] = bytemuck::cast(*group);
        match mask {
            None => parts,
            Some(mask) => {
                let masks: [__m128; 8] = bytemuck::cast(*mask);
                std::array::from_fn(|i| _mm_and_ps(parts[i], masks[i]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_widened_in_registers_have_the_sum_of_widened_halves() {
        for half in [Half::F16, Half::Bf16] {
            for length in [0, 1, 31, 32, 33, 100, 4096] {
                let bits: Vec<u16> =
                    (0..length).map(|i| half.truncate(((i * 7919) % 1000) as f32 * 0.37 - 150.0)).collect();
                let values: Vec<f32> = bits.iter().map(|&bits| half.widen(bits)).collect();
                let want = portable(&values, None);
                let error = (sum_of_half_squares(half, &bits).unwrap_or(want) - want).abs();
                assert!(
                    error <= want * 2.0 * (roundings(length) + 4) as f64 * f64::EPSILON,
                    "{half:?}, {length}"
                );
            }
        }
    }

    /// Each within its roundings of the others: whichever this processor does not take runs nowhere else.
    #[test]
    fn every_kind_of_vectors_gives_the_same_sum_but_for_rounding() {
        for length in [0, 1, 31, 32, 33, 100, 4096] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7919) % 1000) as f32 * 0.37 - 150.0).collect();
            let center: Vec<f32> = values.iter().map(|value| value * 0.5 + 1.0).collect();
            for center in [None, Some(&center[..])] {
                let exact: f64 = values
                    .iter()
                    .enumerate()
                    .map(|(i, &value)| (f64::from(value) - f64::from(center.map_or(0.0, |c| c[i]))).powi(2))
                    .sum();
                let mut sums = vec![portable(&values, center), sum_of_squares(&values, center)];
                #[cfg(target_arch = "x86_64")]
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has AVX2 and FMA, as was just asked.
                    sums.push(unsafe { avx2::sum(&values, center) });
                }
                for sum in sums {
                    let error = (sum - exact).abs();
                    let most = exact * (length + roundings(length) + 4) as f64 * f64::EPSILON;
                    assert!(error <= most, "{length}: {sum} for {exact}");
                }
            }
        }
    }
}
