//! `byzclip devices`.

use std::path::PathBuf;

#[cfg(feature = "gpu")]
use byzclip::backend::select_prepared;
use byzclip::backend::{Choice, select};
use clap::ValueEnum;
use serde::Serialize;

#[cfg(feature = "gpu")]
use super::calibration;
use super::calibration::CalibrationArgs;
use super::failure::{Failure, Outcome};
use super::output;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print only the names of adapters, one a line, for scripts.
    #[arg(long, value_name = "KIND")]
    names: Option<Kind>,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

/// Which adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    All,
    Hardware,
    Software,
}

#[derive(Serialize)]
struct Devices {
    adapters: Vec<Adapter>,
    auto: Auto,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    software: bool,
    kind: String,
    api: String,
    driver: String,
    /// The file that tunings were saved in, where there is one.
    calibration: Option<PathBuf>,
    subgroup_size: [u32; 2],
    limits: Limits,
    features: Features,
}

#[derive(Serialize)]
struct Limits {
    max_buffer_bytes: u64,
    max_binding_bytes: u64,
    max_workgroups: u32,
    max_invocations: u32,
    shared_memory_bytes: u32,
}

#[derive(Serialize)]
struct Features {
    subgroups: bool,
    f64: bool,
    f16: bool,
    timestamps: bool,
}

#[derive(Serialize)]
struct Auto {
    backend: &'static str,
    adapter: Option<String>,
    why: String,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    if json && args.names.is_some() {
        // Not left to clap, which sees no conflict with a global option before the command.
        let message = "got --names with --json; expected one of the two; read the names from the JSON";
        return Err(Failure::Usage(message.into()));
    }
    let adapters = adapters();
    if let Some(kind) = args.names {
        let names = adapters.iter().filter(|a| match kind {
            Kind::All => true,
            Kind::Hardware => !a.software,
            Kind::Software => a.software,
        });
        output::print(&names.map(|a| format!("{}\n", a.name)).collect::<String>())?;
        return Ok(Outcome::Success);
    }
    // As the other commands choose, but that they would measure a GPU that has no calibration yet.
    #[cfg(feature = "gpu")]
    let ran = match args.calibration.prepare_from_saved() {
        Ok(prepare) => select_prepared(Choice::Auto, None, prepare)?.ran(),
        Err(failure) => {
            // The adapters are worth listing all the same.
            failure.print();
            select(Choice::Auto, None)?.ran()
        }
    };
    #[cfg(not(feature = "gpu"))]
    let ran = select(Choice::Auto, None)?.ran();
    let auto = Auto { backend: ran.backend.name(), adapter: ran.adapter, why: ran.why };
    let devices = Devices { adapters, auto };
    if json {
        output::print_json(&devices)?
    } else {
        output::print(&describe(&devices))?
    }
    Ok(Outcome::Success)
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<Adapter> {
    use byzclip::backend::gpu;
    use byzclip::wgpu::{self, Features as F};
    let describe = |adapter: wgpu::Adapter| {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        Adapter {
            software: gpu::is_software(&info),
            kind: format!("{:?}", info.device_type),
            api: info.backend.to_string(),
            driver: gpu::driver(&info),
            calibration: calibration::saved_for(&info),
            name: info.name,
            subgroup_size: [info.subgroup_min_size, info.subgroup_max_size],
            limits: Limits {
                max_buffer_bytes: limits.max_buffer_size,
                max_binding_bytes: limits.max_storage_buffer_binding_size,
                max_workgroups: limits.max_compute_workgroups_per_dimension,
                max_invocations: limits.max_compute_invocations_per_workgroup,
                shared_memory_bytes: limits.max_compute_workgroup_storage_size,
            },
            features: Features {
                subgroups: features.contains(F::SUBGROUP),
                f64: features.contains(F::SHADER_F64),
                f16: features.contains(F::SHADER_F16),
                timestamps: features.contains(F::TIMESTAMP_QUERY),
            },
        }
    };
    gpu::adapters().into_iter().map(describe).collect()
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<Adapter> {
    Vec::new()
}

fn describe(devices: &Devices) -> String {
    let mut text = String::new();
    if devices.adapters.is_empty() {
        text.push_str("no GPU adapter found; install a Vulkan driver to use one\n\n");
    }
    for adapter in &devices.adapters {
        let Adapter { limits, features, .. } = adapter;
        let has = [
            ("subgroups", features.subgroups),
            ("f64", features.f64),
            ("f16", features.f16),
            ("timestamps", features.timestamps),
        ];
        let has: Vec<_> = has.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        text.push_str(&format!(
            "{}\n  {}, {}, {}\n  calibration: {}\n  buffers up to {}, bindings up to {}, {} workgroups a dimension\n  \
             workgroups of {} invocations with {} shared, subgroups of {} to {}\n  features: {}\n\n",
            adapter.name,
            if adapter.software { "software (used only when named with --adapter)" } else { "hardware" },
            adapter.api,
            adapter.driver,
            match &adapter.calibration {
                Some(file) => file.display().to_string(),
                None => format!("none; byzclip calibrate --adapter \"{}\" measures one", adapter.name),
            },
            bytes(limits.max_buffer_bytes),
            bytes(limits.max_binding_bytes),
            limits.max_workgroups,
            limits.max_invocations,
            bytes(u64::from(limits.shared_memory_bytes)),
            adapter.subgroup_size[0],
            adapter.subgroup_size[1],
            if has.is_empty() { "none".into() } else { has.join(", ") },
        ));
    }
    let Auto { backend, adapter, why } = &devices.auto;
    let on = adapter.as_ref().map(|adapter| format!(" on {adapter}")).unwrap_or_default();
    text.push_str(&format!("--backend auto takes {backend}{on} ({why})\n"));
    text
}

/// A size for a person.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if count >= 1 << shift {
            return format!("{:.0} {unit}", count as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{count} B")
}
