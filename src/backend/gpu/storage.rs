//! How elements lie in a buffer, and how kernels reach them there.

use crate::half::Half;

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

impl Storage {
    /// Bytes of an element.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Single => 4,
            Self::Half(_) => 2,
        }
    }
}
