//! The command line, run as a program: thresholds, layers, coordinates, analysis and training. Files and
//! their errors are tested in `cli.rs`.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use self::fixtures::{
    bytes, command, fails, fails_as, float, json_of, npy, npy_bytes, run_of, safetensors, succeed, tensors,
};

#[cfg(feature = "gpu")]
mod common;
#[path = "common/cli.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;

fn f32_at(value: &Value) -> f32 {
    float(value).unwrap()
}

/// Five clients: honest, boosted, tiny, broken, boosted.
fn five() -> Vec<f32> {
    let mut data: Vec<f32> = (0..5 * 7).map(|i| ((i * 37 % 11) as f32 - 5.0) * 0.1).collect();
    data[7..14].iter_mut().for_each(|v| *v *= 1e3);
    data[14..21].iter_mut().for_each(|v| *v *= 1e-30);
    data[23] = f32::NAN;
    data[28..].iter_mut().for_each(|v| *v *= 77.7);
    data
}

fn folder_with_five() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in.npy"), npy("(5, 7)", &five())).unwrap();
    folder
}

#[test]
fn layers_share_a_total_as_asked() {
    let folder = TempDir::new().unwrap();
    let file = tensors("{}", &[("a", &[4], &[9.0; 4]), ("b", &[12], &[9.0; 12])]);
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

    let args = ["clip", "in.npy", "-o", "out.npy", "--threshold", "history", "--state", "state.json"];
    fails(folder.path(), &args, 1, &["the state of adaptive", "history:window=20", "begin anew"]);
    let state = fs::read_to_string(folder.path().join("state.json")).unwrap();
    fs::write(folder.path().join("state.json"), "{}").unwrap();
    fails(folder.path(), &args, 1, &["state.json", "a state that byzclip wrote"]);
    let words = state.split("\"words\":").next().unwrap();
    fs::write(folder.path().join("state.json"), format!("{words}\"words\":[]}}")).unwrap();
    let adaptive = ["--threshold", "adaptive:c0=1,target=0.8,rate=0.2", "--state", "state.json"];
    let args = [&["clip", "in.npy", "-o", "out.npy"][..], &adaptive].concat();
    fails(folder.path(), &args, 1, &["a state without words"]);
}

/// A state of 88 MB, and one that would be longer than any that is read again.
#[test]
fn a_long_history_is_read_again_or_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let names: Vec<String> = (0..40).map(|layer| layer.to_string()).collect();
    let value = 2.0f32.to_le_bytes();
    let file = |layers: usize| {
        let tensors: Vec<(&str, &str, &[usize], &[u8])> =
            names[..layers].iter().map(|name| (name.as_str(), "F32", &[1][..], &value[..])).collect();
        safetensors(&tensors, "{}")
    };
    for (name, layers) in [("a.safetensors", 4), ("b.safetensors", 4), ("c.safetensors", 40)] {
        fs::write(folder.path().join(name), file(layers)).unwrap();
    }
    let policy =
        ["-o", "out", "--per-layer", "--threshold", "history:window=1000000,factor=0.5", "--state", "s"];
    let clip = [&["clip", "a.safetensors", "b.safetensors"], &policy[..]].concat();
    let states = [(); 2].map(|()| {
        let report = json_of(folder.path(), &clip);
        assert_eq!(report["clipped"], 2, "{report}");
        fs::read_to_string(folder.path().join("s")).unwrap()
    });
    assert!(states[0].len() > 80_000_000, "{}", states[0].len());
    let rounds_and_norms = |state: &str| {
        let words = state.split_once("\"words\":[").unwrap().1;
        words.split(',').take(6).map(|word| word.parse().unwrap()).collect::<Vec<u32>>()
    };
    let (none, two) = (u32::MAX, 2.0f32.to_bits());
    assert_eq!(rounds_and_norms(&states[0]), [1, two, two, none, none, none]);
    assert_eq!(rounds_and_norms(&states[1]), [2, two, two, two, two, none]);
    fails(
        folder.path(),
        &[&["clip", "c.safetensors"], &policy[..]].concat(),
        2,
        &["a history of 1000000 rounds, each of 40 norms", "at most 16,777,216", "fewer rounds"],
    );
}

#[test]
fn a_state_has_a_file_of_its_own_and_a_threshold_that_remembers() {
    let folder = folder_with_five();
    let clip = |more: &[&'static str]| [&["clip", "in.npy", "-o", "out.npy"][..], more].concat();
    for (state, words) in
        [("in.npy", "the input in.npy as --state"), ("./out.npy", "the output out.npy as --state")]
    {
        let args = [&clip(&["--threshold", "adaptive", "--state"])[..], &[state]].concat();
        fails(folder.path(), &args, 2, &[words]);
    }
    let forgets = clip(&["--threshold", "median:2", "--state", "s.json"]);
    fails(folder.path(), &forgets, 2, &["--state s.json with median:2", "adaptive or history"]);
    // Where the state cannot be written, neither is the output.
    let nowhere = clip(&["--threshold", "adaptive", "--state", "no/such/folder/s.json"]);
    fails(folder.path(), &nowhere, 1, &["no/such/folder"]);
}

#[test]
fn numbers_that_no_f32_holds_are_refused() {
    let folder = folder_with_five();
    for bound in [["--max-norm", "1e-50"], ["--max-norm", "4e38"], ["--threshold", "median:1e-60"]] {
        let args = [&["clip", "in.npy", "-o", "out.npy"][..], &bound].concat();
        fails(folder.path(), &args, 2, &["that an f32 holds"]);
    }
}

/// The backends that the command line reaches here.
fn backends() -> Vec<Vec<String>> {
    let hosts = [vec!["--backend".to_owned(), "reference".into()], vec!["--backend".into(), "cpu".into()]];
    #[cfg(feature = "gpu")]
    let adapter = common::gpu::adapter().map(|adapter| vec!["--adapter".into(), adapter.get_info().name]);
    #[cfg(not(feature = "gpu"))]
    let adapter = None;
    hosts.into_iter().chain(adapter).collect()
}

#[test]
fn the_mean_of_clipped_updates_is_one_row() {
    let folder = TempDir::new().unwrap();
    let rows = [3.0, 4.0, 0.25, 0.5, f32::NAN, 1.0];
    fs::write(folder.path().join("in.npy"), npy("(3, 2)", &rows)).unwrap();
    fs::write(folder.path().join("w.npy"), npy("(3,)", &[1.0, 3.0, 100.0])).unwrap();
    let mut files = Vec::new();
    for backend in backends() {
        let backend: Vec<&str> = backend.iter().map(String::as_str).collect();
        let args = ["mean", "in.npy", "-o", "out.npy", "--weights", "w.npy", "--max-norm", "10"];
        let report = json_of(folder.path(), &[&args[..], &backend].concat());
        assert_eq!((&report["counted"], &report["weight"]), (&json!(2), &json!(4.0)), "{report}");
        assert_eq!((&report["zeroed"], &report["rows"][0]["norm"]), (&json!(1), &json!(5.0)), "{report}");
        files.push(fs::read(folder.path().join("out.npy")).unwrap());
    }
    // (3 + 3 · 0.25) / 4 and (4 + 3 · 0.5) / 4; the row with NaN is not in it.
    assert!(files.iter().all(|file| file.ends_with(&bytes(&[0.9375, 1.375]))), "{files:?}");
    assert!(files.iter().all(|file| file == &files[0]), "{files:?}");

    let text = succeed(folder.path(), &["mean", "in.npy", "-o", "out.npy", "--max-norm", "1"]);
    assert!(
        text.contains("the mean of 2 with the weight 2") && text.contains("1 clipped, 1 zeroed"),
        "{text}"
    );
    // What was written can be read again, as one client.
    assert_eq!(json_of(folder.path(), &["norms", "out.npy"])["clients"], 1);
}

#[test]
fn means_that_cannot_be_are_refused() {
    let folder = folder_with_five();
    fs::write(folder.path().join("two.npy"), npy("(2,)", &[1.0, 2.0])).unwrap();
    fs::write(folder.path().join("negative.npy"), npy("(5,)", &[1.0, 1.0, -1.0, 1.0, 1.0])).unwrap();
    let mean =
        |weights: &'static str| ["mean", "in.npy", "-o", "out.npy", "--max-norm", "1", "--weights", weights];
    fails(folder.path(), &mean("two.npy"), 1, &["2 weights", "5, one per client"]);
    fails(folder.path(), &mean("negative.npy"), 1, &["the weight -1 of client 2"]);
    fails(folder.path(), &mean("none.npy"), 1, &["none.npy"]);
    let onto = ["mean", "in.npy", "-o", "in.npy", "--max-norm", "1"];
    fails(folder.path(), &onto, 2, &["got the input in.npy as output in.npy"]);
    let other = ["mean", "in.npy", "-o", "out.safetensors", "--max-norm", "1"];
    fails(folder.path(), &other, 2, &["out.safetensors", "ends in .npy"]);
}

#[test]
fn a_mean_of_safetensors_has_their_names_and_shapes() {
    let folder = TempDir::new().unwrap();
    for (name, a, b) in [("a", [1.0, 2.0], 3.0), ("b", [3.0, 4.0], 5.0)] {
        let file = tensors("{}", &[("w", &[2, 1], &a), ("b", &[1], &[b])]);
        fs::write(folder.path().join(format!("{name}.safetensors")), file).unwrap();
    }
    let args = ["mean", "a.safetensors", "b.safetensors", "-o", "mean.safetensors", "--max-norm", "inf"];
    json_of(folder.path(), &args);
    let norms = json_of(folder.path(), &["norms", "mean.safetensors", "--per-layer"]);
    let layers = &norms["rows"][0]["segments"];
    assert_eq!((&layers[0]["name"], &layers[1]["name"]), (&json!("b"), &json!("w")), "{norms}");
    assert_eq!((f32_at(&layers[0]["norm"]), f32_at(&layers[1]["norm"])), (4.0, 13.0f32.sqrt()), "{norms}");
}

#[test]
fn a_mean_of_safetensors_is_a_file_of_the_same_bytes_each_time() {
    let folder = TempDir::new().unwrap();
    let metadata = json!({"e": "5", "a": "1", "d": "\"4\"", "b": "2", "c": "3"});
    let of = |metadata: &Value| tensors(metadata, &[("b", &[1], &[1.0]), ("w", &[2, 1], &[2.0, 3.0])]);
    fs::write(folder.path().join("a.safetensors"), of(&metadata)).unwrap();
    for _ in 0..3 {
        let args = ["mean", "a.safetensors", "-o", "mean.safetensors", "--max-norm", "inf"];
        json_of(folder.path(), &args);
        let mean = fs::read(folder.path().join("mean.safetensors")).unwrap();
        let header: Value = serde_json::from_slice(&mean[8..mean.len() - 12]).unwrap();
        assert_eq!(header["__metadata__"], metadata);
        // Ascending, as serde_json's own maps are.
        let text = format!("\"__metadata__\":{metadata},\"b\":{{");
        assert!(String::from_utf8_lossy(&mean).contains(&text), "{}", String::from_utf8_lossy(&mean));
        assert_eq!((mean.len() - 12) % 8, 0);
        assert_eq!(mean[mean.len() - 12..], bytes(&[1.0, 2.0, 3.0]));
    }
}

#[test]
fn updates_are_clipped_around_a_centre() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in.npy"), npy("(2, 2)", &[10.5, 20.0, 13.0, 24.0])).unwrap();
    fs::write(folder.path().join("v.npy"), npy("(2,)", &[10.0, 20.0])).unwrap();
    fs::write(folder.path().join("long.npy"), npy("(3,)", &[10.0, 20.0, 30.0])).unwrap();
    let mut files = Vec::new();
    for backend in backends() {
        let backend: Vec<&str> = backend.iter().map(String::as_str).collect();
        let args = ["clip", "in.npy", "-o", "out.npy", "--max-norm", "1", "--center", "v.npy"];
        let report = json_of(folder.path(), &[&args[..], &backend].concat());
        assert_eq!((&report["rows"][0]["norm"], &report["rows"][1]["norm"]), (&json!(0.5), &json!(5.0)));
        files.push(fs::read(folder.path().join("out.npy")).unwrap());
    }
    assert!(files.iter().all(|file| file == &files[0]), "{files:?}");
    let out: &[u8] = files[0].as_slice();
    let value = |i: usize| f32::from_le_bytes(out[out.len() - 16 + 4 * i..][..4].try_into().unwrap());
    assert_eq!((value(0), value(1)), (10.5, 20.0));
    assert!((value(2) - 10.6).abs() < 1e-5 && (value(3) - 20.8).abs() < 1e-5, "{} {}", value(2), value(3));

    let clip = |more: &[&'static str]| [&["clip", "in.npy", "-o", "out.npy"][..], more].concat();
    fails(folder.path(), &clip(&["--max-norm", "1", "--center", "long.npy"]), 1, &["1 row of 3 elements"]);
    fails(folder.path(), &clip(&["--max-norm", "1", "--center", "in.npy"]), 1, &["2 rows of 2 elements"]);
    fails(folder.path(), &clip(&["--per-coordinate", "1", "--center", "v.npy"]), 2, &["cannot be used with"]);
    let onto = ["clip", "in.npy", "-o", "v.npy", "--max-norm", "1", "--center", "v.npy"];
    fails(folder.path(), &onto, 2, &["the input v.npy as output"]);
}

#[test]
fn wrong_policies_end_with_code_2() {
    let folder = folder_with_five();
    let here = folder.path();
    let clip = |more: &[&'static str]| [&["clip", "in.npy", "-o", "out.npy"], more].concat();
    fails(here, &clip(&[]), 2, &["--max-norm L or --threshold"]);
    fails(here, &clip(&["--max-norm", "1", "--threshold", "median:2"]), 2, &["cannot be used with"]);
    fails(here, &clip(&["--threshold", "average:2"]), 2, &["average", "median:2"]);
    fails(here, &clip(&["--threshold", "quantile:1.5"]), 2, &["quantile", "1.5", "from 0 to 1"]);
    fails(here, &clip(&["--threshold", "median:2", "--per-layer=split-equal"]), 2, &["fixed total"]);
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
    assert_eq!(json_of(folder.path(), &[])["runs"], printed["runs"]);
}

#[test]
fn the_variable_sets_the_bound_of_training() {
    let folder = TempDir::new().unwrap();
    let with = |value: &str| {
        let mut command = command(folder.path(), &["train", "--json", "--backend", "cpu", "--rounds", "2"]);
        command.env("D2_ADVERSARY_CLIP_FACTOR", value);
        command
    };
    let bound = |value: &str| {
        serde_json::from_str::<Value>(&run_of(&mut with(value)).stdout).unwrap()["max_norm"].clone()
    };
    assert_eq!(f32_at(&bound("3.5")), 3.5);
    assert_eq!(bound("0"), Value::Null);
    assert_eq!(bound("-2"), Value::Null);
    for wrong in ["two", "", "nan"] {
        fails_as(&mut with(wrong), 2, &["D2_ADVERSARY_CLIP_FACTOR"]);
    }
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
}

#[test]
fn outputs_that_would_replace_each_other_are_refused() {
    let folder = TempDir::new().unwrap();
    let file = |value: f32| tensors("{}", &[("w", &[2], &[value; 2])]);
    fs::write(folder.path().join("a.safetensors"), file(1.0)).unwrap();
    fs::write(folder.path().join("b.safetensors"), file(9.0)).unwrap();
    let state = ["clip", "a.safetensors", "-o", "fresh", "--threshold", "adaptive", "--state"];
    fails(folder.path(), &[&state[..], &["fresh/a.safetensors"]].concat(), 1, &["a.safetensors"]);
    #[cfg(unix)]
    {
        fs::create_dir(folder.path().join("linked")).unwrap();
        std::os::unix::fs::symlink("b.safetensors", folder.path().join("linked/a.safetensors")).unwrap();
        fs::write(folder.path().join("linked/b.safetensors"), "mine").unwrap();
        let both = ["clip", "a.safetensors", "b.safetensors", "-o", "linked", "--max-norm", "1"];
        fails(folder.path(), &both, 1, &["two outputs"]);
    }
}

#[test]
fn states_and_vectors_are_what_they_are_taken_for() {
    let folder = folder_with_five();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("center.npy", &npy("(7,)", &[0.5; 7]));
    write("broken.npy", &npy("(7,)", &[f32::NAN; 7]));
    let history = ["clip", "in.npy", "-o", "out.npy", "--threshold", "history", "--state", "s.json"];
    json_of(folder.path(), &history);
    fs::remove_file(folder.path().join("out.npy")).unwrap();
    // Norms of differences say nothing about norms.
    fails(folder.path(), &[&history[..], &["--center", "center.npy"]].concat(), 1, &["s.json", "centre"]);
    let fixed = ["clip", "in.npy", "-o", "out.npy", "--max-norm", "1", "--center"];
    fails(folder.path(), &[&fixed[..], &["broken.npy"]].concat(), 1, &["broken.npy", "NaN in element 0"]);
    let printed = json_of(folder.path(), &[&fixed[..], &["center.npy"]].concat());
    assert_eq!(printed["centered"], true);
    let named = ["clip", "in.npy", "-o", "out.safetensors", "--max-norm", "1"];
    fails(folder.path(), &named, 2, &[".npy"]);

    let large = |number: i64| npy_bytes("<i8", "(5,)", &[number.to_le_bytes(); 5].concat());
    write("w.npy", &large(9_007_199_254_740_993));
    let mean = ["mean", "in.npy", "-o", "mean.npy", "--max-norm", "1", "--weights", "w.npy"];
    fails(folder.path(), &mean, 1, &["w.npy", "9007199254740993"]);
    write("w.npy", &large(1 << 40));
    json_of(folder.path(), &mean);
    #[cfg(unix)]
    {
        let made = Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
        assert!(made.success());
        fails(folder.path(), &[&history[..6], &["--state", "pipe"]].concat(), 1, &["a device or pipe"]);
    }
}
