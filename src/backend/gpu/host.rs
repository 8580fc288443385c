//! The stages on batches in host memory: shipped to the device, worked on by a plan that is kept, and shipped back where rows
//! were written.

use std::sync::PoisonError;

use bytemuck::Pod;

use super::Gpu;
use super::pieces::Pieces;
use super::rules::Rules;
use super::session::Session;
use super::storage::Storage;
use crate::aggregate::{Weights, check_mean, check_mean_half};
use crate::backend::Backend;
use crate::batch::Layout;
use crate::clip::{Clipping, Scope};
use crate::error::Result;
use crate::half::{self, Half};
use crate::norms::Norms;
use crate::report::{Ran, Report};
use crate::threshold::{self, Decision, Source, State, Threshold, check_decisions};

impl Backend for Gpu {
    fn ran(&self) -> Ran {
        // One whose fast sums failed is what a report has to tell.
        let contexts = self.calibrated.as_ref().map_or(std::slice::from_ref(&self.context), |c| c.contexts());
        contexts
            .iter()
            .find(|context| context.has_failed())
            .or(contexts.first())
            .unwrap_or(&self.context)
            .ran()
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
        if self.pieces(storage, layout, clipping).is_some() {
            return threshold::decide(layout, norms, clipping, state);
        }
        self.with_session(storage, layout, clipping, |session| {
            session.plan.write_norms(norms)?;
            session.plan.set_state(state)?;
            session.submit("deciding bounds", |encoder| session.plan.record_threshold(encoder))?;
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

/// The stages for elements of any storage, behind the checks of the caller's values.
impl Gpu {
    /// The pieces of a batch that the device's buffers do not hold.
    fn pieces(&self, storage: Storage, layout: &Layout, clipping: &Clipping) -> Option<Pieces> {
        Pieces::of(&self.context, layout, clipping, storage)
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
        context.ensure_checked(storage, clipping.center.is_some())?;
        let mut slot = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = Rules::new(&Source::new(&clipping.threshold, layout, clipping.granularity)?)?;
        let fits = |s: &Session| {
            let same = s.storage == storage && s.layout == *layout && s.granularity == clipping.granularity;
            same && s.plan.tuning() == &context.tuning && s.plan.serves(clipping, &rules)
        };
        // An old buffer is freed before the new one is made.
        let session = match slot.take().filter(fits) {
            Some(mut session) => {
                session.plan.set_clipping(clipping)?;
                session
            }
            None => Session::new(context, layout, clipping, storage)?,
        };
        work(slot.insert(session))
    }

    pub(super) fn norms_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
    ) -> Result<Norms> {
        let stage = Clipping { threshold: Threshold::Fixed(f32::INFINITY), ..clipping.clone() };
        if let Some(pieces) = self.pieces(storage, layout, clipping) {
            clipping.check_center(layout)?;
            return self.norms_in_pieces(&pieces, storage, layout, data, &stage);
        }
        self.with_session(storage, layout, &stage, |session| {
            session.upload(data, &clipping.scope)?;
            session.submit("computing norms", |encoder| session.plan.record_norms(encoder))?;
            session.plan.norms_blocking()
        })
    }

    pub(super) fn clip_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        check_decisions(layout, clipping.granularity, decisions)?;
        let clipping = &clipping.of_decisions();
        if let Some(pieces) = self.pieces(storage, layout, clipping) {
            return self.clip_in_pieces(&pieces, storage, layout, data, clipping, decisions);
        }
        self.with_session(storage, layout, clipping, |session| {
            session.upload_spans(data, |span| decisions[span].status.is_written())?;
            session.plan.write_decisions(decisions)?;
            session.submit("clipping", |encoder| session.plan.record_clip(encoder))?;
            session.download_given(data, clipping, decisions)
        })
    }

    pub(super) fn run_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        if let Some(pieces) = self.pieces(storage, layout, clipping) {
            return self.run_in_pieces(&pieces, storage, layout, data, clipping, state);
        }
        self.with_session(storage, layout, clipping, |session| {
            session.plan.set_state(state)?;
            session.upload(data, &clipping.scope)?;
            session.submit("clipping", |encoder| session.plan.record(encoder))?;
            let (norms, decisions) = session.plan.run_blocking()?;
            let next = session.plan.state_blocking()?;
            session.download(data, &decisions)?;
            *state = next;
            let ran = Ran { strategy: Some(session.plan.strategy()), ..self.ran() };
            Ok(Report::of_stages(ran, layout, clipping.granularity, &norms, &decisions))
        })
    }

    pub(super) fn mean_of<T: Pod>(
        &self,
        storage: Storage,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        check_decisions(layout, clipping.granularity, decisions)?;
        if self.pieces(storage, layout, clipping).is_some() || !self.holds_mean(layout) {
            return self.mean_by_columns(storage, layout, data, clipping, decisions, weights);
        }
        self.with_session(storage, layout, &clipping.of_decisions(), |session| {
            let mean = session.plan.mean(weights)?;
            session.upload(data, &Scope::All)?;
            session.plan.write_decisions(decisions)?;
            session.submit("averaging", |encoder| mean.record(encoder))?;
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
        let pieces = self.pieces(storage, layout, clipping);
        if pieces.is_some() || !self.holds_mean(layout) {
            clipping.check(layout, state)?;
            let norms = self.norms_of(storage, layout, data, clipping)?;
            let mut next = state.clone();
            let decisions = threshold::decide(layout, &norms, clipping, &mut next)?;
            let mean = self.mean_by_columns(storage, layout, data, clipping, &decisions, weights)?;
            *state = next;
            let mut ran = match pieces {
                Some(pieces) => pieces.ran(self, false),
                None => {
                    let ran = self.ran();
                    Ran { why: format!("{}; by columns, because no binding holds the mean", ran.why), ..ran }
                }
            };
            if self.widest_columns(layout, storage).is_none() {
                ran.why.push_str("; the mean on the CPU, because no buffer holds what is kept of each row");
            }
            return Ok((mean, Report::of_stages(ran, layout, clipping.granularity, &norms, &decisions)));
        }
        self.with_session(storage, layout, clipping, |session| {
            let mean = session.plan.mean(weights)?;
            session.plan.set_state(state)?;
            // Rows out of scope are not clipped, but they count.
            session.upload(data, &Scope::All)?;
            session.submit("averaging", |encoder| {
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
