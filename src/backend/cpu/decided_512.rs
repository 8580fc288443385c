//! What a few short rows take beside their elements, in the vectors of AVX-512. The steps are those of `numerics.rs`,
//! whose functions say why they are right; of a loop over eight rows compilers make one row at a time.

use std::arch::x86_64::*;

use super::decided::Decided;
use super::group::{ROWS, RowSet};
use super::sum::QUALITY;
use crate::norms::{INFINITY_BITS, Norm, NormClass};

/// Rounded roots as numbers of 64 bits, whether they were rounded up (1 or 0), and which the sums leave open.
struct Roots {
    wide: __m512i,
    up: __m512i,
    open: RowSet,
}

/// `numerics::certify_root`.
#[inline]
#[target_feature(enable = "avx512f")]
fn roots(sums: &[f64; ROWS]) -> Roots {
    const BEHIND: i64 = 1 << 28;
    const LEAST: i64 = (1023 - 126) << 52;
    const INFINITY: i64 = f64::INFINITY.to_bits() as i64;
    const ERROR: i64 = 2 << (52 - QUALITY);
    const { assert!(ERROR < BEHIND / 2) };
    let all = |number: i64| _mm512_set1_epi64(number);
    let bits = _mm512_castpd_si512(_mm512_sqrt_pd(bytemuck::cast(*sums)));
    let is_normal = _mm512_cmplt_epu64_mask(_mm512_sub_epi64(bits, all(LEAST)), all(INFINITY - LEAST));
    let behind = _mm512_sub_epi64(_mm512_and_si512(bits, all(BEHIND - 1)), all(ERROR));
    let is_far = _mm512_cmplt_epu64_mask(behind, all(BEHIND - 2 * ERROR));
    let up = _mm512_and_si512(_mm512_srli_epi64::<28>(bits), all(1));
    let other_bias = _mm512_sub_epi64(_mm512_srli_epi64::<29>(bits), all((1023 - 127) << 23));
    Roots { wide: _mm512_add_epi64(other_bias, up), up, open: !(is_normal & is_far) }
}

/// The norms of rows that have these fast sums, and which of them those leave open.
#[target_feature(enable = "avx512f")]
pub(super) fn norms(sums: &[f64; ROWS]) -> ([Norm; ROWS], RowSet) {
    const { assert!(NormClass::Below as u32 == 0 && NormClass::Above as u32 == 2) };
    let Roots { wide, up, open } = roots(sums);
    // Above where it was rounded down: 2 - 2 up, in the upper half of the number.
    let class = _mm512_slli_epi64::<33>(_mm512_xor_si512(up, _mm512_set1_epi64(1)));
    let of_low = _mm512_and_si512(wide, _mm512_set1_epi64(0xffff_ffff));
    (bytemuck::cast(_mm512_or_si512(of_low, class)), open)
}

/// What becomes of rows that have these fast sums and bounds, where these are in scope.
#[target_feature(enable = "avx512f")]
pub(super) fn decide(sums: &[f64; ROWS], bounds: &[f32; ROWS], in_scope: RowSet, decided: &mut Decided) {
    let all = |number: i64| _mm512_set1_epi64(number);
    let Roots { wide, up, open } = roots(sums);
    let open = open & in_scope;
    let bounds: __m256 = bytemuck::cast(*bounds);
    // `Norm::exceeds`. A bound is not negative but for -0.
    let bound_bits = _mm512_and_si512(_mm512_cvtepu32_epi64(_mm256_castps_si256(bounds)), all(0x7fff_ffff));
    let is_bound = _mm512_cmpneq_epi64_mask(bound_bits, all(i64::from(INFINITY_BITS)));
    let rounded_up = _mm512_add_epi64(wide, _mm512_xor_si512(up, all(1)));
    let clipped = _mm512_cmpgt_epu64_mask(rounded_up, bound_bits) & is_bound & in_scope & !open;
    // `factor_below_one`, of norms that are normal numbers.
    let value = _mm512_add_epi64(_mm512_slli_epi64::<29>(wide), all((1023 - 127) << 52));
    let quotient = _mm512_div_pd(_mm512_cvtps_pd(bounds), _mm512_castsi512_pd(value));
    let exponent = _mm512_and_si512(_mm512_castpd_si512(quotient), all(!((1 << 52) - 1)));
    let eight_units = _mm512_mul_pd(_mm512_castsi512_pd(exponent), _mm512_set1_pd(1.0 / f64::from(1 << 22)));
    let less = _mm512_castpd_si512(_mm512_sub_pd(quotient, eight_units));
    let factors = _mm512_castsi512_pd(_mm512_and_si512(less, all(!((1 << 29) - 1))));
    let factors = _mm512_mask_mov_pd(_mm512_set1_pd(1.0), clipped, factors);
    // `Norm::value`: beyond the largest `f32` it is infinite, out of scope NaN.
    let within = _mm512_min_epu64(wide, all(i64::from(INFINITY_BITS)));
    let norms = _mm512_mask_mov_epi64(all(i64::from(f32::NAN.to_bits())), in_scope, within);
    let norms = _mm512_cvtepi64_epi32(norms);
    *decided = Decided { norms: bytemuck::cast(norms), factors: bytemuck::cast(factors), clipped, open };
}
