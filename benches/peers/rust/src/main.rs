//! Times what people clip with in Rust on the cases of `byzclip bench`: a header, then one line of JSON a case.
//!
//! Shapes, data, exact results and the schema are byzclip's own (`byzclip::bench`). A result is held against the exact
//! one before it is timed, and the last timed one again. One that is wrong becomes a line with `verified: false` and
//! `error`, and exit code 1. A library that is not built or cannot run here is named on stderr and in the header.

mod ours;
mod peer;
#[cfg(feature = "burn")]
mod with_burn;
#[cfg(feature = "candle")]
mod with_candle;
#[cfg(feature = "ndarray")]
mod with_ndarray;

use std::io::Write;
use std::process::ExitCode;

use byzclip::bench::Settings;
use byzclip::bench::cases::{Batch, Case, SHAPES, Shape};
use clap::Parser;
use serde_json::{Map, Value, json};

use ours::Ours;
use peer::{Failure, Offers, Peer, Work, measure, version};

/// Runs that a median is taken of at least.
const RUNS: u32 = 9;

#[derive(Parser)]
#[command(about = "Times Rust libraries on the cases of `byzclip bench`; JSON lines")]
struct Args {
    /// Clients x parameters; again for more shapes.
    #[arg(long = "shape", value_name = "NxD", default_values_t = SHAPES)]
    shapes: Vec<Shape>,
    /// Shares of rows that are clipped, a case each.
    #[arg(long, value_delimiter = ',', default_value = "0,0.2,1", value_parser = parse_share)]
    clipped: Vec<f64>,
    /// Runs of each case at least, not below 9; whole turns are run.
    #[arg(long, default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(i64::from(RUNS)..))]
    runs: u32,
    /// Only libraries whose name contains this; again for more.
    #[arg(long = "library", value_name = "TEXT")]
    libraries: Vec<String>,
    /// Spoil every result: the check has to find it.
    #[arg(long)]
    inject_fault: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("byzclip-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let (mut peers, skipped) = available();
    if !args.libraries.is_empty() {
        peers.retain(|peer| args.libraries.iter().any(|text| peer.library().contains(text.as_str())));
    }
    if peers.is_empty() {
        return Err("got no library to time; expected one; see --library and the package's features".into());
    }
    let versions = peers.iter().map(|peer| Ok((peer.library().to_owned(), version(peer.package())?.into())));
    emit(&json!({
        "format": "byzclip-peers-1",
        "program": "byzclip-peers",
        "versions": versions.collect::<Result<Map<String, Value>, Failure>>()?,
        "skipped": skipped,
    }))?;

    let mut ours = Ours::new()?;
    let (mut wrong, mut lines) = (0, 0);
    for &shape in &args.shapes {
        let mut batch: Batch = Batch::new(shape)?;
        for case in cases(args) {
            let mut work = Work::new(batch, case)?;
            for peer in &mut peers {
                let line =
                    measure(peer.as_mut(), &mut ours, &mut work, args.runs as usize, args.inject_fault)?;
                let verdict = match &line["error"] {
                    Value::String(error) => error.clone(),
                    _ => {
                        let ratio =
                            line["by_ours"].as_f64().map(|ratio| format!(", ours / theirs {ratio:.2}"));
                        format!(
                            "{:.2} GB/s{}",
                            line["gb_per_s"].as_f64().unwrap_or(f64::NAN),
                            ratio.unwrap_or_default()
                        )
                    }
                };
                eprintln!("byzclip-peers: {shape}, {case}, {}: {verdict}", peer.library());
                wrong += usize::from(line["verified"] != true);
                lines += 1;
                emit(&line)?;
            }
            batch = work.batch;
        }
    }
    if args.inject_fault {
        return Err(format!("every result was spoiled; the check found {wrong} of {lines}").into());
    }
    if wrong > 0 {
        return Err(format!("got {wrong} wrong results; expected none; see the lines with an error").into());
    }
    Ok(())
}

/// The cases of `byzclip bench`, but for that with rows out of scope, which is ours alone.
fn cases(args: &Args) -> Vec<Case> {
    let settings = Settings { clipped: args.clipped.clone(), scope_share: 0.0, runs: args.runs as usize };
    settings.cases().into_iter().filter(|case| case.scope == 1.0).collect()
}

/// The peers that can run here, and why the others cannot.
fn available() -> (Vec<Box<dyn Peer>>, Map<String, Value>) {
    let families: [fn() -> Offers; 3] = [
        #[cfg(feature = "ndarray")]
        with_ndarray::peers,
        #[cfg(not(feature = "ndarray"))]
        || vec![("ndarray", Err("not built; add --features ndarray".into()))],
        #[cfg(feature = "candle")]
        with_candle::peers,
        #[cfg(not(feature = "candle"))]
        || vec![("candle", Err("not built; add --features candle".into()))],
        #[cfg(feature = "burn")]
        with_burn::peers,
        #[cfg(not(feature = "burn"))]
        || vec![("burn", Err("not built; add --features burn".into()))],
    ];
    let (mut peers, mut skipped) = (Vec::new(), Map::new());
    for (name, found) in families.iter().flat_map(|found| found()) {
        match found {
            Ok(peer) => peers.push(peer),
            Err(why) => {
                eprintln!("byzclip-peers: SKIPPED {name}: {why}");
                skipped.insert(name.into(), why.to_string().into());
            }
        }
    }
    (peers, skipped)
}

fn emit(line: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "expected a share from 0 to 1, such as 0.2".into())
}
