//! How elements lie in a buffer, and how kernels reach them there.

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::half::Half;
use crate::numerics::scaled;

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

    /// Multiplies elements as the clip stage does; NaN and Inf stay what they are.
    pub(crate) fn scale<T: Pod>(self, elements: &mut [T], factor: f64) {
        match self {
            Self::Single => {
                cast_slice_mut(elements).iter_mut().for_each(|value| *value = scaled(*value, factor))
            }
            Self::Half(half) => {
                cast_slice_mut(elements).iter_mut().for_each(|bits| *bits = half.scaled(*bits, factor))
            }
        }
    }

    /// Whether no element is NaN or Inf, which have all bits of the exponent.
    pub(crate) fn are_finite<T: Pod>(self, elements: &[T]) -> bool {
        let halves = |exponent: u16| {
            let bits: &[u16] = cast_slice(elements);
            bits.iter().fold(true, |all, bits| all & (bits & exponent != exponent))
        };
        match self {
            Self::Single => {
                let bits: &[u32] = cast_slice(elements);
                bits.iter().fold(true, |all, bits| all & (bits & 0x7f80_0000 != 0x7f80_0000))
            }
            Self::Half(Half::F16) => halves(0x7c00),
            Self::Half(Half::Bf16) => halves(0x7f80),
        }
    }
}
