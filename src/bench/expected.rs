//! What every result must be: norms and means from exact sums, decisions and values from the specification, bit for bit.

use rayon::prelude::*;

use super::cases::{Batch, Case, Shape, Stage};
use super::element::{Dtype, Element};
use crate::backend::Reference;
use crate::batch::Layout;
use crate::clip::{Clipping, Status};
use crate::error::{Error, Result};
use crate::norms::{Norm, Norms};
use crate::numerics::ExactSum;
use crate::report::Report;
use crate::threshold::{self, Decision, State};

/// Elements up to which the reference computes norms or means itself; beyond, the same exact sums run in parallel.
const BY_REFERENCE: usize = 1 << 20;

/// Elements of a partial exact sum.
const PART: usize = 1 << 16;

/// The norms and decisions of a case, and the mean where it takes one.
pub struct Expected {
    stage: Stage,
    norms: Norms,
    decisions: Vec<Decision>,
    mean: Vec<f32>,
}

impl Expected {
    /// Of the case's data, as it was before any run.
    ///
    /// # Errors
    /// Those of the specification, on data that is not a case's.
    pub fn of<E: Element>(batch: &Batch<E>, case: &Case) -> Result<Self> {
        let (layout, clipping) = (&batch.layout, case.clipping(batch.shape.clients));
        let norms = if batch.original.len() <= BY_REFERENCE {
            E::norms(&Reference, layout, &batch.original, &clipping)?
        } else {
            exact_norms(layout, &batch.original, &clipping)?
        };
        let decisions = threshold::decide(layout, &norms, &clipping, &mut State::default())?;
        let mean = match case.stage {
            Stage::Norms | Stage::Clip => Vec::new(),
            Stage::Mean => exact_mean(batch, &clipping, &decisions)?,
        };
        Ok(Self { stage: case.stage, norms, decisions, mean })
    }

    /// The norms, and what becomes of each row.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Holds norms against the exact ones: value and side.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first row that differs.
    pub fn check_norms(&self, backend: &str, norms: &Norms) -> Result<()> {
        let differs = |row: &usize| norms.rows.get(*row) != self.norms.rows.get(*row);
        let Some(row) = (0..norms.rows.len().max(self.norms.rows.len())).find(differs) else { return Ok(()) };
        Err(mismatch(backend, "norms", row, norms.rows.get(row), self.norms.rows.get(row)))
    }

    /// Holds a report's norms, bounds, factors and statuses against the specification.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first row that differs.
    pub fn check_report(&self, backend: &str, report: &Report) -> Result<()> {
        // Bits, because a norm of a row out of scope is NaN.
        let got = |row: usize| {
            let row = report.rows.get(row)?;
            Some((row.norm.to_bits(), row.bound.map(f32::to_bits), row.factor.to_bits(), row.status))
        };
        let expected = |row: usize| {
            let Decision { norm, bound, factor, status } = self.decisions.get(row)?;
            Some((norm.value().to_bits(), Some(bound.to_bits()), factor.to_bits(), *status))
        };
        let rows = 0..report.rows.len().max(self.decisions.len());
        let Some(row) = rows.into_iter().find(|&row| got(row) != expected(row)) else { return Ok(()) };
        Err(mismatch(backend, "threshold", row, report.rows.get(row), self.decisions.get(row)))
    }

    /// Holds the clipped batch against the products of the specification.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first row that differs.
    pub fn check_values<E: Element>(&self, backend: &str, batch: &Batch<E>, got: &[E]) -> Result<()> {
        batch.layout.check(got.len())?;
        let params = batch.shape.params;
        let expected = |row: usize, value: E| {
            if self.writes(row) { value.clipped(self.decisions[row].factor) } else { value }
        };
        let rows = batch.original.par_chunks(params).zip(got.par_chunks(params)).enumerate();
        let found = rows.filter_map(|(row, (original, got))| {
            let differs = |i: &usize| got[*i].bits() != expected(row, original[*i]).bits();
            (0..params).find(differs).map(|i| (row, i))
        });
        let Some((row, i)) = found.min() else { return Ok(()) };
        let (got, original) = (got[row * params + i], batch.original[row * params + i]);
        let digits = 2 * E::DTYPE.bytes() as usize;
        let words = |value: E| format!("the bits {:0digits$x} of element {i}", value.bits());
        Err(Error::Mismatch {
            backend: backend.to_owned(),
            stage: "clip",
            row,
            got: words(got),
            expected: words(expected(row, original)),
        })
    }

    /// Whether the case writes the row.
    fn writes(&self, row: usize) -> bool {
        self.stage == Stage::Clip && self.decisions[row].status == Status::Clipped
    }

    /// Holds a mean against the exact one.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first coordinate that differs, as its row.
    pub fn check_mean(&self, backend: &str, mean: &[f32]) -> Result<()> {
        let bits = |values: &[f32], i: usize| values.get(i).map(|value| value.to_bits());
        let differs = |i: &usize| bits(mean, *i) != bits(&self.mean, *i);
        let Some(i) = (0..mean.len().max(self.mean.len())).find(differs) else { return Ok(()) };
        Err(mismatch(backend, "mean", i, mean.get(i), self.mean.get(i)))
    }

    /// What each row has of the mean: its weight times its factor, by the sum of weights.
    #[must_use]
    pub fn shares(&self, weights: &[f32]) -> Vec<f32> {
        let of_sum = 1.0 / weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        let share =
            |(weight, decision): (&f32, &Decision)| (f64::from(*weight) * decision.factor * of_sum) as f32;
        weights.iter().zip(&self.decisions).map(share).collect()
    }

    /// Holds a plain mean against the exact one, within [`Expected::plain_mean_error`].
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first coordinate that is further off, as its row.
    pub fn check_plain_mean(&self, mean: &[f32], dtype: Dtype) -> Result<()> {
        let error = self.plain_mean_error(dtype);
        let off = |(got, exact): (&f32, &f32)| (f64::from(*got) - f64::from(*exact)).abs();
        let close = |i: usize| mean.get(i).zip(self.mean.get(i)).is_some_and(|pair| off(pair) <= error);
        let all = 0..mean.len().max(self.mean.len());
        let Some(i) = all.into_iter().find(|&i| !close(i)) else { return Ok(()) };
        Err(mismatch("the plain baseline", "mean", i, mean.get(i), self.mean.get(i)))
    }

    /// By how much a coordinate of a plain mean may be off: by the error of as many additions in `f32` as there are rows, whose
    /// roundings are independent, and by the steps in which halves are clipped; of four times what a coordinate typically is,
    /// because terms may cancel.
    #[must_use]
    pub fn plain_mean_error(&self, dtype: Dtype) -> f64 {
        let (rows, params) = (self.decisions.len(), self.mean.len() as f64);
        let of_row = |(norm, share): (&Norm, f32)| (f64::from(norm.value()) * f64::from(share)).powi(2);
        let shares = self.shares(&Case::samples(rows));
        let squares: f64 = self.norms.rows.iter().zip(shares).map(of_row).sum();
        let step = match dtype {
            Dtype::F32 => 0.0,
            Dtype::F16 => 2f64.powi(-10),
            Dtype::Bf16 => 2f64.powi(-7),
        };
        4.0 * (squares / params).sqrt() * ((4.0 * (rows as f64).sqrt() + 8.0) * 2f64.powi(-24) + step)
    }

    /// Holds what plain sums give against the exact results: within `error`, relatively.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first row that is further off, or clipped where it should not be.
    pub fn check_plain(&self, norms: &[f32], error: f32) -> Result<()> {
        let differs = |row: &usize| {
            let exact = self.norms.rows[*row].value();
            let close = |norm: &f32| (norm - exact).abs() <= error * exact;
            // A norm out of scope is NaN, and plain has none.
            !exact.is_nan() && !norms.get(*row).is_some_and(close)
        };
        let Some(row) = (0..self.norms.rows.len()).find(differs) else { return Ok(()) };
        Err(mismatch("the plain baseline", "norms", row, norms.get(row), self.norms.rows.get(row)))
    }

    /// The same of the values that plain has scaled; a half that it has rounded may lie one step further.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first row that differs by more.
    pub fn check_plain_values<E: Element>(&self, batch: &Batch<E>, got: &[E], error: f32) -> Result<()> {
        batch.layout.check(got.len())?;
        let params = batch.shape.params;
        let rows = batch.original.par_chunks(params).zip(got.par_chunks(params)).enumerate();
        let differs = |(row, (original, got)): &(usize, (&[E], &[E]))| {
            let (writes, factor) = (self.writes(*row), self.decisions[*row].factor);
            original.iter().zip(*got).any(|(&original, &got)| {
                if !writes {
                    return got.bits() != original.bits();
                }
                // Cut, and so up to a step below the product; plain rounds, which is half a step more.
                let (expected, step) = {
                    let expected = original.clipped(factor);
                    (expected.value(), expected.spacing())
                };
                (got.value() - expected).abs() > error * (expected.abs() + step) + 1.5 * step
            })
        };
        let Some((row, _)) = rows.find_first(differs) else { return Ok(()) };
        Err(mismatch(
            "the plain baseline",
            "clip",
            row,
            Some("other values"),
            Some(self.decisions[row].factor),
        ))
    }
}

fn mismatch(
    backend: &str,
    stage: &'static str,
    row: usize,
    got: Option<impl std::fmt::Debug>,
    expected: Option<impl std::fmt::Debug>,
) -> Error {
    fn words(value: Option<impl std::fmt::Debug>) -> String {
        value.map_or_else(|| "nothing".into(), |value| format!("{value:?}"))
    }
    Error::Mismatch { backend: backend.into(), stage, row, got: words(got), expected: words(expected) }
}

/// The norms of rows in scope, as the reference defines them, by all threads.
fn exact_norms<E: Element>(layout: &Layout, data: &[E], clipping: &Clipping) -> Result<Norms> {
    let join = |mut a: ExactSum, b: ExactSum| {
        a.add(&b);
        a
    };
    let of_part = |part: &[E]| {
        let values: Vec<f32> = part.iter().map(|element| element.value()).collect();
        ExactSum::of(&values)
    };
    let norm = |(row, &in_scope): (usize, &bool)| {
        if !in_scope {
            return Norm::OUT_OF_SCOPE;
        }
        data[layout.row(row)].par_chunks(PART).map(of_part).reduce(ExactSum::default, join).norm()
    };
    let mask = clipping.scope.mask(layout.clients())?;
    Ok(Norms { rows: mask.par_iter().enumerate().map(norm).collect(), segments: Vec::new() })
}

/// The mean of the batch as the reference defines it, by all threads: some coordinates of all rows at a time.
fn exact_mean<E: Element>(batch: &Batch<E>, clipping: &Clipping, decisions: &[Decision]) -> Result<Vec<f32>> {
    let Shape { clients, params } = batch.shape;
    let weights = Case::weights(clients);
    let width = (BY_REFERENCE / clients).clamp(1, params);
    let of_strip = |first: usize| {
        let coordinates = first..params.min(first + width);
        let of_row = |row: &[E]| row[coordinates.clone()].to_vec();
        let strip: Vec<E> = batch.original.chunks_exact(params).flat_map(of_row).collect();
        let layout = Layout::dense(clients, coordinates.len())?;
        E::mean(&Reference, &layout, &strip, clipping, decisions, &weights)
    };
    let strips: Vec<usize> = (0..params).step_by(width).collect();
    Ok(strips.into_par_iter().map(of_strip).collect::<Result<Vec<_>>>()?.concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Cpu};
    use crate::bench::element::{Bf16, F16};

    fn clipped<E: Element>() -> (Batch<E>, Case, Expected, Report) {
        let case = Case::clip(0.2);
        let mut batch = Batch::<E>::new("10x333".parse().unwrap()).unwrap();
        batch.fill(&case);
        let expected = Expected::of(&batch, &case).unwrap();
        let report =
            E::run(&Cpu::new().unwrap(), &batch.layout, &mut batch.work, &case.clipping(10)).unwrap();
        (batch, case, expected, report)
    }

    #[test]
    fn a_bit_of_any_value_is_a_mismatch() {
        finds_a_bit_of_any_value::<f32>();
        finds_a_bit_of_any_value::<F16>();
        finds_a_bit_of_any_value::<Bf16>();
    }

    fn finds_a_bit_of_any_value<E: Element>() {
        let (batch, case, expected, _) = clipped::<E>();
        expected.check_values("cpu", &batch, &batch.work).unwrap();
        let of = |clipped| (0..10).find(|&row| case.writes(row) == clipped).unwrap() * 333;
        for element in [of(true), of(false), 333 * 10 - 1] {
            let mut got = batch.work.clone();
            got[element] = E::of_bits(got[element].bits() ^ 1);
            let error = expected.check_values("cpu", &batch, &got).unwrap_err();
            assert!(
                matches!(error, Error::Mismatch { stage: "clip", row, .. } if row == element / 333),
                "{error}"
            );
        }
    }

    #[test]
    fn norms_and_their_sides_are_checked() {
        let (batch, case, expected, _) = clipped::<f32>();
        let norms = Reference.norms(&batch.layout, &batch.original, &case.clipping(10));
        let norms = norms.unwrap();
        expected.check_norms("cpu", &norms).unwrap();
        let norm = norms.rows[3];
        let class = if norm.class() == crate::NormClass::Above {
            crate::NormClass::Below
        } else {
            crate::NormClass::Above
        };
        for wrong in [Norm::new(norm.wide() ^ 1, norm.class()), Norm::new(norm.wide(), class)] {
            let mut norms = norms.clone();
            norms.rows[3] = wrong;
            assert!(matches!(expected.check_norms("cpu", &norms), Err(Error::Mismatch { row: 3, .. })));
        }
        let short = Norms { rows: norms.rows[..9].to_vec(), segments: Vec::new() };
        assert!(matches!(expected.check_norms("cpu", &short), Err(Error::Mismatch { row: 9, .. })));
    }

    #[test]
    fn reports_are_checked() {
        let (_, _, expected, report) = clipped::<Bf16>();
        expected.check_report("cpu", &report).unwrap();
        let spoil: [fn(&mut Report); 3] = [
            |report| report.rows[4].norm = report.rows[4].norm.next_up(),
            |report| report.rows[4].factor *= 0.5,
            |report| report.rows[4].status = Status::Zeroed,
        ];
        for spoil in spoil {
            let mut report = report.clone();
            spoil(&mut report);
            let error = expected.check_report("cpu", &report).unwrap_err();
            assert!(matches!(error, Error::Mismatch { row: 4, .. }), "{error}");
        }
    }

    #[test]
    fn a_bit_of_any_coordinate_of_a_mean_is_a_mismatch() {
        let case = Case::mean(0.2);
        let mut batch = Batch::<f32>::new("10x333".parse().unwrap()).unwrap();
        batch.fill(&case);
        let expected = Expected::of(&batch, &case).unwrap();
        let (clipping, weights) = (case.clipping(10), Case::weights(10));
        let (layout, decisions) = (&batch.layout, expected.decisions());
        let mean =
            f32::mean(&Cpu::new().unwrap(), layout, &batch.work, &clipping, decisions, &weights).unwrap();
        expected.check_mean("cpu", &mean).unwrap();
        for i in [0, 100, 332] {
            let mut spoiled = mean.clone();
            spoiled[i] = spoiled[i].next_up();
            let error = expected.check_mean("cpu", &spoiled).unwrap_err();
            assert!(matches!(error, Error::Mismatch { stage: "mean", row, .. } if row == i), "{error}");
        }
        let error = expected.check_mean("cpu", &mean[..332]).unwrap_err();
        assert!(matches!(error, Error::Mismatch { row: 332, .. }), "{error}");
        // Where a mean is taken, rows are not written.
        expected.check_values("cpu", &batch, &batch.original).unwrap();
        batch.work[4 * 333] *= 0.04;
        assert!(expected.check_values("cpu", &batch, &batch.work).is_err());
    }

    #[test]
    fn an_exact_mean_in_parallel_is_that_of_the_reference() {
        mean_is_that_of_the_reference::<f32>();
        mean_is_that_of_the_reference::<F16>();
        mean_is_that_of_the_reference::<Bf16>();
    }

    fn mean_is_that_of_the_reference<E: Element>() {
        // Some coordinates at a time, and fewer in the last strip.
        for shape in ["3000x700", "3x400001"] {
            let case = Case::mean(0.5);
            let mut batch = Batch::<E>::new(shape.parse().unwrap()).unwrap();
            batch.fill(&case);
            let expected = Expected::of(&batch, &case).unwrap();
            let clients = batch.shape.clients;
            let (clipping, weights) = (case.clipping(clients), Case::weights(clients));
            let (layout, decisions) = (&batch.layout, expected.decisions());
            let mean = E::mean(&Reference, layout, &batch.original, &clipping, decisions, &weights);
            expected.check_mean("reference", &mean.unwrap()).unwrap();
        }
    }

    #[test]
    fn exact_norms_in_parallel_are_those_of_the_reference() {
        are_those_of_the_reference::<f32>();
        are_those_of_the_reference::<F16>();
        are_those_of_the_reference::<Bf16>();
    }

    fn are_those_of_the_reference<E: Element>() {
        let case = Case::scoped(0.5);
        let mut batch = Batch::<E>::new("4x150001".parse().unwrap()).unwrap();
        batch.fill(&case);
        let clipping = case.clipping(4);
        let norms = E::norms(&Reference, &batch.layout, &batch.original, &clipping).unwrap();
        assert_eq!(exact_norms(&batch.layout, &batch.original, &clipping).unwrap(), norms);
    }
}
