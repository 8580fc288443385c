//! The kernel table: every entry point, its file, its bindings and its workgroup; and pipelines, made from it.
//!
//! A new kernel is an entry point under `shaders/` and a row here; if its file is new, also a variant of [`Shader`] and what that needs
//! beside it (`sources.rs`). A stage dispatches its kernels in the order of the table.

use std::sync::OnceLock;

use super::Tuning;
use super::device::guarded;
use super::geometry::Geometry;
use super::sources::{Shader, Variant, source};
use super::storage::{Fours, Storage};
use crate::error::Result;
use crate::half::Half;
use crate::report::Strategy;

/// What goes on where an error is one of a kernel that does not compile.
pub(super) const COMPILING: &str = "compiling the kernels";

/// What a kernel binds; the number is its `@binding` in every shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Resource {
    Params = 0,
    Data = 1,
    Tiles = 2,
    Spans = 3,
    Partials = 4,
    Norms = 5,
    ExactSums = 6,
    Decisions = 7,
    Run = 8,
    Groups = 9,
    Members = 10,
    State = 11,
    Bounds = 12,
    Strip = 13,
    Weights = 14,
    Open = 15,
    StartsAndCenter = 16,
    Sums = 17,
    Means = 18,
}

/// How a kernel uses a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Uniform,
    Read,
    ReadWrite,
}

/// What one workgroup of a kernel works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    /// One tile; dispatched per window.
    Tile,
    /// As many short tiles as its invocations are enough for; dispatched per window.
    ShortTiles,
    /// The tiles of open spans, in turn with the other workgroups; dispatched per window.
    OpenTiles,
    /// An open span to an invocation, in turn with the others.
    OpenSpans,
    /// An open span, in turn with the other workgroups.
    OpenFew,
    /// One span.
    Span,
    /// As many spans as it has invocations.
    Spans,
    /// A span to each invocation, of a workgroup of the size that tiles have.
    FewSpans,
    /// One group of spans that share a bound.
    Group,
    /// The weights of 2^14 rows.
    Weights,
    /// The sum of all weights.
    Divisor,
    /// As many groups of four coordinates of a tile as it has invocations, in a part of the rows; dispatched per window.
    Coordinates,
    /// As many coordinates of a strip as it has invocations.
    Strip,
    /// Coordinates whose mean is open, in turn with the other workgroups; dispatched per window.
    OpenCoordinates,
}

/// What a kernel is a part of. A run, or a stage alone, takes some of these (`steps.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Fast sums, and norms from them.
    Norms,
    /// The same for a row at a time, with its clip.
    Fused,
    /// Norms that fast sums left open.
    Exact,
    Threshold,
    Clip,
    /// The clip of what others have left.
    Left,
    /// The mean, which has a plan of its own.
    Mean,
}

/// A row of the kernel table.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The entry point.
    pub name: &'static str,
    /// The file that holds it.
    pub shader: Shader,
    pub stage: Stage,
    /// Whether its stage takes it in a batch that is cut like this.
    pub when: fn(&Geometry) -> bool,
    pub bindings: &'static [(Resource, Access)],
    pub grid: Grid,
}

fn always(_: &Geometry) -> bool {
    true
}

/// Where short rows share workgroups.
fn is_short(geometry: &Geometry) -> bool {
    geometry.strategy == Strategy::Rows
}

fn is_long(geometry: &Geometry) -> bool {
    !is_short(geometry)
}

use Access::{Read, ReadWrite, Uniform};
use Resource::{
    Bounds, Data, Decisions, ExactSums, Groups, Means, Members, Norms, Open, Params, Partials, Run, Spans,
    StartsAndCenter, State, Strip, Sums, Tiles, Weights,
};

/// What both kernels bind that join the partial sums of spans, and list what stays open.
const OF_SPANS: &[(Resource, Access)] = &[
    (Params, Uniform),
    (Spans, Read),
    (Partials, ReadWrite),
    (Norms, ReadWrite),
    (ExactSums, ReadWrite),
    (Decisions, ReadWrite),
    (Run, ReadWrite),
];

/// What both kernels of the clip stage bind.
const OF_CLIPS: &[(Resource, Access)] =
    &[(Params, Uniform), (Data, ReadWrite), (Tiles, Read), (Decisions, Read), (StartsAndCenter, Read)];

/// What both kernels of exact means bind.
const OF_EXACT_MEANS: &[(Resource, Access)] = &[
    (Data, Read),
    (Tiles, Read),
    (Decisions, Read),
    (Strip, Uniform),
    (Weights, Read),
    (Open, Read),
    (StartsAndCenter, Read),
    (Sums, ReadWrite),
    (Means, ReadWrite),
];

/// In the order in which a run dispatches them.
pub(crate) const KERNELS: [Kernel; 20] = [
    Kernel {
        name: "norms_tiles",
        shader: Shader::Norms,
        stage: Stage::Norms,
        when: is_long,
        bindings: &[
            (Params, Uniform),
            (Data, Read),
            (Tiles, Read),
            (Spans, Read),
            (Partials, ReadWrite),
            (StartsAndCenter, Read),
        ],
        grid: Grid::Tile,
    },
    Kernel {
        name: "norms_spans",
        shader: Shader::Norms,
        stage: Stage::Norms,
        when: |of| is_long(of) && !of.few,
        bindings: OF_SPANS,
        grid: Grid::Span,
    },
    Kernel {
        name: "norms_few",
        shader: Shader::Norms,
        stage: Stage::Norms,
        when: |of| is_long(of) && of.few && !of.at_once,
        bindings: OF_SPANS,
        grid: Grid::Spans,
    },
    Kernel {
        name: "norms_at_once",
        shader: Shader::NormsAtOnce,
        stage: Stage::Norms,
        when: |of| of.at_once,
        bindings: &[
            (Params, Uniform),
            (Data, Read),
            (Tiles, Read),
            (Spans, Read),
            (Partials, ReadWrite),
            (Norms, ReadWrite),
            (Decisions, ReadWrite),
            (Run, ReadWrite),
            (StartsAndCenter, Read),
        ],
        grid: Grid::FewSpans,
    },
    Kernel {
        name: "norms_rows",
        shader: Shader::Norms,
        stage: Stage::Norms,
        when: is_short,
        bindings: &[
            (Params, Uniform),
            (Data, Read),
            (Tiles, Read),
            (Spans, Read),
            (Norms, ReadWrite),
            (ExactSums, ReadWrite),
            (Decisions, ReadWrite),
            (Run, ReadWrite),
            (StartsAndCenter, Read),
        ],
        grid: Grid::ShortTiles,
    },
    Kernel {
        name: "fused",
        shader: Shader::Fused,
        stage: Stage::Fused,
        when: |of| of.strategy == Strategy::Fused,
        bindings: &[
            (Params, Uniform),
            (Data, ReadWrite),
            (Tiles, Read),
            (Spans, Read),
            (Norms, ReadWrite),
            (ExactSums, ReadWrite),
            (Decisions, ReadWrite),
            (Run, ReadWrite),
            (StartsAndCenter, Read),
        ],
        grid: Grid::Tile,
    },
    Kernel {
        name: "exact_few",
        shader: Shader::Exact,
        stage: Stage::Exact,
        when: |of| of.few_exact && !of.at_once,
        bindings: &[
            (Params, Uniform),
            (Data, Read),
            (Tiles, Read),
            (Spans, Read),
            (Norms, ReadWrite),
            (Decisions, ReadWrite),
            (Run, Read),
            (StartsAndCenter, Read),
        ],
        grid: Grid::OpenFew,
    },
    Kernel {
        name: "exact_tiles",
        shader: Shader::Exact,
        stage: Stage::Exact,
        when: |of| !of.few_exact,
        bindings: &[
            (Params, Uniform),
            (Data, Read),
            (Tiles, Read),
            (ExactSums, ReadWrite),
            (Run, Read),
            (StartsAndCenter, Read),
        ],
        grid: Grid::OpenTiles,
    },
    Kernel {
        name: "exact_spans",
        shader: Shader::Exact,
        stage: Stage::Exact,
        when: |of| !of.few_exact,
        bindings: &[
            (Params, Uniform),
            (Spans, Read),
            (Norms, ReadWrite),
            (ExactSums, ReadWrite),
            (Decisions, ReadWrite),
            (Run, Read),
        ],
        grid: Grid::OpenSpans,
    },
    Kernel {
        name: "threshold_groups",
        shader: Shader::Threshold,
        stage: Stage::Threshold,
        when: always,
        bindings: &[
            (Params, Uniform),
            (Spans, Read),
            (Norms, Read),
            (Run, ReadWrite),
            (Groups, Read),
            (Members, Read),
            (State, ReadWrite),
            (Bounds, ReadWrite),
        ],
        grid: Grid::Group,
    },
    Kernel {
        name: "threshold_spans",
        shader: Shader::Threshold,
        stage: Stage::Threshold,
        when: always,
        bindings: &[
            (Params, Uniform),
            (Spans, Read),
            (Norms, Read),
            (Decisions, ReadWrite),
            (Run, ReadWrite),
            (Bounds, ReadWrite),
        ],
        grid: Grid::Spans,
    },
    Kernel {
        name: "clip",
        shader: Shader::Clip,
        stage: Stage::Clip,
        when: is_long,
        bindings: OF_CLIPS,
        grid: Grid::Tile,
    },
    Kernel {
        name: "clip_rows",
        shader: Shader::Clip,
        stage: Stage::Clip,
        when: is_short,
        bindings: OF_CLIPS,
        grid: Grid::ShortTiles,
    },
    Kernel {
        name: "clip_left",
        shader: Shader::Clip,
        stage: Stage::Left,
        when: |of| matches!(of.strategy, Strategy::Fused | Strategy::Grouped),
        bindings: &[
            (Params, Uniform),
            (Data, ReadWrite),
            (Tiles, Read),
            (Decisions, Read),
            (Run, Read),
            (StartsAndCenter, Read),
        ],
        grid: Grid::OpenTiles,
    },
    Kernel {
        name: "mean_weights",
        shader: Shader::MeanWeights,
        stage: Stage::Mean,
        when: always,
        bindings: &[(Decisions, Read), (Run, Read), (Strip, Uniform), (Weights, ReadWrite)],
        grid: Grid::Weights,
    },
    Kernel {
        name: "mean_divisor",
        shader: Shader::MeanWeights,
        stage: Stage::Mean,
        when: always,
        bindings: &[(Weights, ReadWrite)],
        grid: Grid::Divisor,
    },
    Kernel {
        name: "mean_sums",
        shader: Shader::Mean,
        stage: Stage::Mean,
        when: always,
        bindings: &[
            (Params, Uniform),
            (Data, Read),
            (Tiles, Read),
            (Decisions, Read),
            (Strip, Uniform),
            (Weights, Read),
            (Open, ReadWrite),
            (StartsAndCenter, Read),
            (Sums, ReadWrite),
            (Means, ReadWrite),
        ],
        grid: Grid::Coordinates,
    },
    Kernel {
        name: "mean_join",
        shader: Shader::Mean,
        stage: Stage::Mean,
        when: always,
        bindings: &[
            (Params, Uniform),
            (Strip, Uniform),
            (Weights, Read),
            (Open, ReadWrite),
            (StartsAndCenter, Read),
            (Sums, ReadWrite),
            (Means, ReadWrite),
        ],
        grid: Grid::Strip,
    },
    Kernel {
        name: "mean_exact",
        shader: Shader::MeanExact,
        stage: Stage::Mean,
        when: |of| !of.many_rows,
        bindings: OF_EXACT_MEANS,
        grid: Grid::OpenCoordinates,
    },
    Kernel {
        name: "mean_exact_many",
        shader: Shader::MeanExact,
        stage: Stage::Mean,
        when: |of| of.many_rows,
        bindings: OF_EXACT_MEANS,
        grid: Grid::OpenCoordinates,
    },
];

/// A kernel that is ready to run.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub kernel: &'static Kernel,
    pub layout: wgpu::BindGroupLayout,
    pub pipeline: wgpu::ComputePipeline,
    /// Invocations of a workgroup.
    pub workgroup: u32,
}

/// What the pipelines of a plan depend on, beside the tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub fours: Fours,
    pub centered: bool,
    pub storage: Storage,
    /// Whether sums widen f16 by the device's own conversion.
    pub unpacks: bool,
}

impl Form {
    /// How many there are: ways to reach elements, with a centre or without, storages, and two for f16.
    const COUNT: usize = 3 * 2 * 4;

    /// Its place among all.
    fn index(self) -> usize {
        let storage = match self.storage {
            Storage::Single => 0,
            Storage::Half(Half::F16) => 1 + 2 * usize::from(self.unpacks),
            Storage::Half(Half::Bf16) => 2,
        };
        self.fours as usize + 3 * usize::from(self.centered) + 6 * storage
    }
}

/// The pipelines of a device, each made on first use: compiling takes longer than small batches do, on some devices
/// seconds a kernel, and no plan needs all of them.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    forms: [[OnceLock<Pipeline>; KERNELS.len()]; Form::COUNT],
}

impl Pipelines {
    /// The pipelines of the kernels that are chosen, in the order of the table.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        tuning: &Tuning,
        form: Form,
        chosen: impl Fn(&Kernel) -> bool,
    ) -> Result<Vec<&Pipeline>> {
        let one = |(kernel, cell)| Self::one(cell, device, kernel, form, tuning);
        let cells = KERNELS.iter().zip(&self.forms[form.index()]);
        cells.filter(|(kernel, _)| chosen(kernel)).map(one).collect()
    }

    fn one<'a>(
        cell: &'a OnceLock<Pipeline>,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        form: Form,
        tuning: &Tuning,
    ) -> Result<&'a Pipeline> {
        if let Some(made) = cell.get() {
            return Ok(made);
        }
        let made = guarded(device, COMPILING, || build_one(device, kernel, form, tuning))?;
        Ok(cell.get_or_init(|| made))
    }
}

fn build_one(device: &wgpu::Device, kernel: &'static Kernel, form: Form, tuning: &Tuning) -> Pipeline {
    let variant = Variant {
        fours: form.fours,
        subgroups: tuning.subgroups,
        doubles: tuning.doubles,
        unpacks: form.unpacks,
        storage: form.storage,
    };
    let module = module(device, tuning, kernel.name, source(kernel.shader, variant));
    let entries: Vec<_> = kernel.bindings.iter().map(layout_entry).collect();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(kernel.name),
        entries: &entries,
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(kernel.name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let workgroup = match kernel.grid {
        Grid::Tile | Grid::OpenTiles | Grid::OpenFew | Grid::FewSpans => tuning.workgroup,
        Grid::Coordinates | Grid::OpenCoordinates => tuning.workgroup,
        Grid::ShortTiles | Grid::Span | Grid::Spans | Grid::OpenSpans => tuning.span_workgroup,
        Grid::Weights | Grid::Divisor | Grid::Strip => tuning.span_workgroup,
        // The most that every device can run: a selection walks through all norms of a group, five times.
        Grid::Group => 256,
    };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some(kernel.name),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[
                ("WORKGROUP", f64::from(workgroup)),
                ("LANES", f64::from(tuning.lanes())),
                ("SUBGROUP_MIN", f64::from(tuning.subgroup_min)),
                ("STRETCH", f64::from((tuning.stretch / (4 * form.storage.bytes() as u32)).max(1))),
                ("STREAMS", f64::from(tuning.streams)),
                ("CENTERED", f64::from(u8::from(form.centered))),
            ],
            // Every kernel writes the shared memory that it reads.
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    Pipeline { kernel, layout, pipeline, workgroup }
}

/// A shader module, with the checks that wgpu adds to it but where the tuning does without.
fn module(device: &wgpu::Device, tuning: &Tuning, label: &str, source: String) -> wgpu::ShaderModule {
    let source = wgpu::ShaderSource::Wgsl(source.into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(label), source };
    #[cfg(feature = "trusted")]
    if tuning.trusted {
        #[allow(unsafe_code)]
        // SAFETY: the kernels read and write what the geometry lists, all of it inside the buffers that a plan has
        // checked or made; they have no loop without an end, and divide by nothing that may be 0.
        return unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
    }
    let _ = tuning;
    device.create_shader_module(descriptor)
}

fn layout_entry(&(resource, access): &(Resource, Access)) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Uniform => wgpu::BufferBindingType::Uniform,
        Read => wgpu::BufferBindingType::Storage { read_only: true },
        ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding: resource as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::collections::BTreeMap;

    use super::super::buffers::EXACT_SUM_BYTES;
    use super::super::geometry::{NO_SPAN, Span, Tile};
    use super::super::params::{
        CLIPS_ALL, CLIPS_NONE, CLIPS_OPEN, CUT, DeviceDecision, Params, RUN_BYTES, RUN_DECISIONS, RUN_NORMS,
        RUN_OPEN, policy_code,
    };
    use super::super::rules::{Group, NO_GROUP, RULE_ADAPTIVE, RULE_ARC, RULE_HISTORY, RULE_QUANTILE};
    use super::*;
    use crate::clip::{NonFinite, Status};
    use crate::norms::{INFINITY_BITS, Norm, NormClass};
    use crate::threshold::{BILLION, NO_NORM};

    const STORAGES: [Storage; 3] = [Storage::Single, Storage::Half(Half::F16), Storage::Half(Half::Bf16)];

    const FOURS: [Fours; 3] = [Fours::None, Fours::Loose, Fours::Aligned];

    const PORTABLE: Variant = Variant {
        fours: Fours::Aligned,
        subgroups: false,
        doubles: false,
        unpacks: false,
        storage: Storage::Single,
    };

    fn variants() -> impl Iterator<Item = Variant> {
        let both = [false, true];
        STORAGES.into_iter().flat_map(move |storage| {
            FOURS.into_iter().flat_map(move |fours| {
                both.into_iter().flat_map(move |subgroups| {
                    both.map(|doubles| Variant { fours, subgroups, doubles, unpacks: doubles, storage })
                })
            })
        })
    }

    fn parse(shader: Shader, variant: Variant) -> (naga::Module, naga::valid::ModuleInfo) {
        let text = source(shader, variant);
        let module =
            naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
        use naga::valid::Capabilities;
        let capabilities =
            Capabilities::SUBGROUP | Capabilities::FLOAT64 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
        let info = validator.validate(&module).unwrap_or_else(|e| panic!("{shader:?}: {e:?}"));
        (module, info)
    }

    /// What an entry point really uses: bindings with their access.
    fn used(module: &naga::Module, info: &naga::valid::ModuleInfo, name: &str) -> Vec<(u32, Access)> {
        let entry = module.entry_points.iter().position(|entry| entry.name == name).unwrap();
        let mut used = Vec::new();
        for (handle, variable) in module.global_variables.iter() {
            let (Some(binding), usage) = (variable.binding, info.get_entry_point(entry)[handle]) else {
                continue;
            };
            if usage.is_empty() {
                continue;
            }
            let access = match variable.space {
                naga::AddressSpace::Uniform => Uniform,
                naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                    ReadWrite
                }
                _ => Read,
            };
            used.push((binding.binding, access));
        }
        used.sort_by_key(|(binding, _)| *binding);
        used
    }

    #[test]
    fn every_kernel_declares_in_the_table_what_its_shader_uses() {
        for kernel in &KERNELS {
            for variant in variants() {
                let (module, info) = parse(kernel.shader, variant);
                let table: Vec<_> =
                    kernel.bindings.iter().map(|&(resource, access)| (resource as u32, access)).collect();
                assert_eq!(table, used(&module, &info, kernel.name), "{} {variant:?}", kernel.name);
            }
        }
    }

    #[test]
    fn every_entry_point_is_in_the_table() {
        for shader in KERNELS.map(|kernel| kernel.shader) {
            for entry in &parse(shader, PORTABLE).0.entry_points {
                let has_row = KERNELS.iter().any(|k| k.shader == shader && k.name == entry.name);
                assert!(has_row, "{shader:?}: {}", entry.name);
            }
        }
    }

    /// A file that no source has would hold kernels that no table misses.
    #[test]
    fn every_file_of_shaders_is_compiled() {
        let sources: String = KERNELS
            .iter()
            .flat_map(|kernel| variants().map(|variant| source(kernel.shader, variant)))
            .collect();
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")).unwrap();
        // Those below `bench` are the benchmarks' own.
        for file in files.map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(sources.contains(&text), "{} is compiled for no kernel", file.display());
        }
    }

    #[test]
    fn structs_have_the_size_that_the_shaders_give_them() {
        let (module, _) = parse(Shader::Threshold, PORTABLE);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let size = |name: &str| {
            let (handle, _) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).unwrap();
            layouter[handle].size as usize
        };
        assert_eq!(size("Params"), size_of::<Params>());
        assert_eq!(size("Tile"), size_of::<Tile>());
        assert_eq!(size("Span"), size_of::<Span>());
        assert_eq!(size("Norm"), size_of::<Norm>());
        assert_eq!(size("Group"), size_of::<Group>());
        assert_eq!(size("Decision"), size_of::<DeviceDecision>());
    }

    /// The constants of a shader, and their values where these are whole numbers.
    fn constants(module: &naga::Module) -> BTreeMap<&str, Option<u32>> {
        let value = |constant: &naga::Constant| match module.global_expressions[constant.init] {
            naga::Expression::Literal(naga::Literal::U32(value)) => Some(value),
            _ => None,
        };
        module.constants.iter().filter_map(|(_, c)| Some((c.name.as_deref()?, value(c)))).collect()
    }

    #[test]
    fn kernels_have_the_hosts_constants() {
        let common = naga::front::wgsl::parse_str(include_str!("../../../shaders/common.wgsl")).unwrap();
        let of_host = BTreeMap::from([
            ("BELOW", NormClass::Below as u32),
            ("EXACT", NormClass::Exact as u32),
            ("ABOVE", NormClass::Above as u32),
            ("NON_FINITE", NormClass::NonFinite as u32),
            ("OUT_OF_SCOPE", NormClass::OutOfScope as u32),
            ("UNTOUCHED", Status::Untouched as u32),
            ("CLIPPED", Status::Clipped as u32),
            ("ZEROED", Status::Zeroed as u32),
            ("STATUS_OUT_OF_SCOPE", Status::OutOfScope as u32),
            ("KEPT", Status::Kept as u32),
            ("CUT", CUT),
            ("POLICY_ZERO", policy_code(NonFinite::Zero)),
            ("POLICY_ERROR", policy_code(NonFinite::Error)),
            ("POLICY_KEEP", policy_code(NonFinite::Keep)),
            ("CLIPS_ALL", CLIPS_ALL),
            ("CLIPS_OPEN", CLIPS_OPEN),
            ("CLIPS_NONE", CLIPS_NONE),
            ("RULE_QUANTILE", RULE_QUANTILE),
            ("RULE_HISTORY", RULE_HISTORY),
            ("RULE_ARC", RULE_ARC),
            ("RULE_ADAPTIVE", RULE_ADAPTIVE),
            // A plan that is given norms writes the words of the run from this one on.
            ("RUN_NON_FINITE", 0),
            ("RUN_NORMS", RUN_NORMS as u32),
            ("RUN_DECISIONS", RUN_DECISIONS as u32),
            ("RUN_OPEN_SPANS", RUN_OPEN.start as u32 / 4),
            ("RUN_OPEN_TILES", RUN_OPEN.end as u32 / 4 - 1),
            ("RUN_LIST", RUN_BYTES as u32 / 4),
            ("NO_GROUP", NO_GROUP),
            ("NO_NORM", NO_NORM),
            ("NO_SPAN", NO_SPAN),
            ("INFINITY", INFINITY_BITS),
            ("MAGNITUDE", i32::MAX as u32),
            ("LIMBS", EXACT_SUM_BYTES as u32 / 4),
            // Known to the shaders only, and so none of the host's.
            ("UNDECIDED", NormClass::OutOfScope as u32 + 1),
            ("REFUSED", CUT + 1),
        ]);
        // Both ways: a constant that common.wgsl gets has to have a line here.
        let of_host: BTreeMap<_, _> = of_host.into_iter().map(|(name, value)| (name, Some(value))).collect();
        assert_eq!(constants(&common), of_host);
        assert_eq!(constants(&parse(Shader::Threshold, PORTABLE).0)["BILLION"].map(u64::from), Some(BILLION));
    }

    #[test]
    fn the_mean_has_the_hosts_constants_and_strips() {
        use super::super::mean::{
            CELLS, COORDINATES, REFUSAL, SUM_WORDS, SUMMED, Strip, WEIGHT_ROWS, WEIGHTS,
        };
        let modules =
            [Shader::MeanWeights, Shader::Mean, Shader::MeanExact].map(|shader| parse(shader, PORTABLE).0);
        let [of_weights, module, exact] = &modules;
        let constant = |module: &naga::Module, name: &str| u64::from(constants(module)[name].unwrap());
        assert_eq!(constant(exact, "CELLS"), CELLS);
        assert_eq!(constant(module, "SUM_WORDS"), SUM_WORDS);
        assert_eq!(4 * constant(module, "GROUPS"), u64::from(COORDINATES));
        assert_eq!(constant(module, "JOINED"), super::super::tuning::JOINED);
        assert_eq!(constant(of_weights, "WEIGHT_ROWS"), WEIGHT_ROWS);
        let cells = constant(of_weights, "WEIGHT_CELLS");
        assert_eq!((SUMMED, REFUSAL, WEIGHTS), (cells, cells + 1, cells + 5));
        let strip = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Strip")).unwrap().1;
        let naga::TypeInner::Struct { members, .. } = &strip.inner else { panic!("Strip is not a struct") };
        let offsets: Vec<_> =
            members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
        use std::mem::offset_of;
        assert_eq!(
            offsets,
            [
                ("clients", offset_of!(Strip, clients)),
                ("spans_per_row", offset_of!(Strip, spans_per_row)),
                ("tiles_per_row", offset_of!(Strip, tiles_per_row)),
                ("first_tile", offset_of!(Strip, first_tile)),
                ("tiles", offset_of!(Strip, tiles)),
                ("blocks", offset_of!(Strip, blocks)),
                ("first", offset_of!(Strip, first)),
                ("length", offset_of!(Strip, length)),
                ("rows", offset_of!(Strip, rows)),
                ("parts", offset_of!(Strip, parts)),
                ("error", offset_of!(Strip, error)),
            ]
        );
    }

    #[test]
    fn fields_stand_where_the_shaders_expect_them() {
        let (module, _) = parse(Shader::Threshold, PORTABLE);
        let offsets = |name: &str| {
            let (_, ty) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).unwrap();
            let naga::TypeInner::Struct { members, .. } = &ty.inner else { panic!("{name} is not a struct") };
            members.iter().map(|m| (m.name.clone().unwrap(), m.offset as usize)).collect::<Vec<_>>()
        };
        let expected = |fields: &[(&str, usize)]| {
            fields.iter().map(|(name, offset)| ((*name).to_owned(), *offset)).collect::<Vec<_>>()
        };
        use std::mem::offset_of;
        assert_eq!(
            offsets("Span"),
            expected(&[
                ("bound", offset_of!(Span, bound)),
                ("in_scope", offset_of!(Span, in_scope)),
                ("first_slot", offset_of!(Span, first_slot)),
                ("slot_count", offset_of!(Span, slot_count)),
                ("row", offset_of!(Span, row)),
                ("length", offset_of!(Span, length)),
                ("error_units", offset_of!(Span, error_units)),
                ("group", offset_of!(Span, group)),
            ])
        );
        assert_eq!(
            offsets("Decision"),
            expected(&[
                ("norm", offset_of!(DeviceDecision, norm)),
                ("mantissa", offset_of!(DeviceDecision, mantissa)),
                ("exponent", offset_of!(DeviceDecision, exponent)),
                ("bound", offset_of!(DeviceDecision, bound)),
                ("status", offset_of!(DeviceDecision, status)),
            ])
        );
        assert_eq!(
            offsets("Tile"),
            expected(&[
                ("start", offset_of!(Tile, start)),
                ("count", offset_of!(Tile, count)),
                ("span", offset_of!(Tile, span)),
                ("slot", offset_of!(Tile, slot)),
            ])
        );
        assert_eq!(
            offsets("Group"),
            expected(&[
                ("first", offset_of!(Group, first)),
                ("count", offset_of!(Group, count)),
                ("state", offset_of!(Group, state)),
                ("rule", offset_of!(Group, rule)),
                ("amount", offset_of!(Group, amount)),
                ("factor_or_rate", offset_of!(Group, factor_or_rate)),
                ("window_or_least", offset_of!(Group, window_or_least)),
                ("greatest", offset_of!(Group, greatest)),
            ])
        );
        assert_eq!(
            offsets("Params"),
            expected(&[
                ("zero", offset_of!(Params, zero)),
                ("spans", offset_of!(Params, spans)),
                ("bounded", offset_of!(Params, bounded)),
                ("non_finite", offset_of!(Params, non_finite)),
                ("force_exact", offset_of!(Params, force_exact)),
                ("groups", offset_of!(Params, groups)),
                ("coordinates", offset_of!(Params, coordinates)),
                ("tiles_per_row", offset_of!(Params, tiles_per_row)),
                ("first", offset_of!(Params, first)),
                ("end", offset_of!(Params, end)),
                ("clips", offset_of!(Params, clips)),
                ("decides", offset_of!(Params, decides)),
                ("tiles_in_scope", offset_of!(Params, tiles_in_scope)),
            ])
        );
    }

    #[test]
    fn the_shader_has_the_hosts_table_of_roots() {
        let text = source(Shader::Threshold, PORTABLE);
        let table: Vec<u32> = text
            .split("array<u32, 24>(")
            .nth(1)
            .unwrap()
            .split(')')
            .next()
            .unwrap()
            .split(',')
            .filter_map(|number| number.trim().trim_end_matches('u').parse().ok())
            .collect();
        assert_eq!(table, crate::threshold::ROOTS_OF_TWO);
    }

    /// wgpu's noop backend validates as a device does, and needs none.
    #[test]
    fn every_pipeline_builds_within_the_baseline_limits() {
        let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let pipelines = Pipelines::default();
        for storage in STORAGES {
            for (fours, centered) in FOURS.into_iter().flat_map(|fours| [(fours, false), (fours, true)]) {
                let form = Form { fours, centered, storage, unpacks: !centered };
                let made = pipelines.get(&device, &Tuning::portable(), form, |_| true).unwrap();
                assert_eq!(made.len(), KERNELS.len());
            }
        }
    }
}
