//! The wgpu backend: any GPU that wgpu reaches, with the caller's device or one of its own.
//!
//! - [`Gpu`] is a device with its kernels; it implements [`Backend`](super::Backend) for batches in host memory.
//! - [`Plan`] clips a batch in a buffer on the device, recorded into the caller's encoder.
//! - [`MeanPlan`] records the mean of the clipped rows behind a plan's threshold stage.
//! - [`adapters`] and [`choose_adapter`] tell what is there; [`Tuning`] shapes the kernels.
//! - [`Calibration`] is the choice of tunings by measurement.
//!
//! wgpu is re-exported as [`byzclip::wgpu`](wgpu).

// From the device up:
//
// - `device.rs` adapters, wgpu's errors as values, maps; `context.rs` a device, and what all plans on it share; `check.rs` whether its
//   fast sums are right.
// - `storage.rs` how elements lie in a buffer; `geometry.rs` a batch in tiles and windows; `tuning.rs` shapes of kernels.
// - `kernels.rs` the table; `sources.rs` what a kernel is compiled from; `params.rs`, `rules.rs` what it is told, in its own structs.
// - `plan.rs` recording and readback; `buffers.rs` what its kernels read and write; `steps.rs` which of them a run takes; `mean.rs`
//   the same for the mean.
// - `host.rs` the stages on batches in host memory; `session.rs` a plan over a buffer of its own; `transfer.rs` the way there and back;
//   `pieces.rs` batches that no buffer holds, `columns.rs` their mean, `on_host.rs` what of them is left to the CPU backend.
// - `calibration/` tunings by measurement.

mod buffers;
mod calibration;
mod check;
mod columns;
mod context;
mod device;
mod geometry;
mod host;
mod kernels;
mod mean;
mod on_host;
mod params;
mod pieces;
mod plan;
mod rules;
mod session;
mod sources;
mod steps;
mod storage;
mod transfer;
mod tuning;

use std::sync::{Arc, Mutex};

pub use calibration::{Calibration, ShapeClass, Trial};
#[doc(hidden)]
pub use device::MAPS;
pub use device::{adapters, choose_adapter, driver, is_software, open};
#[cfg(feature = "cli")]
pub(crate) use device::{guarded as guard, read_mapped, wait as wait_for_device};
pub use mean::MeanPlan;
#[doc(hidden)]
pub use plan::Dispatch;
pub use plan::Plan;
#[cfg(feature = "cli")]
pub(crate) use steps::folded;
pub use tuning::Tuning;

pub use crate::report::Strategy;

use self::calibration::Calibrated;
#[cfg(feature = "cli")]
pub(crate) use self::context::GpuContext;
#[cfg(not(feature = "cli"))]
use self::context::GpuContext;
use self::device::LostReason;
use self::geometry::Placement;
use self::session::Session;
use self::storage::Storage;
use crate::batch::Layout;
use crate::clip::Clipping;
use crate::error::{Error, Result};
use crate::half::{self, Half};

/// A device with its kernels.
///
/// As a [`Backend`](super::Backend) it takes batches in host memory of any size. Those that its buffers do not hold go in pieces of whole
/// rows, and their mean by columns; a row that no buffer holds alone is clipped by the CPU backend, which also takes the mean of more rows
/// than a buffer has room for what is kept of each (160 bytes). [`Report::ran`](crate::Report::ran) says so.
///
/// # Examples
/// ```no_run
/// use byzclip::{Backend, Clipping, Gpu, Layout};
///
/// let mut updates = vec![3.0, 4.0, 0.3, 0.4];
/// let gpu = Gpu::open(None)?; // the first hardware GPU
/// let report = gpu.run(&Layout::dense(2, 2)?, &mut updates, &Clipping::fixed(1.0))?;
/// println!("{}", report.ran);
/// # Ok::<(), byzclip::Error>(())
/// ```
#[derive(Debug)]
pub struct Gpu {
    context: GpuContext,
    /// What plans run with instead, where a calibration was taken.
    calibrated: Option<Box<Calibrated>>,
    /// The plan and buffer of the last batch in host memory: training loops send one shape again and again.
    session: Mutex<Option<Session>>,
}

impl Gpu {
    /// Opens an adapter: the first whose name contains `name` in any case, or the first hardware GPU.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] with a list of what was found; [`Error::NoDevice`] where the driver refuses.
    pub fn open(name: Option<&str>) -> Result<Self> {
        let adapter = choose_adapter(name)?;
        let (device, queue) = open(&adapter)?;
        let mut gpu = Self::from_device(device, queue)?;
        gpu.context.lost.watch(&gpu.context.device);
        gpu.context.why = match name {
            Some(part) => format!("adapter asked for by the name \"{part}\""),
            None => "the first hardware GPU".into(),
        };
        Ok(gpu)
    }

    /// Uses the caller's device and queue, with the features and limits that it was opened with.
    ///
    /// WebGPU's default limits are enough: eight storage buffers a kernel, bindings of 128 MiB. With
    /// [`open`]'s, which are all that the adapter has, windows are larger and more batches fit.
    ///
    /// # Errors
    /// None at present; kernels are compiled when the first plan is made.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let info = device.adapter_info();
        let tuning = Tuning::for_device(&info, device.features(), &device.limits());
        let context = GpuContext {
            adapter: info.name,
            why: "the caller's device".into(),
            tuning,
            pipelines: Arc::default(),
            fast_sums: Arc::default(),
            fast_means: Arc::default(),
            unpacking: Arc::default(),
            lost: LostReason::default(),
            device,
            queue,
        };
        Ok(Self { context, calibrated: None, session: Mutex::new(None) })
    }

    /// Replaces the shape of the kernels, also a calibrated one; every shape gives the same bits.
    ///
    /// # Errors
    /// [`Error::Setting`] where the device cannot run it.
    pub fn with_tuning(mut self, tuning: Tuning) -> Result<Self> {
        tuning.check(&self.context.device)?;
        self.context = self.context.with_tuning(tuning);
        self.calibrated = None;
        Ok(self)
    }

    /// The shape of the kernels, where no calibration was taken.
    #[must_use]
    pub fn tuning(&self) -> &Tuning {
        &self.context.tuning
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.context.device
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.context.queue
    }

    /// What plans share with the device; benchmarks run kernels of their own on it.
    #[cfg(feature = "cli")]
    pub(crate) fn context(&self) -> &GpuContext {
        &self.context
    }

    pub(crate) fn because(mut self, why: String) -> Self {
        if let Some(calibrated) = &mut self.calibrated {
            calibrated.because(&why);
        }
        self.context.why = why;
        self
    }

    /// Everything that clipping this batch in this buffer needs, made once.
    ///
    /// The buffer holds the layout's `f32` elements from its start and needs the usage `STORAGE`.
    ///
    /// # Errors
    /// [`Error::Buffer`] or [`Error::DataTooShort`] where the buffer does not fit, those of
    /// [`Plan::set_clipping`], and errors of the device.
    pub fn plan(&self, layout: &Layout, clipping: &Clipping, buffer: &wgpu::Buffer) -> Result<Plan> {
        self.plan_of(Storage::Single, layout, clipping, buffer)
    }

    /// [`Gpu::plan`] for a buffer whose elements are f16 or bf16, two to a word.
    ///
    /// Rows, and at segment granularity segments, have to begin at even elements, so that no two share a word of
    /// 32 bits; those that begin at multiples of four are read and written fastest.
    ///
    /// # Errors
    /// Those of [`Gpu::plan`]; [`Error::Layout`] where a row or segment begins at an odd element, and
    /// [`Error::Setting`] where the clipping has a centre.
    pub fn plan_half(
        &self,
        layout: &Layout,
        half: Half,
        clipping: &Clipping,
        buffer: &wgpu::Buffer,
    ) -> Result<Plan> {
        // The kernels read whole words.
        half::check(layout, (buffer.size() / 4 * 2) as usize, clipping)?;
        let odd = |span: &usize| {
            let span = layout.span(clipping.granularity, *span);
            !span.is_empty() && span.start % 2 == 1
        };
        if let Some(span) = (0..layout.span_count(clipping.granularity)).find(odd) {
            let start = layout.span(clipping.granularity, span).start;
            return Err(Error::Layout {
                got: format!("halves of a row or segment from element {start}"),
                expected: "rows and segments of halves from even elements; pad them to an even stride",
            });
        }
        self.plan_of(Storage::Half(half), layout, clipping, buffer)
    }

    fn plan_of(
        &self,
        storage: Storage,
        layout: &Layout,
        clipping: &Clipping,
        buffer: &wgpu::Buffer,
    ) -> Result<Plan> {
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Buffer {
                got: format!("usage {:?}", buffer.usage()),
                expected: "the usage STORAGE".into(),
            });
        }
        let elements = buffer.size() / 4 * 4 / storage.bytes();
        layout.check(elements as usize)?;
        let placement = Placement::in_place(layout, clipping.granularity, elements);
        let context = self.context_for(layout, clipping.granularity);
        context.ensure_checked(storage, clipping.center.is_some())?;
        Plan::new(context, layout, clipping, &placement, storage, buffer)
    }
}
