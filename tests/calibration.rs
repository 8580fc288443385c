//! Tunings by measurement: the same bits, what is refused, and the files that they are saved in.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use byzclip::backend::gpu::{Calibration, ShapeClass, Tuning, driver, open};
use byzclip::{Backend, Clipping, Error, Gpu, Layout, Reference};
use common::gpu::adapter;

/// A device, and the text of a calibration that chooses what nobody would, another for each class.
fn odd() -> Option<(Gpu, String)> {
    let adapter = adapter()?;
    let (device, queue) = open(&adapter).unwrap();
    let info = device.adapter_info();
    let gpu = Gpu::from_device(device, queue).unwrap();
    let rest = "subgroups=0 doubles=0 trusted=0 short_rows";
    let text = format!(
        "byzclip calibration 2\nadapter {}\ndriver {}\nversion {}\n\
         short workgroup=64 span_workgroup=64 tile=512 {rest}=2 row_lanes=4 fused_row=0 group_bytes=0\n\
         medium workgroup=128 span_workgroup=32 tile=256 {rest}=9 row_lanes=1 fused_row=16384 group_bytes=0\n\
         long workgroup=32 span_workgroup=16 tile=4096 {rest}=9 row_lanes=1 fused_row=0 group_bytes=65536\n\
         huge workgroup=64 span_workgroup=16 tile=32768 {rest}=9 row_lanes=1 fused_row=0 group_bytes=0\n",
        info.name,
        driver(&info),
        env!("CARGO_PKG_VERSION"),
    );
    Some((gpu, text))
}

#[test]
fn a_calibration_changes_the_strategy_and_no_bit() {
    let Some((gpu, text)) = odd() else { return };
    let gpu = gpu.with_calibration(text.parse().unwrap()).unwrap();
    assert_eq!(gpu.calibration().unwrap().to_string(), text);
    assert!(gpu.ran().why.ends_with(", as calibrated"), "{}", gpu.ran());
    for (clients, params, strategy) in
        [(9, 300, "rows"), (9, 5000, "fused"), (4, 40_000, "grouped"), (2, 300_000, "tiled")]
    {
        let layout = Layout::dense(clients, params).unwrap();
        let value = |i: usize| (i as f32 * 0.37).sin() * if i / params == 1 { 40.0 } else { 0.01 };
        let data: Vec<f32> = (0..layout.len()).map(value).collect();
        let (mut got, mut expected) = (data.clone(), data);
        let report = gpu.run(&layout, &mut got, &Clipping::fixed(2.0)).unwrap();
        let reference = Reference.run(&layout, &mut expected, &Clipping::fixed(2.0)).unwrap();
        let context = format!("{clients} rows of {params}");
        assert_eq!(report.ran.strategy.map(|strategy| strategy.name()), Some(strategy), "{context}");
        common::assert_same_report(&context, &report, &reference);
        common::assert_same_bits(&context, &got, &expected);
    }
}

#[test]
fn a_calibration_of_another_device_or_that_no_device_can_run_is_refused() {
    let Some((_, text)) = odd() else { return };
    let refused = |from: &str, to: &str| {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        let (gpu, _) = odd().unwrap();
        gpu.with_calibration(bad.parse().unwrap()).unwrap_err()
    };
    for (from, to) in [("adapter ", "adapter other "), ("driver ", "driver 9 "), ("version ", "version 9")] {
        let error = refused(from, to);
        assert!(matches!(error, Error::Calibration { .. }), "{error}");
        assert!(error.to_string().contains(to.split_once(' ').unwrap().1.trim()), "{error}");
    }
    for (from, to) in [
        ("workgroup=128", "workgroup=3"),
        ("workgroup=128", "workgroup=4294967295"),
        ("tile=32768", "tile=131072"),
        ("row_lanes=4", "row_lanes=0"),
        #[cfg(not(feature = "trusted"))]
        ("trusted=0", "trusted=1"),
        ("fused_row=16384", "fused_row=65537"),
    ] {
        assert!(matches!(refused(from, to), Error::Setting { .. }), "{to}");
    }
}

/// Whether fields of a tuning are those that a trial speaks of.
fn holds(what: &str, of: impl Fn(&str) -> u64) -> bool {
    let number = || what.split(' ').find_map(|word| word.parse::<u64>().ok()).unwrap();
    let flag = |name: &str, set: &str| of(name) == u64::from(what == set);
    match what {
        "rows fused" => of("fused_row") > 0,
        "rows in tiles" | "no groups" => [of("fused_row"), of("group_bytes")] == [0, 0],
        "sums in f64" | "sums in pairs of f32" => flag("doubles", "sums in f64"),
        "sums joined by subgroups" | "sums joined in shared memory" => {
            flag("subgroups", "sums joined by subgroups")
        }
        "trusted shaders" | "checked shaders" => flag("trusted", "trusted shaders"),
        _ if what.starts_with("groups of ") => [of("fused_row"), of("group_bytes")] == [0, number() << 20],
        _ if what.starts_with("workgroup ") => [of("workgroup"), of("span_workgroup")].contains(&number()),
        _ if what.starts_with("tiles of ") => of("tile") == number(),
        _ if what.ends_with(" lanes a row") => of("row_lanes") == number(),
        _ => panic!("a trial of something else: {what}"),
    }
}

/// Where none was kept, a class has what the device had.
#[test]
fn every_trial_gives_the_bits_of_the_cpu_and_the_last_that_was_kept_is_chosen() {
    let Some((gpu, _)) = odd() else { return };
    let mut trials = Vec::new();
    let calibration = gpu.calibrate_on(400_000, |trial| trials.push(trial.clone())).unwrap();
    for class in ShapeClass::ALL {
        assert!(trials.iter().filter(|trial| trial.class == class).count() >= 4, "{class}: {trials:?}");
    }
    for trial in &trials {
        assert_eq!(trial.wrong, None, "{trial:?}");
        assert!(trial.seconds > 0.0 && trial.best_seconds > 0.0 && trial.ratio > 0.0, "{trial:?}");
        assert_eq!(trial.kept, trial.ratio < 0.95, "{trial:?}");
    }
    let own: &Tuning = gpu.tuning();
    for class in ShapeClass::ALL {
        let of = |field: &str| calibration.choice(class).find(|(name, _)| *name == field).unwrap().1;
        match trials.iter().rfind(|trial| trial.class == class && trial.kept) {
            Some(trial) => assert!(holds(&trial.what, of), "{calibration}, {trial:?}"),
            None => assert_eq!(
                [of("workgroup"), of("span_workgroup"), of("tile"), of("short_rows"), of("fused_row")],
                [own.workgroup, own.span_workgroup, own.tile, own.short_rows, own.fused_row].map(u64::from),
                "{class}: none was kept"
            ),
        }
    }
    let saved: Calibration = calibration.to_string().parse().unwrap();
    assert_eq!(saved, calibration);
    odd().unwrap().0.with_calibration(saved).unwrap();
}

#[cfg(feature = "cli")]
#[path = "common/cli.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;

#[cfg(feature = "cli")]
mod program {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::fixtures::{Run, command, fails_as, npy, run_of};
    use super::*;

    /// The program, which has nothing saved but what is in the folder.
    fn calibrated(folder: &Path, calibration: &str, args: &[&str]) -> Command {
        let mut command = command(folder, args);
        command.env("BYZCLIP_CALIBRATION", calibration).env("XDG_CACHE_HOME", folder.join("cache"));
        command
    }

    /// What it prints as JSON, and its words on stderr.
    fn run(folder: &Path, calibration: &str, args: &[&str]) -> (Value, String) {
        let Run { code, stdout, stderr } = run_of(&mut calibrated(folder, calibration, args));
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        (serde_json::from_str(&stdout).unwrap(), stderr)
    }

    fn folder() -> TempDir {
        let folder = TempDir::new().unwrap();
        let values: Vec<f32> = (0..40).map(|i| i as f32).collect();
        fs::write(folder.path().join("u.npy"), npy("(2, 20)", &values)).unwrap();
        folder
    }

    /// What `norms --json` says of why it ran where it did, and its words on stderr.
    fn why(folder: &Path, calibration: &str, adapter: &str) -> (String, String) {
        let args = ["norms", "u.npy", "--adapter", adapter, "--json"];
        let (printed, stderr) = run(folder, calibration, &args);
        (printed["why"].as_str().unwrap().to_owned(), stderr)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_saved_is_taken_shown_and_switched_off() {
        let Some((gpu, text)) = odd() else { return };
        let adapter = gpu.device().adapter_info().name;
        let folder = folder();
        let devices = |folder: &Path| -> Value {
            let (devices, _) = run(folder, "auto", &["devices", "--json"]);
            let all = devices["adapters"].as_array().unwrap().clone();
            all.into_iter().find(|a| a["name"] == adapter.as_str()).unwrap()["calibration"].clone()
        };
        assert_eq!(devices(folder.path()), Value::Null);

        // Measured, on next to nothing, and saved where `auto` looks.
        let args = ["calibrate", "--adapter", &adapter, "--bytes", "40000", "--json"];
        let (printed, _) = run(folder.path(), "auto", &args);
        assert_eq!(printed["adapter"], adapter.as_str());
        assert!(printed["trials"].as_array().unwrap().iter().all(|trial| trial["wrong"].is_null()));
        let saved = Path::new(printed["file"].as_str().unwrap()).to_owned();
        assert!(saved.starts_with(folder.path().join("cache")), "{saved:?}");
        assert_eq!(devices(folder.path()), printed["file"]);
        let read: Calibration = fs::read_to_string(&saved).unwrap().parse().unwrap();
        for class in ShapeClass::ALL {
            for (name, number) in read.choice(class) {
                assert_eq!(printed["choices"][class.name()][name], number, "{class} {name}");
            }
        }

        let taken = |setting: &str| why(folder.path(), setting, &adapter).0.ends_with(", as calibrated");
        assert!(taken("auto"));
        assert!(!taken("off"));
        fs::write(folder.path().join("odd"), text).unwrap();
        assert!(taken("odd"));

        // One that cannot be read is said, and does not stop the work.
        for broken in ["", "byzclip calibration 2\nadapter x\n", "\u{0}\u{1}"] {
            fs::write(&saved, broken).unwrap();
            let (why, stderr) = why(folder.path(), "auto", &adapter);
            assert!(stderr.contains("unusable calibration") && stderr.contains("calibrate"), "{stderr}");
            // A hardware GPU is measured anew.
            assert_eq!(why.ends_with(", as calibrated"), stderr.contains("saved in"), "{stderr}");
        }
    }

    #[test]
    fn a_file_that_is_asked_for_has_to_be_one_of_the_adapter() {
        let Some((gpu, text)) = odd() else { return };
        let adapter = gpu.device().adapter_info().name;
        let (folder, cache) = (folder(), TempDir::new().unwrap());
        let fails = |calibration: &str, words: &[&str]| {
            let args = ["norms", "u.npy", "--adapter", &adapter];
            // Drivers have caches too: not in the folder, which has to stay as it is.
            let mut command = calibrated(folder.path(), calibration, &args);
            fails_as(command.env("XDG_CACHE_HOME", cache.path()), 1, words);
        };
        fails("nowhere", &["cannot read nowhere"]);
        fs::write(folder.path().join("bad"), "hello").unwrap();
        fails("bad", &["bad: unusable calibration: got \"hello\"", "calibrate anew"]);
        fs::write(folder.path().join("bad"), [0xff, 0xfe]).unwrap();
        fails("bad", &["bad: unusable calibration", "calibrate anew"]);
        fs::write(folder.path().join("foreign"), text.replace("driver ", "driver of old ")).unwrap();
        fails("foreign", &["of old", "calibrate anew"]);
    }
}
