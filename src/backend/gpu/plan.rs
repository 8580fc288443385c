//! A plan: everything that clipping one buffer needs, made once; recording it allocates nothing.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::buffers::Buffers;
use super::context::GpuContext;
use super::device::{guarded, read_mapped};
use super::geometry::{Geometry, Placement, Tile};
use super::kernels::{Form, Kernel, Stage};
use super::mean::MeanPlan;
use super::params::{
    CLIPS_ALL, DeviceDecision, OF_STAGES, Params, RUN_BYTES, RUN_DECISIONS, RUN_NORMS, RUN_OPEN, policy_code,
};
use super::rules::{NO_GROUP, Rules};
use super::steps::{Binder, CLIP, Extent, NORMS, Step, THRESHOLD, folded};
use super::storage::{Storage, Sums};
use super::tuning::Tuning;
use crate::aggregate::Weights;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite, Scope};
use crate::error::{Error, Result};
use crate::norms::{Norm, Norms};
use crate::report::{Report, Strategy};
use crate::threshold::{self, Decision, Source, State, Threshold};

/// What the plan does while a report is read.
const READING: &str = "reading the report";

/// What it does, or that of a mean, while its buffers are written.
pub(super) const WRITING: &str = "writing the plan";

/// What a run left on the device.
struct Run {
    norms_done: bool,
    /// The non-finite policy that its decisions were made under, once they are.
    policy: Option<u32>,
    norms: Norms,
    decisions: Vec<Decision>,
}

/// Everything that norms, threshold and clip of one batch in one buffer need, made once.
///
/// A plan records into the caller's encoder, without submitting or waiting; recording and running
/// allocate nothing. Its [`Clipping`] takes effect with the next submission after
/// [`Plan::set_clipping`], as every write to a queue does: for two clippings in one submission make
/// two plans.
///
/// Where the threshold does not look at norms ([`Threshold::Fixed`], [`Threshold::PerRow`] and the split ones), the policy is
/// not [`NonFinite::Error`], and bounds are not those of segments, rows are decided alone, each as soon as it has a norm, and
/// [`Plan::record`] leaves the threshold stage out. It may also leave out workgroups that would come for rows out of scope. Such a recording
/// is for such clippings, and for no more of the batch than was in scope. Submitted after [`Plan::set_clipping`] to a clipping of another
/// kind **it leaves the batch as it is**, unclipped, and its report and its mean are [`Error::NotRecorded`]. The same happens where more rows
/// are in scope than before and workgroups for them were left out; where none were, it clips them too.
///
/// # Examples
/// ```no_run
/// # fn example(device: wgpu::Device, queue: wgpu::Queue, updates: wgpu::Buffer) -> byzclip::Result<()> {
/// use byzclip::{Clipping, Gpu, Layout, wgpu};
///
/// let gpu = Gpu::from_device(device.clone(), queue.clone())?;
/// let plan = gpu.plan(&Layout::dense(64, 1_000_000)?, &Clipping::fixed(2.0), &updates)?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// plan.record(&mut encoder);
/// queue.submit([encoder.finish()]);
///
/// let report = plan.report_blocking()?;
/// println!("{} clipped", report.count(byzclip::Status::Clipped));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Plan {
    context: GpuContext,
    layout: Layout,
    granularity: Granularity,
    centered: bool,
    threshold: Threshold,
    source: Source,
    geometry: Geometry,
    buffers: Buffers,
    data: wgpu::Buffer,
    /// The stages alone.
    norms: Vec<Step>,
    decide: Vec<Step>,
    clip: Vec<Step>,
    /// The passes of a run of all stages, where these are other than the stages one by one; else empty.
    passes: Vec<Vec<Step>>,
    /// Those of a run whose rows are decided alone.
    passes_alone: Vec<Vec<Step>>,
    /// Whether rows are decided alone, before the others have norms; [`Source::bounds_alone`] tells when.
    decides_alone: bool,
    /// Tiles in scope, where a run goes through a list of those.
    tiles_in_scope: u32,
    recorded: AtomicBool,
}

/// What a plan calls its passes.
const RUN_PASS: &str = "byzclip";
const STAGE_PASSES: [&str; 3] = ["byzclip norms", "byzclip threshold", "byzclip clip"];

/// One dispatch of a recording, for tests that make the same by bare calls.
#[doc(hidden)]
#[derive(Debug)]
pub struct Dispatch<'a> {
    /// The label of its pass.
    pub pass: &'static str,
    /// The entry point.
    pub kernel: &'static str,
    pub pipeline: &'a wgpu::ComputePipeline,
    pub bindings: &'a wgpu::BindGroup,
    pub workgroups: (u32, u32),
}

impl Plan {
    pub(super) fn new(
        context: &GpuContext,
        layout: &Layout,
        clipping: &Clipping,
        placement: &Placement,
        storage: Storage,
        data: &wgpu::Buffer,
    ) -> Result<Self> {
        let context = context.clone();
        let tuning = &context.tuning;
        clipping.check_center(layout)?;
        let centered = clipping.center.is_some();
        let geometry = Geometry::new(layout, clipping.granularity, placement, tuning, centered, storage)?;
        let unpacks = context.unpacks(storage);
        let form = Form { fours: geometry.fours, centered, storage, unpacks };
        let chosen = |kernel: &Kernel| kernel.stage != Stage::Mean && (kernel.when)(&geometry);
        let pipelines = context.pipelines.get(&context.device, tuning, form, chosen)?;
        let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
        let rules = Rules::new(&source)?;
        let center = clipping.center.as_ref().map_or(0, |center| center.len());
        let buffers = Buffers::new(&context, &geometry, &rules, center)?;
        let binder =
            Binder { context: &context, pipelines: &pipelines, geometry: &geometry, buffers: &buffers, data };
        let (stages, passes, passes_alone) = guarded(&context.device, "binding the buffers", || {
            let whole = Extent::whole(&geometry, OF_STAGES);
            let stages = [NORMS, THRESHOLD, CLIP].map(|stage| binder.steps(&[stage], &whole));
            (stages, binder.passes(), binder.passes_alone(clipping.granularity))
        })?;
        let [norms, decide, clip] = stages;
        let mut plan = Self {
            layout: layout.clone(),
            granularity: clipping.granularity,
            centered,
            threshold: clipping.threshold.clone(),
            source,
            geometry,
            buffers,
            data: data.clone(),
            norms,
            decide,
            clip,
            passes,
            passes_alone,
            decides_alone: false,
            tiles_in_scope: 0,
            recorded: AtomicBool::new(false),
            context,
        };
        plan.upload(&plan.buffers.tiles, bytemuck::cast_slice(&plan.geometry.tiles))?;
        plan.upload(&plan.buffers.starts_and_center, bytemuck::cast_slice(&plan.geometry.tile_starts))?;
        plan.set_clipping(clipping)?;
        plan.set_state(&plan.source.initial_state())?;
        Ok(plan)
    }

    /// Sets threshold, scope, non-finite policy and centre for the submissions that follow.
    ///
    /// The state of an adaptive or history threshold stays where the threshold stays the same, and begins
    /// anew where it does not.
    ///
    /// Record again where the threshold did not look at norms and now does, where the policy becomes [`NonFinite::Error`], or where more of the
    /// batch comes into scope: what was recorded before may leave the batch unclipped, as [`Plan`] explains.
    ///
    /// # Errors
    /// Where threshold, scope or centre do not fit the layout, the granularity is not the plan's, the threshold
    /// remembers more than the one that the plan was made for, or only one of the two has a centre.
    pub fn set_clipping(&mut self, clipping: &Clipping) -> Result<()> {
        if clipping.granularity != self.granularity {
            return Err(Error::Layout {
                got: format!("granularity {:?}", clipping.granularity),
                expected: "the granularity that the plan was made for; make another plan",
            });
        }
        if clipping.center.is_some() != self.centered {
            return Err(Error::Layout {
                got: format!("a clipping {} a centre", if self.centered { "without" } else { "with" }),
                expected: "a centre exactly where the plan was made for one; make another plan",
            });
        }
        clipping.check_center(&self.layout)?;
        let source = Source::new(&clipping.threshold, &self.layout, self.granularity)?;
        let rules = Rules::new(&source)?;
        if !self.holds(&rules) {
            return Err(Error::Layout {
                got: format!("a threshold that remembers {} words", rules.state_words),
                expected: "no more than the threshold that the plan was made for; make another plan",
            });
        }
        self.mark_spans(&clipping.scope, &source)?;
        let decides_alone = source.bounds_alone(clipping).is_some();
        let params = self.params(clipping, &rules);
        self.list_tiles_in_scope()?;
        let Geometry { strategy, portions, .. } = &self.geometry;
        let copies = params.copies(*strategy, decides_alone, self.tiles_in_scope, portions);
        let stride = self.context.tuning.offset_alignment as usize;
        let mut bytes = vec![0; copies.len() * stride];
        for (place, copy) in bytes.chunks_exact_mut(stride).zip(&copies) {
            place[..size_of::<Params>()].copy_from_slice(bytemuck::bytes_of(copy));
        }
        self.upload(&self.buffers.params, &bytes)?;
        self.upload(&self.buffers.spans, bytemuck::cast_slice(&self.geometry.spans))?;
        self.upload(&self.buffers.groups, bytemuck::cast_slice(&rules.groups))?;
        self.upload(&self.buffers.members, bytemuck::cast_slice(&rules.members))?;
        if let Some(center) = &clipping.center {
            let buffer = &self.buffers.starts_and_center;
            self.context.write(WRITING, buffer, self.center_offset(), bytemuck::cast_slice(center))?;
        }
        let same = self.threshold == clipping.threshold;
        (self.threshold, self.source) = (clipping.threshold.clone(), source);
        self.decides_alone = decides_alone;
        if same { Ok(()) } else { self.set_state(&self.source.initial_state()) }
    }

    /// Writes scope, and bounds or groups, into the spans of the geometry.
    fn mark_spans(&mut self, scope: &Scope, source: &Source) -> Result<()> {
        let mask = scope.mask(self.layout.clients())?;
        let spans = self.geometry.spans.as_mut_slice();
        let (bounded, rows) = spans.split_at_mut(self.geometry.bounded);
        for (row, &in_scope) in mask.iter().enumerate() {
            for span in self.layout.spans_of(self.granularity, row) {
                bounded[span].in_scope = u32::from(in_scope);
            }
            if let Some(span) = rows.get_mut(row) {
                span.in_scope = u32::from(in_scope);
            }
        }
        match source {
            Source::Given(bounds) => {
                for (span, bound) in bounded.iter_mut().zip(bounds) {
                    (span.bound, span.group) = (bound.to_bits(), NO_GROUP);
                }
            }
            Source::Computed { groups, .. } => {
                for group in 0..groups.count() {
                    for &span in groups.members_of(group) {
                        bounded[span as usize].group = group as u32;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lists the tiles of spans in scope, where a run goes through those.
    fn list_tiles_in_scope(&mut self) -> Result<()> {
        if !self.geometry.lists_scope() {
            return Ok(());
        }
        let mut list = Vec::with_capacity(self.geometry.tiles.len());
        list.extend(self.geometry.tiles_in_scope());
        self.tiles_in_scope = list.len() as u32;
        list.resize(self.geometry.tiles.len(), Tile::PADDING);
        self.upload(&self.buffers.tiles_in_scope, bytemuck::cast_slice(&list))
    }

    /// The params of the stages alone.
    fn params(&self, clipping: &Clipping, rules: &Rules) -> Params {
        Params {
            zero: self.context.tuning.zero,
            spans: self.geometry.spans.len() as u32,
            bounded: self.geometry.bounded as u32,
            non_finite: policy_code(clipping.non_finite),
            force_exact: u32::from(
                self.context.tuning.force_exact
                    || self.context.fast_sums_failed(Sums::of(self.geometry.storage, self.centered)),
            ),
            groups: rules.groups.len() as u32,
            coordinates: u32::from(self.granularity == Granularity::Coordinate),
            tiles_per_row: self.geometry.tile_starts.len() as u32,
            first: 0,
            end: self.geometry.spans.len() as u32,
            clips: CLIPS_ALL,
            decides: 0,
            tiles_in_scope: 0,
        }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn tuning(&self) -> &Tuning {
        &self.context.tuning
    }

    /// Whether the plan has the kernels for this clipping, and room for its rules.
    pub(super) fn serves(&self, clipping: &Clipping, rules: &Rules) -> bool {
        clipping.center.is_some() == self.centered && self.holds(rules)
    }

    fn holds(&self, rules: &Rules) -> bool {
        (rules.state_words.max(1) * 4) as u64 <= self.buffers.state.size()
    }

    /// Restores the state of an adaptive or history threshold; an empty one begins anew.
    ///
    /// # Errors
    /// [`Error::Setting`] where the state is of another threshold or shape; errors of the device.
    pub fn set_state(&self, state: &State) -> Result<()> {
        let mut state = state.clone();
        self.source.prepare(&mut state)?;
        self.upload(&self.buffers.state, bytemuck::cast_slice(state.words()))
    }

    /// Reads the state of an adaptive or history threshold back, to be saved; waits for the device.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn state_blocking(&self) -> Result<State> {
        let words = self.source.initial_state().words().len();
        if words == 0 {
            return Ok(State::default());
        }
        let parts = [(&self.buffers.state, 0..(words * 4) as u64)];
        let read = |bytes: &[u8]| State::from_words(bytemuck::pod_collect_to_vec(bytes));
        self.context.read_back("the state", "reading the state", &parts, read)
    }

    /// Records all stages: norms, threshold, clip; without the threshold where rows are decided alone ([`Plan`] tells when).
    ///
    /// Nothing is submitted and nothing waits. Errors of the recording surface, as wgpu has it, when
    /// the encoder is finished.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let passes = self.run_passes();
        if passes.is_empty() {
            self.record_norms(encoder);
            self.record_threshold(encoder);
            self.record_clip(encoder);
            return;
        }
        for (i, pass) in passes.iter().enumerate() {
            // Portions have their own lists of open spans.
            self.clear_run(encoder, if i == 0 { 0..RUN_BYTES } else { RUN_OPEN });
            self.record_steps(encoder, RUN_PASS, pass);
        }
    }

    /// The passes of [`Plan::record`]; none where it records the stages one by one.
    fn run_passes(&self) -> &[Vec<Step>] {
        if self.decides_alone { &self.passes_alone } else { &self.passes }
    }

    /// How [`Plan::record`] spreads norms and clip over dispatches. Stages recorded one by one never share one.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.geometry.strategy
    }

    /// Records the norms stage.
    pub fn record_norms(&self, encoder: &mut wgpu::CommandEncoder) {
        self.clear_run(encoder, 0..RUN_BYTES);
        self.record_steps(encoder, STAGE_PASSES[0], &self.norms);
    }

    /// Records the threshold stage, on the norms in the plan.
    pub fn record_threshold(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record_steps(encoder, STAGE_PASSES[1], &self.decide);
    }

    /// Records the clip stage, on the decisions in the plan.
    ///
    /// They are those that the threshold stage made last. Where the buffer was changed since its norms were taken, NaN and Inf that are
    /// multiplied become what the device's arithmetic makes of them, and so do halves that share a word with them.
    pub fn record_clip(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record_steps(encoder, STAGE_PASSES[2], &self.clip);
    }

    /// Everything that the weighted mean of the plan's rows needs, made once; see [`MeanPlan`].
    ///
    /// # Errors
    /// Those of [`Weights::of_rows`]; [`Error::Layout`] where rows differ in length or segments; errors of the
    /// device.
    pub fn mean(&self, weights: &Weights) -> Result<MeanPlan> {
        let source = super::mean::Source {
            layout: &self.layout,
            granularity: self.granularity,
            geometry: &self.geometry,
            data: &self.data,
            tiles: &self.buffers.tiles,
            starts_and_center: &self.buffers.starts_and_center,
            decisions: &self.buffers.decisions,
            run: &self.buffers.run,
            params: &self.buffers.params,
            centered: self.centered,
        };
        MeanPlan::new(&self.context, &source, weights)
    }

    /// Records a copy of a vector on the device to the plan's centre, for example of the last mean.
    ///
    /// The buffer holds the vector's `f32` elements, `[params]`, from `offset` bytes on, and needs the usage
    /// `COPY_SRC`. A centre with NaN or Inf makes every row in scope one that is not finite.
    ///
    /// # Errors
    /// [`Error::Layout`] where the plan has no centre; [`Error::Buffer`] where the vector does not fit.
    pub fn record_center(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        vector: &wgpu::Buffer,
        offset: u64,
    ) -> Result<()> {
        if !self.centered {
            return Err(Error::Layout {
                got: "a centre for a plan without one".into(),
                expected: "a plan made for a clipping around a centre",
            });
        }
        let (buffer, start) = (&self.buffers.starts_and_center, self.center_offset());
        let bytes = (buffer.size() - start).min((self.layout.params() * 4) as u64);
        let unusable = |got, expected| Err(Error::Buffer { got, expected });
        if !vector.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return unusable(format!("usage {:?}", vector.usage()), "the usage COPY_SRC".into());
        }
        if !offset.is_multiple_of(4) || offset.checked_add(bytes).is_none_or(|end| end > vector.size()) {
            let got = format!("{} bytes from byte {offset}", vector.size());
            return unusable(got, format!("{bytes} bytes from a multiple of 4"));
        }
        encoder.copy_buffer_to_buffer(vector, offset, buffer, start, bytes);
        Ok(())
    }

    /// Clears words of the run.
    fn clear_run(&self, encoder: &mut wgpu::CommandEncoder, bytes: Range<u64>) {
        encoder.clear_buffer(&self.buffers.run, bytes.start, Some(bytes.end - bytes.start));
    }

    fn record_steps(&self, encoder: &mut wgpu::CommandEncoder, label: &str, steps: &[Step]) {
        self.recorded.store(true, Ordering::Release);
        let mut pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None });
        for step in steps {
            step.record(&mut pass, self.workgroups(step));
        }
    }

    /// On how many workgroups a step is dispatched now: on one at least, so that a run knows of it.
    fn workgroups(&self, step: &Step) -> (u32, u32) {
        let limit = self.context.device.limits().max_compute_workgroups_per_dimension;
        if step.in_scope { folded(u64::from(self.tiles_in_scope.max(1)), limit) } else { step.workgroups }
    }

    /// Reads the report of the last submitted run back, waiting for the device.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where the policy is [`NonFinite::Error`] and a row holds NaN or Inf (no row
    /// was written then); [`Error::NotRecorded`], also after a recording for another kind of clipping (see [`Plan`]);
    /// errors of the device.
    pub fn report_blocking(&self) -> Result<Report> {
        self.to_report(self.read_blocking()?)
    }

    /// Reads the report of the last submitted run back.
    ///
    /// The future resolves once somebody polls the device, as for every wgpu map. It may be dropped halfway,
    /// and several may be under way at once. Each reads the run that is the last when it is first polled: poll it
    /// once before the next run is submitted.
    ///
    /// # Errors
    /// Those of [`Plan::report_blocking`].
    pub async fn report(&self) -> Result<Report> {
        self.to_report(self.read().await?)
    }

    fn to_report(&self, run: Run) -> Result<Report> {
        let (norms, decisions) = (self.check_norms(&run)?, self.check_decisions(&run)?);
        Ok(Report::of_stages(self.context.ran(), &self.layout, self.granularity, norms, decisions))
    }

    /// What is on the device now.
    fn read_blocking(&self) -> Result<Run> {
        self.context.wait_for(self.read(), READING)
    }

    /// The norms of the last submitted run.
    pub(crate) fn norms_blocking(&self) -> Result<Norms> {
        let run = self.read_blocking()?;
        self.check_norms(&run)?;
        Ok(run.norms)
    }

    /// The decisions of the last submitted run.
    pub(super) fn decisions_blocking(&self) -> Result<Vec<Decision>> {
        let run = self.read_blocking()?;
        self.check_decisions(&run)?;
        Ok(run.decisions)
    }

    /// The norms and decisions of the last submitted run.
    pub(super) fn run_blocking(&self) -> Result<(Norms, Vec<Decision>)> {
        let run = self.read_blocking()?;
        self.check_norms(&run)?;
        self.check_decisions(&run)?;
        Ok((run.norms, run.decisions))
    }

    /// Refuses norms that no submission has computed.
    fn check_norms<'a>(&self, run: &'a Run) -> Result<&'a Norms> {
        let done = run.norms_done || self.geometry.spans.is_empty();
        if done { Ok(&run.norms) } else { Err(Error::NotRecorded) }
    }

    /// Refuses decisions that no submission has made, or that its policy makes an error.
    fn check_decisions<'a>(&self, run: &'a Run) -> Result<&'a [Decision]> {
        if run.policy.is_none() && self.geometry.bounded > 0 {
            return Err(Error::NotRecorded);
        }
        if run.policy == Some(policy_code(NonFinite::Error)) {
            threshold::refuse_non_finite(&run.norms.rows)?;
        }
        Ok(&run.decisions)
    }

    /// Reads back what is on the device when the copy runs: after all that was submitted before.
    async fn read(&self) -> Result<Run> {
        if !self.recorded.load(Ordering::Acquire) {
            return Err(Error::NotRecorded);
        }
        let (norms, decisions) = (self.norms_bytes(), self.decisions_bytes());
        let unused = self.buffers.staging.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let staging = match unused {
            Some(staging) => staging,
            None => self.context.staging("the report", RUN_BYTES + norms + decisions)?,
        };
        self.context.submit(READING, |encoder| {
            encoder.copy_buffer_to_buffer(&self.buffers.run, 0, &staging, 0, RUN_BYTES);
            encoder.copy_buffer_to_buffer(&self.buffers.norms, 0, &staging, RUN_BYTES, norms);
            encoder.copy_buffer_to_buffer(&self.buffers.decisions, 0, &staging, RUN_BYTES + norms, decisions);
        })?;
        let to_run = |bytes: &[u8]| {
            let (run, rest) = bytes.split_at(RUN_BYTES as usize);
            let (norms, decisions) = rest.split_at(norms as usize);
            let words: &[u32] = bytemuck::cast_slice(run);
            let decisions = &bytemuck::cast_slice::<_, DeviceDecision>(decisions)[..self.geometry.bounded];
            Run {
                norms_done: words[RUN_NORMS] != 0,
                policy: words[RUN_DECISIONS].checked_sub(1),
                norms: self.to_norms(bytemuck::cast_slice(norms)),
                decisions: decisions.iter().map(|decision| decision.to_host()).collect(),
            }
        };
        let read = read_mapped(&staging, RUN_BYTES + norms + decisions, READING, to_run);
        let run = read.await.map_err(|e| self.context.lost.explain(e))?;
        // One that failed, or was dropped halfway, is not used again.
        self.buffers.staging.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
        Ok(run)
    }

    fn to_norms(&self, all: &[Norm]) -> Norms {
        let (bounded, rows) = all[..self.geometry.spans.len()].split_at(self.geometry.bounded);
        match self.granularity {
            Granularity::Row | Granularity::Coordinate => {
                Norms { rows: bounded.to_vec(), segments: Vec::new() }
            }
            Granularity::Segment => Norms { rows: rows.to_vec(), segments: bounded.to_vec() },
        }
    }

    /// Replaces the norms in the plan, for the threshold stage alone.
    pub(super) fn write_norms(&self, norms: &Norms) -> Result<()> {
        let mut all = norms.spans(self.granularity).to_vec();
        if self.granularity == Granularity::Segment {
            all.extend(&norms.rows);
        }
        let non_finite = norms.rows.iter().any(|n| n.class() == crate::NormClass::NonFinite);
        self.upload(&self.buffers.run, bytemuck::cast_slice(&[u32::from(non_finite), 1, 0]))?;
        self.upload(&self.buffers.norms, bytemuck::cast_slice(&all))
    }

    /// Replaces the decisions in the plan, for the clip stage alone.
    pub(super) fn write_decisions(&self, decisions: &[Decision]) -> Result<()> {
        let all: Vec<_> =
            decisions.iter().map(|decision| DeviceDecision::from_host(decision, self.granularity)).collect();
        self.upload(&self.buffers.decisions, bytemuck::cast_slice(&all))?;
        // As if a run had made them; what is refused was so before they came.
        self.upload(&self.buffers.run, bytemuck::cast_slice(&[0, 0, 1 + policy_code(NonFinite::Zero)]))
    }

    /// Where the centre begins behind the starts of tiles, in bytes.
    fn center_offset(&self) -> u64 {
        (self.geometry.tile_starts.len() * 4) as u64
    }

    fn upload(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        self.context.write(WRITING, buffer, 0, bytes)
    }

    fn norms_bytes(&self) -> u64 {
        (self.geometry.spans.len().max(1) * size_of::<Norm>()) as u64
    }

    fn decisions_bytes(&self) -> u64 {
        (self.geometry.bounded.max(1) * size_of::<DeviceDecision>()) as u64
    }

    /// Every dispatch that [`Plan::record`] makes, pass by pass, for tests that hold it against the bare calls.
    #[doc(hidden)]
    pub fn dispatches(&self) -> impl Iterator<Item = Dispatch<'_>> {
        let passes = self.run_passes();
        let one_by_one = passes.is_empty();
        let stages = STAGE_PASSES.into_iter().zip([&self.norms, &self.decide, &self.clip]);
        let stages = stages.filter(move |_| one_by_one);
        let all = stages.chain(passes.iter().map(|pass| (RUN_PASS, pass)));
        all.flat_map(move |(pass, steps)| {
            steps.iter().map(move |step| Dispatch {
                pass,
                kernel: step.kernel,
                pipeline: &step.pipeline,
                bindings: &step.bindings,
                workgroups: self.workgroups(step),
            })
        })
    }

    /// The buffer that [`Plan::record`] clears first, and how many bytes of it, for the same tests.
    #[doc(hidden)]
    #[must_use]
    pub fn cleared(&self) -> (&wgpu::Buffer, u64) {
        (&self.buffers.run, RUN_BYTES)
    }

    /// Overwrites everything that a run computes with nonsense.
    ///
    /// For tests: a run that leaves something unwritten, or reads what it did not write, shows.
    ///
    /// # Errors
    /// Errors of the device.
    #[doc(hidden)]
    pub fn poison(&self) -> Result<()> {
        let scratch = [
            &self.buffers.partials,
            &self.buffers.norms,
            &self.buffers.exact_sums,
            &self.buffers.decisions,
            &self.buffers.run,
            &self.buffers.bounds,
        ];
        for buffer in scratch {
            self.upload(buffer, &vec![0xa5; buffer.size() as usize])?;
        }
        Ok(())
    }
}
