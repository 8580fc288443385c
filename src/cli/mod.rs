//! The command line: this file parses, each subcommand has a file of its own.

// What they share:
//
// - Options: `options.rs` (where to run, windows, numbers), `calibration.rs`, `clipping.rs` with `threshold.rs`, `scope.rs`, and those that name
//   files: `state_file.rs`, `center.rs`, `weights.rs`.
// - Input: `batch_file.rs` on `npy.rs` and `safetensors.rs`, both on `input_file.rs`; `starts.rs` where the layers of each file begin;
//   `elements.rs` elements in the precision of the file.
// - The work: `stream/`, a batch in windows; `log.rs` and `row_log.rs` what is known of each row until it is asked for; `progress.rs`.
// - Output: `display.rs` words and tables, `shown.rs` which rows a table has, `rows.rs` rows in JSON; `output.rs` stdout and files that are
//   written whole or not at all, `batch_output.rs` clipped batches and means; `failure.rs` how a command ends.

mod analyze;
mod batch_file;
mod batch_output;
mod bench;
#[cfg(feature = "gpu")]
mod calibrate;
mod calibration;
mod center;
mod clip;
mod clipping;
mod devices;
mod display;
mod elements;
mod failure;
mod input_file;
mod log;
mod mean;
mod norms;
mod npy;
mod options;
mod output;
mod progress;
mod row_log;
mod rows;
mod safetensors;
mod scope;
mod shown;
mod starts;
mod state_file;
mod stream;
mod threshold;
mod train;
mod verify;
mod weights;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::failure::{Failure, Outcome};

/// Bounds what one client can do to a federated model: L2 norms of client updates, and scaling of those
/// above a bound, with the same bits on every GPU and CPU.
///
/// Without a command, `train` runs with its defaults.
#[derive(Debug, Parser)]
#[command(name = "byzclip", version, max_term_width = 100)]
struct Cli {
    /// Print one JSON object on stdout, and nothing else there; `bench` prints one a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the GPU adapters, their limits and features, and what `--backend auto` takes.
    Devices(devices::Args),
    /// Print the L2 norm of every client's update.
    Norms(norms::Args),
    /// Scale every update above a bound down to it, and write the result.
    Clip(clip::Args),
    /// Average the clipped updates, weighted, without writing any of them.
    Mean(mean::Args),
    /// Say what the norms of a batch look like, and which bound suits it.
    Analyze(analyze::Args),
    /// Check every adapter and the CPU, bit for bit, against exact arithmetic.
    Verify(verify::Args),
    /// Time norms and clipping, verified, beside plain loops and what the memory allows.
    Bench(bench::Args),
    /// Measure which shape of the kernels suits a GPU, and save it: same bits, other times.
    #[cfg(feature = "gpu")]
    Calibrate(calibrate::Args),
    /// Train a model with and without hostile clients, and with clipping.
    Train(train::Args),
}

/// Runs the command and turns its outcome into an exit code: 0, 1 for failures, 2 for wrong usage.
pub(crate) fn main() -> ExitCode {
    output::clean_up_when_interrupted();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let done = match cli.command.unwrap_or_else(|| Command::Train(train::Args::default())) {
        Command::Devices(args) => devices::run(&args, cli.json),
        Command::Norms(args) => norms::run(&args, cli.json),
        Command::Clip(args) => clip::run(&args, cli.json),
        Command::Mean(args) => mean::run(&args, cli.json),
        Command::Analyze(args) => analyze::run(&args, cli.json),
        Command::Verify(args) => verify::run(&args, cli.json),
        Command::Bench(args) => bench::run(&args, cli.json),
        #[cfg(feature = "gpu")]
        Command::Calibrate(args) => calibrate::run(&args, cli.json),
        Command::Train(args) => train::run(&args, cli.json),
    };
    match done {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Mismatch) => ExitCode::from(1),
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    }
}

/// Help and version go to stdout; anything else is one line on stderr.
fn not_parsed(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed stdout is the reader's choice.
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = String::new();
    for paragraph in text.split("\n\n").map(words) {
        if let Some(what) = paragraph.strip_prefix("error: ") {
            line.push_str(what);
        } else if let Some(tip) = paragraph.strip_prefix("tip: ").filter(|tip| !tip.contains("-- --")) {
            line.push_str(&format!("; {tip}"));
        } else if let Some(usage) = paragraph.strip_prefix("Usage: ") {
            line.push_str(&format!("; expected {usage}"));
        }
    }
    if !line.contains("expected") {
        line.push_str("; expected commands and options that byzclip knows");
    }
    let known = Cli::command();
    let command = std::env::args_os().skip(1).find(|arg| known.find_subcommand(arg).is_some());
    let command = command.map(|name| format!(" {}", name.display())).unwrap_or_default();
    let failure = Failure::Usage(format!("{line}; see byzclip{command} --help"));
    failure.print();
    failure.exit_code()
}
