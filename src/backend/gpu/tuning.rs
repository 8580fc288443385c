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
    /// Invocations of a workgroup that works on one span's tiles, on that many spans, or on short rows.
    pub span_workgroup: u32,
    /// Whether sums are joined by subgroup shuffles.
    pub subgroups: bool,
    /// The smallest subgroup that the device may use; 1 without subgroups.
    pub subgroup_min: u32,
    /// Whether elements are squared and summed in f64, which needs the feature `SHADER_F64`; else in pairs of f32.
    pub doubles: bool,
    /// Elements of a tile; rows longer than 32,500 tiles get larger ones.
    pub tile: u32,
    /// Elements that one binding holds at most; batches beyond are split in windows.
    pub window: u64,
    /// Whether elements are read and written four at a time where the layout allows it.
    pub wide: bool,
    /// Whether that includes rows that begin anywhere, whose ends are written one element of a vector at a time: WGSL lets
    /// such a write touch the whole vector, of which another row may have the rest. Vulkan and DX12 write the element alone.
    pub loose: bool,
    /// Where no row is longer than this, nor than a tile, workgroups take several rows each; 0: never.
    pub short_row: u32,
    /// Fewer rows than this count as long ones, because they would be too few workgroups.
    pub short_rows: u32,
    /// Invocations that then share a row: a power of two; a workgroup where it has fewer.
    pub row_lanes: u32,
    /// Where rows have bounds of their own and none is longer than this, a workgroup sums and clips a row in one
    /// dispatch; 0: never.
    pub fused_row: u32,
    /// Batches of more bytes run through all stages in groups of rows of about so many, so that the clip of a group
    /// finds it in the cache; 0: never.
    pub group_bytes: u64,
    /// Where no span has more tiles than this, an invocation joins the partial sums of a span; else a workgroup does.
    pub few_tiles: u32,
    /// Whether, where no span has more tiles than that, what settles norms sums those exactly that stay open (`norms_at_once`).
    pub at_once: bool,
    /// Bytes that an invocation takes one after the other in a sum in f64, a power of two; 0: neighbours read side by side.
    pub stretch: u32,
    /// Whether sums widen f16 by the device's own conversion (`unpack2x16float`), where that passes its check; else by integers.
    pub unpacks: bool,
    /// Parts of a batch in which a workgroup takes short rows, or spans, at once, a power of two; 1: it takes neighbours.
    pub streams: u32,
    /// Workgroups that look for norms which the fast sums left open; there are more where that could be too many
    /// for so few.
    pub exact_workgroups: u32,
    /// Whether every norm takes the exact sum.
    pub force_exact: bool,
    /// Whether wgpu adds no checks of its own to the shaders; only in a build with the feature `trusted`.
    pub trusted: bool,
    /// Bytes to which the offset of a binding is aligned.
    pub offset_alignment: u64,
    /// The zero behind which the shaders hide rounding errors from the compiler. Any other value
    /// spoils the fast sums: tests see by it that a device whose sums are wrong is found out.
    #[doc(hidden)]
    pub zero: u32,
}

/// Parts of a mean's rows that are joined before they join the sum, as in mean.wgsl.
pub(crate) const JOINED: u64 = 32;

/// Rows from which on a workgroup shares those of a coordinate that is summed exactly: an invocation alone would be busy with them
/// long after the others are done.
pub(crate) const MANY_ROWS: u64 = 1024;

/// Tiles of a span that is summed exactly by one workgroup, at most.
const MOST_WHOLE: u32 = 16;

impl Tuning {
    /// What every WebGPU device can run.
    #[must_use]
    pub const fn portable() -> Self {
        Self {
            workgroup: 256,
            span_workgroup: 64,
            subgroups: false,
            subgroup_min: 1,
            doubles: false,
            tile: 8192,
            window: (128 << 20) / 4,
            wide: true,
            loose: false,
            short_row: 512,
            short_rows: 1024,
            row_lanes: 8,
            fused_row: 0,
            group_bytes: 0,
            few_tiles: 0,
            at_once: false,
            stretch: 0,
            streams: 1,
            unpacks: false,
            exact_workgroups: 512,
            force_exact: false,
            trusted: false,
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
            // Those of spans and short rows have few barriers: larger ones are fewer calls.
            tuning.span_workgroup = tuning.workgroup.max(64);
            // There a branch that is not taken is run all the same, masked: what is cheapest is few workgroups.
            tuning.row_lanes = 1;
            // Longer ones lose where only some of a vector's rows are in scope, or clipped.
            tuning.short_row = 512;
            tuning.few_tiles = 16;
            // Compilers of DX12 may refuse barriers in a loop whose end comes from shared memory.
            tuning.at_once = info.backend == wgpu::Backend::Vulkan;
            tuning.short_rows = 32 * tuning.workgroup;
            tuning.tile = 1 << 14;
            // Its lanes are read one by one: each is fastest in pages of its own.
            tuning.stretch = 4096;
            tuning.streams = tuning.workgroup;
            tuning.exact_workgroups = 16;
            tuning.doubles = features.contains(wgpu::Features::SHADER_F64);
        } else {
            // By reason, not measured: 64 KiB for a workgroup, and no more than a small last-level cache holds.
            tuning.fused_row = 1 << 14;
            tuning.group_bytes = 16 << 20;
        }
        tuning.unpacks = true;
        tuning.loose = matches!(info.backend, wgpu::Backend::Vulkan | wgpu::Backend::Dx12);
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
        let info = device.adapter_info();
        let (least, largest) = (info.subgroup_min_size, info.subgroup_max_size);
        if self.subgroups && !(1..=least).contains(&self.subgroup_min) {
            return invalid("subgroup_min", self.subgroup_min.to_string(), "what the device says, or less");
        }
        if self.subgroups && self.workgroup.min(self.span_workgroup) < largest {
            return invalid("subgroups", "true".into(), "workgroups of at least a whole subgroup");
        }
        if self.doubles && !device.features().contains(wgpu::Features::SHADER_F64) {
            return invalid("doubles", "true".into(), "false on a device without the feature SHADER_F64");
        }
        if self.trusted && !cfg!(feature = "trusted") {
            return invalid("trusted", "true".into(), "false in a build without the feature `trusted`");
        }
        if !self.row_lanes.is_power_of_two() {
            return invalid("row_lanes", self.row_lanes.to_string(), "a power of two");
        }
        if self.short_row > 1 << 14 {
            return invalid("short_row", self.short_row.to_string(), "at most 16,384 elements");
        }
        if self.fused_row > 1 << 16 {
            return invalid("fused_row", self.fused_row.to_string(), "at most 65,536 elements");
        }
        if self.few_tiles > 256 {
            return invalid("few_tiles", self.few_tiles.to_string(), "at most 256");
        }
        for (name, value) in [("stretch", self.stretch.max(1)), ("streams", self.streams)] {
            if !value.is_power_of_two() || value > 1 << 14 {
                return invalid(name, value.to_string(), "a power of two, at most 16,384");
            }
        }
        if self.exact_workgroups == 0 {
            return invalid("exact_workgroups", "0".into(), "at least 1");
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

    /// Invocations that share a short row.
    pub(super) fn lanes(&self) -> u32 {
        self.row_lanes.min(self.span_workgroup)
    }

    /// Whether so many rows, none of them longer than this, are short ones.
    pub(super) fn are_short(&self, rows: usize, longest: u64) -> bool {
        rows as u64 >= u64::from(self.short_rows) && longest <= u64::from(self.short_row.min(self.tile))
    }

    /// A bound of the fast sum's relative error, in units of 2^-48, for a span of this many tiles, or a short one.
    ///
    /// What an invocation's own sum loses, and 3 for each addition of pairs on the way to the total (NUMERICS.md),
    /// with a little more for the terms of second order.
    pub(super) fn error_units(&self, tiles: usize, length: u64, short: bool, centered: bool) -> u32 {
        let tile = u64::from(self.tile).max(length.div_ceil(tiles.max(1) as u64).next_power_of_two());
        let groups = u32::try_from(if short { length } else { tile }.div_ceil(4)).unwrap_or(u32::MAX);
        let tiles = u32::try_from(tiles).unwrap_or(u32::MAX);
        let few = if tiles <= self.few_tiles { tiles } else { 0 };
        let (each, joins) = if short {
            (groups.div_ceil(self.lanes()), self.lanes().ilog2())
        } else {
            let of_span = tiles.div_ceil(self.span_workgroup) + self.joins(self.span_workgroup);
            (groups.div_ceil(self.workgroup), self.joins(self.workgroup) + of_span.max(few))
        };
        let (own, chains) = if self.doubles {
            // f64 roundings, a quarter as many as groups, 32 to a unit, and the way to a pair; twice as much.
            (8 + each.div_ceil(64), 0)
        } else {
            // The chains of eight squares, or of differences, and two of what is not a whole group.
            (if centered { 64 + 256 } else { 64 }, each.div_ceil(8) + 5)
        };
        own + (chains + joins).saturating_mul(4)
    }

    /// Workgroups of `exact_tiles` for this many tiles. More than the few that look where an invocation had to go
    /// round its loops 2^15 times, were all of them open: lavapipe cuts it off at 2^16.
    pub(super) fn exact_tile_workgroups(&self, tiles: u64, longest: u64) -> u64 {
        // The groups of a tile, and the limbs, which every tile goes through a few times.
        let turns = longest.div_ceil(4 * u64::from(self.workgroup)) + 200;
        tiles.min(u64::from(self.exact_workgroups)).max((tiles * turns).div_ceil(1 << 15))
    }

    /// The turns that an invocation of `exact_few` or `norms_at_once` takes for a span of so many tiles and elements: its groups, the limbs
    /// for each tile and five times more, and the bits of a root and of a factor.
    fn exact_turns(&self, tiles: u32, elements: u64) -> u64 {
        elements.div_ceil(4 * u64::from(self.workgroup)) + 42 * u64::from(tiles) + 260
    }

    /// Whether a workgroup may sum a whole span of so many tiles and elements exactly: few, so that it takes hardly
    /// longer than another dispatch, and not so many turns that lavapipe cuts it off.
    pub(super) fn sums_whole(&self, tiles: u32, elements: u64) -> bool {
        tiles <= MOST_WHOLE && self.exact_turns(tiles, elements) <= 1 << 14
    }

    /// Whether an invocation of `norms_at_once` may take part in the exact sums of as many spans as its workgroup settles.
    pub(super) fn settles_at_once(&self, tiles: u32, elements: u64) -> bool {
        self.at_once && u64::from(self.workgroup) * self.exact_turns(tiles, elements) <= 1 << 15
    }

    /// Workgroups of `exact_few` for spans of up to so many tiles and elements.
    pub(super) fn exact_few_workgroups(&self, spans: u64, tiles: u32, elements: u64) -> u64 {
        let least = (spans * self.exact_turns(tiles, elements)).div_ceil(1 << 15);
        spans.min(u64::from(self.exact_workgroups)).max(least)
    }

    /// Workgroups of `exact_spans`: the sum of a span, its root and its factor take some 170 turns.
    pub(super) fn exact_span_workgroups(&self, spans: u64) -> u64 {
        let workgroups = spans.div_ceil(u64::from(self.span_workgroup));
        workgroups.min(u64::from(self.exact_workgroups)).max((workgroups * 200).div_ceil(1 << 15))
    }

    /// A bound of the error of a mean's fast sum, relative to the sum of the magnitudes, where so many parts of so many rows are
    /// summed, in so many windows (NUMERICS.md, "The mean").
    pub(super) fn mean_error(&self, rows: u64, parts: u64, windows: u64) -> f32 {
        // In units of 2^-48: what an addition loses, and what making the quotient takes.
        let of_rows = if self.doubles { rows.div_ceil(16) + 4 * (windows + 1) } else { 3 * rows };
        let joins = JOINED.min(parts) + parts.div_ceil(JOINED);
        let units = (of_rows + 3 * joins + 16) as f32;
        // A fourth more, because the magnitudes are summed in f32.
        1.25 * units * 2.0f32.powi(-48)
    }

    /// Workgroups of `mean_exact`, or `mean_exact_many`, for so many coordinates, and rows in a window: few, but that no invocation goes round its loops
    /// more than 2^15 times, were all of them open. A quotient takes some 1,600 turns.
    pub(super) fn exact_mean_workgroups(&self, coordinates: u64, rows: u64, clients: u64) -> u64 {
        let each = u64::from(self.workgroup);
        let (workgroups, turns) = if clients >= MANY_ROWS {
            (coordinates, rows.div_ceil(each) + 1800)
        } else {
            (coordinates.div_ceil(each), rows + 1600)
        };
        workgroups.min(u64::from(self.exact_workgroups)).max((workgroups * turns).div_ceil(1 << 15))
    }

    /// Additions in a row that join the sums of a workgroup.
    fn joins(&self, workgroup: u32) -> u32 {
        if self.subgroups { 8 + workgroup.div_ceil(self.subgroup_min) } else { workgroup.ilog2() + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tunings with workgroups of all sizes.
    fn tunings() -> impl Iterator<Item = Tuning> {
        [1, 4, 8, 32, 256].into_iter().flat_map(|workgroup| {
            [1, 16, 512].map(|exact_workgroups| Tuning {
                workgroup,
                span_workgroup: workgroup,
                exact_workgroups,
                at_once: true,
                ..Tuning::portable()
            })
        })
    }

    #[test]
    fn no_invocation_goes_round_its_loops_more_often_than_lavapipe_lets_it() {
        for tuning in tunings() {
            for (tiles, longest) in [(1, 3), (100, 8192), (100_000, 100), (5_000_000, 8), (130_000, 1 << 16)]
            {
                let workgroups = tuning.exact_tile_workgroups(tiles, longest);
                // Of a tile: its groups, and the limbs in each of four loops.
                let turns = longest.div_ceil(4).div_ceil(u64::from(tuning.workgroup)) + 4 * 40;
                assert!(
                    tiles.div_ceil(workgroups) * turns < 60_000,
                    "{tiles} tiles of {longest}: {tuning:?}"
                );
                let spans = tuning.exact_span_workgroups(tiles) * u64::from(tuning.span_workgroup);
                for of_span in [1, 16] {
                    // Of a whole span: its groups, the limbs of each tile and in five loops, the bits of a root and of a factor.
                    let turns = longest.div_ceil(4 * u64::from(tuning.workgroup))
                        + u64::from(of_span) * 41
                        + 5 * 40
                        + 25
                        + 26;
                    let each = tiles.div_ceil(tuning.exact_few_workgroups(tiles, of_span, longest));
                    let fits = each * turns < 60_000;
                    assert!(
                        u64::from(tuning.workgroup) * turns < 60_000
                            || !tuning.settles_at_once(of_span, longest),
                        "{of_span} tiles of {longest}: {tuning:?}"
                    );
                    assert!(
                        fits || !tuning.sums_whole(of_span, longest),
                        "{tiles} spans of {longest}: {tuning:?}"
                    );
                }
                // Of a span: three times the limbs, the bits of a root and of a factor.
                assert!(tiles.div_ceil(spans) * (3 * 40 + 25 + 26) < 60_000, "{tiles} spans: {tuning:?}");
            }
        }
    }

    #[test]
    fn nothing_open_costs_few_workgroups() {
        let tuning = Tuning { exact_workgroups: 16, ..Tuning::portable() };
        assert_eq!(tuning.exact_tile_workgroups(1000, 8192), 16);
        assert_eq!(tuning.exact_tile_workgroups(3, 8192), 3);
        assert_eq!(tuning.exact_few_workgroups(1000, 1, 100), 16);
        assert_eq!(tuning.exact_few_workgroups(3, 1, 8192), 3);
        assert_eq!(tuning.exact_span_workgroups(1000), 16);
        assert_eq!(tuning.exact_span_workgroups(65), 2);
    }

    #[test]
    fn sums_in_f64_lose_less_than_pairs() {
        let pairs = Tuning::portable();
        let doubles = Tuning { doubles: true, ..pairs.clone() };
        for (tiles, length, short, centered) in
            [(1, 1, true, false), (1, 8192, false, true), (30_000, 1 << 28, false, false)]
        {
            let units = |tuning: &Tuning| tuning.error_units(tiles, length, short, centered);
            assert!(units(&doubles) < units(&pairs), "{tiles} tiles of {length}");
        }
    }
}
