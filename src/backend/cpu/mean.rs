//! The mean on the CPU: certified `f64` sums for a strip of coordinates at a time, four rows together, exact ones where those
//! leave the rounding open.

use std::ops::Range;

use super::mean_rows::{MeanRow, MeanRows};
use super::rows::Storage;
use super::simd::{prefetch, vectorised};
use super::terms::{Add, BLOCK, CHUNK, Certify, RowsAhead, Sums, TOGETHER, Terms, additions};
use super::threads::Team;
use super::{Cpu, PART};
use crate::aggregate::ExactMean;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::numerics::power_of_two;
use crate::threshold::Decision;

/// Coordinates that one task averages at most: their sums stay in a core's cache while the rows pass.
const STRIP: usize = 2048;

/// Those that it averages at least, where there are as many: of every row so many elements lie side by side.
const LEAST_STRIP: usize = 1024;

/// Bits of a divisor whose products with the 25 bits of a middle between two `f32` are exact in `f64`.
const DIVISOR_BITS: u32 = 53 - 25;

/// How many rows before it is read a single element is asked for.
const AHEAD: usize = 16;

/// What a term of the mean takes, as a number of elements of a norm.
const TERM: usize = 3;

/// What a mean takes of elements beside the stages.
pub(super) trait MeanStorage: Storage {
    /// The factor whose products with elements, in `f32`, are what [`Storage::apply`] makes of them but where those are
    /// subnormal, if there is one.
    fn factor(&self, decision: &Decision) -> Option<f32>;

    /// Significant bits that a value has at most.
    fn significant_bits(&self) -> i32;

    /// What an element counts as in a mean.
    fn value(&self, element: Self::Element, coordinate: usize, decision: &Decision) -> f32;

    /// Adds the terms of some rows.
    fn add<const EQUAL: bool, const TESTED: bool>(&self, add: Add<'_, '_, Self::Element, EQUAL, TESTED>);
}

/// What the mean is taken of.
pub(super) struct MeanBatch<'a, S: MeanStorage> {
    layout: &'a Layout,
    storage: S,
    data: &'a [S::Element],
    clipping: &'a Clipping,
    decisions: &'a [Decision],
    counted: MeanRows,
    /// The elements of a row that is not there.
    zeros: Vec<S::Element>,
    team: Team<'a>,
    force_exact: bool,
}

/// Coordinates within the `span`-th span of every row.
struct Strip<'a> {
    span: usize,
    first: usize,
    mean: &'a mut [f32],
}

/// How the elements of a row become values.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Times a factor.
    Scaled(f32),
    /// The clip stage makes others of them first.
    Applied,
    /// Not at all.
    Left,
}

impl<'a, S: MeanStorage> MeanBatch<'a, S> {
    pub(super) fn new(
        layout: &'a Layout,
        storage: S,
        data: &'a [S::Element],
        clipping: &'a Clipping,
        decisions: &'a [Decision],
        weights: &[f32],
        cpu: &'a Cpu,
    ) -> Result<Self> {
        let team = Team::new(&cpu.pool, layout.elements().saturating_mul(TERM))?;
        let counted = MeanRows::of(layout, clipping.granularity, decisions, weights, team);
        let zeros = vec![S::Element::default(); STRIP];
        let force_exact = cpu.force_exact;
        Ok(Self { layout, storage, data, clipping, decisions, counted, zeros, team, force_exact })
    }

    /// Writes the means of all coordinates, by the team.
    pub(super) fn mean(&self, mean: &mut [f32]) {
        if let (Some(center), true) = (&self.clipping.center, self.counted.divisor.is_zero()) {
            mean.copy_from_slice(center);
            return;
        }
        let strips = self.strips(mean);
        if self.force_exact {
            return self.team.share(strips.into_iter(), |mut strip| {
                let all = (0..strip.mean.len()).collect();
                self.sum_as_integers(&mut strip, all);
            });
        }
        let rows = self.counted.rows.len();
        let of_part = |strip: &Strip<'_>| (PART / strip.mean.len()).max(1);
        let parts = |strip: &Strip<'_>| rows.div_ceil(of_part(strip));
        // Strips are enough to share where each thread gets as many, or where they are more than the parts that rows
        // would make.
        if self.team.is_even_over(strips.len()) || strips.iter().all(|strip| parts(strip) <= strips.len()) {
            self.team.share(strips.into_iter(), |strip| {
                let sums = self.sums(&strip, &self.counted.rows);
                self.mean_of(strip, &sums, additions(rows, 1));
            });
            return;
        }
        // Of few strips and many rows threads share the rows.
        let sums = |strip: &Strip<'_>| {
            let parts = self.counted.rows.chunks(of_part(strip));
            let of_parts = self.team.collect(parts, |rows| self.sums(strip, rows));
            Sums::joined(of_parts.into_iter())
                .unwrap_or_else(|| Sums::zeros(strip.mean.len(), self.counted.equal))
        };
        let sums: Vec<_> = strips.iter().map(sums).collect();
        self.team.share(strips.into_iter().zip(sums), |(strip, sums)| {
            let additions = additions(rows.min(of_part(&strip)), parts(&strip));
            self.mean_of(strip, &sums, additions);
        });
    }

    fn granularity(&self) -> Granularity {
        self.clipping.granularity
    }

    fn strips<'m>(&'m self, mean: &'m mut [f32]) -> Vec<Strip<'m>> {
        let Some(row) = self.counted.rows.first() else { return Vec::new() };
        let even = mean.len() / self.team.even_tasks() / CHUNK * CHUNK;
        let most = even.clamp(LEAST_STRIP, STRIP);
        let (mut strips, mut rest, mut first) = (Vec::new(), mean, 0);
        let spans = self.layout.span_count(self.granularity()) / self.layout.clients();
        for span in 0..spans {
            let length = self.layout.span(self.granularity(), row.span as usize + span).len();
            for start in (0..length).step_by(most) {
                let length = (length - start).min(most);
                let (mean, tail) = rest.split_at_mut(length);
                rest = tail;
                strips.push(Strip { span, first, mean });
                first += length;
            }
        }
        strips
    }

    /// The means of a strip from its fast sums, in which a term took part in so many additions. What they leave open
    /// is found by the first that can: the same sums, where they are exact; sums in `f64` anew, where those are;
    /// integers. Most of it lies in the middle between two `f32`, as means of few rows of equal weight often do.
    fn mean_of(&self, mut strip: Strip<'_>, sums: &Sums, additions: u32) {
        let mut open = self.certify(&mut strip, sums, additions);
        if open.is_empty() {
            return;
        }
        if let Some(divisor) = self.counted.divisor.exact_f64(DIVISOR_BITS) {
            if self.counted.equal {
                let bits = self.storage.significant_bits();
                let mean = |i: usize| nearest_quotient(sums.exact(i, bits)?, divisor);
                open.retain(|&i| settle(&mut strip.mean[i], mean(i)));
            }
            let again = self.sums_at(&strip, &open, SumInUnits::add);
            let mut means = again.iter().map(|sum| nearest_quotient(sum.exact()?, divisor));
            open.retain(|&i| settle(&mut strip.mean[i], means.next().flatten()));
        }
        self.sum_as_integers(&mut strip, open);
    }

    /// The means that fast sums leave no doubt about, and which others there are.
    fn certify(&self, strip: &mut Strip<'_>, sums: &Sums, additions: u32) -> Vec<usize> {
        let mut open = [false; STRIP];
        let open = &mut open[..strip.mean.len()];
        let (unit, divisor, mean) = (self.counted.unit, self.counted.divisor.to_f64(), &mut *strip.mean);
        if !vectorised(Certify { sums, additions, unit, divisor, mean, open: &mut *open }) {
            return Vec::new();
        }
        (0..open.len()).filter(|i| open[*i]).collect()
    }

    /// The fast sums of some rows of a strip, a block of them after the other.
    fn sums(&self, strip: &Strip<'_>, rows: &[MeanRow]) -> Sums {
        let blocks = (0..rows.len()).step_by(BLOCK);
        let sums = |start| self.sums_of_block(strip, rows, start..rows.len().min(start + BLOCK));
        Sums::joined(blocks.map(sums)).unwrap_or_else(|| Sums::zeros(strip.mean.len(), self.counted.equal))
    }

    fn sums_of_block(&self, strip: &Strip<'_>, rows: &[MeanRow], block: Range<usize>) -> Sums {
        let mut sums = Sums::zeros(strip.mean.len(), self.counted.equal);
        let mut room = Vec::new();
        for start in block.clone().step_by(TOGETHER) {
            let group = &rows[start..block.end.min(start + TOGETHER)];
            let address = |row: &MeanRow| self.data.as_ptr().wrapping_add(self.elements(strip, row).start);
            let ahead = RowsAhead(std::array::from_fn(|k| match rows.get(start + TOGETHER + k) {
                Some(row) => address(row),
                // The next strip of the rows that come first, most likely.
                None => address(&rows[k.min(rows.len() - 1)]).wrapping_add(strip.mean.len()),
            }));
            self.add_group(&mut sums, strip, group, ahead, &mut room);
        }
        sums
    }

    /// Adds the terms of up to [`TOGETHER`] rows; there is `room` for elements that are made of theirs.
    fn add_group(
        &self,
        sums: &mut Sums,
        strip: &Strip<'_>,
        rows: &[MeanRow],
        ahead: RowsAhead<S::Element>,
        room: &mut Vec<S::Element>,
    ) {
        let (mut ways, mut tested) = ([Way::Left; TOGETHER], false);
        for (way, row) in ways.iter_mut().zip(rows) {
            let decision = self.decision(strip, row);
            *way = self.way(decision);
            tested |= decision.status == Status::OutOfScope;
        }
        let length = strip.mean.len();
        if ways.contains(&Way::Applied) {
            room.resize(TOGETHER * STRIP, S::Element::default());
            for (k, row) in rows.iter().enumerate().filter(|(k, _)| ways[*k] == Way::Applied) {
                let elements = &mut room[k * STRIP..k * STRIP + length];
                elements.copy_from_slice(&self.data[self.elements(strip, row)]);
                self.storage.apply(elements, strip.first, self.decision(strip, row));
            }
        }
        let nothing = Terms { elements: &self.zeros[..length], factor: 1.0, weight: 1.0, size: 1.0 };
        let mut terms = [nothing; TOGETHER];
        for (k, row) in rows.iter().enumerate() {
            let (elements, factor) = match ways[k] {
                Way::Scaled(factor) => (&self.data[self.elements(strip, row)], factor),
                Way::Applied => (&room[k * STRIP..k * STRIP + length], 1.0),
                Way::Left => continue,
            };
            let (weight, size) = (self.counted.weight(row), self.counted.size(row));
            terms[k] = Terms { elements, factor, weight, size };
        }
        match (self.counted.equal, tested) {
            (false, false) => self.storage.add(Add::<_, false, false> { sums, terms: &terms, ahead }),
            (false, true) => self.storage.add(Add::<_, false, true> { sums, terms: &terms, ahead }),
            (true, false) => self.storage.add(Add::<_, true, false> { sums, terms: &terms, ahead }),
            (true, true) => self.storage.add(Add::<_, true, true> { sums, terms: &terms, ahead }),
        }
    }

    fn way(&self, decision: &Decision) -> Way {
        match decision.status {
            Status::Zeroed | Status::Kept => Way::Left,
            _ => self.storage.factor(decision).map_or(Way::Applied, Way::Scaled),
        }
    }

    /// Where the elements of a row lie.
    #[inline(always)]
    fn elements(&self, strip: &Strip<'_>, row: &MeanRow) -> Range<usize> {
        let start = row.start + strip.first;
        start..start + strip.mean.len()
    }

    /// What was decided on them.
    #[inline(always)]
    fn decision(&self, strip: &Strip<'_>, row: &MeanRow) -> &Decision {
        &self.decisions[row.span as usize + strip.span]
    }

    /// The means of some coordinates from their exact sums.
    fn sum_as_integers(&self, strip: &mut Strip<'_>, coordinates: Vec<usize>) {
        let sums = self.sums_at(strip, &coordinates, ExactMean::add);
        for (i, sum) in coordinates.into_iter().zip(sums) {
            strip.mean[i] = sum.over(&self.counted.divisor);
        }
    }

    /// What `add` makes of the weights and values of some coordinates.
    fn sums_at<T: Clone + Default>(
        &self,
        strip: &Strip<'_>,
        coordinates: &[usize],
        add: impl Fn(&mut T, f32, f32),
    ) -> Vec<T> {
        let mut sums = vec![T::default(); coordinates.len()];
        if sums.is_empty() {
            return sums;
        }
        let rows = &self.counted.rows;
        for (k, row) in rows.iter().enumerate() {
            // A line of each row, which no processor asks for by itself.
            if let Some(ahead) = rows.get(k + AHEAD) {
                let elements = self.data[self.elements(strip, ahead)].as_ptr();
                coordinates.iter().for_each(|i| prefetch(elements.wrapping_add(*i).cast(), 1));
            }
            let (elements, decision) = (&self.data[self.elements(strip, row)], self.decision(strip, row));
            for (&i, sum) in coordinates.iter().zip(&mut sums) {
                add(
                    sum,
                    self.counted.weight(row),
                    self.storage.value(elements[i], strip.first + i, decision),
                );
            }
        }
        sums
    }
}

/// Writes a mean that is known; whether it is still open.
fn settle(place: &mut f32, mean: Option<f32>) -> bool {
    mean.map(|mean| *place = mean).is_none()
}

/// A sum in `f64`, and what says whether it is exact.
#[derive(Clone)]
struct SumInUnits {
    sum: f64,
    size: f64,
    /// The exponent of the last bit of any term.
    last_bit: i32,
}

impl Default for SumInUnits {
    fn default() -> Self {
        Self { sum: 0.0, size: 0.0, last_bit: i32::MAX }
    }
}

impl SumInUnits {
    fn add(&mut self, weight: f32, value: f32) {
        let term = f64::from(weight) * f64::from(value);
        if term != 0.0 {
            self.sum += term;
            self.size += term.abs();
            self.last_bit = self.last_bit.min(last_bit(term));
        }
    }

    /// The sum, where it is exact: all sums of terms are multiples of the last bit, and those below 2^53 of it are
    /// numbers of `f64`.
    fn exact(&self) -> Option<f64> {
        (self.size == 0.0 || self.size < power_of_two(self.last_bit + 53)).then_some(self.sum)
    }
}

/// The exponent of the last bit of a normal number that is not 0.
fn last_bit(term: f64) -> i32 {
    let field = (term.to_bits() >> 52) as i32 & 0x7ff;
    let fraction = term.to_bits() & ((1 << 52) - 1);
    field - 1075 + (fraction | 1 << 52).trailing_zeros() as i32
}

/// The `f32` nearest to a quotient of exact numbers, ties to even, where it is a normal one; the divisor has at most
/// [`DIVISOR_BITS`].
fn nearest_quotient(sum: f64, divisor: f64) -> Option<f32> {
    if sum == 0.0 {
        return Some(0.0);
    }
    // Rounded, but no further off than a unit of f64: one of the two neighbours is the nearest.
    let quotient = sum.abs() / divisor;
    if quotient < power_of_two(-125) || quotient >= f64::from(f32::MAX) {
        return None;
    }
    let near = quotient as f32;
    let below = if f64::from(near) > quotient { near.next_down() } else { near };
    let above = below.next_up();
    let middle = (f64::from(below) + f64::from(above)) / 2.0;
    let even = if below.to_bits() % 2 == 0 { below } else { above };
    let nearest = match sum.abs().total_cmp(&(middle * divisor)) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Equal => even,
        std::cmp::Ordering::Greater => above,
    };
    Some(nearest.copysign(sum as f32))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::aggregate::Weights;
    use crate::backend::cpu::single::Singles;
    use crate::backend::{Backend, Reference};
    use crate::clip::Scope;
    use crate::threshold::State;

    /// How many of 20,000 means of 64 rows their fast sums leave open, where one row out of scope is so much larger.
    fn open_beside(large: f32, weights: &[f32]) -> usize {
        let (clients, params) = (64, 20_000);
        let layout = Layout::dense(clients, params).unwrap();
        let value = |i: usize| ((i * 7919) % 100_003) as f32 * 1e-5 - 0.3;
        let mut data: Vec<f32> = (0..layout.len()).map(value).collect();
        data[..params].iter_mut().for_each(|value| *value *= large);
        let clipping = Clipping::fixed(2.0).scope(Scope::Mask((0..clients).map(|row| row > 0).collect()));
        let cpu = Cpu::new().unwrap();
        let norms = cpu.norms(&layout, &data, &clipping).unwrap();
        let decisions = cpu.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
        let storage = Singles::of(&clipping);
        let batch = MeanBatch::new(&layout, storage, &data, &clipping, &decisions, weights, &cpu).unwrap();
        let mut mean = vec![0.0; params];
        let strips = batch.strips(&mut mean).into_iter();
        strips
            .map(|mut strip| {
                let sums = batch.sums(&strip, &batch.counted.rows);
                batch.certify(&mut strip, &sums, additions(clients, 1)).len()
            })
            .sum()
    }

    #[test]
    fn zeros_and_what_is_nearly_zero_are_told_apart_whatever_rows_weigh() {
        let least = f32::from_bits(1);
        let columns =
            [[0.0, 0.0, 0.0], [0.0, -0.0, 0.0], [0.0, 0.0, least], [0.0, -least, 0.0], [least, 0.0, -least]];
        let params = 8 * columns.len();
        let layout = Layout::dense(3, params).unwrap();
        let column = |i: usize| columns[i % columns.len()];
        let data: Vec<f32> = (0..3).flat_map(|row| (0..params).map(move |i| column(i)[row])).collect();
        let data: Vec<f32> = data.iter().map(|value| value * 2f32.powi(24)).collect();
        let cpu = Cpu::new().unwrap();
        for bound in [1.0, 1e-38] {
            let clipping = Clipping::fixed(bound);
            let norms = cpu.norms(&layout, &data, &clipping).unwrap();
            let decisions = cpu.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
            for weights in
                [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1e30, 3e38], [3e38, least, 1.0], [1e30, 1e30, 1e-38]]
            {
                let weights = Weights::PerRow(weights.to_vec());
                let mean = cpu.mean(&layout, &data, &clipping, &decisions, &weights).unwrap();
                let expected = Reference.mean(&layout, &data, &clipping, &decisions, &weights).unwrap();
                let bits = |mean: &[f32]| mean.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&mean), bits(&expected), "{weights:?} and {bound}");
            }
        }
    }

    #[test]
    fn fast_sums_leave_few_means_open_beside_a_large_row_too() {
        let samples: Vec<f32> = (0..64).map(|row| (100 + row % 500) as f32).collect();
        for large in [1.0, 1e6, 1e20, 1e36] {
            for power in [-100, 0, 100] {
                let weights: Vec<f32> = samples.iter().map(|weight| weight * 2f32.powi(power)).collect();
                let open = open_beside(large, &weights);
                assert!(open < 20, "{open} beside {large}");
            }
        }
    }
}
