//! How elements lie in a buffer, and how kernels reach them there.

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::batch::Granularity;
use crate::half::Half;
use crate::numerics::{clamped, scaled};
use crate::threshold::Decision;

/// How kernels reach the elements of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fours {
    /// One at a time, of halves two: for tiles that begin anywhere.
    None,
    /// Four at a time, but for those before the first multiple of four and behind the last: for tiles that begin
    /// anywhere, on devices that write one element of a vector alone.
    Loose,
    /// Four at a time: for tiles that begin at multiples of four elements, and end before the next begins.
    Aligned,
}

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    Single,
    Half(Half),
}

/// The fast sums of norms, which differ in what an invocation sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sums {
    Singles,
    /// Differences from a centre, which halves do not have.
    Differences,
    Halves(Half),
}

impl Sums {
    /// How many there are.
    pub(crate) const COUNT: usize = 4;

    pub(crate) const ALL: [Self; Self::COUNT] =
        [Self::Singles, Self::Differences, Self::Halves(Half::F16), Self::Halves(Half::Bf16)];

    pub(crate) const fn of(storage: Storage, centered: bool) -> Self {
        match storage {
            Storage::Half(half) => Self::Halves(half),
            Storage::Single if centered => Self::Differences,
            Storage::Single => Self::Singles,
        }
    }

    /// Its place among all.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Singles => 0,
            Self::Differences => 1,
            Self::Halves(Half::F16) => 2,
            Self::Halves(Half::Bf16) => 3,
        }
    }
}

impl Storage {
    /// Bytes of an element.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Single => 4,
            Self::Half(_) => 2,
        }
    }

    /// Clips elements as the specification does, from the origin.
    pub(crate) fn clip<T: Pod>(self, elements: &mut [T], granularity: Granularity, decision: &Decision) {
        let &Decision { factor, bound, .. } = decision;
        let cuts = granularity == Granularity::Coordinate;
        match self {
            Self::Single => {
                for value in cast_slice_mut(elements) {
                    *value = if cuts { clamped(*value, bound) } else { scaled(*value, factor) };
                }
            }
            Self::Half(half) => {
                for bits in cast_slice_mut(elements) {
                    *bits = if cuts { half.clamped(*bits, bound) } else { half.scaled(*bits, factor) };
                }
            }
        }
    }

    /// The largest magnitude; Inf or NaN where an element is not finite.
    pub(crate) fn largest_magnitude<T: Pod>(self, elements: &[T]) -> f32 {
        // As integers, magnitudes have the order of their values, and NaN and Inf are the greatest.
        match self {
            Self::Single => {
                let bits: &[u32] = cast_slice(elements);
                f32::from_bits(bits.iter().fold(0, |most, bits| most.max(bits & 0x7fff_ffff)))
            }
            Self::Half(half) => {
                let bits: &[u16] = cast_slice(elements);
                half.widen(bits.iter().fold(0, |most, bits| most.max(bits & 0x7fff)))
            }
        }
    }
}
