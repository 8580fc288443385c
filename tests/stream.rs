//! Batches in windows: whatever a window holds, the files and reports are those of the whole batch.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[cfg(feature = "gpu")]
mod common;
#[path = "common/cli.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;

use std::fs;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use self::fixtures::{
    Tensor, bytes, command, contents, fails, half_bytes, json_of, names, npy, npy_bytes, safetensors,
};

const CLIENTS: usize = 23;
const PARAMS: usize = 97;

/// Updates of all kinds: honest, boosted, zero, tiny, huge, and one that is not finite.
fn updates() -> Vec<f32> {
    let mut data: Vec<f32> =
        (0..CLIENTS * PARAMS).map(|i| ((i * 7919 % 1013) as f32 - 506.0) * 2e-4).collect();
    let scales = [(2, 40.0), (5, 0.0), (6, 1e-30), (9, 1e37), (11, 3.0), (22, 77.7)];
    for (row, scale) in scales {
        data[row * PARAMS..(row + 1) * PARAMS].iter_mut().for_each(|value| *value *= scale);
    }
    data[14 * PARAMS + 96] = f32::NAN;
    data
}

/// The batch in every format, the centre and the weights.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let data = updates();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("u.npy", &npy(&format!("({CLIENTS}, {PARAMS})"), &data));
    write("center.npy", &npy(&format!("({PARAMS},)"), &data[3 * PARAMS..4 * PARAMS]));
    write("w.npy", &npy(&format!("({CLIENTS},)"), &(0..CLIENTS).map(|i| (i % 5) as f32).collect::<Vec<_>>()));
    let halves: Vec<u16> = data.iter().map(|value| byzclip::Half::F16.truncate(*value)).collect();
    write("h.npy", &npy_bytes("<f2", &format!("({CLIENTS}, {PARAMS})"), &half_bytes(&halves)));
    for client in 0..CLIENTS {
        // In an order that is not that of their names, and with a layer that has no elements.
        let row = bytes(&data[client * PARAMS..(client + 1) * PARAMS]);
        let tensors: [Tensor; 4] = [
            ("w", "F32", &[8, 11], &row[..352]),
            ("b", "F32", &[4], &row[352..368]),
            ("none", "F32", &[0], &[]),
            ("a", "F32", &[5], &row[368..]),
        ];
        write(
            &format!("{client:02}.safetensors"),
            &safetensors(&tensors, json!({"client": client.to_string()})),
        );
    }
    folder
}

fn clients() -> Vec<String> {
    (0..CLIENTS).map(|client| format!("{client:02}.safetensors")).collect()
}

/// Bytes that windows have: several rows, one, a part of one, one element.
const WINDOWS: [&str; 5] = ["4K", "1000", "388", "100", "4"];

/// What a GPU's report adds where there are many rows for a window.
const ON_HOST: &str = "; the mean of so many rows is summed on the host";

/// Runs a command with whole batches and with every window, and holds the reports and files against each other.
#[track_caller]
fn same_in_windows(
    folder: &Path,
    (backend, windows): (&[&str], &[&str]),
    arguments: &[&str],
    output: Option<&str>,
) -> Value {
    let result = |report: &Value| {
        let mut report = report.clone();
        // How a window ran is not what came of it.
        report.as_object_mut().unwrap().retain(|key, _| !["state", "strategy"].contains(&key.as_str()));
        if let Some(why) = report.get("why").and_then(Value::as_str) {
            report["why"] = why.replace(ON_HOST, "").into();
        }
        report
    };
    let clean = || {
        for name in ["s.json", "out", "out.npy", "out.safetensors"] {
            let path = folder.join(name);
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { drop(fs::remove_file(path)) }
        }
    };
    let run = |window: Option<&str>| {
        clean();
        let mut all = [arguments, backend].concat();
        all.extend(output.map(|_| "-o").into_iter().chain(output));
        all.extend(window.map(|_| "--window").into_iter().chain(window));
        if all.contains(&"--state") {
            // Once before, so that a state that was left is gone on with.
            json_of(folder, &all);
        }
        (result(&json_of(folder, &all)), contents(folder))
    };
    let (want, files) = run(None);
    for window in windows {
        let (got, in_windows) = run(Some(*window));
        assert_eq!(got, want, "{arguments:?} --window {window}");
        for (path, content) in &files {
            let other = in_windows.iter().find(|(other, _)| other == path).map(|(_, content)| content);
            assert!(other == Some(content), "{arguments:?} --window {window}: {}", path.display());
        }
        assert_eq!(in_windows.len(), files.len(), "{arguments:?} --window {window}");
    }
    clean();
    want
}

const THRESHOLDS: [&[&str]; 8] = [
    &["--max-norm", "0.8"],
    &["--threshold", "median:1.5"],
    &["--threshold", "quantile:0.6"],
    &["--threshold", "adaptive:c0=1,target=0.5,rate=0.3", "--state", "s.json"],
    &["--threshold", "history:window=3,factor=1", "--state", "s.json"],
    &["--threshold", "arc:f=4"],
    &["--max-norm", "0.8", "--scope", "rows:0-4,9,14,22"],
    &["--threshold", "median:1", "--non-finite", "keep"],
];

fn holds_on(backend: &[&str], windows: &[&str], thresholds: &[&[&str]]) {
    let folder = folder();
    let (folder, clients) = (folder.path(), clients());
    let clients: Vec<&str> = clients.iter().map(String::as_str).collect();
    let with = |command: &str, inputs: &[&str], more: &[&str]| -> Vec<String> {
        [&[command][..], inputs, more].concat().iter().map(ToString::to_string).collect()
    };
    let check = |arguments: Vec<String>, output| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        same_in_windows(folder, (backend, windows), &arguments, output)
    };
    for (turn, &threshold) in thresholds.iter().enumerate() {
        let report = check(with("clip", &["u.npy"], threshold), Some("out.npy"));
        assert!(report["clipped"].as_u64() > Some(0), "{threshold:?}: {report}");
        let layered = [threshold, &["--per-layer"]].concat();
        check(with("clip", &clients, &layered), Some("out"));
        let centered = [threshold, &["--center", "center.npy"]].concat();
        let weighted = [threshold, &["--weights", "w.npy"]].concat();
        match turn % 2 {
            0 => check(with("clip", &["u.npy"], &centered), Some("out.npy")),
            _ => check(with("mean", &["u.npy"], &centered), Some("out.npy")),
        };
        check(with("mean", &["u.npy"], &weighted), Some("out.npy"));
        check(with("mean", &clients, &layered), Some("out.safetensors"));
        check(with("clip", &["h.npy"], threshold), Some("out.npy"));
    }
    for split in ["--per-layer=split-equal", "--per-layer=split-by-size"] {
        check(with("clip", &clients, &["--max-norm", "0.8", split]), Some("out"));
    }
    for command in ["clip", "mean"] {
        check(with(command, &["u.npy"], &["--per-coordinate", "0.05"]), Some("out.npy"));
    }
    for threshold in [["--threshold", "median:1"], ["--max-norm", "0.8"], ["--per-coordinate", "0.05"]] {
        check(with("mean", &["h.npy"], &threshold), Some("out.npy"));
    }
    check(with("norms", &["u.npy"], &[]), None);
    check(with("norms", &clients, &["--per-layer"]), None);
    check(with("analyze", &["u.npy"], &[]), None);
}

#[test]
fn windows_change_nothing_on_the_cpu() {
    holds_on(&["--backend", "cpu"], &WINDOWS, &THRESHOLDS);
}

#[cfg(feature = "gpu")]
#[test]
fn windows_change_nothing_on_a_gpu() {
    if let Some(adapter) = common::gpu::adapter() {
        // A process and its device cost most of this: two windows, and a threshold of each kind.
        let adapter = adapter.get_info().name;
        holds_on(&["--adapter", &adapter], &["1000", "400", "100"], &THRESHOLDS[..2]);
        let folder = folder();
        let mean = ["mean", "u.npy", "-o", "out.npy", "--max-norm", "1", "--adapter", &adapter, "--window"];
        let says_so = |window| {
            let report = json_of(folder.path(), &[&mean[..], &[window]].concat());
            report["why"].as_str().unwrap().ends_with(ON_HOST)
        };
        assert_eq!(["1000", "400"].map(says_so), [false, true]);
    }
}

#[test]
fn batches_without_rows_or_elements_are_written_whole() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    for shape in ["(0, 5)", "(3, 0)", "(0,)", "(0, 0)"] {
        fs::write(folder.join("u.npy"), npy(shape, &[])).unwrap();
        for threshold in [&["--max-norm", "1"][..], &["--threshold", "median"]] {
            let arguments = [&["clip", "u.npy", "-o", "out.npy", "--window", "1"], threshold].concat();
            json_of(folder, &arguments);
            assert_eq!(fs::read(folder.join("out.npy")).unwrap(), npy(shape, &[]), "{shape}");
            json_of(folder, &[&["mean", "u.npy", "-o", "mean.npy", "--window", "1"], threshold].concat());
        }
    }
    // More of them than decisions are held of.
    fs::write(folder.join("u.npy"), npy("(3000, 0)", &[])).unwrap();
    let mean = ["mean", "u.npy", "-o", "mean.npy", "--max-norm", "1", "--window", "1"];
    assert_eq!(json_of(folder, &mean)["rows"].as_array().unwrap().len(), 3000);
}

/// So many rows that they are reported some at a time, and their weights checked so.
#[test]
fn many_rows_have_their_own_norms_and_weights() {
    const ROWS: usize = 70_000;
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let values: Vec<f32> = (0..2 * ROWS).map(|i| (i * 7919 % 1013) as f32 * 1e-3).collect();
    let mut weights: Vec<f32> = (0..ROWS).map(|row| (row / 1000) as f32).collect();
    fs::write(folder.join("u.npy"), npy(&format!("({ROWS}, 2)"), &values)).unwrap();
    fs::write(folder.join("w.npy"), npy(&format!("({ROWS},)"), &weights)).unwrap();
    let on_cpu = (&["--backend", "cpu"][..], &["3M"][..]);
    // Rows go to two windows of 3 MiB, and decisions on all of them are held.
    let by_median = ["--threshold", "median"];
    same_in_windows(folder, on_cpu, &[&["clip", "u.npy"], &by_median[..]].concat(), Some("out.npy"));
    let mean = [&["mean", "u.npy", "--weights", "w.npy"], &by_median[..]].concat();
    let report = same_in_windows(folder, on_cpu, &mean, Some("out.npy"));
    assert_eq!(report["weight"], json!(weights.iter().map(|weight| f64::from(*weight)).sum::<f64>()));
    weights[ROWS - 2] = -1.0;
    fs::write(folder.join("w.npy"), npy(&format!("({ROWS},)"), &weights)).unwrap();
    fails(folder, &[&mean[..], &["-o", "out.npy"]].concat(), 1, &["the weight -1 of client 69998"]);
}

/// More layers than bounds are found of at a time, and than are averaged at a time: some have no elements.
#[test]
fn many_layers_have_their_own_bounds() {
    const LAYERS: usize = 1_500;
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let names: Vec<String> = (0..LAYERS).map(|layer| format!("layer{layer:04}")).collect();
    let clients = ["a.safetensors", "b.safetensors", "c.safetensors"];
    for (client, file) in clients.iter().enumerate() {
        let value = |i: usize| (i * (7919 + 13 * client) % 1013) as f32 * 1e-3;
        let lengths: Vec<[usize; 1]> = (0..LAYERS).map(|layer| [layer % 4]).collect();
        let layers: Vec<Vec<u8>> = (0..LAYERS)
            .map(|layer| bytes(&(0..layer % 4).map(|i| value(layer * 4 + i)).collect::<Vec<_>>()))
            .collect();
        let tensors: Vec<Tensor> =
            (0..LAYERS).map(|i| (names[i].as_str(), "F32", &lengths[i][..], &layers[i][..])).collect();
        fs::write(folder.join(file), safetensors(&tensors, "{}")).unwrap();
    }
    let on_cpu = (&["--backend", "cpu"][..], &["96K", "8K", "1K"][..]);
    for threshold in [&THRESHOLDS[0], &THRESHOLDS[1], &THRESHOLDS[3], &THRESHOLDS[4]] {
        let layered = [&clients[..], threshold, &["--per-layer"]].concat();
        let report = same_in_windows(folder, on_cpu, &[&["clip"], &layered[..]].concat(), Some("out"));
        let segments = report["rows"][1]["segments"].as_array().unwrap();
        assert_eq!(segments.len(), LAYERS);
        let clipped = segments.iter().filter(|segment| segment["status"] == "clipped").count();
        assert!((100..LAYERS - 100).contains(&clipped), "{threshold:?}: {clipped}");
        same_in_windows(folder, on_cpu, &[&["mean"], &layered[..]].concat(), Some("out.safetensors"));
    }
}

#[test]
fn a_small_file_does_not_ask_for_a_large_mean() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("u.npy"), npy("(0, 2000000000)", &[])).unwrap();
    let mean = ["mean", "u.npy", "-o", "out.npy", "--max-norm", "1"];
    fails(folder.path(), &mean, 1, &["the shape (0, 2000000000)", "at most 16777216 params without clients"]);
}

#[test]
fn a_refused_row_in_a_late_window_is_named_by_its_number_and_nothing_is_written() {
    let folder = folder();
    let clients = clients();
    let clients: Vec<&str> = clients.iter().map(String::as_str).collect();
    let refuse = ["--max-norm", "1", "--non-finite", "error", "--window", "400"];
    fails(folder.path(), &[&["clip", "u.npy", "-o", "out.npy"], &refuse[..]].concat(), 1, &["row 14"]);
    fails(folder.path(), &[&["clip"], &clients[..], &["-o", "out"], &refuse].concat(), 1, &["row 14"]);
    let by_median = ["--threshold", "median", "--non-finite", "error", "--window", "100"];
    fails(folder.path(), &[&["clip", "u.npy", "-o", "out.npy"], &by_median[..]].concat(), 1, &["row 14"]);
}

#[test]
fn windows_are_numbers_of_bytes() {
    let folder = folder();
    for window in ["0", "-1", "x", "1T"] {
        let words = [window, "expected a number of bytes"];
        fails(folder.path(), &["norms", "u.npy", "--window", window], 2, &words);
    }
}

/// A signal while the output is written: neither the output nor a temporary file stays.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let folder = TempDir::new().unwrap();
    // Sparse, and much to do one element at a time.
    let file = fs::File::create(folder.path().join("u.npy")).unwrap();
    let header = npy("(64, 1000000)", &[]);
    std::io::Write::write_all(&mut &file, &header).unwrap();
    file.set_len(header.len() as u64 + 256_000_000).unwrap();
    for signal in ["INT", "TERM"] {
        let before = names(folder.path());
        let clip = ["clip", "u.npy", "-o", "out.npy", "--max-norm", "1", "--backend", "reference"];
        let mut command = command(folder.path(), &[&clip[..], &["--window", "4M"]].concat());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while names(folder.path()) == before {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing was written");
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        assert_eq!(names(folder.path()), before, "{signal}");
    }
}

/// Threads that the system does not give, and memory for a piece of a file, become one line; nothing panics, and there is no output.
/// Limits on the process's memory are tried from nearly nothing up to enough.
#[test]
#[cfg(target_os = "linux")]
fn a_system_without_threads_or_memory_to_spare_is_an_error() {
    let folder = TempDir::new().unwrap();
    let values = vec![1.0; 64 * 20_000];
    fs::write(folder.path().join("batch.npy"), npy("(64, 20000)", &values)).unwrap();
    let output = folder.path().join("out.npy");
    let (mut lines, mut succeeded) = (Vec::new(), 0);
    let mut kib = 12_000;
    while succeeded < 3 {
        assert!(kib < 64 << 20, "no success with {kib} KiB");
        let clip = "exec \"$0\" clip batch.npy -o out.npy --max-norm 2 --backend cpu";
        let ran = Command::new("sh")
            .args(["-c", &format!("ulimit -v {kib}; {clip}"), env!("CARGO_BIN_EXE_byzclip")])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        // A thread that finds no memory for its own start, or for a value, is ended by the standard library, and with it the process.
        let is_ended =
            ["memory allocation of", "stack_overflow.rs"].iter().any(|words| stderr.contains(words));
        assert!(is_ended || !stderr.contains("panicked"), "{kib} KiB: {stderr}");
        assert_eq!(output.exists(), ran.status.success(), "{kib} KiB: {stderr}");
        if ran.status.success() {
            fs::remove_file(&output).unwrap();
            succeeded += 1;
        } else if stderr.starts_with("byzclip: ") && !is_ended {
            assert_eq!((ran.status.code(), stderr.lines().count()), (Some(1), 1), "{kib} KiB: {stderr}");
            lines.push(stderr);
        }
        kib += kib / 50;
    }
    for words in ["cannot start a thread", "worker threads", "memory for a piece"] {
        assert!(lines.iter().any(|line| line.contains(words)), "{words}: {lines:?}");
    }
}

/// Rows, a centre, weights and a mean are no more in memory than windows of them, and what is known of all rows is not at all.
#[test]
#[cfg(target_os = "linux")]
fn memory_grows_neither_with_the_length_of_rows_nor_with_their_number() {
    const LIMIT_KIB: u64 = 96 << 10;
    let folder = TempDir::new().unwrap();
    // Sparse: 128 MiB a row, which is more than the limit.
    let sparse = |name: &str, shape: &str, elements: u64| {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        let header = npy(shape, &[]);
        std::io::Write::write_all(&mut &file, &header).unwrap();
        file.set_len(header.len() as u64 + 4 * elements).unwrap();
    };
    sparse("long.npy", "(2, 33554432)", 2 << 25);
    sparse("center.npy", "(33554432,)", 1 << 25);
    // Norm, bound, factor and status of a row take 24 bytes: more than the limit.
    sparse("many.npy", "(6000000, 1)", 6_000_000);
    sparse("weights.npy", "(6000000,)", 6_000_000);
    for arguments in [
        "norms long.npy",
        "clip long.npy -o out.npy --max-norm 2 --center center.npy",
        "mean long.npy -o out.npy --max-norm 2",
        "mean long.npy -o out.npy --max-norm 2 --center center.npy",
        "norms many.npy",
        "norms many.npy --json",
        "clip many.npy -o out.npy --max-norm 2 --scope rows:0-5000000",
        "clip many.npy -o out.npy --max-norm 2 --json",
        "mean many.npy -o out.npy --max-norm 2 --weights weights.npy --json",
    ] {
        let command = format!("ulimit -v {LIMIT_KIB}; exec \"$0\" {arguments} --backend cpu --window 1M");
        let ran = Command::new("sh")
            .args(["-c", &command, env!("CARGO_BIN_EXE_byzclip")])
            // What each thread reserves is not what is looked at.
            .envs([("RAYON_NUM_THREADS", "2"), ("MALLOC_ARENA_MAX", "1")])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{arguments}: {}", String::from_utf8_lossy(&ran.stderr));
        drop(fs::remove_file(folder.path().join("out.npy")));
    }
    // What has to look at all norms at once says how many it looks at.
    let words = ["6000000 norms", "at most 2,097,152 norms"];
    fails(folder.path(), &["analyze", "many.npy", "--backend", "cpu"], 2, &words);
    let by_median = ["mean", "many.npy", "-o", "out.npy", "--threshold", "median", "--backend", "cpu"];
    fails(folder.path(), &by_median, 2, &words);
}
