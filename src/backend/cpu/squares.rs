//! Sums of squares of a block in `f64`, in the vectors that this processor has.
//!
//! Written with intrinsics: of the loop in [`portable`] compilers make one element at a time, a quarter of the speed.

use super::group::{ROWS, RowGroup, RowSet, members};
use super::simd::prefetch_ahead;
#[cfg(target_arch = "x86_64")]
use super::simd::{has_avx2, has_avx2_for_halves};
#[cfg(target_arch = "x86_64")]
use super::{squares_256, squares_512};
use crate::half::Half;

/// Independent sums, for SIMD and to hide the latency of addition.
pub(super) const LANES: usize = 32;

/// The sum of squares of values, or of their differences from the centre's, each rounded to `f64`.
///
/// Whether a square is rounded before it is added makes no difference: the square of an `f32` is exact, and the
/// bound of the error counts that of a difference. The first `prefetches` values ask for memory ahead.
#[inline]
pub(super) fn sum_of_squares(values: &[f32], center: Option<&[f32]>, prefetches: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected;
        if is_x86_feature_detected!("avx512f") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { squares_512::sum(values, center, prefetches) };
        }
        if has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { squares_256::sum(values, center, prefetches) };
        }
    }
    portable(values, center, prefetches)
}

/// The same of halves, widened in registers; `None` where this processor has no instructions for it.
#[inline]
pub(super) fn sum_of_half_squares(half: Half, bits: &[u16], prefetches: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX-512F, as was just asked.
            return Some(unsafe { squares_512::half_sum(half, bits, prefetches) });
        }
        if has_avx2_for_halves() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
            return Some(unsafe { squares_256::half_sum(half, bits, prefetches) });
        }
    }
    let _ = (half, bits, prefetches);
    None
}

/// The sums of squares of some short rows, 0 of the others: those of [`sum_of_squares`] but for the order of their last
/// additions, which all rows may take together.
#[inline]
pub(super) fn sums_of_squares(rows: &[&[f32]; ROWS], which: RowSet, center: Option<&[f32]>) -> [f64; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return unsafe { squares_512::sums(rows, which, center) };
    }
    let mut sums = [0.0; ROWS];
    for i in members(which) {
        sums[i] = sum_of_squares(rows[i], center.map(|center| &center[..rows[i].len()]), 0);
    }
    sums
}

/// The same of halves; `None` where this processor has no instructions for it.
#[inline]
pub(super) fn sums_of_half_squares(half: Half, rows: &[&[u16]; ROWS], which: RowSet) -> Option<[f64; ROWS]> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX-512F, as was just asked.
            return Some(unsafe { squares_512::half_sums(half, rows, which) });
        }
        if has_avx2_for_halves() {
            let mut sums = [0.0; ROWS];
            for i in members(which) {
                #[allow(unsafe_code)]
                // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
                let sum = unsafe { squares_256::half_sum(half, rows[i], 0) };
                sums[i] = sum;
            }
            return Some(sums);
        }
    }
    let _ = (half, rows, which);
    None
}

/// The sums of squares of a group, while memory ahead of it is asked for where it says so; `one_by_one` sums its rows where this
/// processor does not sum them side by side. A closure and not an `Option` of the sums, which would be copied.
#[inline]
pub(super) fn sums_of_group(
    group: RowGroup<'_, f32>,
    one_by_one: impl FnOnce(&[&[f32]; ROWS]) -> [f64; ROWS],
) -> [f64; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if group.params >= squares_512::WIDTH && std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return unsafe { squares_512::sums_of_group(group) };
    }
    #[cfg(target_arch = "x86_64")]
    if squares_256::goes_side_by_side(group.params) && has_avx2() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2 and FMA, as was just asked.
        return unsafe { squares_256::sums_of_group(group) };
    }
    group.one_by_one(one_by_one)
}

/// The same of halves.
#[inline]
pub(super) fn sums_of_half_group(
    half: Half,
    group: RowGroup<'_, u16>,
    one_by_one: impl FnOnce(&[&[u16]; ROWS]) -> [f64; ROWS],
) -> [f64; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if group.params >= squares_512::WIDTH && std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return unsafe { squares_512::sums_of_half_group(half, group) };
    }
    #[cfg(target_arch = "x86_64")]
    if squares_256::goes_side_by_side(group.params) && has_avx2_for_halves() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
        return unsafe { squares_256::sums_of_half_group(half, group) };
    }
    let _ = half;
    group.one_by_one(one_by_one)
}

/// The most elements of a row of a group: no more is added one after the other than in a block.
pub(super) const SHORT: usize = 1024;

/// On its way an element of a short row meets an addition for each vector of the row, one for the rest, and three that
/// join a vector's numbers.
const _: () = assert!(SHORT / 8 + 1 + 3 <= roundings(super::sum::BLOCK));

/// Roundings on the way of an element of a block of `length` to the sum, its own square's apart.
pub(super) const fn roundings(length: usize) -> usize {
    // Behind the last whole group a lane of AVX-512 may take three more.
    length.div_ceil(LANES) + 3 + LANES.ilog2() as usize
}

/// `MASKS[n..n + LANES]` leaves the last `n` elements of a chunk.
pub(super) static MASKS: [u32; 2 * LANES] = {
    let mut masks = [0; 2 * LANES];
    let mut i = LANES;
    while i < 2 * LANES {
        masks[i] = u32::MAX;
        i += 1;
    }
    masks
};

/// All chunks of the values. Of what is left behind the last whole one, so many, `work` gets the chunk that ends with it:
/// a copy into zeros would have to wait until it is written before it can be read.
#[inline(always)]
pub(super) fn each_chunk<T: Copy + Default>(
    values: &[T],
    center: Option<&[T]>,
    prefetches: usize,
    mut work: impl FnMut(&[T; LANES], Option<&[T; LANES]>, Option<usize>),
) {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (prefetching, others) = chunks.split_at(chunks.len().min(prefetches / LANES));
    match center {
        None => {
            for chunk in prefetching {
                prefetch_ahead(chunk.as_ptr(), LANES);
                work(chunk, None, None);
            }
            for chunk in others {
                work(chunk, None, None);
            }
        }
        Some(center) => {
            let (beside_prefetching, beside_others) =
                center.as_chunks::<LANES>().0.split_at(prefetching.len());
            for (chunk, center) in prefetching.iter().zip(beside_prefetching) {
                prefetch_ahead(chunk.as_ptr(), LANES);
                work(chunk, Some(center), None);
            }
            for (chunk, center) in others.iter().zip(beside_others) {
                work(chunk, Some(center), None);
            }
        }
    }
    if rest.is_empty() {
        return;
    }
    match (values.last_chunk::<LANES>(), center) {
        (Some(last), None) => work(last, None, Some(rest.len())),
        (Some(last), Some(center)) => work(last, center.last_chunk::<LANES>(), Some(rest.len())),
        (None, None) => work(&padded(rest), None, None),
        (None, Some(center)) => work(&padded(rest), Some(&padded(center)), None),
    }
}

/// Values fewer than a chunk.
fn padded<T: Copy + Default>(values: &[T]) -> [T; LANES] {
    let mut chunk = [T::default(); LANES];
    chunk[..values.len()].copy_from_slice(values);
    chunk
}

fn portable(values: &[f32], center: Option<&[f32]>, prefetches: usize) -> f64 {
    let mut lanes = [0.0f64; LANES];
    each_chunk(values, center, prefetches, |chunk, center, rest| {
        for i in 0..LANES {
            let mask = rest.map_or(u32::MAX, |rest| MASKS[rest + i]);
            let masked = |chunk: &[f32; LANES]| f64::from(f32::from_bits(chunk[i].to_bits() & mask));
            let value = masked(chunk) - center.map_or(0.0, masked);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// [`sum_of_half_squares`], and the same with the vectors of AVX2.
    fn half_sums_of_all(half: Half, bits: &[u16], prefetches: usize) -> Vec<f64> {
        let mut sums: Vec<f64> = sum_of_half_squares(half, bits, prefetches).into_iter().collect();
        #[cfg(target_arch = "x86_64")]
        if has_avx2_for_halves() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
            sums.push(unsafe { squares_256::half_sum(half, bits, prefetches) });
        }
        sums
    }

    #[test]
    fn halves_widened_in_registers_have_the_sum_of_widened_halves() {
        let ordinary = |i: usize| ((i * 7919) % 1000) as f32 * 0.37 - 150.0;
        let tiny = |power: i32| move |i: usize| ordinary(i) * 2f32.powi(power - 8);
        let values: [&dyn Fn(usize) -> f32; 9] = [
            &ordinary,
            &|_| 0.0,
            &|i| f32::from_bits((i as u32 % 128) << 16),
            // Sums to both sides of where bf16 is taken for what it is not.
            &tiny(-70),
            &tiny(-80),
            &|i| if i == 40 { 2f32.powi(-73) } else { f32::from_bits(0x007f_0000) },
            &|i| if i == 40 { 2f32.powi(-71) } else { 0.0 },
            &|i| if i % 3 == 0 { -3.3e38 } else { 1e-30 },
            &|i| if i == 3 { 3e38 } else { -0.0 },
        ];
        for half in [Half::F16, Half::Bf16] {
            for (kind, value) in values.iter().enumerate() {
                for length in [0, 1, 31, 32, 33, 63, 64, 65, 100, 4096] {
                    let bits: Vec<u16> = (0..length).map(|i| half.truncate(value(i))).collect();
                    let values: Vec<f32> = bits.iter().map(|&bits| half.widen(bits)).collect();
                    let want = portable(&values, None, 0);
                    for got in half_sums_of_all(half, &bits, length / 2) {
                        let most = want * 2.0 * (roundings(length) + 4) as f64 * f64::EPSILON;
                        // `want` is infinite where f16 has no such number.
                        assert!(got == want || (got - want).abs() <= most, "{half:?}, {kind}, {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_half_that_is_not_finite_is_seen_wherever_it_is() {
        for half in [Half::F16, Half::Bf16] {
            for not_finite in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                for place in 0..131 {
                    let mut bits = [half.truncate(1e-3); 131];
                    bits[place] = half.truncate(not_finite);
                    for sum in half_sums_of_all(half, &bits, 131) {
                        assert!(!sum.is_finite(), "{half:?}, {place}");
                    }
                }
            }
        }
    }

    #[test]
    fn groups_have_the_sums_of_their_rows_but_for_rounding() {
        for (params, stride) in
            [(1, 1), (3, 3), (4, 4), (7, 9), (8, 8), (9, 9), (100, 103), (511, 511), (512, 512), (1023, 1024)]
        {
            // Padding and what is behind the last row are no part of any sum.
            let mut values = vec![f32::NAN; ROWS * stride];
            for row in 0..ROWS {
                let of_row = (0..params).map(|i| ((row * params + i) * 7919 % 1000) as f32 * 0.37 - 150.0);
                values[row * stride..row * stride + params].copy_from_slice(&of_row.collect::<Vec<_>>());
            }
            let bits = |half: Half| values.iter().map(|value| half.truncate(*value)).collect::<Vec<u16>>();
            let widened_row =
                |half: Half, bits: &[u16]| bits.iter().map(|bits| half.widen(*bits)).collect::<Vec<f32>>();
            let widened = |half: Half| widened_row(half, &bits(half));
            let one_by_one = |values: &[f32]| -> [f64; ROWS] {
                RowGroup { elements: values, stride, params, asks_ahead: true }
                    .rows()
                    .map(|row| portable(row, None, 0))
            };
            let group = RowGroup { elements: &values[..], stride, params, asks_ahead: true };
            let expected = one_by_one(&values);
            let of_rows = |rows: &[&[f32]; ROWS]| rows.map(|row| sum_of_squares(row, None, 0));
            let mut cases = vec![(sums_of_group(group, of_rows), expected)];
            #[cfg(target_arch = "x86_64")]
            if squares_256::goes_side_by_side(params) && has_avx2() {
                for asks_ahead in [true, false] {
                    let group = RowGroup { asks_ahead, ..group };
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has AVX2 and FMA, as was just asked.
                    cases.push((unsafe { squares_256::sums_of_group(group) }, expected));
                }
            }
            for half in [Half::F16, Half::Bf16] {
                let (bits, expected) = (bits(half), one_by_one(&widened(half)));
                let group = RowGroup { elements: &bits[..], stride, params, asks_ahead: true };
                let of_rows =
                    |rows: &[&[u16]; ROWS]| rows.map(|row| portable(&widened_row(half, row), None, 0));
                cases.push((sums_of_half_group(half, group, of_rows), expected));
                #[cfg(target_arch = "x86_64")]
                if squares_256::goes_side_by_side(params) && has_avx2_for_halves() {
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
                    cases.push((unsafe { squares_256::sums_of_half_group(half, group) }, expected));
                }
            }
            for (got, expected) in cases {
                for (got, expected) in got.into_iter().zip(expected) {
                    let most = expected * 2.0 * roundings(super::super::sum::BLOCK) as f64 * f64::EPSILON;
                    assert!((got - expected).abs() <= most, "{params} of {stride}: {got} for {expected}");
                }
            }
        }
    }

    #[test]
    fn one_element_that_is_not_finite_is_seen_in_its_row_of_a_group_and_in_no_other() {
        let (params, stride) = (103, 104);
        for not_finite in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
            for place in 0..ROWS * stride {
                let mut values = [-0.0f32; ROWS * 104];
                values.iter_mut().step_by(3).for_each(|value| *value = f32::from_bits(1));
                values[place] = not_finite;
                let group = RowGroup { elements: &values[..], stride, params, asks_ahead: true };
                let mut all = vec![sums_of_group(group, |rows| rows.map(|row| portable(row, None, 0)))];
                #[cfg(target_arch = "x86_64")]
                if has_avx2() {
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has AVX2 and FMA, as was just asked.
                    all.push(unsafe { squares_256::sums_of_group(group) });
                }
                for half in [Half::F16, Half::Bf16] {
                    let bits = values.map(|value| half.truncate(value));
                    let group = RowGroup { elements: &bits[..], stride, params, asks_ahead: true };
                    let of_row =
                        |row: &[u16]| row.iter().map(|bits| f64::from(half.widen(*bits)).powi(2)).sum();
                    all.push(sums_of_half_group(half, group, |rows| rows.map(of_row)));
                    #[cfg(target_arch = "x86_64")]
                    if has_avx2_for_halves() {
                        #[allow(unsafe_code)]
                        // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
                        all.push(unsafe { squares_256::sums_of_half_group(half, group) });
                    }
                }
                for sums in all {
                    for (row, sum) in sums.into_iter().enumerate() {
                        let expected = place / stride != row || place % stride >= params;
                        assert_eq!(sum.is_finite(), expected, "{place}, {row}");
                    }
                }
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
                let mut sums =
                    vec![portable(&values, center, length / 2), sum_of_squares(&values, center, length / 2)];
                #[cfg(target_arch = "x86_64")]
                if has_avx2() {
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has AVX2 and FMA, as was just asked.
                    sums.push(unsafe { squares_256::sum(&values, center, length / 2) });
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
