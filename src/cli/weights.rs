//! What each client weighs in a mean, from a file that is read with the rows.

use std::path::Path;

use byzclip::{Report, Weights};

use super::display;
use super::failure::Failure;
use super::npy::{Numbers, Reading};

/// The weights of a batch.
pub(super) enum WeightsOf {
    /// Every client weighs the same.
    Equal,
    /// One number per client, in their order.
    File(Numbers),
}

/// The weights of one row after another.
pub(super) struct Reader<'a> {
    /// None where all are equal.
    numbers: Option<Reading<'a>>,
    path: &'a Path,
    /// Rows that were read.
    rows: usize,
}

/// Weights that are read together to be checked.
const AT_A_TIME: usize = 1 << 16;

const PASS: &str = "pass one weight per client, in the order of the inputs";

impl WeightsOf {
    /// Those in a file, if there is one. All are read once, some at a time, so that a wrong one is found before a large
    /// batch is read.
    pub(super) fn open(path: Option<&Path>, clients: usize) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Equal) };
        let numbers = Numbers::open(path)?;
        if numbers.count != clients {
            let got = display::count(numbers.count, "weight");
            let expected = format!("{clients}, one per client");
            return Err(Failure::content(path, &got, &expected, PASS));
        }
        let weights = Self::File(numbers);
        let mut reader = weights.read()?;
        for start in (0..clients).step_by(AT_A_TIME) {
            reader.next(AT_A_TIME.min(clients - start))?;
        }
        Ok(weights)
    }

    /// From the first row on.
    pub(super) fn read(&self) -> Result<Reader<'_>, Failure> {
        Ok(match self {
            Self::Equal => Reader { numbers: None, path: Path::new(""), rows: 0 },
            Self::File(numbers) => {
                Reader { numbers: Some(numbers.read()?), path: &numbers.file.path, rows: 0 }
            }
        })
    }

    /// Fails where the file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        match self {
            Self::Equal => Ok(()),
            Self::File(numbers) => numbers.file.check_unchanged(),
        }
    }
}

impl Reader<'_> {
    /// The weights of the next rows, each exact as an `f32`.
    pub(super) fn next(&mut self, rows: usize) -> Result<Weights, Failure> {
        let Some(numbers) = &mut self.numbers else { return Ok(Weights::Equal) };
        let (next, path) = (numbers.next(rows)?, self.path);
        let exact = |(client, weight): (usize, f64)| {
            let wrong = |expected: &str| {
                let got = format!("the weight {weight} of client {client}");
                Err(Failure::content(path, &got, expected, PASS))
            };
            let narrow = weight as f32;
            if !weight.is_finite() || weight < 0.0 {
                return wrong("finite weights that are not negative");
            }
            // Rounded weights would be other weights, silently.
            if f64::from(narrow) != weight {
                return wrong("weights that an f32 holds, such as whole numbers up to 2^24");
            }
            Ok(narrow)
        };
        let weights = (self.rows..).zip(next).map(exact).collect::<Result<_, _>>()?;
        self.rows += rows;
        Ok(Weights::PerRow(weights))
    }
}

/// The clients that are in a mean, and what they weigh together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counted {
    pub clients: usize,
    pub weight: f64,
}

impl Counted {
    /// Counts the next rows.
    pub(super) fn add(&mut self, weights: &Weights, report: &Report) -> Result<(), Failure> {
        let weights = weights.of_rows(report.rows.len())?;
        for (weight, _) in weights.iter().zip(&report.rows).filter(|(_, row)| row.status.is_in_mean()) {
            self.clients += 1;
            self.weight += f64::from(*weight);
        }
        Ok(())
    }
}
