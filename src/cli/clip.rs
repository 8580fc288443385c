//! `byzclip clip`.

use std::path::PathBuf;
use std::time::Instant;

use byzclip::{Granularity, Status};
use serde::Serialize;

use super::batch_output::{self, Output};
use super::clipping::ClippingArgs;
use super::display;
use super::failure::{Failure, Outcome};
use super::log;
use super::options::{BackendArgs, WindowArgs};
use super::output;
use super::progress::Progress;
use super::row_log::{RowLog, STATUSES};
use super::rows::{self, Factor};
use super::shown::Shown;
use super::stream::Stream;
use super::threshold;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One .npy (float32 or float16; a row per client, or one client), or a .safetensors per client.
    #[arg(value_name = "IN", required = true)]
    inputs: Vec<PathBuf>,
    /// Where the clipped updates go: a file for .npy, a folder for .safetensors.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    clipping: ClippingArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    window: WindowArgs,
}

#[derive(Serialize)]
struct Clip<'a, Rows> {
    backend: &'static str,
    adapter: Option<&'a str>,
    /// Null unless all stages ran on a GPU together.
    strategy: Option<&'static str>,
    why: &'a str,
    threshold: String,
    /// Whether norms are those of differences from a centre.
    centered: bool,
    clients: usize,
    params: usize,
    clipped: usize,
    zeroed: usize,
    rows: Rows,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let clipping = args.clipping.clipping()?;
    batch_output::check_output(&args.inputs, &args.output)?;
    args.clipping.check_files(&args.inputs, &batch_output::targets(&args.inputs, &args.output))?;
    let (opened, mut saved) = args.clipping.open(clipping, &args.inputs, &args.window)?;
    let backend = args.backend.open()?;

    let (batch, stream) = (&opened.batch, opened.stream(backend.as_ref()));
    let shown = Shown::of(batch.layout.clients(), json);
    let start = Instant::now();
    let progress = Progress::start(stream.clip_bytes());
    let mut files = Output::new(&args.output);
    let log = stream.clip(shown, &mut saved.state, &mut files, &progress)?;
    let mut complete = files.finish(batch)?;
    complete.extend(saved.complete()?);
    stream.check_unchanged()?;
    output::finish(complete)?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    if !json {
        output::print(&format!(
            "{}\n{}\nwritten to {}\n",
            rows_table(&stream, &log)?,
            display::rate(batch.bytes(), seconds),
            display::printable(&args.output.display().to_string())
        ))?;
        return Ok(Outcome::Success);
    }
    output::print_json(&Clip {
        backend: log.ran.backend.name(),
        adapter: log.ran.adapter.as_deref(),
        strategy: log.ran.strategy.map(byzclip::Strategy::name),
        why: &log.ran.why,
        threshold: threshold::name(&opened.clipping.threshold),
        centered: stream.center.is_some(),
        clients: batch.layout.clients(),
        params: batch.layout.params(),
        clipped: log.count(Status::Clipped),
        zeroed: log.count(Status::Zeroed),
        rows: rows::clipped(&log, &batch.layers),
    })?;
    Ok(Outcome::Success)
}

/// What ran, and what happened to each client.
pub(super) fn rows_table(stream: &Stream<'_>, log: &RowLog) -> Result<String, Failure> {
    let (layout, clipping) = (&stream.batch.layout, stream.clipping);
    let cells = |row: usize| {
        let entry = log.row(row).map_err(|e| Failure::Failed(log::unreadable(&log::row(row), &e)))?;
        Ok::<_, Failure>(vec![
            row.to_string(),
            if entry.norm.is_nan() { "-".into() } else { display::number(entry.norm) },
            entry.bound().map_or_else(|| "-".into(), display::number),
            Factor(entry.factor).to_string(),
            entry.status().name().into(),
        ])
    };
    let counts = STATUSES
        .map(|status| (log.count(status), status.name()))
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect::<Vec<_>>();
    let each = match clipping.granularity {
        Granularity::Row => "",
        Granularity::Segment => ", every layer on its own; factor: the least; --json has every layer",
        Granularity::Coordinate => ", every coordinate; norms are largest magnitudes",
    };
    let around =
        if stream.center.is_some() { ", around the centre; norms are those of the differences" } else { "" };
    Ok(format!(
        "{}\n{}, {}, bound {}{each}{around}\n\n{}\n{}",
        log.ran,
        display::count(layout.clients(), "client"),
        display::count(layout.params(), "param"),
        threshold::name(&clipping.threshold),
        display::try_table(&["client", "norm", "bound", "factor", "status"], layout.clients(), cells)?,
        if counts.is_empty() { "no clients".into() } else { counts.join(", ") },
    ))
}
