//! Options that several commands share.

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;

use byzclip::backend::Choice;
#[cfg(not(feature = "gpu"))]
use byzclip::backend::select;
#[cfg(feature = "gpu")]
use byzclip::backend::select_prepared;
use byzclip::bench::Subject;
use byzclip::{Backend, NonFinite};

use super::batch_file::BatchFile;
use super::calibration::CalibrationArgs;
use super::failure::Failure;
use super::stream;

/// Where to run.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct BackendArgs {
    /// Where to run: `auto` takes the CPU, or a hardware GPU where a short trial shows it to be faster with the way
    /// there and back. That of `bench` takes a hardware GPU if there is one; `verify` runs on every adapter.
    #[arg(long, value_name = "auto|gpu|cpu|reference", default_value = "auto", value_parser = parse_choice)]
    backend: Choice,
    /// Run on the adapter whose name contains NAME, in any case; the only way to a software adapter.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

impl BackendArgs {
    pub(super) fn open(&self) -> Result<Box<dyn Backend>, Failure> {
        self.check()?;
        #[cfg(feature = "gpu")]
        let backend = select_prepared(self.backend, self.adapter.as_deref(), self.calibration.prepare()?);
        #[cfg(not(feature = "gpu"))]
        let backend = select(self.backend, self.adapter.as_deref());
        Ok(backend?)
    }

    /// The same, as something to measure.
    pub(super) fn subject(&self) -> Result<Subject, Failure> {
        self.check()?;
        #[cfg(feature = "gpu")]
        let subject = Subject::open(self.backend, self.adapter.as_deref(), self.calibration.prepare()?);
        #[cfg(not(feature = "gpu"))]
        let subject = Subject::open(self.backend, self.adapter.as_deref());
        Ok(subject?)
    }

    fn check(&self) -> Result<(), Failure> {
        let (Some(adapter), Choice::Cpu | Choice::Reference) = (&self.adapter, self.backend) else {
            return Ok(());
        };
        let backend = if self.backend == Choice::Cpu { "cpu" } else { "reference" };
        Err(Failure::Usage(format!(
            "got --adapter {adapter} with --backend {backend}; expected an adapter with gpu or auto only; \
             leave one of them out"
        )))
    }
}

/// How much of a batch is in memory.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct WindowArgs {
    /// How much of a batch is read at a time, in bytes, or with K, M or G for 2^10, 2^20 or 2^30. Three windows are
    /// in memory at once: one is read, one worked on, one written.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, default_value = stream::WINDOW, value_parser = parse_bytes)]
    window: usize,
}

impl WindowArgs {
    /// Elements of a batch that are read at a time.
    pub(super) fn elements(&self, batch: &BatchFile) -> usize {
        (self.window / batch.dtype.bytes()).max(1)
    }
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    const EXPECTED: &str = "expected a number of bytes above 0, such as 64M";
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    let bytes = digits.parse::<usize>().ok().filter(|bytes| *bytes > 0);
    bytes.and_then(|bytes| bytes.checked_mul(1 << shift)).ok_or_else(|| EXPECTED.into())
}

fn parse_choice(text: &str) -> Result<Choice, String> {
    Choice::from_str(text).map_err(|_| "expected auto, gpu, cpu or reference".into())
}

/// A bound: a number that is not negative, or `inf`.
pub(super) fn parse_max_norm(text: &str) -> Result<f32, String> {
    const EXPECTED: &str = "expected a number >= 0, or inf; pass a bound such as 2.0";
    match parse_f32(text) {
        Ok(bound) if bound >= 0.0 => Ok(bound),
        Ok(_) => Err(EXPECTED.into()),
        Err(_) if text.parse::<f32>().is_err() => Err(EXPECTED.into()),
        Err(error) => Err(error),
    }
}

/// A number of things.
pub(super) fn parse_whole<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "expected a smaller number, below 2^64 at most".into(),
        _ => "expected a whole number, such as 20".into(),
    })
}

/// A number that neither overflows an `f32` nor vanishes in one.
pub(super) fn parse_f32(text: &str) -> Result<f32, String> {
    let (Ok(narrow), Ok(wide)) = (text.parse::<f32>(), text.parse::<f64>()) else {
        return Err("expected a number".into());
    };
    let written = |c: char| c.is_ascii_digit();
    let overflows = narrow.is_infinite() && text.contains(written);
    // A mantissa with another digit than 0 is not 0, even where an f64 cannot tell.
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let vanishes =
        narrow == 0.0 && (wide != 0.0 || mantissa.contains(|c: char| c.is_ascii_digit() && c != '0'));
    if overflows || vanishes {
        return Err(
            "expected a number that an f32 holds: 0, 1e-45 to 3.4e38, or inf; pass one in that range".into(),
        );
    }
    Ok(narrow)
}

pub(super) fn parse_non_finite(text: &str) -> Result<NonFinite, String> {
    match text {
        "zero" => Ok(NonFinite::Zero),
        "error" => Ok(NonFinite::Error),
        "keep" => Ok(NonFinite::Keep),
        _ => Err("expected zero, error or keep".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("3K"), Ok(3 << 10));
        assert_eq!(parse_bytes(stream::WINDOW), Ok(96 << 20));
        for wrong in ["", "0", "M", "-1", "1.5M", "1k", "99999999999G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bounds_are_numbers_that_are_not_negative() {
        assert_eq!(parse_max_norm("2"), Ok(2.0));
        assert_eq!(parse_max_norm("inf"), Ok(f32::INFINITY));
        assert_eq!(parse_max_norm("0e0"), Ok(0.0));
        assert_eq!(parse_max_norm("1e-45"), Ok(f32::from_bits(1)));
        for wrong in ["nan", "-1", "", "two", "4e38", "1e-50", "1e-400"] {
            assert!(parse_max_norm(wrong).is_err(), "{wrong}");
        }
    }
}
