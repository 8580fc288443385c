//! Measurements that can be believed: what `byzclip bench` and the criterion benches run. Not part of the API.
//!
//! - [`cases`]: shapes, cases and their data.
//! - [`element`]: what the data is stored as: `f32`, f16 or bf16.
//! - [`expected`]: what every result must be, bit for bit, before anything is timed.
//! - [`plain`]: the same work without exactness: an `f32` sum, then the scaling, or the mean. What exactness costs.
//! - [`ceilings`]: what the memory allows in the same buffer: a read, a copy, a scaling in place; `moves`: what it allows a
//!   case on the host.
//! - [`measure`]: samples, and the records that they become.
//! - [`host`]: a backend over host memory; `gpu`: a plan over a buffer on the device.
//!
//! The rules: a case is verified before it is timed, and its last run afterwards; what is compared takes turns, so that
//! noise hits all of it; on the host threads share what takes turns in the same way, and are asleep when a run begins, as in a
//! program that does other things besides; data is restored outside the timed region, and only rows that were written; a case's bytes are those
//! that one pass would need, whatever is really moved.

pub mod cases;
pub mod ceilings;
pub mod element;
pub mod expected;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod host;
pub mod measure;
mod moves;
pub mod plain;

#[cfg(feature = "gpu")]
use crate::backend::Gpu;
use crate::backend::{Backend, Choice, select};
use crate::error::Result;
use crate::report::Ran;

use self::cases::{Case, Shape};
use self::element::Dtype;
use self::measure::{Place, Record};

/// The share of rows that are clipped in the mean: such rows take longer than others only in halves.
pub const CLIPPED_IN_MEAN: f64 = 0.2;

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The shares of rows that a clip clips; a case each.
    pub clipped: Vec<f64>,
    /// The share of rows in scope, all of them clipped, of one more case.
    pub scope_share: f64,
    /// Runs of each case.
    pub runs: usize,
}

impl Settings {
    /// The cases of every shape, in the order of the tables.
    #[must_use]
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = vec![Case::norms()];
        cases.extend(self.clipped.iter().map(|&share| Case::clip(share)));
        cases.push(Case::scoped(self.scope_share));
        cases.push(Case::mean(CLIPPED_IN_MEAN));
        cases
    }
}

/// What is measured.
pub enum Subject {
    /// A backend over host memory.
    Host(Box<dyn Backend>),
    /// A GPU, over host memory and over its own.
    #[cfg(feature = "gpu")]
    Gpu(Box<Gpu>),
}

impl Subject {
    /// The backend that was asked for; `auto` is a hardware GPU if there is one, in whose own memory is much to measure,
    /// else the CPU.
    ///
    /// A GPU goes through `prepare`, where it may be given a calibration.
    ///
    /// # Errors
    /// Those of [`select`] and of `prepare`.
    #[cfg(feature = "gpu")]
    pub fn open(
        choice: Choice,
        adapter: Option<&str>,
        prepare: impl FnOnce(Gpu) -> Result<Gpu>,
    ) -> Result<Self> {
        let named = choice == Choice::Gpu || adapter.is_some() && choice == Choice::Auto;
        if !named && choice != Choice::Auto {
            return Ok(Self::Host(select(choice, adapter)?));
        }
        match Gpu::open(adapter) {
            Ok(gpu) if named => Ok(Self::Gpu(Box::new(prepare(gpu)?))),
            Ok(gpu) => Ok(Self::Gpu(Box::new(prepare(gpu)?.because("auto: the first hardware GPU".into())))),
            Err(error) if named => Err(error),
            Err(_) => Ok(Self::Host(select(choice, adapter)?)),
        }
    }

    /// The backend that was asked for; without the feature `gpu` there is no other than those of the host.
    ///
    /// # Errors
    /// Those of [`select`].
    #[cfg(not(feature = "gpu"))]
    pub fn open(choice: Choice, adapter: Option<&str>) -> Result<Self> {
        Ok(Self::Host(select(choice, adapter)?))
    }

    /// Which backend this is, on what, and why.
    #[must_use]
    pub fn ran(&self) -> Ran {
        match self {
            Self::Host(backend) => backend.ran(),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => gpu.ran(),
        }
    }

    /// How many steps [`Subject::measure`] takes for a shape and so many types of elements, for a progress bar.
    #[must_use]
    pub fn steps(&self, settings: &Settings, dtypes: usize) -> usize {
        match self {
            Self::Host(_) => dtypes + settings.cases().len(),
            #[cfg(feature = "gpu")]
            Self::Gpu(..) => dtypes * (2 + 2 * settings.cases().len()),
        }
    }

    /// Measures ceilings and every case of a shape, of elements of each of these types; `begins` is told what begins.
    ///
    /// A `fault` that is set spoils one bit of the first result that has one to spoil, and is taken then: the check has
    /// to find it. On a GPU that is a result in its own memory.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a result is not the expected one; errors of the backend.
    pub fn measure(
        &self,
        shape: Shape,
        dtypes: &[Dtype],
        settings: &Settings,
        fault: &mut bool,
        begins: &mut dyn FnMut(&str),
    ) -> Result<Vec<Record>> {
        match self {
            Self::Host(backend) => measure_host(backend.as_ref(), shape, dtypes, settings, fault, begins),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => gpu::measure(gpu, shape, dtypes, settings, fault, begins),
        }
    }
}

/// All types of elements in turn.
fn measure_host(
    backend: &dyn Backend,
    shape: Shape,
    dtypes: &[Dtype],
    settings: &Settings,
    fault: &mut bool,
    begins: &mut dyn FnMut(&str),
) -> Result<Vec<Record>> {
    let place = Place::host(backend);
    let room = dtypes.iter().map(|dtype| host::batch(shape, *dtype));
    let mut batches = room.collect::<Result<Vec<_>>>()?;
    let mut records = Vec::new();
    for batch in &mut batches {
        begins(&format!("{shape} {}: ceilings", batch.dtype()));
        batch.fill(&Case::norms());
        records.extend(batch.ceilings(settings.runs)?.records(&place, shape, batch.dtype()));
    }
    for case in settings.cases() {
        begins(&format!("{shape}: {case}"));
        batches.iter_mut().for_each(|batch| batch.fill(&case));
        let batches = batches.iter_mut().map(|batch| batch.as_mut());
        let timed = host::measure(backend, batches, &case, settings.runs, fault)?;
        let single = dtypes.iter().position(|&dtype| dtype == Dtype::F32).map(|of_f32| &timed[of_f32]);
        for (timed, &dtype) in timed.iter().zip(dtypes) {
            let single = single.filter(|_| dtype != Dtype::F32);
            records.extend(timed.records(&place, (shape, dtype), &case, single));
        }
    }
    Ok(records)
}
