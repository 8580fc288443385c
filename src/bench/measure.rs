//! Samples, and the records that they become: one line of JSON each.

use std::time::Instant;

use serde::Serialize;

use super::cases::{Case, Shape};
use super::element::Dtype;
use crate::backend::Backend;
use crate::backend::cpu::simd::vectors;
use crate::report::BackendKind;

/// The name of the schema; another one where a field changes its meaning.
pub const FORMAT: &str = "byzclip-bench-1";

/// Runs `work` and returns what it gave, and the seconds that it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}

/// Seconds of several runs, in the order in which they ran.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    seconds: Vec<f64>,
}

impl Samples {
    /// Adds a run.
    pub fn push(&mut self, seconds: f64) {
        self.seconds.push(seconds);
    }

    /// Adds the runs of another measurement.
    #[cfg(feature = "gpu")]
    pub(super) fn join(&mut self, other: Self) {
        self.seconds.extend(other.seconds);
    }

    /// How many runs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seconds.len()
    }

    /// The middle one, or the mean of the two in the middle; NaN without runs.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(self.seconds.clone())
    }

    /// The median of ratios of runs that took turns, these by the others; `None` where they did not, or without runs.
    #[must_use]
    pub fn median_ratio(&self, others: &Self) -> Option<f64> {
        let ratios = self.seconds.iter().zip(&others.seconds).map(|(seconds, other)| seconds / other);
        (self.count() == others.count() && self.count() > 0).then(|| median(ratios.collect()))
    }

    /// The fastest run; NaN without runs.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The slowest run; NaN without runs.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::NAN, f64::max)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The times of one library on one case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Times {
    /// From the call to its end.
    pub wall: Samples,
    /// On the device, by its own clock; empty where it has none.
    pub device: Samples,
    /// On the CPU, to record and submit; empty on the host.
    pub submit: Samples,
}

impl Times {
    /// Adds the runs of another measurement.
    #[cfg(feature = "gpu")]
    pub(super) fn join(&mut self, other: Self) {
        self.wall.join(other.wall);
        self.device.join(other.device);
        self.submit.join(other.submit);
    }

    /// Adds a run on the host that counts.
    pub(super) fn push_if(&mut self, is_counted: bool, seconds: f64) {
        if is_counted {
            self.wall.push(seconds);
        }
    }
}

/// Ours and plain on one case, run by run in turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// `host` or `device`.
    pub method: &'static str,
    /// This library.
    pub ours: Times,
    /// The baseline, where there is one.
    pub plain: Option<Times>,
    /// What memory allows, where the data stays in one.
    pub allowed: Option<Allowed>,
}

/// The time that memory allows.
#[derive(Debug, Clone, PartialEq)]
pub enum Allowed {
    /// Of runs that took turns with ours.
    InTurn(Samples),
    /// Seconds, from ceilings that were measured apart.
    Apart(f64),
}

impl Allowed {
    /// The share of what these runs took; `None` of none.
    #[must_use]
    pub fn share(&self, taken: &Samples) -> Option<f64> {
        match self {
            Self::InTurn(samples) => samples.median_ratio(taken),
            Self::Apart(seconds) => Some(seconds / taken.median()),
        }
    }
}

impl Timed {
    /// A record for ours, and one for plain; `single` is the same case of `f32` where that took turns with these halves.
    #[must_use]
    pub fn records(
        &self,
        place: &Place,
        (shape, dtype): (Shape, Dtype),
        case: &Case,
        single: Option<&Self>,
    ) -> Vec<Record> {
        let bytes = case.traffic(shape, dtype).one_pass();
        let record = |library, times: &Times| {
            let filled = |samples: &Samples| (samples.count() > 0).then(|| samples.median());
            // Where nothing is in scope nothing has to be moved, and no share says anything.
            let allowed = self.allowed.as_ref().filter(|_| bytes > 0);
            Record {
                library,
                case: case.stage.name(),
                clipped: case.told_share(),
                scope: case.scope,
                share: allowed.and_then(|allowed| allowed.share(&times.wall)),
                device_median_s: filled(&times.device),
                submit_median_s: filled(&times.submit),
                ..Record::new(place, (shape, dtype), self.method, &times.wall, bytes)
            }
        };
        let ours = Record {
            by_plain: self.plain.as_ref().and_then(|plain| self.ours.wall.median_ratio(&plain.wall)),
            by_f32: single.and_then(|single| single.ours.wall.median_ratio(&self.ours.wall)),
            ..record("byzclip", &self.ours)
        };
        [Some(ours), self.plain.as_ref().map(|plain| record("plain", plain))].into_iter().flatten().collect()
    }
}

/// Where a measurement was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `cpu`, `gpu` or `reference`.
    pub backend: &'static str,
    /// The processor and its threads, or the adapter.
    pub device: String,
    /// The adapter's driver, and of a software adapter the processor.
    pub driver: Option<String>,
    /// Whether the adapter's kernels are shaped as measured.
    pub calibrated: bool,
}

impl Place {
    /// The place of a backend that runs on the host's processor.
    #[must_use]
    pub fn host(backend: &dyn Backend) -> Self {
        let kind = backend.ran().backend;
        let (threads, vectors) = match kind {
            BackendKind::Reference => (1, None),
            _ => (rayon::current_num_threads(), vectors()),
        };
        let device = processor_of(threads, vectors);
        Self { backend: kind.name(), device, driver: None, calibrated: false }
    }
}

/// The processor, with as many threads as the pool has and its vectors: what a software adapter runs on.
#[cfg(feature = "gpu")]
pub(super) fn processor() -> String {
    processor_of(rayon::current_num_threads(), vectors())
}

fn processor_of(threads: usize, vectors: Option<&str>) -> String {
    let s = if threads == 1 { "" } else { "s" };
    let vectors = vectors.map(|vectors| format!(", {vectors}")).unwrap_or_default();
    format!("{} x {threads} thread{s}{vectors}", processor_name())
}

/// The processor's name where the system tells it, else its architecture.
fn processor_name() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = told.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// One measurement: a line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: &'static str,
    /// `byzclip`, or `plain`: the baseline and the loops that measure ceilings.
    pub library: &'static str,
    /// This crate's version.
    pub version: &'static str,
    /// `host`: a call over host memory; `device`: a submission over a buffer on the device; `read`, `copy` or `scale`: a
    /// ceiling.
    pub method: &'static str,
    /// `cpu`, `gpu` or `reference`.
    pub backend: &'static str,
    /// The processor and its threads, or the adapter.
    pub device: String,
    /// The adapter's driver.
    pub driver: Option<String>,
    /// Whether the adapter's kernels were shaped as measured, by `byzclip calibrate`.
    pub calibrated: bool,
    /// Rows.
    pub clients: usize,
    /// Elements of a row.
    pub params: usize,
    /// `f32`, `f16` or `bf16`.
    pub dtype: &'static str,
    /// `norms`, `clip`, `mean` or `ceiling`.
    pub case: &'static str,
    /// The share of the rows in scope that are clipped.
    pub clipped: Option<f64>,
    /// The share of rows in scope.
    pub scope: f64,
    /// How many runs.
    pub runs: usize,
    /// Seconds.
    pub median_s: f64,
    /// Seconds of the fastest run.
    pub min_s: f64,
    /// Seconds of the slowest run.
    pub max_s: f64,
    /// Bytes that one pass has to move.
    pub bytes: u64,
    /// These bytes by the median, in 10^9 bytes a second.
    pub gb_per_s: f64,
    /// The share of the time that memory allows: the median over runs that took turns, or by the median.
    pub share: Option<f64>,
    /// Of ours, the time by that of plain: the median over runs that took turns.
    pub by_plain: Option<f64>,
    /// Of halves, rows a second by those of `f32`: the median over runs that took turns, or of the medians.
    pub by_f32: Option<f64>,
    /// Seconds by the device's own clock.
    pub device_median_s: Option<f64>,
    /// Seconds on the CPU to record and submit.
    pub submit_median_s: Option<f64>,
    /// Whether the results were held against exact ones; nothing is reported where they were not.
    pub verified: bool,
}

impl Record {
    fn new(
        place: &Place,
        (shape, dtype): (Shape, Dtype),
        method: &'static str,
        samples: &Samples,
        bytes: u64,
    ) -> Self {
        Self {
            format: FORMAT,
            library: "plain",
            version: env!("CARGO_PKG_VERSION"),
            method,
            backend: place.backend,
            device: place.device.clone(),
            driver: place.driver.clone(),
            calibrated: place.calibrated,
            clients: shape.clients,
            params: shape.params,
            dtype: dtype.name(),
            case: "ceiling",
            clipped: None,
            scope: 1.0,
            runs: samples.count(),
            median_s: samples.median(),
            min_s: samples.min(),
            max_s: samples.max(),
            bytes,
            gb_per_s: bytes as f64 / samples.median() / 1e9,
            share: None,
            by_plain: None,
            by_f32: None,
            device_median_s: None,
            submit_median_s: None,
            verified: true,
        }
    }

    /// Whether the other is of the same method and case, of whatever library and type of elements.
    #[must_use]
    pub fn is_case_of(&self, other: &Self) -> bool {
        let case = |record: &Self| (record.method, record.case, record.clipped, record.scope);
        case(self) == case(other)
    }

    /// The record of a ceiling.
    #[must_use]
    pub fn ceiling(
        place: &Place,
        batch: (Shape, Dtype),
        method: &'static str,
        times: &Times,
        bytes: u64,
    ) -> Self {
        let filled = |samples: &Samples| (samples.count() > 0).then(|| samples.median());
        Self {
            device_median_s: filled(&times.device),
            submit_median_s: filled(&times.submit),
            ..Self::new(place, batch, method, &times.wall, bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_do_not_depend_on_the_order_of_runs() {
        let mut samples = Samples::default();
        for seconds in [3.0, 1.0, 9.0, 2.0] {
            samples.push(seconds);
        }
        assert_eq!((samples.min(), samples.median(), samples.max()), (1.0, 2.5, 9.0));
        samples.push(2.75);
        assert_eq!(samples.median(), 2.75);
        assert!(Samples::default().median().is_nan() && Samples::default().min().is_nan());
    }

    #[test]
    fn ratios_are_those_of_runs_that_took_turns() {
        let samples = |seconds: &[f64]| {
            let mut samples = Samples::default();
            seconds.iter().for_each(|&seconds| samples.push(seconds));
            samples
        };
        // The machine is three times as slow half of the time, and the medians of the two are in different halves.
        let (ours, plain) = (samples(&[2.0, 2.0, 6.0, 6.0, 6.0]), samples(&[1.0, 1.0, 3.0, 3.0, 0.5]));
        assert_eq!((ours.median() / plain.median(), ours.median_ratio(&plain)), (6.0, Some(2.0)));
        assert_eq!(plain.median_ratio(&samples(&[1.0])), None);
        assert_eq!(Samples::default().median_ratio(&Samples::default()), None);
        let allowed = [Allowed::InTurn(plain), Allowed::Apart(3.0)];
        assert_eq!(allowed.map(|allowed| allowed.share(&ours)), [Some(0.5), Some(0.5)]);
    }
}
