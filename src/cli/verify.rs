//! `byzclip verify`: every backend and adapter, bit for bit, over a matrix of hard batches.

mod cases;

use byzclip::{Backend, Cpu, Half, Reference, Report, Weights};
use serde::Serialize;

use self::cases::Case;
use super::calibration::CalibrationArgs;
use super::failure::{Failure, Outcome};
use super::{output, progress};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check the adapter whose name contains NAME, in any case, instead of every one found.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Spoil one bit of one GPU result, to see that the check finds it (exit code 1).
    #[arg(long)]
    inject_fault: bool,
}

/// Params of the longest rows that a mean is taken of.
const LONGEST_MEAN: usize = 2048;

/// A backend under test, with a name for its column.
struct Subject {
    name: String,
    adapter: Option<String>,
    strategy: &'static str,
    backend: Box<dyn Backend>,
}

/// What a backend made of a case in `f32` and in both halves: the clipped batch, and the mean of its clipped rows.
struct Answer {
    single: Clipped<f32>,
    halves: [Clipped<u16>; 2],
}

struct Clipped<T> {
    data: Vec<T>,
    report: Result<Report, byzclip::Error>,
    mean: Result<Vec<f32>, byzclip::Error>,
}

#[derive(Serialize)]
struct Verification {
    cases: usize,
    mismatches: usize,
    fault_injected: bool,
    subjects: Vec<Verdict>,
}

#[derive(Serialize)]
struct Verdict {
    backend: &'static str,
    adapter: Option<String>,
    strategy: &'static str,
    /// Cases that differ from the exact reference, or from the CPU backend.
    mismatches: usize,
    first_mismatch: Option<String>,
    #[serde(skip)]
    by_class: Vec<(usize, usize)>,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let subjects = subjects(args)?;
    let cases = cases::all()?;
    let bar = progress::bar(cases.len() as u64, "verifying");
    let mut verdicts: Vec<_> = subjects.iter().map(Verdict::new).collect();
    let mut to_spoil = args.inject_fault;
    for (number, case) in cases.iter().enumerate() {
        let exact = answer(&Reference, case);
        let mut cpu = None;
        for (subject, verdict) in subjects.iter().zip(&mut verdicts) {
            let mut got = answer(subject.backend.as_ref(), case);
            let spoilable = subject.adapter.is_some() && number >= cases.len() / 2 && !case.data.is_empty();
            if to_spoil && spoilable {
                spoil(&mut got);
                to_spoil = false;
            }
            let against_exact = difference(&got, &exact, "the reference");
            let against_cpu = cpu.as_ref().and_then(|cpu| difference(&got, cpu, "the CPU backend"));
            verdict.count(case, against_exact.or(against_cpu));
            if cpu.is_none() {
                cpu = Some(got);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let verification = Verification {
        cases: cases.len(),
        mismatches: verdicts.iter().map(|verdict| verdict.mismatches).sum(),
        fault_injected: args.inject_fault,
        subjects: verdicts,
    };
    if json {
        output::print_json(&verification)?
    } else {
        output::print(&verification.table(&subjects))?
    }
    // A fault that was injected and not found is the worst of all.
    let clean = verification.mismatches == 0 && !args.inject_fault;
    Ok(if clean { Outcome::Success } else { Outcome::Mismatch })
}

/// The CPU backend first, then every adapter in every strategy.
fn subjects(args: &Args) -> Result<Vec<Subject>, Failure> {
    let cpu = |name: &str, strategy, backend: Cpu| Subject {
        name: name.into(),
        adapter: None,
        strategy,
        backend: Box::new(backend),
    };
    let mut subjects = vec![
        cpu("cpu", "all threads", Cpu::new()?),
        cpu("cpu", "one thread", Cpu::with_threads(1)?),
        cpu("cpu", "exact sums only", Cpu::new()?.force_exact(true)),
    ];
    subjects.extend(gpu_subjects(args)?);
    Ok(subjects)
}

#[cfg(feature = "gpu")]
fn gpu_subjects(args: &Args) -> Result<Vec<Subject>, Failure> {
    use byzclip::Gpu;
    use byzclip::backend::gpu::{Tuning, adapters, choose_adapter, open};
    let adapters = match &args.adapter {
        Some(name) => vec![choose_adapter(Some(name))?],
        None => adapters(),
    };
    if adapters.is_empty() && args.inject_fault {
        return Err(no_adapter_to_spoil());
    }
    let mut subjects = Vec::new();
    for adapter in adapters {
        let name = adapter.get_info().name;
        let (device, queue) = open(&adapter)?;
        let make = || Gpu::from_device(device.clone(), queue.clone());
        let own = make()?;
        let suited = own.tuning().clone();
        let portable = Tuning { window: suited.window.min(Tuning::portable().window), ..Tuning::portable() };
        let strategies = [
            ("as suits it", suited.clone()),
            ("portable", portable),
            ("one element at a time", Tuning { wide: false, ..suited.clone() }),
            ("small tiles and windows", Tuning { tile: 64, window: 256, ..suited.clone() }),
            ("rows fused", Tuning { fused_row: 1 << 16, short_row: 0, ..suited.clone() }),
            (
                "rows in groups",
                Tuning { fused_row: 0, group_bytes: 1 << 14, short_row: 0, tile: 1 << 10, ..suited.clone() },
            ),
            ("exact sums only", Tuning { force_exact: true, ..suited }),
        ];
        let subject = |strategy, gpu: Gpu| Subject {
            name: name.clone(),
            adapter: Some(name.clone()),
            strategy,
            backend: Box::new(gpu),
        };
        for (strategy, tuning) in strategies {
            subjects.push(subject(strategy, make()?.with_tuning(tuning)?));
        }
        if let Some(calibrated) = args.calibration.taken(own)? {
            subjects.push(subject("as calibrated", calibrated));
        }
    }
    Ok(subjects)
}

#[cfg(not(feature = "gpu"))]
fn gpu_subjects(args: &Args) -> Result<Vec<Subject>, Failure> {
    match (&args.adapter, args.inject_fault) {
        (None, false) => Ok(Vec::new()),
        _ => Err(no_adapter_to_spoil()),
    }
}

fn no_adapter_to_spoil() -> Failure {
    Failure::Failed(
        "got no GPU adapter; expected one to verify; install a Vulkan driver (lavapipe will do)".into(),
    )
}

fn answer(backend: &dyn Backend, case: &Case) -> Answer {
    let (layout, clipping) = (&case.layout, &case.clipping);
    let weights = Weights::PerRow((0..layout.clients()).map(|row| (row % 5) as f32).collect());
    // Of long rows in the smallest windows it would be thousands of dispatches over all coordinates each.
    let has_mean = layout.params() <= LONGEST_MEAN;
    let mean = |run: &dyn Fn() -> byzclip::Result<(Vec<f32>, Report)>| match has_mean {
        true => run().map(|(mean, _)| mean),
        false => Ok(Vec::new()),
    };
    let mut data = case.data.clone();
    let report = backend.run(layout, &mut data, clipping);
    let of_single = mean(&|| backend.run_mean(layout, &case.data, clipping, &weights));
    let halves = [Half::F16, Half::Bf16].map(|half| {
        let before: Vec<u16> = case.data.iter().map(|value| half.truncate(*value)).collect();
        let mut data = before.clone();
        let report = backend.run_half(layout, half, &mut data, clipping);
        let mean = mean(&|| backend.run_mean_half(layout, half, &before, clipping, &weights));
        Clipped { data, report, mean }
    });
    Answer { single: Clipped { data, report, mean: of_single }, halves }
}

/// Flips the lowest bit of one value that the clip stage has written, or of the first.
fn spoil(answer: &mut Answer) {
    let data = &mut answer.single.data;
    let written = data.iter().position(|value| *value != 0.0 && value.is_finite()).unwrap_or(0);
    if let Some(value) = data.get_mut(written) {
        *value = f32::from_bits(value.to_bits() ^ 1);
    }
}

/// The first difference, in words.
fn difference(got: &Answer, expected: &Answer, of: &str) -> Option<String> {
    let halves = got.halves.iter().zip(&expected.halves).zip(["f16", "bf16"]);
    different(&got.single, &expected.single, "f32", of, |value| value.to_bits()).or_else(|| {
        halves.into_iter().find_map(|((got, expected), name)| different(got, expected, name, of, |bits| bits))
    })
}

fn different<T: Copy, B: PartialEq + std::fmt::LowerHex>(
    got: &Clipped<T>,
    expected: &Clipped<T>,
    dtype: &str,
    of: &str,
    bits: impl Fn(T) -> B,
) -> Option<String> {
    let data = |answer: &Clipped<T>| answer.data.iter().copied().map(&bits).collect::<Vec<B>>();
    let mean = |mean: &[f32]| mean.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    let of_means = || match (&got.mean, &expected.mean) {
        (Ok(got), Ok(expected)) => different_bits(&mean(got), &mean(expected), "element of the mean", of),
        (got, expected) => different_errors(got.as_ref().err(), expected.as_ref().err(), of),
    };
    let words = different_reports(&got.report, &expected.report, of)
        .or_else(|| different_bits(&data(got), &data(expected), "element", of))
        .or_else(of_means)?;
    Some(format!("{dtype}: {words}"))
}

fn different_reports(
    got: &Result<Report, byzclip::Error>,
    expected: &Result<Report, byzclip::Error>,
    of: &str,
) -> Option<String> {
    match (got, expected) {
        (Ok(got), Ok(expected)) => {
            let differs = |row: &usize| !same_row(got, expected, *row);
            let row = (0..expected.rows.len()).find(differs)?;
            Some(format!("row {row}: got {:?}, {of} has {:?}", got.rows[row], expected.rows[row]))
        }
        (got, expected) => different_errors(got.as_ref().err(), expected.as_ref().err(), of),
    }
}

fn different_errors(
    got: Option<&byzclip::Error>,
    expected: Option<&byzclip::Error>,
    of: &str,
) -> Option<String> {
    (got != expected).then(|| format!("got {got:?}, {of} has {expected:?}"))
}

fn different_bits<T: PartialEq + std::fmt::LowerHex>(
    got: &[T],
    expected: &[T],
    what: &str,
    of: &str,
) -> Option<String> {
    let i = (0..expected.len()).find(|&i| got.get(i) != Some(&expected[i]))?;
    let shown = got.get(i).map_or_else(|| "nothing".into(), |got| format!("the bits {got:08x}"));
    Some(format!("{what} {i}: got {shown}, {of} has {:08x}", expected[i]))
}

fn same_row(got: &Report, expected: &Report, row: usize) -> bool {
    let whole = |report: &Report| {
        let row = &report.rows[row];
        (row.norm.to_bits(), row.bound.map(f32::to_bits), row.factor.to_bits(), row.status)
    };
    let segment =
        |s: &byzclip::SegmentReport| (s.norm.to_bits(), s.bound.to_bits(), s.factor.to_bits(), s.status);
    let segments = |report: &Report| report.segments(row).iter().map(segment).collect::<Vec<_>>();
    whole(got) == whole(expected) && segments(got) == segments(expected)
}

impl Verdict {
    fn new(subject: &Subject) -> Self {
        Self {
            backend: subject.backend.ran().backend.name(),
            adapter: subject.adapter.clone(),
            strategy: subject.strategy,
            mismatches: 0,
            first_mismatch: None,
            by_class: vec![(0, 0); cases::CLASSES.len()],
        }
    }

    fn count(&mut self, case: &Case, difference: Option<String>) {
        let (same, different) = &mut self.by_class[case.class];
        match difference {
            None => *same += 1,
            Some(words) => {
                *different += 1;
                self.mismatches += 1;
                self.first_mismatch.get_or_insert_with(|| format!("{}: {words}", case.name));
            }
        }
    }
}

impl Verification {
    fn table(&self, subjects: &[Subject]) -> String {
        let mut text = format!(
            "{} batches, every norm, factor, status, value and mean, of f32 and of halves, against exact\narithmetic, bit for bit\n\n",
            self.cases
        );
        let mut head = vec!["backend", "strategy"];
        head.extend(cases::CLASSES);
        let cells = |i: usize| {
            let verdict = &self.subjects[i];
            let mut cells = vec![subjects[i].name.clone(), verdict.strategy.into()];
            cells.extend(verdict.by_class.iter().map(|(same, different)| match different {
                0 => format!("{same} ok"),
                _ => format!("{different} WRONG"),
            }));
            cells
        };
        text.push_str(&super::display::table_left(&head, self.subjects.len(), cells));
        for verdict in &self.subjects {
            if let Some(words) = &verdict.first_mismatch {
                let on = verdict.adapter.as_deref().unwrap_or(verdict.backend);
                text.push_str(&format!("\n{on}, {}: {words}", verdict.strategy));
            }
        }
        if self.subjects.iter().all(|verdict| verdict.adapter.is_none()) {
            text.push_str("\nno GPU adapter found: only the CPU backend was checked\n");
        }
        text.push_str(&match (self.mismatches, self.fault_injected) {
            (0, false) => "\nno mismatch\n".to_owned(),
            (0, true) => "\na fault was injected and NOT found\n".to_owned(),
            (count, false) => format!("\n\n{count} MISMATCHES\n"),
            (1, true) => "\n\n1 mismatch: the fault that was injected\n".to_owned(),
            (count, true) => format!("\n\n{count} MISMATCHES, one of them injected\n"),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use byzclip::{Clipping, Layout, Status};

    use super::*;

    #[test]
    fn the_matrix_meets_every_status() {
        let mut seen = std::collections::BTreeSet::new();
        for case in cases::all().unwrap() {
            if let Ok(report) = answer(&Reference, &case).single.report {
                seen.extend(report.rows.iter().map(|row| row.status.name()));
            }
        }
        let all = [Status::Untouched, Status::Clipped, Status::Zeroed, Status::OutOfScope, Status::Kept];
        assert_eq!(seen, all.iter().map(|status| status.name()).collect());
    }

    #[test]
    fn a_single_bit_is_a_difference() {
        let layout = Layout::dense(2, 3).unwrap();
        let case = Case {
            name: "a bit".into(),
            class: 0,
            layout,
            data: vec![1.0, 2.0, 3.0, 0.1, 0.2, 0.3],
            clipping: Clipping::fixed(1.0),
        };
        let exact = answer(&Reference, &case);
        let mut got = answer(&Reference, &case);
        assert_eq!(difference(&got, &exact, "x"), None);
        spoil(&mut got);
        assert!(difference(&got, &exact, "x").is_some_and(|words| words.starts_with("f32: element 0")));
        for half in 0..2 {
            let mut got = answer(&Reference, &case);
            got.halves[half].data[1] ^= 1;
            assert!(difference(&got, &exact, "x").is_some_and(|words| words.contains("f16: element 1")));
            let mut got = answer(&Reference, &case);
            got.halves[half].mean = Ok(vec![1.0, 2.0, 3.0]);
            assert!(
                difference(&got, &exact, "x")
                    .is_some_and(|words| words.contains("f16: element of the mean 0"))
            );
        }
    }
}
