//! Threads and SIMD on the CPU.
//!
//! From whole batches down to vectors:
//!
//! - `rows.rs`: the stages over rows, however their elements are stored; `single.rs` and `half.rs`: what is done with
//!   some elements of a row.
//! - `short.rs`: the stages over short rows, a group of them (`group.rs`) at a time; `decided.rs`: norms and decisions of a group.
//! - `mean.rs`: the mean of clipped rows; `mean_rows.rs`: which rows count, and what they weigh; `terms.rs`: the sums that it takes.
//! - `tasks.rs`: rows cut in tasks; `threads.rs`: tasks that the caller and the threads of a pool share; `lent.rs`: work that the caller lends to
//!   a pool's threads, and takes back.
//! - `sum.rs`: sums of squares in `f64`, where the square of an `f32` is exact and cannot over- or underflow;
//!   their error is bounded, and a row whose rounding they leave open is summed exactly. `runs.rs`: where they read in several places at once;
//!   `pairs.rs`: sums of many halves, in pairs of `f32`.
//! - `simd.rs`, `squares.rs`, `half_simd.rs`, and the files in `_512` and `_256`: the vectors of this processor, AVX-512 or AVX2.

mod decided;
#[cfg(target_arch = "x86_64")]
mod decided_256;
#[cfg(target_arch = "x86_64")]
mod decided_512;
mod group;
mod half;
#[cfg(target_arch = "x86_64")]
mod half_256;
#[cfg(target_arch = "x86_64")]
mod half_512;
pub(crate) mod half_simd;
mod lent;
mod mean;
mod mean_rows;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod pairs_256;
mod rows;
pub(crate) mod runs;
mod short;
pub(crate) mod simd;
mod single;
mod squares;
#[cfg(target_arch = "x86_64")]
mod squares_256;
#[cfg(target_arch = "x86_64")]
mod squares_512;
mod sum;
mod tasks;
mod terms;
#[cfg(target_arch = "x86_64")]
mod terms_256;
mod threads;

use self::half::Halves;
use self::lent::Pool;
use self::mean::MeanBatch;
use self::rows::{Origin, Rows, Storage};
use self::single::Singles;
#[cfg(feature = "cli")]
pub(crate) use self::threads::Team;
use super::Backend;
use crate::aggregate::{Weights, check_mean, check_mean_half};
use crate::batch::Layout;
use crate::clip::Clipping;
use crate::error::{Error, Result};
use crate::half::Half;
use crate::norms::Norms;
use crate::report::{BackendKind, Ran, Report};
use crate::threshold::{self, Decision, Source, State, check_decisions};

/// Elements of a part of what threads share below a row or strip: 256 KiB of `f32`, which a core's cache holds.
pub(crate) const PART: usize = 1 << 16;

/// Elements of a row that a thread reads, then writes, without the help of others: 8 MiB of `f32`, its part of a last-level
/// cache, where the clip stage then finds the row.
pub(crate) const OWN: usize = 1 << 21;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// The CPU backend: the default where no GPU is.
#[derive(Debug)]
pub struct Cpu {
    pool: Pool,
    force_exact: bool,
    why: String,
}

impl Cpu {
    /// For tests, which have batches on either side of it: elements of a row beyond which no thread keeps it to itself.
    #[doc(hidden)]
    pub const OWN: usize = OWN;

    /// For tests: elements of a batch up to which a caller works alone.
    #[doc(hidden)]
    pub const WORTH_WAKING: usize = threads::WORTH_WAKING;

    /// As many threads as rayon's global pool has, or the pool that the caller is in, the caller among them. The global one is started by
    /// the first batch that is worth sharing, if nobody has; where it cannot be, that batch is [`Error::Threads`].
    ///
    /// A call waits for threads that work on it, and for none that has not begun: where those of the pool are busy with something else,
    /// the caller does it alone.
    ///
    /// # Errors
    /// None at present; see [`Cpu::with_threads`].
    pub fn new() -> Result<Self> {
        Ok(Self { pool: Pool::SHARED, force_exact: false, why: "asked for by name".into() })
    }

    /// At most this many threads at a time for each call, the caller among them, with a pool of its own; 0 is what rayon chooses.
    ///
    /// # Errors
    /// [`Error::Threads`] where they cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::Threads { threads, message: e.to_string() })?;
        Ok(Self { pool: Pool::new(pool), ..Self::new()? })
    }

    /// Sums every row exactly, as if no fast sum could ever be certified: slower, same bits.
    #[must_use]
    pub fn force_exact(mut self, force: bool) -> Self {
        self.force_exact = force;
        self
    }

    pub(crate) fn because(mut self, why: String) -> Self {
        self.why = why;
        self
    }

    /// All stages, one after the other, on data and settings that fit.
    fn run_stages<S: Storage>(
        &self,
        layout: &Layout,
        data: &mut [S::Element],
        clipping: &Clipping,
        storage: S,
        state: &mut State,
    ) -> Result<Report> {
        let rows = Rows::new(self, layout, clipping, storage)?;
        let norms = rows.norms(data);
        let decisions = threshold::decide(layout, &norms, clipping, state)?;
        rows.clip(data, &decisions, Origin::SameData);
        Ok(Report::of_stages(self.ran(), layout, clipping.granularity, &norms, &decisions))
    }
}

impl Backend for Cpu {
    fn ran(&self) -> Ran {
        Ran { backend: BackendKind::Cpu, adapter: None, strategy: None, why: self.why.clone() }
    }

    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms> {
        layout.check(data.len())?;
        Ok(Rows::new(self, layout, clipping, Singles::of(clipping))?.norms(data))
    }

    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        layout.check(data.len())?;
        let clipping = &clipping.of_decisions();
        let rows = Rows::new(self, layout, clipping, Singles::of(clipping))?;
        check_decisions(layout, clipping.granularity, decisions)?;
        rows.clip(data, decisions, Origin::AnyData);
        Ok(())
    }

    fn run_with(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        layout.check(data.len())?;
        // Settings are checked before the data is read.
        let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
        source.check_start(state)?;
        match source.bounds_alone(clipping) {
            // One row is as good as done before the next is read.
            Some(bounds) => {
                let rows = Rows::new(self, layout, clipping, Singles::of(clipping))?;
                Ok(Report::of_rows(self.ran(), rows.run(data, bounds)))
            }
            None => self.run_stages(layout, data, clipping, Singles::of(clipping), state),
        }
    }

    fn mean(
        &self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        let weights = check_mean(layout, data, clipping, weights)?;
        check_decisions(layout, clipping.granularity, decisions)?;
        let storage = Singles::of(clipping);
        let batch = MeanBatch::new(layout, storage, data, clipping, decisions, &weights, self)?;
        let mut mean = vec![0.0; layout.params()];
        batch.mean(&mut mean);
        Ok(mean)
    }

    fn norms_half(&self, layout: &Layout, half: Half, data: &[u16], clipping: &Clipping) -> Result<Norms> {
        crate::half::check(layout, data.len(), clipping)?;
        Ok(Rows::new(self, layout, clipping, Halves::of(half, clipping))?.norms(data))
    }

    fn clip_half(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        crate::half::check(layout, data.len(), clipping)?;
        let clipping = &clipping.of_decisions();
        let rows = Rows::new(self, layout, clipping, Halves::of(half, clipping))?;
        check_decisions(layout, clipping.granularity, decisions)?;
        rows.clip(data, decisions, Origin::AnyData);
        Ok(())
    }

    fn run_half_with(
        &self,
        layout: &Layout,
        half: Half,
        data: &mut [u16],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        crate::half::check(layout, data.len(), clipping)?;
        let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
        source.check_start(state)?;
        match source.bounds_alone(clipping) {
            Some(bounds) => {
                let rows = Rows::new(self, layout, clipping, Halves::of(half, clipping))?;
                Ok(Report::of_rows(self.ran(), rows.run(data, bounds)))
            }
            None => self.run_stages(layout, data, clipping, Halves::of(half, clipping), state),
        }
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
        let weights = check_mean_half(layout, data, clipping, weights)?;
        check_decisions(layout, clipping.granularity, decisions)?;
        let storage = Halves::of(half, clipping);
        let batch = MeanBatch::new(layout, storage, data, clipping, decisions, &weights, self)?;
        let mut mean = vec![0.0; layout.params()];
        batch.mean(&mut mean);
        Ok(mean)
    }
}
