//! What a few short rows take beside their elements, side by side in the vectors of the processor: one by one, a root
//! and a quotient take as long as tens of elements.

use super::group::{ROWS, RowSet, members};
#[cfg(target_arch = "x86_64")]
use super::simd::has_avx2;
use super::sum::QUALITY;
#[cfg(target_arch = "x86_64")]
use super::{decided_256, decided_512};
use crate::norms::Norm;
use crate::numerics::{certify_root, factor_below_one};

/// The norms of rows that have these fast sums, and which of them those leave open.
#[inline]
pub(super) fn norms(sums: &[f64; ROWS]) -> ([Norm; ROWS], RowSet) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return unsafe { decided_512::norms(sums) };
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2 and FMA, as was just asked.
        return unsafe { decided_256::norms(sums) };
    }
    portable_norms(sums)
}

fn portable_norms(sums: &[f64; ROWS]) -> ([Norm; ROWS], RowSet) {
    let (mut norms, mut open) = ([Norm::OUT_OF_SCOPE; ROWS], 0);
    for i in 0..ROWS {
        let root = certify_root(sums[i], QUALITY);
        norms[i] = Norm::rounded(root.wide, root.up);
        open |= RowSet::from(root.is_open) << i;
    }
    (norms, open)
}

/// What becomes of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Decided {
    /// The values of their norms; NaN out of scope.
    pub(super) norms: [f32; ROWS],
    /// Those of rows that are clipped; 1 of the others.
    pub(super) factors: [f64; ROWS],
    /// Which are clipped.
    pub(super) clipped: RowSet,
    /// Which in scope the sums leave open: nothing holds for them.
    pub(super) open: RowSet,
}

impl Decided {
    /// Of rows that are out of scope.
    pub(super) const NONE: Self = Self { norms: [f32::NAN; ROWS], factors: [1.0; ROWS], clipped: 0, open: 0 };
}

/// What becomes of rows that have these fast sums and bounds, where these are in scope. Written in place: a copy would
/// have to wait for it.
#[inline]
pub(super) fn decide(sums: &[f64; ROWS], bounds: &[f32; ROWS], in_scope: RowSet, decided: &mut Decided) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX-512F, as was just asked.
        return unsafe { decided_512::decide(sums, bounds, in_scope, decided) };
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2 and FMA, as was just asked.
        return unsafe { decided_256::decide(sums, bounds, in_scope, decided) };
    }
    portable_decide(sums, bounds, in_scope, decided);
}

fn portable_decide(sums: &[f64; ROWS], bounds: &[f32; ROWS], in_scope: RowSet, decided: &mut Decided) {
    let (norms, open) = portable_norms(sums);
    let open = open & in_scope;
    *decided = Decided { open, ..Decided::NONE };
    for i in members(in_scope) {
        decided.norms[i] = norms[i].value();
        if norms[i].exceeds(bounds[i]) {
            decided.factors[i] = factor_below_one(bounds[i], norms[i]);
            decided.clipped |= 1 << i;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{Clipping, Status};
    use crate::numerics::certify;
    use crate::threshold::decide_span;

    /// Where there is AVX2, whether or not there is better.
    fn norms_256(sums: &[f64; ROWS]) -> ([Norm; ROWS], RowSet) {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { decided_256::norms(sums) };
        }
        portable_norms(sums)
    }

    fn decide_256(sums: &[f64; ROWS], bounds: &[f32; ROWS], in_scope: RowSet, decided: &mut Decided) {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { decided_256::decide(sums, bounds, in_scope, decided) };
        }
        portable_decide(sums, bounds, in_scope, decided);
    }

    #[test]
    fn norms_of_groups_are_those_of_single_rows() {
        // Roots of all sizes, squares and their neighbours, roots that are subnormal, zero, and sums that are not finite.
        let next = |value: f64| f64::from_bits(value.to_bits() + 1);
        let middle = (1.5 + f64::from(f32::EPSILON) / 2.0).powi(2);
        let sums = [
            [2.0, 3.0, 0.7, 1e-60, 1e60, 3e76, 2e86],
            [9.0, next(9.0), middle, next(middle), 1e-76, 1e-91, 0.0],
            [f64::MIN_POSITIVE, f64::INFINITY, f64::NAN, 0.1, 1e-75, 1e-80, 5.0],
        ];
        let sums = sums.as_flattened();
        for norms in [norms, norms_256, portable_norms] {
            let mut certain = 0;
            for shift in 0..sums.len() {
                let group = std::array::from_fn(|i| sums[(shift + i) % sums.len()]);
                let (norms, open) = norms(&group);
                for i in (0..ROWS).filter(|i| open >> i & 1 == 0) {
                    assert_eq!(Some(norms[i]), certify(group[i], QUALITY), "{:?}", group[i]);
                    certain += 1;
                }
            }
            assert_eq!(certain, 10 * ROWS);
        }
    }

    #[test]
    fn what_becomes_of_groups_is_what_becomes_of_single_rows() {
        let clipping = Clipping::default();
        // The two last are rounded to a bound, from above and from below.
        let roots = [
            0.0,
            1e-46,
            1.1e-45,
            1e-38,
            2e-38,
            0.3,
            1.0,
            1.2,
            1.5,
            1.7,
            2.9,
            3.0,
            3.1,
            1e38,
            1e39,
            f64::NAN,
            1.500_000_01,
            2.999_999_99,
        ];
        let bounds = [0.0, -0.0, 1e-45, 1e-38, 1.0, 1.5, 3.0, f32::MAX, f32::INFINITY];
        for decide in [decide, decide_256, portable_decide] {
            let (mut clipped, mut untouched) = (0, 0);
            for shift in 0..roots.len() {
                for turn in 0..bounds.len() {
                    let sums = std::array::from_fn(|i| roots[(shift + i) % roots.len()].powi(2));
                    let bounds = std::array::from_fn(|i| bounds[(turn + i) % bounds.len()]);
                    let in_scope = [0xff, 0xff, 0xff, 0x5a, 0xff, 0xff, 0xa7, 0][(shift + turn) % 8];
                    let mut decided = Decided::NONE;
                    decide(&sums, &bounds, in_scope, &mut decided);
                    assert_eq!(decided.open, norms(&sums).1 & in_scope);
                    for i in (0..ROWS).filter(|i| decided.open >> i & 1 == 0) {
                        let certain = certify(sums[i], QUALITY).filter(|_| in_scope >> i & 1 == 1);
                        let norm = certain.unwrap_or(Norm::OUT_OF_SCOPE);
                        let decision = decide_span(norm, norm, bounds[i], &clipping);
                        let is_clipped = decision.status == Status::Clipped;
                        let expected = (decision.norm.value().to_bits(), decision.factor, is_clipped);
                        let is_clipped = decided.clipped >> i & 1 == 1;
                        assert_eq!((decided.norms[i].to_bits(), decided.factors[i], is_clipped), expected);
                        *(if is_clipped { &mut clipped } else { &mut untouched }) += 1;
                    }
                }
            }
            assert!(clipped >= 200 && untouched >= 200, "{clipped}, {untouched}");
        }
    }

    #[test]
    fn factors_in_vectors_are_those_of_integers() {
        let mut state = 3u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        for _ in 0..20_000 {
            let sums =
                std::array::from_fn(|_| f64::from_bits((1023 - 250 + random() % 500) << 52 | random() << 21));
            let bounds = std::array::from_fn(|_| f32::from_bits((random() as u32) % 0x7f80_0001));
            let in_scope = (random() | random()) as RowSet;
            let mut expected = Decided::NONE;
            portable_decide(&sums, &bounds, in_scope, &mut expected);
            for decide in [decide, decide_256] {
                let mut got = Decided::NONE;
                decide(&sums, &bounds, in_scope, &mut got);
                assert_eq!(got.open, expected.open, "{sums:?}");
                for i in (0..ROWS).filter(|i| got.open >> i & 1 == 0) {
                    let of_row = |s: &Decided| (s.norms[i].to_bits(), s.factors[i], s.clipped >> i & 1);
                    assert_eq!(of_row(&got), of_row(&expected), "{:e}, {:e}", sums[i], bounds[i]);
                }
            }
        }
    }
}
