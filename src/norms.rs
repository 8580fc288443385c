//! Stage 1: the correctly rounded L2 norm of every row or segment.

use bytemuck::{Pod, Zeroable};

/// How a rounded norm relates to the exact one, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NormClass {
    /// The exact norm is less than the rounded one.
    Below = 0,
    /// The exact norm is the rounded one.
    Exact = 1,
    /// The exact norm is greater than the rounded one.
    Above = 2,
    /// The row holds NaN or Inf.
    NonFinite = 3,
    /// The row is out of scope and was not read.
    OutOfScope = 4,
}

/// The norm of one row or segment: the `f32` nearest to the exact norm, and on which side of it
/// the exact norm lies.
///
/// With the side, `exact norm > λ` is decided exactly from 8 bytes, long after the row was read.
/// Norms above the largest `f32` keep their value internally, so such a row is still clipped right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Norm {
    /// The bits of the norm as an `f32` whose exponent field may grow past 254.
    wide: u32,
    class: u32,
}

/// The bits of +inf: every finite `f32` is below, every wide norm above the range is at or beyond it.
pub(crate) const INFINITY_BITS: u32 = 0x7f80_0000;

impl Norm {
    pub(crate) const NON_FINITE: Self = Self { wide: 0, class: NormClass::NonFinite as u32 };
    pub(crate) const OUT_OF_SCOPE: Self = Self { wide: 0, class: NormClass::OutOfScope as u32 };

    pub(crate) const fn new(wide: u32, class: NormClass) -> Self {
        Self { wide, class: class as u32 }
    }

    pub(crate) const fn wide(self) -> u32 {
        self.wide
    }

    /// How the rounded norm relates to the exact one.
    #[must_use]
    pub const fn class(self) -> NormClass {
        match self.class {
            0 => NormClass::Below,
            1 => NormClass::Exact,
            2 => NormClass::Above,
            3 => NormClass::NonFinite,
            _ => NormClass::OutOfScope,
        }
    }

    /// The norm, in the unit of the parameters: +inf where the exact norm is too large for an `f32` (by
    /// half a unit in the last place or more, as IEEE 754 rounds), NaN where the row holds NaN or Inf or was out of scope.
    #[must_use]
    pub const fn value(self) -> f32 {
        match self.class() {
            NormClass::NonFinite | NormClass::OutOfScope => f32::NAN,
            _ if self.wide >= INFINITY_BITS => f32::INFINITY,
            _ => f32::from_bits(self.wide),
        }
    }

    /// Whether the exact norm is greater than `bound`; false for rows without a norm.
    ///
    /// `bound` is not negative and not NaN.
    #[must_use]
    pub const fn exceeds(self, bound: f32) -> bool {
        let bits = bound.to_bits() & 0x7fff_ffff;
        match self.class() {
            NormClass::NonFinite | NormClass::OutOfScope => false,
            _ if bits == INFINITY_BITS => false,
            NormClass::Above => self.wide >= bits,
            NormClass::Below | NormClass::Exact => self.wide > bits,
        }
    }
}

impl std::fmt::Debug for Norm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Norm({:?}, {:#010x}, {:?})", self.value(), self.wide, self.class())
    }
}

/// The output of the norms stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Norms {
    /// One norm per row.
    pub rows: Vec<Norm>,
    /// One norm per segment, row by row; empty at row granularity.
    pub segments: Vec<Norm>,
}

impl Norms {
    /// The norms that bounds apply to: of the segments where there are any asked for, else of the rows.
    #[must_use]
    pub fn spans(&self, granularity: crate::batch::Granularity) -> &[Norm] {
        match granularity {
            crate::batch::Granularity::Row | crate::batch::Granularity::Coordinate => &self.rows,
            crate::batch::Granularity::Segment => &self.segments,
        }
    }
}
