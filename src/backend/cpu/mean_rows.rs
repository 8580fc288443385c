//! The rows that a mean is of, and what they weigh.

use std::ops::Range;

use super::threads::Team;
use crate::aggregate::{Divisor, counts};
use crate::batch::{Granularity, Layout};
use crate::numerics::power_of_two;
use crate::threshold::Decision;

/// Rows of which one task finds those that count.
const ROWS_OF_TASK: usize = 1 << 12;

/// Powers of two between the least and the greatest weight for which sums of magnitudes have room.
const RANGE: i32 = 48;

/// The rows that count and weigh anything.
pub(super) struct MeanRows {
    pub(super) rows: Vec<MeanRow>,
    /// The sum of their weights.
    pub(super) divisor: Divisor,
    /// Whether all weigh the same: 1 then, because only ratios matter, and that needs no multiplication.
    pub(super) equal: bool,
    /// What sums of magnitudes are counted in: the power of two of the least weight, but 2^-[`RANGE`] of the greatest one's at least, so that they are
    /// finite where values are far from the greatest of `f32`.
    pub(super) unit: f64,
}

#[derive(Clone, Copy)]
pub(super) struct MeanRow {
    /// Its first element, and its first span.
    pub(super) start: usize,
    pub(super) span: u32,
    weight: f32,
}

impl MeanRows {
    /// Those of a batch, by the team.
    pub(super) fn of(
        layout: &Layout,
        granularity: Granularity,
        decisions: &[Decision],
        weights: &[f32],
        team: Team<'_>,
    ) -> Self {
        let clients = layout.clients();
        let of_part = |start| {
            let rows = start..clients.min(start + ROWS_OF_TASK);
            Part::of(layout, granularity, decisions, weights, rows)
        };
        let parts = team.collect((0..clients).step_by(ROWS_OF_TASK), of_part);
        let least = parts.iter().map(|part| part.least).min();
        let greatest = parts.iter().map(|part| part.greatest).max();
        // Of no rows, too.
        let equal = greatest <= least;
        let mut rows = Vec::with_capacity(parts.iter().map(|part| part.rows.len()).sum());
        let mut divisor = Divisor::default();
        for part in parts {
            rows.extend(part.rows);
            divisor.join(&part.divisor);
        }
        if equal {
            divisor = Divisor::of_ones(rows.len());
        }
        let power = |weight: Option<u32>| {
            weight.filter(|_| !equal).map_or(1.0, |bits| power_below(f32::from_bits(bits)))
        };
        let unit = power(least).max(power(greatest) * power_of_two(-RANGE));
        Self { rows, divisor, equal, unit }
    }

    /// What a row weighs.
    #[inline(always)]
    pub(super) fn weight(&self, row: &MeanRow) -> f32 {
        if self.equal { 1.0 } else { row.weight }
    }

    /// The same in units, one at least: then a sum of magnitudes is 0 only for zeros.
    #[inline(always)]
    pub(super) fn size(&self, row: &MeanRow) -> f32 {
        (f64::from(self.weight(row)) * (1.0 / self.unit)).max(1.0) as f32
    }
}

/// What one task finds.
struct Part {
    rows: Vec<MeanRow>,
    divisor: Divisor,
    /// The bits of the least weight and of the greatest: positive numbers are ordered as their bits are.
    least: u32,
    greatest: u32,
}

impl Part {
    fn of(
        layout: &Layout,
        granularity: Granularity,
        decisions: &[Decision],
        weights: &[f32],
        some: Range<usize>,
    ) -> Self {
        let mut rows = Vec::with_capacity(some.len());
        let (mut least, mut greatest) = (u32::MAX, 1);
        for row in some {
            let weight = weights[row];
            if weight > 0.0 && counts(layout, granularity, decisions, row) {
                let span = layout.spans_of(granularity, row).start;
                rows.push(MeanRow { start: layout.row(row).start, span: span as u32, weight });
                (least, greatest) = (least.min(weight.to_bits()), greatest.max(weight.to_bits()));
            }
        }
        let divisor = Divisor::of(rows.iter().map(|row| row.weight));
        Self { rows, divisor, least, greatest }
    }
}

/// The greatest power of two that is at most a weight.
fn power_below(weight: f32) -> f64 {
    power_of_two((f64::from(weight).to_bits() >> 52) as i32 - 1023)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{Backend, Cpu};
    use crate::clip::Clipping;
    use crate::threshold::State;

    /// Of rows of one element, every seventh of which is NaN and does not count.
    fn rows_of(weights: &[f32]) -> MeanRows {
        let layout = Layout::dense(weights.len(), 1).unwrap();
        let data: Vec<f32> =
            (0..weights.len()).map(|row| if row % 7 == 3 { f32::NAN } else { 1.0 }).collect();
        let (cpu, clipping) = (Cpu::new().unwrap(), Clipping::fixed(1.0));
        let norms = cpu.norms(&layout, &data, &clipping).unwrap();
        let decisions = cpu.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
        let team = Team::new(&cpu.pool, usize::MAX).unwrap();
        MeanRows::of(&layout, clipping.granularity, &decisions, weights, team)
    }

    #[test]
    fn rows_that_count_and_weigh_anything_are_found_in_order() {
        for clients in [0, 1, 5, ROWS_OF_TASK - 1, ROWS_OF_TASK, ROWS_OF_TASK + 1, 3 * ROWS_OF_TASK + 100] {
            let weight = |row: usize| (row % 5) as f32 * 0.25;
            let weights: Vec<f32> = (0..clients).map(weight).collect();
            let found = rows_of(&weights);
            let expected: Vec<usize> = (0..clients).filter(|row| row % 7 != 3 && row % 5 != 0).collect();
            assert_eq!(found.rows.iter().map(|row| row.start).collect::<Vec<_>>(), expected);
            assert!(found.rows.iter().all(|row| row.span as usize == row.start), "{clients}");
            let of_rows = || expected.iter().map(|row| weight(*row));
            let divisor = if found.equal { expected.len() as f64 } else { of_rows().map(f64::from).sum() };
            assert_eq!(found.divisor.to_f64(), divisor, "{clients}");
            assert_eq!(found.equal, of_rows().all(|weight| weight == of_rows().next().unwrap()), "{clients}");
            let unit =
                if found.equal { 1.0 } else { of_rows().fold(f32::MAX, f32::min).log2().floor().exp2() };
            assert_eq!(found.unit, f64::from(unit), "{clients}");
        }
    }

    #[test]
    fn equal_weights_are_ones() {
        for weight in [1.0, 0.3, f32::from_bits(1), f32::MAX] {
            let found = rows_of(&[weight; 10]);
            assert!(found.equal && found.rows.iter().all(|row| found.weight(row) == 1.0), "{weight}");
            assert_eq!((found.divisor.to_f64(), found.unit), (9.0, 1.0), "{weight}");
            let mut weights = [weight; 10];
            weights[9] = if weight > 1.0 { weight.next_down() } else { weight.next_up() };
            assert!(!rows_of(&weights).equal, "{weight}");
            // A row that does not count may weigh anything.
            weights[9] = weight;
            weights[3] = 7.0;
            assert!(rows_of(&weights).equal, "{weight}");
        }
    }

    #[test]
    fn a_size_is_the_weight_or_one_unit_where_that_is_more() {
        for weights in [
            [1.0, 1.5],
            [3e38, 1e-38],
            [f32::MAX, f32::from_bits(3)],
            [599.0, 100.0],
            [1.0, 1e-14],
            [1.0, 1e-15],
        ] {
            let found = rows_of(&weights);
            for (row, weight) in found.rows.iter().zip(weights) {
                let size = f64::from(found.size(row)) * found.unit;
                assert_eq!(size, f64::from(weight).max(found.unit), "{weight} of {weights:?}");
            }
            assert_eq!(found.unit <= f64::from(weights[1]), weights[1] >= 1e-14, "{weights:?}");
        }
    }

    #[test]
    fn powers_are_at_most_the_weight() {
        for (weight, power) in [(1.0, 1.0), (1.99, 1.0), (2.0, 2.0), (f32::from_bits(1), 2f64.powi(-149))] {
            assert_eq!(power_below(weight), power);
        }
    }
}
