//! The wgpu backend: any GPU that wgpu reaches, with the caller's device or one of its own.
//!
//! - [`Gpu`] is a device with its kernels; it implements [`Backend`] for batches in host memory.
//! - [`Plan`] clips a batch in a buffer on the device, recorded into the caller's encoder.
//! - [`MeanPlan`] records the mean of the clipped rows behind a plan's threshold stage.
//! - [`adapters`] and [`choose_adapter`] tell what is there; [`Tuning`] shapes the kernels.
//!
//! wgpu is re-exported as [`byzclip::wgpu`](wgpu).

mod check;
mod device;
mod geometry;
mod kernels;
mod mean;
mod plan;
mod rules;
mod transfer;
mod tuning;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

#[doc(hidden)]
pub use device::MAPS;
pub use device::{adapters, choose_adapter, is_software, open};
#[cfg(feature = "cli")]
pub(crate) use device::{guarded as guard, read_mapped, wait as wait_for_device};
pub use mean::MeanPlan;
#[doc(hidden)]
pub use plan::Dispatch;
pub use plan::Plan;
pub use tuning::Tuning;

use self::device::{LostReason, guarded, wait};
use self::geometry::Placement;
use self::kernels::Pipelines;
use self::rules::Rules;
use self::transfer::Transfer;
use super::{Backend, check_decisions, check_mean};
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};
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
    /// Whether the device passed the check of its fast sums; unset before the check.
    pub fast_sums: Arc<OnceLock<bool>>,
    pub lost: LostReason,
}

#[derive(Debug)]
struct Session {
    layout: Layout,
    granularity: Granularity,
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
        Ok(Self { context, session: Mutex::new(None) })
    }

    /// Replaces the shape of the kernels; every shape gives the same bits.
    ///
    /// # Errors
    /// [`Error::Setting`] where the device cannot run it.
    pub fn with_tuning(mut self, tuning: Tuning) -> Result<Self> {
        tuning.check(&self.context.device)?;
        self.context.tuning = tuning;
        self.context.pipelines = Arc::default();
        self.context.fast_sums = Arc::default();
        Ok(self)
    }

    /// The shape of the kernels.
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
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Buffer {
                got: format!("usage {:?}", buffer.usage()),
                expected: "the usage STORAGE".into(),
            });
        }
        let elements = buffer.size() / 4;
        layout.check(elements as usize)?;
        let placement = Placement::in_place(layout, clipping.granularity, elements);
        self.ensure_checked()?;
        Plan::new(&self.context, layout, clipping, &placement, buffer)
    }

    /// Runs `work` with a session for this shape.
    fn with_session<T>(
        &self,
        layout: &Layout,
        clipping: &Clipping,
        work: impl FnOnce(&Session) -> Result<T>,
    ) -> Result<T> {
        self.ensure_checked()?;
        let mut slot = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = Rules::new(&Source::new(&clipping.threshold, layout, clipping.granularity)?)?;
        let fits = |s: &Session| {
            s.layout == *layout && s.granularity == clipping.granularity && s.plan.serves(clipping, &rules)
        };
        match slot.as_mut().filter(|session| fits(session)) {
            Some(session) => session.plan.set_clipping(clipping)?,
            None => {
                // The old buffer is freed before the new one is made.
                *slot = None;
                *slot = Some(Session::new(&self.context, layout, clipping)?);
            }
        }
        slot.as_ref().map_or(Err(Error::NotRecorded), work)
    }
}

impl Session {
    fn new(context: &GpuContext, layout: &Layout, clipping: &Clipping) -> Result<Self> {
        let placement = Placement::packed(layout, clipping.granularity);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = context.buffer("the batch", (placement.length * 4).max(16), usage)?;
        let plan = Plan::new(context, layout, clipping, &placement, &buffer)?;
        Ok(Self { layout: layout.clone(), granularity: clipping.granularity, placement, buffer, plan })
    }

    /// Uploads the rows in scope, runs `record`, and waits for norms and decisions.
    fn upload(&self, context: &GpuContext, data: &[f32], scope: &Scope) -> Result<()> {
        let mask = scope.mask(self.layout.clients())?;
        let mut in_scope = vec![false; self.placement.spans.len()];
        for (row, &chosen) in mask.iter().enumerate() {
            in_scope[self.layout.spans_of(self.granularity, row)].fill(chosen);
        }
        self.transfer(context, &|span| self.layout.span(self.granularity, span))
            .upload(data, |span| in_scope[span])
    }

    fn download(&self, context: &GpuContext, data: &mut [f32], decisions: &[Decision]) -> Result<()> {
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

impl Backend for Gpu {
    fn ran(&self) -> Ran {
        self.context.ran()
    }

    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms> {
        layout.check(data.len())?;
        let stage = Clipping { threshold: Threshold::Fixed(f32::INFINITY), ..clipping.clone() };
        self.with_session(layout, &stage, |session| {
            session.upload(&self.context, data, &clipping.scope)?;
            self.context.submit("computing norms", |encoder| session.plan.record_norms(encoder))?;
            session.plan.norms_blocking()
        })
    }

    fn threshold(
        &self,
        layout: &Layout,
        norms: &Norms,
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Vec<Decision>> {
        threshold::checked_source(layout, norms, clipping)?;
        self.with_session(layout, clipping, |session| {
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
        check_decisions(layout, clipping.granularity, decisions)?;
        self.with_session(layout, &decided(clipping), |session| {
            session.upload(&self.context, data, &Scope::All)?;
            session.plan.write_decisions(decisions)?;
            self.context.submit("clipping", |encoder| session.plan.record_clip(encoder))?;
            session.download(&self.context, data, decisions)
        })
    }

    fn run_with(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        layout.check(data.len())?;
        self.with_session(layout, clipping, |session| {
            session.plan.set_state(state)?;
            session.upload(&self.context, data, &clipping.scope)?;
            self.context.submit("clipping", |encoder| session.plan.record(encoder))?;
            let (norms, decisions) = session.plan.run_blocking()?;
            let next = session.plan.state_blocking()?;
            session.download(&self.context, data, &decisions)?;
            *state = next;
            Ok(Report::new(self.ran(), layout, clipping.granularity, &norms, &decisions))
        })
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
        check_decisions(layout, clipping.granularity, decisions)?;
        self.with_session(layout, &decided(clipping), |session| {
            let mean = session.plan.mean(weights)?;
            session.upload(&self.context, data, &Scope::All)?;
            session.plan.write_decisions(decisions)?;
            self.context.submit("averaging", |encoder| mean.record(encoder))?;
            mean.read_blocking()
        })
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
        self.with_session(layout, clipping, |session| {
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

impl GpuContext {
    pub(crate) fn ran(&self) -> Ran {
        let mut why = self.why.clone();
        if self.fast_sums.get() == Some(&false) {
            why.push_str("; its fast sums failed the check, so every norm takes the exact sum");
        }
        Ran { backend: BackendKind::Gpu, adapter: Some(self.adapter.clone()), why }
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
        let mut mapped = std::pin::pin!(mapped);
        // The first poll of the future asks for the map; only then is there something to wait for.
        let waker = std::task::Waker::noop();
        let done = match mapped.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Ready(done) => done,
            std::task::Poll::Pending => wait(&self.device, during).and_then(|()| pollster::block_on(mapped)),
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
