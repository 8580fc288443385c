//! Trials: a batch of each class, run in turn with the best tuning so far and with an alternative.

use std::time::Instant;

use super::super::check::pseudo_random;
use super::super::context::GpuContext;
use super::super::device::wait;
use super::super::session::Session;
use super::super::storage::Storage;
use super::super::{Gpu, Tuning, is_software};
use super::knobs::KNOBS;
use super::{Calibration, Choice, ShapeClass};
use crate::backend::{Backend, Cpu};
use crate::batch::Layout;
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};
use crate::report::{Report, RowReport};

/// Bytes of a trial's batch: more than the last-level cache of the largest GPUs holds.
const BYTES: u64 = 128 << 20;

/// Those on a software adapter, whose cache is the processor's.
const BYTES_ON_SOFTWARE: u64 = 32 << 20;

/// Runs of each of the two in a race, behind one that is held against the CPU backend.
const RUNS: usize = 7;

/// What an alternative's time by the best's has to be below, in two races: less may be noise.
const GAIN: f64 = 0.95;

/// One alternative, and how it went.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The batches that it is for.
    pub class: ShapeClass,
    /// What is other than in the best so far, such as `workgroup 128`.
    pub what: String,
    /// Why it was not timed and cannot be kept: it has other bits than the CPU backend, or fails on this device.
    pub wrong: Option<Error>,
    /// Median seconds to clip a fifth of the rows; NaN where it was not timed.
    pub seconds: f64,
    /// Median seconds of the best so far, in turn with it.
    pub best_seconds: f64,
    /// The median of the one by the other, run by run; where there was a second race, the worse of both.
    pub ratio: f64,
    /// Whether it is the best from here on.
    pub kept: bool,
}

impl Trial {
    fn refused(class: ShapeClass, what: String, why: Error) -> Self {
        let nan = f64::NAN;
        Self { class, what, wrong: Some(why), seconds: nan, best_seconds: nan, ratio: nan, kept: false }
    }
}

impl Gpu {
    /// Measures which tunings suit this device, class by class; `tell` hears of every trial.
    ///
    /// Each alternative of a knob runs in turn with the best so far on a batch of 128 MiB (32 on a software adapter), a
    /// fifth of whose rows are clipped, and is kept where it has the right bits and takes less than 0.95 of the time,
    /// twice.
    /// That takes some seconds on a GPU, minutes on a software adapter.
    ///
    /// # Errors
    /// Errors of the device, for example where it has no room for three such batches.
    pub fn calibrate(&self, tell: impl FnMut(&Trial)) -> Result<Calibration> {
        let software = is_software(&self.context.device.adapter_info());
        self.calibrate_on(if software { BYTES_ON_SOFTWARE } else { BYTES }, tell)
    }

    /// The same on batches of so many bytes, for tests, which have no time.
    ///
    /// # Errors
    /// Those of [`Gpu::calibrate`].
    #[doc(hidden)]
    pub fn calibrate_on(&self, bytes: u64, mut tell: impl FnMut(&Trial)) -> Result<Calibration> {
        self.context.ensure_checked(Storage::Single, false)?;
        let mut calibration = Calibration::uniform(self);
        for class in ShapeClass::ALL {
            let bed = Bed::new(&self.context, class, bytes)?;
            let best = bed.best(&self.context, &mut tell)?;
            calibration.choices[class as usize] = Choice::of(&best);
        }
        Ok(calibration)
    }
}

/// The batch of a class, and what has to become of it.
struct Bed {
    class: ShapeClass,
    layout: Layout,
    clipping: Clipping,
    data: Vec<f32>,
    clipped: Vec<f32>,
    rows: Vec<RowReport>,
    /// What a run's batch is restored from.
    original: wgpu::Buffer,
}

impl Bed {
    fn new(context: &GpuContext, class: ShapeClass, bytes: u64) -> Result<Self> {
        let bytes = bytes.min(context.device.limits().max_buffer_size);
        let params = match class {
            ShapeClass::Short => 100,
            ShapeClass::Medium => 10_000,
            ShapeClass::Long => 100_000,
            ShapeClass::Huge => 1_000_000,
        };
        let layout = Layout::dense((bytes / 4 / params).max(1) as usize, params as usize)?;
        let data = batch(&layout);
        let clipping = Clipping::fixed(2.0);
        let mut clipped = data.clone();
        let rows = Cpu::new()?.run(&layout, &mut clipped, &clipping)?.rows;
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let original = context.batch_buffer(layout.len() as u64 * 4, usage)?;
        Ok(Self { class, layout, clipping, data, clipped, rows, original })
    }

    /// The best tuning that is found from the context's own on.
    fn best(&self, context: &GpuContext, tell: &mut impl FnMut(&Trial)) -> Result<Tuning> {
        let mut best = self.session(context)?;
        let mut tuning = context.tuning.clone();
        best.upload(&self.data, &Scope::All)?;
        context.submit("copying the batch", |encoder| {
            encoder.copy_buffer_to_buffer(&best.buffer, 0, &self.original, 0, self.original.size());
        })?;
        for knob in KNOBS {
            for (what, alternative) in knob(self.class, &tuning) {
                if alternative == tuning || alternative.check(&context.device).is_err() {
                    continue;
                }
                let other = match self.contender(context, &best, &alternative) {
                    Ok(Some(other)) => other,
                    Ok(None) => continue,
                    Err(lost @ Error::DeviceLost { .. }) => return Err(lost),
                    Err(error) => {
                        tell(&Trial::refused(self.class, what, error));
                        continue;
                    }
                };
                let Race { seconds: [best_seconds, seconds], ratio } =
                    self.race_twice(context, [&best, &other])?;
                let kept = ratio < GAIN;
                tell(&Trial { class: self.class, what, wrong: None, seconds, best_seconds, ratio, kept });
                if kept {
                    (best, tuning) = (other, alternative);
                }
            }
        }
        Ok(tuning)
    }

    fn session(&self, context: &GpuContext) -> Result<Session> {
        Session::new(context, &self.layout, &self.clipping, Storage::Single)
    }

    /// A session with this tuning that has the right bits; nothing where it comes to the dispatches of the best.
    fn contender(&self, context: &GpuContext, best: &Session, tuning: &Tuning) -> Result<Option<Session>> {
        let mut other = context.with_tuning(tuning.clone());
        other.fast_sums.clone_from(&context.fast_sums);
        let session = self.session(&other)?;
        if same_plan(best, &session) {
            return Ok(None);
        }
        self.restore(context, &session)?;
        context.submit("clipping", |encoder| session.plan.record(encoder))?;
        let (norms, decisions) = session.plan.run_blocking()?;
        let mut data = self.data.clone();
        session.download(&mut data, &decisions)?;
        let report =
            Report::of_stages(context.ran(), &self.layout, self.clipping.granularity, &norms, &decisions);
        self.check(&report, &data)?;
        Ok(Some(session))
    }

    /// Holds a run against that of the CPU backend.
    fn check(&self, report: &Report, data: &[f32]) -> Result<()> {
        let mismatch = |stage, row, got, expected| {
            Err(Error::Mismatch { backend: report.ran.to_string(), stage, row, got, expected })
        };
        let rows = report.rows.iter().zip(&self.rows).enumerate();
        if let Some((row, (got, expected))) = rows.clone().find(|(_, (got, expected))| got != expected) {
            return mismatch("report", row, format!("{got:?}"), format!("{expected:?}"));
        }
        let values = data.iter().zip(&self.clipped).enumerate();
        match values.clone().find(|(_, (got, expected))| got.to_bits() != expected.to_bits()) {
            Some((i, (got, expected))) => {
                mismatch("clip", i / self.layout.params(), got.to_string(), expected.to_string())
            }
            None => Ok(()),
        }
    }

    /// A race, and where the second wins another one: the worse for it counts.
    fn race_twice(&self, context: &GpuContext, sessions: [&Session; 2]) -> Result<Race> {
        let race = self.race(context, sessions)?;
        if race.ratio >= GAIN {
            return Ok(race);
        }
        let again = self.race(context, sessions)?;
        Ok(if again.ratio > race.ratio { again } else { race })
    }

    /// Runs two in turn; whoever was first is second next.
    fn race(&self, context: &GpuContext, sessions: [&Session; 2]) -> Result<Race> {
        let mut seconds = [const { Vec::new() }; 2];
        for run in 0..RUNS {
            for turn in [run % 2, (run + 1) % 2] {
                let session = sessions[turn];
                self.restore(context, session)?;
                let start = Instant::now();
                context.submit("clipping", |encoder| session.plan.record(encoder))?;
                wait(&context.device, None, "clipping")?;
                seconds[turn].push(start.elapsed().as_secs_f64());
            }
        }
        let ratios = seconds[1].iter().zip(&seconds[0]).map(|(second, first)| second / first).collect();
        Ok(Race { seconds: seconds.map(median), ratio: median(ratios) })
    }

    fn restore(&self, context: &GpuContext, session: &Session) -> Result<()> {
        context.submit("restoring the batch", |encoder| {
            encoder.copy_buffer_to_buffer(&self.original, 0, &session.buffer, 0, self.original.size());
        })?;
        wait(&context.device, None, "restoring the batch")
    }
}

/// Whether two tunings come to the same dispatches of the same kernels here.
fn same_plan(a: &Session, b: &Session) -> bool {
    let kernels = |session: &Session| {
        // These are in the geometry.
        Tuning { tile: 0, short_rows: 0, fused_row: 0, group_bytes: 0, ..session.plan.tuning().clone() }
    };
    a.plan.geometry() == b.plan.geometry() && kernels(a) == kernels(b)
}

/// How two that ran in turn did.
struct Race {
    /// Medians.
    seconds: [f64; 2],
    /// The median of the second's time by the first's, run by run: what slows both for a while leaves it alone.
    ratio: f64,
}

fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

/// Rows of norm 40, a fifth, and of norm 1, of elements that use all of their bits: an uncompensated sum of so many
/// shows.
fn batch(layout: &Layout) -> Vec<f32> {
    let params = layout.params();
    let norm = |row: usize| if row.is_multiple_of(5) { 40.0 } else { 1.0 };
    let scale = |row: usize| norm(row) / (params as f32).sqrt();
    (0..layout.len()).map(|i| pseudo_random(i) * scale(i / params)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::OnceLock;

    use super::super::super::storage::Sums;
    use super::*;

    /// wgpu's noop backend has memory and runs nothing: every answer is wrong, and fast.
    #[test]
    fn wrong_bits_are_never_kept_however_fast() {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let mut context = Gpu::from_device(device, queue).unwrap().context;
        context.fast_sums = Sums::ALL.map(|_| OnceLock::from(true)).into();
        let bed = Bed::new(&context, ShapeClass::Medium, 1 << 20).unwrap();
        let mut trials = Vec::new();
        let best = bed.best(&context, &mut |trial: &Trial| trials.push(trial.clone())).unwrap();
        assert_eq!(best, context.tuning);
        assert!(trials.len() > 5, "{trials:?}");
        assert!(trials.iter().all(|trial| trial.wrong.is_some() && !trial.kept), "{trials:?}");
    }

    #[test]
    fn one_bit_is_seen() {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let context = Gpu::from_device(device, queue).unwrap().context;
        let bed = Bed::new(&context, ShapeClass::Short, 1 << 14).unwrap();
        let mut data = bed.data.clone();
        let mut report = Cpu::new().unwrap().run(&bed.layout, &mut data, &bed.clipping).unwrap();
        assert_eq!(bed.check(&report, &data), Ok(()));
        data[777] = f32::from_bits(data[777].to_bits() ^ 1);
        assert!(matches!(bed.check(&report, &data), Err(Error::Mismatch { stage: "clip", row: 7, .. })));
        report.rows[3].norm = f32::from_bits(report.rows[3].norm.to_bits() + 1);
        assert!(matches!(bed.check(&report, &data), Err(Error::Mismatch { stage: "report", row: 3, .. })));
    }

    #[test]
    fn a_trial_has_rows_to_clip_and_sums_to_get_wrong() {
        let layout = Layout::dense(20, 1000).unwrap();
        let mut data = batch(&layout);
        let report = Cpu::new().unwrap().run(&layout, &mut data, &Clipping::fixed(2.0)).unwrap();
        assert_eq!(report.count(crate::Status::Clipped), 4);
        let plain =
            |row: usize| data[layout.row(row)].iter().fold(0.0, |sum, value| sum + value * value).sqrt();
        let wrong = (0..20).filter(|row| row % 5 != 0 && plain(*row) != report.rows[*row].norm);
        assert!(wrong.count() > 4);
    }
}
