//! Measurements that can be believed: what `byzclip bench` and the criterion benches run. Not part of the API.
//!
//! - [`cases`]: shapes, cases and their data.
//! - [`element`]: what the data is stored as: `f32`, f16 or bf16.
//! - [`expected`]: what every result must be, bit for bit, before anything is timed.
//! - [`plain`]: the same work without exactness: an `f32` sum, then the scaling. What exactness costs.
//! - [`ceilings`]: what the memory allows in the same buffer: a read, a copy, a scaling in place.
//! - [`measure`]: samples, and the records that they become.
//! - [`host`]: a backend over host memory; `gpu`: a plan over a buffer on the device.
//!
//! The rules: a case is verified before it is timed, and its last run afterwards; ours and plain alternate, so that
//! noise hits both; data is restored outside the timed region, and only rows that were written; a case's bytes are those
//! that one pass would need, whatever is really moved.

pub mod cases;
pub mod ceilings;
pub mod element;
pub mod expected;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod host;
pub mod measure;
pub mod plain;

#[cfg(feature = "gpu")]
use crate::backend::Gpu;
use crate::backend::{Backend, Choice, select};
use crate::error::Result;
use crate::report::Ran;

use self::cases::{Batch, Case, Shape};
use self::element::{Bf16, Dtype, Element, F16};
use self::measure::{Place, Record};

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The shares of rows that are clipped; a case each.
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

    /// How many steps [`Subject::measure`] takes for a shape, for a progress bar.
    #[must_use]
    pub fn steps(&self, settings: &Settings) -> usize {
        match self {
            Self::Host(_) => 2 + settings.cases().len(),
            #[cfg(feature = "gpu")]
            Self::Gpu(..) => 2 + 2 * settings.cases().len(),
        }
    }

    /// Measures ceilings and every case of a shape, of elements of a type; `begins` is told what begins.
    ///
    /// A `fault` that is set spoils one bit of the first result that has one to spoil, and is taken then: the check has
    /// to find it. On a GPU that is a result in its own memory.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a result is not the expected one; errors of the backend.
    pub fn measure(
        &self,
        (shape, dtype): (Shape, Dtype),
        settings: &Settings,
        fault: &mut bool,
        begins: impl FnMut(&str),
    ) -> Result<Vec<Record>> {
        match dtype {
            Dtype::F32 => self.measure_of::<f32>(shape, settings, fault, begins),
            Dtype::F16 => self.measure_of::<F16>(shape, settings, fault, begins),
            Dtype::Bf16 => self.measure_of::<Bf16>(shape, settings, fault, begins),
        }
    }

    fn measure_of<E: Element>(
        &self,
        shape: Shape,
        settings: &Settings,
        fault: &mut bool,
        begins: impl FnMut(&str),
    ) -> Result<Vec<Record>> {
        match self {
            Self::Host(backend) => measure_host::<E>(backend.as_ref(), shape, settings, fault, begins),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => measure_gpu::<E>(gpu, shape, settings, fault, begins),
        }
    }
}

fn measure_host<E: Element>(
    backend: &dyn Backend,
    shape: Shape,
    settings: &Settings,
    fault: &mut bool,
    mut begins: impl FnMut(&str),
) -> Result<Vec<Record>> {
    let (place, cache) = (Place::host(backend), ceilings::core_cache());
    let mut batch = Batch::<E>::new(shape)?;
    begins(&format!("{shape} {}: ceilings", E::DTYPE));
    batch.fill(&Case::norms());
    let before = ceilings::measure(&mut batch, settings.runs)?;
    let mut timed = Vec::new();
    for case in settings.cases() {
        begins(&format!("{shape} {}: {case}", E::DTYPE));
        batch.fill(&case);
        timed.push((case, host::measure(backend, &mut batch, &case, settings.runs, fault)?));
    }
    // Again behind the cases: a machine that was busy before is seen to allow more.
    begins(&format!("{shape} {}: ceilings again", E::DTYPE));
    batch.fill(&Case::norms());
    let ceilings = before.joined(ceilings::measure(&mut batch, settings.runs)?);
    let mut records = ceilings.records(&place, shape, E::DTYPE);
    for (case, timed) in timed {
        records.extend(timed.records(&place, (shape, E::DTYPE), &case, Some((&ceilings, cache))));
    }
    Ok(records)
}

/// From host memory without a share, because what takes the time there is the way to the device and back; then in the
/// device's memory.
#[cfg(feature = "gpu")]
fn measure_gpu<E: Element>(
    gpu: &Gpu,
    shape: Shape,
    settings: &Settings,
    fault: &mut bool,
    mut begins: impl FnMut(&str),
) -> Result<Vec<Record>> {
    let (place, cache) = (Place::gpu(gpu), gpu::workgroup_memory(gpu));
    let mut batch = Batch::<E>::new(shape)?;
    let bench = gpu::Bench::new(gpu, shape, E::DTYPE)?;
    begins(&format!("{shape} {}: ceilings", E::DTYPE));
    batch.fill(&Case::norms());
    let before = bench.ceilings(&mut batch, settings.runs)?;
    let mut timed = Vec::new();
    for case in settings.cases() {
        batch.fill(&case);
        begins(&format!("{shape} {}: {case}, on the device", E::DTYPE));
        let on_device = bench.measure(&mut batch, &case, settings.runs, fault)?;
        begins(&format!("{shape} {}: {case}, from the host", E::DTYPE));
        batch.restore_all();
        let from_host = host::measure(gpu, &mut batch, &case, settings.runs, &mut false)?;
        timed.push((case, on_device, from_host));
    }
    begins(&format!("{shape} {}: ceilings again", E::DTYPE));
    batch.fill(&Case::norms());
    let ceilings = before.joined(bench.ceilings(&mut batch, settings.runs)?);
    let mut records = ceilings.records(&place, shape, E::DTYPE);
    for (case, on_device, from_host) in timed {
        records.extend(on_device.records(&place, (shape, E::DTYPE), &case, Some((&ceilings, cache))));
        records.extend(from_host.records(&place, (shape, E::DTYPE), &case, None));
    }
    Ok(records)
}
