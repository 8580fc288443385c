//! Half precision: batches whose elements are stored as f16 (IEEE 754 binary16) or bf16 (bfloat16).
//!
//! Storage is half, arithmetic is not. Every half is an `f32`, so norms, bounds, factors and statuses are
//! those of the widened values, with all that [`norms`](crate::norms) and [`threshold`](crate::threshold)
//! promise. Only what is written is a half again, and it is rounded towards zero: no magnitude grows, and
//! so the clipped row's exact norm is at most λ, here too (NUMERICS.md, "Half precision").
//!
//! The stages take halves by their bits, `&[u16]`, with the format beside them: [`Backend::run_half`] and
//! its neighbours on the host, `Gpu::plan_half` in a buffer on a device.
//!
//! # Examples
//! ```
//! use byzclip::{Backend, Clipping, Cpu, Half, Layout, Status};
//!
//! // Two clients; the second is hostile. 3.0 and 4.0 are 0x4200 and 0x4400.
//! let mut updates = [0x3800, 0x0001, /* client 1 */ 0x4200, 0x4400];
//! let layout = Layout::dense(2, 2)?;
//! let report = Cpu::new()?.run_half(&layout, Half::F16, &mut updates, &Clipping::fixed(1.0))?;
//! assert_eq!(report.rows[1].norm, 5.0);
//! assert_eq!(report.rows[1].status, Status::Clipped);
//! assert_eq!(updates[..2], [0x3800, 0x0001]);
//! assert!(Half::F16.widen(updates[2]).hypot(Half::F16.widen(updates[3])) <= 1.0);
//! # Ok::<(), byzclip::Error>(())
//! ```
//!
//! [`Backend::run_half`]: crate::Backend::run_half

use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::{Error, Result};
use crate::threshold::{Decision, check_decisions};

/// A format of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE 754 binary16: 11 significant bits, up to 65,504, subnormals in steps of 2^-24.
    F16,
    /// bfloat16: the upper half of an `f32`, 8 significant bits, the range of `f32`.
    Bf16,
}

/// The bits of an f32's exponent field are this much larger than those of the same f16's, at bit 23.
const F16_REBIAS: u32 = (127 - 15) << 23;

/// 2^-14, the smallest normal f16, and 2^16, behind the largest, as bits of an `f32`.
const F16_NORMAL: u32 = (127 - 14) << 23;
const F16_BEYOND: u32 = (127 + 16) << 23;

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

impl Half {
    /// The same value as an `f32`; every half is one. NaN keeps its payload.
    #[must_use]
    #[inline(always)]
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Self::F16 => widen_f16(bits),
            Self::Bf16 => f32::from_bits(u32::from(bits) << 16),
        }
    }

    /// The half nearest to `value` on the side of zero, with its sign: subnormals are kept, and beyond the
    /// largest half it is that one. Inf stays Inf, NaN stays NaN.
    #[must_use]
    #[inline(always)]
    pub fn truncate(self, value: f32) -> u16 {
        match self {
            Self::F16 => truncate_f16(value),
            Self::Bf16 => truncate_bf16(value),
        }
    }

    /// `factor · value`, the exact product, cut to a half towards zero; a zero of the same sign below 2^-126. NaN and Inf stay what
    /// they are.
    ///
    /// The factor is one of the threshold stage, so the product is exact in `f64`. Below
    /// 2^-126 is where an `f32` product becomes zero too; among f16 nothing but zero is that small.
    #[must_use]
    #[inline(always)]
    pub fn scaled(self, bits: u16, factor: f64) -> u16 {
        const BELOW_24_BITS: u64 = (1 << 29) - 1;
        let value = self.widen(bits);
        let product = f64::from(value) * factor;
        // Cut to 24 bits it is an f32, and cutting twice is cutting once.
        let cut = f64::from_bits(product.to_bits() & !BELOW_24_BITS) as f32;
        let vanishes = product.abs() < f64::from(f32::MIN_POSITIVE);
        let finite = if vanishes { bits & 0x8000 } else { self.truncate(cut) };
        if value.is_finite() { finite } else { bits }
    }

    /// The value cut to the largest half that is at most `bound`; its sign and, where it is within, all its
    /// bits stay.
    #[must_use]
    #[inline(always)]
    pub fn clamped(self, bits: u16, bound: f32) -> u16 {
        // As integers, magnitudes have the order of their values.
        (bits & 0x8000) | (bits & 0x7fff).min(self.truncate(bound) & 0x7fff)
    }

    /// [`Half::scaled`] from a product in `f32`, and whether that is certain: the product is rounded to nearest, so
    /// where it is a half, or not a normal number, the exact one may lie below.
    ///
    /// Several times as fast in a loop as the product in `f64`, and uncertain for one value in 2^13 or fewer.
    #[inline(always)]
    pub(crate) fn scaled_fast(self, bits: u16, factor: f32) -> (u16, bool) {
        let product = (self.widen(bits) * factor).to_bits();
        let (magnitude, sign) = (product & MAGNITUDE, bits & 0x8000);
        let (cut, below) = match self {
            Self::F16 => (truncate_f16_magnitude(magnitude), 0x1fff),
            Self::Bf16 => (magnitude >> 16, 0xffff),
        };
        let open = magnitude & below == 0 || magnitude < f32::MIN_POSITIVE.to_bits();
        (sign | cut as u16, !open || bits & 0x7fff == 0)
    }

    /// The values of halves, `[n]` to `[n]`.
    #[must_use]
    pub fn widened(self, bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|&bits| self.widen(bits)).collect()
    }

    /// What a half counts as in a mean: the value of what the clip stage would write, and 0 for what is not finite.
    pub(crate) fn clipped(self, bits: u16, decision: &Decision, granularity: Granularity) -> f32 {
        let bits = match (decision.status, granularity) {
            (Status::Zeroed | Status::Kept, _) => 0,
            (Status::Untouched | Status::OutOfScope, _) => bits,
            (Status::Clipped, Granularity::Coordinate) => self.clamped(bits, decision.bound),
            (Status::Clipped, Granularity::Row | Granularity::Segment) => self.scaled(bits, decision.factor),
        };
        let value = self.widen(bits);
        if value.is_finite() { value } else { 0.0 }
    }
}

/// Branch-free, so that loops over it are vectorised, and without arithmetic on subnormal `f32`, which is slow
/// on some processors.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let normal = magnitude + F16_REBIAS;
    // 2^-14 and the fraction, less 2^-14: exact.
    let subnormal = f32::from_bits(magnitude + F16_NORMAL) - f32::from_bits(F16_NORMAL);
    let finite = if magnitude < 1 << 23 { subnormal.to_bits() } else { normal };
    let widened = if magnitude >= 0x1f << 23 { magnitude | INFINITY } else { finite };
    f32::from_bits(sign | widened)
}

#[inline(always)]
fn truncate_f16(value: f32) -> u16 {
    let magnitude = value.to_bits() & MAGNITUDE;
    let finite = if magnitude >= F16_BEYOND { 0x7bff } else { truncate_f16_magnitude(magnitude) };
    let special = if magnitude > INFINITY { 0x7e00 | magnitude >> 13 & 0x3ff } else { 0x7c00 };
    let truncated = if magnitude >= INFINITY { special } else { finite };
    (value.to_bits() >> 16 & 0x8000 | truncated) as u16
}

/// The bits of an f16 magnitude from those of an `f32` below 2^16.
#[inline(always)]
fn truncate_f16_magnitude(magnitude: u32) -> u32 {
    let normal = magnitude.wrapping_sub(F16_REBIAS) >> 13;
    // In units of 2^-24; whatever is below one of them is shifted out.
    let significand = magnitude & 0x007f_ffff | 0x0080_0000;
    let subnormal = significand >> 126u32.wrapping_sub(magnitude >> 23).min(31);
    if magnitude < F16_NORMAL { subnormal } else { normal }
}

#[inline(always)]
fn truncate_bf16(value: f32) -> u16 {
    let upper = (value.to_bits() >> 16) as u16;
    // A NaN whose payload is all below would become Inf.
    if value.is_nan() { upper | 0x40 } else { upper }
}

/// Checks what halves do not have: a centre.
pub(crate) fn check(layout: &Layout, length: usize, clipping: &Clipping) -> Result<()> {
    layout.check(length)?;
    if clipping.center.is_some() { Err(no_center()) } else { Ok(()) }
}

/// Why halves are not clipped around a centre; the command line says it before it reads one.
#[doc(hidden)]
#[must_use]
pub fn no_center() -> Error {
    Error::Setting {
        name: "center",
        got: "a centre for rows in half precision".into(),
        expected: "no centre, or rows in f32: between a value and the centre there need be no half to write",
    }
}

/// The specification of the clip stage on halves.
pub(crate) fn clip(
    layout: &Layout,
    half: Half,
    data: &mut [u16],
    clipping: &Clipping,
    decisions: &[Decision],
) -> Result<()> {
    check(layout, data.len(), clipping)?;
    check_decisions(layout, clipping.granularity, decisions)?;
    for (span, decision) in decisions.iter().enumerate() {
        let values = &mut data[layout.span(clipping.granularity, span)];
        match (decision.status, clipping.granularity) {
            (Status::Clipped, Granularity::Coordinate) => {
                values.iter_mut().for_each(|bits| *bits = half.clamped(*bits, decision.bound));
            }
            (Status::Clipped, Granularity::Row | Granularity::Segment) => {
                values.iter_mut().for_each(|bits| *bits = half.scaled(*bits, decision.factor));
            }
            (Status::Zeroed, _) => values.fill(0),
            (Status::Untouched | Status::OutOfScope | Status::Kept, _) => {}
        }
    }
    Ok(())
}

/// The decisions of a batch whose clip stage has run: nothing is left to clip, and what does not count still does not.
pub(crate) fn settled(decisions: &[Decision]) -> Vec<Decision> {
    let settle = |decision: &Decision| match decision.status {
        Status::Clipped => Decision { status: Status::Untouched, factor: 1.0, ..*decision },
        _ => *decision,
    };
    decisions.iter().map(settle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever instructions this processor takes instead.
    #[test]
    fn fast_products_are_right_where_they_are_certain_and_most_are() {
        for half in [Half::F16, Half::Bf16] {
            let (mut open, mut all) = (0, 0);
            for factor in [0.749_999_94f32, 0.5, 0.33, 1e-3, 1e-5, 3e-8, 1e-30, f32::MIN_POSITIVE] {
                for bits in (0..=u16::MAX).filter(|bits| half.widen(*bits).is_finite()) {
                    let (scaled, certain) = half.scaled_fast(bits, factor);
                    let exact = half.scaled(bits, f64::from(factor));
                    assert!(scaled == exact || !certain, "{half:?} {bits:#06x} · {factor:e}");
                    open +=
                        usize::from(!certain && exact & 0x7fff != 0 && factor.to_bits() & 0x007f_ffff != 0);
                    all += 1;
                }
            }
            assert!(open * 100 < all, "{half:?}: {open} of {all}");
        }
    }
}
