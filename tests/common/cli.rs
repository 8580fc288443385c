//! The program, run in a folder, what has to be said of every run, and the files that it is given.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use byzclip::Report;
use serde_json::{Value, json};

/// What a run of the program left.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program in a folder, with nothing of its caller's settings.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byzclip"));
    command.current_dir(folder).args(args).env_remove("D2_ADVERSARY_CLIP_FACTOR").stdin(Stdio::null());
    // Mesa's device-select layer otherwise has words of its own on stderr.
    command.env("NODEVICE_SELECT", "1").env("BYZCLIP_CALIBRATION", "off");
    command
}

pub fn run(folder: &Path, args: &[&str]) -> Run {
    run_of(&mut command(folder, args))
}

/// The same in another environment.
pub fn run_of(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs what must succeed in silence on stderr, and returns its stdout.
#[track_caller]
pub fn succeed(folder: &Path, args: &[&str]) -> String {
    let run = run(folder, args);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{args:?}");
    run.stdout
}

/// Runs with `--json`: exactly one line, an object.
#[track_caller]
pub fn json_of(folder: &Path, args: &[&str]) -> Value {
    let stdout = succeed(folder, &[args, &["--json"]].concat());
    assert!(stdout.ends_with('\n') && stdout.lines().count() == 1, "{args:?}: not one line: {stdout:?}");
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert!(value.is_object(), "{args:?}: {stdout}");
    value
}

/// Runs what must fail: the exit code, one line on stderr with these words that says what is expected and
/// what to do, nothing on stdout, and the folder as it was: no output, no leftover, nothing changed.
#[track_caller]
pub fn fails(folder: &Path, args: &[&str], code: i32, words: &[&str]) {
    fails_as(&mut command(folder, args), code, words);
}

/// [`fails`] in another environment.
#[track_caller]
pub fn fails_as(command: &mut Command, code: i32, words: &[&str]) {
    let folder = command.get_current_dir().unwrap().to_owned();
    let before = contents(&folder);
    let Run { code: got, stdout, stderr } = run_of(command);
    let args: Vec<_> = command.get_args().collect();
    assert_eq!(got, Some(code), "{args:?}: {stderr}");
    assert!(stderr.starts_with("byzclip: ") && stderr.len() < 1500, "{args:?}: {stderr:?}");
    assert!(stderr.ends_with('\n') && !stderr.trim_end().contains(char::is_control), "{args:?}: {stderr:?}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: no \"{word}\" in {stderr:?}");
    }
    assert!(stderr.contains("expected") || stderr.contains("cannot"), "{args:?}: {stderr:?}");
    assert!(stderr.contains("; "), "{args:?}: no remedy: {stderr:?}");
    assert_eq!(stdout, "", "{args:?}");
    assert!(contents(&folder) == before, "{args:?} changed the folder: {:?}", names(&folder));
}

/// `norms` and `clip` of these inputs must fail alike, whoever reads the output.
#[track_caller]
pub fn refused(folder: &Path, inputs: &[&str], words: &[&str]) {
    let words = &[words, &["expected"]].concat();
    fails(folder, &[&["norms", "--backend", "cpu"], inputs].concat(), 1, words);
    let out = if inputs[0].ends_with("npy") { "out.npy" } else { "out" };
    let clip = ["clip", "--backend", "cpu", "--max-norm", "1", "-o", out];
    fails(folder, &[&clip, inputs].concat(), 1, words);
    fails(folder, &[&clip, inputs, &["--json"]].concat(), 1, words);
}

/// Everything below a folder, with what it holds; `None` for what is not a file.
pub fn contents(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        }
        let content = path.is_file().then(|| fs::read(&path).unwrap());
        found.push((path, content));
    }
    found.sort();
    found
}

/// The names in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A float of the JSON, read from its text as a script would.
#[track_caller]
pub fn float(value: &Value) -> Option<f32> {
    match value {
        Value::Null => None,
        Value::Number(number) => Some(number.to_string().parse().unwrap()),
        other => panic!("not a number: {other}"),
    }
}

fn bits(value: f32) -> Option<u32> {
    value.is_finite().then(|| value.to_bits())
}

/// The norms of the rows, bit for bit, against a report.
#[track_caller]
pub fn assert_norms(json: &Value, report: &Report) {
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), report.rows.len());
    for (i, (row, expected)) in rows.iter().zip(&report.rows).enumerate() {
        assert_eq!(float(&row["norm"]).map(f32::to_bits), bits(expected.norm), "{row}");
        let segments = row["segments"].as_array().cloned().unwrap_or_default();
        assert_eq!(segments.len(), report.segments(i).len(), "{row}");
        for (segment, expected) in segments.iter().zip(report.segments(i)) {
            assert_eq!(float(&segment["norm"]).map(f32::to_bits), bits(expected.norm), "{row}");
        }
    }
}

/// Every number of the rows, bit for bit, against a report.
#[track_caller]
pub fn assert_rows(json: &Value, report: &Report) {
    assert_norms(json, report);
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(json["clients"], rows.len());
    for (i, (row, expected)) in rows.iter().zip(&report.rows).enumerate() {
        assert_eq!(float(&row["bound"]).map(f32::to_bits), expected.bound.map(f32::to_bits), "{row}");
        // The shortest number that reads back to the same f32; where it is none, an f64, whose last bit serde_json may read wrong.
        let factor = row["factor"].as_f64().unwrap();
        let is_same = f64::from(factor as f32) == expected.factor
            || (factor - expected.factor).abs() <= expected.factor * f64::EPSILON;
        assert!(is_same, "{row}: {expected:?}");
        assert_eq!(row["status"], expected.status.name(), "{row}");
        for (segment, expected) in row["segments"].as_array().into_iter().flatten().zip(report.segments(i)) {
            assert_eq!(float(&segment["bound"]).map(f32::to_bits), Some(expected.bound.to_bits()), "{row}");
            assert_eq!(segment["status"], expected.status.name(), "{row}");
        }
    }
    let count = |status: &str| report.rows.iter().filter(|row| row.status.name() == status).count();
    assert_eq!((&json["clipped"], &json["zeroed"]), (&count("clipped").into(), &count("zeroed").into()));
}

/// The dictionary of an array, padded as numpy does.
pub fn npy_header(descr: &str, fortran: &str, shape: &str) -> String {
    let text = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    let padding = 63 - (10 + text.len()) % 64;
    format!("{text}{}\n", " ".repeat(padding))
}

/// A file of this version of the format, whatever its header and its body are.
pub fn npy_of(version: u8, header: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    match version {
        1 => bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes()),
        _ => bytes.extend(u32::try_from(header.len()).unwrap().to_le_bytes()),
    }
    bytes.extend(header);
    bytes.extend(body);
    bytes
}

/// A file of elements of any type.
pub fn npy_bytes(descr: &str, shape: &str, body: &[u8]) -> Vec<u8> {
    npy_of(1, npy_header(descr, "False", shape).as_bytes(), body)
}

pub fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
    npy_bytes("<f4", shape, &bytes(values))
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn half_bytes(halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

/// Name, type, shape and elements.
pub type Tensor<'a> = (&'a str, &'a str, &'a [usize], &'a [u8]);

/// A file of tensors in this order, which need not be that of their names, with metadata to the byte.
pub fn safetensors(tensors: &[Tensor], metadata: impl Display) -> Vec<u8> {
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
    raw_safetensors(&header, &data)
}

/// Name, shape and values.
pub type Floats<'a> = (&'a str, &'a [usize], &'a [f32]);

/// The same of `f32`.
pub fn tensors(metadata: impl Display, tensors: &[Floats]) -> Vec<u8> {
    let elements: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let parts = tensors.iter().zip(&elements);
    let tensors: Vec<Tensor> =
        parts.map(|(&(name, shape, _), bytes)| (name, "F32", shape, &bytes[..])).collect();
    safetensors(&tensors, metadata)
}

/// A file of any header.
pub fn raw_safetensors(header: &str, body: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), body].concat()
}
