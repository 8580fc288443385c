//! How the kernels are shaped for a device. Every choice gives the same bits.

use crate::error::{Error, Result};

/// The shape of the kernels. [`Tuning::for_device`] chooses; tests and experiments override.
///
/// # Examples
/// ```
/// use byzclip::backend::gpu::Tuning;
///
/// // WebGPU's baseline: no subgroups, 16 KiB of shared memory, windows of 128 MiB.
/// assert!(!Tuning::portable().subgroups);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Invocations of a workgroup that works on a tile: a power of two.
    pub workgroup: u32,
    /// Invocations of a workgroup that works on one span's tiles, or on that many spans.
    pub span_workgroup: u32,
    /// Whether sums are joined by subgroup shuffles.
    pub subgroups: bool,
    /// The smallest subgroup that the device may use; 1 without subgroups.
    pub subgroup_min: u32,
    /// Elements of a tile; rows longer than 32,500 tiles get larger ones.
    pub tile: u32,
    /// Elements that one binding holds at most; batches beyond are split in windows.
    pub window: u64,
    /// Whether elements are read and written four at a time where the layout allows it.
    pub wide: bool,
    /// Whether every norm takes the exact sum.
    pub force_exact: bool,
    /// Bytes to which the offset of a binding is aligned.
    pub offset_alignment: u64,
    /// The zero behind which the shaders hide rounding errors from the compiler. Any other value
    /// spoils the fast sums: tests see by it that a device whose sums are wrong is found out.
    #[doc(hidden)]
    pub zero: u32,
}

impl Tuning {
    /// What every WebGPU device can run.
    #[must_use]
    pub const fn portable() -> Self {
        Self {
            workgroup: 256,
            span_workgroup: 64,
            subgroups: false,
            subgroup_min: 1,
            tile: 8192,
            window: (128 << 20) / 4,
            wide: true,
            force_exact: false,
            offset_alignment: 256,
            zero: 0,
        }
    }

    /// What suits this device.
    #[must_use]
    pub fn for_device(info: &wgpu::AdapterInfo, features: wgpu::Features, limits: &wgpu::Limits) -> Self {
        let mut tuning = Self::portable();
        if info.device_type == wgpu::DeviceType::Cpu {
            // A software adapter runs a workgroup on one core, a vector register at a time: workgroups
            // of one register have no barrier to wait for.
            tuning.workgroup = info.subgroup_max_size.clamp(4, 64).next_power_of_two();
            tuning.span_workgroup = tuning.workgroup;
        }
        tuning.offset_alignment = u64::from(limits.min_storage_buffer_offset_alignment).max(256);
        // A window's offsets are u32 and its size a multiple of the alignment.
        let bytes = limits.max_storage_buffer_binding_size.min(1 << 31);
        tuning.window = bytes / tuning.offset_alignment * tuning.offset_alignment / 4;
        let whole = info.subgroup_min_size > 0 && info.subgroup_max_size <= tuning.span_workgroup;
        if features.contains(wgpu::Features::SUBGROUP) && whole {
            tuning.subgroups = true;
            tuning.subgroup_min = info.subgroup_min_size;
        }
        tuning
    }

    /// Whether the device can run this shape.
    pub(super) fn check(&self, device: &wgpu::Device) -> Result<()> {
        let limits = device.limits();
        let invalid = |name, got: String, expected| Err(Error::Setting { name, got, expected });
        for workgroup in [self.workgroup, self.span_workgroup] {
            if !workgroup.is_power_of_two()
                || workgroup > limits.max_compute_invocations_per_workgroup.min(256)
            {
                return invalid(
                    "workgroup",
                    workgroup.to_string(),
                    "a power of two within the device's limit, at most 256",
                );
            }
        }
        if self.subgroups && !device.features().contains(wgpu::Features::SUBGROUP) {
            return invalid("subgroups", "true".into(), "false on a device without the feature SUBGROUP");
        }
        let largest = device.adapter_info().subgroup_max_size;
        if self.subgroups && (self.subgroup_min == 0 || self.workgroup.min(self.span_workgroup) < largest) {
            return invalid("subgroups", "true".into(), "workgroups of at least a whole subgroup");
        }
        if self.tile < 4 || !self.tile.is_power_of_two() || self.tile > 1 << 16 {
            return invalid("tile", self.tile.to_string(), "a power of two from 4 to 65,536");
        }
        if self.offset_alignment < u64::from(limits.min_storage_buffer_offset_alignment).max(16)
            || !self.offset_alignment.is_power_of_two()
        {
            return invalid(
                "offset_alignment",
                self.offset_alignment.to_string(),
                "a power of two the device allows",
            );
        }
        let alignment = self.offset_alignment / 4;
        if self.window < u64::from(self.tile) + alignment
            || self.window * 4 > limits.max_storage_buffer_binding_size
            || self.window > 1 << 29
        {
            return invalid(
                "window",
                self.window.to_string(),
                "room for a tile, within what a binding holds",
            );
        }
        Ok(())
    }

    /// A bound of the fast sum's relative error, in units of 2^-48, for a span of this many tiles.
    ///
    /// 60 for the chains of eight squares, 256 more where they are of differences, and 3 for each addition of pairs on the way to the total
    /// (NUMERICS.md), with a little more for the terms of second order.
    pub(super) fn error_units(&self, tiles: usize, length: u64, centered: bool) -> u32 {
        let tile = u64::from(self.tile).max(length.div_ceil(tiles.max(1) as u64).next_power_of_two());
        let groups = u32::try_from(tile / 4).unwrap_or(u32::MAX);
        let chains = groups.div_ceil(self.workgroup).div_ceil(8);
        let tiles = u32::try_from(tiles).unwrap_or(u32::MAX).div_ceil(self.span_workgroup);
        let additions = 3 + chains + self.joins(self.workgroup) + tiles + self.joins(self.span_workgroup);
        let differences = if centered { 256 } else { 0 };
        64 + differences + additions.saturating_mul(4)
    }

    /// Additions in a row that join the sums of a workgroup.
    fn joins(&self, workgroup: u32) -> u32 {
        if self.subgroups { 8 + workgroup.div_ceil(self.subgroup_min) } else { workgroup.ilog2() + 1 }
    }
}
