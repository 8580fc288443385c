//! The mean on the CPU: certified `f64` sums for a strip of coordinates at a time, four rows together, exact ones where those
//! leave the rounding open.

use std::ops::Range;

use super::rows::Storage;
use super::simd::vectorised;
use super::terms::{Add, BLOCK, Certify, RowsAhead, Sums, TOGETHER, Terms, additions};
use super::threads::Team;
use super::{Cpu, PART};
use crate::aggregate::{Divisor, ExactMean, counts};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::numerics::power_of_two;
use crate::threshold::Decision;

/// Coordinates that one task averages: their sums stay in a core's cache while the rows pass.
const STRIP: usize = 1024;

/// What a term of the mean takes, as a number of elements of a norm.
const TERM: usize = 3;

/// What the mean is taken of.
pub(super) struct MeanBatch<'a, S: Storage> {
    layout: &'a Layout,
    storage: S,
    data: &'a [S::Element],
    clipping: &'a Clipping,
    decisions: &'a [Decision],
    /// The rows that count and weigh anything.
    rows: Vec<MeanRow>,
    divisor: Divisor,
    /// Whether each of these rows weighs 1.
    equal: bool,
    /// What [`Sums::sizes`] are counted in, a power of two.
    unit: f64,
    team: Team<'a>,
    force_exact: bool,
}

struct MeanRow {
    /// Its first element, and its first span.
    start: usize,
    span: u32,
    weight: f32,
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

impl<'a, S: Storage> MeanBatch<'a, S> {
    pub(super) fn new(
        layout: &'a Layout,
        storage: S,
        data: &'a [S::Element],
        clipping: &'a Clipping,
        decisions: &'a [Decision],
        weights: &[f32],
        cpu: &'a Cpu,
    ) -> Result<Self> {
        let granularity = clipping.granularity;
        let mut rows = Vec::with_capacity(layout.clients());
        for (row, &weight) in weights.iter().enumerate() {
            if weight > 0.0 && counts(layout, granularity, decisions, row) {
                let span = layout.spans_of(granularity, row).start;
                rows.push(MeanRow { start: layout.row(row).start, span: span as u32, weight });
            }
        }
        // Only ratios matter, and 1 needs no multiplication.
        let equal = rows.iter().all(|row| row.weight == rows[0].weight);
        if equal {
            rows.iter_mut().for_each(|row| row.weight = 1.0);
        }
        let unit = if equal { 1.0 } else { unit_of_sizes(&rows) };
        let divisor = Divisor::of(rows.iter().map(|row| row.weight));
        let team = Team::new(&cpu.pool, layout.elements().saturating_mul(TERM))?;
        let force_exact = cpu.force_exact;
        Ok(Self { layout, storage, data, clipping, decisions, rows, divisor, equal, unit, team, force_exact })
    }

    /// Writes the means of all coordinates, by the team.
    pub(super) fn mean(&self, mean: &mut [f32]) {
        if let (Some(center), true) = (&self.clipping.center, self.divisor.is_zero()) {
            mean.copy_from_slice(center);
            return;
        }
        let strips = self.strips(mean);
        let rows = self.rows.len();
        let of_part = |strip: &Strip<'_>| (PART / strip.mean.len()).max(1);
        let parts = |strip: &Strip<'_>| rows.div_ceil(of_part(strip));
        if self.team.is_even_over(strips.len()) || strips.iter().all(|strip| parts(strip) <= strips.len()) {
            self.team.share(strips.into_iter(), |strip| {
                let sums = self.sums(&strip, &self.rows);
                self.mean_of(strip, &sums, additions(rows, 1));
            });
            return;
        }
        // Of few strips and many rows threads share the rows.
        let sums = |strip: &Strip<'_>| {
            let parts = self.rows.chunks(of_part(strip));
            let of_parts = self.team.collect(parts, |rows| self.sums(strip, rows));
            Sums::joined(of_parts.into_iter()).unwrap_or_else(|| Sums::zeros(strip.mean.len()))
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
        let Some(row) = self.rows.first() else { return Vec::new() };
        let (mut strips, mut rest, mut first) = (Vec::new(), mean, 0);
        let spans = self.layout.span_count(self.granularity()) / self.layout.clients();
        for span in 0..spans {
            let length = self.layout.span(self.granularity(), row.span as usize + span).len();
            for start in (0..length).step_by(STRIP) {
                let length = (length - start).min(STRIP);
                let (mean, tail) = rest.split_at_mut(length);
                rest = tail;
                strips.push(Strip { span, first, mean });
                first += length;
            }
        }
        strips
    }

    /// The means of a strip from its fast sums, in which a term took part in so many additions; coordinates that those leave open are
    /// summed exactly.
    fn mean_of(&self, mut strip: Strip<'_>, sums: &Sums, additions: u32) {
        let mut open = [true; STRIP];
        let open = &mut open[..strip.mean.len()];
        if self.force_exact {
            return self.exact(&mut strip, (0..open.len()).collect(), None);
        }
        let (unit, divisor) = (self.unit, self.divisor.to_f64());
        let mean = &mut *strip.mean;
        if !vectorised(Certify { sums, additions, unit, divisor, mean, open: &mut *open }) {
            return;
        }
        let mut open: Vec<usize> = (0..open.len()).filter(|i| open[*i]).collect();
        // So that its products with 25 bits are exact.
        let divisor = self.divisor.exact_f64(28);
        if let (true, Some(divisor)) = (self.equal, divisor) {
            let mean = |i: usize| nearest_quotient(sums.exact(i)?, divisor);
            open.retain(|&i| settle(&mut strip.mean[i], mean(i)));
        }
        self.exact(&mut strip, open, divisor);
    }

    /// The fast sums of some rows of a strip, a block of them after the other.
    fn sums(&self, strip: &Strip<'_>, rows: &[MeanRow]) -> Sums {
        let blocks = (0..rows.len()).step_by(BLOCK);
        let sums = |start| self.sums_of_block(strip, rows, start..rows.len().min(start + BLOCK));
        Sums::joined(blocks.map(sums)).unwrap_or_else(|| Sums::zeros(strip.mean.len()))
    }

    fn sums_of_block(&self, strip: &Strip<'_>, rows: &[MeanRow], block: Range<usize>) -> Sums {
        let mut sums = Sums::zeros(strip.mean.len());
        let mut room = Vec::new();
        for start in block.clone().step_by(TOGETHER) {
            let group = &rows[start..block.end.min(start + TOGETHER)];
            let address = |row: &MeanRow| self.data.as_ptr().wrapping_add(self.elements(strip, row).start);
            let ahead = RowsAhead(std::array::from_fn(|k| match rows.get(start + TOGETHER + k) {
                Some(row) => address(row),
                // The next strip of the rows that come first, most likely.
                None => address(&rows[k.min(rows.len() - 1)]).wrapping_add(STRIP),
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
        let mut ways = [Way::Left; TOGETHER];
        let mut unchecked = false;
        for (way, row) in ways.iter_mut().zip(rows) {
            let decision = self.decision(strip, row);
            *way = self.way(decision);
            unchecked |= decision.status == Status::OutOfScope;
        }
        if ways.contains(&Way::Applied) {
            room.resize(TOGETHER * STRIP, S::Element::default());
            for ((row, way), room) in rows.iter().zip(ways).zip(room.chunks_exact_mut(STRIP)) {
                if way == Way::Applied {
                    let room = &mut room[..strip.mean.len()];
                    room.copy_from_slice(&self.data[self.elements(strip, row)]);
                    self.storage.apply(room, strip.first, self.decision(strip, row));
                }
            }
        }
        // Rows that are not there have a factor of 0.
        let mut terms = [Terms { elements: &[][..], factor: 0.0, weight: 0.0, size: 0.0 }; TOGETHER];
        let mut any = None;
        for (k, row) in rows.iter().enumerate() {
            let (elements, factor) = match ways[k] {
                Way::Scaled(factor) => (&self.data[self.elements(strip, row)], factor),
                Way::Applied => (&room[k * STRIP..k * STRIP + strip.mean.len()], 1.0),
                Way::Left => continue,
            };
            let size = (f64::from(row.weight) / self.unit).max(1.0) as f32;
            terms[k] = Terms { elements, factor, weight: row.weight, size };
            any = Some(elements);
        }
        let Some(any) = any else { return };
        terms.iter_mut().filter(|terms| terms.factor == 0.0).for_each(|terms| terms.elements = any);
        match (self.equal, unchecked) {
            (false, false) => self.storage.add(Add::<_, false, false> { sums, terms, ahead }),
            (false, true) => self.storage.add(Add::<_, false, true> { sums, terms, ahead }),
            (true, false) => self.storage.add(Add::<_, true, false> { sums, terms, ahead }),
            (true, true) => self.storage.add(Add::<_, true, true> { sums, terms, ahead }),
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

    /// The means of coordinates that are left: in `f64` where the divisor is and a coordinate's sums are exact in that. Most of them
    /// lie in the middle between two `f32`, as means of few rows of equal weight often do.
    fn exact(&self, strip: &mut Strip<'_>, mut open: Vec<usize>, divisor: Option<f64>) {
        if let Some(divisor) = divisor {
            let sums = self.sums_at(strip, &open, SumInUnits::add);
            let mut means = sums.iter().map(|sum| sum.over(divisor));
            open.retain(|&i| settle(&mut strip.mean[i], means.next().flatten()));
        }
        let sums = self.sums_at(strip, &open, ExactMean::add);
        for (i, sum) in open.into_iter().zip(sums) {
            strip.mean[i] = sum.over(&self.divisor);
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
        for row in &self.rows {
            let (elements, decision) = (&self.data[self.elements(strip, row)], self.decision(strip, row));
            for (&i, sum) in coordinates.iter().zip(&mut sums) {
                add(sum, row.weight, self.storage.value(elements[i], strip.first + i, decision));
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
    /// The exponent of the lowest bit of any term.
    unit: i32,
}

impl Default for SumInUnits {
    fn default() -> Self {
        Self { sum: 0.0, size: 0.0, unit: i32::MAX }
    }
}

impl SumInUnits {
    fn add(&mut self, weight: f32, value: f32) {
        let term = f64::from(weight) * f64::from(value);
        if term != 0.0 {
            self.sum += term;
            self.size += term.abs();
            self.unit = self.unit.min(unit_of(term));
        }
    }

    /// The nearest quotient, where the sum is exact and that is a normal number. All sums are multiples of the smallest unit, and those below 2^53 of it
    /// are exact.
    fn over(&self, divisor: f64) -> Option<f32> {
        let is_exact = self.size == 0.0 || self.size < power_of_two(self.unit + 53);
        if is_exact { nearest_quotient(self.sum, divisor) } else { None }
    }
}

/// The exponent of the lowest bit of a normal number.
fn unit_of(term: f64) -> i32 {
    let field = (term.to_bits() >> 52) as i32 & 0x7ff;
    let fraction = term.to_bits() & ((1 << 52) - 1);
    field - 1075 + (fraction | 1 << 52).trailing_zeros() as i32
}

/// The `f32` nearest to a quotient of exact numbers, ties to even, where it is a normal one; the divisor has at most 28 bits.
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

/// What [`Sums::sizes`] are counted in: 2^-20 of the greatest weight. Lesser weights count as much as that, so that no magnitude vanishes.
fn unit_of_sizes(rows: &[MeanRow]) -> f64 {
    let greatest = rows.iter().fold(0.0f32, |most, row| most.max(row.weight));
    let power = (f64::from(greatest).to_bits() >> 52) as i32 - 1023;
    power_of_two(power - 20)
}
