//! The check of a device before its first plan of a tuning: are its fast sums as exact as their proof says?
//!
//! The proof rests on the compiler keeping the compensation (see `opaque` in pairs.wgsl). Where a
//! driver finds a way around that, sums would be wrong by an ulp and no error would say so. So every
//! device sums a small batch in the storage of its plans, as short rows, as long ones, and fused where plans of the tuning may be, with a centre where plans
//! have one, against the exact sum on the host, and means before the first plan of one; one that fails takes exact sums only, slower and right, and the report says so.
//!
//! Sums in f64 rest on one thing more, that NaN and Inf stay what they are: the batch has some.
//!
//! The products of a clip have no other way than the device's own, rounded to the nearest: one that rounds otherwise is of no use.
//!
//! Likewise is checked, before it is taken, its own conversion of f16, which may flush subnormals: a device that fails widens by integers.

use std::sync::{Arc, OnceLock};

use bytemuck::Pod;

use super::context::GpuContext;
use super::kernels::COMPILING;
use super::session::Session;
use super::storage::{Storage, Sums};
use crate::aggregate::Weights;
use crate::backend::{Backend, Reference};
use crate::batch::Layout;
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};
use crate::half::Half;
use crate::norms::Norms;
use crate::threshold::{Decision, Threshold};

/// What goes on where an error is one of arithmetic.
const CHECKING: &str = "checking the device's arithmetic";

/// Rows of the batch: an uncompensated sum rounds about one row in three wrong.
const ROWS: usize = 64;
/// Elements of a row: several groups of four for every invocation of a workgroup, and a remainder.
const PARAMS: usize = 1501;

/// Elements that a sum has to show: in the middle of a row, and first and last in one, of either sign.
const NOT_FINITE: [(usize, f32); 4] = [
    (7 * PARAMS + PARAMS / 2, f32::NAN),
    (13 * PARAMS + PARAMS / 3, f32::NEG_INFINITY),
    (20 * PARAMS, f32::INFINITY),
    (34 * PARAMS - 1, f32::NEG_INFINITY),
];

/// Coordinates of a mean: an uncompensated sum rounds many of them wrong.
const COORDINATES: usize = 301;

/// Elements of a tile that is so short that a row has too many tiles for one workgroup to sum it exactly.
const SHORT_TILE: u32 = 64;

impl GpuContext {
    /// Checks the device's norms and products, once: those of updates in this storage, or those around a centre; and then its conversion
    /// of f16, where that is to be used.
    pub(super) fn ensure_checked(&self, storage: Storage, centered: bool) -> Result<()> {
        let sums = Sums::of(storage, centered);
        ensure(&self.fast_sums[sums.index()], "norms", |fast| all_kinds_are_right(self, fast, sums))?;
        if storage == Storage::Half(Half::F16) && self.tuning.unpacks && self.unpacking.get().is_none() {
            let is_right = every_half_is_right(self)?;
            self.unpacking.get_or_init(|| is_right);
        }
        Ok(())
    }

    /// Checks the device's means, once: those of updates, or those around a centre.
    pub(super) fn ensure_means_checked(&self, centered: bool) -> Result<()> {
        let are_right = |fast| means_are_right(self, fast, centered);
        ensure(&self.fast_means[usize::from(centered)], "means", are_right)
    }
}

/// Notes whether fast sums are right; where exact ones are not either, the device is of no use.
fn ensure(checked: &OnceLock<bool>, what: &str, are_right: impl Fn(FastSums) -> Result<bool>) -> Result<()> {
    if checked.get().is_some() {
        return Ok(());
    }
    let fast = are_right(FastSums::Allowed)?;
    if !fast && !are_right(FastSums::Forbidden)? {
        return Err(Error::Gpu {
            during: CHECKING,
            message: format!("wrong {what}, also from integer sums"),
        });
    }
    checked.get_or_init(|| fast);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FastSums {
    Allowed,
    Forbidden,
}

fn all_kinds_are_right(context: &GpuContext, fast: FastSums, sums: Sums) -> Result<bool> {
    // As short rows, as long ones, and fused where plans may be: the kernels differ. So do those of exact sums where rows
    // have many tiles; they matter where all sums are exact.
    let (long, own) = (PARAMS as u32, context.tuning.tile);
    let many = (fast == FastSums::Forbidden).then_some((0, 0, SHORT_TILE));
    let kinds = [(0, 0, own), (long, 0, own), (0, long, own)].into_iter().chain(many);
    for (short_row, fused_row, tile) in kinds {
        if fused_row > context.tuning.fused_row {
            continue;
        }
        let mut context = context.clone();
        (context.tuning.short_row, context.tuning.short_rows) = (short_row, 0);
        (context.tuning.fused_row, context.tuning.tile) = (fused_row, tile);
        context.fast_sums = Arc::new(Sums::ALL.map(|_| OnceLock::from(fast == FastSums::Allowed)));
        if !kind_is_right(&context, sums)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn kind_is_right(context: &GpuContext, sums: Sums) -> Result<bool> {
    let layout = Layout::dense(ROWS, PARAMS)?;
    let mut clipping = Clipping::default();
    if let Sums::Halves(half) = sums {
        // Of several sizes, because the squares of a few bits and one size have sums that an f32 holds.
        let sized = |i: usize| pseudo_random(i) * 0.5f32.powi((i / 7 % 6) as i32);
        let mut data: Vec<u16> = (0..layout.len()).map(|i| half.truncate(sized(i))).collect();
        NOT_FINITE.iter().for_each(|&(at, value)| data[at] = half.truncate(value));
        let norms = Reference.norms_half(&layout, half, &data, &clipping)?;
        clipping.threshold = Threshold::Fixed(middle(&norms));
        let clip = |data: &mut [u16], decisions: &[Decision]| {
            Reference.clip_half(&layout, half, data, &clipping, decisions)
        };
        return run_is_right(context, Storage::Half(half), &layout, &clipping, data, &norms, clip);
    }
    let mut data: Vec<f32> = (0..layout.len()).map(pseudo_random).collect();
    NOT_FINITE.iter().for_each(|&(at, value)| data[at] = value);
    if sums == Sums::Differences {
        // Less than half a unit in the last place of the elements: every difference is rounded up, by a good part of
        // that, and so a sum without compensation is too large in a third of all rows.
        let center: Vec<f32> = (0..PARAMS).map(|i| pseudo_random(!i) * f32::EPSILON / 4.0).collect();
        clipping = clipping.around(center);
    }
    let norms = Reference.norms(&layout, &data, &clipping)?;
    clipping.threshold = Threshold::Fixed(middle(&norms));
    let clip = |data: &mut [f32], decisions: &[Decision]| Reference.clip(&layout, data, &clipping, decisions);
    run_is_right(context, Storage::Single, &layout, &clipping, data, &norms, clip)
}

/// A bound that about half of the rows are above.
fn middle(norms: &Norms) -> f32 {
    let mut values: Vec<f32> = norms.rows.iter().map(|norm| norm.value()).collect();
    values.sort_by(f32::total_cmp);
    values[values.len() / 2]
}

/// Whether the norms of a run are the reference's; what is clipped by them has to be.
fn run_is_right<T: Pod>(
    context: &GpuContext,
    storage: Storage,
    layout: &Layout,
    clipping: &Clipping,
    data: Vec<T>,
    norms: &Norms,
    clip: impl Fn(&mut [T], &[Decision]) -> Result<()>,
) -> Result<bool> {
    let session = Session::new(context, layout, clipping, storage)?;
    session.upload(&data, &Scope::All)?;
    session.submit("checking the device", |encoder| session.plan.record(encoder))?;
    let (got, decisions) = session.plan.run_blocking()?;
    if got != *norms {
        return Ok(false);
    }
    let (mut got, mut expected) = (data.clone(), data);
    session.download(&mut got, &decisions)?;
    clip(&mut expected, &decisions)?;
    if bytemuck::cast_slice::<T, u8>(&got) != bytemuck::cast_slice::<T, u8>(&expected) {
        let message = "rows of right norms clipped to wrong values, perhaps because products are not rounded to \
                       the nearest, ties to even";
        return Err(Error::Gpu { during: CHECKING, message: message.into() });
    }
    Ok(true)
}

/// Norms of all f16, 64 neighbours to a row: the root of a sum of so few, of a size, tells if one of them counts as another number.
/// Among others that are no numbers one that becomes a number would not be seen, so each of those is in a row of ones as well.
fn every_half_is_right(context: &GpuContext) -> Result<bool> {
    const ONE: u16 = 0x3c00;
    let not_finite = (0..=u16::MAX).filter(|half| half & 0x7c00 == 0x7c00);
    let alone = not_finite
        .enumerate()
        .flat_map(|(row, half)| (0..64).map(move |column| if column == row % 64 { half } else { ONE }));
    let data: Vec<u16> = (0..=u16::MAX).chain(alone).collect();
    let layout = Layout::dense(data.len() / 64, 64)?;
    let clipping = Clipping::default();
    let mut context = context.clone();
    context.unpacking = Arc::new(OnceLock::from(true));

    let session = match Session::new(&context, &layout, &clipping, Storage::Half(Half::F16)) {
        // Not every device has it: lavapipe only with the feature SHADER_F16.
        Err(Error::Gpu { during: COMPILING, .. }) => return Ok(false),
        session => session?,
    };
    session.upload(&data, &Scope::All)?;
    session.submit("checking the device", |encoder| session.plan.record_norms(encoder))?;
    Ok(session.plan.norms_blocking()? == Reference.norms_half(&layout, Half::F16, &data, &clipping)?)
}

/// Of so few rows that one sum takes all, and of two parts of them.
fn means_are_right(context: &GpuContext, fast: FastSums, centered: bool) -> Result<bool> {
    for clients in [ROWS, 2 * ROWS + 2] {
        let layout = Layout::dense(clients, COORDINATES)?;
        // A fourth of the elements is negative, so that sums meet terms of either sign.
        let sign = |i: usize| if pseudo_random(!i) < 0.625 { -1.0 } else { 1.0 };
        let data: Vec<f32> = (0..layout.len()).map(|i| sign(i) * pseudo_random(i)).collect();
        let weights = Weights::PerRow((0..clients).map(pseudo_random).collect());
        // About half of the rows are above.
        let mut clipping = Clipping::fixed((COORDINATES as f32 * 7.0 / 12.0).sqrt());
        if centered {
            let center: Vec<f32> = (0..COORDINATES).map(|i| 0.01 * pseudo_random(!i)).collect();
            clipping = clipping.around(center);
        }
        let mut context = context.clone();
        let allowed = || OnceLock::from(fast == FastSums::Allowed);
        context.fast_means = Arc::new([allowed(), allowed()]);

        let session = Session::new(&context, &layout, &clipping, Storage::Single)?;
        let mean = session.plan.mean(&weights)?;
        session.upload(&data, &Scope::All)?;
        session.submit("checking the device", |encoder| {
            session.plan.record_norms(encoder);
            session.plan.record_threshold(encoder);
            mean.record(encoder);
        })?;
        let (expected, _) = Reference.run_mean(&layout, &data, &clipping, &weights)?;
        if !same_bits(&mean.read_blocking()?, &expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

/// A magnitude in [0.5, 1) with all of its 24 bits in use: the hardest sums to round are those of
/// many terms of a size. The bits come from a multiplicative hash of the index.
pub(super) fn pseudo_random(index: usize) -> f32 {
    let bits = (index as u32).wrapping_mul(0x9e37_79b9).rotate_left(15).wrapping_mul(0x85eb_ca6b) >> 9;
    f32::from_bits(0x3f00_0000 | bits)
}
