//! `byzclip mean`.

use std::path::PathBuf;
use std::time::Instant;

use byzclip::Status;
use serde::Serialize;

use super::batch_output::{self, MeanOutput};
use super::clipping::ClippingArgs;
use super::failure::{Failure, Outcome};
use super::options::{BackendArgs, WindowArgs};
use super::progress::Progress;
use super::shown::Shown;
use super::threshold;
use super::weights::WeightsOf;
use super::{clip, display, output, rows};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One .npy (float32 or float16; a row per client, or one client), or a .safetensors per client.
    #[arg(value_name = "IN", required = true)]
    inputs: Vec<PathBuf>,
    /// Where the mean goes: an .npy of one row, or for .safetensors inputs one of those; float32.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// What each client weighs, for example its number of samples: an .npy of one number a client, in the order of
    /// the inputs. Without it all weigh the same.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    clipping: ClippingArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    window: WindowArgs,
}

#[derive(Serialize)]
struct Mean<'a, Rows> {
    backend: &'static str,
    adapter: Option<&'a str>,
    why: &'a str,
    threshold: String,
    /// Whether norms are those of differences from a centre.
    centered: bool,
    clients: usize,
    params: usize,
    /// Clients that are in the mean, and the sum of their weights.
    counted: usize,
    weight: f64,
    clipped: usize,
    zeroed: usize,
    rows: Rows,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let clipping = args.clipping.clipping()?;
    batch_output::check_mean_output(&args.inputs, &args.output)?;
    let inputs: Vec<PathBuf> = args.inputs.iter().chain(&args.weights).cloned().collect();
    args.clipping.check_files(&inputs, std::slice::from_ref(&args.output))?;
    let (opened, mut saved) = args.clipping.open(clipping, &args.inputs, &args.window)?;
    let weights = WeightsOf::open(args.weights.as_deref(), opened.batch.layout.clients())?;
    let backend = args.backend.open()?;

    let (batch, stream) = (&opened.batch, opened.stream(backend.as_ref()));
    let shown = Shown::of(batch.layout.clients(), json);
    let start = Instant::now();
    let progress = Progress::start(stream.mean_bytes());
    let mut file = MeanOutput::create(batch, &args.output)?;
    let (log, counted) = stream.mean(&weights, shown, &mut saved.state, &mut file, &progress)?;
    let mut complete = vec![file.finish()?];
    complete.extend(saved.complete()?);
    stream.check_unchanged()?;
    weights.check_unchanged()?;
    output::finish(complete)?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    if !json {
        output::print(&format!(
            "{}\nthe mean of {} with the weight {}\n{}\nwritten to {}\n",
            clip::rows_table(&stream, &log)?,
            counted.clients,
            counted.weight,
            display::rate(batch.bytes(), seconds),
            display::printable(&args.output.display().to_string())
        ))?;
        return Ok(Outcome::Success);
    }
    output::print_json(&Mean {
        backend: log.ran.backend.name(),
        adapter: log.ran.adapter.as_deref(),
        why: &log.ran.why,
        threshold: threshold::name(&opened.clipping.threshold),
        centered: stream.center.is_some(),
        clients: batch.layout.clients(),
        params: batch.layout.params(),
        counted: counted.clients,
        weight: counted.weight,
        clipped: log.count(Status::Clipped),
        zeroed: log.count(Status::Zeroed),
        rows: rows::clipped(&log, &batch.layers),
    })?;
    Ok(Outcome::Success)
}
