//! `byzclip calibrate`: which shape of the kernels suits an adapter.

use std::collections::BTreeMap;
use std::path::PathBuf;

use byzclip::Gpu;
use byzclip::backend::gpu::{Calibration, ShapeClass, Trial, driver};
use serde::Serialize;

use super::failure::{Failure, Outcome};
use super::{calibration, display, output, progress};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Measure the adapter whose name contains NAME, in any case; else the first hardware GPU. On a software adapter
    /// this takes minutes.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Write the calibration to FILE instead of where `--calibration auto` looks for it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bytes of the batches that are tried, for tests, which have no time.
    #[arg(long, hide = true)]
    bytes: Option<u64>,
}

#[derive(Serialize)]
struct Measured<'a> {
    adapter: &'a str,
    driver: &'a str,
    file: PathBuf,
    trials: Vec<Line<'a>>,
    choices: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

#[derive(Serialize)]
struct Line<'a> {
    class: &'static str,
    what: &'a str,
    wrong: Option<String>,
    median_s: f64,
    best_median_s: f64,
    ratio: f64,
    kept: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    if let Some(file) = &args.output {
        output::check(file)?;
    }
    let gpu = Gpu::open(args.adapter.as_deref())?;
    let info = gpu.device().adapter_info();
    let spinner = progress::spinner("calibrating");
    let mut trials = Vec::new();
    let tell = |trial: &Trial| {
        spinner.set_message(format!("{} rows: {}", trial.class, trial.what));
        trials.push(trial.clone());
    };
    let measured = match args.bytes {
        None => gpu.calibrate(tell),
        Some(bytes) => gpu.calibrate_on(bytes, tell),
    };
    spinner.finish_and_clear();
    let measured = measured?;
    let file = args.output.clone().map_or_else(|| calibration::place_for(&info), Ok)?;
    calibration::save(&measured, &file)?;
    if json {
        output::print_json(&Measured {
            adapter: &info.name,
            driver: &driver(&info),
            file,
            trials: trials.iter().map(Line::new).collect(),
            choices: ShapeClass::ALL.map(|class| (class.name(), measured.choice(class).collect())).into(),
        })?;
    } else {
        let how = match args.output {
            Some(_) => format!("--calibration {} takes it", file.display()),
            None => "--calibration auto takes it".into(),
        };
        let place = format!("saved in {}; {how}\n", file.display());
        let sections = ShapeClass::ALL.map(|class| section(class, &trials, &measured));
        output::print(&[sections.concat(), place].concat())?;
    }
    let wrong = trials.iter().find_map(|trial| Some((trial, trial.wrong.as_ref()?)));
    match wrong {
        None => Ok(Outcome::Success),
        Some((Trial { class, what, .. }, why)) => Err(Failure::Failed(format!(
            "{} with {what} for {class} rows, which was not kept: {why}",
            info.name
        ))),
    }
}

impl<'a> Line<'a> {
    fn new(trial: &'a Trial) -> Self {
        let &Trial { class, ref what, ref wrong, seconds, best_seconds, ratio, kept } = trial;
        let (class, wrong) = (class.name(), wrong.as_ref().map(ToString::to_string));
        Self { class, what, wrong, median_s: seconds, best_median_s: best_seconds, ratio, kept }
    }
}

/// The trials of a class, and what was chosen by them.
fn section(class: ShapeClass, trials: &[Trial], calibration: &Calibration) -> String {
    let trials: Vec<_> = trials.iter().filter(|trial| trial.class == class).collect();
    let cells = |i: usize| {
        let Trial { what, wrong, seconds, best_seconds, ratio, kept, .. } = trials[i];
        let ms = |seconds: &f64| format!("{:.3} ms", seconds * 1e3);
        match wrong {
            Some(why) => vec![what.clone(), "-".into(), "-".into(), "-".into(), why.to_string()],
            None => {
                let outcome = if *kept { "kept" } else { "" };
                vec![what.clone(), ms(seconds), ms(best_seconds), format!("{ratio:.2}"), outcome.into()]
            }
        }
    };
    let head = [&format!("tried for {class} rows"), "median", "best so far", "ratio", ""];
    let table = display::table_left(&head, trials.len(), cells);
    let chosen: Vec<_> = calibration.choice(class).map(|(name, number)| format!("{name} {number}")).collect();
    format!("{table}{class} rows: {}\n\n", chosen.join(", "))
}
