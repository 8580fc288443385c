//! The check of a device before its first plan: are its fast sums as exact as their proof says?
//!
//! The proof rests on the compiler keeping the compensation (see `opaque` in pairs.wgsl). Where a
//! driver finds a way around that, sums would be wrong by an ulp and no error would say so. So every
//! device sums a small batch once, against the exact sum on the host; one that fails takes exact sums
//! only, slower and right, and the report says so.

use super::kernels::Storage;
use super::{Gpu, GpuContext, Session};
use crate::backend::{Backend, Reference};
use crate::batch::Layout;
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};

/// Rows of the batch: an uncompensated sum rounds about one row in three wrong.
const ROWS: usize = 64;
/// Elements of a row: several groups of four for every invocation of a workgroup, and a remainder.
const PARAMS: usize = 1501;

impl Gpu {
    /// Checks the device, once.
    pub(super) fn ensure_checked(&self) -> Result<()> {
        if self.context.fast_sums.get().is_some() {
            return Ok(());
        }
        let fast = norms_are_right(&self.context, FastSums::Allowed)?;
        if !fast && !norms_are_right(&self.context, FastSums::Forbidden)? {
            return Err(Error::Gpu {
                during: "checking the device's arithmetic",
                message: "wrong norms, also from integer sums".into(),
            });
        }
        self.context.fast_sums.get_or_init(|| fast);
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FastSums {
    Allowed,
    Forbidden,
}

fn norms_are_right(context: &GpuContext, fast: FastSums) -> Result<bool> {
    // As short rows and as long ones: the kernels differ.
    for short_row in [0, PARAMS as u32] {
        let mut context = context.clone();
        (context.tuning.short_row, context.tuning.short_rows) = (short_row, 0);
        context.fast_sums = std::sync::Arc::new(std::sync::OnceLock::from(fast == FastSums::Allowed));
        if !sums_are_right(&context)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sums_are_right(context: &GpuContext) -> Result<bool> {
    let layout = Layout::dense(ROWS, PARAMS)?;
    let data: Vec<f32> = (0..layout.len()).map(pseudo_random).collect();

    let session = Session::new(context, &layout, &Clipping::default(), Storage::Single)?;
    session.upload(context, &data, &Scope::All)?;
    context.submit("checking the device", |encoder| session.plan.record_norms(encoder))?;
    let norms = session.plan.norms_blocking()?;
    Ok(norms == Reference.norms(&layout, &data, &Clipping::default())?)
}

/// A magnitude in [0.5, 1) with all of its 24 bits in use: the hardest sums to round are those of
/// many terms of a size. The bits come from a multiplicative hash of the index.
fn pseudo_random(index: usize) -> f32 {
    let bits = (index as u32).wrapping_mul(0x9e37_79b9).rotate_left(15).wrapping_mul(0x85eb_ca6b) >> 9;
    f32::from_bits(0x3f00_0000 | bits)
}
