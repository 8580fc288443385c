//! The wgpu backend: any GPU that wgpu reaches, with the caller's device or one of its own.
//!
//! - [`Gpu`] is a device with its kernels; it implements [`Backend`] for batches in host memory.
//! - [`Plan`] clips a batch in a buffer on the device, recorded into the caller's encoder.
//! - [`MeanPlan`] records the mean of the clipped rows behind a plan's threshold stage.
//! - [`adapters`] and [`choose_adapter`] tell what is there; [`Tuning`] shapes the kernels.
//! - [`Calibration`] is the choice of tunings by measurement.
//!
//! wgpu is re-exported as [`byzclip::wgpu`](wgpu).

mod buffers;
mod calibration;
mod check;
mod columns;
mod device;
mod geometry;
mod kernels;
mod mean;
mod pieces;
mod plan;
mod rules;
mod steps;
mod transfer;
mod tuning;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytemuck::Pod;

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
pub use tuning::Tuning;

pub use crate::report::Strategy;

use self::calibration::Calibrated;
use self::columns::Strips;
use self::device::{LostReason, guarded, wait};
use self::geometry::Placement;
use self::kernels::{Pipelines, Storage};
use self::pieces::Pieces;
use self::rules::Rules;
use self::transfer::Transfer;
use super::{Backend, check_decisions, check_mean, check_mean_half};
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};
use crate::half::{self, Half};
use crate::norms::Norms;
use crate::report::{BackendKind, Ran, Report};
use crate::threshold::{self, Decision, Source, State, Threshold};

/// A device with its kernels.
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

/// What plans share with the device they run on. Clones are handles.
#[derive(Debug, Clone)]
pub(crate) struct GpuContext {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub adapter: String,
    pub why: String,
    pub tuning: Tuning,
    pub pipelines: Arc<Pipelines>,
    /// Whether the device passed the check of its fast sums, of updates and of differences from a centre; unset before
    /// the check.
    pub fast_sums: Arc<[OnceLock<bool>; 2]>,
    pub lost: LostReason,
}

#[derive(Debug)]
struct Session {
    layout: Layout,
    granularity: Granularity,
    storage: Storage,
    placement: Placement,
    buffer: wgpu::Buffer,
    plan: Plan,
}

impl Gpu {
    /// Opens an adapter: the first whose name contains `name` in any case, or the first hardware GPU.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] with a list of what was found; [`Error::Gpu`] where the driver refuses.
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

    /// The same for a buffer whose elements are stored as halves.
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
        context.ensure_checked(clipping.center.is_some())?;
        Plan::new(context, layout, clipping, &placement, storage, buffer)
    }

    /// The pieces of a batch that the device's buffers do not hold.
    fn pieces(&self, storage: Storage, layout: &Layout, clipping: &Clipping) -> Result<Option<Pieces>> {
        Pieces::of(&self.context, layout, clipping.granularity, storage)
    }

    /// The storage of the session that is kept.
    fn storage_of_session(&self) -> Storage {
        let slot = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map_or(Storage::Single, |session| session.storage)
    }

    /// Runs `work` with a session for this shape.
    fn with_session<T>(
        &self,
        storage: Storage,
        layout: &Layout,
        clipping: &Clipping,
        work: impl FnOnce(&Session) -> Result<T>,
    ) -> Result<T> {
        let context = self.context_for(layout, clipping.granularity);
        context.ensure_checked(clipping.center.is_some())?;
        let mut slot = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = Rules::new(&Source::new(&clipping.threshold, layout, clipping.granularity)?)?;
        let fits = |s: &Session| {
            let same = s.storage == storage && s.layout == *layout && s.granularity == clipping.granularity;
            same && s.plan.serves(clipping, &rules)
        };
        match slot.as_mut().filter(|session| fits(session)) {
            Some(session) => session.plan.set_clipping(clipping)?,
            None => {
                // The old buffer is freed before the new one is made.
                *slot = None;
                *slot = Some(Session::new(context, layout, clipping, storage)?);
            }
        }
        slot.as_ref().map_or(Err(Error::NotRecorded), work)
    }
}

impl Session {
    fn new(context: &GpuContext, layout: &Layout, clipping: &Clipping, storage: Storage) -> Result<Self> {
        let placement = Placement::packed(layout, clipping.granularity);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = context.buffer("the batch", (placement.length * storage.bytes()).max(16), usage)?;
        let plan = Plan::new(context, layout, clipping, &placement, storage, &buffer)?;
        let granularity = clipping.granularity;
        Ok(Self { layout: layout.clone(), granularity, storage, placement, buffer, plan })
    }

    /// Writes the rows in scope to the device.
    fn upload<T: Pod>(&self, context: &GpuContext, data: &[T], scope: &Scope) -> Result<()> {
        let mask = scope.mask(self.layout.clients())?;
        let mut in_scope = vec![false; self.placement.spans.len()];
        for (row, &chosen) in mask.iter().enumerate() {
            in_scope[self.layout.spans_of(self.granularity, row)].fill(chosen);
        }
        self.upload_spans(context, data, |span| in_scope[span])
    }

    fn upload_spans<T: Pod>(
        &self,
        context: &GpuContext,
        data: &[T],
        chosen: impl Fn(usize) -> bool,
    ) -> Result<()> {
        self.transfer(context, &|span| self.layout.span(self.granularity, span)).upload(data, chosen)
    }

    fn download<T: Pod>(&self, context: &GpuContext, data: &mut [T], decisions: &[Decision]) -> Result<()> {
        self.transfer(context, &|span| self.layout.span(self.granularity, span))
            .download(data, |span| decisions[span].status.is_written())
    }

    fn transfer<'a>(
        &'a self,
        context: &'a GpuContext,
        host: &'a dyn Fn(usize) -> std::ops::Range<usize>,
    ) -> Transfer<'a> {
        Transfer { context, placement: &self.placement, buffer: &self.buffer, host }
    }
}

/// The clipping of stages behind the threshold: decisions are there, and hold for rows out of scope too.
fn decided(clipping: &Clipping) -> Clipping {
    let (granularity, center) = (clipping.granularity, clipping.center.clone());
    Clipping { granularity, center, ..Clipping::default() }
}

/// The stages for elements of any storage, behind the checks of the caller's values.
impl Gpu {
    fn norms_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
    ) -> Result<Norms> {
        let stage = Clipping { threshold: Threshold::Fixed(f32::INFINITY), ..clipping.clone() };
        if let Some(pieces) = self.pieces(storage, layout, clipping)? {
            clipping.check_center(layout)?;
            return self.norms_in_pieces(&pieces, storage, layout, data, &stage);
        }
        self.with_session(storage, layout, &stage, |session| {
            session.upload(&self.context, data, &clipping.scope)?;
            self.context.submit("computing norms", |encoder| session.plan.record_norms(encoder))?;
            session.plan.norms_blocking()
        })
    }

    fn clip_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        check_decisions(layout, clipping.granularity, decisions)?;
        let decided = decided(clipping);
        if let Some(pieces) = self.pieces(storage, layout, clipping)? {
            return self.clip_in_pieces(&pieces, storage, layout, data, &decided, decisions);
        }
        self.with_session(storage, layout, &decided, |session| {
            session.upload_spans(&self.context, data, |span| decisions[span].status.is_written())?;
            session.plan.write_decisions(decisions)?;
            self.context.submit("clipping", |encoder| session.plan.record_clip(encoder))?;
            session.download(&self.context, data, decisions)
        })
    }

    fn run_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        if let Some(pieces) = self.pieces(storage, layout, clipping)? {
            return self.run_in_pieces(&pieces, storage, layout, data, clipping, state);
        }
        self.with_session(storage, layout, clipping, |session| {
            session.plan.set_state(state)?;
            session.upload(&self.context, data, &clipping.scope)?;
            self.context.submit("clipping", |encoder| session.plan.record(encoder))?;
            let (norms, decisions) = session.plan.run_blocking()?;
            let next = session.plan.state_blocking()?;
            session.download(&self.context, data, &decisions)?;
            *state = next;
            let ran = Ran { strategy: Some(session.plan.strategy()), ..self.ran() };
            Ok(Report::of_stages(ran, layout, clipping.granularity, &norms, &decisions))
        })
    }

    fn mean_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_decisions(layout, clipping.granularity, decisions)?;
        if self.pieces(storage, layout, clipping)?.is_some() {
            return Strips::of(self, layout, clipping, storage)?.mean(data, decisions, weights);
        }
        self.with_session(storage, layout, &decided(clipping), |session| {
            let mean = session.plan.mean(weights)?;
            session.upload(&self.context, data, &Scope::All)?;
            session.plan.write_decisions(decisions)?;
            self.context.submit("averaging", |encoder| mean.record(encoder))?;
            mean.read_blocking()
        })
    }

    fn run_mean_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
        weights: &Weights,
        state: &mut State,
    ) -> Result<(Vec<f32>, Report)> {
        if let Some(pieces) = self.pieces(storage, layout, clipping)? {
            clipping.check(layout, state)?;
            let strips = Strips::of(self, layout, clipping, storage)?;
            let norms = self.norms_in_pieces(&pieces, storage, layout, data, clipping)?;
            let mut next = state.clone();
            let decisions = threshold::decide(layout, &norms, clipping, &mut next)?;
            let mean = strips.mean(data, &decisions, weights)?;
            *state = next;
            let ran = pieces.ran(self, false);
            return Ok((mean, Report::of_stages(ran, layout, clipping.granularity, &norms, &decisions)));
        }
        self.with_session(storage, layout, clipping, |session| {
            let mean = session.plan.mean(weights)?;
            session.plan.set_state(state)?;
            // Rows out of scope are not clipped, but they count.
            session.upload(&self.context, data, &Scope::All)?;
            self.context.submit("averaging", |encoder| {
                session.plan.record_norms(encoder);
                session.plan.record_threshold(encoder);
                mean.record(encoder);
            })?;
            let report = session.plan.report_blocking()?;
            let next = session.plan.state_blocking()?;
            let mean = mean.read_blocking()?;
            *state = next;
            Ok((mean, report))
        })
    }
}

impl Backend for Gpu {
    fn ran(&self) -> Ran {
        let failed = |context: &&GpuContext| [false, true].iter().any(|kind| context.fast_sums_failed(*kind));
        let contexts = self.calibrated.as_ref().map_or(std::slice::from_ref(&self.context), |c| c.contexts());
        contexts.iter().find(failed).or(contexts.first()).unwrap_or(&self.context).ran()
    }

    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms> {
        layout.check(data.len())?;
        self.norms_of(Storage::Single, layout, data, clipping)
    }

    fn threshold(
        &self,
        layout: &Layout,
        norms: &Norms,
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Vec<Decision>> {
        threshold::checked_source(layout, norms, clipping)?;
        // Norms have no storage: the session of the stage before serves this one too.
        let storage = self.storage_of_session();
        // Of a batch that no buffer holds there is no session, and the specification decides, as in a run of all stages.
        if self.pieces(storage, layout, clipping)?.is_some() {
            return threshold::decide(layout, norms, clipping, state);
        }
        self.with_session(storage, layout, clipping, |session| {
            session.plan.write_norms(norms)?;
            session.plan.set_state(state)?;
            self.context.submit("deciding bounds", |encoder| session.plan.record_threshold(encoder))?;
            let decisions = session.plan.decisions_blocking()?;
            *state = session.plan.state_blocking()?;
            Ok(decisions)
        })
    }

    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        layout.check(data.len())?;
        self.clip_of(Storage::Single, layout, data, clipping, decisions)
    }

    fn run_with(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        layout.check(data.len())?;
        self.run_of(Storage::Single, layout, data, clipping, state)
    }

    fn mean(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_mean(layout, data, clipping, weights)?;
        self.mean_of(Storage::Single, layout, data, clipping, decisions, weights)
    }

    fn run_mean_with(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        weights: &Weights,
        state: &mut State,
    ) -> Result<(Vec<f32>, Report)> {
        check_mean(layout, data, clipping, weights)?;
        self.run_mean_of(Storage::Single, layout, data, clipping, weights, state)
    }

    fn norms_half(&self, layout: &Layout, half: Half, data: &[u16], clipping: &Clipping) -> Result<Norms> {
        half::check(layout, data.len(), clipping)?;
        self.norms_of(Storage::Half(half), layout, data, clipping)
    }

    fn clip_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        half::check(layout, data.len(), clipping)?;
        self.clip_of(Storage::Half(half), layout, data, clipping, decisions)
    }

    fn run_half_with(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        half::check(layout, data.len(), clipping)?;
        self.run_of(Storage::Half(half), layout, data, clipping, state)
    }

    fn mean_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &[u16],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_mean_half(layout, data, clipping, weights)?;
        self.mean_of(Storage::Half(half), layout, data, clipping, decisions, weights)
    }

    fn run_mean_half_with(
        &self,
        layout: &Layout,
        half: Half,
        data: &[u16],
        clipping: &Clipping,
        weights: &Weights,
        state: &mut State,
    ) -> Result<(Vec<f32>, Report)> {
        check_mean_half(layout, data, clipping, weights)?;
        self.run_mean_of(Storage::Half(half), layout, data, clipping, weights, state)
    }
}

impl GpuContext {
    pub(crate) fn fast_sums_failed(&self, centered: bool) -> bool {
        self.fast_sums[usize::from(centered)].get() == Some(&false)
    }

    pub(crate) fn ran(&self) -> Ran {
        let mut why = self.why.clone();
        for (centered, what) in [(false, "norm"), (true, "norm around a centre")] {
            if self.fast_sums_failed(centered) {
                why.push_str(&format!(
                    "; its fast sums failed the check, so every {what} takes the exact sum"
                ));
            }
        }
        Ran { backend: BackendKind::Gpu, adapter: Some(self.adapter.clone()), strategy: None, why }
    }

    /// A buffer, where the device's limits and memory allow it.
    pub(crate) fn buffer(
        &self,
        what: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let limits = self.device.limits();
        // The batch is bound in windows; everything else as a whole.
        let bound = usage.contains(wgpu::BufferUsages::STORAGE) && what != "the batch";
        let limit = if bound {
            limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
        } else {
            limits.max_buffer_size
        };
        if bytes > limit {
            return Err(Error::BatchTooLarge { adapter: self.adapter.clone(), what, got: bytes, limit });
        }
        guarded(&self.device, "allocating memory", || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size: bytes.next_multiple_of(4),
                usage,
                mapped_at_creation: false,
            })
        })
        .map_err(|e| self.lost.explain(e))
    }

    /// A buffer for the way back to the host.
    pub(crate) fn staging(&self, what: &'static str, bytes: u64) -> Result<wgpu::Buffer> {
        self.buffer(what, bytes, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
    }

    /// Waits for the device until a map that it was asked for is there.
    pub(crate) fn wait_for<T>(
        &self,
        mapped: impl Future<Output = Result<T>>,
        during: &'static str,
    ) -> Result<T> {
        self.wait_for_submission(mapped, None, during)
    }

    /// The same for a map of what a submission writes: later ones go on meanwhile.
    pub(crate) fn wait_for_submission<T>(
        &self,
        mapped: impl Future<Output = Result<T>>,
        submission: Option<wgpu::SubmissionIndex>,
        during: &'static str,
    ) -> Result<T> {
        let mut mapped = std::pin::pin!(mapped);
        // The first poll of the future asks for the map; only then is there something to wait for.
        let waker = std::task::Waker::noop();
        let done = match mapped.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Ready(done) => done,
            std::task::Poll::Pending => {
                wait(&self.device, submission, during).and_then(|()| pollster::block_on(mapped))
            }
        };
        done.map_err(|e| self.lost.explain(e))
    }

    /// Records and submits.
    pub(crate) fn submit(
        &self,
        during: &'static str,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<()> {
        guarded(&self.device, during, || {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(during) });
            record(&mut encoder);
            self.queue.submit([encoder.finish()]);
        })
        .map_err(|e| self.lost.explain(e))
    }
}
