//! Samples, and the records that they become: one line of JSON each.

use std::time::Instant;

use serde::Serialize;

use super::cases::{Case, Shape, Stage};
use super::element::Dtype;
use crate::backend::Backend;
use crate::report::BackendKind;

/// The name of the schema; another one where a field changes its meaning.
pub const FORMAT: &str = "byzclip-bench-1";

/// Runs `work` and returns what it gave, and the seconds that it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}

/// Seconds of several runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    ascending: Vec<f64>,
}

impl Samples {
    /// Adds a run.
    pub fn push(&mut self, seconds: f64) {
        let place = self.ascending.partition_point(|earlier| *earlier <= seconds);
        self.ascending.insert(place, seconds);
    }

    /// Adds the runs of another measurement.
    #[cfg(feature = "gpu")]
    pub(super) fn join(&mut self, other: Self) {
        other.ascending.into_iter().for_each(|seconds| self.push(seconds));
    }

    /// How many runs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ascending.len()
    }

    /// The middle one, or the mean of the two in the middle; NaN without runs.
    #[must_use]
    pub fn median(&self) -> f64 {
        let middle = self.count() / 2;
        match self.count() {
            0 => f64::NAN,
            count if count % 2 == 1 => self.ascending[middle],
            _ => (self.ascending[middle - 1] + self.ascending[middle]) / 2.0,
        }
    }

    /// The fastest run; NaN without runs.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.ascending.first().copied().unwrap_or(f64::NAN)
    }

    /// The slowest run; NaN without runs.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.ascending.last().copied().unwrap_or(f64::NAN)
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
    /// Seconds that the memory allows, where the data stays in one.
    pub allowed: Option<f64>,
}

impl Timed {
    /// A record for ours, and one for plain.
    #[must_use]
    pub fn records(&self, place: &Place, (shape, dtype): (Shape, Dtype), case: &Case) -> Vec<Record> {
        let bytes = case.traffic(shape, dtype).one_pass();
        let libraries = [("byzclip", Some(&self.ours)), ("plain", self.plain.as_ref())];
        let libraries = libraries.into_iter().filter_map(|(library, times)| Some((library, times?)));
        let record = |(library, times): (&'static str, &Times)| {
            let filled = |samples: &Samples| (samples.count() > 0).then(|| samples.median());
            // Where nothing is in scope nothing has to be moved, and no share says anything.
            let share = self.allowed.filter(|_| bytes > 0).map(|allowed| allowed / times.wall.median());
            Record {
                library,
                case: match case.stage {
                    Stage::Norms => "norms",
                    Stage::Clip => "clip",
                },
                clipped: (case.stage == Stage::Clip).then_some(case.clipped),
                scope: case.scope,
                share,
                device_median_s: filled(&times.device),
                submit_median_s: filled(&times.submit),
                ..Record::new(place, (shape, dtype), self.method, &times.wall, bytes)
            }
        };
        libraries.map(record).collect()
    }
}

/// Where a measurement was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `cpu`, `gpu` or `reference`.
    pub backend: &'static str,
    /// The processor and its threads, or the adapter.
    pub device: String,
    /// The adapter's driver.
    pub driver: Option<String>,
    /// Whether the adapter's kernels are shaped as measured.
    pub calibrated: bool,
}

impl Place {
    /// The place of a backend that runs on the host's processor.
    #[must_use]
    pub fn host(backend: &dyn Backend) -> Self {
        let kind = backend.ran().backend;
        let threads = if kind == BackendKind::Reference { 1 } else { rayon::current_num_threads() };
        let s = if threads == 1 { "" } else { "s" };
        let device = format!("{} x {threads} thread{s}", processor());
        Self { backend: kind.name(), device, driver: None, calibrated: false }
    }
}

/// The processor's name where the system tells it, else its architecture.
fn processor() -> String {
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
    /// `norms`, `clip` or `ceiling`.
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
    /// The time that the memory allows, by the median.
    pub share: Option<f64>,
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
            device_median_s: None,
            submit_median_s: None,
            verified: true,
        }
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
        assert!(Samples::default().median().is_nan());
    }
}
