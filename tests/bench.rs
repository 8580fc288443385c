//! `byzclip bench`, run as a program on small batches: what it reports, and that a wrong result stops it.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[cfg(feature = "gpu")]
mod common;

/// Rows of a multiple of four elements, and rows that begin anywhere.
const SHAPES: [(u64, u64); 2] = [(20, 1000), (7, 20_001)];

/// Runs the command on [`SHAPES`] with half of the rows in scope, but for what `args` set.
fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byzclip"));
    command.arg("bench").args(args).env("BYZCLIP_CALIBRATION", "off").stdin(Stdio::null());
    for (option, value) in [("--shape", "20x1000"), ("--shape", "7x20001"), ("--scope-share", "0.5")] {
        if !args.contains(&option) {
            command.args([option, value]);
        }
    }
    command.output().unwrap()
}

fn records(args: &[&str]) -> Vec<Value> {
    let output = bench(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Options that say where to run, and the methods and libraries of the records that come from there.
type Place = (Vec<String>, Vec<(&'static str, &'static str)>);

fn places() -> Vec<Place> {
    let on = |backend: &str| vec!["--backend".to_owned(), backend.to_owned()];
    let host = vec![("host", "byzclip"), ("host", "plain")];
    #[allow(unused_mut, reason = "without the feature gpu there is no more")]
    let mut places = vec![(on("cpu"), host.clone()), (on("reference"), host)];
    #[cfg(feature = "gpu")]
    if let Some(adapter) = common::gpu::adapter() {
        let name = vec!["--adapter".to_owned(), adapter.get_info().name];
        places.push((name, vec![("device", "byzclip"), ("device", "plain"), ("host", "byzclip")]));
    }
    places
}

/// How many cases there are; the last is the mean, for which there are no plain kernels on a device.
fn cases_of(method: &str, library: &str) -> usize {
    if (method, library) == ("device", "plain") { 5 } else { 6 }
}

fn all_cases(methods: &[(&'static str, &'static str)]) -> usize {
    methods.iter().map(|(method, library)| cases_of(method, library)).sum()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The records of a shape, a method and a library, in order.
fn of<'a>(records: &'a [Value], shape: (u64, u64), method: &str, library: &str) -> Vec<&'a Value> {
    let of = |r: &&Value| {
        (r["clients"].as_u64(), r["params"].as_u64()) == (Some(shape.0), Some(shape.1))
            && (r["method"] == method && r["library"] == library)
    };
    records.iter().filter(of).collect()
}

#[test]
fn every_case_of_every_shape_is_reported_by_every_method() {
    for (args, methods) in places() {
        let records = records(&words(&args));
        for shape in SHAPES {
            for ceiling in ["read", "copy", "scale"] {
                let found = of(&records, shape, ceiling, "plain");
                assert_eq!(found.len(), 1, "{args:?}, {ceiling}");
                assert_eq!(found[0]["case"], "ceiling");
            }
            for (method, library) in &methods {
                let cases: Vec<_> = of(&records, shape, method, library)
                    .iter()
                    .map(|r| {
                        (r["case"].as_str().unwrap(), r["clipped"].as_f64(), r["scope"].as_f64().unwrap())
                    })
                    .collect();
                let expected = [
                    ("norms", None, 1.0),
                    ("clip", Some(0.0), 1.0),
                    ("clip", Some(0.2), 1.0),
                    ("clip", Some(1.0), 1.0),
                    ("clip", Some(1.0), 0.5),
                    ("mean", Some(0.2), 1.0),
                ];
                assert_eq!(cases, expected[..cases_of(method, library)], "{args:?}, {method}, {library}");
            }
        }
        assert_eq!(records.len(), SHAPES.len() * (3 + all_cases(&methods)), "{args:?}");
    }
}

/// Rows that begin at a multiple of four halves, and at a multiple of two: on a device no word belongs to two rows.
const OF_HALVES: [&str; 4] = ["--shape", "20x1000", "--shape", "6x20002"];

#[test]
fn every_case_is_reported_for_every_type_of_elements_with_its_bytes() {
    for (args, methods) in places() {
        let types = ["--dtype", "f32", "--dtype", "f16", "--dtype", "bf16"];
        let all = records(&[&words(&args)[..], &types, &OF_HALVES].concat());
        assert_eq!(all.len(), 3 * 2 * (3 + all_cases(&methods)), "{args:?}");
        let of_type = |dtype: &str| -> Vec<&Value> { all.iter().filter(|r| r["dtype"] == dtype).collect() };
        let singles = of_type("f32");
        for dtype in ["f16", "bf16"] {
            let halves = of_type(dtype);
            assert_eq!(halves.len(), singles.len(), "{args:?}, {dtype}");
            for (half, single) in halves.iter().zip(&singles) {
                for field in
                    ["library", "method", "clients", "params", "case", "clipped", "scope", "verified"]
                {
                    assert_eq!(half[field], single[field], "{args:?}, {dtype}");
                }
                assert_eq!(half["share"].is_number(), single["share"].is_number(), "{half}");
                assert_eq!(half["by_f32"].is_number(), half["library"] == "byzclip", "{half}");
                // A mean has f32 whatever it is of.
                let mean = if half["case"] == "mean" { 4 * half["params"].as_u64().unwrap() } else { 0 };
                let bytes = |record: &Value| record["bytes"].as_u64().unwrap() - mean;
                assert_eq!(2 * bytes(half), bytes(single), "{half}");
            }
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn rows_of_halves_that_share_words_on_a_device_are_refused() {
    let Some(adapter) = common::gpu::adapter() else { return };
    let name = adapter.get_info().name;
    let output = bench(&["--adapter", &name, "--dtype", "bf16", "--shape", "3x5"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.len() < 1000, "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("3x5 in bf16") && stderr.contains("expected an even number"), "{stderr}");
}

#[test]
fn records_have_every_field_and_their_figures_agree() {
    let fields = [
        "format",
        "library",
        "version",
        "method",
        "backend",
        "device",
        "driver",
        "calibrated",
        "clients",
        "params",
        "dtype",
        "case",
        "clipped",
        "scope",
        "runs",
        "median_s",
        "min_s",
        "max_s",
        "bytes",
        "gb_per_s",
        "share",
        "by_plain",
        "by_f32",
        "device_median_s",
        "submit_median_s",
        "verified",
    ];
    for (args, _) in places() {
        for record in records(&words(&args)) {
            let keys: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
            let mut expected = fields.to_vec();
            expected.sort_unstable();
            assert_eq!(keys, expected);
            let number = |field: &str| record[field].as_f64().unwrap();
            assert_eq!(
                (record["format"].as_str(), record["verified"].as_bool()),
                (Some("byzclip-bench-1"), Some(true))
            );
            // Ceilings of a device are measured before the cases and behind them.
            let is_twice = record["case"] == "ceiling" && record["backend"] == "gpu";
            let runs = if is_twice { 18.0 } else { 9.0 };
            assert_eq!((number("runs"), record["dtype"].as_str()), (runs, Some("f32")));
            assert!(0.0 < number("min_s") && number("min_s") <= number("median_s"), "{record}");
            assert!(number("median_s") <= number("max_s"), "{record}");
            let rate = number("bytes") / number("median_s") / 1e9;
            assert!((number("gb_per_s") - rate).abs() <= 1e-9 * rate, "{record}");
            let from_host_to_gpu = record["backend"] == "gpu" && record["method"] == "host";
            let has_share = record["case"] != "ceiling" && !from_host_to_gpu;
            assert_eq!(record["share"].is_number(), has_share, "{record}");
            let beside_plain = record["case"] != "mean" || record["method"] != "device";
            let has_ratio = has_share && record["library"] == "byzclip" && beside_plain;
            assert_eq!(
                (record["by_plain"].is_number(), record["by_f32"].is_null()),
                (has_ratio, true),
                "{record}"
            );
            assert_eq!(
                record["submit_median_s"].is_number(),
                record["backend"] == "gpu" && !from_host_to_gpu
            );
        }
    }
}

#[test]
fn bytes_are_those_that_one_pass_needs() {
    let records = records(&["--backend", "cpu"]);
    // 20 rows of 4,000 bytes: read; read; 4 of them written too; all of them; half in scope and written; read, and one written.
    let bytes = of(&records, SHAPES[0], "host", "byzclip")
        .iter()
        .map(|r| r["bytes"].as_u64().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(bytes, [80_000, 80_000, 96_000, 160_000, 80_000, 84_000]);
    let ceilings =
        ["read", "copy", "scale"].map(|c| of(&records, SHAPES[0], c, "plain")[0]["bytes"].as_u64());
    assert_eq!(ceilings, [Some(80_000), Some(160_000), Some(160_000)]);
}

#[test]
fn a_wrong_bit_stops_the_benchmark() {
    let cases = places().into_iter().flat_map(|(args, _)| ["f32", "f16", "bf16"].map(|t| (args.clone(), t)));
    for (args, dtype) in cases {
        let options = [&["--inject-fault", "--json", "--dtype", dtype][..], &OF_HALVES].concat();
        let output = bench(&[&words(&args)[..], &options].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.starts_with("byzclip: clip differs from the reference"), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        // Nothing of a shape that failed is reported.
        assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn a_wrong_bit_of_a_mean_stops_the_benchmark() {
    for (args, _) in places() {
        // Where no clip writes a row, the first bit that can be spoiled is one of the mean.
        let options = ["--clipped", "0", "--scope-share", "0", "--inject-fault"];
        let output = bench(&[&words(&args)[..], &options].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.starts_with("byzclip: mean differs from the reference"), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

#[test]
fn the_table_has_a_line_for_every_case() {
    for (args, _) in places() {
        let output = bench(&words(&args));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        for word in
            ["20x1000 in f32, 0.1 MB; read ", "copy ", "scale ", "ours/plain", "share", "min", "max", "GB/s"]
        {
            assert!(text.contains(word), "\"{word}\" is not in:\n{text}");
        }
        for case in ["norms", "clip 0 %", "clip 20 %", "clip 100 %", "clip, 50 % in scope", "mean 20 %"] {
            let lines = text.lines().filter(|line| line.trim_start().starts_with(case)).count();
            assert!(lines >= SHAPES.len(), "{case} in:\n{text}");
        }
    }
}

#[test]
fn halves_are_set_against_f32_where_both_are_measured() {
    let of_types = |types: &[&str]| {
        let output = bench(&[&["--backend", "cpu", "--shape", "20x1000"], types].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let both = of_types(&["--dtype", "f16", "--dtype", "f32"]);
    assert_eq!(both.matches("rows/s of f32's").count(), 1, "{both}");
    let table = both.split("20x1000 in ").find(|table| table.starts_with("f16")).unwrap();
    for line in table.lines().filter(|line| line.contains(" host ")) {
        let ratio: f64 = line.split_whitespace().last().unwrap().parse().unwrap();
        assert!(ratio > 0.0, "{line}");
    }
    assert!(!of_types(&["--dtype", "f16"]).contains("rows/s"));
}

#[test]
fn options_that_measure_nothing_are_refused() {
    for args in [
        ["--shape", "0x5"],
        ["--shape", "5"],
        ["--dtype", "f64"],
        ["--runs", "8"],
        ["--clipped", "0.5,2"],
        ["--scope-share", "nan"],
    ] {
        let output = bench(&[&args[..], &["--backend", "cpu"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains("expected"), "{args:?}: {stderr}");
    }
}
