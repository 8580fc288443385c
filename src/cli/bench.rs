//! `byzclip bench`: what norms, clipping and means take, beside plain loops and what the memory allows.

use byzclip::bench::Settings;
use byzclip::bench::cases::{SHAPES, Shape};
use byzclip::bench::element::Dtype;
use byzclip::bench::measure::Record;

use super::failure::{Failure, Outcome};
use super::options::BackendArgs;
use super::{display, output, progress};

/// Runs that a median is taken of at least.
const RUNS: u32 = 9;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Clients x parameters; again for more shapes.
    #[arg(long = "shape", value_name = "NxD", default_values_t = SHAPES)]
    shapes: Vec<Shape>,
    /// What elements are stored as: f32, f16 or bf16; again for more.
    #[arg(long = "dtype", value_name = "TYPE", default_values_t = [Dtype::F32])]
    dtypes: Vec<Dtype>,
    /// Shares of rows that are clipped, a case each.
    #[arg(long, value_name = "SHARES", allow_hyphen_values = true, value_delimiter = ',', default_value = "0,0.2,1", value_parser = parse_share)]
    clipped: Vec<f64>,
    /// The share of rows in scope, all of them clipped, of one more case.
    #[arg(long, allow_hyphen_values = true, value_name = "SHARE", default_value = "0.1", value_parser = parse_share)]
    scope_share: f64,
    #[command(flatten)]
    backend: BackendArgs,
    /// Runs of each case, at least 9.
    #[arg(long, allow_hyphen_values = true, value_name = "N", default_value_t = RUNS, value_parser = parse_runs)]
    runs: u32,
    /// Spoil one bit of one result, to see that the verification finds it (exit code 1).
    #[arg(long, hide = true)]
    inject_fault: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let settings =
        Settings { clipped: args.clipped.clone(), scope_share: args.scope_share, runs: args.runs as usize };
    let subject = args.backend.subject()?;
    let mut fault = args.inject_fault;
    if !json {
        output::print(&format!("{}\n{LEGEND}\n", subject.ran()))?;
    }
    let bar =
        progress::bar((args.shapes.len() * subject.steps(&settings, args.dtypes.len())) as u64, "measuring");
    for &shape in &args.shapes {
        let mut begins = |what: &str| {
            bar.set_message(what.to_owned());
            bar.inc(1);
        };
        let records = match subject.measure(shape, &args.dtypes, &settings, &mut fault, &mut begins) {
            Ok(records) => records,
            Err(error) => {
                // The line that says why stands alone.
                bar.finish_and_clear();
                return Err(error.into());
            }
        };
        bar.suspend(|| {
            if json {
                records.iter().try_for_each(output::print_json)
            } else {
                args.dtypes.iter().try_for_each(|&dtype| output::print(&table(shape, dtype, &records)))
            }
        })?;
    }
    bar.finish_and_clear();
    if args.inject_fault {
        let message = "got no mismatch from an injected fault; expected one; do not trust these figures";
        return Err(Failure::Failed(message.into()));
    }
    Ok(Outcome::Success)
}

/// What the columns mean.
const LEGEND: &str = "every case verified bit for bit; GB/s: the bytes that one pass needs, by the median; \
                      share: of our\ntime, what this memory allows; plain: an f32 sum and a multiplication, \
                      without exactness";

fn parse_runs(text: &str) -> Result<u32, String> {
    text.parse::<u32>()
        .ok()
        .filter(|runs| *runs >= RUNS)
        .ok_or_else(|| format!("expected {RUNS} runs or more, because a median of fewer says little"))
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "expected a share from 0 to 1, such as 0.2".into())
}

/// The figures of a shape and type of elements, among the records of all types.
fn table(shape: Shape, dtype: Dtype, records: &[Record]) -> String {
    let of_type = records.iter().filter(|record| record.dtype == dtype.name());
    let (ceilings, measured): (Vec<&Record>, Vec<_>) = of_type.partition(|record| record.case == "ceiling");
    let ceilings = ceilings.iter().map(|c| format!("{} {:.1} GB/s", c.method, c.gb_per_s));
    let bytes = shape.elements() as f64 * dtype.bytes() as f64;
    let mut text =
        format!("\n{shape} in {dtype}, {:.1} MB; {}\n", bytes / 1e6, ceilings.collect::<Vec<_>>().join(", "));

    let ours: Vec<&Record> = measured.iter().copied().filter(|record| record.library == "byzclip").collect();
    let is_plain_of = |ours: &Record, other: &Record| other.library == "plain" && other.is_case_of(ours);
    let plain_of = |ours: &Record| measured.iter().copied().find(|other| is_plain_of(ours, other));
    let has_singles = ours.iter().any(|record| record.by_f32.is_some());
    let on_device = ours.iter().any(|record| record.submit_median_s.is_some());
    let mut head = vec!["case", "from", "median", "min", "max", "GB/s", "share", "plain", "ours/plain"];
    if has_singles {
        head.push("rows/s of f32's");
    }
    if on_device {
        head.extend(["device clock", "submit"]);
    }
    let cells = |row: usize| {
        let record = ours[row];
        let plain = plain_of(record);
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let mut cells = vec![
            case(record),
            record.method.into(),
            time(record.median_s),
            time(record.min_s),
            time(record.max_s),
            format!("{:.2}", record.gb_per_s),
            shown(record.share.map(|share| format!("{:.0} %", share * 100.0))),
            shown(plain.map(|plain| time(plain.median_s))),
            shown(record.by_plain.map(|ratio| format!("{ratio:.2}"))),
        ];
        if has_singles {
            cells.push(shown(record.by_f32.map(|ratio| format!("{ratio:.2}"))));
        }
        if on_device {
            cells.extend([shown(record.device_median_s.map(time)), shown(record.submit_median_s.map(time))]);
        }
        cells
    };
    text.push_str(&display::table(&head, ours.len(), cells));
    text
}

/// The case in words.
fn case(record: &Record) -> String {
    let percent = |share: f64| (share * 1e6).round() / 1e4;
    match record.clipped {
        None => record.case.to_owned(),
        Some(_) if record.scope < 1.0 => format!("{}, {} % in scope", record.case, percent(record.scope)),
        Some(clipped) => format!("{} {} %", record.case, percent(clipped)),
    }
}

/// Seconds for a person.
fn time(seconds: f64) -> String {
    match seconds {
        _ if seconds >= 1.0 => format!("{seconds:.2} s"),
        _ if seconds >= 1e-3 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.1} us", seconds * 1e6),
    }
}
