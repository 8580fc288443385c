//! The mean of a batch that comes in parts.

use rayon::prelude::*;

use super::mean::{Divisor, ExactMean, Rows, Weights, check_mean, check_mean_half, over, values};
use crate::batch::{Granularity, Layout, MAX_SPANS};
use crate::clip::Clipping;
use crate::error::{Error, Result};
use crate::half::Half;
use crate::pool;
use crate::threshold::{Decision, check_decisions};

/// The weighted mean of clipped rows that come in parts, `Σ wᵢ·clip(gᵢ) / Σ wᵢ`, for example of a file of more rows than memory has room for
/// decisions on.
///
/// NaN, Inf, zeros and rows that do not count are treated as in [`mean`](super::mean); each row by the clipping that it is added with. Without rows
/// the mean is the centre, or +0. Sums are exact, so the mean has the bits that [`Backend::mean`](crate::Backend::mean) finds for the whole batch, in
/// whatever parts and order the rows come. A coordinate takes 160 bytes, whatever the number of rows, of which there may
/// be 2^28.
///
/// # Examples
/// ```
/// use byzclip::{Backend, Clipping, Cpu, Layout, MeanSum, State, Weights};
///
/// let (cpu, clipping) = (Cpu::new()?, Clipping::fixed(5.0));
/// let mut sum = MeanSum::new(2);
/// for (part, weight) in [([3.0, 4.0], 1.0), ([30.0, 40.0], 3.0)] {
///     let layout = Layout::dense(1, 2)?;
///     let norms = cpu.norms(&layout, &part, &clipping)?;
///     let decisions = cpu.threshold(&layout, &norms, &clipping, &mut State::default())?;
///     sum.add(&layout, &part, &clipping, &decisions, &Weights::PerRow(vec![weight]))?;
/// }
/// let (whole, weights) = ([3.0, 4.0, 30.0, 40.0], Weights::PerRow(vec![1.0, 3.0]));
/// let (mean, _) = cpu.run_mean(&Layout::dense(2, 2)?, &whole, &clipping, &weights)?;
/// assert_eq!(sum.mean(&clipping)?, mean);
/// # Ok::<(), byzclip::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MeanSum {
    rows: usize,
    sums: Vec<ExactMean>,
    divisor: Divisor,
}

/// Coordinates that a task takes at least, so that what it reads of a row is more than a cache line or two; where there are fewer, tasks take
/// rows instead.
const COORDINATES: usize = 64;

/// Elements of rows that such a task reads.
const PART: usize = 1 << 16;

impl MeanSum {
    /// Of no rows yet, of this many elements; takes 160 bytes for each.
    #[must_use]
    pub fn new(params: usize) -> Self {
        Self { rows: 0, sums: vec![ExactMean::default(); params], divisor: Divisor::default() }
    }

    /// Adds rows, `[clients, params]`, by the threads of the pool that this runs in, or by this one alone where those cannot be
    /// started.
    ///
    /// What counts, and as what, is as in [`mean`](super::mean).
    ///
    /// # Errors
    /// Those of [`mean`](super::mean); [`Error::Layout`] where rows are of another length, or more than 2^28 in all. Nothing
    /// was added then.
    pub fn add(
        &mut self,
        layout: &Layout,
        data: &[f32],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<()> {
        let weights = check_mean(layout, data, clipping, weights)?;
        self.add_checked(layout, clipping.granularity, decisions, &weights, values(data, clipping))
    }

    /// Adds rows in half precision as [`MeanSum::add`] adds rows of `f32`: what counts are the values that
    /// [`Backend::clip_half`](crate::Backend::clip_half) would write.
    ///
    /// # Errors
    /// Those of [`MeanSum::add`]; [`Error::Setting`] where the clipping has a centre.
    pub fn add_half(
        &mut self,
        layout: &Layout,
        half: Half,
        data: &[u16],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<()> {
        let weights = check_mean_half(layout, data, clipping, weights)?;
        let granularity = clipping.granularity;
        let value =
            |element: usize, _, decision: &Decision| half.clipped(data[element], decision, granularity);
        self.add_checked(layout, granularity, decisions, &weights, value)
    }

    fn add_checked(
        &mut self,
        layout: &Layout,
        granularity: Granularity,
        decisions: &[Decision],
        weights: &[f32],
        value: impl Fn(usize, usize, &Decision) -> f32 + Sync,
    ) -> Result<()> {
        check_decisions(layout, granularity, decisions)?;
        let (clients, params) = (layout.clients(), self.sums.len());
        if clients > 0 && layout.params() != params {
            let got = format!("rows of {} elements for a mean of {params}", layout.params());
            return Err(Error::Layout { got, expected: "rows as long as the mean" });
        }
        if clients > MAX_SPANS - self.rows {
            let got = format!("{clients} rows behind {}", self.rows);
            return Err(Error::Layout { got, expected: "at most 2^28 rows in all" });
        }
        let rows = Rows { layout, granularity, decisions, weights };
        let threads = if layout.elements() > PART { pool::threads().unwrap_or(1) } else { 1 };
        let width = params.div_ceil(4 * threads).max(COORDINATES);
        if threads == 1 {
            rows.add_to(&mut self.sums, 0, 0..clients, value);
        } else if params > width {
            let parts = self.sums.par_chunks_mut(width).enumerate();
            parts.for_each(|(part, sums)| rows.add_to(sums, part * width, 0..clients, &value));
        } else {
            self.add_by_rows(&rows, (PART / params).max(1), value);
        }
        self.divisor.join(&Divisor::new(layout, granularity, decisions, weights));
        self.rows += clients;
        Ok(())
    }

    /// Adds so many rows at a time, each time to sums of their own.
    fn add_by_rows(
        &mut self,
        rows: &Rows<'_>,
        height: usize,
        value: impl Fn(usize, usize, &Decision) -> f32 + Sync,
    ) {
        let clients = rows.layout.clients();
        let none = || vec![ExactMean::default(); self.sums.len()];
        let joined = |mut sums: Vec<ExactMean>, others: Vec<ExactMean>| {
            sums.iter_mut().zip(&others).for_each(|(sum, other)| sum.join(other));
            sums
        };
        let parts = (0..clients.div_ceil(height)).into_par_iter();
        let summed = parts.fold(none, |mut sums, part| {
            rows.add_to(&mut sums, 0, part * height..clients.min((part + 1) * height), &value);
            sums
        });
        let added = summed.reduce(none, joined);
        self.sums.iter_mut().zip(&added).for_each(|(sum, other)| sum.join(other));
    }

    /// The mean of all rows that were added, `[params]`; where nothing that counts weighs anything, the centre of `clipping`, or +0
    /// everywhere. Nothing else of `clipping` matters here.
    ///
    /// # Errors
    /// [`Error::Setting`] where the centre has another length.
    pub fn mean(&self, clipping: &Clipping) -> Result<Vec<f32>> {
        clipping.check_center(&Layout::dense(1, self.sums.len())?)?;
        Ok(over(&self.sums, &self.divisor, clipping))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Reference};
    use crate::threshold::State;

    #[test]
    fn there_are_no_more_rows_than_sums_have_room_for() {
        let mut sum = MeanSum { rows: MAX_SPANS - 1, ..MeanSum::new(1) };
        let clipping = Clipping::default();
        let mut add = |rows: usize| {
            let layout = Layout::dense(rows, 1).unwrap();
            let norms = Reference.norms(&layout, &[1.0; 2], &clipping).unwrap();
            let decisions = Reference.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
            sum.add(&layout, &[1.0; 2], &clipping, &decisions, &Weights::Equal)
        };
        assert!(matches!(add(2), Err(Error::Layout { .. })));
        assert_eq!(add(1), Ok(()));
        assert!(matches!(add(1), Err(Error::Layout { .. })));
    }
}
