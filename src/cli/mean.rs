//! `byzclip mean`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use byzclip::{Report, Status, Weights};
use serde::Serialize;

use super::batch_file::BatchFile;
use super::batch_output::{self, MeanOutput};
use super::clipping::ClippingArgs;
use super::failure::{Failure, Outcome};
use super::options::{BackendArgs, WindowArgs};
use super::progress::Progress;
use super::rows;
use super::stream::Stream;
use super::threshold::{self, SavedState};
use super::{clip, npy, output};

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
    let batch = BatchFile::open(&args.inputs)?;
    let window = args.window.elements(&batch);
    let center = args.clipping.center(&batch, window)?;
    let weights = match &args.weights {
        Some(path) => Weights::PerRow(read_weights(path, batch.layout.clients())?),
        None => Weights::Equal,
    };
    let state_file = args.clipping.threshold.state.as_deref();
    let mut saved = SavedState::load(state_file, &clipping, center.is_some(), &batch.layout)?;
    clipping.check(&batch.layout, &saved.state)?;
    let backend = args.backend.open()?;

    let (backend, center) = (backend.as_ref(), center.as_ref());
    let stream = Stream { batch: &batch, backend, clipping: &clipping, center, window };
    let start = Instant::now();
    let progress = Progress::start(stream.mean_bytes());
    let mut file = MeanOutput::create(&batch, &args.output)?;
    let report = stream.mean(&weights, &mut saved.state, &mut file, &progress)?;
    let mut complete = vec![file.finish()?];
    complete.extend(saved.complete()?);
    stream.check_unchanged()?;
    output::finish(complete)?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    let (counted, weight) = counted(&weights.of_rows(batch.layout.clients())?, &report);
    let text = if json { None } else { Some(table(args, &stream, &report, (counted, weight), seconds)) };
    match text {
        Some(text) => output::print(&text)?,
        None => output::print_json(&Mean {
            backend: report.ran.backend.name(),
            adapter: report.ran.adapter.as_deref(),
            why: &report.ran.why,
            threshold: threshold::name(&clipping.threshold),
            centered: center.is_some(),
            clients: batch.layout.clients(),
            params: batch.layout.params(),
            counted,
            weight,
            clipped: report.count(Status::Clipped),
            zeroed: report.count(Status::Zeroed),
            rows: rows::clipped(&report, &batch.layers),
        })?,
    }
    Ok(Outcome::Success)
}

/// One weight per client, each exact as an `f32`.
fn read_weights(path: &Path, clients: usize) -> Result<Vec<f32>, Failure> {
    const PASS: &str = "pass one weight per client, in the order of the inputs";
    let wrong = |got: String, expected: &str| Failure::content(path, &got, expected, PASS);
    let weights = npy::read_numbers(path)?;
    if weights.len() != clients {
        return Err(wrong(rows::count(weights.len(), "weight"), &format!("{clients}, one per client")));
    }
    let exact = |(client, weight): (usize, f64)| {
        let narrow = weight as f32;
        if !weight.is_finite() || weight < 0.0 {
            return Err(wrong(
                format!("the weight {weight} of client {client}"),
                "finite weights that are not negative",
            ));
        }
        // Rounded weights would be other weights, silently.
        if f64::from(narrow) != weight {
            let got = format!("the weight {weight} of client {client}");
            return Err(wrong(got, "weights that an f32 holds, such as whole numbers up to 2^24"));
        }
        Ok(narrow)
    };
    weights.into_iter().enumerate().map(exact).collect()
}

/// The clients that are in the mean, and what they weigh together.
fn counted(weights: &[f32], report: &Report) -> (usize, f64) {
    let counts = |status| !matches!(status, Status::Zeroed | Status::Kept);
    let weights = weights.iter().zip(&report.rows).filter(|(_, row)| counts(row.status));
    weights.fold((0, 0.0), |(count, sum), (weight, _)| (count + 1, sum + f64::from(*weight)))
}

fn table(
    args: &Args,
    stream: &Stream<'_>,
    report: &Report,
    (counted, weight): (usize, f64),
    seconds: f64,
) -> String {
    format!(
        "{}\nthe mean of {counted} with the weight {weight}\n{}\nwritten to {}\n",
        clip::rows_table(stream, report),
        rows::rate(stream.batch.bytes(), seconds),
        rows::printable(&args.output.display().to_string())
    )
}
