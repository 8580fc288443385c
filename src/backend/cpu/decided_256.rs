//! What a few short rows take beside their elements, in the vectors of AVX2, four rows to one. The steps are those of
//! `numerics.rs`, whose functions say why they are right; of a loop over eight rows compilers make one row at a time.
//!
//! Numbers of 64 bits are compared as signed ones, because AVX2 has no others: those of rows that are not left open are all
//! positive.

use std::arch::x86_64::*;

use super::decided::Decided;
use super::group::{ROWS, RowSet};
use super::sum::QUALITY;
use crate::norms::{INFINITY_BITS, Norm, NormClass};

/// Rows of a vector.
const WIDTH: usize = 4;

/// Rounded roots as numbers of 64 bits, whether they were rounded up (1 or 0), and whether the sums leave them open (all bits
/// or none).
struct Roots {
    wide: __m256i,
    up: __m256i,
    open: __m256i,
}

/// `numerics::certify_root`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn roots(sums: [f64; WIDTH]) -> Roots {
    const BEHIND: i64 = 1 << 28;
    const LEAST: i64 = (1023 - 126) << 52;
    const INFINITY: i64 = f64::INFINITY.to_bits() as i64;
    const ERROR: i64 = 2 << (52 - QUALITY);
    const { assert!(ERROR < BEHIND / 2) };
    let bits = _mm256_castpd_si256(_mm256_sqrt_pd(bytemuck::cast(sums)));
    let is_normal = is_within(bits, LEAST, INFINITY);
    let is_far = is_within(_mm256_and_si256(bits, all(BEHIND - 1)), ERROR, BEHIND - ERROR);
    let up = _mm256_and_si256(_mm256_srli_epi64::<28>(bits), all(1));
    let other_bias = _mm256_sub_epi64(_mm256_srli_epi64::<29>(bits), all((1023 - 127) << 23));
    let open = _mm256_andnot_si256(_mm256_and_si256(is_normal, is_far), all(-1));
    Roots { wide: _mm256_add_epi64(other_bias, up), up, open }
}

/// The norms of rows that have these fast sums, and which of them those leave open.
#[target_feature(enable = "avx2,fma")]
pub(super) fn norms(sums: &[f64; ROWS]) -> ([Norm; ROWS], RowSet) {
    const { assert!(NormClass::Below as u32 == 0 && NormClass::Above as u32 == 2) };
    let [low, high] = bytemuck::cast(*sums);
    let of_four = |sums| {
        let Roots { wide, up, open } = roots(sums);
        // Above where it was rounded down: 2 - 2 up, in the upper half of the number.
        let class = _mm256_slli_epi64::<33>(_mm256_xor_si256(up, all(1)));
        let of_low = _mm256_and_si256(wide, all(0xffff_ffff));
        (_mm256_or_si256(of_low, class), set_of(open))
    };
    let ((low, low_open), (high, high_open)) = (of_four(low), of_four(high));
    (bytemuck::cast([low, high]), low_open | high_open << WIDTH)
}

/// What becomes of rows that have these fast sums and bounds, where these are in scope.
#[target_feature(enable = "avx2,fma")]
pub(super) fn decide(sums: &[f64; ROWS], bounds: &[f32; ROWS], in_scope: RowSet, decided: &mut Decided) {
    decided.open = 0;
    decided.clipped = 0;
    let sums = sums.as_chunks().0.iter().zip(bounds.as_chunks().0);
    let places = decided.norms.as_chunks_mut().0.iter_mut().zip(decided.factors.as_chunks_mut().0);
    for (four, ((&sums, &bounds), (norms, factors))) in sums.zip(places).enumerate() {
        let first = four * WIDTH;
        let of_four = decide_four(sums, bounds, in_scope >> first);
        *norms = of_four.norms;
        *factors = of_four.factors;
        decided.open |= of_four.open << first;
        decided.clipped |= of_four.clipped << first;
    }
}

/// [`Decided`] of one vector.
struct DecidedFour {
    norms: [f32; WIDTH],
    factors: [f64; WIDTH],
    clipped: RowSet,
    open: RowSet,
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn decide_four(sums: [f64; WIDTH], bounds: [f32; WIDTH], in_scope: RowSet) -> DecidedFour {
    let Roots { wide, up, open } = roots(sums);
    let in_scope = mask_of(in_scope);
    let bounds: __m128 = bytemuck::cast(bounds);
    // `Norm::exceeds`. A bound is not negative but for -0.
    let bound_bits = _mm256_and_si256(_mm256_cvtepu32_epi64(_mm_castps_si128(bounds)), all(0x7fff_ffff));
    let no_bound = _mm256_cmpeq_epi64(bound_bits, all(i64::from(INFINITY_BITS)));
    let rounded_up = _mm256_add_epi64(wide, _mm256_xor_si256(up, all(1)));
    let exceeds = _mm256_andnot_si256(no_bound, _mm256_cmpgt_epi64(rounded_up, bound_bits));
    let clipped = _mm256_and_si256(exceeds, in_scope);
    // `factor_below_one`, of norms that are normal numbers.
    let value = _mm256_add_epi64(_mm256_slli_epi64::<29>(wide), all((1023 - 127) << 52));
    let quotient = _mm256_div_pd(_mm256_cvtps_pd(bounds), _mm256_castsi256_pd(value));
    let exponent = _mm256_and_si256(_mm256_castpd_si256(quotient), all(!((1 << 52) - 1)));
    let eight_units = _mm256_mul_pd(_mm256_castsi256_pd(exponent), _mm256_set1_pd(1.0 / f64::from(1 << 22)));
    let less = _mm256_castpd_si256(_mm256_sub_pd(quotient, eight_units));
    let factors = _mm256_castsi256_pd(_mm256_and_si256(less, all(!((1 << 29) - 1))));
    let factors = _mm256_blendv_pd(_mm256_set1_pd(1.0), factors, _mm256_castsi256_pd(clipped));
    // `Norm::value`: beyond the largest `f32` it is infinite, out of scope NaN.
    let infinity = all(i64::from(INFINITY_BITS));
    let within = _mm256_blendv_epi8(wide, infinity, _mm256_cmpgt_epi64(wide, infinity));
    let norms = _mm256_blendv_epi8(all(i64::from(f32::NAN.to_bits())), within, in_scope);
    let lower_halves = _mm256_permutevar8x32_epi32(norms, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    DecidedFour {
        norms: bytemuck::cast(_mm256_castsi256_si128(lower_halves)),
        factors: bytemuck::cast(factors),
        clipped: set_of(clipped),
        open: set_of(_mm256_and_si256(open, in_scope)),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn all(number: i64) -> __m256i {
    _mm256_set1_epi64x(number)
}

/// Which numbers are at least `from` and less than `to`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn is_within(numbers: __m256i, from: i64, to: i64) -> __m256i {
    _mm256_andnot_si256(_mm256_cmpgt_epi64(all(from), numbers), _mm256_cmpgt_epi64(all(to), numbers))
}

/// The rows whose numbers have all bits, of which the others have none.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn set_of(mask: __m256i) -> RowSet {
    _mm256_movemask_pd(_mm256_castsi256_pd(mask)) as RowSet
}

/// All bits for each of the first rows that is in the set.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn mask_of(set: RowSet) -> __m256i {
    let bits = _mm256_setr_epi64x(1, 2, 4, 8);
    _mm256_cmpeq_epi64(_mm256_and_si256(all(i64::from(set)), bits), bits)
}
