//! The buffers of a plan.

use std::sync::Mutex;

use super::context::GpuContext;
use super::geometry::{Geometry, Span};
use super::kernels::Resource;
use super::params::{DeviceDecision, OF_PORTIONS, RUN_BYTES};
use super::rules::{Group, Rules};
use crate::error::Result;
use crate::norms::Norm;

/// Bytes of a span's exact sum: 40 cells of 32 bits.
pub(super) const EXACT_SUM_BYTES: u64 = 40 * 4;

/// All that kernels read and write beside the batch.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) params: wgpu::Buffer,
    pub(super) tiles: wgpu::Buffer,
    /// Those in scope, in the same order, with padding behind them, where a run goes through those alone.
    pub(super) tiles_in_scope: wgpu::Buffer,
    /// The first coordinate of each tile of a row; behind them the centre, where there is one.
    pub(super) starts_and_center: wgpu::Buffer,
    pub(super) spans: wgpu::Buffer,
    pub(super) partials: wgpu::Buffer,
    pub(super) norms: wgpu::Buffer,
    pub(super) exact_sums: wgpu::Buffer,
    pub(super) decisions: wgpu::Buffer,
    /// What the run has done so far, and behind it the spans that the fast sums left open, and their tiles; see
    /// common.wgsl.
    pub(super) run: wgpu::Buffer,
    pub(super) groups: wgpu::Buffer,
    pub(super) members: wgpu::Buffer,
    /// What adaptive and history thresholds remember.
    pub(super) state: wgpu::Buffer,
    pub(super) bounds: wgpu::Buffer,
    /// Ways back to the host that no report is using.
    pub(super) staging: Mutex<Vec<wgpu::Buffer>>,
}

impl Buffers {
    pub(super) fn new(
        context: &GpuContext,
        geometry: &Geometry,
        rules: &Rules,
        center: usize,
    ) -> Result<Self> {
        let spans = geometry.spans.len().max(1);
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let read = storage | wgpu::BufferUsages::COPY_SRC;
        let norms = spans * size_of::<Norm>();
        let decisions = geometry.bounded.max(1) * size_of::<DeviceDecision>();
        let listed = if geometry.lists_scope() { geometry.tiles.len() } else { 0 };
        let make = |what, bytes: usize, usage| context.buffer(what, bytes as u64, usage);
        Ok(Self {
            params: make(
                "params",
                (OF_PORTIONS + geometry.portions.len()) * context.tuning.offset_alignment as usize,
                wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            )?,
            tiles: make("the list of tiles", geometry.tiles.len().max(16) * 16, storage)?,
            tiles_in_scope: make("the list of tiles in scope", listed.max(16) * 16, storage)?,
            starts_and_center: make(
                "the starts of tiles and the centre",
                (geometry.tile_starts.len() + center).max(1) * 4,
                storage | wgpu::BufferUsages::COPY_SRC,
            )?,
            spans: make("the list of spans", spans * size_of::<Span>(), storage)?,
            // Behind them, on how many workgroups they were made.
            partials: make("the partial sums", (geometry.slots + 1) * 12, storage)?,
            norms: make("the norms", norms, read)?,
            exact_sums: make("the exact sums", spans * EXACT_SUM_BYTES as usize, storage)?,
            decisions: make("the decisions", decisions, read)?,
            // Of an open tile its slot and its span; where rows are cut in segments, it may be listed for both.
            run: make("the run", RUN_BYTES as usize + (spans + 4 * geometry.slots.max(1)) * 4, read)?,
            // Room for any threshold: there are at most as many groups as spans.
            groups: make("the groups", spans * size_of::<Group>(), storage)?,
            members: make("the members of groups", spans * 4, storage)?,
            state: make("the state", rules.state_words.max(1) * 4, read)?,
            bounds: make("the bounds", spans * 4, storage)?,
            staging: Mutex::default(),
        })
    }

    pub(super) fn get<'a>(&'a self, resource: Resource, data: &'a wgpu::Buffer) -> Option<&'a wgpu::Buffer> {
        Some(match resource {
            Resource::Params => &self.params,
            Resource::Data => data,
            Resource::Tiles => &self.tiles,
            Resource::StartsAndCenter => &self.starts_and_center,
            Resource::Spans => &self.spans,
            Resource::Partials => &self.partials,
            Resource::Norms => &self.norms,
            Resource::ExactSums => &self.exact_sums,
            Resource::Decisions => &self.decisions,
            Resource::Run => &self.run,
            Resource::Groups => &self.groups,
            Resource::Members => &self.members,
            Resource::State => &self.state,
            Resource::Bounds => &self.bounds,
            // The mean's are in its own plan.
            Resource::Strip | Resource::Weights | Resource::Open | Resource::Sums | Resource::Means => {
                return None;
            }
        })
    }
}
