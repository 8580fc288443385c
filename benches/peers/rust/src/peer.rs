//! What a library has to do, and how it is measured.

use std::borrow::Cow;
use std::panic::{self, AssertUnwindSafe};

use byzclip::bench::cases::{Batch, Case, Shape, Stage};
use byzclip::bench::element::Dtype;
use byzclip::bench::expected::Expected;
use byzclip::bench::measure::{FORMAT, Place, Record, Samples, timed};
use byzclip::{Cpu, Error, Reference, Weights};
use serde_json::Value;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// One way to do the cases with one library.
pub(crate) trait Peer {
    /// The name in the tables.
    fn library(&self) -> &'static str;

    /// The package whose version is reported.
    fn package(&self) -> &'static str;

    fn place(&self) -> &Place;

    /// `host` or `device`: where the data is before and after.
    fn method(&self) -> &'static str {
        "host"
    }

    /// Takes the data of a case; not timed.
    fn load(&mut self, _work: &Work) -> Result<(), Failure> {
        Ok(())
    }

    /// Computes norms, a clip or a mean, to its end. In place on `work.batch.work`, or keeps the result.
    fn run(&mut self, work: &mut Work) -> Result<(), Failure>;

    /// What the last run gave: norms, all values, or a mean; not timed.
    fn result<'a>(&'a self, work: &'a Work) -> Result<Cow<'a, [f32]>, Failure>;

    /// Lets go of the last result; not timed.
    fn discard(&mut self);
}

/// What a module offers: a name each, with a peer or the reason why there is none.
pub(crate) type Offers = Vec<(&'static str, Result<Box<dyn Peer>, Failure>)>;

/// The processor with its threads that a library may use.
pub(crate) fn host(one_thread: bool) -> Result<Place, Failure> {
    let place = if one_thread { Place::host(&Reference) } else { Place::host(&Cpu::new()?) };
    Ok(Place { backend: "cpu", ..place })
}

/// How far a right result may be from the exact one, relatively: a sum of n terms in `f32` errs by about √n of 2^-24 where
/// roundings are independent. Four times that and eight roundings more; `cases.py` has the same.
fn error(terms: usize) -> f64 {
    (4.0 * (terms as f64).sqrt() + 8.0) / f64::from(1 << 24)
}

/// Runs that count before the other one has its turn. `peers.py` has both.
const TURN: usize = 3;

/// Seconds of runs before those that count. Threads that slept, or caches that hold another library's data, are what the
/// first milliseconds measure.
const WARM: f64 = 0.03;

/// A case, its data, and what has to come out.
pub(crate) struct Work {
    pub(crate) batch: Batch,
    pub(crate) case: Case,
    pub(crate) expected: Expected,
    /// What rows weigh in a mean. Its factors are decided before; `expected` has them.
    pub(crate) weights: Weights,
    /// The same for those who multiply and add: each row's weight times its factor, by the sum of weights.
    pub(crate) shares: Vec<f32>,
}

impl Work {
    /// A case in the memory of a batch of its shape.
    pub(crate) fn new(mut batch: Batch, case: Case) -> Result<Self, Error> {
        batch.fill(&case);
        let expected = Expected::of(&batch, &case)?;
        let samples = Case::samples(batch.shape.clients);
        let shares = expected.shares(&samples);
        Ok(Self { batch, case, expected, weights: Weights::PerRow(samples), shares })
    }

    /// The result of a run that clips in place and keeps what other cases give.
    pub(crate) fn clipped_or<'a>(&'a self, kept: &'a [f32]) -> &'a [f32] {
        if self.case.stage == Stage::Clip { &self.batch.work } else { kept }
    }
}

/// The line of a peer on a case; without times where its results are wrong or it fails.
///
/// # Errors
/// Where ours are wrong.
pub(crate) fn measure(
    peer: &mut dyn Peer,
    ours: &mut dyn Peer,
    work: &mut Work,
    runs: usize,
    inject_fault: bool,
) -> Result<Value, Failure> {
    let (mut turns, mut error) = (Turns::default(), None);
    while turns.runs.len() < runs && error.is_none() {
        // The very first run is verified, and the last.
        let ends = (turns.runs.is_empty(), turns.runs.len() + TURN >= runs);
        // Whoever is first in one turn is second in the next.
        let ours_first = turns.medians.count().is_multiple_of(2);
        let on_host = peer.method() == "host";
        let before = if on_host && ours_first { Some(turn(ours, work, ends, false)?) } else { None };
        // Some libraries panic where a device has no memory for the shape; the others are to be measured all the same.
        let tried = panic::catch_unwind(AssertUnwindSafe(|| {
            if turns.runs.is_empty() {
                peer.load(work)?;
            }
            turn(peer, work, ends, inject_fault)
        }));
        match tried.unwrap_or_else(|_| Err("got a panic; expected a result; see stderr".into())) {
            Ok(seconds) => {
                turns.medians.push(samples(&seconds).median());
                turns.runs.extend(seconds);
            }
            Err(why) => error = Some(why),
        }
        if error.is_some() {
            // Whatever it wrote: the next one has the same memory.
            work.batch.restore_all();
        }
        let behind = if on_host && !ours_first { Some(turn(ours, work, ends, false)?) } else { None };
        if let Some(seconds) = before.or(behind) {
            turns.ours.push(samples(&seconds).median());
        }
    }
    peer.discard();
    let runs = if error.is_some() { Samples::default() } else { samples(&turns.runs) };
    // NaN becomes null.
    let mut line = serde_json::to_value(record(peer, work.batch.shape, &work.case, &runs)?)?;
    line["by_ours"] = turns.medians.median_ratio(&turns.ours).into();
    if let Some(error) = error {
        line["by_ours"] = Value::Null;
        line["verified"] = false.into();
        line["error"] = error.to_string().into();
    }
    Ok(line)
}

/// A peer's runs that count, the median of each of its turns, and those of ours beside them; none of ours where the data is
/// on a device.
#[derive(Default)]
struct Turns {
    runs: Vec<f64>,
    medians: Samples,
    ours: Samples,
}

fn samples(seconds: &[f64]) -> Samples {
    let mut samples = Samples::default();
    seconds.iter().for_each(|&seconds| samples.push(seconds));
    samples
}

/// The seconds of a turn's runs, behind some that warm up and are not counted.
fn turn(
    peer: &mut dyn Peer,
    work: &mut Work,
    (first, last): (bool, bool),
    inject_fault: bool,
) -> Result<Vec<f64>, Failure> {
    let (mut counted, mut warm, mut to_verify) = (Vec::new(), 0.0, first);
    while counted.len() < TURN {
        let (done, seconds) = timed(|| peer.run(work));
        done?;
        if warm < WARM {
            warm += seconds;
        } else {
            counted.push(seconds);
        }
        if to_verify || last && counted.len() == TURN {
            let mut got = peer.result(work)?;
            if inject_fault {
                spoil(got.to_mut(), work);
            }
            check(peer.library(), work, &got)?;
            // Behind the check, which is another's work, it warms up again.
            (warm, to_verify) = (0.0, false);
        }
        peer.discard();
        work.batch.restore(&work.case);
    }
    Ok(counted)
}

/// Makes one value wrong by four times the tolerance: of a mean the first; of a clip one in a clipped row where there is one,
/// because only there a tolerance holds.
fn spoil(got: &mut [f32], work: &Work) {
    let Shape { clients, params } = work.batch.shape;
    if work.case.stage == Stage::Mean {
        got[0] += (4.0 * work.expected.plain_mean_error(Dtype::F32)) as f32;
        return;
    }
    let row = (0..clients).find(|&row| work.case.writes(row)).unwrap_or(0);
    got[row * params] *= (1.0 + 4.0 * error(params)) as f32;
}

fn check(library: &str, work: &Work, got: &[f32]) -> Result<(), Error> {
    let Work { batch, case, expected, .. } = work;
    let error = error(batch.shape.params) as f32;
    let found = match case.stage {
        Stage::Norms => expected.check_plain(got, error),
        Stage::Clip => expected.check_plain_values(batch, got, error),
        Stage::Mean => expected.check_plain_mean(got, Dtype::F32),
    };
    found.map_err(|error| match error {
        Error::Mismatch { stage, row, got, expected, .. } => {
            Error::Mismatch { backend: library.to_owned(), stage, row, got, expected }
        }
        other => other,
    })
}

fn record(peer: &dyn Peer, shape: Shape, case: &Case, samples: &Samples) -> Result<Record, Failure> {
    let place = peer.place();
    let bytes = case.traffic(shape, Dtype::F32).one_pass();
    Ok(Record {
        format: FORMAT,
        library: peer.library(),
        version: version(peer.package())?,
        method: peer.method(),
        backend: place.backend,
        device: place.device.clone(),
        driver: place.driver.clone(),
        calibrated: place.calibrated,
        clients: shape.clients,
        params: shape.params,
        dtype: "f32",
        case: case.stage.name(),
        clipped: case.told_share(),
        scope: case.scope,
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
    })
}

/// The version of a package that was built, from the lock file.
pub(crate) fn version(package: &str) -> Result<&'static str, Failure> {
    const LOCK: &str = include_str!("../Cargo.lock");
    let blocks = || LOCK.split("[[package]]\n");
    // Where there are two of a name, this package's dependencies tell which one is ours.
    let ours = blocks().find(|block| block.starts_with("name = \"byzclip-peers\"")).unwrap_or_default();
    let told =
        ours.lines().find_map(|line| line.trim().strip_prefix(&format!("\"{package} "))?.strip_suffix("\","));
    let locked = || {
        let block = blocks().find(|block| block.starts_with(&format!("name = \"{package}\"\n")))?;
        block.lines().nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
    };
    told.or_else(locked).ok_or_else(|| format!("got no package {package} in Cargo.lock; expected it").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoiled_result_is_found() {
        for case in [Case::norms(), Case::clip(0.0), Case::clip(0.2), Case::clip(1.0), Case::mean(0.2)] {
            let work = Work::new(Batch::new("30x2000".parse().unwrap()).unwrap(), case).unwrap();
            let right = right(&work);
            check("right", &work, &right).unwrap();
            let mut wrong = right;
            spoil(&mut wrong, &work);
            assert!(check("wrong", &work, &wrong).is_err(), "{case}");
        }
    }

    /// A result by `f64`, and not by byzclip's sums of values.
    fn right(work: &Work) -> Vec<f32> {
        let (rows, decisions) = (work.batch.original.chunks(2000), work.expected.decisions());
        let scaled = |(row, factor): (&[f32], f64)| -> Vec<f64> {
            row.iter().map(|value| f64::from(*value) * factor).collect()
        };
        let values = match work.case.stage {
            Stage::Norms => decisions.iter().map(|decision| f64::from(decision.norm.value())).collect(),
            Stage::Clip => {
                rows.zip(decisions).flat_map(|(row, decision)| scaled((row, decision.factor))).collect()
            }
            Stage::Mean => {
                let products = rows.zip(&work.shares).map(|(row, share)| scaled((row, f64::from(*share))));
                products.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).unwrap()
            }
        };
        values.into_iter().map(|value: f64| value as f32).collect()
    }

    /// `test_cases.py` holds the same number, so the libraries of both languages clip the same data.
    #[test]
    fn the_data_is_that_of_the_other_package() {
        let mut batch: Batch = Batch::new("30x2000".parse().unwrap()).unwrap();
        batch.fill(&Case::clip(0.2));
        let sum: u64 =
            batch.original.iter().enumerate().map(|(i, v)| i as u64 * u64::from(v.to_bits())).sum();
        assert_eq!(sum, 3_774_631_624_712_788_950);
    }

    #[test]
    fn versions_are_those_that_are_built() {
        assert!(version("byzclip").is_ok());
        #[cfg(feature = "ndarray")]
        assert!(version("ndarray").unwrap().starts_with("0.17."));
        assert!(version("no-such-package").is_err());
    }
}
