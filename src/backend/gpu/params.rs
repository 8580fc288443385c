//! What host and kernels tell each other in structs of common.wgsl: the params, the words of a run, and decisions.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::geometry::Portion;
use crate::batch::Granularity;
use crate::clip::{NonFinite, Status};
use crate::norms::Norm;
use crate::numerics::power_of_two;
use crate::report::Strategy;
use crate::threshold::Decision;

/// Which of a plan's copies of the params a dispatch reads: that of the stages alone,
pub(super) const OF_STAGES: usize = 0;
/// that of a run of all stages,
pub(super) const OF_RUN: usize = 1;
/// that of a run whose rows are decided alone, which has no threshold stage,
pub(super) const OF_DECIDED_ALONE: usize = 2;
/// and from here on those of one portion each, in both kinds of run.
pub(super) const OF_PORTIONS: usize = 3;

/// Bytes of the run before the list of what is open; RUN_LIST of common.wgsl.
pub(super) const RUN_BYTES: u64 = 32;

/// Words of the run, and bytes of those that count what is open; RUN_* of common.wgsl.
pub(super) const RUN_NORMS: usize = 1;
pub(super) const RUN_DECISIONS: usize = 2;
pub(super) const RUN_OPEN: Range<u64> = 12..20;

/// `Params` of common.wgsl.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub zero: u32,
    pub spans: u32,
    pub bounded: u32,
    pub non_finite: u32,
    pub force_exact: u32,
    pub groups: u32,
    pub coordinates: u32,
    pub tiles_per_row: u32,
    pub first: u32,
    pub end: u32,
    pub clips: u32,
    pub decides: u32,
    pub tiles_in_scope: u32,
}

/// CLIPS_* of common.wgsl.
pub(super) const CLIPS_ALL: u32 = 0;
pub(super) const CLIPS_OPEN: u32 = 1;
pub(super) const CLIPS_NONE: u32 = 2;

impl Params {
    /// A plan's copies, in the order of [`OF_STAGES`] and those behind it, from that of the stages alone.
    ///
    /// Rows that are decided alone are clipped in the fused kernel, or by the clips of portions, and what is behind them clips only what
    /// these leave; tiles and short rows are clipped by the clip stage. A recording without the threshold stage clips nothing once rows are
    /// not decided alone.
    pub(super) fn copies(
        self,
        strategy: Strategy,
        decides_alone: bool,
        tiles_in_scope: u32,
        portions: &[Portion],
    ) -> Vec<Self> {
        let of_run = match strategy {
            Strategy::Fused if decides_alone => Self { clips: CLIPS_OPEN, decides: 1, ..self },
            Strategy::Grouped if decides_alone => Self { clips: CLIPS_NONE, ..self },
            _ => self,
        };
        let of_decided_alone = match strategy {
            _ if !decides_alone => Self { clips: CLIPS_NONE, tiles_in_scope, ..self },
            Strategy::Fused => Self { clips: CLIPS_OPEN, decides: 1, ..self },
            _ => Self { decides: 1, tiles_in_scope, ..self },
        };
        let of_portions = portions.iter().map(|portion| Self {
            first: portion.spans.start as u32,
            end: portion.spans.end as u32,
            clips: if decides_alone { CLIPS_ALL } else { CLIPS_NONE },
            decides: u32::from(decides_alone),
            ..self
        });
        [self, of_run, of_decided_alone].into_iter().chain(of_portions).collect()
    }
}

/// The code of a policy in the params, and of one that decisions were made under.
pub(super) fn policy_code(policy: NonFinite) -> u32 {
    match policy {
        NonFinite::Zero => 0,
        NonFinite::Error => 1,
        NonFinite::Keep => 2,
    }
}

/// `Decision` of common.wgsl.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DeviceDecision {
    pub norm: Norm,
    pub mantissa: f32,
    pub exponent: i32,
    pub bound: f32,
    pub status: u32,
}

/// The shaders' status of a row that is clipped coordinate by coordinate.
pub(super) const CUT: u32 = 5;

/// The exponent of a factor of 0 on the device: every product vanishes.
const VANISHING: i32 = -1000;

impl DeviceDecision {
    pub(super) fn from_host(decision: &Decision, granularity: Granularity) -> Self {
        let bits = decision.factor.to_bits();
        let (mantissa, exponent) = if decision.factor == 0.0 {
            (0.0, VANISHING)
        } else {
            // A factor has 24 significant bits, so its mantissa is an f32.
            let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52) as f32;
            (mantissa, (bits >> 52 & 0x7ff) as i32 - 1023)
        };
        Self {
            norm: decision.norm,
            mantissa,
            exponent,
            bound: decision.bound,
            status: match (decision.status, granularity) {
                (Status::Clipped, Granularity::Coordinate) => CUT,
                (status, _) => status as u32,
            },
        }
    }

    pub(super) fn to_host(self) -> Decision {
        let factor =
            if self.mantissa == 0.0 { 0.0 } else { f64::from(self.mantissa) * power_of_two(self.exponent) };
        let status = if self.status == CUT { Status::Clipped } else { Status::from_code(self.status) };
        Decision { norm: self.norm, bound: self.bound, factor, status }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_survive_the_way_to_the_device_and_back() {
        for factor in [1.0, 0.5, 0.999_999_880_790_710_4, 0.0, power_of_two(-290), power_of_two(-149) * 1.5] {
            let decision = Decision { norm: Norm::NON_FINITE, bound: 2.0, factor, status: Status::Clipped };
            assert_eq!(DeviceDecision::from_host(&decision, Granularity::Row).to_host(), decision);
        }
    }
}
