//! A plan over a buffer that is on the device already, beside plain kernels over the same buffer.

mod clock;
mod kernels;
mod memory;

use self::clock::{Clock, Took};
use self::kernels::Kernels;
use self::memory::Memory;
use super::Settings;
use super::cases::{Batch, Case, Shape, Stage, Traffic};
use super::ceilings::Ceilings;
use super::element::{Bf16, Dtype, Element, F16};
use super::expected::Expected;
use super::host::{self, AnyBatch};
use super::measure::{Allowed, Place, Record, Timed, Times, processor};
use crate::backend::gpu::{Plan, driver};
use crate::backend::{Backend, Gpu};
use crate::error::{Error, Result};

/// Measures ceilings and every case of a shape, of elements of each of these types, one type after the other: a device
/// may not hold several.
///
/// # Errors
/// [`Error::Mismatch`] where a result is not the expected one; errors of the device.
pub fn measure(
    gpu: &Gpu,
    shape: Shape,
    dtypes: &[Dtype],
    settings: &Settings,
    fault: &mut bool,
    begins: &mut dyn FnMut(&str),
) -> Result<Vec<Record>> {
    let of_type = |dtype: &Dtype| match dtype {
        Dtype::F32 => measure_of::<f32>(gpu, shape, settings, fault, begins),
        Dtype::F16 => measure_of::<F16>(gpu, shape, settings, fault, begins),
        Dtype::Bf16 => measure_of::<Bf16>(gpu, shape, settings, fault, begins),
    };
    let mut records = dtypes.iter().map(of_type).collect::<Result<Vec<_>>>()?.concat();
    let is_ours = |record: &&Record| record.library == "byzclip";
    let of_f32 = |record: &&Record| record.dtype == Dtype::F32.name();
    let singles: Vec<Record> = records.iter().filter(is_ours).filter(of_f32).cloned().collect();
    for half in records.iter_mut().filter(|record| is_ours(&&**record) && !of_f32(&&**record)) {
        let single = singles.iter().find(|single| single.is_case_of(half));
        half.by_f32 = single.map(|single| single.median_s / half.median_s);
    }
    Ok(records)
}

/// From host memory without a share, because what takes the time there is the way to the device and back; then in the
/// device's memory.
fn measure_of<E: Element>(
    gpu: &Gpu,
    shape: Shape,
    settings: &Settings,
    fault: &mut bool,
    begins: &mut dyn FnMut(&str),
) -> Result<Vec<Record>> {
    let (place, cache) = (Place::gpu(gpu), workgroup_memory(gpu));
    let mut batch = Batch::<E>::new(shape)?;
    let bench = Bench::new(gpu, shape, E::DTYPE)?;
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
        let batch: &mut (dyn AnyBatch + 'static) = &mut batch;
        let from_host = host::measure(gpu, [batch], &case, settings.runs, &mut false)?;
        timed.push((case, on_device, from_host));
    }
    // Again behind the cases: a device that was busy before is seen to allow more.
    begins(&format!("{shape} {}: ceilings again", E::DTYPE));
    batch.fill(&Case::norms());
    let ceilings = before.joined(bench.ceilings(&mut batch, settings.runs)?);
    let mut records = ceilings.records(&place, shape, E::DTYPE);
    for (case, mut on_device, from_host) in timed {
        on_device.allowed = Some(Allowed::Apart(ceilings.allow(case.traffic(shape, E::DTYPE), shape, cache)));
        for timed in [on_device].iter().chain(&from_host) {
            records.extend(timed.records(&place, (shape, E::DTYPE), &case, None));
        }
    }
    Ok(records)
}

/// A batch on a device, and all that is run on it there.
pub struct Bench<'a> {
    gpu: &'a Gpu,
    memory: Memory,
    kernels: Kernels,
    clock: Clock,
}

impl Place {
    /// The place of an adapter.
    #[must_use]
    pub fn gpu(gpu: &Gpu) -> Self {
        let info = gpu.device().adapter_info();
        // The same driver of software makes code of other speed for other vectors.
        let runs_on = (info.device_type == wgpu::DeviceType::Cpu).then(processor);
        let told = [Some(driver(&info)).filter(|driver| !driver.is_empty()), runs_on];
        let told = told.into_iter().flatten().collect::<Vec<_>>().join(" on ");
        let driver = Some(told).filter(|driver| !driver.is_empty());
        Self { backend: "gpu", device: info.name, driver, calibrated: gpu.calibration().is_some() }
    }
}

/// The memory that a workgroup has for itself, in bytes: what a core's cache is on a processor.
#[must_use]
pub fn workgroup_memory(gpu: &Gpu) -> u64 {
    u64::from(gpu.device().limits().max_compute_workgroup_storage_size)
}

impl<'a> Bench<'a> {
    /// Buffers for a batch of this shape and type of elements, and kernels for it.
    ///
    /// # Errors
    /// Where rows of halves share words, the batch does not fit the device twice, or the device fails.
    pub fn new(gpu: &'a Gpu, shape: Shape, dtype: Dtype) -> Result<Self> {
        if dtype != Dtype::F32 && !shape.params.is_multiple_of(2) {
            return Err(Error::Layout {
                got: format!("{shape} in {dtype}"),
                expected: "an even number of parameters for halves on a device, where two rows may not share a word",
            });
        }
        let context = gpu.context();
        let memory = Memory::new(context, shape, dtype)?;
        let kernels = Kernels::new(context, shape, dtype, &memory.work)?;
        Ok(Self { gpu, memory, kernels, clock: Clock::new(context)? })
    }

    /// Measures the ceilings of the device's memory, in the buffer that the cases run on.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a kernel did not do what it is timed for; errors of the device.
    pub fn ceilings<E: Element>(&self, batch: &mut Batch<E>, runs: usize) -> Result<Ceilings> {
        self.memory.upload(self.gpu.context(), &batch.original)?;
        let sum = batch.original.iter().fold(0u32, |sum, value| sum.wrapping_add(value.bits()));
        let mut read = Times::default();
        for round in 0..=runs {
            let took = self.time("reading the batch", |encoder| self.kernels.read_all(encoder))?;
            if round == 0 {
                check("read", self.kernels.sum_of_sums(self.gpu.context())? == sum)?;
            }
            read.push_took(round, took);
        }
        let mut scale = Times::default();
        for round in 0..=runs {
            let took = self.time("scaling the batch", |encoder| self.kernels.scale_all(encoder))?;
            if round == 0 {
                check("scale", self.holds(batch, E::RESCALED)?)?;
            }
            scale.push_took(round, took);
            self.memory.restore_all(self.gpu.context())?;
        }
        let mut copy = Times::default();
        self.time("scaling the batch", |encoder| self.kernels.scale_all(encoder))?;
        for round in 0..=runs {
            let took = self.time("copying the batch", |encoder| self.memory.record_copy(encoder))?;
            if round == 0 {
                check("copy", self.holds(batch, 1.0)?)?;
            }
            copy.push_took(round, took);
        }
        Ok(Ceilings { read, copy, scale, bytes: Case::norms().traffic(batch.shape, E::DTYPE).one_pass() })
    }

    /// Verifies the case, then times it, in turn with the plain kernels where those have its stage; the batch's `work` is overwritten.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a result is not the expected one; errors of the device.
    pub fn measure<E: Element>(
        &self,
        batch: &mut Batch<E>,
        case: &Case,
        runs: usize,
        fault: &mut bool,
    ) -> Result<Timed> {
        let context = self.gpu.context();
        self.memory.upload(context, &batch.original)?;
        let expected = Expected::of(batch, case)?;
        let clipping = case.clipping(batch.shape.clients);
        let plan = match E::DTYPE.half() {
            None => self.gpu.plan(&batch.layout, &clipping, &self.memory.work)?,
            Some(half) => self.gpu.plan_half(&batch.layout, half, &clipping, &self.memory.work)?,
        };
        let (ours, plain) = match case.stage {
            Stage::Norms | Stage::Clip => {
                let (ours, plain) = self.measure_rows(batch, case, &expected, &plan, runs, fault)?;
                (ours, Some(plain))
            }
            Stage::Mean => (self.measure_mean(batch, &expected, &plan, runs, fault)?, None),
        };
        Ok(Timed { method: "device", ours, plain, allowed: None })
    }

    /// Norms or clips, in turn with the plain kernels.
    fn measure_rows<E: Element>(
        &self,
        batch: &mut Batch<E>,
        case: &Case,
        expected: &Expected,
        plan: &Plan,
        runs: usize,
        fault: &mut bool,
    ) -> Result<(Times, Times)> {
        let context = self.gpu.context();
        self.kernels.set_scope(context, batch.shape, case)?;
        let (mut ours, mut plain) = (Times::default(), Times::default());
        // What a run leaves unwritten shows as nonsense.
        plan.poison()?;
        // The first round verifies and warms up; it is not counted.
        for round in 0..=runs {
            // Whoever was first is second next: behind a check, or behind the other's kernels, caches differ.
            for is_ours in [round % 2 == 0, round % 2 == 1] {
                if is_ours {
                    let took = self.time("running the case", |encoder| {
                        if case.stage == Stage::Clip {
                            plan.record(encoder)
                        } else {
                            plan.record_norms(encoder)
                        }
                    })?;
                    if round == 0 || round == runs {
                        self.verify(batch, case, expected, plan, fault)?;
                    }
                    ours.push_took(round, took);
                } else {
                    let took = self.time("running plain kernels", |encoder| {
                        self.kernels.norms(encoder);
                        if case.stage == Stage::Clip {
                            self.kernels.scale(encoder);
                        }
                    })?;
                    if round == 0 {
                        let error = self.kernels.error();
                        expected.check_plain(&self.kernels.read_norms(context)?, error)?;
                        self.memory.download(context, &mut batch.work)?;
                        expected.check_plain_values(batch, &batch.work, 2.0 * error)?;
                    }
                    plain.push_took(round, took);
                }
                self.memory.restore(context, batch.shape, case)?;
            }
        }
        Ok((ours, plain))
    }

    /// The mean of rows that are decided before.
    fn measure_mean<E: Element>(
        &self,
        batch: &Batch<E>,
        expected: &Expected,
        plan: &Plan,
        runs: usize,
        fault: &mut bool,
    ) -> Result<Times> {
        let mean = plan.mean(&Case::weights(batch.shape.clients))?;
        self.time("deciding", |encoder| {
            plan.record_norms(encoder);
            plan.record_threshold(encoder);
        })?;
        let mut times = Times::default();
        // The first round verifies and warms up; it is not counted.
        for round in 0..=runs {
            let is_verified = round == 0 || round == runs;
            if is_verified {
                mean.poison()?;
            }
            let took = self.time("running the case", |encoder| mean.record(encoder))?;
            if is_verified {
                let mut found = mean.read_blocking()?;
                host::spoil(&mut found, fault);
                expected.check_mean(&self.gpu.ran().to_string(), &found)?;
            }
            times.push_took(round, took);
        }
        Ok(times)
    }

    fn verify<E: Element>(
        &self,
        batch: &mut Batch<E>,
        case: &Case,
        expected: &Expected,
        plan: &Plan,
        fault: &mut bool,
    ) -> Result<()> {
        let name = self.gpu.ran().to_string();
        if case.stage == Stage::Clip {
            expected.check_report(&name, &plan.report_blocking()?)?;
        } else {
            expected.check_norms(&name, &plan.norms_blocking()?)?;
        }
        self.memory.download(self.gpu.context(), &mut batch.work)?;
        if *fault && batch.spoil(case) {
            *fault = false;
        }
        expected.check_values(&name, batch, &batch.work)
    }

    /// Submits, waits, and says how long it took.
    fn time(&self, what: &'static str, record: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<Took> {
        self.clock.time(self.gpu.context(), what, record)
    }

    /// Whether every value on the device is `factor` times the original.
    fn holds<E: Element>(&self, batch: &mut Batch<E>, factor: f32) -> Result<bool> {
        self.memory.download(self.gpu.context(), &mut batch.work)?;
        Ok(batch.holds(factor))
    }
}

impl Ceilings {
    /// The time that the fastest runs of these ceilings allow a case on a device: rows that are only read at the rate of
    /// reading, clipped rows at that of scaling, and before that at that of reading where they do not stay in a cache of
    /// `cache` bytes; a mean is written as fast as one reads.
    #[must_use]
    pub fn allow(&self, traffic: Traffic, shape: Shape, cache: u64) -> f64 {
        let per_byte = |times: &Times| times.wall.min() / self.bytes as f64;
        let twice = if self.bytes / shape.clients as u64 <= cache { 0 } else { traffic.scaled };
        (traffic.only_read + twice + traffic.result) as f64 * per_byte(&self.read)
            + traffic.scaled as f64 * per_byte(&self.scale)
    }

    /// Both measurements as one: what limits a case is the best that either saw.
    #[must_use]
    pub fn joined(mut self, later: Self) -> Self {
        self.read.join(later.read);
        self.copy.join(later.copy);
        self.scale.join(later.scale);
        self
    }
}

impl Times {
    fn push_took(&mut self, round: usize, took: Took) {
        if round > 0 {
            self.wall.push(took.wall);
            self.submit.push(took.submit);
            if let Some(seconds) = took.device {
                self.device.push(seconds);
            }
        }
    }
}

fn check(method: &'static str, right: bool) -> Result<()> {
    super::ceilings::check("a plain kernel", method, right)
}

/// An error of this module's own buffers.
fn too_many_elements(shape: Shape) -> Error {
    Error::Layout { got: shape.to_string(), expected: "fewer than 2^32 elements for kernels that index them" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_fit_a_cache_are_moved_once() {
        let times = |seconds| {
            let mut times = Times::default();
            times.wall.push(seconds);
            times
        };
        let ceilings = Ceilings { read: times(1.0), copy: times(2.0), scale: times(3.0), bytes: 40 };
        let (shape, traffic) =
            (Shape { clients: 2, params: 5 }, Traffic { only_read: 20, scaled: 20, result: 0 });
        assert_eq!(ceilings.allow(traffic, shape, 20), 0.5 + 1.5);
        assert_eq!(ceilings.allow(traffic, shape, 19), 1.0 + 1.5);
        let traffic = Traffic { only_read: 40, scaled: 0, result: 20 };
        assert_eq!(ceilings.allow(traffic, shape, 19), 1.5);
    }
}
