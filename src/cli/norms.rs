//! `byzclip norms`.

use std::path::PathBuf;
use std::time::Instant;

use byzclip::{Clipping, Granularity, NormClass};
use serde::Serialize;

use super::batch_file::BatchFile;
use super::failure::{Failure, Outcome};
use super::options::{BackendArgs, WindowArgs};
use super::output;
use super::progress::Progress;
use super::rows::{self, Each, finite};
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
    let norms = stream.norms(&progress)?;
    stream.check_unchanged()?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    let ran = backend.ran();

    if json {
        let row = |row: usize| Row {
            norm: finite(norms.rows[row].value()),
            segments: match granularity {
                Granularity::Row | Granularity::Coordinate => Vec::new(),
                Granularity::Segment => layout
                    .segments_of(row)
                    .enumerate()
                    .map(|(i, segment)| Segment {
                        name: batch.layers.get(i).map(String::as_str),
                        norm: finite(norms.segments[segment].value()),
                    })
                    .collect(),
            },
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
    let shown = |norm: byzclip::Norm| match norm.class() {
        NormClass::NonFinite => "NaN or Inf".to_owned(),
        _ => rows::number(norm.value()),
    };
    let mut head = vec!["client", "norm"];
    let layers: Vec<String> = batch.layers.iter().map(|name| rows::printable(name)).collect();
    if args.per_layer {
        head.extend(layers.iter().map(String::as_str));
    }
    let cells = |row: usize| {
        let mut cells = vec![row.to_string(), shown(norms.rows[row])];
        if args.per_layer && !batch.layers.is_empty() {
            cells.extend(layout.segments_of(row).map(|segment| shown(norms.segments[segment])));
        }
        cells
    };
    let text = rows::table(&head, layout.clients(), cells);
    output::print(&format!(
        "{ran}\n{}, {}\n\n{text}\n{}\n",
        rows::count(layout.clients(), "client"),
        rows::count(layout.params(), "param"),
        rows::rate(batch.bytes(), seconds)
    ))?;
    Ok(Outcome::Success)
}
