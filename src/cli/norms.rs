//! `byzclip norms`.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use byzclip::{Clipping, Granularity, Norm, NormClass};
use serde::Serialize;

use super::batch_file::BatchFile;
use super::display;
use super::failure::{Failure, Outcome};
use super::log::{self, Log};
use super::options::{BackendArgs, WindowArgs};
use super::output;
use super::progress::Progress;
use super::rows::{Each, finite};
use super::shown::Shown;
use super::stream::Stream;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One .npy (float32 or float16; a row per client, or one client), or a .safetensors per client.
    #[arg(value_name = "IN", required = true)]
    inputs: Vec<PathBuf>,
    /// Print the norm of every layer (tensor) too.
    #[arg(long)]
    per_layer: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    window: WindowArgs,
}

#[derive(Serialize)]
struct Norms<'a, Rows> {
    backend: &'static str,
    adapter: Option<&'a str>,
    why: &'a str,
    clients: usize,
    params: usize,
    rows: Rows,
}

#[derive(Serialize)]
struct Row<'a> {
    norm: Option<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    segments: Vec<Segment<'a>>,
}

#[derive(Serialize)]
struct Segment<'a> {
    name: Option<&'a str>,
    norm: Option<f32>,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let batch = BatchFile::open(&args.inputs)?;
    let backend = args.backend.open()?;
    let layout = &batch.layout;
    let granularity = if args.per_layer { Granularity::Segment } else { Granularity::Row };
    let clipping = Clipping::default().granularity(granularity);
    let start = Instant::now();
    let progress = Progress::start(batch.bytes());
    let stream = Stream::without_center(&batch, backend.as_ref(), &clipping, &args.window);
    let shown = Shown::of(layout.clients(), json);
    let segments = batch.bounded_layers(granularity);
    let (mut norms, mut of_layers) = (Log::new(shown, 1)?, Log::new(shown, segments)?);
    stream.each_norms(&progress, |more| {
        norms.append(more.rows.len(), |row| [more.rows[row]])?;
        let layers = |row: usize| more.segments[row * segments..(row + 1) * segments].iter().copied();
        of_layers.append(more.rows.len(), layers)
    })?;
    stream.check_unchanged()?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    let ran = backend.ran();

    if json {
        let name = |layer: usize| batch.layers.get(layer).map(String::as_str);
        let row = |row: usize| {
            let layers = of_layers.row(row)?;
            let segment =
                |(layer, norm): (usize, &Norm)| Segment { name: name(layer), norm: finite(norm.value()) };
            Ok(Row {
                norm: finite(norms.row(row)?[0].value()),
                segments: layers.iter().enumerate().map(segment).collect(),
            })
        };
        output::print_json(&Norms {
            backend: ran.backend.name(),
            adapter: ran.adapter.as_deref(),
            why: &ran.why,
            clients: layout.clients(),
            params: layout.params(),
            rows: Each { count: layout.clients(), entry: row },
        })?;
        return Ok(Outcome::Success);
    }
    let shown = |norm: &Norm| match norm.class() {
        NormClass::NonFinite => "NaN or Inf".to_owned(),
        _ => display::number(norm.value()),
    };
    let mut head = vec!["client", "norm"];
    let layers: Vec<String> = batch.layers.iter().map(|name| display::printable(name)).collect();
    if args.per_layer {
        head.extend(layers.iter().map(String::as_str));
    }
    let cells = |row: usize| -> io::Result<Vec<String>> {
        let mut cells = vec![row.to_string(), shown(&norms.row(row)?[0])];
        if !batch.layers.is_empty() {
            cells.extend(of_layers.row(row)?.iter().map(shown));
        }
        Ok(cells)
    };
    let cells = |row| cells(row).map_err(|e| Failure::Failed(log::unreadable(&log::row(row), &e)));
    let text = display::try_table(&head, layout.clients(), cells)?;
    output::print(&format!(
        "{ran}\n{}, {}\n\n{text}\n{}\n",
        display::count(layout.clients(), "client"),
        display::count(layout.params(), "param"),
        display::rate(batch.bytes(), seconds)
    ))?;
    Ok(Outcome::Success)
}
