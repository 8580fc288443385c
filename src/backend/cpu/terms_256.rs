//! Sums of the terms of means with the vectors of AVX2: eight `f32` to one, which become two of four `f64`.
//!
//! Written with intrinsics: of a loop compilers make four elements at a time, at two thirds of the speed.

use std::arch::x86_64::*;

use super::squares::{LANES, MASKS};
use super::terms::{Add, CHUNK, TOGETHER, add_one_by_one};
use crate::half::Half;

/// Elements of a vector.
const WIDTH: usize = 8;

/// Vectors of a chunk.
const VECTORS: usize = CHUNK / WIDTH;

#[target_feature(enable = "avx2,fma")]
pub(super) fn add_singles<const EQUAL: bool, const TESTED: bool>(add: Add<'_, '_, f32, EQUAL, TESTED>) {
    add_wide(add, |chunk| bytemuck::cast(*chunk), |value| value);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_halves<const EQUAL: bool, const TESTED: bool>(
    add: Add<'_, '_, u16, EQUAL, TESTED>,
    half: Half,
) {
    match half {
        Half::F16 => add_wide(
            add,
            |chunk| {
                let [a, b]: [__m128i; VECTORS] = bytemuck::cast(*chunk);
                [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)]
            },
            |bits| Half::F16.widen(bits),
        ),
        Half::Bf16 => add_wide(
            add,
            |chunk| {
                let [a, b]: [__m128i; VECTORS] = bytemuck::cast(*chunk);
                let wide = |bits| _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
                [wide(a), wide(b)]
            },
            |bits| Half::Bf16.widen(bits),
        ),
    }
}

#[allow(clippy::needless_range_loop)] // All rows are at the same place.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_wide<T: Copy, const EQUAL: bool, const TESTED: bool>(
    add: Add<'_, '_, T, EQUAL, TESTED>,
    widen_chunk: impl Fn(&[T; CHUNK]) -> [__m256; VECTORS],
    widen: impl Fn(T) -> f32,
) {
    let (terms, sums) = (add.terms, add.sums);
    let multipliers = Multipliers {
        factors: terms.map(|terms| _mm256_set1_ps(terms.factor)),
        weights: terms.map(|terms| _mm256_set1_pd(f64::from(terms.weight))),
        sizes: terms.map(|terms| _mm256_set1_ps(terms.size)),
    };
    let length = sums.sums.len();
    let mut rows = [&[][..]; TOGETHER];
    for k in 0..TOGETHER {
        rows[k] = &terms[k].elements[..length].as_chunks::<CHUNK>().0[..length / CHUNK];
    }
    let (least, _) = sums.least.as_chunks_mut();
    let chunks = sums.sums.as_chunks_mut().0.iter_mut().zip(sums.sizes.as_chunks_mut().0);
    for (i, (sums, sizes)) in chunks.enumerate().take(length / CHUNK) {
        add.ahead.ask(i);
        let mut values = [[_mm256_setzero_ps(); VECTORS]; TOGETHER];
        for k in 0..TOGETHER {
            values[k] = widen_chunk(&rows[k][i]);
        }
        add_chunk::<EQUAL, TESTED>((sums, sizes, least.get_mut(i)), values, &multipliers);
    }
    let rest = length % CHUNK;
    if rest == 0 {
        return;
    }
    // What is left is added as the end of one more chunk.
    let (last, least) =
        ((sums.sums.last_chunk_mut(), sums.sizes.last_chunk_mut()), sums.least.last_chunk_mut());
    let ends = terms.map(|terms| terms.elements[..length].last_chunk());
    let masks = MASKS[LANES - CHUNK + rest..].first_chunk::<CHUNK>();
    let ((Some(last_sums), Some(sizes)), [Some(a), Some(b), Some(c), Some(d)], Some(masks)) =
        (last, ends, masks)
    else {
        return add_one_by_one::<T, EQUAL, TESTED>(sums, terms, 0..length, widen);
    };
    let masks: [__m256; VECTORS] = bytemuck::cast(*masks);
    let mut values = [a, b, c, d].map(widen_chunk);
    for vectors in &mut values {
        for i in 0..VECTORS {
            vectors[i] = _mm256_and_ps(vectors[i], masks[i]);
        }
    }
    add_chunk::<EQUAL, TESTED>((last_sums, sizes, least), values, &multipliers);
}

/// What elements are multiplied by, in every place of a vector.
struct Multipliers {
    factors: [__m256; TOGETHER],
    weights: [__m256d; TOGETHER],
    sizes: [__m256; TOGETHER],
}

type Places<'a> = (&'a mut [f64; CHUNK], &'a mut [f32; CHUNK], Option<&'a mut [u32; CHUNK]>);

/// Adds a chunk of each row.
#[allow(clippy::needless_range_loop)]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_chunk<const EQUAL: bool, const TESTED: bool>(
    (sums, sizes, least): Places<'_>,
    values: [[__m256; VECTORS]; TOGETHER],
    multipliers: &Multipliers,
) {
    let mut sums_of: [[__m256d; 2]; VECTORS] = bytemuck::cast(*sums);
    let mut sizes_of: [__m256; VECTORS] = bytemuck::cast(*sizes);
    let mut least_of = [_mm256_set1_epi32(-1); VECTORS];
    for i in 0..VECTORS {
        let (mut low, mut high) = (_mm256_setzero_pd(), _mm256_setzero_pd());
        let mut size = _mm256_setzero_ps();
        for k in 0..TOGETHER {
            let mut value = values[k][i];
            if TESTED {
                let finite = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude(value), _mm256_set1_ps(f32::INFINITY));
                value = _mm256_and_ps(value, finite);
            }
            value = _mm256_mul_ps(value, multipliers.factors[k]);
            let magnitudes = magnitude(value);
            let [low_values, high_values] = wide(value);
            if EQUAL {
                let less_one = _mm256_add_epi32(_mm256_castps_si256(magnitudes), _mm256_set1_epi32(-1));
                least_of[i] = _mm256_min_epu32(least_of[i], less_one);
                low = _mm256_add_pd(low, low_values);
                high = _mm256_add_pd(high, high_values);
                size = _mm256_add_ps(size, magnitudes);
            } else {
                low = _mm256_fmadd_pd(low_values, multipliers.weights[k], low);
                high = _mm256_fmadd_pd(high_values, multipliers.weights[k], high);
                size = _mm256_fmadd_ps(magnitudes, multipliers.sizes[k], size);
            }
        }
        sums_of[i] = [_mm256_add_pd(sums_of[i][0], low), _mm256_add_pd(sums_of[i][1], high)];
        sizes_of[i] = _mm256_add_ps(sizes_of[i], size);
    }
    *sums = bytemuck::cast(sums_of);
    *sizes = bytemuck::cast(sizes_of);
    if EQUAL && let Some(least) = least {
        let before: [__m256i; VECTORS] = bytemuck::cast(*least);
        for i in 0..VECTORS {
            least_of[i] = _mm256_min_epu32(least_of[i], before[i]);
        }
        *least = bytemuck::cast(least_of);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn magnitude(values: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), values)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn wide(values: __m256) -> [__m256d; 2] {
    let high = _mm256_extractf128_ps::<1>(values);
    [_mm256_cvtps_pd(_mm256_castps256_ps128(values)), _mm256_cvtps_pd(high)]
}
