//! The command line as a person or a script meets it: the real binary, its exit codes, its two streams
//! and the files that it leaves.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/cli.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;
#[cfg(feature = "gpu")]
#[path = "common/gpu.rs"]
#[allow(dead_code, unreachable_pub)]
mod gpu;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use byzclip::{Backend, Clipping, Granularity, Layout, NonFinite, Reference, Report, Scope};
use serde_json::Value;
use tempfile::TempDir;

use self::fixtures::{
    Floats, assert_norms, assert_rows, bytes, command, fails, json_of, names, npy, npy_header, npy_of,
    raw_safetensors, refused, run, succeed, tensors,
};

/// Values of many magnitudes, the same every time.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    (0..count).map(|_| (next() as f32 / 8_388_608.0 - 1.0) * 2.0f32.powi(next() as i32 % 8 - 4)).collect()
}

/// A folder with a file of 3 clients and 4 params.
fn folder() -> (TempDir, Vec<f32>) {
    let folder = TempDir::new().unwrap();
    let values = values(12, 1);
    fs::write(folder.path().join("in.npy"), npy("(3, 4)", &values)).unwrap();
    (folder, values)
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) {
    fs::write(folder.path().join(name), bytes).unwrap();
}

fn read(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join(name)).unwrap()
}

/// What the reference makes of a batch.
fn expected(layout: &Layout, data: &[f32], clipping: &Clipping) -> (Vec<f32>, Report) {
    let mut data = data.to_vec();
    let report = Reference.run(layout, &mut data, clipping).unwrap();
    (data, report)
}

// Usage.

#[test]
fn wrong_usage_ends_with_2_and_one_line() {
    let (folder, _) = folder();
    let path = folder.path();
    let cases: &[(&[&str], &[&str])] = &[
        (&["clip"], &["--output <OUT>", "<IN>", "see byzclip clip --help"]),
        (&["norms"], &["<IN>", "expected", "see byzclip norms --help"]),
        (&["clip", "--bogus"], &["--bogus", "expected byzclip clip", "--help"]),
        (&["norms", "in.npy", "--max-nrm", "2"], &["--max-nrm", "expected", "--help"]),
        (&["norm", "in.npy"], &["'norm'", "'norms'", "--help"]),
        (&["frobnicate"], &["frobnicate", "expected", "--help"]),
        (&["train", "--rounds", "-1"], &["'-1'", "--rounds", "expected a whole number"]),
        (&["train", "--seed", "x"], &["'x'", "--seed", "expected a whole number"]),
        (&["train", "--seed", "99999999999999999999"], &["--seed", "expected a smaller number"]),
        (&["train", "--boost", "much"], &["'much'", "--boost", "expected a number"]),
        (&["train", "--learning-rate", "-1"], &["learning rate", "got -1", "expected a finite number"]),
        (&["bench", "--runs", "-1"], &["'-1'", "--runs", "expected 9 runs or more"]),
        (&["bench", "--clipped", "-0.2"], &["'-0.2'", "--clipped", "expected a share"]),
        (&["bench", "--scope-share", "-1"], &["'-1'", "--scope-share", "expected a share"]),
        (&["--json", "devices", "--names", "all"], &["got --names with --json", "expected"]),
        (&["devices", "--names", "all", "--json"], &["got --names with --json", "expected"]),
    ];
    for (arguments, words) in cases {
        fails(path, arguments, 2, words);
    }
    let clip = ["clip", "in.npy", "-o", "out.npy"];
    let cases: &[(&[&str], &[&str])] = &[
        (&["--max-norm=-1"], &["'-1'", "expected a number >= 0", "pass a bound"]),
        (&["--max-norm", "-1"], &["'-1'", "expected a number >= 0", "pass a bound"]),
        (&["--max-norm", "-inf"], &["'-inf'", "expected a number >= 0", "pass a bound"]),
        (&["--max-norm", "nan"], &["'nan'", "expected a number >= 0", "pass a bound"]),
        (&["--max-norm", "two"], &["'two'", "expected a number >= 0", "pass a bound"]),
        (&["--max-norm"], &["--max-norm", "--help"]),
        (&["--max-norm", "1", "--scope", "rows:1,1"], &["row 1 twice", "expected each row once", "remove"]),
        (&["--max-norm", "1", "--scope", "rows:0-2,1"], &["row 1 twice", "expected", "remove"]),
        (&["--max-norm", "1", "--scope", "rows:5-3"], &["5-3", "backwards", "expected"]),
        (&["--max-norm", "1", "--scope", "rows:x"], &["\"x\"", "expected all, or rows:0,3,5-8"]),
        (&["--max-norm", "1", "--scope", "some"], &["'some'", "expected all, or rows:0,3,5-8"]),
        (
            &["--max-norm", "1", "--scope", "rows:0-4294967296"],
            &["0-4294967296", "expected all, or rows:0,3,5-8"],
        ),
        (&["--max-norm", "1", "--non-finite", "drop"], &["'drop'", "expected zero, error or keep"]),
        (&["--max-norm", "1", "--backend", "tpu"], &["'tpu'", "expected auto, gpu, cpu or reference"]),
        (&["--max-norm", "1", "--backend", "cpu", "--adapter", "x"], &["--adapter x", "expected", "leave"]),
    ];
    for (arguments, words) in cases {
        let arguments = [&clip, *arguments].concat();
        fails(path, &arguments, 2, words);
        // And with an output that is there already.
        write(&folder, "out.npy", b"precious");
        fails(path, &arguments, 2, words);
        fs::remove_file(path.join("out.npy")).unwrap();
    }
}

#[test]
fn a_row_out_of_range_ends_with_1() {
    let (folder, _) = folder();
    let clip = ["clip", "in.npy", "-o", "out.npy", "--max-norm", "1", "--backend", "cpu", "--scope"];
    let words = ["row 9", "expected rows 0 to 2", "correct the scope"];
    fails(folder.path(), &[&clip[..], &["rows:9"]].concat(), 1, &words);
    write(&folder, "out.npy", b"precious");
    fails(folder.path(), &[&clip[..], &["rows:0,1,9"]].concat(), 1, &words);
}

#[test]
fn help_and_version_go_to_stdout() {
    let (folder, _) = folder();
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["clip", "--help"],
        &["norms", "-h"],
        &["devices", "-h"],
        &["verify", "-h"],
    ] {
        let text = succeed(folder.path(), arguments);
        assert!(text.contains("Usage: byzclip") && text.contains("--json"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    assert_eq!(succeed(folder.path(), &["--version"]), format!("byzclip {}\n", env!("CARGO_PKG_VERSION")));
}

// Inputs.

#[test]
fn files_that_cannot_be_read_are_refused() {
    let (folder, _) = folder();
    for name in ["missing.npy", "missing.safetensors"] {
        refused(folder.path(), &[name], &[name, "No such file", "readable file", "check the path"]);
    }
    for name in ["folder.npy", "folder.safetensors"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        refused(folder.path(), &[name], &[name, "got a folder", "pass the file"]);
    }
}

#[test]
fn mixed_and_unknown_inputs_are_wrong_usage() {
    let (folder, _) = folder();
    write(&folder, "c.safetensors", &tensors("{}", &[("w", &[1], &[1.0])]));
    write(&folder, "more.npy", &npy("(1,)", &[1.0]));
    let cases: &[(&[&str], &[&str])] = &[
        (&["in.npy", "more.npy"], &["got 2 .npy files", "expected one", "numpy.stack"]),
        (&["in.npy", "c.safetensors"], &["got 1 .npy and 1 .safetensors", "expected one .npy", "pass"]),
        (&["in.txt"], &["got the input in.txt", "expected a name that ends in .npy", "rename"]),
        (&["c.safetensors", "plain"], &["got the input plain", "expected", "rename"]),
    ];
    for (inputs, words) in cases {
        fails(folder.path(), &[&["norms"], *inputs].concat(), 2, words);
        fails(folder.path(), &[&["clip", "-o", "out.npy", "--max-norm", "1"], *inputs].concat(), 2, words);
    }
}

#[test]
fn arrays_of_other_kinds_are_refused() {
    let (folder, _) = folder();
    let cases: &[(&str, &str, &str, usize, &[&str])] = &[
        ("<f8", "False", "(3, 4)", 96, &["'<f8'", "float32", "numpy.save"]),
        (">f4", "False", "(3, 4)", 48, &["'>f4'", "little-endian", "numpy.save"]),
        ("<i4", "False", "(3, 4)", 48, &["'<i4'", "float32", "numpy.save"]),
        ("|O", "False", "(3, 4)", 48, &["'|O'", "float32", "numpy.save"]),
        ("<f4", "True", "(3, 4)", 48, &["Fortran order", "C order", "numpy.save"]),
        ("<f4", "False", "(1, 3, 4)", 48, &["3 dimensions", "[clients, params]", "numpy.save"]),
        ("<f4", "False", "()", 4, &["0 dimensions", "[clients, params]", "numpy.save"]),
    ];
    for (descr, fortran, shape, length, words) in cases {
        let header = npy_header(descr, fortran, shape);
        write(&folder, "x.npy", &npy_of(1, header.as_bytes(), &vec![0; *length]));
        refused(folder.path(), &["x.npy"], words);
    }
}

#[test]
fn npy_files_cut_anywhere_are_refused() {
    let (folder, _) = folder();
    let whole = read(&folder, "in.npy");
    // In the magic, the version, the length, the header, before the elements, within them.
    for length in [0, 3, 6, 7, 8, 9, 10, 50, 127, 128, 129, 130, whole.len() - 4, whole.len() - 1] {
        write(&folder, "x.npy", &whole[..length]);
        let word = if length < 128 { "truncated header" } else { "truncated" };
        fails(
            folder.path(),
            &["norms", "x.npy", "--backend", "cpu"],
            1,
            &["x.npy", word, "expected", "again"],
        );
    }
    write(&folder, "x.npy", &[&whole[..], &[0]].concat());
    refused(folder.path(), &["x.npy"], &["177 bytes", "longer", "176 bytes", "again"]);
    write(&folder, "x.npy", &whole[..150]);
    write(&folder, "out.npy", b"precious");
    refused(folder.path(), &["x.npy"], &["150 bytes", "truncated", "176 bytes", "again"]);
}

#[test]
fn hostile_npy_headers_are_refused() {
    let (folder, _) = folder();
    let dictionary = |shape: &str| npy_header("<f4", "False", shape).into_bytes();
    let mut huge = b"\x93NUMPY\x02\x00".to_vec();
    huge.extend(u32::MAX.to_le_bytes());
    let nested = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {}", "(".repeat(60_000));
    let lists = format!("{{'descr': {}", "[".repeat(60_000));
    let key = format!("{{'{}': 1}}", "k".repeat(60_000));
    let cases: &[(Vec<u8>, &[&str])] = &[
        (huge, &["header of 4294967295 bytes"]),
        (npy_of(1, &dictionary("(1000000000, 1000000000)"), &[]), &["(1000000000, 1000000000)"]),
        (npy_of(1, &dictionary("(4294967296, 4294967296)"), &[]), &["(4294967296, 4294967296)"]),
        (npy_of(1, &dictionary("(4611686018427387905, 4)"), &[]), &["(4611686018427387905, 4)"]),
        (npy_of(1, &dictionary("(18446744073709551615,)"), &[]), &["18446744073709551615"]),
        (npy_of(1, &dictionary("(99999999999999999999,)"), &[]), &["99999999999999999999"]),
        (npy_of(1, &dictionary("(18446744073709551615, 0)"), &[]), &["(18446744073709551615, 0)"]),
        (npy_of(1, &dictionary("(-1, 4)"), &[]), &["-1"]),
        (npy_of(1, &dictionary("(1000000, 1000)"), &[]), &["truncated", "1000000"]),
        (npy_of(1, nested.as_bytes(), &[]), &["where a size belongs"]),
        (npy_of(1, lists.as_bytes(), &[]), &["where a string belongs"]),
        (npy_of(1, key.as_bytes(), &[]), &["unknown key 'kkk"]),
        (npy_of(1, b"{'descr': '\xff\xfe'}", &[]), &["not text"]),
        (npy_of(1, b"{'descr': '\x1b[31m\n\x07', 'fortran_order': False, 'shape': (1,)}", &[]), &["type"]),
        (npy_of(1, b"", &[]), &["header"]),
        (npy_of(9, b"{}", &[]), &["version 9"]),
        (b"PK\x03\x04 this is an npz".to_vec(), &["magic"]),
    ];
    for (bytes, words) in cases {
        write(&folder, "x.npy", bytes);
        refused(folder.path(), &["x.npy"], &[*words, &["x.npy", "got"]].concat());
    }
    // Rows without end and no client: nothing to hold, but longer than a row may be.
    write(&folder, "x.npy", &npy_of(1, &dictionary("(0, 9223372036854775807)"), &[]));
    let words = ["x.npy", "row too long", "expected at most 2^31", "or the client as several rows"];
    fails(folder.path(), &["norms", "x.npy", "--backend", "cpu"], 1, &words);
}

/// A sparse file claims memory that no machine has; the process must not be aborted for it.
#[cfg(target_os = "linux")]
#[test]
fn a_file_beyond_memory_is_refused() {
    let folder = TempDir::new().unwrap();
    let elements = 1u64 << 44;
    let header = npy("(8796093022208, 2)", &[]);
    write(&folder, "x.npy", &header);
    let file = fs::OpenOptions::new().write(true).open(folder.path().join("x.npy")).unwrap();
    if file.set_len(header.len() as u64 + elements * 4).is_err() {
        let elements = 1u64 << 41;
        let header = npy("(1099511627776, 2)", &[]);
        write(&folder, "x.npy", &header);
        if file.set_len(header.len() as u64 + elements * 4).is_err() {
            eprintln!("SKIPPED: the file system has no files of 8 TiB");
            return;
        }
    }
    let run = run(folder.path(), &["norms", "x.npy", "--backend", "cpu"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("got") && run.stderr.contains("expected"), "{}", run.stderr);
    assert_eq!((run.stdout.as_str(), run.stderr.lines().count()), ("", 1));
}

#[test]
fn hostile_safetensors_are_refused() {
    let folder = TempDir::new().unwrap();
    let entry = |name: &str, shape: &str, start: u64, end: u64| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}")
    };
    let whole = tensors("{}", &[("a", &[2], &[1.0, 2.0]), ("b", &[1], &[3.0])]);
    let object = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let escape = "{\"\\u001b[31m\\u0007\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
    let long = object(&[entry(&"n".repeat(100_000), "[1]", 0, 4).replace("F32", "F64")]);
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"abc".to_vec(),
        u64::MAX.to_le_bytes().to_vec(),
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        [&(1u64 << 62).to_le_bytes()[..], b"{}"].concat(),
        [&50_000_000u64.to_le_bytes()[..], b"{}"].concat(),
        whole[..whole.len() - 1].to_vec(),
        whole[..20].to_vec(),
        [&whole[..], &[0]].concat(),
        raw_safetensors("not json", &[]),
        raw_safetensors("[]", &[]),
        raw_safetensors(&deep, &[]),
        raw_safetensors(&object(&[entry("a", "[2]", 0, 8), entry("b", "[2]", 4, 12)]), &[0; 12]),
        raw_safetensors(&object(&[entry("a", "[2]", 0, 8), entry("b", "[2]", 0, 8)]), &[0; 8]),
        raw_safetensors(&object(&[entry("a", "[2]", 0, 8), entry("b", "[1]", 12, 16)]), &[0; 16]),
        raw_safetensors(&object(&[entry("a", "[3]", 0, 8)]), &[0; 8]),
        raw_safetensors(&object(&[entry("a", "[2]", 8, 0)]), &[0; 8]),
        raw_safetensors(&object(&[entry("a", "[4611686018427387905,4]", 0, 16)]), &[0; 16]),
        raw_safetensors(&object(&[entry("a", "[1]", 0, 4).replace("F32", "F99")]), &[0; 4]),
        raw_safetensors(&object(&[entry("a", "[-1]", 0, 4)]), &[0; 4]),
        raw_safetensors(escape, &[0; 8]),
        raw_safetensors(&long, &[0; 4]),
    ];
    for (number, bytes) in cases.iter().enumerate() {
        eprintln!("case {number}");
        write(&folder, "x.safetensors", bytes);
        refused(folder.path(), &["x.safetensors"], &["x.safetensors", "got"]);
    }
    let doubles = object(&[entry("a", "[1]", 0, 8).replace("F32", "F64")]);
    write(&folder, "x.safetensors", &raw_safetensors(&doubles, &[0; 8]));
    refused(folder.path(), &["x.safetensors"], &["tensor 'a' of type F64", "F32", "convert"]);
}

#[test]
fn clients_of_different_models_are_refused() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.safetensors", &tensors("{}", &[("w", &[2], &[1.0, 2.0]), ("b", &[1], &[3.0])]));
    let others: &[(&[Floats], &[&str])] = &[
        (&[("w", &[2], &[1.0, 2.0])], &["no tensor 'b'"]),
        (&[("w", &[1, 2], &[1.0, 2.0]), ("b", &[1], &[3.0])], &["tensor 'w' of shape [1, 2]", "[2]"]),
        (&[("w", &[2], &[1.0, 2.0]), ("b", &[1], &[3.0]), ("c", &[1], &[3.0])], &["tensor 'c'"]),
        (&[("w", &[2], &[1.0, 2.0]), ("d", &[1], &[3.0])], &["no tensor 'b'"]),
        (&[], &["no tensor 'b'"]),
    ];
    for (other, words) in others {
        write(&folder, "b.safetensors", &tensors("{}", other));
        let words =
            [*words, &["b.safetensors", "of a.safetensors", "pass clients of the same model"]].concat();
        refused(folder.path(), &["a.safetensors", "b.safetensors"], &words);
    }
}

// Outputs.

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let (folder, _) = folder();
    let path = folder.path();
    write(&folder, "c.safetensors", &tensors("{}", &[("w", &[1], &[1.0])]));
    fs::create_dir_all(path.join("there/c.safetensors")).unwrap();
    let to = |input: &str, output: &str, code: i32, words: &[&str]| {
        let words = [words, &["got", "expected", "-o"]].concat();
        fails(path, &["clip", input, "-o", output, "--max-norm", "1", "--backend", "cpu"], code, &words);
    };
    to("in.npy", "nowhere/out.npy", 1, &["no folder nowhere", "a folder that exists", "create it"]);
    to("in.npy", "in.npy/out.npy", 1, &["in.npy"]);
    to("in.npy", "there", 1, &["there: got a folder", "a file name"]);
    to("c.safetensors", "in.npy", 2, &["got the file in.npy", "a folder"]);
    to("c.safetensors", "there", 1, &["c.safetensors: got a folder", "a file name"]);
}

#[test]
fn the_input_is_never_the_output() {
    let (folder, _) = folder();
    let path = folder.path();
    write(&folder, "c.safetensors", &tensors("{}", &[("w", &[1], &[1.0])]));
    fs::hard_link(path.join("in.npy"), path.join("hard.npy")).unwrap();
    fs::create_dir(path.join("linked")).unwrap();
    fs::hard_link(path.join("c.safetensors"), path.join("linked/c.safetensors")).unwrap();
    let onto = |input: &str, output: &str| {
        let words = [input, output, "got the input", "expected another place", "choose another -o"];
        fails(path, &["clip", input, "-o", output, "--max-norm", "1"], 2, &words);
    };
    onto("in.npy", "in.npy");
    onto("in.npy", "./in.npy");
    onto("in.npy", "hard.npy");
    onto("c.safetensors", ".");
    onto("c.safetensors", "linked");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("in.npy", path.join("soft.npy")).unwrap();
        std::os::unix::fs::symlink(".", path.join("here")).unwrap();
        onto("in.npy", "soft.npy");
        onto("soft.npy", "in.npy");
        onto("c.safetensors", "here");
    }
}

#[test]
fn two_inputs_of_one_name_are_refused() {
    let folder = TempDir::new().unwrap();
    for client in ["a", "b"] {
        fs::create_dir(folder.path().join(client)).unwrap();
        write(&folder, &format!("{client}/c.safetensors"), &tensors("{}", &[("w", &[1], &[1.0])]));
    }
    let words = ["got two inputs called c.safetensors", "expected a name for each", "rename"];
    for inputs in [["a/c.safetensors", "b/c.safetensors"], ["a/c.safetensors", "a/c.safetensors"]] {
        fails(folder.path(), &[&["clip", "-o", "out", "--max-norm", "1"], &inputs[..]].concat(), 2, &words);
    }
    // Norms write nothing, so names do not matter.
    assert_eq!(json_of(folder.path(), &["norms", "a/c.safetensors", "b/c.safetensors"])["clients"], 2);
}

#[cfg(unix)]
#[test]
fn special_files_are_neither_read_nor_replaced() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let (folder, _) = folder();
    let path = folder.path();
    let made = Command::new("mkfifo").arg(path.join("pipe.npy")).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no mkfifo");
        return;
    }
    let words = ["pipe.npy: got a device or pipe", "expected"];
    fails(path, &["clip", "in.npy", "-o", "pipe.npy", "--max-norm", "1", "--backend", "cpu"], 1, &words);
    fails(path, &["norms", "pipe.npy", "--backend", "cpu"], 1, &words);
    assert!(fs::metadata(path.join("pipe.npy")).unwrap().file_type().is_fifo());
    symlink("pipe.npy", path.join("link.npy")).unwrap();
    fails(path, &["clip", "in.npy", "-o", "link.npy", "--max-norm", "1"], 1, &["link.npy", "device or pipe"]);
    symlink("nothing", path.join("dangling.npy")).unwrap();
    fails(path, &["clip", "in.npy", "-o", "dangling.npy", "--max-norm", "1"], 1, &["a symlink to nothing"]);
}

#[test]
fn an_output_that_is_there_is_replaced() {
    let (folder, values) = folder();
    let path = folder.path();
    write(&folder, "out.npy", &[7; 5000]);
    succeed(path, &["clip", "in.npy", "-o", "out.npy", "--max-norm", "1"]);
    let (clipped, _) = expected(&Layout::dense(3, 4).unwrap(), &values, &Clipping::fixed(1.0));
    assert_eq!(read(&folder, "out.npy"), npy("(3, 4)", &clipped));
    assert_eq!(names(path), ["in.npy", "out.npy"]);
    #[cfg(unix)]
    {
        // Through a symlink, which stays one.
        std::os::unix::fs::symlink("out.npy", path.join("link.npy")).unwrap();
        succeed(path, &["clip", "in.npy", "-o", "link.npy", "--max-norm", "inf"]);
        assert_eq!(read(&folder, "out.npy"), read(&folder, "in.npy"));
        assert!(fs::symlink_metadata(path.join("link.npy")).unwrap().is_symlink());
        // Readable like any new file.
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode();
        assert_eq!(mode("out.npy"), mode("in.npy"));
    }
}

// Results.

#[test]
fn empty_arrays_are_legal() {
    let folder = TempDir::new().unwrap();
    for (shape, clients, params) in [("(0, 5)", 0, 5), ("(5, 0)", 5, 0), ("(0,)", 1, 0), ("(0, 0)", 0, 0)] {
        let bytes = npy(shape, &[]);
        write(&folder, "x.npy", &bytes);
        for backend in ["cpu", "reference"] {
            let norms = json_of(folder.path(), &["norms", "x.npy", "--backend", backend]);
            assert_eq!((&norms["clients"], &norms["params"]), (&clients.into(), &params.into()));
            let clip = json_of(
                folder.path(),
                &["clip", "x.npy", "-o", "o.npy", "--max-norm", "0", "--backend", backend],
            );
            assert_eq!(clip["rows"].as_array().unwrap().len(), clients);
            assert_eq!(read(&folder, "o.npy"), bytes, "{shape}");
        }
        succeed(folder.path(), &["clip", "x.npy", "-o", "o.npy", "--max-norm", "1", "--backend", "cpu"]);
        succeed(folder.path(), &["norms", "x.npy", "--per-layer", "--backend", "cpu"]);
    }
    for file in [tensors("{}", &[]), tensors("{}", &[("a", &[0, 3], &[]), ("b", &[1], &[2.0])])] {
        write(&folder, "x.safetensors", &file);
        let clip = ["clip", "x.safetensors", "-o", "o", "--max-norm", "9", "--backend", "cpu"];
        for per_layer in [&[][..], &["--per-layer"]] {
            let clip = json_of(folder.path(), &[&clip, per_layer].concat());
            assert_eq!(clip["clients"], 1);
            assert_eq!(read(&folder, "o/x.safetensors"), file);
        }
    }
}

#[test]
fn the_header_stays_byte_for_byte() {
    let folder = TempDir::new().unwrap();
    let values = values(6, 3);
    let odd = b"{ \"shape\" : (6,) , 'fortran_order':True,'descr':'<f4' }\n".to_vec();
    let two = npy_header("<f4", "False", "(2, 3)").into_bytes();
    let files = [
        (npy_of(1, npy_header("<f4", "False", "(6,)").as_bytes(), &bytes(&values)), 1),
        (npy_of(1, &odd, &bytes(&values)), 1),
        (npy_of(2, &two, &bytes(&values)), 2),
        (npy_of(3, &two, &bytes(&values)), 2),
    ];
    for (file, clients) in files {
        write(&folder, "x.npy", &file);
        let clip = ["clip", "x.npy", "-o", "o.npy", "--max-norm", "0.5", "--backend", "cpu"];
        let report = json_of(folder.path(), &clip);
        let layout = Layout::dense(clients, 6 / clients).unwrap();
        let (clipped, expected) = expected(&layout, &values, &Clipping::fixed(0.5));
        assert_rows(&report, &expected);
        let header = &file[..file.len() - 24];
        assert_eq!(read(&folder, "o.npy"), [header, &bytes(&clipped)].concat());
        assert_eq!((&report["clients"], &report["params"]), (&clients.into(), &(6 / clients).into()));
    }
}

/// Two clients, tensors not in name order, and metadata with its spaces.
fn two_clients(folder: &TempDir) -> (Vec<f32>, Layout) {
    let metadata = "{ \"round\": \"7\",\"note\":\"\\u00e9 \" }";
    let (a, b) = (values(7, 11), values(7, 12));
    for (name, v) in [("a", &a), ("b", &b)] {
        let file =
            tensors(metadata, &[("w.2", &[2, 2], &v[..4]), ("b.0", &[1], &v[4..5]), ("w.10", &[2], &v[5..])]);
        write(folder, &format!("{name}.safetensors"), &file);
    }
    // Layers in name order: b.0, w.10, w.2.
    let row = |v: &[f32]| [&v[4..5], &v[5..], &v[..4]].concat();
    ([row(&a), row(&b)].concat(), Layout::dense(2, 7).unwrap().layered(&[1, 2, 4]).unwrap())
}

#[test]
fn safetensors_keep_everything_but_values() {
    let folder = TempDir::new().unwrap();
    let (data, layout) = two_clients(&folder);
    for granularity in [Granularity::Row, Granularity::Segment] {
        let clip =
            ["clip", "a.safetensors", "b.safetensors", "-o", "out", "--max-norm", "0.5", "--backend", "cpu"];
        let per_layer: &[&str] = if granularity == Granularity::Segment { &["--per-layer"] } else { &[] };
        let report = json_of(folder.path(), &[&clip, per_layer].concat());
        let (clipped, expected) = expected(&layout, &data, &Clipping::fixed(0.5).granularity(granularity));
        assert_rows(&report, &expected);
        assert_eq!(names(&folder.path().join("out")), ["a.safetensors", "b.safetensors"]);
        for (client, name) in ["a.safetensors", "b.safetensors"].iter().enumerate() {
            let input = read(&folder, name);
            let row = &clipped[client * 7..client * 7 + 7];
            let values = [&row[3..], &row[..1], &row[1..3]].concat();
            let header = &input[..input.len() - 28];
            assert_eq!(read(&folder, &format!("out/{name}")), [header, &bytes(&values)].concat());
        }
        if granularity == Granularity::Segment {
            for row in report["rows"].as_array().unwrap() {
                let names: Vec<_> = row["segments"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
                assert_eq!(names, ["b.0", "w.10", "w.2"]);
            }
        }
    }
    let norms = json_of(
        folder.path(),
        &["norms", "a.safetensors", "b.safetensors", "--per-layer", "--backend", "cpu"],
    );
    let (_, exact) = expected(&layout, &data, &Clipping::fixed(0.5).granularity(Granularity::Segment));
    assert_norms(&norms, &exact);
    assert_eq!(norms["rows"][1]["segments"][2]["name"], "w.2");
    let table = succeed(
        folder.path(),
        &["norms", "a.safetensors", "b.safetensors", "--per-layer", "--backend", "cpu"],
    );
    assert!(table.contains("b.0") && table.contains("w.10"), "{table}");
}

/// Rows that are clipped, untouched, hold NaN or Inf, overflow, or are subnormal.
fn hard_rows() -> (Vec<f32>, Layout) {
    let mut data = values(9 * 5, 5);
    data[5..10].copy_from_slice(&[1.0, f32::NAN, 2.0, 3.0, 4.0]);
    data[10..15].copy_from_slice(&[1.0, 2.0, f32::NEG_INFINITY, 3.0, -0.0]);
    data[15..20].fill(f32::MAX);
    data[20..25].fill(1e-45);
    data[25..30].fill(-0.0);
    data[30..35].fill(1e-30);
    data[35..40].fill(0.01);
    (data, Layout::dense(9, 5).unwrap())
}

#[test]
fn policies_and_scopes_and_floats_are_those_of_the_reference() {
    let folder = TempDir::new().unwrap();
    let (data, layout) = hard_rows();
    write(&folder, "x.npy", &npy("(9, 5)", &data));
    let scopes = [
        ("all", Scope::All),
        ("rows:0,3,5-8", Scope::Rows(vec![0, 3, 5, 6, 7, 8])),
        ("rows:8,1", Scope::Rows(vec![8, 1])),
        ("rows:", Scope::Rows(vec![])),
    ];
    let policies = [("zero", NonFinite::Zero), ("keep", NonFinite::Keep), ("error", NonFinite::Error)];
    let bounds = ["0.1", "1e-40", "3.4028235e38", "0", "0.33333334"];
    let mut seen = std::collections::BTreeSet::new();
    for (text, scope) in &scopes {
        for (policy_name, policy) in policies {
            for bound in bounds {
                let arguments = [
                    "clip",
                    "x.npy",
                    "-o",
                    "o.npy",
                    "--backend",
                    "cpu",
                    "--scope",
                    text,
                    "--non-finite",
                    policy_name,
                    "--max-norm",
                    bound,
                ];
                let clipping =
                    Clipping::fixed(bound.parse().unwrap()).scope(scope.clone()).non_finite(policy);
                let mut clipped = data.clone();
                match Reference.run(&layout, &mut clipped, &clipping) {
                    Ok(report) => {
                        let json = json_of(folder.path(), &arguments);
                        assert_rows(&json, &report);
                        assert_eq!(json["backend"], "cpu");
                        assert_eq!((&json["adapter"], &json["params"]), (&Value::Null, &5.into()));
                        assert_eq!(read(&folder, "o.npy"), npy("(9, 5)", &clipped));
                        seen.extend(report.rows.iter().map(|row| row.status.name()));
                        fs::remove_file(folder.path().join("o.npy")).unwrap();
                    }
                    Err(error) => {
                        let row = if *text == "rows:8,1" || *text == "all" { "row 1" } else { "row" };
                        assert!(error.to_string().contains(row), "{error}");
                        let words = ["NaN or Inf", row, "expected finite", "drop that client"];
                        fails(folder.path(), &arguments, 1, &words);
                    }
                }
            }
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
    let norms = json_of(folder.path(), &["norms", "x.npy", "--backend", "cpu"]);
    let (_, exact) = expected(&layout, &data, &Clipping::fixed(1.0));
    assert_norms(&norms, &exact);
}

#[test]
fn an_infinite_bound_clips_nothing() {
    let (folder, _) = folder();
    let clip =
        json_of(folder.path(), &["clip", "in.npy", "-o", "o.npy", "--max-norm", "inf", "--backend", "cpu"]);
    assert_eq!((&clip["rows"][0]["bound"], &clip["clipped"]), (&"inf".into(), &0.into()));
    assert_eq!(read(&folder, "o.npy"), read(&folder, "in.npy"));
}

#[test]
fn tables_are_aligned_and_say_what_ran() {
    let (folder, _) = folder();
    let table =
        succeed(folder.path(), &["clip", "in.npy", "-o", "o.npy", "--max-norm", "1e-30", "--backend", "cpu"]);
    assert!(
        table.starts_with("cpu (asked for by name)\n3 clients, 4 params, bound fixed:1e-30\n"),
        "{table}"
    );
    assert!(table.contains("3 clipped") && table.ends_with("written to o.npy\n"), "{table}");
    let rows: Vec<_> = table.lines().skip_while(|line| !line.starts_with("client")).take(4).collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{table}");
    write(&folder, "many.npy", &npy("(40, 1)", &values(40, 9)));
    let table = succeed(folder.path(), &["norms", "many.npy", "--backend", "cpu"]);
    assert!(table.contains("...") && table.contains("(40 rows in all; --json has every one)"), "{table}");
    write(&folder, "one.npy", &npy("(1,)", &[2.0]));
    let table = succeed(folder.path(), &["norms", "one.npy", "--backend", "cpu"]);
    assert!(table.contains("\n1 client, 1 param\n"), "{table}");
}

#[test]
fn cpu_and_reference_agree() {
    let folder = TempDir::new().unwrap();
    let (data, _) = hard_rows();
    write(&folder, "x.npy", &npy("(9, 5)", &data));
    let of = |backend: &str| {
        let arguments = ["clip", "x.npy", "-o", "o.npy", "--max-norm", "0.1", "--backend", backend];
        let json = json_of(folder.path(), &arguments);
        assert_eq!(json["backend"], backend);
        (json["rows"].clone(), read(&folder, "o.npy"))
    };
    assert!(of("cpu") == of("reference"));
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let (folder, _) = folder();
    write(&folder, "long.npy", &npy("(30000, 1)", &values(30_000, 4)));
    for arguments in [
        &["norms", "long.npy", "--backend", "cpu", "--json"][..],
        &["clip", "long.npy", "-o", "o.npy", "--max-norm", "1", "--backend", "cpu", "--json"],
        &["norms", "in.npy", "--backend", "cpu"],
        &["devices"],
        &["--help"],
    ] {
        let mut child =
            command(folder.path(), arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let code = child.wait().unwrap().code();
        assert_eq!(stderr, "", "{arguments:?}");
        assert!(matches!(code, Some(0 | 1)), "{arguments:?}: {code:?}");
    }
    // Without a stderr to complain to, the exit code still tells.
    let mut child = command(folder.path(), &["norms", "no.npy", "--backend", "cpu"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

// Devices.

#[test]
fn devices_are_listed() {
    let folder = TempDir::new().unwrap();
    let devices = json_of(folder.path(), &["devices"]);
    let adapters = devices["adapters"].as_array().unwrap();
    for adapter in adapters {
        assert!(adapter["name"].is_string() && adapter["software"].is_boolean(), "{adapter}");
        assert!(adapter["limits"]["max_buffer_bytes"].as_u64().unwrap() > 0, "{adapter}");
        assert!(adapter["features"]["subgroups"].is_boolean(), "{adapter}");
    }
    let hardware = adapters.iter().any(|adapter| adapter["software"] == false);
    let auto = &devices["auto"]["backend"];
    // A hardware adapter may be there and not open.
    assert!(auto == "cpu" || (auto == "gpu" && hardware), "{devices}");
    assert!(!devices["auto"]["why"].as_str().unwrap().is_empty());
    let listed = succeed(folder.path(), &["devices", "--names", "all"]);
    let expected: Vec<_> = adapters.iter().map(|adapter| adapter["name"].as_str().unwrap()).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    assert!(succeed(folder.path(), &["devices"]).contains("--backend auto takes"));
}

#[test]
fn auto_says_why_and_takes_what_devices_names() {
    let (folder, _) = folder();
    let auto = json_of(folder.path(), &["devices"])["auto"].clone();
    let norms = json_of(folder.path(), &["norms", "in.npy"]);
    assert_eq!((&norms["backend"], &norms["adapter"]), (&auto["backend"], &auto["adapter"]));
    // Where there was a trial, its figures are those of this call.
    let words = |why: &Value| why.as_str().unwrap().replace(|c: char| c.is_ascii_digit() || c == '.', "");
    assert_eq!(words(&norms["why"]), words(&auto["why"]));
}

#[test]
fn no_gpu_is_an_error_that_lists_what_was_found() {
    let (folder, _) = folder();
    let adapters = json_of(folder.path(), &["devices"])["adapters"].clone();
    let found: Vec<_> = adapters.as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    let clip = ["clip", "in.npy", "-o", "o.npy", "--max-norm", "1"];
    let mut words = vec!["no such adapter", "got", "expected", "cpu backend"];
    if cfg!(feature = "gpu") {
        words.extend(&found);
        words[0] = "\"no such adapter\"";
    } else {
        words.remove(0);
    }
    fails(folder.path(), &[&clip[..], &["--adapter", "no such adapter"]].concat(), 1, &words);
    if adapters.as_array().unwrap().iter().all(|adapter| adapter["software"] == true) {
        words[0] = "no GPU adapter";
        fails(folder.path(), &[&clip[..], &["--backend", "gpu"]].concat(), 1, &words);
    }
}

#[cfg(feature = "gpu")]
mod on_gpu {
    use super::*;

    fn adapter() -> Option<String> {
        gpu::adapter().map(|adapter| adapter.get_info().name)
    }

    #[test]
    fn every_backend_gives_the_same_file_and_rows() {
        let Some(adapter) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let (data, _) = hard_rows();
        write(&folder, "x.npy", &npy("(9, 5)", &data));
        two_clients(&folder);
        let backends: [&[&str]; 4] = [
            &["--backend", "reference"],
            &["--backend", "cpu"],
            &["--backend", "gpu", "--adapter", &adapter],
            &["--adapter", &adapter],
        ];
        let cases: &[&[&str]] = &[
            &["x.npy", "-o", "o.npy", "--max-norm", "0.1"],
            &["x.npy", "-o", "o.npy", "--max-norm", "0.1", "--non-finite", "keep", "--scope", "rows:0-3,8"],
            &["a.safetensors", "b.safetensors", "-o", "o", "--max-norm", "0.5"],
            &["a.safetensors", "b.safetensors", "-o", "o", "--max-norm", "0.5", "--per-layer"],
        ];
        for case in cases {
            let mut first = None;
            for backend in backends {
                let json = json_of(folder.path(), &[&["clip"], *case, backend].concat());
                let on_gpu = backend.contains(&"--adapter");
                assert_eq!(json["backend"], if on_gpu { "gpu" } else { backend[1] });
                assert_eq!(json["adapter"], if on_gpu { adapter.as_str().into() } else { Value::Null });
                let got = (json["rows"].clone(), fixtures::contents(folder.path()));
                assert!(*first.get_or_insert_with(|| got.clone()) == got, "{case:?} {backend:?}");
            }
        }
    }

    #[test]
    fn sixty_four_clients_byte_for_byte() {
        let Some(adapter) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        write(&folder, "x.npy", &npy("(64, 100000)", &values(6_400_000, 8)));
        let clip = ["clip", "x.npy", "-o"];
        let cpu = ["cpu.npy", "--max-norm", "100", "--backend", "cpu"];
        let gpu = ["gpu.npy", "--max-norm", "100", "--backend", "gpu", "--adapter", &adapter];
        let (cpu, gpu) = (
            json_of(folder.path(), &[&clip[..], &cpu].concat()),
            json_of(folder.path(), &[&clip[..], &gpu].concat()),
        );
        assert_eq!(cpu["rows"], gpu["rows"]);
        assert_eq!(cpu["clipped"], 64);
        assert!(read(&folder, "cpu.npy") == read(&folder, "gpu.npy"));
    }

    #[test]
    fn errors_are_the_same_on_a_gpu() {
        let Some(adapter) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let (data, _) = hard_rows();
        write(&folder, "x.npy", &npy("(9, 5)", &data));
        let clip = ["clip", "x.npy", "-o", "o.npy", "--max-norm", "1", "--adapter", &adapter];
        let words = ["row 1", "expected finite", "drop that client"];
        fails(folder.path(), &[&clip[..], &["--non-finite", "error"]].concat(), 1, &words);
        fails(
            folder.path(),
            &[&clip[..], &["--scope", "rows:9"]].concat(),
            1,
            &["row 9", "expected", "correct"],
        );
        fails(
            folder.path(),
            &[&clip[..], &["--scope", "rows:3,3"]].concat(),
            2,
            &["row 3 twice", "expected"],
        );
    }

    #[test]
    fn verify_passes_and_finds_an_injected_fault() {
        let Some(adapter) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let good = json_of(folder.path(), &["verify", "--adapter", &adapter]);
        assert_eq!((&good["mismatches"], &good["fault_injected"]), (&0.into(), &false.into()));
        let subjects = good["subjects"].as_array().unwrap();
        assert!(subjects.iter().any(|subject| subject["adapter"] == adapter.as_str()), "{good}");
        let run = run(folder.path(), &["verify", "--adapter", &adapter, "--inject-fault"]);
        assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("1 WRONG") && run.stdout.contains("injected"), "{}", run.stdout);
        assert_eq!(run.stderr, "");
    }

    #[test]
    fn verify_of_an_unknown_adapter_lists_those_found() {
        let Some(adapter) = adapter() else { return };
        let folder = TempDir::new().unwrap();
        let words = ["\"no such adapter\"", "got", "expected", &adapter];
        fails(folder.path(), &["verify", "--adapter", "no such adapter"], 1, &words);
    }
}
