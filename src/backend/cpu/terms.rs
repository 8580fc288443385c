//! The terms of means: `f64` sums for some coordinates, four rows at a time, and the means that those leave no doubt about.

use super::LINE;
use super::simd::{Kernel, prefetch};
#[cfg(target_arch = "x86_64")]
use super::simd::{has_avx2, has_avx2_for_halves};
#[cfg(target_arch = "x86_64")]
use super::terms_256;
use crate::half::Half;
use crate::numerics::power_of_two;

/// Rows whose terms are added at a time: their sums are read and written once.
pub(super) const TOGETHER: usize = 4;

/// Rows whose sums join those of the others when they are done, so that fewer additions follow each other.
pub(super) const BLOCK: usize = 256;

/// Elements of a cache line of `f32`.
pub(super) const CHUNK: usize = LINE / size_of::<f32>();

/// What a row adds to some coordinates: its values times a factor, times its weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a, T> {
    pub(super) elements: &'a [T],
    pub(super) factor: f32,
    pub(super) weight: f32,
    /// The weight in units of [`Sums::sizes`], or 1 where that is more.
    pub(super) size: f32,
}

/// The sums of the terms of some coordinates, and what says how exact they are.
#[derive(Debug)]
pub(super) struct Sums {
    pub(super) sums: Vec<f64>,
    /// Of the terms' magnitudes, in a unit that the caller chooses: 0 only where all are. An addition rounds by 2^-24, and no term takes
    /// part in 2^21, so at least 7/8 is counted of all that is not below the numbers of `f32`.
    pub(super) sizes: Vec<f32>,
    /// The bits of the least magnitude of a value that is not 0, less one, so that those of 0 are the greatest; of terms of
    /// equal weight alone.
    pub(super) least: Vec<u32>,
}

impl Sums {
    pub(super) fn zeros(coordinates: usize, equal: bool) -> Self {
        Self {
            sums: vec![0.0; coordinates],
            sizes: vec![0.0; coordinates],
            least: vec![u32::MAX; if equal { coordinates } else { 0 }],
        }
    }

    /// The sums of all, if any. Neighbours join first, then pairs of those, so that a term takes part in two joins
    /// for each level at most.
    pub(super) fn joined(all: impl Iterator<Item = Self>) -> Option<Self> {
        let mut waiting: Vec<Self> = Vec::new();
        for (place, mut sums) in all.enumerate() {
            for before in (0..place.trailing_ones()).filter_map(|_| waiting.pop()) {
                sums = sums.and(before);
            }
            waiting.push(sums);
        }
        waiting.into_iter().rev().reduce(Self::and)
    }

    fn and(mut self, other: Self) -> Self {
        self.sums.iter_mut().zip(other.sums).for_each(|(a, b)| *a += b);
        self.sizes.iter_mut().zip(other.sizes).for_each(|(a, b)| *a += b);
        self.least.iter_mut().zip(other.least).for_each(|(a, b)| *a = b.min(*a));
        self
    }

    /// A sum of values of so many bits, of weight 1 in units of 1, where that is exact: all of it are multiples of the last
    /// bit of the least value, and below 2^53 of that. Where the least is subnormal, it may be a product that the contract
    /// makes 0.
    pub(super) fn exact(&self, i: usize, significant_bits: i32) -> Option<f64> {
        let least = f32::from_bits(self.least.get(i)?.wrapping_add(1));
        let (size, most) = (self.sizes[i], least * 2f32.powi(52 - significant_bits));
        let is_exact = least > f32::MIN_POSITIVE && size < f32::INFINITY && size <= most;
        is_exact.then_some(self.sums[i])
    }
}

/// How many additions a term takes part in, where parts of so many rows are summed, so many of them, and joined.
pub(super) fn additions(rows: usize, parts: usize) -> u32 {
    let joins = |sums: usize| 2 * (usize::BITS - sums.leading_zeros());
    (rows.min(BLOCK).div_ceil(TOGETHER) + TOGETHER) as u32 + joins(rows.div_ceil(BLOCK)) + joins(parts)
}

/// Memory that is asked for while rows are added.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsAhead<T>(pub(super) [*const T; TOGETHER]);

impl<T> RowsAhead<T> {
    /// Asks for what goes with a chunk.
    #[inline(always)]
    pub(super) fn ask(&self, chunk: usize) {
        for row in self.0 {
            prefetch(row.wrapping_add(chunk * CHUNK).cast(), 1);
        }
    }
}

/// Rows whose terms are added to sums: the product of two `f32` is exact in `f64`.
///
/// Elements that are not finite count as 0 where they are `TESTED`. Elsewhere, in rows whose norms are finite, they
/// would make a size that is not, of which [`Certify`] decides nothing. A product with the factor that is subnormal,
/// or becomes the least normal number, is off by 2^-126 at most, which that knows.
pub(super) struct Add<'a, 'b, T, const EQUAL: bool, const TESTED: bool> {
    pub(super) sums: &'a mut Sums,
    pub(super) terms: &'a [Terms<'b, T>; TOGETHER],
    pub(super) ahead: RowsAhead<T>,
}

impl<const EQUAL: bool, const TESTED: bool> Add<'_, '_, f32, EQUAL, TESTED> {
    pub(super) fn singles(self) {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2 and FMA, as was just asked.
            return unsafe { terms_256::add_singles(self) };
        }
        self.portable(|value| value);
    }
}

impl<const EQUAL: bool, const TESTED: bool> Add<'_, '_, u16, EQUAL, TESTED> {
    pub(super) fn halves(self, half: Half) {
        #[cfg(target_arch = "x86_64")]
        if has_avx2_for_halves() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has AVX2, FMA and F16C, as was just asked.
            return unsafe { terms_256::add_halves(self, half) };
        }
        match half {
            Half::F16 => self.portable(|bits| Half::F16.widen(bits)),
            Half::Bf16 => self.portable(|bits| Half::Bf16.widen(bits)),
        }
    }
}

impl<T: Copy, const EQUAL: bool, const TESTED: bool> Add<'_, '_, T, EQUAL, TESTED> {
    fn portable(self, widen: impl Fn(T) -> f32) {
        let chunks = self.sums.sums.len().div_ceil(CHUNK);
        for chunk in 0..chunks {
            self.ahead.ask(chunk);
            add_one_by_one::<T, EQUAL, TESTED>(
                self.sums,
                self.terms,
                chunk * CHUNK..(chunk + 1) * CHUNK,
                &widen,
            );
        }
    }
}

/// Adds the terms of some coordinates, those of a coordinate to each other first.
#[inline(always)]
pub(super) fn add_one_by_one<T: Copy, const EQUAL: bool, const TESTED: bool>(
    sums: &mut Sums,
    terms: &[Terms<'_, T>; TOGETHER],
    coordinates: std::ops::Range<usize>,
    widen: impl Fn(T) -> f32,
) {
    for i in coordinates.start..coordinates.end.min(sums.sums.len()) {
        let (mut sum, mut size) = (0.0, 0.0);
        for terms in terms {
            let value = widen(terms.elements[i]);
            let value = if TESTED && !value.is_finite() { 0.0 } else { value } * terms.factor;
            if EQUAL {
                sums.least[i] = sums.least[i].min(value.abs().to_bits().wrapping_sub(1));
                sum += f64::from(value);
                size += value.abs();
            } else {
                sum += f64::from(value) * f64::from(terms.weight);
                size += value.abs() * terms.size;
            }
        }
        sums.sums[i] += sum;
        sums.sizes[i] += size;
    }
}

/// The means, where every sum within the error of these rounds to the same; the others are open. Whether there are any.
///
/// An addition rounds by at most 2^-53 of the magnitudes, which may be 8/7 of what was counted: 0.58 · 2^-52 of that.
/// Divisor, reciprocal and what is computed here round by less than 10 · 2^-52 of the sum.
pub(super) struct Certify<'a> {
    pub(super) sums: &'a Sums,
    pub(super) additions: u32,
    /// What sizes are counted in.
    pub(super) unit: f64,
    pub(super) divisor: f64,
    pub(super) mean: &'a mut [f32],
    pub(super) open: &'a mut [bool],
}

#[allow(clippy::needless_range_loop)] // Four slices at the same place.
impl Kernel for Certify<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let relative = (0.625 * f64::from(self.additions) + 12.0) * f64::EPSILON * self.unit;
        // Of subnormal products, each times its weight, and of magnitudes too small to be counted.
        let absolute = self.divisor * power_of_two(-125);
        let reciprocal = 1.0 / self.divisor;
        let length = self.mean.len();
        let (sums, sizes) = (&self.sums.sums[..length], &self.sums.sizes[..length]);
        let open = &mut self.open[..length];
        let mut any = false;
        for i in 0..length {
            let error = f64::from(sizes[i]) * relative + absolute;
            let least = ((sums[i] - error) * reciprocal) as f32;
            let most = ((sums[i] + error) * reciprocal) as f32;
            let nothing = sizes[i] == 0.0;
            self.mean[i] = if nothing { 0.0 } else { least };
            let certain = sizes[i] < f32::INFINITY && least.to_bits() == most.to_bits();
            open[i] = !certain && !nothing;
            any |= open[i];
        }
        any
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A sum with what is in `coordinates`, by the vectors of this processor and without.
    fn both<const EQUAL: bool, const TESTED: bool>(terms: [Terms<'_, f32>; TOGETHER]) -> [Sums; 2] {
        let start = |coordinates: usize| {
            let mut sums = Sums::zeros(coordinates, EQUAL);
            sums.sums.iter_mut().enumerate().for_each(|(i, sum)| *sum = i as f64 * 0.1);
            sums.sizes.iter_mut().enumerate().for_each(|(i, size)| *size = i as f32 * 0.1);
            sums
        };
        let coordinates = terms[0].elements.len();
        let ahead = RowsAhead(terms.map(|terms| terms.elements.as_ptr()));
        let (mut vectors, mut portable) = (start(coordinates), start(coordinates));
        Add::<_, EQUAL, TESTED> { sums: &mut vectors, terms: &terms, ahead }.singles();
        Add::<_, EQUAL, TESTED> { sums: &mut portable, terms: &terms, ahead }.portable(|value| value);
        [vectors, portable]
    }

    /// Those of a coordinate are added to each other first, either way, so even the rounding is the same.
    #[test]
    fn vectors_add_what_loops_add() {
        let value = |i: usize| ((i * 7919) % 1000) as f32 * 0.37 - 150.0;
        for length in [1, 7, 15, 16, 17, 31, 32, 33, 100, 1024] {
            let rows: [Vec<f32>; TOGETHER] = std::array::from_fn(|k| {
                (0..length).map(|i| value(3 * i + k) * f32::from(i % 5 != k)).collect()
            });
            let terms = |weights: [f32; TOGETHER]| -> [Terms<'_, f32>; TOGETHER] {
                std::array::from_fn(|k| {
                    let factor = [1.0, 0.3, 0.0, 0.7][k];
                    Terms { elements: &rows[k], factor, weight: weights[k], size: weights[k] + 0.5 }
                })
            };
            for [vectors, portable] in [
                both::<true, false>(terms([1.0; TOGETHER])),
                both::<true, true>(terms([1.0; TOGETHER])),
                both::<false, false>(terms([3.0, 0.1, 7.0, 1e-3])),
                both::<false, true>(terms([3.0, 0.1, 7.0, 1e-3])),
            ] {
                assert_eq!(vectors.sums, portable.sums, "{length}");
                assert_eq!(vectors.least, portable.least, "{length}");
                for (a, b) in vectors.sizes.iter().zip(&portable.sizes) {
                    assert!((a - b).abs() <= 8.0 * f32::EPSILON * b, "{length}: {a} for {b}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_counts_as_nothing_or_makes_a_size_that_is_not_finite() {
        let length = 37;
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..length {
                let rows: [Vec<f32>; TOGETHER] = std::array::from_fn(|k| {
                    (0..length).map(|i| if i == place && k == 1 { bad } else { 2.0 }).collect()
                });
                let terms = |k: usize| Terms { elements: &rows[k][..], factor: 0.5, weight: 3.0, size: 3.0 };
                let terms = std::array::from_fn(terms);
                let before = |i: usize| i as f64 * 0.1;
                for sums in both::<false, true>(terms) {
                    for i in 0..length {
                        let count = if i == place { 3.0 } else { 4.0 };
                        assert_eq!(sums.sums[i], before(i) + 3.0 * count, "{bad} at {place}, {i}");
                    }
                }
                for sums in both::<true, false>(terms).into_iter().chain(both::<false, false>(terms)) {
                    for i in 0..length {
                        assert_eq!(sums.sizes[i].is_finite(), i != place, "{bad} at {place}, {i}");
                        assert!(i != place || sums.exact(i, 24).is_none(), "{bad} at {place}");
                    }
                }
            }
        }
    }

    #[test]
    fn halves_add_what_they_are_as_singles() {
        let value = |i: usize| ((i * 7919) % 1000) as f32 * 0.37 - 150.0;
        for half in [Half::F16, Half::Bf16] {
            for length in [1, 16, 23, 100] {
                let bits: [Vec<u16>; TOGETHER] =
                    std::array::from_fn(|k| (0..length).map(|i| half.truncate(value(3 * i + k))).collect());
                let wide =
                    bits.clone().map(|bits| bits.iter().map(|bits| half.widen(*bits)).collect::<Vec<f32>>());
                let terms = |k: usize| Terms { elements: &bits[k][..], factor: 1.0, weight: 3.0, size: 3.0 };
                let terms: [_; TOGETHER] = std::array::from_fn(terms);
                let ahead = RowsAhead(terms.map(|terms| terms.elements.as_ptr()));
                let mut vectors = Sums::zeros(length, false);
                Add::<_, false, true> { sums: &mut vectors, terms: &terms, ahead }.halves(half);
                let mut portable = Sums::zeros(length, false);
                Add::<_, false, true> { sums: &mut portable, terms: &terms, ahead }
                    .portable(|bits| half.widen(bits));
                for sums in [vectors, portable] {
                    for i in 0..length {
                        let want: f64 = wide.iter().map(|row| 3.0 * f64::from(row[i])).sum();
                        assert!((sums.sums[i] - want).abs() <= 1e-12, "{half:?}, {i} of {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn sums_join_in_pairs() {
        for count in 0..70 {
            let sums = (0..count).map(|place| Sums {
                sums: vec![f64::from(place)],
                sizes: vec![1.0],
                least: vec![(place * 37 + 20) % 70],
            });
            match Sums::joined(sums) {
                None => assert_eq!(count, 0),
                Some(joined) => {
                    assert_eq!(joined.sums, [f64::from(count * (count - 1) / 2)]);
                    let least = (0..count).map(|place| (place * 37 + 20) % 70).min();
                    assert_eq!((joined.sizes[0], Some(joined.least[0])), (count as f32, least));
                }
            }
        }
    }

    /// A term loses what it meets one by one, and nothing of what has been joined before.
    #[test]
    fn a_term_takes_part_in_few_joins() {
        let large = 2f64.powi(53);
        for count in [2, 3, 5, 64, 100, 1000] {
            for place in [0, 1, count / 2, count - 1] {
                let sum =
                    |i| Sums { sums: vec![if i == place { large } else { 1.0 }], ..Sums::zeros(1, true) };
                let total = Sums::joined((0..count).map(sum)).unwrap().sums[0];
                let lost = large + (count - 1) as f64 - total;
                assert!(lost.abs() <= 2.0 * f64::from(additions(1, count)), "{place} of {count}: {lost}");
            }
        }
    }

    /// Alone at its place a sum is certain or open: what the error says is the edge between them.
    #[test]
    fn a_sum_near_the_middle_between_two_means_is_open() {
        let middle = 1.0 + f64::from(f32::EPSILON) / 2.0;
        let certify = |sum: f64, size: f32, additions: u32| {
            let sums = Sums { sums: vec![sum], sizes: vec![size], least: Vec::new() };
            let (mut mean, mut open) = ([0.0], [false]);
            let (unit, divisor) = (1.0, 2.0);
            let (mean_of, open_of) = (&mut mean, &mut open);
            let certify = Certify { sums: &sums, additions, unit, divisor, mean: mean_of, open: open_of };
            let any = certify.run();
            assert_eq!(any, open[0]);
            (!any).then_some(mean[0])
        };
        // Additions round by 2^-53 of the magnitudes each.
        let error = |additions: u32, size: f64| f64::from(additions) * 2f64.powi(-53) * size;
        for (additions, size) in [(1, 2.0), (100, 2.0), (100, 1000.0)] {
            let off = error(additions, size);
            assert_eq!(certify(2.0 * middle, size as f32, additions), None);
            assert_eq!(certify(2.0 * middle + off, size as f32, additions), None);
            assert_eq!(certify(2.0 * middle - off, size as f32, additions), None);
            let far = 60.0 * off;
            assert_eq!(certify(2.0 * middle + far, size as f32, additions), Some(1.0 + f32::EPSILON));
            assert_eq!(certify(2.0 * middle - far, size as f32, additions), Some(1.0));
        }
        assert_eq!(certify(0.0, 0.0, 1), Some(0.0));
        assert_eq!(certify(f64::NAN, f32::NAN, 1), None);
        assert_eq!(certify(f64::INFINITY, f32::INFINITY, 1), None);
        assert_eq!(certify(2e-40, 2e-40, 1), None);
    }
}
