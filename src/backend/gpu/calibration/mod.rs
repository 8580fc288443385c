//! The choice of a tuning by measurement: per adapter and class of shapes, saved as text.
//!
//! [`Tuning::for_device`] chooses by reason; what a driver makes of a kernel only its clock tells. [`Gpu::calibrate`]
//! tries the alternatives on a batch of each [`ShapeClass`] and keeps what pays; [`Gpu::with_calibration`] takes the
//! result. Every tuning gives the same bits, so a calibration changes nothing but the time.

mod knobs;
mod trial;

use std::fmt;
use std::str::FromStr;

pub use self::trial::Trial;

use super::context::GpuContext;
use super::device::{driver, one_line};
use super::{Gpu, Tuning};
use crate::batch::{Granularity, Layout};
use crate::error::{Error, Result};

/// Batches that one tuning suits: those whose longest row, or segment where these have bounds, is about as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShapeClass {
    /// Up to 512 elements: several rows to a workgroup.
    Short,
    /// Up to 16,384: a workgroup can keep a row.
    Medium,
    /// Up to 262,144: a row is some tiles.
    Long,
    /// Beyond.
    Huge,
}

impl ShapeClass {
    /// All, from short to huge.
    pub const ALL: [Self; 4] = [Self::Short, Self::Medium, Self::Long, Self::Huge];

    /// The class of batches whose longest row has so many elements.
    ///
    /// # Examples
    /// ```
    /// use byzclip::backend::gpu::ShapeClass;
    ///
    /// assert_eq!(ShapeClass::of(10_000), ShapeClass::Medium);
    /// ```
    #[must_use]
    pub const fn of(longest: usize) -> Self {
        match longest {
            0..=512 => Self::Short,
            513..=16_384 => Self::Medium,
            16_385..=262_144 => Self::Long,
            _ => Self::Huge,
        }
    }

    /// `short`, `medium`, `long` or `huge`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Long => "long",
            Self::Huge => "huge",
        }
    }

    fn of_batch(layout: &Layout, granularity: Granularity) -> Self {
        let spans = 0..layout.span_count(granularity);
        Self::of(spans.map(|span| layout.span(granularity, span).len()).max().unwrap_or(0))
    }
}

impl fmt::Display for ShapeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a calibration chooses of a [`Tuning`]; the rest is the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    workgroup: u32,
    span_workgroup: u32,
    tile: u32,
    subgroups: bool,
    doubles: bool,
    trusted: bool,
    short_rows: u32,
    row_lanes: u32,
    fused_row: u32,
    group_bytes: u64,
}

impl Choice {
    /// Their names in a saved calibration, in its order.
    const NAMES: [&str; 10] = [
        "workgroup",
        "span_workgroup",
        "tile",
        "subgroups",
        "doubles",
        "trusted",
        "short_rows",
        "row_lanes",
        "fused_row",
        "group_bytes",
    ];

    fn of(tuning: &Tuning) -> Self {
        let &Tuning { workgroup, span_workgroup, tile, subgroups, doubles, trusted, .. } = tuning;
        let &Tuning { short_rows, row_lanes, fused_row, group_bytes, .. } = tuning;
        Self {
            workgroup,
            span_workgroup,
            tile,
            subgroups,
            doubles,
            trusted,
            short_rows,
            row_lanes,
            fused_row,
            group_bytes,
        }
    }

    fn applied_to(self, device: &Tuning) -> Tuning {
        let Self { workgroup, span_workgroup, tile, subgroups, doubles, trusted, .. } = self;
        let Self { short_rows, row_lanes, fused_row, group_bytes, .. } = self;
        Tuning {
            workgroup,
            span_workgroup,
            tile,
            subgroups,
            doubles,
            trusted,
            short_rows,
            row_lanes,
            fused_row,
            group_bytes,
            ..device.clone()
        }
    }

    fn to_numbers(self) -> [u64; 10] {
        [
            self.workgroup.into(),
            self.span_workgroup.into(),
            self.tile.into(),
            self.subgroups.into(),
            self.doubles.into(),
            self.trusted.into(),
            self.short_rows.into(),
            self.row_lanes.into(),
            self.fused_row.into(),
            self.group_bytes,
        ]
    }

    /// Nothing where a number is too large for its place.
    fn from_numbers(numbers: [u64; 10]) -> Option<Self> {
        let [
            workgroup,
            span_workgroup,
            tile,
            subgroups,
            doubles,
            trusted,
            short_rows,
            row_lanes,
            fused_row,
            group_bytes,
        ] = numbers;
        let narrow = |number: u64| u32::try_from(number).ok();
        let flag = |number: u64| (number <= 1).then_some(number == 1);
        Some(Self {
            workgroup: narrow(workgroup)?,
            span_workgroup: narrow(span_workgroup)?,
            tile: narrow(tile)?,
            subgroups: flag(subgroups)?,
            doubles: flag(doubles)?,
            trusted: flag(trusted)?,
            short_rows: narrow(short_rows)?,
            row_lanes: narrow(row_lanes)?,
            fused_row: narrow(fused_row)?,
            group_bytes,
        })
    }
}

/// What suits an adapter, as measured; as text it can be saved and read again.
///
/// It holds for one adapter, driver and version of this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    adapter: String,
    driver: String,
    version: String,
    choices: [Choice; ShapeClass::ALL.len()],
}

/// The first line of a saved calibration; another one where the lines mean something else, or were chosen among others.
const FORMAT: &str = "byzclip calibration 2";

impl Calibration {
    /// Of this device, with the same tuning for all classes.
    fn uniform(gpu: &Gpu) -> Self {
        Self {
            adapter: one_line(&gpu.context.adapter),
            driver: driver(&gpu.context.device.adapter_info()),
            version: env!("CARGO_PKG_VERSION").into(),
            choices: [Choice::of(&gpu.context.tuning); ShapeClass::ALL.len()],
        }
    }

    /// What was chosen for a class: names of [`Tuning`]'s fields, and their values; of flags 0 or 1.
    pub fn choice(&self, class: ShapeClass) -> impl Iterator<Item = (&'static str, u64)> {
        Choice::NAMES.into_iter().zip(self.choices[class as usize].to_numbers())
    }

    /// Checks that this is one of this device and version.
    ///
    /// # Errors
    /// [`Error::Calibration`] where it is not.
    pub fn check(&self, gpu: &Gpu) -> Result<()> {
        let (here, of) =
            (Self::uniform(gpu), |c: &Self| format!("{}, {}, byzclip {}", c.adapter, c.driver, c.version));
        if (&here.adapter, &here.driver, &here.version) == (&self.adapter, &self.driver, &self.version) {
            return Ok(());
        }
        Err(Error::Calibration {
            got: format!("one of {}", of(self)),
            expected: format!("one of {}", of(&here)),
        })
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FORMAT}")?;
        writeln!(f, "adapter {}", self.adapter)?;
        writeln!(f, "driver {}", self.driver)?;
        writeln!(f, "version {}", self.version)?;
        for class in ShapeClass::ALL {
            write!(f, "{class}")?;
            self.choice(class).try_for_each(|(name, number)| write!(f, " {name}={number}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl FromStr for Calibration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let mut rest = |start: &str| {
            let got = lines.next().unwrap_or_default();
            got.strip_prefix(start).map(str::to_owned).ok_or_else(|| unreadable(got, start))
        };
        if !rest(FORMAT)?.is_empty() {
            return Err(unreadable(text.lines().next().unwrap_or_default(), FORMAT));
        }
        let adapter = rest("adapter ")?;
        let driver = rest("driver ")?;
        let version = rest("version ")?;
        let mut choices = Vec::new();
        for class in ShapeClass::ALL {
            choices.push(choice(&rest(class.name())?)?);
        }
        let extra = lines.next();
        match (<[Choice; ShapeClass::ALL.len()]>::try_from(choices), extra) {
            (Ok(choices), None) => Ok(Self { adapter, driver, version, choices }),
            (_, extra) => Err(unreadable(extra.unwrap_or_default(), "its end")),
        }
    }
}

/// The choice of a line, behind the name of its class.
fn choice(text: &str) -> Result<Choice> {
    let mut numbers = [0; Choice::NAMES.len()];
    let mut words = text.split_whitespace();
    for (name, number) in Choice::NAMES.iter().zip(&mut numbers) {
        let word = words.next().unwrap_or_default();
        let value = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')?.parse().ok());
        *number = value.ok_or_else(|| unreadable(word, &format!("{name}= and a number")))?;
    }
    match (words.next(), Choice::from_numbers(numbers)) {
        (None, Some(choice)) => Ok(choice),
        (Some(word), _) => Err(unreadable(word, "the end of the line")),
        (None, None) => Err(unreadable(text.trim(), "numbers of 32 bits, and flags of 0 or 1")),
    }
}

fn unreadable(got: &str, expected: &str) -> Error {
    // A hostile file may be one long line.
    let start: String = got.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
    Error::Calibration { got: format!("\"{start}\""), expected: format!("\"{}\"", expected.trim()) }
}

/// A calibration, and what runs with it.
#[derive(Debug)]
pub(super) struct Calibrated {
    calibration: Calibration,
    /// For each class its own kernels.
    contexts: [GpuContext; ShapeClass::ALL.len()],
}

impl Calibrated {
    pub(super) fn contexts(&self) -> &[GpuContext] {
        &self.contexts
    }

    /// Says why the adapter was taken.
    pub(super) fn because(&mut self, why: &str) {
        for context in &mut self.contexts {
            context.why = format!("{why}, as calibrated");
        }
    }
}

impl Gpu {
    /// Takes tunings that were measured; every tuning gives the same bits.
    ///
    /// # Errors
    /// [`Error::Calibration`] where it is one of another adapter, driver or version; [`Error::Setting`] where the
    /// device cannot run one of its tunings.
    pub fn with_calibration(mut self, calibration: Calibration) -> Result<Self> {
        calibration.check(&self)?;
        let tunings = calibration.choices.map(|choice| choice.applied_to(&self.context.tuning));
        for tuning in &tunings {
            tuning.check(&self.context.device)?;
        }
        let contexts = tunings.map(|tuning| self.context.with_tuning(tuning));
        let mut calibrated = Calibrated { calibration, contexts };
        calibrated.because(&self.context.why);
        self.calibrated = Some(Box::new(calibrated));
        Ok(self)
    }

    /// The calibration that was taken, if any.
    #[must_use]
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibrated.as_ref().map(|calibrated| &calibrated.calibration)
    }

    /// What plans for this batch run with.
    pub(super) fn context_for(&self, layout: &Layout, granularity: Granularity) -> &GpuContext {
        match &self.calibrated {
            Some(calibrated) => &calibrated.contexts[ShapeClass::of_batch(layout, granularity) as usize],
            None => &self.context,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        let mut calibration = Calibration {
            adapter: "An adapter (of 2)".into(),
            driver: "a driver 1.2".into(),
            version: "0.1.0".into(),
            choices: [Choice::of(&Tuning::portable()); 4],
        };
        calibration.choices[2].group_bytes = 1 << 40;
        calibration.choices[3].subgroups = true;
        calibration
    }

    #[test]
    fn classes_cover_every_length_in_order() {
        let lengths = [0, 512, 513, 16_384, 16_385, 262_144, 262_145, usize::MAX];
        let classes: Vec<_> = lengths.into_iter().map(|length| ShapeClass::of(length) as usize).collect();
        assert_eq!(classes, [0, 0, 1, 1, 2, 2, 3, 3]);
        assert!(ShapeClass::ALL.iter().enumerate().all(|(i, class)| *class as usize == i));
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let saved = calibration().to_string();
        assert_eq!(saved.parse(), Ok(calibration()), "{saved}");
    }

    #[test]
    fn a_choice_is_all_that_tunings_of_a_class_differ_in() {
        let choice = calibration().choices[3];
        assert_eq!(Choice::of(&choice.applied_to(&Tuning::portable())), choice);
        assert_eq!(Choice::from_numbers(choice.to_numbers()), Some(choice));
        let device = Tuning { window: 4096, ..Tuning::portable() };
        assert_eq!(choice.applied_to(&device).window, 4096);
    }

    #[test]
    fn files_that_are_no_calibration_say_where() {
        let good = calibration().to_string();
        for (from, to, word) in [
            (FORMAT, "byzclip calibration 1", "calibration 2"),
            (FORMAT, "byzclip calibration 20", "calibration 2"),
            ("adapter ", "device ", "adapter"),
            ("medium ", "short ", "medium"),
            ("tile=8192", "tile=x", "tile= and a number"),
            ("tile=8192", "tile=-1", "tile= and a number"),
            ("tile=8192", "tile=4294967296", "32 bits"),
            ("subgroups=1", "subgroups=2", "flags"),
            ("group_bytes=0", "group_bytes=0 more=1", "end of the line"),
            ("row_lanes=8 ", "", "row_lanes"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let error = bad.parse::<Calibration>().map_err(|e| e.to_string());
            assert!(matches!(&error, Err(message) if message.contains(word)), "{to}: {error:?}");
        }
        for cut in 0..good.len() - 1 {
            // The last digits may be cut off unseen, and nothing else.
            let ends = good[..cut].ends_with(|c: char| c.is_ascii_digit()) && good[..cut].contains("huge");
            assert!(good[..cut].parse::<Calibration>().is_err() || ends, "{cut}");
        }
        assert!(format!("{good}more\n").parse::<Calibration>().is_err());
        assert!("\u{7}".repeat(1 << 20).parse::<Calibration>().is_err_and(|e| e.to_string().len() < 300));
    }
}
