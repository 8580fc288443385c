//! The plain kernels and those that measure ceilings, over the tiles that the library's kernels have.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::super::cases::{Case, MAX_NORM, Shape};
use super::super::element::Dtype;
use super::too_many_elements;
use crate::backend::gpu::{GpuContext, Tuning, folded, guard};
use crate::error::Result;

/// Tiles that a row has at most, as in the library.
const TILES_PER_ROW: usize = 32_500;

/// `Window` of plain.wgsl.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WindowParams {
    first_tile: u32,
    tiles: u32,
    tiles_per_row: u32,
    params: u32,
    tile: u32,
    base: u32,
    bound: f32,
    padding: u32,
}

/// What a workgroup of a kernel works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grid {
    /// A tile; dispatched per window.
    Tile,
    /// A row.
    Row,
}

/// An entry point of plain.wgsl, and the numbers of its bindings.
struct Kernel {
    name: &'static str,
    grid: Grid,
    bindings: &'static [u32],
}

const SQUARES: Kernel = Kernel { name: "squares", grid: Grid::Tile, bindings: &[0, 1, 3, 4] };
const ROOTS: Kernel = Kernel { name: "roots", grid: Grid::Row, bindings: &[0, 3, 5] };
const SCALE: Kernel = Kernel { name: "scale", grid: Grid::Tile, bindings: &[0, 2, 5] };
const READ_ALL: Kernel = Kernel { name: "read_all", grid: Grid::Tile, bindings: &[0, 1, 6] };
const SCALE_ALL: Kernel = Kernel { name: "scale_all", grid: Grid::Tile, bindings: &[0, 2] };

/// One kernel, bound and ready: a dispatch per window.
struct Steps {
    pipeline: wgpu::ComputePipeline,
    dispatches: Vec<(wgpu::BindGroup, (u32, u32))>,
}

pub(super) struct Kernels {
    squares: Steps,
    roots: Steps,
    scale: Steps,
    read_all: Steps,
    scale_all: Steps,
    in_scope: wgpu::Buffer,
    norms: wgpu::Buffer,
    sums: wgpu::Buffer,
    error: f32,
}

/// How a batch is cut.
struct Cut {
    tile: usize,
    tiles_per_row: usize,
    /// Tiles, and the elements of the binding that holds them.
    windows: Vec<(Range<usize>, Range<usize>)>,
}

impl Cut {
    fn new(shape: Shape, dtype: Dtype, tuning: &Tuning) -> Self {
        let tile = (tuning.tile as usize).max((shape.params / TILES_PER_ROW).next_power_of_two());
        let mut cut = Self { tile, tiles_per_row: shape.params.div_ceil(tile), windows: Vec::new() };
        let alignment = (tuning.offset_alignment / dtype.bytes()) as usize;
        for index in 0..shape.clients * cut.tiles_per_row {
            let first = (index % cut.tiles_per_row) * tile;
            let start = index / cut.tiles_per_row * shape.params + first;
            let end = start + tile.min(shape.params - first);
            match cut.windows.last_mut() {
                Some((tiles, elements)) if (end - elements.start) as u64 <= tuning.window => {
                    (tiles.end, elements.end) = (index + 1, end);
                }
                _ => cut.windows.push((index..index + 1, start / alignment * alignment..end)),
            }
        }
        cut
    }
}

/// The shader for a shape, its windows, and the buffers that its kernels bind.
struct Builder<'a> {
    context: &'a GpuContext,
    clients: usize,
    dtype: Dtype,
    /// Bytes that a kernel loads at once.
    element: u32,
    cut: Cut,
    module: wgpu::ShaderModule,
    windows: Vec<wgpu::Buffer>,
    data: &'a wgpu::Buffer,
    partials: wgpu::Buffer,
    in_scope: wgpu::Buffer,
    norms: wgpu::Buffer,
    sums: wgpu::Buffer,
}

impl<'a> Builder<'a> {
    fn new(context: &'a GpuContext, shape: Shape, dtype: Dtype, data: &'a wgpu::Buffer) -> Result<Self> {
        let cut = Cut::new(shape, dtype, &context.tuning);
        let (rows, tiles) = (shape.clients as u64 * 4, (shape.clients * cut.tiles_per_row) as u64 * 4);
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let read = storage | wgpu::BufferUsages::COPY_SRC;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let mut windows = Vec::new();
        for (tiles, elements) in &cut.windows {
            let params = WindowParams {
                first_tile: tiles.start as u32,
                tiles: tiles.len() as u32,
                tiles_per_row: cut.tiles_per_row as u32,
                params: shape.params as u32,
                tile: cut.tile as u32,
                base: elements.start as u32,
                bound: MAX_NORM,
                padding: 0,
            };
            let buffer = context.buffer("plain params", size_of::<WindowParams>() as u64, uniform)?;
            context.write("writing plain params", &buffer, 0, bytemuck::bytes_of(&params))?;
            windows.push(buffer);
        }
        let module = guard(&context.device, "compiling the plain kernels", || {
            context.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some("plain"),
                source: wgpu::ShaderSource::Wgsl(source(shape, dtype, context.tuning.subgroups).into()),
            })
        })?;
        Ok(Self {
            clients: shape.clients,
            dtype,
            element: dtype.bytes() as u32 * width(shape, dtype),
            module,
            windows,
            data,
            partials: context.buffer("plain partial sums", tiles, storage)?,
            in_scope: context.buffer("plain scope", rows, storage)?,
            norms: context.buffer("plain norms", rows, read)?,
            sums: context.buffer("plain sums of bits", tiles, read)?,
            context,
            cut,
        })
    }

    fn steps(&self, kernel: &Kernel) -> Result<Steps> {
        let limit = self.context.device.limits().max_compute_workgroups_per_dimension;
        guard(&self.context.device, "binding the plain kernels", || {
            let pipeline = pipeline(self.context, &self.module, kernel, self.element);
            let bind =
                |window: usize| bind(self.context, &pipeline, kernel, |binding| self.buffer(binding, window));
            let dispatches = match kernel.grid {
                Grid::Row => vec![(bind(0), folded(self.clients as u64, limit))],
                Grid::Tile => {
                    let window = |i: usize| (bind(i), folded(self.cut.windows[i].0.len() as u64, limit));
                    (0..self.cut.windows.len()).map(window).collect()
                }
            };
            Steps { pipeline, dispatches }
        })
    }

    fn buffer(&self, binding: u32, window: usize) -> wgpu::BufferBinding<'_> {
        match binding {
            0 => self.windows[window].as_entire_buffer_binding(),
            1 | 2 => {
                let elements = &self.cut.windows[window].1;
                wgpu::BufferBinding {
                    buffer: self.data,
                    offset: elements.start as u64 * self.dtype.bytes(),
                    size: wgpu::BufferSize::new(elements.len() as u64 * self.dtype.bytes()),
                }
            }
            3 => self.partials.as_entire_buffer_binding(),
            4 => self.in_scope.as_entire_buffer_binding(),
            5 => self.norms.as_entire_buffer_binding(),
            _ => self.sums.as_entire_buffer_binding(),
        }
    }
}

impl Kernels {
    pub(super) fn new(context: &GpuContext, shape: Shape, dtype: Dtype, data: &wgpu::Buffer) -> Result<Self> {
        if u32::try_from(shape.elements()).is_err() {
            return Err(too_many_elements(shape));
        }
        let plain = Builder::new(context, shape, dtype, data)?;
        // What the memory allows does not depend on rows.
        let whole = Builder::new(context, Shape { clients: 1, params: shape.elements() }, dtype, data)?;
        Ok(Self {
            squares: plain.steps(&SQUARES)?,
            roots: plain.steps(&ROOTS)?,
            scale: plain.steps(&SCALE)?,
            read_all: whole.steps(&READ_ALL)?,
            scale_all: whole.steps(&SCALE_ALL)?,
            error: error(&context.tuning, &plain.cut),
            in_scope: plain.in_scope,
            norms: plain.norms,
            sums: whole.sums,
        })
    }

    /// A bound of the relative error of the plain norms.
    pub(super) fn error(&self) -> f32 {
        self.error
    }

    pub(super) fn set_scope(&self, context: &GpuContext, shape: Shape, case: &Case) -> Result<()> {
        let in_scope: Vec<u32> = (0..shape.clients).map(|row| u32::from(case.in_scope(row))).collect();
        context.write("writing the plain scope", &self.in_scope, 0, bytemuck::cast_slice(&in_scope))
    }

    pub(super) fn norms(&self, encoder: &mut wgpu::CommandEncoder) {
        record(encoder, &[&self.squares, &self.roots]);
    }

    pub(super) fn scale(&self, encoder: &mut wgpu::CommandEncoder) {
        record(encoder, &[&self.scale]);
    }

    pub(super) fn read_all(&self, encoder: &mut wgpu::CommandEncoder) {
        record(encoder, &[&self.read_all]);
    }

    /// Multiplies every value by what no format has to round.
    pub(super) fn scale_all(&self, encoder: &mut wgpu::CommandEncoder) {
        record(encoder, &[&self.scale_all]);
    }

    pub(super) fn read_norms(&self, context: &GpuContext) -> Result<Vec<f32>> {
        contents(context, &self.norms)
    }

    /// The sum of all bits that `read_all` found.
    pub(super) fn sum_of_sums(&self, context: &GpuContext) -> Result<u32> {
        let sums: Vec<u32> = contents(context, &self.sums)?;
        Ok(sums.into_iter().fold(0, u32::wrapping_add))
    }
}

fn record(encoder: &mut wgpu::CommandEncoder, steps: &[&Steps]) {
    let descriptor = wgpu::ComputePassDescriptor { label: Some("plain"), timestamp_writes: None };
    let mut pass = encoder.begin_compute_pass(&descriptor);
    for step in steps {
        pass.set_pipeline(&step.pipeline);
        for (bindings, (x, y)) in &step.dispatches {
            pass.set_bind_group(0, bindings, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }
}

fn pipeline(
    context: &GpuContext,
    module: &wgpu::ShaderModule,
    kernel: &Kernel,
    element: u32,
) -> wgpu::ComputePipeline {
    let stretch = (context.tuning.stretch / element).max(1);
    let workgroup = match kernel.grid {
        Grid::Tile => context.tuning.workgroup,
        Grid::Row => of_rows(&context.tuning),
    };
    context.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.name),
        layout: None,
        module,
        entry_point: Some(kernel.name),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[("WORKGROUP", f64::from(workgroup)), ("STRETCH", f64::from(stretch))],
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    })
}

/// Invocations that join the partial sums of a row, which are few: on software adapters no more than meet no barrier.
fn of_rows(tuning: &Tuning) -> u32 {
    tuning.workgroup.min(tuning.span_workgroup)
}

fn bind<'a>(
    context: &GpuContext,
    pipeline: &wgpu::ComputePipeline,
    kernel: &Kernel,
    buffer_of: impl Fn(u32) -> wgpu::BufferBinding<'a>,
) -> wgpu::BindGroup {
    let entry = |&binding: &u32| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(buffer_of(binding)),
    };
    context.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("plain"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &kernel.bindings.iter().map(entry).collect::<Vec<_>>(),
    })
}

fn contents<T: Pod>(context: &GpuContext, buffer: &wgpu::Buffer) -> Result<Vec<T>> {
    let all = [(buffer, 0..buffer.size())];
    context.read_back("plain results", "reading plain results", &all, bytemuck::pod_collect_to_vec)
}

/// Additions in a row at most, of an invocation, a workgroup, and the same over a row's tiles; and a root and a quotient
/// that may be off by some units.
fn error(tuning: &Tuning, cut: &Cut) -> f32 {
    let (workgroup, of_spans) = (tuning.workgroup as usize, of_rows(tuning) as usize);
    let tile = cut.tile.div_ceil(workgroup) + workgroup;
    let row = cut.tiles_per_row.div_ceil(of_spans) + of_spans;
    (tile + row + 16) as f32 * f32::EPSILON
}

/// Elements that a kernel loads at once.
fn width(shape: Shape, dtype: Dtype) -> u32 {
    match (dtype, shape.params.is_multiple_of(4)) {
        (_, true) => 4,
        (Dtype::F32, false) => 1,
        (Dtype::F16 | Dtype::Bf16, false) => 2,
    }
}

/// The shader for a shape: four elements at a time where every row begins at a multiple of four, as in the library; else
/// one, or two halves.
fn source(shape: Shape, dtype: Dtype, subgroups: bool) -> String {
    let pair = match dtype {
        Dtype::F32 => "",
        Dtype::F16 => include_str!("../../../shaders/bench/pair_f16.wgsl"),
        Dtype::Bf16 => include_str!("../../../shaders/bench/pair_bf16.wgsl"),
    };
    let element = match (dtype, width(shape, dtype)) {
        (Dtype::F32, 4) => include_str!("../../../shaders/bench/element_vec4.wgsl"),
        (Dtype::F32, _) => include_str!("../../../shaders/bench/element_scalar.wgsl"),
        (_, 4) => include_str!("../../../shaders/bench/element_half_wide.wgsl"),
        (_, _) => include_str!("../../../shaders/bench/element_half_words.wgsl"),
    };
    let reduce = if subgroups {
        include_str!("../../../shaders/bench/reduce_subgroup.wgsl")
    } else {
        include_str!("../../../shaders/bench/reduce_shared.wgsl")
    };
    [pair, element, reduce, include_str!("../../../shaders/bench/plain.wgsl")].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const KERNELS: [Kernel; 5] = [SQUARES, ROOTS, SCALE, READ_ALL, SCALE_ALL];

    #[test]
    fn every_variant_binds_what_the_table_says() {
        let rows = [(8, false), (8, true), (6, false), (6, true)];
        for ((params, subgroups), dtype) in
            rows.into_iter().flat_map(|row| Dtype::ALL.map(|dtype| (row, dtype)))
        {
            let text = source(Shape { clients: 1, params }, dtype, subgroups);
            let module =
                naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
            let capabilities =
                naga::valid::Capabilities::SUBGROUP | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            let flags = naga::valid::ValidationFlags::all();
            let info = naga::valid::Validator::new(flags, capabilities).validate(&module).unwrap();
            assert_eq!(module.entry_points.len(), KERNELS.len());
            for kernel in &KERNELS {
                let entry = module.entry_points.iter().position(|entry| entry.name == kernel.name).unwrap();
                let mut used: Vec<u32> = module
                    .global_variables
                    .iter()
                    .filter(|(handle, _)| !info.get_entry_point(entry)[*handle].is_empty())
                    .filter_map(|(_, variable)| Some(variable.binding?.binding))
                    .collect();
                used.sort_unstable();
                assert_eq!(used, kernel.bindings, "{}", kernel.name);
            }
            let (_, window) =
                module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Window")).unwrap();
            let naga::TypeInner::Struct { span, .. } = window.inner else { panic!("Window is no struct") };
            assert_eq!(span as usize, size_of::<WindowParams>());
        }
    }

    #[test]
    fn windows_hold_whole_tiles_and_begin_where_bindings_can() {
        let tuning = Tuning { tile: 64, window: 1000, ..Tuning::portable() };
        let shape = Shape { clients: 7, params: 333 };
        let cut = Cut::new(shape, Dtype::F32, &tuning);
        let mut next = 0;
        for (tiles, elements) in &cut.windows {
            assert_eq!(tiles.start, next);
            assert_eq!(elements.start % 64, 0);
            assert!(elements.len() <= 1000);
            next = tiles.end;
        }
        assert_eq!((next, cut.tiles_per_row), (7 * 6, 6));
        assert_eq!(cut.windows.last().unwrap().1.end, shape.elements());
    }
}
