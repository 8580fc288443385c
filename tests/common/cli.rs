//! The program, run in a folder, and the files that it is given.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

pub fn byzclip(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byzclip"));
    command.current_dir(folder).args(args).env_remove("D2_ADVERSARY_CLIP_FACTOR").stdin(Stdio::null());
    command.env("BYZCLIP_CALIBRATION", "off");
    command.output().unwrap()
}

/// Runs what must succeed, and parses the one line of JSON it prints.
pub fn json_of(folder: &Path, args: &[&str]) -> Value {
    let output = byzclip(folder, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{args:?}: {stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Runs what must fail: the exit code, one line on stderr with these words, nothing on stdout, and no
/// file more or other than before.
pub fn fails(folder: &Path, args: &[&str], code: i32, words: &[&str]) {
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
pub fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
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

pub fn npy_header(dictionary: &str) -> Vec<u8> {
    let text = format!("{dictionary:117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

pub fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
    let mut bytes = npy_header(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"));
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// A safetensors file: tensors in this order, with metadata.
pub fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])], metadata: &Value) -> Vec<u8> {
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

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
