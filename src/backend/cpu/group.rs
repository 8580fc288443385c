//! What a few short rows take beside their elements, side by side in the vectors of the processor: one by one, a root
//! and a quotient take as long as tens of elements.

use super::simd::Kernel;
use super::sum::FastSum;
use crate::clip::Status;
use crate::norms::Norm;
use crate::numerics::factor_below_one;
use crate::threshold::Decision;

/// How many rows.
pub(super) const GROUP: usize = super::squares::ROWS;

/// The norms of fast sums, and which of them those leave open.
pub(super) struct Certify<'a>(pub(super) &'a [FastSum; GROUP]);

impl Kernel for Certify<'_> {
    type Output = ([Norm; GROUP], [bool; GROUP]);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut wide, mut up, mut is_open) = ([0; GROUP], [false; GROUP], [true; GROUP]);
        for i in 0..GROUP {
            let root = self.0[i].root();
            (wide[i], up[i], is_open[i]) = (root.wide, root.up, root.is_open);
        }
        let mut norms = [Norm::OUT_OF_SCOPE; GROUP];
        for i in 0..GROUP {
            norms[i] = Norm::rounded(wide[i], up[i]);
        }
        (norms, is_open)
    }
}

/// The decisions of rows that have these sums and bounds; `None` where a sum leaves one of them open.
pub(super) struct Settle<'a> {
    pub(super) sums: &'a [FastSum; GROUP],
    pub(super) bounds: &'a [f32; GROUP],
    pub(super) in_scope: &'a [bool; GROUP],
}

impl Kernel for Settle<'_> {
    type Output = Option<[Decision; GROUP]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { sums, bounds, in_scope } = self;
        let (norms, is_open) = Certify(sums).run();
        let (mut factors, mut exceeds, mut any_open) = ([1.0; GROUP], [false; GROUP], false);
        for i in 0..GROUP {
            let factor = factor_below_one(bounds[i], norms[i]);
            exceeds[i] = norms[i].exceeds(bounds[i]) & in_scope[i];
            factors[i] = if exceeds[i] { factor } else { 1.0 };
            any_open |= is_open[i] & in_scope[i];
        }
        if any_open {
            return None;
        }
        Some(std::array::from_fn(|i| {
            let (bound, factor) = (bounds[i], factors[i]);
            match (in_scope[i], exceeds[i]) {
                (true, true) => Decision { norm: norms[i], bound, factor, status: Status::Clipped },
                (true, false) => Decision { norm: norms[i], bound, factor, status: Status::Untouched },
                (false, _) => {
                    Decision { norm: Norm::OUT_OF_SCOPE, bound, factor, status: Status::OutOfScope }
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::vectorised;
    use crate::clip::Clipping;
    use crate::threshold::decide_span;

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
        let mut certain = 0;
        for shift in 0..sums.len() {
            let group = std::array::from_fn(|i| FastSum::of_value(sums[(shift + i) % sums.len()]));
            let (norms, is_open) = vectorised(Certify(&group));
            for i in (0..GROUP).filter(|i| !is_open[*i]) {
                assert_eq!(Some(norms[i]), group[i].norm(), "{:?}", group[i]);
                certain += 1;
            }
        }
        assert_eq!(certain, 10 * GROUP);
    }

    #[test]
    fn decisions_of_groups_are_those_of_single_rows() {
        let clipping = Clipping::default();
        // All kinds, of which some are open; and ordinary ones, none of which is.
        let mixed = [0.0, 1e-46, 1.1e-45, 1e-38, 0.3, 1.0, 1.2, 1.5, 2.9, 3.0, 3.1, 1e38, 1e39, f64::NAN];
        let ordinary = [2e-38, 1e-30, 0.3, 0.7, 1.2, 1.7, 2.9, 3.1, 1e38, 1e39];
        let bounds = [0.0, 1e-45, 1e-38, 1.0, 1.5, 3.0, f32::MAX, f32::INFINITY];
        let mut certain = 0;
        let starts = (0..mixed.len()).map(|shift| (&mixed[..], shift));
        for (roots, shift) in starts.chain((0..ordinary.len()).map(|shift| (&ordinary[..], shift))) {
            for (turn, scope) in (0..GROUP).flat_map(|turn| [(turn, 0xff), (turn, 0x5a), (turn, 0)]) {
                let sums: [FastSum; GROUP] =
                    std::array::from_fn(|i| FastSum::of_value(roots[(shift + i) % roots.len()].powi(2)));
                let bounds = std::array::from_fn(|i| bounds[(turn + i) % GROUP]);
                let in_scope = std::array::from_fn(|i| scope >> i & 1 == 1);
                let (norms, is_open) = vectorised(Certify(&sums));
                let decisions = vectorised(Settle { sums: &sums, bounds: &bounds, in_scope: &in_scope });
                let is_any_open = (0..GROUP).any(|i| is_open[i] && in_scope[i]);
                assert_eq!(decisions.is_none(), is_any_open, "{sums:?}, {scope:#x}");
                for (i, decision) in decisions.iter().flatten().enumerate() {
                    let norm = if in_scope[i] { norms[i] } else { Norm::OUT_OF_SCOPE };
                    assert_eq!(*decision, decide_span(norm, norm, bounds[i], &clipping));
                    certain += usize::from(in_scope[i]);
                }
            }
        }
        // Every start among the ordinary ones, with eight and four rows in scope.
        assert!(certain >= ordinary.len() * GROUP * (8 + 4), "{certain}");
    }
}
