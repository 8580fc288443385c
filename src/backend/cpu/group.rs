//! What a few short rows take beside their elements, side by side in the vectors of the processor: one by one, a root
//! and a quotient take as long as tens of elements.

use super::simd::Kernel;
use super::sum::FastSum;
use crate::batch::Granularity;
use crate::clip::{Clipping, Status};
use crate::norms::Norm;
use crate::numerics::factor_below_one;
use crate::threshold::{Decision, decide_span};

/// How many rows.
pub(super) const GROUP: usize = 8;

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

/// The decisions of rows that have these norms and bounds.
pub(super) struct Decide<'a> {
    pub(super) norms: &'a [Norm; GROUP],
    pub(super) bounds: &'a [f32; GROUP],
    pub(super) clipping: &'a Clipping,
}

impl Kernel for Decide<'_> {
    type Output = [Decision; GROUP];

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { norms, bounds, clipping } = self;
        let has_value = norms.iter().fold(true, |all, norm| all & norm.has_value());
        if !has_value || clipping.granularity == Granularity::Coordinate {
            return std::array::from_fn(|i| decide_span(norms[i], norms[i], bounds[i], clipping));
        }
        let (mut factors, mut exceeds) = ([1.0; GROUP], [false; GROUP]);
        for i in 0..GROUP {
            let factor = factor_below_one(bounds[i], norms[i]);
            exceeds[i] = norms[i].exceeds(bounds[i]);
            factors[i] = if exceeds[i] { factor } else { 1.0 };
        }
        std::array::from_fn(|i| {
            let status = if exceeds[i] { Status::Clipped } else { Status::Untouched };
            Decision { norm: norms[i], bound: bounds[i], factor: factors[i], status }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::vectorised;
    use crate::clip::NonFinite;
    use crate::norms::NormClass;

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
        let classes = [
            NormClass::Below,
            NormClass::Exact,
            NormClass::Above,
            NormClass::NonFinite,
            NormClass::OutOfScope,
        ];
        let bounds = [0.0, 1e-45, 1e-38, 1.0, 1.5, 3.0, f32::MAX, f32::INFINITY];
        // The bits of bounds and of their neighbours, and norms beyond the range of f32.
        let wides: Vec<u32> =
            bounds.iter().flat_map(|bound| [bound.to_bits(), bound.to_bits() + 1]).collect();
        let all: Vec<Norm> =
            wides.iter().flat_map(|wide| classes.map(|class| Norm::new(*wide, class))).collect();
        let ordinary: Vec<Norm> = all.iter().copied().filter(|norm| norm.has_value()).collect();
        for granularity in [Granularity::Row, Granularity::Coordinate] {
            for non_finite in [NonFinite::Zero, NonFinite::Keep] {
                let clipping = Clipping { granularity, non_finite, ..Clipping::default() };
                for (norms, shift) in
                    [&all, &ordinary].into_iter().flat_map(|norms| (0..norms.len()).map(move |i| (norms, i)))
                {
                    let norms = std::array::from_fn(|i| norms[(shift + i) % norms.len()]);
                    for turn in 0..GROUP {
                        let bounds = std::array::from_fn(|i| bounds[(turn + i) % GROUP]);
                        let decisions =
                            vectorised(Decide { norms: &norms, bounds: &bounds, clipping: &clipping });
                        for i in 0..GROUP {
                            assert_eq!(decisions[i], decide_span(norms[i], norms[i], bounds[i], &clipping));
                        }
                    }
                }
            }
        }
    }
}
