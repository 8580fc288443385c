//! Adapters, devices, and wgpu's errors as values.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// All adapters that wgpu finds, hardware first.
#[must_use]
pub fn adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    // WGPU_BACKEND and the like are for people who look for a driver's fault.
    let instance = wgpu::Instance::new(descriptor.with_env());
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    adapters
}

/// Whether an adapter is a program that runs on the CPU (lavapipe, SwiftShader, WARP).
#[must_use]
pub fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == wgpu::DeviceType::Cpu
}

/// The driver and its version, in one line; empty where the adapter tells neither.
#[must_use]
pub fn driver(info: &wgpu::AdapterInfo) -> String {
    one_line(&[&*info.driver, &*info.driver_info].join(" "))
}

const fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// The adapter to use: the first whose name contains `name` in any case, or the first that is
/// hardware. Software adapters are used only when asked for by name.
///
/// # Errors
/// [`Error::NoAdapter`] with a list of what was found.
pub fn choose_adapter(name: Option<&str>) -> Result<wgpu::Adapter> {
    let adapters = adapters();
    let found = describe(&adapters);
    let wanted = name.map(str::to_lowercase);
    let fits = |info: wgpu::AdapterInfo| match &wanted {
        Some(part) => info.name.to_lowercase().contains(part),
        None => !is_software(&info),
    };
    adapters.into_iter().find(|adapter| fits(adapter.get_info())).ok_or_else(|| Error::NoAdapter {
        wanted: match name {
            Some(part) => format!("an adapter whose name contains \"{part}\""),
            None => "a hardware GPU".into(),
        },
        found,
    })
}

fn describe(adapters: &[wgpu::Adapter]) -> String {
    if adapters.is_empty() {
        return "no adapter at all".into();
    }
    let names = adapters.iter().map(|adapter| {
        let info = adapter.get_info();
        let kind = if is_software(&info) { "software" } else { "hardware" };
        format!("{} ({kind})", info.name)
    });
    names.collect::<Vec<_>>().join(", ")
}

/// Opens a device with all the limits of its adapter, and subgroups, f64 and timestamps where it has them.
///
/// # Errors
/// [`Error::NoDevice`] where the driver refuses.
pub fn open(adapter: &wgpu::Adapter) -> Result<(wgpu::Device, wgpu::Queue)> {
    // No kernel needs timestamps: benchmarks and callers who profile do.
    let wanted = wgpu::Features::SUBGROUP
        | wgpu::Features::SHADER_F64
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("byzclip"),
        required_features: adapter.features() & wanted,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| {
        Error::NoDevice { adapter: adapter.get_info().name, message: one_line(&e.to_string()) }
    })?;
    // Errors are caught in scopes and returned; the default handler for any other panics.
    device.on_uncaptured_error(Arc::new(|_| {}));
    Ok((device, queue))
}

/// Why a device was lost, once it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct LostReason(Arc<Mutex<Option<String>>>);

impl LostReason {
    /// Listens to a device of our own; a caller's device keeps the callback that its owner set.
    pub(crate) fn watch(&self, device: &wgpu::Device) {
        let reason = self.clone();
        device.set_device_lost_callback(move |kind, message| {
            *reason.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{kind:?}: {message}"));
        });
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The loss of the device, if that is what `error` comes from.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match (self.get(), &error) {
            (Some(message), Error::Gpu { during, .. } | Error::GpuOutOfMemory { during, .. }) => {
                Error::DeviceLost { during, message }
            }
            _ => error,
        }
    }
}

/// Runs calls to wgpu and returns their errors, of all kinds, as values.
pub(crate) fn guarded<T>(
    device: &wgpu::Device,
    during: &'static str,
    calls: impl FnOnce() -> T,
) -> Result<T> {
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let result = calls();
    // Outside browsers these are ready at once.
    let memory = pollster::block_on(memory.pop());
    let validation = pollster::block_on(validation.pop());
    let internal = pollster::block_on(internal.pop());
    match memory.or(validation).or(internal) {
        None => Ok(result),
        Some(wgpu::Error::OutOfMemory { source }) => {
            Err(Error::GpuOutOfMemory { during, message: source.to_string() })
        }
        Some(error) => Err(Error::Gpu { during, message: one_line(&error.to_string()) }),
    }
}

/// wgpu's messages span lines; errors here are one, and names too.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until the device has done a submission, or everything submitted so far.
pub(crate) fn wait(
    device: &wgpu::Device,
    submission_index: Option<wgpu::SubmissionIndex>,
    during: &'static str,
) -> Result<()> {
    device
        .poll(wgpu::PollType::Wait { submission_index, timeout: None })
        .map(|_| ())
        .map_err(|e| Error::Gpu { during, message: e.to_string() })
}

/// Buffers mapped for reading in this process so far. For tests: no stage waits for the host.
#[doc(hidden)]
pub static MAPS: AtomicU64 = AtomicU64::new(0);

/// Maps a buffer for reading and hands its bytes to `read`; resolves once the device is polled.
pub(crate) async fn read_mapped<T>(
    buffer: &wgpu::Buffer,
    bytes: u64,
    during: &'static str,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T> {
    MAPS.fetch_add(1, Ordering::Relaxed);
    let map = map(buffer, bytes, wgpu::MapMode::Read, during).await?;
    let view = buffer.slice(..bytes).get_mapped_range();
    let result = read(&view.map_err(|e| Error::Gpu { during, message: e.to_string() })?);
    drop(map);
    Ok(result)
}

/// Maps a buffer for writing and lets `write` fill its bytes; resolves once the device is polled.
pub(crate) async fn write_mapped(
    buffer: &wgpu::Buffer,
    bytes: u64,
    during: &'static str,
    write: impl FnOnce(wgpu::BufferViewMut),
) -> Result<()> {
    let map = map(buffer, bytes, wgpu::MapMode::Write, during).await?;
    let view = buffer.slice(..bytes).get_mapped_range_mut();
    write(view.map_err(|e| Error::Gpu { during, message: e.to_string() })?);
    drop(map);
    Ok(())
}

async fn map<'a>(
    buffer: &'a wgpu::Buffer,
    bytes: u64,
    mode: wgpu::MapMode,
    during: &'static str,
) -> Result<Requested<'a>> {
    let failed = |message: String| Error::Gpu { during, message };
    let (sender, receiver) = futures_intrusive::channel::shared::oneshot_channel();
    buffer.slice(..bytes).map_async(mode, move |result| {
        // The receiver is gone where the caller dropped the future: nobody is left to tell.
        drop(sender.send(result));
    });
    let mut requested = Requested { buffer, stands: true };
    let mapped = receiver
        .receive()
        .await
        .ok_or_else(|| failed("the map was dropped".into()))
        .and_then(|mapped| mapped.map_err(|e| failed(e.to_string())));
    requested.stands = mapped.is_ok();
    mapped.map(|()| requested)
}

/// A map that was asked for. It is taken back when this goes, also where the caller drops the future
/// halfway: a buffer that stayed mapped could not be used again.
struct Requested<'a> {
    buffer: &'a wgpu::Buffer,
    stands: bool,
}

impl Drop for Requested<'_> {
    fn drop(&mut self) {
        // Unmapping what was never mapped would be an error of its own.
        if self.stands {
            self.buffer.unmap();
        }
    }
}
