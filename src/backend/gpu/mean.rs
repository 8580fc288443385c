//! The weighted mean of clipped rows, recorded behind the threshold stage.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};

use super::context::GpuContext;
use super::device::guarded;
use super::geometry::{Geometry, Window};
use super::kernels::{Form, Grid, Kernel, Pipeline, Resource, Stage};
use super::params::Params;
use super::plan::WRITING;
use super::steps::{Step, bind, folded};
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::error::{Error, Result};

/// Cells of an exact sum, words of a fast one, and rows of one workgroup of `mean_weights`, as in the shaders.
pub(crate) const CELLS: u64 = 38;
pub(crate) const SUM_WORDS: u64 = 4;
pub(crate) const WEIGHT_ROWS: u64 = 1 << 14;

/// Words before the weights, as in strip.wgsl: whether they are summed, the row that is refused, and how many there are.
pub(crate) const SUMMED: u64 = 20;
pub(crate) const REFUSAL: u64 = 21;
pub(crate) const WEIGHTS: u64 = 25;

/// Bytes of the exact sum of a coordinate.
pub(super) const SUM_BYTES: u64 = CELLS * 4;

/// Rows of one dispatch of exact sums: their products fit the cells, and drivers cut off loops of 2^16 iterations.
const ROWS: u64 = 1 << 13;

/// Coordinates whose exact sums wait between dispatches: 20 MB, and as much for the fast ones.
pub(super) const LONGEST_STRIP: u64 = 1 << 17;

/// More rows have no fast sums: their error would leave every mean open.
const MOST_ROWS: u64 = 1 << 20;
/// Rows of a part, at most: drivers cut off longer loops; and at least, where there are enough coordinates for a device.
const LONGEST_PART: u64 = 1 << 14;
const SHORTEST_PART: u64 = 64;
/// Coordinates of an invocation: groups of four, as many as mean.wgsl has.
pub(super) const COORDINATES: u32 = 16;
/// Invocations that are enough for a device.
const ENOUGH: u64 = 1 << 17;

/// Bytes between strips in their buffer: every device can bind a uniform at a multiple of these.
const STRIP_BYTES: u64 = 256;

/// `Strip` of strip.wgsl.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
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
    pub rows: u32,
    pub parts: u32,
    pub error: f32,
}

/// The parts of a plan that a mean is made of.
pub(super) struct Source<'a> {
    pub layout: &'a Layout,
    pub granularity: Granularity,
    pub geometry: &'a Geometry,
    pub data: &'a wgpu::Buffer,
    pub tiles: &'a wgpu::Buffer,
    pub starts_and_center: &'a wgpu::Buffer,
    pub decisions: &'a wgpu::Buffer,
    pub run: &'a wgpu::Buffer,
    pub params: &'a wgpu::Buffer,
    pub centered: bool,
}

impl Source<'_> {
    fn form(&self) -> Form {
        Form {
            fours: self.geometry.fours,
            centered: self.centered,
            storage: self.geometry.storage,
            unpacks: false,
        }
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
    /// Their sum, and behind it the weights.
    weights: wgpu::Buffer,
    /// How many coordinates the fast sums left open, and which.
    open: wgpu::Buffer,
    /// What waits between dispatches: fast sums of parts of the rows, later exact ones.
    sums: wgpu::Buffer,
    means: wgpu::Buffer,
}

/// How rows and coordinates are cut for the device: pure arithmetic.
#[derive(Debug)]
struct Cut {
    /// Strips of coordinates.
    strips: Vec<Strip>,
    /// Strips of the list of open coordinates.
    places: Vec<Strip>,
    /// Parts of the windows, with rows that one dispatch can add exactly.
    windows: Vec<Window>,
    /// Words that wait between dispatches.
    sums: u64,
}

impl MeanPlan {
    pub(super) fn new(context: &GpuContext, source: &Source<'_>, weights: &Weights) -> Result<Self> {
        source.layout.check_alike()?;
        context.ensure_means_checked(source.centered)?;
        let context = context.clone();
        let chosen = |kernel: &Kernel| kernel.stage == Stage::Mean && (kernel.when)(source.geometry);
        let pipelines = context.pipelines.get(&context.device, &context.tuning, source.form(), chosen)?;
        let cut = Cut::new(source, &context);
        let buffers = Buffers::new(&context, source.layout, &cut)?;
        let steps = guarded(&context.device, "binding the buffers", || {
            steps(&context, &pipelines, source, &buffers, &cut)
        })?;
        let (clients, params) = (source.layout.clients(), source.layout.params());
        let start = source.geometry.tile_starts.len() as u64 * 4;
        let center = source.centered.then(|| (source.starts_and_center.clone(), start));
        let plan =
            Self { clients, params, center, buffers, steps, recorded: AtomicBool::new(false), context };
        let words = STRIP_BYTES as usize / 4;
        let mut strips = vec![0u32; (cut.strips.len() + cut.places.len()) * words];
        for (place, strip) in strips.chunks_exact_mut(words).zip(cut.strips.iter().chain(&cut.places)) {
            place[..size_of::<Strip>() / 4].copy_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(strip)));
        }
        plan.upload(&plan.buffers.strips, 0, bytemuck::cast_slice(&strips))?;
        plan.set_weights(weights)?;
        Ok(plan)
    }

    /// Sets the weights for the submissions that follow.
    ///
    /// # Errors
    /// Those of [`Weights::of_rows`]; errors of the device.
    pub fn set_weights(&self, weights: &Weights) -> Result<()> {
        let weights = weights.of_rows(self.clients)?;
        self.upload(&self.buffers.weights, WEIGHTS * 4, bytemuck::cast_slice(&weights))
    }

    /// Records the mean stage, on the decisions in the plan that it was made from.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        self.recorded.store(true, Ordering::Release);
        encoder.clear_buffer(&self.buffers.weights, 0, Some(WEIGHTS * 4));
        encoder.clear_buffer(&self.buffers.open, 0, Some(4));
        if self.steps.is_empty() {
            // Without rows the mean is the centre, or zeros.
            encoder.clear_buffer(&self.buffers.means, 0, None);
            if let Some((buffer, start)) = &self.center {
                let bytes = (self.params * 4) as u64;
                encoder.copy_buffer_to_buffer(buffer, *start, &self.buffers.means, 0, bytes);
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
        if !self.recorded.load(Ordering::Acquire) {
            return Err(Error::NotRecorded);
        }
        let bytes = self.buffers.means.size();
        let of_weights = SUMMED * 4..(REFUSAL + 1) * 4;
        let parts = [(&self.buffers.means, 0..bytes), (&self.buffers.weights, of_weights)];
        let read = |read: &[u8]| {
            let (mean, rest) = read.split_at(bytes as usize);
            let rest = bytemuck::pod_collect_to_vec::<u8, u32>(rest);
            (bytemuck::pod_collect_to_vec::<u8, f32>(mean), rest[0], rest[(REFUSAL - SUMMED) as usize])
        };
        let (mut mean, summed, refusal) =
            self.context.read_back("the mean", "reading the mean", &parts, read)?;
        if summed == 0 && !self.steps.is_empty() {
            return Err(Error::NotRecorded);
        }
        if refusal != 0 {
            return Err(Error::NonFinite { row: (u32::MAX - refusal) as usize });
        }
        mean.truncate(self.params);
        Ok(mean)
    }

    /// How many coordinates the fast sums of the last submitted run left open, for tests.
    ///
    /// # Errors
    /// Errors of the device.
    #[doc(hidden)]
    pub fn open_blocking(&self) -> Result<u32> {
        let parts = [(&self.buffers.open, 0..4)];
        self.context.read_back(
            "the list of open means",
            "reading the list of open means",
            &parts,
            bytemuck::pod_read_unaligned,
        )
    }

    /// Overwrites everything that a run computes with nonsense, for tests.
    ///
    /// # Errors
    /// Errors of the device.
    #[doc(hidden)]
    pub fn poison(&self) -> Result<()> {
        self.upload(&self.buffers.weights, 0, &[0xa5; WEIGHTS as usize * 4])?;
        for buffer in [&self.buffers.open, &self.buffers.sums, &self.buffers.means] {
            self.upload(buffer, 0, &vec![0xa5; buffer.size() as usize])?;
        }
        Ok(())
    }

    fn upload(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.context.write(WRITING, buffer, offset, bytes)
    }
}

impl Cut {
    fn new(source: &Source<'_>, context: &GpuContext) -> Self {
        let (geometry, layout) = (source.geometry, source.layout);
        let tiles_per_row = geometry.tile_starts.len();
        let limits = context.device.limits();
        let bound = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 4;
        let most = bound.min(LONGEST_STRIP * CELLS);
        let tuning = &context.tuning;
        let exact_only = tuning.force_exact || context.fast_means_failed(source.centered);
        let clients = layout.clients() as u64;
        let parts = if exact_only {
            0
        } else {
            parts_of(clients, layout.params() as u64, most / (SUM_WORDS * geometry.longest.max(1)))
        };
        let rows = clients.div_ceil(parts.max(1)).max(1);
        let parts = if parts == 0 { 0 } else { clients.div_ceil(rows) };
        let strip = Strip {
            clients: clients as u32,
            spans_per_row: if clients == 0 { 0 } else { layout.spans_of(source.granularity, 0).len() as u32 },
            tiles_per_row: tiles_per_row as u32,
            rows: rows as u32,
            parts: parts as u32,
            error: tuning.mean_error(rows, parts, geometry.windows.len() as u64),
            ..Strip::zeroed()
        };
        // Without sums that wait a strip is as long as it likes.
        let waits = parts != 1 || geometry.windows.len() > 1;
        let longest = if waits && parts > 0 { most / SUM_WORDS / parts } else { u64::MAX };
        let strips = strips(&strip, source, COORDINATES * tuning.workgroup, longest);
        let windows: Vec<_> =
            geometry.windows.iter().flat_map(|window| pieces(window, tiles_per_row as u64)).collect();
        let longest_list = if windows.len() > 1 { LONGEST_STRIP.min(bound / CELLS).max(1) } else { u64::MAX };
        let params = layout.params() as u64;
        let places = |first: u64| Strip {
            first: first as u32,
            length: (params - first).min(longest_list) as u32,
            ..strip
        };
        let places: Vec<_> = if strips.is_empty() {
            Vec::new()
        } else {
            (0..params).step_by(usize::try_from(longest_list).unwrap_or(usize::MAX)).map(places).collect()
        };
        let most_of =
            |strips: &[Strip]| strips.iter().map(|strip| u64::from(strip.length)).max().unwrap_or(0);
        let fast = if waits { most_of(&strips) * parts * SUM_WORDS } else { 0 };
        let exact = if windows.len() > 1 { most_of(&places) * CELLS } else { 0 };
        Self { strips, places, windows, sums: fast.max(exact) }
    }
}

/// In how many parts the rows are summed: enough for a device where there are few coordinates, and no more than the sums that wait have
/// room for. 0 where all sums have to be exact.
fn parts_of(clients: u64, params: u64, most: u64) -> u64 {
    let enough = (u64::from(COORDINATES) * ENOUGH / params.max(1)).min(clients / SHORTEST_PART);
    let parts = enough.min(most).max(clients.div_ceil(LONGEST_PART)).max(1);
    if clients > MOST_ROWS || parts > most { 0 } else { parts }
}

/// The coordinates in strips of whole tiles, of no more than `longest` where they are shorter; a workgroup takes `each` coordinates.
fn strips(strip: &Strip, source: &Source<'_>, each: u32, longest: u64) -> Vec<Strip> {
    let starts = &source.geometry.tile_starts;
    let mut strips: Vec<Strip> = Vec::new();
    let mut needed = 0;
    let ends = starts.iter().skip(1).copied().chain([source.layout.params() as u32]);
    for (tile, (&first, end)) in starts.iter().zip(ends).enumerate() {
        let count = end - first;
        let blocks = count.div_ceil(each);
        // A strip has as many workgroups for each tile as its largest one needs: no more than half may be idle.
        needed += blocks;
        let fits = |strip: &Strip| {
            let all = (strip.tiles + 1) * strip.blocks.max(blocks);
            u64::from(strip.length + count) <= longest && all <= 2 * needed
        };
        match strips.last_mut() {
            Some(strip) if fits(strip) => {
                strip.tiles += 1;
                strip.length += count;
                strip.blocks = strip.blocks.max(blocks);
            }
            _ => {
                needed = blocks;
                strips.push(Strip {
                    first_tile: tile as u32,
                    tiles: 1,
                    blocks,
                    first,
                    length: count,
                    ..*strip
                });
            }
        }
    }
    strips
}

/// A window's tiles in pieces of at most [`ROWS`] rows; a piece begins where a binding can, as 2^13 tiles do.
fn pieces(window: &Window, tiles_per_row: u64) -> impl Iterator<Item = Window> {
    let Range { start, end } = window.tiles;
    let (elements, step) = (window.elements.clone(), ROWS * tiles_per_row.max(1));
    (start..end)
        .step_by(step as usize)
        .map(move |first| Window { elements: elements.clone(), tiles: first..(first + step).min(end) })
}

/// Every dispatch, in order: the weights, the fast sums of each strip, and the exact ones of what these leave open.
fn steps(
    context: &GpuContext,
    pipelines: &[&Pipeline],
    source: &Source<'_>,
    buffers: &Buffers,
    cut: &Cut,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if cut.strips.is_empty() {
        return steps;
    }
    let limit = context.device.limits().max_compute_workgroups_per_dimension;
    let mut push = |grid: Grid, strip: usize, window: Option<&Window>, work: &dyn Fn(u64) -> u64| {
        for pipeline in pipelines.iter().filter(|pipeline| pipeline.kernel.grid == grid) {
            steps.push(Step {
                kernel: pipeline.kernel.name,
                pipeline: pipeline.pipeline.clone(),
                bindings: bind(context, pipeline, |resource| {
                    buffers.binding(source, resource, strip, window)
                }),
                workgroups: folded(work(u64::from(pipeline.workgroup)), limit),
                in_scope: false,
            });
        }
    };
    push(Grid::Weights, 0, None, &|_| (source.layout.clients() as u64).div_ceil(WEIGHT_ROWS));
    push(Grid::Divisor, 0, None, &|_| 1);
    let windows = &source.geometry.windows;
    for (i, strip) in cut.strips.iter().enumerate() {
        for window in windows.iter().filter(|_| strip.parts > 0) {
            let parts = parts_in(source.geometry, window, strip);
            push(Grid::Coordinates, i, Some(window), &|_| {
                u64::from(strip.tiles) * u64::from(strip.blocks) * parts
            });
        }
        if strip.parts != 1 || windows.len() > 1 {
            push(Grid::Strip, i, None, &|each| u64::from(strip.length).div_ceil(each));
        }
    }
    for (i, strip) in cut.places.iter().enumerate() {
        for window in &cut.windows {
            let tiles = window.tiles.end - window.tiles.start;
            let rows = tiles.div_ceil(source.geometry.tile_starts.len() as u64) + 1;
            push(Grid::OpenCoordinates, cut.strips.len() + i, Some(window), &|_| {
                let clients = u64::from(strip.clients);
                context.tuning.exact_mean_workgroups(u64::from(strip.length), rows, clients)
            });
        }
    }
    steps
}

/// Of how many parts of the rows the window has something.
fn parts_in(geometry: &Geometry, window: &Window, strip: &Strip) -> u64 {
    let part = |tile: u64| geometry.tiles[tile as usize].slot / strip.tiles_per_row / strip.rows;
    u64::from(part(window.tiles.end - 1) - part(window.tiles.start)) + 1
}

impl Buffers {
    fn new(context: &GpuContext, layout: &Layout, cut: &Cut) -> Result<Self> {
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let read = storage | wgpu::BufferUsages::COPY_SRC;
        let words = |what, words: u64, usage| context.buffer(what, words.max(1) * 4, usage);
        let strips = (cut.strips.len() + cut.places.len()).max(1) as u64;
        let (clients, params) = (layout.clients() as u64, layout.params() as u64);
        Ok(Self {
            strips: context.buffer("the strips of the mean", strips * STRIP_BYTES, uniform)?,
            weights: words("the weights", WEIGHTS + clients, read)?,
            open: words("the list of open means", 1 + params, read)?,
            sums: words("the sums of coordinates", cut.sums, storage)?,
            means: words("the mean", params, read)?,
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
            (Resource::Params, _) => (source.params, 0..size_of::<Params>() as u64),
            (Resource::Weights, _) => (&self.weights, 0..self.weights.size()),
            (Resource::Open, _) => (&self.open, 0..self.open.size()),
            (Resource::StartsAndCenter, _) => (source.starts_and_center, 0..source.starts_and_center.size()),
            (Resource::Sums, _) => (&self.sums, 0..self.sums.size()),
            (Resource::Means, _) => (&self.means, 0..self.means.size()),
            _ => return None,
        };
        let size = wgpu::BufferSize::new(bytes.end - bytes.start);
        Some(wgpu::BufferBinding { buffer, offset: bytes.start, size })
    }
}
