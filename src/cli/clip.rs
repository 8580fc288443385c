//! `byzclip clip`.

use std::path::PathBuf;
use std::time::Instant;

use byzclip::{Clipping, Granularity, NonFinite, Report, Scope, Status};
use serde::Serialize;

use super::batch_file::{self, BatchFile};
use super::failure::{Failure, Outcome};
use super::options::{self, BackendArgs};
use super::output;
use super::progress::Spinner;
use super::rows::{self, ClippedRow, Factor};
use super::threshold::{self, SavedState, ThresholdArgs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One .npy (float32 or float16; a row per client, or one client), or a .safetensors per client.
    #[arg(value_name = "IN", required = true)]
    inputs: Vec<PathBuf>,
    /// Where the clipped updates go: a file for .npy, a folder for .safetensors.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    threshold: ThresholdArgs,
    /// Which clients may be clipped; all others are neither read nor changed.
    #[arg(long, value_name = "all|rows:0,3,5-8", default_value = "all", value_parser = options::parse_scope)]
    scope: Scope,
    /// What is done with updates that hold NaN or Inf: zeroed, refused, or kept as they are.
    #[arg(long, value_name = "zero|error|keep", default_value = "zero", value_parser = options::parse_non_finite)]
    non_finite: NonFinite,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(Serialize)]
struct Clip<'a> {
    backend: &'static str,
    adapter: Option<&'a str>,
    why: &'a str,
    threshold: String,
    clients: usize,
    params: usize,
    clipped: usize,
    zeroed: usize,
    rows: Vec<ClippedRow<'a>>,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let clipping = Clipping {
        threshold: args.threshold.threshold()?,
        scope: args.scope.clone(),
        non_finite: args.non_finite,
        granularity: args.threshold.granularity(),
        center: None,
    };
    batch_file::check_output(&args.inputs, &args.output)?;
    let backend = args.backend.open()?;

    let spinner = Spinner::start("reading".into());
    let mut batch = BatchFile::read(&args.inputs)?;
    drop(spinner);
    let state_file = args.threshold.state.as_deref();
    let mut saved = SavedState::load(state_file, &clipping.threshold, &batch.layout, clipping.granularity)?;
    let spinner = Spinner::start("clipping".into());
    let start = Instant::now();
    let report = batch.data.run_with(backend.as_ref(), &batch.layout, &clipping, &mut saved.state)?;
    let seconds = start.elapsed().as_secs_f64();
    drop(spinner);

    // The report is made before the batch moves into its files, and printed once they are in place.
    let text = if json { None } else { Some(table(args, &batch, &clipping, &report, seconds)) };
    let (layout, layers) = (batch.layout.clone(), batch.layers.clone());
    let spinner = Spinner::start("writing".into());
    batch.write(&args.output)?;
    saved.save()?;
    drop(spinner);
    match text {
        Some(text) => output::print(&text)?,
        None => output::print_json(&Clip {
            backend: report.ran.backend.name(),
            adapter: report.ran.adapter.as_deref(),
            why: &report.ran.why,
            threshold: threshold::name(&clipping.threshold),
            clients: layout.clients(),
            params: layout.params(),
            clipped: report.count(Status::Clipped),
            zeroed: report.count(Status::Zeroed),
            rows: report.rows.iter().map(|row| ClippedRow::new(row, &layers)).collect(),
        })?,
    }
    Ok(Outcome::Success)
}

fn table(args: &Args, batch: &BatchFile, clipping: &Clipping, report: &Report, seconds: f64) -> String {
    let layout = &batch.layout;
    let cells = |row: usize| {
        let report = &report.rows[row];
        vec![
            row.to_string(),
            if report.norm.is_nan() { "-".into() } else { rows::number(report.norm) },
            report.bound.map_or_else(|| "-".into(), rows::number),
            Factor(report.factor).to_string(),
            report.status.name().into(),
        ]
    };
    let counts = [Status::Untouched, Status::Clipped, Status::Zeroed, Status::OutOfScope, Status::Kept]
        .map(|status| (report.count(status), status.name()))
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect::<Vec<_>>();
    let each = match clipping.granularity {
        Granularity::Row => "",
        Granularity::Segment => ", every layer on its own; factor: the least; --json has every layer",
        Granularity::Coordinate => ", every coordinate; norms are largest magnitudes",
    };
    format!(
        "{}\n{}, {}, bound {}{each}\n\n{}\n{}; {}\nwritten to {}\n",
        report.ran,
        rows::count(layout.clients(), "client"),
        rows::count(layout.params(), "param"),
        threshold::name(&clipping.threshold),
        rows::table(&["client", "norm", "bound", "factor", "status"], layout.clients(), cells),
        if counts.is_empty() { "no clients".into() } else { counts.join(", ") },
        rows::rate(batch.data.bytes_of(layout.elements()), seconds),
        args.output.display()
    )
}
