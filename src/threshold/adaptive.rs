//! The adaptive quantile: a bound that moves towards a quantile of the norms, round by round.
//!
//! C ← C · exp(−η(b − γ)), b the fraction of norms at or below C, γ the target, η the rate
//! (Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially private learning with adaptive
//! clipping"). The exponential is computed in integers, so that every device moves C to the same bits.

use crate::error::{Error, Result};

/// Fractions are counted in billionths, so that 0.9 of ten rows is nine of them exactly.
pub(crate) const BILLION: u64 = 1_000_000_000;

/// The settings of an adaptive threshold.
///
/// # Examples
/// ```
/// use byzclip::threshold::Adaptive;
///
/// let robust = Adaptive { target: 0.8, ..Adaptive::default() };
/// assert_eq!(robust.initial, 1.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    /// C of the first round, between `min` and `max`.
    pub initial: f32,
    /// The fraction γ of norms that the bound should not clip: 0 to 1, counted in billionths.
    pub target: f64,
    /// The rate η: 0 to 8. 0.2 moves C by a fifth at most in a round.
    pub rate: f64,
    /// C stays at or above this normal `f32`.
    pub min: f32,
    /// C stays at or below this finite `f32`.
    pub max: f32,
}

impl Default for Adaptive {
    /// For robustness: C = 1 at first, target 0.8, rate 0.2, all normal `f32` allowed.
    fn default() -> Self {
        Self { initial: 1.0, target: 0.8, rate: 0.2, min: f32::MIN_POSITIVE, max: f32::MAX }
    }
}

/// The settings as integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Adaptation {
    pub initial: f32,
    /// The target in billionths.
    pub target: u32,
    /// The rate times log2(e), in units of 2^-24.
    pub rate: u32,
    pub min: f32,
    pub max: f32,
}

impl Adaptive {
    pub(super) fn adaptation(&self) -> Result<Adaptation> {
        let within = |name, value: f64, most: f64, expected| {
            if (0.0..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::Setting { name, got: value.to_string(), expected })
            }
        };
        within("adaptive target", self.target, 1.0, "a fraction from 0 to 1")?;
        within("adaptive rate", self.rate, 8.0, "a number from 0 to 8")?;
        let bounds = self.min >= f32::MIN_POSITIVE && self.max < f32::INFINITY;
        if !bounds || !(self.min..=self.max).contains(&self.initial) {
            return Err(Error::Setting {
                name: "adaptive bounds",
                got: format!("c0 {}, min {}, max {}", self.initial, self.min, self.max),
                expected: "normal numbers with min <= c0 <= max",
            });
        }
        Ok(Adaptation {
            initial: self.initial,
            target: (self.target * BILLION as f64).round() as u32,
            rate: (self.rate * std::f64::consts::LOG2_E * f64::from(1 << 24)).round() as u32,
            min: self.min,
            max: self.max,
        })
    }
}

/// 2^(2^-j) for j = 1 to 24, in units of 2^-31; also in threshold.wgsl.
pub(crate) const ROOTS_OF_TWO: [u32; 24] = [
    3_037_000_500,
    2_553_802_834,
    2_341_847_524,
    2_242_560_872,
    2_194_507_417,
    2_170_868_212,
    2_159_144_272,
    2_153_306_067,
    2_150_392_887,
    2_148_937_775,
    2_148_210_589,
    2_147_847_087,
    2_147_665_360,
    2_147_574_502,
    2_147_529_075,
    2_147_506_361,
    2_147_495_005,
    2_147_489_326,
    2_147_486_487,
    2_147_485_068,
    2_147_484_358,
    2_147_484_003,
    2_147_483_825,
    2_147_483_737,
];

/// The next C, from the bits of this one and the number of norms at or below it.
///
/// No norms say nothing: C stays. The relative error of the factor is below 2^-23.
pub(crate) fn adapt(settings: &Adaptation, bound: u32, within: u32, n: u32) -> u32 {
    if n == 0 {
        return bound;
    }
    // The exponent rate · (target − b), as a fixed-point number with 32 bits after the point.
    let (wanted, got) = (u64::from(settings.target) * u64::from(n), u64::from(within) * BILLION);
    let whole = u128::from(n) * u128::from(BILLION);
    let ratio = ((u128::from(wanted.abs_diff(got)) << 32) / whole).min(u128::from(u32::MAX)) as u64;
    let magnitude = (ratio * u64::from(settings.rate)) >> 24;
    let exponent = if got > wanted { -(magnitude as i64) } else { magnitude as i64 };

    let fraction = exponent as u32;
    let mut power = 1u64 << 31;
    for (j, &root) in ROOTS_OF_TWO.iter().enumerate() {
        if fraction >> (31 - j) & 1 == 1 {
            power = (power * u64::from(root)) >> 31;
        }
    }
    let product = u64::from(bound & 0x007f_ffff | 0x0080_0000) * power;
    let carry = u32::from(product >> 55 != 0);
    // Rounded half up; a mantissa of 2^24 carries into the exponent by itself.
    let mantissa = ((product >> (30 + carry)) + 1) >> 1;
    let field = i64::from(bound >> 23) + i64::from(carry) + (exponent >> 32);
    if field < 1 {
        return settings.min.to_bits();
    }
    if field > 254 {
        return settings.max.to_bits();
    }
    let next = ((field as u32 - 1) << 23) + mantissa as u32;
    next.clamp(settings.min.to_bits(), settings.max.to_bits())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_holds_the_roots_of_two() {
        for (j, &root) in ROOTS_OF_TWO.iter().enumerate() {
            let exact = (0.5f64.powi(j as i32 + 1)).exp2() * f64::from(1u32 << 31);
            assert_eq!(root, exact.round() as u32, "{j}");
        }
    }

    #[test]
    fn a_step_is_the_exponential_of_andrew_et_al() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let n = (state >> 40) as u32 % 2000 + 1;
            let within = (state >> 20) as u32 % (n + 1);
            let adaptive = Adaptive {
                target: (state >> 33) as f64 % 1000.0 / 1000.0,
                rate: (state >> 50) as f64 / 4000.0,
                ..Adaptive::default()
            };
            let c = f32::from_bits(0x2000_0000 + (state >> 35) as u32 % 0x3000_0000);
            let next = f32::from_bits(adapt(&adaptive.adaptation().unwrap(), c.to_bits(), within, n));
            let b = f64::from(within) / f64::from(n);
            let exact = f64::from(c) * (-adaptive.rate * (b - adaptive.target)).exp();
            let error = (f64::from(next) - exact).abs() / exact;
            assert!(error < 2e-7, "{c} {within}/{n} {adaptive:?}: {next} {exact}");
        }
    }

    #[test]
    fn the_estimate_stays_within_its_bounds() {
        let adaptive = Adaptive { rate: 8.0, target: 1.0, max: 3.0, ..Adaptive::default() };
        assert_eq!(adapt(&adaptive.adaptation().unwrap(), 1.0f32.to_bits(), 0, 5), 3.0f32.to_bits());
        let adaptive = Adaptive { rate: 8.0, target: 0.0, min: 0.5, ..Adaptive::default() };
        assert_eq!(adapt(&adaptive.adaptation().unwrap(), 1.0f32.to_bits(), 5, 5), 0.5f32.to_bits());
        let free = Adaptive { rate: 8.0, target: 0.0, ..Adaptive::default() }.adaptation().unwrap();
        assert_eq!(adapt(&free, f32::MIN_POSITIVE.to_bits(), 5, 5), f32::MIN_POSITIVE.to_bits());
        let free = Adaptive { rate: 8.0, target: 1.0, ..Adaptive::default() }.adaptation().unwrap();
        assert_eq!(adapt(&free, f32::MAX.to_bits(), 0, 5), f32::MAX.to_bits());
    }
}
