//! The backends, behind one trait, and the choice among them.
//!
//! Every backend gives the same bits; they differ in speed and in where they run.

pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
mod reference;
mod select;

pub use cpu::Cpu;
#[cfg(feature = "gpu")]
pub use gpu::Gpu;
pub use reference::Reference;
#[cfg(feature = "gpu")]
pub use select::select_prepared;
pub use select::{Choice, select};

use crate::aggregate::{self, Weights, check_mean, check_mean_half};
use crate::batch::Layout;
use crate::clip::Clipping;
use crate::error::Result;
use crate::half::{self, Half};
use crate::norms::Norms;
use crate::report::{Ran, Report};
use crate::threshold::{self, Decision, State, check_decisions};

/// The stages over a batch in host memory, each separately and as one call: norms, threshold, and clip or mean.
///
/// All implementations return the same bits for the same values; the conformance tests hold them
/// to that.
///
/// # Examples
/// ```
/// use byzclip::{Backend, Clipping, Cpu, Layout, Status};
///
/// let mut updates = vec![3.0, 4.0, /* client 1 */ 0.3, 0.4];
/// let layout = Layout::dense(2, 2)?;
/// let report = Cpu::new()?.run(&layout, &mut updates, &Clipping::fixed(1.0))?;
/// assert_eq!(report.rows[0].norm, 5.0);
/// assert_eq!(report.rows[0].status, Status::Clipped);
/// assert_eq!(&updates[2..], &[0.3, 0.4]);
/// # Ok::<(), byzclip::Error>(())
/// ```
pub trait Backend: Send + Sync {
    /// Which backend this is, on what, and why it was taken.
    fn ran(&self) -> Ran;

    /// Stage 1: the correctly rounded norm of every row in scope, `‖g‖ = √Σ gᵢ²`, `[clients, params]` to `[clients]`, and at segment
    /// granularity of every segment as well. Around a centre `v` it is `‖g − v‖`; at coordinate granularity the largest magnitude, `max |gᵢ|`.
    ///
    /// A row with NaN or Inf has the class `NonFinite`, one out of scope `OutOfScope`, and neither a value; a row without elements has the
    /// norm 0. Of the clipping, scope, granularity and centre matter here.
    ///
    /// # Errors
    /// Where data, scope or centre do not fit the layout, or the device fails.
    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms>;

    /// Stage 2: bounds, factors and statuses from norms; the state moves on by a round.
    ///
    /// # Errors
    /// Those of [`threshold::decide`], or where the device fails.
    fn threshold(
        &self,
        layout: &Layout,
        norms: &Norms,
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Vec<Decision>> {
        threshold::decide(layout, norms, clipping, state)
    }

    /// Stage 3: applies decisions in place; spans that are neither clipped nor zeroed are not written.
    ///
    /// Of the clipping, granularity and centre matter here.
    ///
    /// Decisions of the same data clip no span with an element that is not finite. Should they come from other data, NaN and Inf stay what they
    /// are, bit for bit; bounded coordinates are cut to the bound, whatever they were.
    ///
    /// # Errors
    /// Where data, decisions or centre do not fit the layout, or the device fails.
    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()>;

    /// Instead of the clip stage: the weighted mean of the clipped rows, `Σ wᵢ·clip(gᵢ) / Σ wᵢ`,
    /// `[clients, params]` to `[params]`, as [`aggregate::mean`] specifies it.
    ///
    /// The data is the unclipped batch, and is not written.
    ///
    /// # Errors
    /// Those of [`aggregate::mean`], or where the device fails.
    fn mean(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        aggregate::mean(layout, data, clipping, decisions, weights)
    }

    /// All stages as one call, for a threshold that starts anew.
    ///
    /// # Errors
    /// Those of [`Backend::run_with`].
    fn run(&self, layout: &Layout, data: &mut [f32], clipping: &Clipping) -> Result<Report> {
        self.run_with(layout, data, clipping, &mut State::default())
    }

    /// All stages as one call, for a threshold that remembers earlier rounds; an empty state begins anew.
    ///
    /// # Errors
    /// Those of the stages; data and state are unchanged where an error is returned before the clip stage,
    /// which includes every error that the caller's values can cause.
    fn run_with(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        run_stages(self, layout, data, clipping, state)
    }

    /// Norms, threshold and mean as one call, for a threshold that starts anew.
    ///
    /// # Errors
    /// Those of [`Backend::run_mean_with`].
    fn run_mean(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        weights: &Weights,
    ) -> Result<(Vec<f32>, Report)> {
        self.run_mean_with(layout, data, clipping, weights, &mut State::default())
    }

    /// Norms, threshold and mean as one call, for a threshold that remembers earlier rounds.
    ///
    /// # Errors
    /// Those of the stages; the state is unchanged where the caller's values cause an error.
    fn run_mean_with(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        weights: &Weights,
        state: &mut State,
    ) -> Result<(Vec<f32>, Report)> {
        check_mean(layout, data, clipping, weights)?;
        clipping.threshold.check_with(layout, clipping.granularity, state)?;
        let norms = self.norms(layout, data, clipping)?;
        let mut next = state.clone();
        let decisions = self.threshold(layout, &norms, clipping, &mut next)?;
        let mean = self.mean(layout, data, clipping, &decisions, weights)?;
        *state = next;
        Ok((mean, Report::of_stages(self.ran(), layout, clipping.granularity, &norms, &decisions)))
    }

    /// Stage 1 on a batch in half precision: the norms of the widened values.
    ///
    /// # Errors
    /// Those of [`Backend::norms`]; [`Error::Setting`](crate::Error::Setting) where the clipping has a centre.
    fn norms_half(&self, layout: &Layout, half: Half, data: &[u16], clipping: &Clipping) -> Result<Norms> {
        half::check(layout, data.len(), clipping)?;
        self.norms(layout, &half.widened(data), clipping)
    }

    /// Stage 3 on a batch in half precision: [`Half::scaled`] or [`Half::clamped`] values, in place; spans that are
    /// neither clipped nor zeroed are not written.
    ///
    /// # Errors
    /// Those of [`Backend::clip`]; [`Error::Setting`](crate::Error::Setting) where the clipping has a centre.
    fn clip_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        half::clip(layout, half, data, clipping, decisions)
    }

    /// The mean stage on a batch in half precision: the `f32` nearest to the weighted mean of what
    /// [`Backend::clip_half`] would write, with the rules of [`aggregate::mean`].
    ///
    /// # Errors
    /// Those of [`Backend::mean`]; [`Error::Setting`](crate::Error::Setting) where the clipping has a centre.
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
        check_decisions(layout, clipping.granularity, decisions)?;
        let mut clipped = data.to_vec();
        half::clip(layout, half, &mut clipped, clipping, decisions)?;
        self.mean(layout, &half.widened(&clipped), clipping, &half::settled(decisions), weights)
    }

    /// All stages on a batch in half precision, for a threshold that starts anew.
    ///
    /// # Errors
    /// Those of [`Backend::run_half_with`].
    fn run_half(&self, layout: &Layout, half: Half, data: &mut [u16], clipping: &Clipping) -> Result<Report> {
        self.run_half_with(layout, half, data, clipping, &mut State::default())
    }

    /// All stages on a batch in half precision, for a threshold that remembers earlier rounds.
    ///
    /// # Errors
    /// Those of the stages, as in [`Backend::run_with`].
    fn run_half_with(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        run_half_stages(self, layout, half, data, clipping, state)
    }

    /// Norms, threshold and mean of a batch in half precision, for a threshold that starts anew.
    ///
    /// # Errors
    /// Those of [`Backend::run_mean_half_with`].
    fn run_mean_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &[u16],
        clipping: &Clipping,
        weights: &Weights,
    ) -> Result<(Vec<f32>, Report)> {
        self.run_mean_half_with(layout, half, data, clipping, weights, &mut State::default())
    }

    /// Norms, threshold and mean of a batch in half precision, for a threshold that remembers earlier rounds.
    ///
    /// # Errors
    /// Those of the stages; the state is unchanged where the caller's values cause an error.
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
        clipping.threshold.check_with(layout, clipping.granularity, state)?;
        let norms = self.norms_half(layout, half, data, clipping)?;
        let mut next = state.clone();
        let decisions = self.threshold(layout, &norms, clipping, &mut next)?;
        let mean = self.mean_half(layout, half, data, clipping, &decisions, weights)?;
        *state = next;
        Ok((mean, Report::of_stages(self.ran(), layout, clipping.granularity, &norms, &decisions)))
    }
}

/// One stage after the other.
fn run_stages<B: Backend + ?Sized>(
    backend: &B,
    layout: &Layout,
    data: &mut [f32],
    clipping: &Clipping,
    state: &mut State,
) -> Result<Report> {
    layout.check(data.len())?;
    // Settings are checked before the data is read.
    clipping.threshold.check_with(layout, clipping.granularity, state)?;
    let norms = backend.norms(layout, data, clipping)?;
    let decisions = backend.threshold(layout, &norms, clipping, state)?;
    backend.clip(layout, data, clipping, &decisions)?;
    Ok(Report::of_stages(backend.ran(), layout, clipping.granularity, &norms, &decisions))
}

/// The same on halves.
fn run_half_stages<B: Backend + ?Sized>(
    backend: &B,
    layout: &Layout,
    half: Half,
    data: &mut [u16],
    clipping: &Clipping,
    state: &mut State,
) -> Result<Report> {
    half::check(layout, data.len(), clipping)?;
    clipping.threshold.check_with(layout, clipping.granularity, state)?;
    let norms = backend.norms_half(layout, half, data, clipping)?;
    let decisions = backend.threshold(layout, &norms, clipping, state)?;
    backend.clip_half(layout, half, data, clipping, &decisions)?;
    Ok(Report::of_stages(backend.ran(), layout, clipping.granularity, &norms, &decisions))
}
