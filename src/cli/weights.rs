//! What each client weighs in a mean, from a file that is read with the rows.

use std::path::PathBuf;

use byzclip::{Report, Status, Weights};

use super::failure::Failure;
use super::npy::Numbers;
use super::rows;

/// The weights of a batch.
#[derive(Debug, Clone)]
pub(super) enum WeightsOf {
    /// Every client weighs the same.
    Equal,
    /// One number per client, in their order.
    File(PathBuf),
}

/// The weights of one row after another.
pub(super) struct Reader {
    /// None where all are equal.
    numbers: Option<Numbers>,
    /// Rows that were read.
    rows: usize,
}

impl WeightsOf {
    /// Reads all of them once, some at a time, so that a wrong one is found before a large batch is read.
    pub(super) fn check(&self, clients: usize) -> Result<(), Failure> {
        let mut reader = self.read(clients)?;
        for start in (0..clients).step_by(AT_A_TIME) {
            reader.next(AT_A_TIME.min(clients - start))?;
        }
        Ok(())
    }

    /// From the first row on; fails where there is not one for each client.
    pub(super) fn read(&self, clients: usize) -> Result<Reader, Failure> {
        let Self::File(path) = self else { return Ok(Reader { numbers: None, rows: 0 }) };
        let numbers = Numbers::open(path)?;
        if numbers.count != clients {
            let got = rows::count(numbers.count, "weight");
            let expected = format!("{clients}, one per client");
            return Err(Failure::content(path, &got, &expected, PASS));
        }
        Ok(Reader { numbers: Some(numbers), rows: 0 })
    }
}

/// Weights that are read together to be checked.
const AT_A_TIME: usize = 1 << 16;

const PASS: &str = "pass one weight per client, in the order of the inputs";

impl Reader {
    /// The weights of the next rows, each exact as an `f32`.
    pub(super) fn next(&mut self, rows: usize) -> Result<Weights, Failure> {
        let Some(numbers) = &mut self.numbers else { return Ok(Weights::Equal) };
        let (next, path) = (numbers.next(rows)?, &numbers.path);
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
        let counts = |status| !matches!(status, Status::Zeroed | Status::Kept);
        for (weight, _) in weights.iter().zip(&report.rows).filter(|(_, row)| counts(row.status)) {
            self.clients += 1;
            self.weight += f64::from(*weight);
        }
        Ok(())
    }
}
