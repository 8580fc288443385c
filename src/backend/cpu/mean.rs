//! The mean on the CPU: certified `f64` sums for a strip of coordinates at a time, exact ones where those
//! leave the rounding open.

use std::ops::Range;

use super::threads::Team;
use super::{Cpu, PART, half};
use crate::aggregate::{Divisor, ExactMean, clipped, counts};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::half::Half;
use crate::numerics::{clamped, scaled, scaled_around};
use crate::threshold::Decision;

/// Coordinates that one task averages: their sums stay in a core's cache while the rows pass.
const STRIP: usize = 1024;

/// What a term of the mean takes, as a number of elements of a norm.
const TERM: usize = 16;

/// The elements of the rows.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    Single(&'a [f32]),
    Half(Half, &'a [u16]),
}

/// What the mean is taken of.
pub(super) struct MeanBatch<'a> {
    layout: &'a Layout,
    data: Elements<'a>,
    clipping: &'a Clipping,
    decisions: &'a [Decision],
    /// The rows that count and weigh anything.
    rows: Vec<MeanRow>,
    divisor: Divisor,
    team: Team<'a>,
    force_exact: bool,
}

struct MeanRow {
    weight: f32,
    spans: Range<usize>,
}

/// Coordinates within the `span`-th span of every row.
struct Strip<'a> {
    span: usize,
    /// Elements of the span.
    elements: Range<usize>,
    /// The coordinates' values of the centre.
    center: Option<&'a [f32]>,
    mean: &'a mut [f32],
}

/// The sum of a coordinate's terms and of their magnitudes.
#[derive(Clone, Copy, Default)]
struct MeanSum {
    sum: f64,
    size: f64,
}

impl<'a> MeanBatch<'a> {
    pub(super) fn new(
        layout: &'a Layout,
        data: Elements<'a>,
        clipping: &'a Clipping,
        decisions: &'a [Decision],
        weights: &[f32],
        cpu: &'a Cpu,
    ) -> Result<Self> {
        let granularity = clipping.granularity;
        let rows = (0..layout.clients())
            .filter(|&row| weights[row] > 0.0 && counts(layout, granularity, decisions, row))
            .map(|row| MeanRow { weight: weights[row], spans: layout.spans_of(granularity, row) });
        let divisor = Divisor::new(layout, granularity, decisions, weights);
        let team = Team::new(&cpu.pool, layout.elements().saturating_mul(TERM))?;
        let (rows, force_exact) = (rows.collect(), cpu.force_exact);
        Ok(Self { layout, data, clipping, decisions, rows, divisor, team, force_exact })
    }

    /// Writes the means of all coordinates, by the team.
    pub(super) fn mean(&self, mean: &mut [f32]) {
        if let (Some(center), true) = (&self.clipping.center, self.divisor.is_zero()) {
            mean.copy_from_slice(center);
            return;
        }
        let strips = self.strips(mean);
        let parts = |strip: &Strip<'_>| self.rows.len().div_ceil((PART / strip.mean.len()).max(1));
        if self.team.is_even_over(strips.len()) || strips.iter().all(|strip| parts(strip) <= strips.len()) {
            self.team.share(strips.into_iter(), |strip| {
                let sums = self.sums(&strip, &self.rows);
                self.mean_of(strip, sums);
            });
            return;
        }
        // Of few strips and many rows threads share the rows: the error bound of the sums holds in any order.
        let sums = |strip: &Strip<'_>| {
            let rows = self.rows.chunks((PART / strip.mean.len()).max(1));
            let of_rows = self.team.collect(rows, |rows| self.sums(strip, rows));
            of_rows.into_iter().reduce(joined).unwrap_or_default()
        };
        let sums: Vec<_> = strips.iter().map(sums).collect();
        self.team.share(strips.into_iter().zip(sums), |(strip, sums)| self.mean_of(strip, sums));
    }

    fn granularity(&self) -> Granularity {
        self.clipping.granularity
    }

    fn strips<'m>(&'m self, mean: &'m mut [f32]) -> Vec<Strip<'m>> {
        let Some(row) = self.rows.first() else { return Vec::new() };
        let (mut strips, mut rest, mut coordinate) = (Vec::new(), mean, 0);
        for (span, index) in row.spans.clone().enumerate() {
            let length = self.layout.span(self.granularity(), index).len();
            for start in (0..length).step_by(STRIP) {
                let elements = start..length.min(start + STRIP);
                let (mean, tail) = rest.split_at_mut(elements.len());
                rest = tail;
                let center = self.clipping.center.as_ref();
                let center = center.map(|center| &center[coordinate..coordinate + elements.len()]);
                coordinate += elements.len();
                strips.push(Strip { span, elements, center, mean });
            }
        }
        strips
    }

    /// The means of a strip from its fast sums; coordinates that those leave open are summed exactly.
    fn mean_of(&self, strip: Strip<'_>, sums: Vec<MeanSum>) {
        let divisor = self.divisor.to_f64();
        for (i, sum) in sums.into_iter().enumerate() {
            let certain = if self.force_exact { None } else { sum.certify(self.rows.len(), divisor) };
            strip.mean[i] = certain.unwrap_or_else(|| self.exact(&strip, i));
        }
    }

    /// The fast sums of some rows of a strip.
    fn sums(&self, strip: &Strip<'_>, rows: &[MeanRow]) -> Vec<MeanSum> {
        let mut sums = vec![MeanSum::default(); strip.mean.len()];
        rows.iter().for_each(|row| self.add_row(&mut sums, strip, row));
        sums
    }

    /// Where the elements of a row lie, and what was decided on them.
    fn span(&self, strip: &Strip<'_>, row: &MeanRow) -> (Range<usize>, &Decision) {
        let span = row.spans.start + strip.span;
        let start = self.layout.span(self.granularity(), span).start;
        (start + strip.elements.start..start + strip.elements.end, &self.decisions[span])
    }

    /// Adds the terms of one row.
    fn add_row(&self, sums: &mut [MeanSum], strip: &Strip<'_>, row: &MeanRow) {
        let (elements, decision) = self.span(strip, row);
        match self.data {
            Elements::Single(data) => self.add_values(sums, strip, &data[elements], decision, row.weight),
            Elements::Half(..) if matches!(decision.status, Status::Zeroed | Status::Kept) => {}
            Elements::Half(half, data) => {
                let (mut bits, mut values) = ([0; STRIP], [0.0; STRIP]);
                let (bits, values) = (&mut bits[..elements.len()], &mut values[..elements.len()]);
                bits.copy_from_slice(&data[elements]);
                half::apply(half, bits, decision, self.granularity());
                half::widen(half, bits, values);
                add_terms(sums, values.iter().copied(), row.weight);
            }
        }
    }

    /// A loop for each status, so that each is vectorised for itself.
    fn add_values(
        &self,
        sums: &mut [MeanSum],
        strip: &Strip<'_>,
        values: &[f32],
        decision: &Decision,
        weight: f32,
    ) {
        let (factor, bound) = (decision.factor, decision.bound);
        let values = values.iter().copied();
        match (decision.status, self.granularity()) {
            (Status::Zeroed | Status::Kept, _) => {}
            (Status::Untouched | Status::OutOfScope, _) => add_terms(sums, values, weight),
            (Status::Clipped, Granularity::Coordinate) => {
                add_terms(sums, values.map(|value| clamped(value, bound)), weight);
            }
            (Status::Clipped, Granularity::Row | Granularity::Segment) => match strip.center {
                None => add_terms(sums, values.map(|value| scaled(value, factor)), weight),
                Some(center) => {
                    let pairs = values.zip(center);
                    let moved = pairs.map(|(value, &center)| scaled_around(value, center, factor));
                    add_terms(sums, moved, weight);
                }
            },
        }
    }

    fn exact(&self, strip: &Strip<'_>, i: usize) -> f32 {
        let mut sum = ExactMean::default();
        for row in &self.rows {
            let (elements, decision) = self.span(strip, row);
            let (at, granularity) = (elements.start + i, self.granularity());
            let value = match self.data {
                Elements::Single(data) => {
                    let center = strip.center.map(|center| center[i]);
                    clipped(data[at], center, decision, granularity)
                }
                Elements::Half(half, data) => half.clipped(data[at], decision, granularity),
            };
            sum.add(row.weight, value);
        }
        sum.over(&self.divisor)
    }
}

fn joined(mut a: Vec<MeanSum>, b: Vec<MeanSum>) -> Vec<MeanSum> {
    a.iter_mut().zip(b).for_each(|(a, b)| (a.sum, a.size) = (a.sum + b.sum, a.size + b.size));
    a
}

/// The product of two `f32` is exact in `f64`. What is not finite counts as 0.
fn add_terms(sums: &mut [MeanSum], values: impl Iterator<Item = f32>, weight: f32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let term = f64::from(weight) * if value.is_finite() { f64::from(value) } else { 0.0 };
        sum.sum += term;
        sum.size += term.abs();
    }
}

impl MeanSum {
    /// The mean, where every sum within the error of this one rounds to the same.
    ///
    /// Of `rows` additions each rounds by at most 2^-53 of the magnitudes so far; magnitudes, divisor and
    /// what is computed here round as well. Twice as many units and eight more cover all of it.
    fn certify(self, rows: usize, divisor: f64) -> Option<f32> {
        if self.size == 0.0 {
            return Some(0.0);
        }
        let error = self.size * (2 * rows + 8) as f64 * f64::EPSILON;
        let (least, most) = ((self.sum - error) / divisor, (self.sum + error) / divisor);
        let (least, most) = (least as f32, most as f32);
        (least.to_bits() == most.to_bits()).then_some(least)
    }
}
