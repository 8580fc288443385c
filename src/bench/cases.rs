//! Shapes, cases, and the data of a case.

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;

use super::element::{Dtype, Element};
use crate::aggregate::Weights;
use crate::backend::cpu::{OWN, PART, Team};
use crate::batch::Layout;
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};

/// The bound λ of every case.
pub const MAX_NORM: f32 = 2.0;

/// How much larger the rows are that are clipped: their norm is about 50, of others about 1.
const LARGE: f32 = 50.0;

/// Clients and parameters of a dense batch, at least one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub clients: usize,
    /// Elements of a row.
    pub params: usize,
}

/// A small batch, a middle one, many rows, the parameters of ResNet-18, and very many short rows.
pub const SHAPES: [Shape; 5] = [
    Shape { clients: 64, params: 100_000 },
    Shape { clients: 64, params: 1_000_000 },
    Shape { clients: 1024, params: 10_000 },
    Shape { clients: 10, params: 11_173_962 },
    Shape { clients: 100_000, params: 100 },
];

impl Shape {
    /// Elements of the batch.
    #[must_use]
    pub const fn elements(self) -> usize {
        self.clients * self.params
    }

    /// The dense layout.
    ///
    /// # Errors
    /// Those of [`Layout::dense`].
    pub fn layout(self) -> Result<Layout> {
        Layout::dense(self.clients, self.params)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.clients, self.params)
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<usize>().ok().filter(|&number| number > 0);
        let parsed = text.split_once('x').and_then(|(clients, params)| {
            let shape = Self { clients: number(clients)?, params: number(params)? };
            // What Layout::dense refuses, an overflow included, is no shape.
            shape.layout().is_ok().then_some(shape)
        });
        parsed.ok_or_else(|| Error::Setting {
            name: "shape",
            got: text.to_owned(),
            expected: "clients x params such as 64x1000000, both at least 1",
        })
    }
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Norms alone.
    Norms,
    /// All stages: norms, threshold, clip.
    Clip,
    /// The weighted mean of rows that are decided already.
    Mean,
}

impl Stage {
    /// Its name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norms => "norms",
            Self::Clip => "clip",
            Self::Mean => "mean",
        }
    }
}

/// A stage on a batch of which these shares of rows are in scope and clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// What is timed.
    pub stage: Stage,
    /// The share of the rows in scope whose norm is above the bound.
    pub clipped: f64,
    /// The share of rows in scope.
    pub scope: f64,
}

impl Case {
    /// The norms of all rows.
    #[must_use]
    pub const fn norms() -> Self {
        Self { stage: Stage::Norms, clipped: 0.0, scope: 1.0 }
    }

    /// All rows in scope, this share of them clipped.
    #[must_use]
    pub const fn clip(clipped: f64) -> Self {
        Self { stage: Stage::Clip, clipped, scope: 1.0 }
    }

    /// This share of rows in scope, all of them clipped.
    #[must_use]
    pub const fn scoped(scope: f64) -> Self {
        Self { stage: Stage::Clip, clipped: 1.0, scope }
    }

    /// The mean of all rows, weighted by samples, this share of them clipped.
    #[must_use]
    pub const fn mean(clipped: f64) -> Self {
        Self { stage: Stage::Mean, clipped, scope: 1.0 }
    }

    /// Whether the row may be clipped.
    #[must_use]
    pub fn in_scope(&self, row: usize) -> bool {
        picked(row, self.scope)
    }

    /// Whether the row is in scope and above the bound.
    #[must_use]
    pub fn is_large(&self, row: usize) -> bool {
        self.in_scope(row) && picked(row, self.clipped)
    }

    /// Whether the case writes the row.
    #[must_use]
    pub fn writes(&self, row: usize) -> bool {
        self.stage == Stage::Clip && self.is_large(row)
    }

    /// How the case clips.
    #[must_use]
    pub fn clipping(&self, clients: usize) -> Clipping {
        let scope = match self.scope {
            1.0 => Scope::All,
            _ => Scope::Mask((0..clients).map(|row| self.in_scope(row)).collect()),
        };
        Clipping::fixed(MAX_NORM).scope(scope)
    }

    /// What rows weigh in a mean: 100 to 599 samples each.
    #[must_use]
    pub fn samples(clients: usize) -> Vec<f32> {
        (0..clients).map(|row| (100 + row % 500) as f32).collect()
    }

    /// The same as weights.
    #[must_use]
    pub fn weights(clients: usize) -> Weights {
        Weights::PerRow(Self::samples(clients))
    }

    /// The share of rows above the bound, where a record tells it.
    #[must_use]
    pub fn told_share(&self) -> Option<f64> {
        (self.stage != Stage::Norms).then_some(self.clipped)
    }

    /// What the case has to move.
    #[must_use]
    pub fn traffic(&self, shape: Shape, dtype: Dtype) -> Traffic {
        let rows = |is: &dyn Fn(usize) -> bool| (0..shape.clients).filter(|&row| is(row)).count() as u64;
        let bytes = dtype.bytes() * shape.params as u64;
        let scaled = rows(&|row| self.writes(row));
        Traffic {
            only_read: (rows(&|row| self.in_scope(row)) - scaled) * bytes,
            scaled: scaled * bytes,
            result: if self.stage == Stage::Mean { Dtype::F32.bytes() * shape.params as u64 } else { 0 },
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 1e6).round() / 1e4;
        match (self.stage, self.scope) {
            (Stage::Norms, _) => f.write_str("norms"),
            (Stage::Clip, 1.0) => write!(f, "clip {} %", percent(self.clipped)),
            (Stage::Clip, scope) => write!(f, "clip, {} % in scope", percent(scope)),
            (Stage::Mean, _) => write!(f, "mean {} %", percent(self.clipped)),
        }
    }
}

/// Bytes of rows that are only read, of rows that are read and written, and of a result as long as a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Rows in scope that are not written.
    pub only_read: u64,
    /// Rows that are written.
    pub scaled: u64,
    /// A mean. Norms and reports, which are a few bytes a row, are not counted.
    pub result: u64,
}

impl Traffic {
    /// What one pass over the data would move: a clipped row is read and written once, a mean written.
    #[must_use]
    pub const fn one_pass(self) -> u64 {
        self.only_read + 2 * self.scaled + self.result
    }
}

/// Whether a row is among this share of rows, spread evenly.
fn picked(row: usize, share: f64) -> bool {
    // A share such as 0.29 of 100 rows falls just below 29 in binary.
    let below = |rows: usize| (rows as f64 * share + 1e-9).floor();
    below(row + 1) > below(row)
}

/// A batch, and the data that it is restored from.
pub struct Batch<E = f32> {
    /// Clients and parameters.
    pub shape: Shape,
    /// The same as a layout.
    pub layout: Layout,
    /// What the case begins with.
    pub original: Vec<E>,
    /// What runs work on.
    pub work: Vec<E>,
}

impl<E: Element> Batch<E> {
    /// Room for the shape.
    ///
    /// # Errors
    /// [`Error::Layout`] where memory does not hold it twice.
    pub fn new(shape: Shape) -> Result<Self> {
        let layout = shape.layout()?;
        let room = || {
            let mut values = Vec::new();
            values.try_reserve_exact(shape.elements()).map_err(|_| Error::Layout {
                got: format!("{shape}, {} bytes twice", shape.elements() as f64 * E::DTYPE.bytes() as f64),
                expected: "a batch that fits into memory twice",
            })?;
            values.resize(shape.elements(), E::zeroed());
            Ok(values)
        };
        Ok(Self { shape, layout, original: room()?, work: room()? })
    }

    /// The data of a case: uniform values with all the bits of a mantissa in use, rounded to the nearest element, rows of norm about 1, and 50 times that
    /// where the case clips.
    pub fn fill(&mut self, case: &Case) {
        let (params, scale) = (self.shape.params, (3.0 / self.shape.params as f32).sqrt());
        let fill = |(task, values): (usize, &mut [E])| {
            let first = task * PART;
            let (mut row, mut left) = (first / params, params - first % params);
            let mut size = if case.is_large(row) { scale * LARGE } else { scale };
            for (i, value) in values.iter_mut().enumerate() {
                if left == 0 {
                    (row, left) = (row + 1, params);
                    size = if case.is_large(row) { scale * LARGE } else { scale };
                }
                *value = E::nearest(signed_unit(first + i) * size);
                left -= 1;
            }
        };
        self.original.par_chunks_mut(PART).enumerate().for_each(fill);
        self.restore_all();
    }

    /// Restores every row.
    pub fn restore_all(&mut self) {
        copy(&self.original, &mut self.work);
    }

    /// Whether every value that runs work on is `factor` times the original.
    #[must_use]
    pub fn holds(&self, factor: f32) -> bool {
        let same = |(got, element): (&E, &E)| got.bits() == E::nearest(element.value() * factor).bits();
        self.work.par_iter().zip(&self.original).all(same)
    }

    /// Flips the lowest bit of the first value that the case writes; false where it writes none.
    pub fn spoil(&mut self, case: &Case) -> bool {
        let Some(row) = (0..self.shape.clients).find(|&row| case.writes(row)) else { return false };
        let value = &mut self.work[row * self.shape.params];
        *value = E::of_bits(value.bits() ^ 1);
        true
    }

    /// Restores the rows that the case writes.
    pub fn restore(&mut self, case: &Case) {
        let params = self.shape.params;
        if params > OWN {
            let rows = self.original.chunks(params).zip(self.work.chunks_mut(params)).enumerate();
            rows.filter(|(row, _)| case.writes(*row)).for_each(|(_, (from, to))| copy(from, to));
            return;
        }
        let rows = (PART / params).max(1);
        let tasks = self.original.chunks(params * rows).zip(self.work.chunks_mut(params * rows)).enumerate();
        Team::global(self.shape.elements()).share(tasks, |(task, (from, to))| {
            let of_rows = from.chunks(params).zip(to.chunks_mut(params)).enumerate();
            let written = of_rows.filter(|(i, _)| case.writes(task * rows + i));
            written.for_each(|(_, (from, to))| to.copy_from_slice(from));
        });
    }
}

/// A copy by as many threads as it is worth.
pub(crate) fn copy<E: Element>(from: &[E], to: &mut [E]) {
    let tasks = from.chunks(PART).zip(to.chunks_mut(PART));
    Team::global(from.len()).share(tasks, |(from, to)| to.copy_from_slice(from));
}

/// A number in [-1, 1) from the finalizer of SplitMix64 (Steele, Lea and Flood 2014): any part of the batch can be made
/// without the rest.
fn signed_unit(index: usize) -> f32 {
    let mut z = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Reference};
    use crate::clip::Status;

    #[test]
    fn shares_pick_as_many_rows_as_they_say() {
        for (share, rows, expected) in
            [(0.2, 64, 12), (0.1, 10, 1), (0.29, 100, 29), (1.0, 7, 7), (0.0, 9, 0)]
        {
            assert_eq!((0..rows).filter(|&row| picked(row, share)).count(), expected, "{share} of {rows}");
        }
    }

    #[test]
    fn the_data_is_clipped_where_the_case_says() {
        let shape: Shape = "30x2000".parse().unwrap();
        let mut batch = Batch::<f32>::new(shape).unwrap();
        for case in [Case::clip(0.0), Case::clip(0.2), Case::clip(1.0), Case::scoped(0.1)] {
            batch.fill(&case);
            let report =
                Reference.run(&batch.layout, &mut batch.work, &case.clipping(shape.clients)).unwrap();
            for (row, found) in report.rows.iter().enumerate() {
                assert_eq!(found.status == Status::Clipped, case.writes(row), "{case}, row {row}");
                assert_eq!(found.status == Status::OutOfScope, !case.in_scope(row), "{case}, row {row}");
            }
            batch.restore(&case);
            assert!(batch.work == batch.original, "{case} was not restored");
        }
    }

    #[test]
    fn traffic_counts_rows_by_what_happens_to_them() {
        let shape = Shape { clients: 10, params: 100 };
        let traffic = |case: Case, dtype| {
            let Traffic { only_read, scaled, result } = case.traffic(shape, dtype);
            [only_read, scaled, result]
        };
        assert_eq!(traffic(Case::norms(), Dtype::F32), [4000, 0, 0]);
        assert_eq!(traffic(Case::clip(0.2), Dtype::F32), [3200, 800, 0]);
        assert_eq!(traffic(Case::scoped(0.1), Dtype::F32), [0, 400, 0]);
        assert_eq!(traffic(Case::clip(0.2), Dtype::Bf16), [1600, 400, 0]);
        assert_eq!(traffic(Case::mean(0.2), Dtype::F32), [4000, 0, 400]);
        assert_eq!(traffic(Case::mean(0.2), Dtype::F16), [2000, 0, 400]);
        assert_eq!(Case::clip(0.2).traffic(shape, Dtype::F32).one_pass(), 4800);
        assert_eq!(Case::mean(0.2).traffic(shape, Dtype::F32).one_pass(), 4400);
    }

    #[test]
    fn shapes_that_hold_nothing_are_refused() {
        for wrong in ["", "3", "0x4", "4x0", "3x-1", "x", "99999999999x99999999999"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
