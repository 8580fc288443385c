//! What the elements of a benchmark's batch are stored as.

use std::fmt;
use std::str::FromStr;

use bytemuck::{Pod, Zeroable};

use crate::aggregate::Weights;
use crate::backend::Backend;
use crate::backend::cpu::half_simd;
use crate::batch::Layout;
use crate::clip::Clipping;
use crate::error::{Error, Result};
use crate::half::Half;
use crate::norms::Norms;
use crate::numerics::scaled;
use crate::report::Report;
use crate::threshold::Decision;

/// The type of a batch's elements, as options and records name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Its name in options and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The format, where it is a half.
    #[must_use]
    pub const fn half(self) -> Option<Half> {
        match self {
            Self::F32 => None,
            Self::F16 => Some(Half::F16),
            Self::Bf16 => Some(Half::Bf16),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| Error::Setting {
            name: "dtype",
            got: text.to_owned(),
            expected: "f32, f16 or bf16",
        })
    }
}

/// The bits of an IEEE 754 binary16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F16(pub u16);

/// The bits of a bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// An element of a batch: its values, and how the library is called with it.
pub trait Element: Pod + PartialEq + Send + Sync {
    /// Its type.
    const DTYPE: Dtype;

    /// What the ceiling of scaling multiplies by: what no format has to round.
    const RESCALED: f32;

    /// The element nearest to a finite value within its range, ties to even.
    fn nearest(value: f32) -> Self;

    /// Its value.
    fn value(self) -> f32;

    /// Its bits.
    fn bits(self) -> u32;

    /// The element with these bits.
    fn of_bits(bits: u32) -> Self;

    /// What the clip stage writes by its specification.
    #[must_use]
    fn clipped(self, factor: f64) -> Self;

    /// The distance to the next larger magnitude, where the element itself was rounded; 0 of `f32`, whose rounding
    /// counts among those of the arithmetic.
    fn spacing(self) -> f32;

    /// Its value times [`Element::RESCALED`], by the cheapest instruction for it.
    #[must_use]
    fn rescaled(self) -> Self;

    /// Writes the values of elements.
    fn widen(elements: &[Self], values: &mut [f32]);

    /// Writes the elements nearest to values.
    fn narrow(values: &[f32], elements: &mut [Self]);

    /// [`Backend::norms`] or [`Backend::norms_half`].
    ///
    /// # Errors
    /// Those of the backend.
    fn norms(backend: &dyn Backend, layout: &Layout, data: &[Self], clipping: &Clipping) -> Result<Norms>;

    /// [`Backend::run`] or [`Backend::run_half`].
    ///
    /// # Errors
    /// Those of the backend.
    fn run(backend: &dyn Backend, layout: &Layout, data: &mut [Self], clipping: &Clipping) -> Result<Report>;

    /// [`Backend::mean`] or [`Backend::mean_half`].
    ///
    /// # Errors
    /// Those of the backend.
    fn mean(
        backend: &dyn Backend,
        layout: &Layout,
        data: &[Self],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>>;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const RESCALED: f32 = 0.5;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    fn of_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }

    fn clipped(self, factor: f64) -> Self {
        scaled(self, factor)
    }

    fn spacing(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn rescaled(self) -> Self {
        self * Self::RESCALED
    }

    #[inline(always)]
    fn widen(elements: &[Self], values: &mut [f32]) {
        values.copy_from_slice(elements);
    }

    #[inline(always)]
    fn narrow(values: &[f32], elements: &mut [Self]) {
        elements.copy_from_slice(values);
    }

    fn norms(backend: &dyn Backend, layout: &Layout, data: &[Self], clipping: &Clipping) -> Result<Norms> {
        backend.norms(layout, data, clipping)
    }

    fn run(backend: &dyn Backend, layout: &Layout, data: &mut [Self], clipping: &Clipping) -> Result<Report> {
        backend.run(layout, data, clipping)
    }

    fn mean(
        backend: &dyn Backend,
        layout: &Layout,
        data: &[Self],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        backend.mean(layout, data, clipping, decisions, weights)
    }
}

/// What both halves have in common; `$widen` and `$narrow` are their loops.
macro_rules! half_element {
    ($element:ident, $half:expr, $nearest:expr, $widen:expr, $narrow:expr) => {
        impl Element for $element {
            const DTYPE: Dtype = Dtype::$element;
            const RESCALED: f32 = -1.0;

            #[inline(always)]
            fn nearest(value: f32) -> Self {
                Self($nearest(value))
            }

            #[inline(always)]
            fn value(self) -> f32 {
                $half.widen(self.0)
            }

            #[inline(always)]
            fn bits(self) -> u32 {
                self.0.into()
            }

            fn of_bits(bits: u32) -> Self {
                Self(bits as u16)
            }

            fn clipped(self, factor: f64) -> Self {
                Self($half.scaled(self.0, factor))
            }

            fn spacing(self) -> f32 {
                let magnitude = self.0 & 0x7fff;
                $half.widen(magnitude + 1) - $half.widen(magnitude)
            }

            #[inline(always)]
            fn rescaled(self) -> Self {
                Self(self.0 ^ 0x8000)
            }

            #[inline(always)]
            fn widen(elements: &[Self], values: &mut [f32]) {
                $widen(bytemuck::cast_slice(elements), values);
            }

            #[inline(always)]
            fn narrow(values: &[f32], elements: &mut [Self]) {
                $narrow(values, bytemuck::cast_slice_mut(elements));
            }

            fn norms(
                backend: &dyn Backend,
                layout: &Layout,
                data: &[Self],
                clipping: &Clipping,
            ) -> Result<Norms> {
                backend.norms_half(layout, $half, bytemuck::cast_slice(data), clipping)
            }

            fn run(
                backend: &dyn Backend,
                layout: &Layout,
                data: &mut [Self],
                clipping: &Clipping,
            ) -> Result<Report> {
                backend.run_half(layout, $half, bytemuck::cast_slice_mut(data), clipping)
            }

            fn mean(
                backend: &dyn Backend,
                layout: &Layout,
                data: &[Self],
                clipping: &Clipping,
                decisions: &[Decision],
                weights: &Weights,
            ) -> Result<Vec<f32>> {
                backend.mean_half(layout, $half, bytemuck::cast_slice(data), clipping, decisions, weights)
            }
        }
    };
}

half_element!(F16, Half::F16, nearest_f16, widen_f16, narrow_f16);
half_element!(Bf16, Half::Bf16, nearest_bf16, widen_bf16, narrow_bf16);

#[inline(always)]
fn nearest_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[inline(always)]
fn nearest_f16(value: f32) -> u16 {
    let below = Half::F16.truncate(value);
    let up = |bits: u16| Half::F16.widen(bits + 1);
    // Both differences are exact: the neighbours are within a factor of two, or subnormal.
    let (from_below, from_above) = ((value - Half::F16.widen(below)).abs(), (up(below) - value).abs());
    let away = from_above < from_below || from_above == from_below && below & 1 == 1;
    below + u16::from(away)
}

#[inline(always)]
fn widen_bf16(bits: &[u16], values: &mut [f32]) {
    values.iter_mut().zip(bits).for_each(|(value, bits)| *value = Half::Bf16.widen(*bits));
}

#[inline(always)]
fn narrow_bf16(values: &[f32], bits: &mut [u16]) {
    bits.iter_mut().zip(values).for_each(|(bits, value)| *bits = nearest_bf16(*value));
}

#[inline(always)]
fn widen_f16(bits: &[u16], values: &mut [f32]) {
    if !half_simd::widen_f16(bits, values) {
        values.iter_mut().zip(bits).for_each(|(value, bits)| *value = Half::F16.widen(*bits));
    }
}

#[inline(always)]
fn narrow_f16(values: &[f32], bits: &mut [u16]) {
    if !half_simd::narrow_f16(values, bits) {
        bits.iter_mut().zip(values).for_each(|(bits, value)| *bits = nearest_f16(*value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite half survives, and between neighbours the closer one wins, the even one in the middle.
    fn is_nearest<E: Element + fmt::Debug>(half: Half) {
        let finite = |bits: &u32| half.widen(*bits as u16).is_finite();
        for bits in (0..0x7fff).take_while(|bits| finite(&(bits + 1))) {
            let (below, above) = (E::of_bits(bits), E::of_bits(bits + 1));
            let middle = ((f64::from(below.value()) + f64::from(above.value())) / 2.0) as f32;
            let even = if bits % 2 == 0 { below } else { above };
            let mut found = [E::zeroed(); 5];
            let values = [below.value(), middle.next_down(), middle, middle.next_up(), -middle];
            E::narrow(&values, &mut found);
            // The middle of bf16's least steps is an f32 too, but nothing lies beside it.
            if middle.next_down() > below.value() {
                assert_eq!(found[..4], [below, below, even, above], "{bits:#06x}");
                assert_eq!(found[4].bits(), even.bits() | 0x8000, "{bits:#06x}");
            }
            values.iter().zip(found).for_each(|(&value, found)| assert_eq!(E::nearest(value), found));
            let mut widened = [0.0];
            E::widen(&[above], &mut widened);
            assert_eq!((widened[0], above.rescaled().value()), (above.value(), -above.value()));
        }
    }

    #[test]
    fn elements_are_rounded_to_nearest() {
        is_nearest::<F16>(Half::F16);
        is_nearest::<Bf16>(Half::Bf16);
    }

    #[test]
    fn names_are_read_back_and_others_refused() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        for wrong in ["", "F16", "half", "f64"] {
            assert!(matches!(wrong.parse::<Dtype>(), Err(Error::Setting { name: "dtype", .. })), "{wrong}");
        }
    }
}
