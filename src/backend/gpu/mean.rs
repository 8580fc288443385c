//! The weighted mean of clipped rows, recorded behind the threshold stage.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};

use super::context::GpuContext;
use super::device::{guarded, read_mapped};
use super::geometry::{Geometry, Window};
use super::kernels::{Form, Grid, Kernel, Pipeline, Resource};
use super::steps::{Step, bind, folded};
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::error::{Error, Result};

/// Cells of a sum, of the sum of the weights, and rows of one workgroup of `mean_weights`, as in mean.wgsl.
pub(crate) const CELLS: u64 = 38;
pub(crate) const WEIGHT_CELLS: u64 = 20;
pub(crate) const WEIGHT_ROWS: u64 = 1 << 14;

/// Bytes of the sum of a coordinate.
pub(super) const SUM_BYTES: u64 = CELLS * 4;

/// Rows of one dispatch: their products fit the cells, and drivers cut off loops of 2^16 iterations.
const ROWS: u64 = 1 << 13;

/// Coordinates whose sums wait between dispatches: 20 MB.
pub(super) const LONGEST_STRIP: u64 = 1 << 17;

/// Bytes between strips in their buffer: every device can bind a uniform at a multiple of these.
const STRIP_BYTES: u64 = 256;

/// `Strip` of mean.wgsl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Strip {
    pub clients: u32,
    pub spans_per_row: u32,
    pub tiles_per_row: u32,
    pub first_tile: u32,
    pub tiles: u32,
    pub blocks: u32,
    pub first: u32,
    pub length: u32,
}

/// The parts of a plan that a mean is made of.
pub(super) struct Source<'a> {
    pub layout: &'a Layout,
    pub granularity: Granularity,
    pub geometry: &'a Geometry,
    pub data: &'a wgpu::Buffer,
    pub tiles: &'a wgpu::Buffer,
    pub columns: &'a wgpu::Buffer,
    pub decisions: &'a wgpu::Buffer,
    pub run: &'a wgpu::Buffer,
    pub centered: bool,
}

impl Source<'_> {
    fn form(&self) -> Form {
        Form { fours: self.geometry.fours, centered: self.centered, storage: self.geometry.storage }
    }
}

/// The weighted mean of a plan's clipped rows, `[clients, params]` to `[params]`, made once and recorded
/// behind the plan's threshold stage; [`aggregate::mean`](crate::aggregate::mean) specifies it.
///
/// Where it has nothing to average, because no row counts, nothing was decided, or a row is refused under
/// [`NonFinite::Error`](crate::NonFinite::Error), the buffer holds the centre, or zeros without one: copied to be the next
/// centre, that changes nothing.
///
/// It clips on the way and writes no row, so it takes the place of [`Plan::record_clip`](super::Plan::record_clip):
/// recorded behind that, it would clip rows a second time.
///
/// # Examples
/// ```no_run
/// # fn example(gpu: byzclip::Gpu, updates: byzclip::wgpu::Buffer) -> byzclip::Result<()> {
/// use byzclip::{Clipping, Layout, Weights};
///
/// let plan = gpu.plan(&Layout::dense(64, 1_000_000)?, &Clipping::fixed(2.0), &updates)?;
/// let mean = plan.mean(&Weights::Equal)?;
///
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// plan.record_norms(&mut encoder);
/// plan.record_threshold(&mut encoder);
/// mean.record(&mut encoder);
/// gpu.queue().submit([encoder.finish()]);
///
/// let step: Vec<f32> = mean.read_blocking()?; // or go on with mean.buffer()
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MeanPlan {
    context: GpuContext,
    clients: usize,
    params: usize,
    /// The buffer that holds the centre, and where, in bytes.
    center: Option<(wgpu::Buffer, u64)>,
    buffers: Buffers,
    steps: Vec<Step>,
    recorded: AtomicBool,
}

#[derive(Debug)]
struct Buffers {
    strips: wgpu::Buffer,
    weights: wgpu::Buffer,
    weight_sum: wgpu::Buffer,
    sums: wgpu::Buffer,
    means: wgpu::Buffer,
}

/// How the coordinates are cut for the device: pure arithmetic.
#[derive(Debug)]
struct Cut {
    /// Parts of the windows, with rows that one dispatch can add.
    windows: Vec<Window>,
    strips: Vec<Strip>,
}

impl MeanPlan {
    pub(super) fn new(context: &GpuContext, source: &Source<'_>, weights: &Weights) -> Result<Self> {
        source.layout.check_alike()?;
        let context = context.clone();
        let chosen = |kernel: &Kernel| matches!(kernel.grid, Grid::Weights | Grid::Coordinates);
        let pipelines = context.pipelines.get(&context.device, &context.tuning, source.form(), chosen)?;
        let cut = Cut::new(source, context.tuning.workgroup);
        let buffers = Buffers::new(&context, source.layout, &cut)?;
        let steps = guarded(&context.device, "binding the buffers", || {
            steps(&context, &pipelines, source, &buffers, &cut)
        })?;
        let (clients, params) = (source.layout.clients(), source.layout.params());
        let center =
            source.centered.then(|| (source.columns.clone(), source.geometry.columns.len() as u64 * 4));
        let plan =
            Self { clients, params, center, buffers, steps, recorded: AtomicBool::new(false), context };
        let words = STRIP_BYTES as usize / size_of::<Strip>();
        let mut strips = vec![Strip::zeroed(); cut.strips.len() * words];
        cut.strips.iter().enumerate().for_each(|(i, strip)| strips[i * words] = *strip);
        plan.upload(&plan.buffers.strips, bytemuck::cast_slice(&strips))?;
        plan.set_weights(weights)?;
        Ok(plan)
    }

    /// Sets the weights for the submissions that follow.
    ///
    /// # Errors
    /// Those of [`Weights::of_rows`]; errors of the device.
    pub fn set_weights(&self, weights: &Weights) -> Result<()> {
        self.upload(&self.buffers.weights, bytemuck::cast_slice(&weights.of_rows(self.clients)?))
    }

    /// Records the mean stage, on the decisions in the plan that it was made from.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        self.recorded.store(true, Ordering::Release);
        encoder.clear_buffer(&self.buffers.weight_sum, 0, None);
        if self.steps.is_empty() {
            // Without rows the mean is the centre, or zeros.
            encoder.clear_buffer(&self.buffers.means, 0, None);
            if let Some((columns, start)) = &self.center {
                let bytes = (self.params * 4) as u64;
                encoder.copy_buffer_to_buffer(columns, *start, &self.buffers.means, 0, bytes);
            }
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("byzclip mean"),
            timestamp_writes: None,
        });
        self.steps.iter().for_each(|step| step.record(&mut pass, step.workgroups));
    }

    /// The mean on the device, `[params]` elements from its start; of use as a storage buffer and to copy from.
    #[must_use]
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffers.means
    }

    /// Reads the mean of the last submitted run back, waiting for the device.
    ///
    /// # Errors
    /// [`Error::NotRecorded`], also where no run made decisions; [`Error::NonFinite`] with the first row that
    /// the policy refuses; errors of the device.
    pub fn read_blocking(&self) -> Result<Vec<f32>> {
        const DURING: &str = "reading the mean";
        if !self.recorded.load(Ordering::Acquire) {
            return Err(Error::NotRecorded);
        }
        let (bytes, summed) = (self.buffers.means.size(), WEIGHT_CELLS * 4);
        let staging = self.context.staging("the mean", bytes + 8)?;
        self.context.submit(DURING, |encoder| {
            encoder.copy_buffer_to_buffer(&self.buffers.means, 0, &staging, 0, bytes);
            encoder.copy_buffer_to_buffer(&self.buffers.weight_sum, summed, &staging, bytes, 8);
        })?;
        let read = |read: &[u8]| {
            let (mean, rest) = read.split_at(bytes as usize);
            let rest = bytemuck::pod_collect_to_vec::<u8, u32>(rest);
            (bytemuck::pod_collect_to_vec::<u8, f32>(mean), rest[0], rest[1])
        };
        let read = read_mapped(&staging, bytes + 8, DURING, read);
        let (mut mean, summed, refusal) = self.context.wait_for(read, DURING)?;
        if summed == 0 && !self.steps.is_empty() {
            return Err(Error::NotRecorded);
        }
        if refusal != 0 {
            return Err(Error::NonFinite { row: (u32::MAX - refusal) as usize });
        }
        mean.truncate(self.params);
        Ok(mean)
    }

    /// Overwrites everything that a run computes with nonsense, for tests.
    ///
    /// # Errors
    /// Errors of the device.
    #[doc(hidden)]
    pub fn poison(&self) -> Result<()> {
        for buffer in [&self.buffers.weight_sum, &self.buffers.sums, &self.buffers.means] {
            self.upload(buffer, &vec![0xa5; buffer.size() as usize])?;
        }
        Ok(())
    }

    fn upload(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let queue = &self.context.queue;
        guarded(&self.context.device, "writing the plan", || queue.write_buffer(buffer, 0, bytes))
            .map_err(|e| self.context.lost.explain(e))
    }
}

impl Cut {
    fn new(source: &Source<'_>, workgroup: u32) -> Self {
        let (geometry, clients) = (source.geometry, source.layout.clients());
        let tiles_per_row = geometry.columns.len();
        let windows = geometry.windows.iter().flat_map(|window| parts(window, tiles_per_row as u64));
        let mut cut = Self { windows: windows.collect(), strips: Vec::new() };
        let longest = if cut.windows.len() > 1 { LONGEST_STRIP } else { u64::MAX };
        let mut needed = 0;
        let ends = geometry.columns.iter().skip(1).copied().chain([source.layout.params() as u32]);
        for (tile, (&first, end)) in geometry.columns.iter().zip(ends).enumerate() {
            let count = end - first;
            let blocks = count.div_ceil(workgroup);
            // A strip has as many workgroups for each tile as its largest one needs: no more than half may be idle.
            needed += blocks;
            let fits = |strip: &Strip| {
                let all = (strip.tiles + 1) * strip.blocks.max(blocks);
                u64::from(strip.length + count) <= longest && all <= 2 * needed
            };
            match cut.strips.last_mut() {
                Some(strip) if fits(strip) => {
                    strip.tiles += 1;
                    strip.length += count;
                    strip.blocks = strip.blocks.max(blocks);
                }
                _ => cut.strips.push({
                    needed = blocks;
                    Strip {
                        clients: clients as u32,
                        spans_per_row: source.layout.spans_of(source.granularity, 0).len() as u32,
                        tiles_per_row: tiles_per_row as u32,
                        first_tile: tile as u32,
                        tiles: 1,
                        blocks,
                        first,
                        length: count,
                    }
                }),
            }
        }
        cut
    }

    /// Elements of the buffer of sums: none where one window holds all rows.
    fn sums(&self) -> u64 {
        let longest = self.strips.iter().map(|strip| u64::from(strip.length)).max().unwrap_or(0);
        if self.windows.len() > 1 { longest * CELLS } else { 0 }
    }
}

/// A window's tiles in parts of at most [`ROWS`] rows; a part begins where a binding can, as 2^13 tiles do.
fn parts(window: &Window, tiles_per_row: u64) -> impl Iterator<Item = Window> {
    let Range { start, end } = window.tiles;
    let (elements, step) = (window.elements.clone(), ROWS * tiles_per_row.max(1));
    (start..end)
        .step_by(step as usize)
        .map(move |first| Window { elements: elements.clone(), tiles: first..(first + step).min(end) })
}

/// Every dispatch, in order: the weights, and for each strip of coordinates the windows.
fn steps(
    context: &GpuContext,
    pipelines: &[&Pipeline],
    source: &Source<'_>,
    buffers: &Buffers,
    cut: &Cut,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let limit = context.device.limits().max_compute_workgroups_per_dimension;
    for pipeline in pipelines {
        let mut push = |strip: usize, window: Option<&Window>, workgroups: u64| {
            steps.push(Step {
                kernel: pipeline.kernel.name,
                pipeline: pipeline.pipeline.clone(),
                bindings: bind(context, pipeline, |resource| {
                    buffers.binding(source, resource, strip, window)
                }),
                workgroups: folded(workgroups, limit),
                in_scope: false,
            });
        };
        match pipeline.kernel.grid {
            Grid::Weights if !cut.strips.is_empty() => {
                push(0, None, (source.layout.clients() as u64).div_ceil(WEIGHT_ROWS));
            }
            Grid::Coordinates => {
                for (i, strip) in cut.strips.iter().enumerate() {
                    for window in &cut.windows {
                        push(i, Some(window), u64::from(strip.tiles) * u64::from(strip.blocks));
                    }
                }
            }
            _ => {}
        }
    }
    steps
}

impl Buffers {
    fn new(context: &GpuContext, layout: &Layout, cut: &Cut) -> Result<Self> {
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let read = storage | wgpu::BufferUsages::COPY_SRC;
        let words = |what, words: u64, usage| context.buffer(what, words.max(1) * 4, usage);
        let strips = cut.strips.len().max(1) as u64;
        Ok(Self {
            strips: context.buffer("the strips of the mean", strips * STRIP_BYTES, uniform)?,
            weights: words("the weights", layout.clients() as u64, storage)?,
            weight_sum: words("the sum of the weights", WEIGHT_CELLS + 2, read)?,
            sums: words("the sums of coordinates", cut.sums(), storage)?,
            means: words("the mean", layout.params() as u64, read)?,
        })
    }

    fn binding<'a>(
        &'a self,
        source: &Source<'a>,
        resource: Resource,
        strip: usize,
        window: Option<&Window>,
    ) -> Option<wgpu::BufferBinding<'a>> {
        let (buffer, bytes) = match (resource, window) {
            (Resource::Data, Some(window)) => (source.data, window.bytes(source.geometry.storage)),
            (Resource::Tiles, Some(window)) => (source.tiles, window.tiles.start * 16..window.tiles.end * 16),
            (Resource::Strip, _) => {
                let start = strip as u64 * STRIP_BYTES;
                (&self.strips, start..start + size_of::<Strip>() as u64)
            }
            (Resource::Decisions, _) => (source.decisions, 0..source.decisions.size()),
            (Resource::Run, _) => (source.run, 0..source.run.size()),
            (Resource::Weights, _) => (&self.weights, 0..self.weights.size()),
            (Resource::WeightSum, _) => (&self.weight_sum, 0..self.weight_sum.size()),
            (Resource::Columns, _) => (source.columns, 0..source.columns.size()),
            (Resource::Sums, _) => (&self.sums, 0..self.sums.size()),
            (Resource::Means, _) => (&self.means, 0..self.means.size()),
            _ => return None,
        };
        let size = wgpu::BufferSize::new(bytes.end - bytes.start);
        Some(wgpu::BufferBinding { buffer, offset: bytes.start, size })
    }
}
