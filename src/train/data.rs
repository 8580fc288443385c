//! The handwritten digits, and how they are split over test set and clients.

use rand::seq::SliceRandom;

use super::random::{Stream, generator};
use crate::error::{Error, Result};

/// Pixels of an image, 8 × 8.
pub(super) const PIXELS: usize = 64;

/// Digits to tell apart.
pub(super) const CLASSES: u8 = 10;

/// Images that no client sees: a fifth, as is usual.
const TEST: usize = 360;

/// Source, licence and citation: `data/README.md`.
const DIGITS: &str = include_str!("../../data/digits.csv");

/// Images with their labels.
#[derive(Debug, Clone, Default)]
pub(super) struct Examples {
    /// `[len, PIXELS]`, from 0 (paper) to 16 (ink), as they are in the file.
    pixels: Vec<f64>,
    /// `[len]`, below [`CLASSES`].
    labels: Vec<u8>,
}

impl Examples {
    /// The 1,797 images of the UCI repository, in its order.
    pub(super) fn digits() -> Result<Self> {
        Self::parse(DIGITS)
    }

    /// One image a line: 64 pixels from 0 to 16, then the label.
    fn parse(csv: &str) -> Result<Self> {
        let mut examples = Self::default();
        for (line, text) in csv.lines().enumerate() {
            examples.push_line(line + 1, text)?;
        }
        Ok(examples)
    }

    fn push_line(&mut self, line: usize, text: &str) -> Result<()> {
        let numbers = text
            .split(',')
            .map(|field| field.parse::<u8>().map_err(|_| refused(line, field, "integers from 0 to 255")))
            .collect::<Result<Vec<u8>>>()?;
        let Some((&label, pixels)) = numbers.split_last().filter(|(_, pixels)| pixels.len() == PIXELS) else {
            return Err(refused(line, &format!("{} numbers", numbers.len()), "64 pixels and a label"));
        };
        if let Some(pixel) = pixels.iter().find(|&&pixel| pixel > 16) {
            return Err(refused(line, &pixel.to_string(), "pixels from 0 to 16"));
        }
        if label >= CLASSES {
            return Err(refused(line, &label.to_string(), "a label from 0 to 9"));
        }
        self.pixels.extend(pixels.iter().copied().map(f64::from));
        self.labels.push(label);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn pixels(&self, example: usize) -> &[f64] {
        &self.pixels[example * PIXELS..][..PIXELS]
    }

    pub(super) fn label(&self, example: usize) -> u8 {
        self.labels[example]
    }

    /// Replaces every label by what `of` makes of it.
    pub(super) fn relabel(&mut self, of: impl Fn(u8) -> u8) {
        self.labels.iter_mut().for_each(|label| *label = of(*label));
    }

    fn select(&self, examples: impl Iterator<Item = usize>) -> Self {
        let mut selected = Self::default();
        for example in examples {
            selected.pixels.extend_from_slice(self.pixels(example));
            selected.labels.push(self.label(example));
        }
        selected
    }
}

fn refused(line: usize, got: &str, expected: &'static str) -> Error {
    Error::Data { line, got: got.to_owned(), expected }
}

/// The images that clients train on, and those that accuracy is measured on.
#[derive(Debug)]
pub(super) struct Split {
    /// `[clients]`.
    pub(super) clients: Vec<Examples>,
    pub(super) test: Examples,
}

/// Images that are left for the clients.
pub(super) const TRAIN: usize = 1797 - TEST;

impl Split {
    /// Shuffles, keeps the test images back and deals the others out one by one: the clients' data is
    /// independent and identically distributed, and their numbers of images differ by at most one.
    pub(super) fn new(seed: u64, clients: usize) -> Result<Self> {
        let digits = Examples::digits()?;
        let mut order: Vec<usize> = (0..digits.len()).collect();
        order.shuffle(&mut generator(seed, Stream::Split));
        let (test, train) = order.split_at(TEST.min(order.len()));
        let dealt = |client| digits.select(train.iter().copied().skip(client).step_by(clients));
        Ok(Self { clients: (0..clients).map(dealt).collect(), test: digits.select(test.iter().copied()) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_every_digit_about_equally_often() {
        let digits = Examples::digits().unwrap();
        assert_eq!(digits.len(), TRAIN + TEST);
        let mut counts = [0; CLASSES as usize];
        (0..digits.len()).for_each(|example| counts[usize::from(digits.label(example))] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn a_split_gives_every_image_to_exactly_one_side() {
        let digits = Examples::digits().unwrap();
        let split = Split::new(7, 20).unwrap();
        let sums = |examples: &Examples| (0..examples.len()).map(|e| key(examples, e)).collect::<Vec<_>>();
        let mut dealt: Vec<_> = split.clients.iter().chain([&split.test]).flat_map(sums).collect();
        let mut all = sums(&digits);
        dealt.sort();
        all.sort();
        assert_eq!(dealt, all);
        assert!(split.clients.iter().all(|client| (71..=72).contains(&client.len())));
    }

    /// The image and its label, comparable.
    fn key(examples: &Examples, example: usize) -> (Vec<u64>, u8) {
        (examples.pixels(example).iter().map(|p| p.to_bits()).collect(), examples.label(example))
    }

    #[test]
    fn malformed_lines_are_errors_with_their_number() {
        let good = format!("{}3", "16,".repeat(PIXELS));
        assert_eq!(Examples::parse(&good).unwrap().pixels(0), [16.0; PIXELS]);
        for bad in [
            "",
            "1,2,3",
            &good.replacen("16", "17", 1),
            &good.replacen("16", "x", 1),
            &good.replace(",3", ",10"),
        ] {
            let error = Examples::parse(&format!("{good}\n{bad}\n")).unwrap_err();
            assert!(matches!(error, Error::Data { line: 2, .. }), "{error}");
        }
    }
}
