//! The command line, run as a program: what it prints, what it leaves, and how it fails.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use byzclip::{Backend, Clipping, Granularity, Layout, Reference};
use serde_json::{Value, json};
use tempfile::TempDir;

#[cfg(feature = "gpu")]
mod common;

fn byzclip(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byzclip"));
    command.current_dir(folder).args(args).env_remove("D2_ADVERSARY_CLIP_FACTOR").stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs what must succeed, and parses the one line of JSON it prints.
fn json_of(folder: &Path, args: &[&str]) -> Value {
    let output = byzclip(folder, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{args:?}: {stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Runs what must fail: the exit code, one line on stderr with these words, nothing on stdout, and no
/// file more or other than before.
fn fails(folder: &Path, args: &[&str], code: i32, words: &[&str]) {
    let before = contents(folder);
    let output = byzclip(folder, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("byzclip: "), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: \"{word}\" is not in: {stderr}");
    }
    // What is expected, and what to do about it.
    assert!(stderr.contains("expected") || stderr.contains("cannot"), "{args:?}: {stderr}");
    assert!(stderr.contains("; "), "{args:?}: no remedy: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    assert!(contents(folder) == before, "{args:?} left something behind");
}

/// Every file below a folder, with what it holds.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn npy_header(dictionary: &str) -> Vec<u8> {
    let text = format!("{dictionary:117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
    let mut bytes = npy_header(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"));
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn values_of(bytes: &[u8], header: usize) -> Vec<f32> {
    bytes[header..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A safetensors file: tensors in this order, with metadata.
fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])], metadata: &Value) -> Vec<u8> {
    let mut entries = vec![format!("\"__metadata__\":{metadata}")];
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        entries.push(format!(
            "{}:{}",
            json!(name),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets })
        ));
        data.extend(*bytes);
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f32_at(value: &Value) -> f32 {
    // The text, read as an f32: what JSON holds must read back to the same bits.
    value.to_string().parse().unwrap()
}

/// Five clients: honest, boosted, tiny, broken, boosted.
fn five() -> (Vec<f32>, Layout) {
    let mut data: Vec<f32> = (0..5 * 7).map(|i| ((i * 37 % 11) as f32 - 5.0) * 0.1).collect();
    data[7..14].iter_mut().for_each(|v| *v *= 1e3);
    data[14..21].iter_mut().for_each(|v| *v *= 1e-30);
    data[23] = f32::NAN;
    data[28..].iter_mut().for_each(|v| *v *= 77.7);
    (data, Layout::dense(5, 7).unwrap())
}

fn folder_with_five() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in.npy"), npy("(5, 7)", &five().0)).unwrap();
    folder
}

#[test]
fn clip_writes_what_the_reference_says_and_reports_it() {
    let folder = folder_with_five();
    let (mut data, layout) = five();
    let report = Reference.run(&layout, &mut data, &Clipping::fixed(1.5)).unwrap();
    for backend in ["cpu", "reference", "auto"] {
        let args = ["clip", "in.npy", "-o", "out.npy", "--max-norm", "1.5", "--backend", backend];
        let printed = json_of(folder.path(), &args);
        assert_eq!(fs::read(folder.path().join("out.npy")).unwrap(), npy("(5, 7)", &data), "{backend}");
        assert_eq!((printed["clients"].as_u64(), printed["params"].as_u64()), (Some(5), Some(7)));
        assert_eq!((printed["clipped"].as_u64(), printed["zeroed"].as_u64()), (Some(2), Some(1)));
        for (got, row) in printed["rows"].as_array().unwrap().iter().zip(&report.rows) {
            assert_eq!(got["status"], row.status.name());
            assert_eq!(f32_at(&got["bound"]), 1.5);
            assert_eq!(f64::from(f32_at(&got["factor"])), row.factor);
            match row.norm.is_finite() {
                true => assert_eq!(f32_at(&got["norm"]).to_bits(), row.norm.to_bits()),
                false => assert_eq!(got["norm"], Value::Null),
            }
        }
    }
    let cpu = json_of(folder.path(), &["norms", "in.npy", "--backend", "cpu"]);
    assert_eq!((&cpu["backend"], &cpu["adapter"]), (&json!("cpu"), &Value::Null));
    assert_eq!(f32_at(&cpu["rows"][1]["norm"]).to_bits(), report.rows[1].norm.to_bits());
    assert_eq!(cpu["rows"][3]["norm"], Value::Null);
}

#[test]
fn shapes_of_all_kinds_keep_their_header() {
    let folder = TempDir::new().unwrap();
    let mut version_2 = b"\x93NUMPY\x02\x00\x40\x00\x00\x00".to_vec();
    version_2.extend(format!("{:63}\n", "{'shape':(1,2),'descr':'<f4','fortran_order':False}").bytes());
    version_2.extend(bytes(&[3.0, 4.0]));
    let cases = [
        (npy("(2,)", &[3.0, 4.0]), 1, 2),
        (npy("(0, 5)", &[]), 0, 5),
        (npy("(5, 0)", &[]), 5, 0),
        (npy("(0,)", &[]), 1, 0),
        (npy_header("{'descr': '<f4', 'fortran_order': True, 'shape': (0,), }"), 1, 0),
        (version_2, 1, 2),
    ];
    for (file, clients, params) in cases {
        fs::write(folder.path().join("in.npy"), &file).unwrap();
        let printed = json_of(folder.path(), &["clip", "in.npy", "-o", "out.npy", "--max-norm", "5"]);
        assert_eq!((printed["clients"].as_u64(), printed["params"].as_u64()), (Some(clients), Some(params)));
        assert_eq!(fs::read(folder.path().join("out.npy")).unwrap(), file);
    }
}

#[test]
fn scopes_and_policies_do_what_they_say() {
    let folder = folder_with_five();
    let statuses = |args: &[&str]| -> Vec<String> {
        let args = [&["clip", "in.npy", "-o", "out.npy", "--max-norm", "1.5"], args].concat();
        let printed = json_of(folder.path(), &args);
        printed["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["status"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        statuses(&["--scope", "rows:0,3-4"]),
        ["untouched", "out_of_scope", "out_of_scope", "zeroed", "clipped"]
    );
    let before = values_of(&fs::read(folder.path().join("in.npy")).unwrap(), 128);
    let after = values_of(&fs::read(folder.path().join("out.npy")).unwrap(), 128);
    assert_eq!(bytes(&before[..21]), bytes(&after[..21]));
    assert_eq!(statuses(&["--non-finite", "keep"]), ["untouched", "clipped", "untouched", "kept", "clipped"]);
    assert_eq!(statuses(&["--scope", "rows:"]), ["out_of_scope"; 5]);
    fails(
        folder.path(),
        &["clip", "in.npy", "-o", "out.npy", "--max-norm", "1", "--non-finite", "error"],
        1,
        &["row 3", "NaN or Inf", "drop that client"],
    );
}

#[test]
fn an_infinite_bound_clips_nothing_and_is_a_string() {
    let folder = folder_with_five();
    let printed = json_of(folder.path(), &["clip", "in.npy", "-o", "out.npy", "--max-norm", "inf"]);
    assert_eq!(printed["rows"][1]["bound"], "inf");
    assert_eq!(printed["clipped"].as_u64(), Some(0));
}

#[test]
fn safetensors_keep_names_metadata_and_order_and_layers_come_in_name_order() {
    let folder = TempDir::new().unwrap();
    let metadata = json!({ "format": "pt", "round": "7" });
    let client = |scale: f32| {
        let (weight, bias) = (bytes(&[3.0 * scale, 0.0, 0.0, 4.0 * scale]), bytes(&[12.0 * scale]));
        // Not in name order, and one tensor is empty.
        safetensors(
            &[("w", "F32", &[2, 2], &weight), ("b", "F32", &[1], &bias), ("none", "F32", &[0, 3], &[])],
            &metadata,
        )
    };
    fs::write(folder.path().join("a.safetensors"), client(1.0)).unwrap();
    fs::write(folder.path().join("b.safetensors"), client(0.01)).unwrap();
    let files = ["a.safetensors", "b.safetensors"];

    let printed = json_of(folder.path(), &["norms", files[0], files[1], "--per-layer"]);
    assert_eq!(f32_at(&printed["rows"][0]["norm"]), 13.0);
    let layers: Vec<_> = printed["rows"][0]["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap().to_owned(), f32_at(&s["norm"])))
        .collect();
    assert_eq!(layers, [("b".into(), 12.0), ("none".into(), 0.0), ("w".into(), 5.0)]);

    let args = ["clip", files[0], files[1], "-o", "out", "--max-norm", "6", "--per-layer"];
    let printed = json_of(folder.path(), &args);
    assert_eq!(printed["params"].as_u64(), Some(5));
    assert_eq!(printed["rows"][0]["segments"][0]["status"], "clipped");
    assert_eq!(printed["rows"][0]["segments"][2]["status"], "untouched");
    let (before, after) = (client(1.0), fs::read(folder.path().join("out/a.safetensors")).unwrap());
    let header = before.len() - 20;
    assert_eq!(before[..header + 16], after[..header + 16], "header and the untouched layer");
    let bias = values_of(&after, before.len() - 4)[0];
    assert!(bias <= 6.0 && bias > 5.9999, "{bias}");
    assert_eq!(client(0.01), fs::read(folder.path().join("out/b.safetensors")).unwrap());
}

#[test]
fn layers_share_a_total_as_asked() {
    let folder = TempDir::new().unwrap();
    let file = safetensors(
        &[("a", "F32", &[4], &bytes(&[9.0; 4])), ("b", "F32", &[12], &bytes(&[9.0; 12]))],
        &json!({}),
    );
    fs::write(folder.path().join("a.safetensors"), file).unwrap();
    let bounds = |split: &str| -> Vec<f32> {
        let flag = format!("--per-layer={split}");
        let printed =
            json_of(folder.path(), &["clip", "a.safetensors", "-o", "out", "--max-norm", "4", &flag]);
        printed["rows"][0]["segments"].as_array().unwrap().iter().map(|s| f32_at(&s["bound"])).collect()
    };
    assert_eq!(bounds("own"), [4.0, 4.0]);
    assert_eq!(bounds("split-equal"), [2.828_427, 2.828_427]);
    assert_eq!(bounds("split-by-size"), [2.0, 3.464_101_6]);
}

#[test]
fn coordinates_are_cut() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in.npy"), npy("(2, 2)", &[3.0, -0.25, 0.5, 0.1])).unwrap();
    let printed = json_of(folder.path(), &["clip", "in.npy", "-o", "out.npy", "--per-coordinate", "0.5"]);
    assert_eq!(fs::read(folder.path().join("out.npy")).unwrap(), npy("(2, 2)", &[0.5, -0.25, 0.5, 0.1]));
    assert_eq!((f32_at(&printed["rows"][0]["norm"]), printed["clipped"].as_u64()), (3.0, Some(1)));
    let both = ["clip", "in.npy", "-o", "out.npy", "--per-coordinate", "0.5", "--max-norm", "1"];
    fails(folder.path(), &both, 2, &["cannot be used with"]);
}

#[test]
fn thresholds_look_at_the_batch_and_remember() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in.npy"), npy("(5, 1)", &[1.0, 2.0, 3.0, 4.0, 50.0])).unwrap();
    let bound = |policy: &str, more: &[&str]| {
        let args = [&["clip", "in.npy", "-o", "out.npy", "--threshold", policy], more].concat();
        f32_at(&json_of(folder.path(), &args)["rows"][0]["bound"])
    };
    assert_eq!(bound("fixed:2.5", &[]), 2.5);
    assert_eq!(bound("median:2", &[]), 6.0);
    assert_eq!(bound("quantile:0.8", &[]), 4.0);
    assert_eq!(bound("arc:f=1", &[]), 4.0);
    let state = ["--state", "state.json"];
    assert_eq!(bound("adaptive:c0=1,target=0.8,rate=0.2", &state), 1.0);
    let second = bound("adaptive:c0=1,target=0.8,rate=0.2", &state);
    // One norm of five was at or below 1: C · exp(−0.2 · (0.2 − 0.8)).
    assert!((second - 1.127_497).abs() < 2e-7, "{second}");

    let args = ["clip", "in.npy", "-o", "out.npy", "--threshold", "median:2", "--state", "state.json"];
    fails(folder.path(), &args, 1, &["the state of adaptive", "median:2", "begin anew"]);
    fs::write(folder.path().join("state.json"), "{}").unwrap();
    fails(folder.path(), &args, 1, &["state.json", "a state that byzclip wrote"]);
}

#[test]
fn files_that_are_no_updates_are_refused() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let good = npy("(2, 3)", &[1.0; 6]);
    let dictionary = |text: &str| npy_header(text);
    let f64_header = dictionary("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1), }");
    let big = dictionary("{'descr': '>f4', 'fortran_order': False, 'shape': (1, 1), }");
    let fortran = dictionary("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }");
    let huge = dictionary("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 3), }");
    let lying = dictionary("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }");
    let many = dictionary("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 0), }");
    let nested = dictionary(&format!("{{'descr': '<f4', 'shape': {}", "(".repeat(60)));
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend(u32::MAX.to_le_bytes());
    let mut not_text = good.clone();
    not_text[20] = 0xff;
    let cases: [(&str, &[u8], &str); 15] = [
        ("empty", &[], "truncated header"),
        ("short", &good[..9], "truncated header"),
        ("truncated", &good[..good.len() - 1], "truncated"),
        ("long", &[&good[..], &[0; 4]].concat(), "longer than its header says"),
        ("other", b"not an npy file at all", "wrong magic"),
        ("f64", &f64_header, "'<f8'"),
        ("big", &big, "'>f4'"),
        ("fortran", &fortran, "Fortran order"),
        ("three", &npy("(2, 3, 1)", &[1.0; 6]), "3 dimensions"),
        ("scalar", &npy("()", &[1.0]), "0 dimensions"),
        ("huge", &huge, "fits the address space"),
        ("lying", &lying, "truncated"),
        ("many", &many, "without params"),
        ("nested", &nested, "where"),
        ("header", &long, "4294967295 bytes"),
    ];
    for (name, file, words) in cases {
        fs::write(here.join("in.npy"), file).unwrap();
        let args = ["clip", "in.npy", "-o", "out.npy", "--max-norm", "1"];
        fails(here, &args, 1, &["in.npy", words]);
        assert!(!name.is_empty());
    }
    fs::write(here.join("in.npy"), not_text).unwrap();
    fails(here, &["norms", "in.npy"], 1, &["not text"]);
    fails(here, &["norms", "missing.npy"], 1, &["missing.npy", "check the path"]);
    fs::create_dir(here.join("folder.npy")).unwrap();
    fails(here, &["norms", "folder.npy"], 1, &["folder.npy"]);
}

#[test]
fn safetensors_that_do_not_fit_are_refused() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let one = bytes(&[1.0, 2.0]);
    let write = |name: &str, file: &[u8]| fs::write(here.join(name), file).unwrap();
    let good = safetensors(&[("w", "F32", &[2], &one)], &json!({}));
    write("a.safetensors", &good);
    let cases: [(Vec<u8>, &str); 8] = [
        (good[..good.len() - 1].to_vec(), "whole safetensors file"),
        (good[..5].to_vec(), "whole safetensors file"),
        ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "whole safetensors file"),
        ([&4u64.to_le_bytes()[..], b"oops"].concat(), "whole safetensors file"),
        (safetensors(&[("v", "F32", &[2], &one)], &json!({})), "no tensor 'w'"),
        (safetensors(&[("w", "F32", &[2, 1], &one)], &json!({})), "shape [2, 1]"),
        (
            safetensors(&[("w", "F32", &[2], &one), ("x", "F32", &[2], &one)], &json!({})),
            "additional tensor 'x'",
        ),
        (safetensors(&[("w", "F16", &[4], &one)], &json!({})), "F16"),
    ];
    for (file, words) in cases {
        write("b.safetensors", &file);
        let args = ["clip", "a.safetensors", "b.safetensors", "-o", "out", "--max-norm", "1"];
        fails(here, &args, 1, &["b.safetensors", words]);
    }
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let folder = folder_with_five();
    let here = folder.path();
    fs::write(here.join("a.safetensors"), safetensors(&[], &json!({}))).unwrap();
    fs::create_dir(here.join("sub")).unwrap();
    fs::write(here.join("sub/a.safetensors"), safetensors(&[], &json!({}))).unwrap();
    let clip = |more: &[&'static str]| [&["clip", "in.npy", "-o", "out.npy"], more].concat();
    fails(here, &clip(&["--max-norm", "nan"]), 2, &["nan", "a number >= 0"]);
    fails(here, &clip(&["--max-norm", "-1"]), 2, &["-1", "a number >= 0"]);
    fails(here, &clip(&["--max-norm=two"]), 2, &["two"]);
    fails(here, &clip(&[]), 2, &["--max-norm L or --threshold"]);
    fails(here, &clip(&["--max-norm", "1", "--threshold", "median:2"]), 2, &["cannot be used with"]);
    fails(here, &clip(&["--threshold", "average:2"]), 2, &["average", "median:2"]);
    fails(here, &clip(&["--threshold", "quantile:1.5"]), 2, &["quantile", "1.5", "from 0 to 1"]);
    fails(here, &clip(&["--threshold", "median:2", "--per-layer=split-equal"]), 2, &["fixed total"]);
    fails(here, &clip(&["--max-norm", "1", "--scope", "rows:1,3,1"]), 2, &["row 1 twice"]);
    fails(here, &clip(&["--max-norm", "1", "--scope", "rows:2-1"]), 2, &["backwards"]);
    fails(here, &clip(&["--max-norm", "1", "--scope", "some"]), 2, &["rows:0,3,5-8"]);
    fails(here, &clip(&["--max-norm", "1", "--scope", "rows:5"]), 1, &["row 5", "0 to 4"]);
    fails(here, &clip(&["--max-norm", "1", "--non-finite", "drop"]), 2, &["zero, error or keep"]);
    fails(here, &clip(&["--max-norm", "1", "--backend", "tpu"]), 2, &["auto, gpu, cpu or reference"]);
    fails(
        here,
        &clip(&["--max-norm", "1", "--backend", "cpu", "--adapter", "x"]),
        2,
        &["an adapter with gpu or auto only"],
    );
    fails(here, &clip(&["--max-norm", "1", "--fast"]), 2, &["--fast"]);
    fails(here, &["shrink"], 2, &["shrink"]);
    fails(here, &["clip", "in.npy", "-o", "in.npy", "--max-norm", "1"], 2, &["in.npy", "another place"]);
    fails(here, &["clip", "in.npy", "-o", "./sub/../in.npy", "--max-norm", "1"], 2, &["another place"]);
    fails(here, &["clip", "in.npy", "in.npy", "-o", "out.npy", "--max-norm", "1"], 2, &["2 .npy files"]);
    fails(
        here,
        &["clip", "in.npy", "a.safetensors", "-o", "out", "--max-norm", "1"],
        2,
        &["one kind at a time"],
    );
    fails(here, &["norms", "in.txt"], 2, &["in.txt", "ends in .npy or .safetensors"]);
    let two = ["clip", "a.safetensors", "sub/a.safetensors", "-o", "out", "--max-norm", "1"];
    fails(here, &two, 2, &["two inputs called a.safetensors"]);
    fails(here, &["clip", "a.safetensors", "-o", ".", "--max-norm", "1"], 2, &["another place"]);
    fails(here, &["clip", "a.safetensors", "-o", "in.npy", "--max-norm", "1"], 2, &["a folder"]);
    #[cfg(unix)]
    {
        fs::hard_link(here.join("in.npy"), here.join("hard.npy")).unwrap();
        std::os::unix::fs::symlink("in.npy", here.join("soft.npy")).unwrap();
        // A device stays a device.
        fails(here, &["clip", "in.npy", "-o", "/dev/null", "--max-norm", "1"], 1, &["/dev/null"]);
        fails(here, &["clip", "in.npy", "-o", "hard.npy", "--max-norm", "1"], 2, &["another place"]);
        fails(here, &["clip", "in.npy", "-o", "soft.npy", "--max-norm", "1"], 2, &["another place"]);
    }
}

#[test]
fn outputs_that_cannot_be_written_leave_nothing() {
    let folder = folder_with_five();
    let here = folder.path();
    fails(here, &["clip", "in.npy", "-o", "no/where.npy", "--max-norm", "1"], 1, &["no/where.npy", "exists"]);
    fs::create_dir(here.join("taken.npy")).unwrap();
    fails(here, &["clip", "in.npy", "-o", "taken.npy", "--max-norm", "1"], 1, &["a folder"]);
    // An output that is there is replaced.
    fs::write(here.join("out.npy"), "old").unwrap();
    json_of(here, &["clip", "in.npy", "-o", "out.npy", "--max-norm", "1"]);
    assert!(fs::read(here.join("out.npy")).unwrap().starts_with(b"\x93NUMPY"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| fs::metadata(here.join(name)).unwrap().permissions().mode();
        assert_eq!(mode("out.npy"), mode("in.npy"), "as readable as any new file");
    }
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let folder = folder_with_five();
    let mut command = Command::new(env!("CARGO_BIN_EXE_byzclip"));
    command.current_dir(folder.path()).args(["norms", "in.npy", "--json", "--backend", "cpu"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn tables_lose_their_middle_and_say_so() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in.npy"), npy("(100, 1)", &[1.0; 100])).unwrap();
    let output = byzclip(folder.path(), &["norms", "in.npy", "--backend", "cpu"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("100 rows in all") && text.lines().count() < 40, "{text}");
}

#[test]
fn analyze_finds_the_outliers_and_draws_them() {
    let folder = TempDir::new().unwrap();
    let values: Vec<f32> = (0..50).map(|i| if i % 10 == 0 { 80.0 } else { 1.0 + i as f32 * 0.01 }).collect();
    fs::write(folder.path().join("in.npy"), npy("(50, 1)", &values)).unwrap();
    let printed = json_of(folder.path(), &["analyze", "in.npy", "--plot", "norms.svg"]);
    let outliers: Vec<_> =
        printed["outliers"].as_array().unwrap().iter().map(|o| o["row"].as_u64().unwrap()).collect();
    assert_eq!(outliers, [0, 10, 20, 30, 40]);
    let bound = f32_at(&printed["recommended"]["max_norm"]);
    let clip = ["clip", "in.npy", "-o", "out.npy", "--max-norm", &bound.to_string()];
    assert_eq!(json_of(folder.path(), &clip)["clipped"].as_u64(), Some(5));
    let svg = fs::read_to_string(folder.path().join("norms.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("recommended bound"), "{svg}");
    let plot = ["analyze", "in.npy", "--plot", "no/where.svg"];
    fails(folder.path(), &plot, 1, &["no/where.svg"]);
}

#[test]
fn training_prints_three_runs_that_show_the_defence() {
    let folder = TempDir::new().unwrap();
    let printed = json_of(folder.path(), &["train", "--backend", "cpu"]);
    let runs = printed["runs"].as_array().unwrap();
    let names: Vec<_> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["no_attack", "attack", "attack_clipped"]);
    let accuracy: Vec<f64> = runs.iter().map(|run| run["accuracy"].as_f64().unwrap()).collect();
    assert!(accuracy[0] >= 0.92 && accuracy[1] <= 0.5 && accuracy[2] >= accuracy[0] - 0.03, "{accuracy:?}");
    assert_eq!(runs[2]["clipped"].as_u64(), Some(240));

    // No command is `train`.
    let output = byzclip(folder.path(), &["--json"]);
    let bare: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(bare["runs"], printed["runs"]);
}

#[test]
fn the_variable_sets_the_bound_of_training() {
    let folder = TempDir::new().unwrap();
    let with = |value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byzclip"));
        command.current_dir(folder.path()).args(["train", "--json", "--backend", "cpu", "--rounds", "2"]);
        command.env("D2_ADVERSARY_CLIP_FACTOR", value).output().unwrap()
    };
    let bound =
        |value: &str| serde_json::from_slice::<Value>(&with(value).stdout).unwrap()["max_norm"].clone();
    assert_eq!(f32_at(&bound("3.5")), 3.5);
    assert_eq!(bound("0"), Value::Null);
    assert_eq!(bound("-2"), Value::Null);
    for wrong in ["two", "", "nan"] {
        let output = with(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("D2_ADVERSARY_CLIP_FACTOR"), "{wrong}");
    }
}

#[test]
fn devices_are_listed_and_auto_is_explained() {
    let folder = TempDir::new().unwrap();
    let printed = json_of(folder.path(), &["devices"]);
    assert!(printed["adapters"].is_array());
    assert!(printed["auto"]["why"].as_str().unwrap().starts_with("auto: "));
    // A software adapter is never taken by itself.
    let adapters = printed["adapters"].as_array().unwrap();
    if adapters.iter().all(|adapter| adapter["software"] == true) {
        assert_eq!(printed["auto"]["backend"], "cpu");
        fails(folder.path(), &["norms", "x.npy", "--backend", "gpu"], 1, &["no GPU adapter"]);
    }
    let asked = if cfg!(feature = "gpu") { "no such adapter" } else { "a build without GPU support" };
    fails(folder.path(), &["norms", "x.npy", "--adapter", "no such adapter"], 1, &[asked]);
}

#[cfg(feature = "gpu")]
mod on_the_gpu {
    use super::*;

    /// The name of the adapter under test.
    fn adapter() -> Option<String> {
        common::gpu::adapter().map(|adapter| adapter.get_info().name)
    }

    #[test]
    fn files_are_the_same_byte_for_byte_on_cpu_and_gpu() {
        let Some(name) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let (clients, params) = (64, 20_011usize);
        let data: Vec<f32> = (0..clients * params)
            .map(|i| {
                let hash = (i as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
                let scale = if (i / params).is_multiple_of(5) { 1.0 } else { 0.01 };
                ((hash >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
            })
            .collect();
        fs::write(folder.path().join("in.npy"), npy(&format!("({clients}, {params})"), &data)).unwrap();
        for threshold in ["fixed:2", "median:2", "adaptive", "history", "arc:f=12", "quantile:0.8"] {
            let clip = |output: &str, more: &[&str]| {
                let args = ["clip", "in.npy", "-o", output, "--threshold", threshold];
                json_of(folder.path(), &[&args, more].concat())
            };
            let cpu = clip("cpu.npy", &["--backend", "cpu"]);
            let gpu = clip("gpu.npy", &["--backend", "gpu", "--adapter", &name]);
            assert_eq!((&gpu["backend"], &gpu["adapter"]), (&json!("gpu"), &json!(name)));
            assert_eq!(cpu["rows"], gpu["rows"], "{threshold}");
            assert!(cpu["clipped"].as_u64() > Some(0), "{threshold}");
            let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
            assert!(read("cpu.npy") == read("gpu.npy"), "{threshold}");
        }
    }

    #[test]
    fn training_is_the_same_on_cpu_and_gpu() {
        let Some(name) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let cpu = json_of(folder.path(), &["train", "--backend", "cpu", "--rounds", "10"]);
        let gpu = json_of(folder.path(), &["train", "--adapter", &name, "--rounds", "10"]);
        assert_eq!(gpu["backend"], "gpu");
        assert_eq!(cpu["runs"], gpu["runs"]);
    }

    #[test]
    fn verify_is_clean_and_finds_an_injected_fault() {
        let Some(name) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let clean = json_of(folder.path(), &["verify", "--adapter", &name]);
        assert_eq!(clean["mismatches"].as_u64(), Some(0));
        assert!(
            clean["subjects"].as_array().unwrap().iter().any(|subject| subject["adapter"] == json!(name))
        );

        let output = byzclip(folder.path(), &["verify", "--adapter", &name, "--inject-fault", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let spoiled: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(spoiled["mismatches"].as_u64(), Some(1));
    }
}

#[test]
fn norms_per_layer_are_those_of_the_library() {
    let folder = folder_with_five();
    let (data, layout) = five();
    let norms = Reference.norms(&layout, &data, &byzclip::Scope::All, Granularity::Row).unwrap();
    let printed = json_of(folder.path(), &["norms", "in.npy", "--per-layer", "--backend", "reference"]);
    assert_eq!(f32_at(&printed["rows"][4]["segments"][0]["norm"]), norms.rows[4].value());
    assert_eq!(printed["rows"][4]["segments"][0]["name"], Value::Null);
}
