//! Where calibrations are saved, and which one a command takes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// How the kernels of a GPU are shaped.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct CalibrationArgs {
    /// The shape of a GPU's kernels, which changes the time and no bit: `auto` takes what was measured and saved for
    /// the adapter, and measures a hardware GPU that has nothing saved, once (`devices` measures none); `off` goes by rules; FILE is one that
    /// `byzclip calibrate -o FILE` wrote.
    #[arg(long, value_name = "auto|off|FILE", default_value = "auto", env = "BYZCLIP_CALIBRATION")]
    // Read only where there are GPUs.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))]
    calibration: Wanted,
}

/// Which calibration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Auto,
    Off,
    File(PathBuf),
}

impl FromStr for Wanted {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "off" => Self::Off,
            file => Self::File(file.into()),
        })
    }
}

#[cfg(feature = "gpu")]
pub(super) use self::on_gpu::{place_for, save, saved_for};

#[cfg(feature = "gpu")]
mod on_gpu {
    use std::fs::{self, File};
    use std::io::{ErrorKind, Read, Write};
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use byzclip::Gpu;
    use byzclip::backend::gpu::{Calibration, driver, is_software};
    use byzclip::wgpu::AdapterInfo;

    use super::super::failure::Failure;
    use super::super::output::{self, Pending};
    use super::super::progress;
    use super::{CalibrationArgs, Wanted};

    /// No calibration is longer, in bytes.
    const LONGEST: u64 = 1 << 14;

    impl CalibrationArgs {
        /// Gives a GPU the calibration that is wanted; a hardware GPU that has none is measured.
        pub(in super::super) fn prepare(
            &self,
        ) -> Result<impl FnOnce(Gpu) -> byzclip::Result<Gpu> + use<>, Failure> {
            self.prepare_by(automatic)
        }

        /// The same, but that nothing is measured.
        pub(in super::super) fn prepare_from_saved(
            &self,
        ) -> Result<impl FnOnce(Gpu) -> byzclip::Result<Gpu> + use<>, Failure> {
            self.prepare_by(with_saved)
        }

        fn prepare_by(
            &self,
            automatic: fn(Gpu) -> byzclip::Result<Gpu>,
        ) -> Result<impl FnOnce(Gpu) -> byzclip::Result<Gpu> + use<>, Failure> {
            let wanted = self.calibration.clone();
            let given = match &wanted {
                Wanted::File(file) => Some(read(file)?),
                Wanted::Auto | Wanted::Off => None,
            };
            Ok(move |gpu: Gpu| match (wanted, given) {
                (Wanted::Off, _) => Ok(gpu),
                (_, Some(given)) => gpu.with_calibration(given),
                _ => automatic(gpu),
            })
        }

        /// The GPU with a calibration that is there already, if there is one.
        pub(in super::super) fn taken(&self, gpu: Gpu) -> Result<Option<Gpu>, Failure> {
            let file = match &self.calibration {
                Wanted::Off => None,
                Wanted::File(file) => Some(file.clone()),
                Wanted::Auto => saved_for(&gpu.device().adapter_info()),
            };
            Ok(match file {
                Some(file) => Some(gpu.with_calibration(read(&file)?)?),
                None => None,
            })
        }
    }

    /// Takes what was saved, if there is something.
    fn with_saved(gpu: Gpu) -> byzclip::Result<Gpu> {
        match saved_that_fits(&gpu) {
            Some(calibration) => gpu.with_calibration(calibration),
            None => Ok(gpu),
        }
    }

    /// A saved calibration that cannot be used costs speed, and is said.
    fn saved_that_fits(gpu: &Gpu) -> Option<Calibration> {
        let saved = read(&saved_for(&gpu.device().adapter_info())?);
        saved.and_then(|calibration| fits(gpu, &calibration)).map_err(|failure| failure.print()).ok()
    }

    /// Takes what was saved, or measures a hardware GPU; what does not work out costs speed, and is said.
    fn automatic(gpu: Gpu) -> byzclip::Result<Gpu> {
        if let Some(calibration) = saved_that_fits(&gpu) {
            return gpu.with_calibration(calibration);
        }
        let info = gpu.device().adapter_info();
        // A software adapter takes minutes: only when asked to.
        if is_software(&info) {
            return Ok(gpu);
        }
        let (start, spinner) = (Instant::now(), progress::spinner("calibrating, once for this adapter"));
        let measured =
            gpu.calibrate(|trial| spinner.set_message(format!("calibrating, once: {}", trial.what)));
        spinner.finish_and_clear();
        let calibration = match measured {
            Ok(calibration) => calibration,
            Err(error) => {
                say(&format!("{} was not calibrated: {error}", info.name));
                return Ok(gpu);
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        match place_for(&info).and_then(|place| save(&calibration, &place).map(|()| place)) {
            Ok(place) => say(&format!(
                "calibrated {} in {seconds:.1} s, once; see byzclip calibrate --help; saved in {}",
                info.name,
                place.display()
            )),
            Err(failure) => failure.print(),
        }
        gpu.with_calibration(calibration)
    }

    fn fits(gpu: &Gpu, calibration: &Calibration) -> Result<Calibration, Failure> {
        calibration.check(gpu)?;
        Ok(calibration.clone())
    }

    fn say(message: &str) {
        // Without stderr nobody is left to tell.
        drop(writeln!(std::io::stderr(), "byzclip: {message}"));
    }

    fn read(file: &Path) -> Result<Calibration, Failure> {
        let mut text = String::new();
        let opened = File::open(file).and_then(|open| open.take(LONGEST).read_to_string(&mut text));
        match opened {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::InvalidData => text.clear(),
            Err(error) => return Err(Failure::unreadable(file, &error)),
        }
        text.parse().map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
    }

    /// Saves a calibration, over what was there.
    pub(in super::super) fn save(calibration: &Calibration, file: &Path) -> Result<(), Failure> {
        let mut pending = Pending::create(file)?;
        pending.write_at(0, calibration.to_string().as_bytes())?;
        output::finish(vec![pending.complete()?])
    }

    /// The file that an adapter's calibration is saved in, if it is there.
    pub(in super::super) fn saved_for(info: &AdapterInfo) -> Option<PathBuf> {
        path_for(info).filter(|file| file.is_file())
    }

    /// The file to save an adapter's calibration in; its folder is made.
    pub(in super::super) fn place_for(info: &AdapterInfo) -> Result<PathBuf, Failure> {
        let Some(file) = path_for(info) else {
            return Err(Failure::Failed(
                "nowhere to save the calibration: got no home folder; expected HOME or XDG_CACHE_HOME to name one; set \
                 it, or pass -o to byzclip calibrate"
                    .into(),
            ));
        };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|error| Failure::unwritable(folder, &error))?;
        }
        Ok(file)
    }

    /// One file for each adapter and driver, in the folder that the system has for what can be made again.
    fn path_for(info: &AdapterInfo) -> Option<PathBuf> {
        let name = slug(&format!("{} {}", info.name, driver(info)));
        Some(cache()?.join("byzclip").join(name).with_extension("calibration"))
    }

    fn cache() -> Option<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let given = |name| std::env::var_os(name).map(PathBuf::from).filter(absolute);
        let home = || std::env::home_dir().filter(absolute);
        if cfg!(windows) {
            given("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            Some(home()?.join("Library").join("Caches"))
        } else {
            given("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")))
        }
    }

    /// Letters and digits of a name, with single dashes for what is between.
    fn slug(name: &str) -> String {
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        // File names end at 255 bytes on most systems.
        words.collect::<Vec<_>>().join("-").to_lowercase().chars().take(150).collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn file_names_are_made_of_letters_and_digits() {
            assert_eq!(slug("llvmpipe (LLVM 15.0.6, 256 bits)"), "llvmpipe-llvm-15-0-6-256-bits");
            assert_eq!(slug("../../etc/passwd"), "etc-passwd");
            assert_eq!(slug(&"x".repeat(1000)).len(), 150);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_auto_nor_off_is_a_file() {
        assert_eq!("auto".parse(), Ok(Wanted::Auto));
        assert_eq!("off".parse(), Ok(Wanted::Off));
        assert_eq!("./off".parse(), Ok(Wanted::File("./off".into())));
    }
}
