//! The dispatches of a plan: which kernels a stage or a run takes, on how many workgroups, and what each binds.

use std::ops::Range;

use super::buffers::Buffers;
use super::context::GpuContext;
use super::geometry::{Geometry, Window};
use super::kernels::{Access, Grid, Kernel, Pipeline, Resource, Stage};
use super::params::{OF_DECIDED_ALONE, OF_PORTIONS, OF_RUN, Params};
use super::storage::Storage;
use crate::batch::Granularity;
use crate::report::Strategy;

/// The norms stage.
pub(super) const NORMS: &[Stage] = &[Stage::Norms, Stage::Exact];
/// The same where it shares a kernel with the clip.
const FUSED: &[Stage] = &[Stage::Fused, Stage::Exact];
pub(super) const THRESHOLD: &[Stage] = &[Stage::Threshold];
pub(super) const CLIP: &[Stage] = &[Stage::Clip];
const LEFT: &[Stage] = &[Stage::Left];

/// One dispatch.
#[derive(Debug)]
pub(super) struct Step {
    pub kernel: &'static str,
    pub pipeline: wgpu::ComputePipeline,
    pub bindings: wgpu::BindGroup,
    pub workgroups: (u32, u32),
    /// Whether it goes through the list of tiles in scope, on as many workgroups as there are of those.
    pub in_scope: bool,
}

impl Step {
    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>, workgroups: (u32, u32)) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.dispatch_workgroups(workgroups.0, workgroups.1, 1);
    }
}

/// What steps are made for: spans and windows, and the copy of the params that is theirs.
pub(super) struct Extent {
    params: usize,
    spans: Range<usize>,
    windows: Range<usize>,
    /// Whether workgroups come for tiles in scope only.
    in_scope: bool,
}

impl Extent {
    pub(super) fn whole(geometry: &Geometry, params: usize) -> Self {
        let (spans, windows) = (0..geometry.spans.len(), 0..geometry.windows.len());
        Self { params, spans, windows, in_scope: false }
    }
}

/// What steps are made from.
pub(super) struct Binder<'a> {
    pub(super) context: &'a GpuContext,
    pub(super) pipelines: &'a [&'a Pipeline],
    pub(super) geometry: &'a Geometry,
    pub(super) buffers: &'a Buffers,
    pub(super) data: &'a wgpu::Buffer,
}

impl Binder<'_> {
    /// The passes of all stages, where they are not run one by one for the whole batch.
    pub(super) fn passes(&self) -> Vec<Vec<Step>> {
        let whole = Extent::whole(self.geometry, OF_RUN);
        match self.geometry.strategy {
            Strategy::Rows | Strategy::Tiled => Vec::new(),
            Strategy::Fused => vec![self.steps(&[FUSED, THRESHOLD, LEFT], &whole)],
            Strategy::Grouped => {
                // Where rows are not decided alone, the clips of portions leave at once, and what is behind them clips all.
                let mut passes = self.portions();
                passes.push(self.steps(&[THRESHOLD, LEFT], &whole));
                passes
            }
        }
    }

    /// The passes of all stages where rows are decided alone; none where they never are.
    pub(super) fn passes_alone(&self, granularity: Granularity) -> Vec<Vec<Step>> {
        let whole = Extent::whole(self.geometry, OF_DECIDED_ALONE);
        match self.geometry.strategy {
            _ if granularity == Granularity::Segment => Vec::new(),
            Strategy::Rows | Strategy::Tiled => {
                let in_scope = self.geometry.lists_scope();
                vec![self.steps(&[NORMS, CLIP], &Extent { in_scope, ..whole })]
            }
            Strategy::Fused => vec![self.steps(&[FUSED, LEFT], &whole)],
            Strategy::Grouped => self.portions(),
        }
    }

    /// A pass of norms and clip for each portion.
    fn portions(&self) -> Vec<Vec<Step>> {
        let portions = self.geometry.portions.iter().enumerate().map(|(i, portion)| {
            let (spans, windows) = (portion.spans.clone(), portion.windows.clone());
            let extent = Extent { params: OF_PORTIONS + i, spans, windows, in_scope: false };
            self.steps(&[NORMS, CLIP], &extent)
        });
        portions.collect()
    }

    /// Every dispatch of the kernels of these stages for a part of the batch, in order.
    pub(super) fn steps(&self, stages: &[&[Stage]], extent: &Extent) -> Vec<Step> {
        let Self { context, geometry, buffers, .. } = *self;
        let mut steps = Vec::new();
        let limit = context.device.limits().max_compute_workgroups_per_dimension;
        let chosen = |kernel: &Kernel| stages.iter().any(|stage| stage.contains(&kernel.stage));
        for pipeline in self.pipelines.iter().filter(|pipeline| chosen(pipeline.kernel)) {
            let spans = extent.spans.len() as u64;
            let each = u64::from(pipeline.workgroup);
            let tiles_of = |window: usize| {
                let tiles = &geometry.windows[window].tiles;
                tiles.end - tiles.start
            };
            let per_window = |workgroups: &dyn Fn(u64) -> u64| {
                extent.windows.clone().map(|i| (workgroups(tiles_of(i)), Some(i))).collect()
            };
            let tuning = &context.tuning;
            let work: Vec<(u64, Option<usize>)> = match pipeline.kernel.grid {
                Grid::Tile => per_window(&|tiles| tiles),
                Grid::ShortTiles => per_window(&|tiles| (tiles * u64::from(tuning.lanes())).div_ceil(each)),
                Grid::OpenTiles => {
                    // Open rows and open segments are listed one by one, those of other windows too.
                    let times = if geometry.spans.len() > geometry.bounded { 2 } else { 1 };
                    let listed = extent.windows.clone().map(tiles_of).sum::<u64>() * times;
                    per_window(&|_| tuning.exact_tile_workgroups(listed, geometry.longest))
                }
                Grid::OpenFew => vec![{
                    let (tiles, elements) = geometry.largest_span();
                    (tuning.exact_few_workgroups(spans, tiles, elements), Some(0))
                }],
                Grid::OpenSpans => vec![(tuning.exact_span_workgroups(spans), None)],
                Grid::Span => vec![(spans, None)],
                Grid::Spans => vec![(spans.div_ceil(each), None)],
                Grid::FewSpans => vec![(spans.div_ceil(each), Some(0))],
                // A group has a member at least, so there are no more of them than spans; the kernel leaves
                // those past the end at once.
                Grid::Group => vec![(geometry.most_groups as u64, None)],
                Grid::Weights | Grid::Divisor => Vec::new(),
                Grid::Coordinates | Grid::Strip | Grid::OpenCoordinates => Vec::new(),
            };
            let in_scope = extent.in_scope && pipeline.kernel.grid == Grid::Tile;
            for (workgroups, window) in work.into_iter().filter(|(workgroups, _)| *workgroups > 0) {
                let window = window.map(|i| &geometry.windows[i]);
                steps.push(Step {
                    kernel: pipeline.kernel.name,
                    pipeline: pipeline.pipeline.clone(),
                    bindings: bind(context, pipeline, |resource| {
                        let buffer = match resource {
                            Resource::Tiles if in_scope => &buffers.tiles_in_scope,
                            _ => buffers.get(resource, self.data)?,
                        };
                        if resource == Resource::Params {
                            let offset = extent.params as u64 * tuning.offset_alignment;
                            let size = wgpu::BufferSize::new(size_of::<Params>() as u64);
                            return Some(wgpu::BufferBinding { buffer, offset, size });
                        }
                        Some(binding(buffer, resource, window, geometry.storage))
                    }),
                    workgroups: folded(workgroups, limit),
                    in_scope,
                });
            }
        }
        steps
    }
}

/// A number of workgroups in two dimensions; the kernels leave those past the end at once.
pub(crate) fn folded(workgroups: u64, limit: u32) -> (u32, u32) {
    let width = workgroups.min(u64::from(limit));
    (width as u32, workgroups.div_ceil(width) as u32)
}

/// The part of a buffer that a kernel sees: all of it, but of the batch and of its tiles the window.
fn binding<'a>(
    buffer: &'a wgpu::Buffer,
    resource: Resource,
    window: Option<&Window>,
    storage: Storage,
) -> wgpu::BufferBinding<'a> {
    let bytes = match (resource, window) {
        (Resource::Data, Some(window)) => window.bytes(storage),
        (Resource::Tiles, Some(window)) => window.tiles.start * 16..window.tiles.end * 16,
        _ => 0..buffer.size(),
    };
    wgpu::BufferBinding { buffer, offset: bytes.start, size: wgpu::BufferSize::new(bytes.end - bytes.start) }
}

/// A kernel's bindings; what is missing among them wgpu refuses.
pub(super) fn bind<'a>(
    context: &GpuContext,
    pipeline: &Pipeline,
    binding_of: impl Fn(Resource) -> Option<wgpu::BufferBinding<'a>>,
) -> wgpu::BindGroup {
    let entry = |&(resource, _): &(Resource, Access)| {
        let resource_binding = wgpu::BindingResource::Buffer(binding_of(resource)?);
        Some(wgpu::BindGroupEntry { binding: resource as u32, resource: resource_binding })
    };
    let entries: Vec<_> = pipeline.kernel.bindings.iter().filter_map(entry).collect();
    context.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(pipeline.kernel.name),
        layout: &pipeline.layout,
        entries: &entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_are_folded_within_the_limit() {
        for workgroups in [1, 65_535, 65_536, 1_000_000, 4_294_836_225] {
            let (x, y) = folded(workgroups, 65_535);
            assert!(x <= 65_535 && y <= 65_535);
            assert!(u64::from(x) * u64::from(y) >= workgroups);
        }
    }
}
