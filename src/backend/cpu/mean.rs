//! The mean on the CPU: certified `f64` sums for a strip of coordinates at a time, four rows together, exact ones where those
//! leave the rounding open.

use std::ops::Range;

use super::simd::{Kernel, prefetch, vectorised};
use super::threads::Team;
use super::{Cpu, LINE, PART, half};
use crate::aggregate::{Divisor, ExactMean, clipped, counts};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Status};
use crate::error::Result;
use crate::half::Half;
use crate::numerics::{clamped, power_of_two, scaled, scaled_around, single_factor};
use crate::threshold::Decision;

/// Coordinates that one task averages: their sums stay in a core's cache while the rows pass.
const STRIP: usize = 1024;

/// Rows whose sums join those of the others when they are done, so that fewer additions follow each other.
const BLOCK: usize = 256;

/// Rows whose terms are added at a time: their sums are read and written once.
const TOGETHER: usize = 4;

/// What a term of the mean takes, as a number of elements of a norm.
const TERM: usize = 8;

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

/// The sums of the terms of some coordinates, and of the terms' magnitudes.
#[derive(Default)]
struct Sums {
    sums: Vec<f64>,
    sizes: Vec<f64>,
}

/// What a row adds to a strip: its values times a factor, times its weight.
#[derive(Clone, Copy)]
struct Terms<'a> {
    values: &'a [f32],
    factor: f32,
    weight: f64,
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
            let of_rows = self.team.collect(self.rows.chunks(of_part(strip)), |rows| self.sums(strip, rows));
            of_rows.into_iter().reduce(Sums::joined).unwrap_or_default()
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

    /// The means of a strip from its fast sums, in which a term took part in so many additions; coordinates that those leave open are
    /// summed exactly.
    fn mean_of(&self, strip: Strip<'_>, sums: &Sums, additions: usize) {
        let mut open = [false; STRIP];
        let open = &mut open[..strip.mean.len()];
        if self.force_exact {
            open.fill(true);
        } else {
            let divisor = self.divisor.to_f64();
            vectorised(Certify { sums, additions, divisor, mean: &mut *strip.mean, open: &mut *open });
        }
        for i in (0..open.len()).filter(|i| open[*i]) {
            strip.mean[i] = self.exact(&strip, i);
        }
    }

    /// The fast sums of some rows of a strip, a block of them after the other.
    fn sums(&self, strip: &Strip<'_>, rows: &[MeanRow]) -> Sums {
        rows.chunks(BLOCK)
            .map(|rows| self.sums_of_block(strip, rows))
            .reduce(Sums::joined)
            .unwrap_or_else(|| Sums::zeros(strip.mean.len()))
    }

    fn sums_of_block(&self, strip: &Strip<'_>, rows: &[MeanRow]) -> Sums {
        let mut sums = Sums::zeros(strip.mean.len());
        let mut straight = Vec::with_capacity(rows.len());
        let mut made = [0.0; STRIP];
        let made = &mut made[..strip.mean.len()];
        for row in rows {
            match self.terms(strip, row) {
                Some(terms) => straight.push(terms),
                None => self.add_made(&mut sums, strip, row, made),
            }
        }
        let (groups, left) = straight.as_chunks::<TOGETHER>();
        for (i, group) in groups.iter().enumerate() {
            let ahead = match groups.get(i + 1) {
                Some(next) => next.map(|terms| terms.values.as_ptr()),
                // The next strip of the rows that come first, most likely.
                None => groups[0].map(|terms| terms.values.as_ptr().wrapping_add(STRIP)),
            };
            vectorised(Add { sums: &mut sums, rows: *group, ahead });
        }
        match *left {
            [a, b, c] => vectorised(Add { sums: &mut sums, rows: [a, b, c], ahead: [] }),
            [a, b] => vectorised(Add { sums: &mut sums, rows: [a, b], ahead: [] }),
            [a] => vectorised(Add { sums: &mut sums, rows: [a], ahead: [] }),
            _ => {}
        }
        sums
    }

    /// Where the elements of a row lie, and what was decided on them.
    fn span(&self, strip: &Strip<'_>, row: &MeanRow) -> (Range<usize>, &Decision) {
        let span = row.spans.start + strip.span;
        let start = self.layout.span(self.granularity(), span).start;
        (start + strip.elements.start..start + strip.elements.end, &self.decisions[span])
    }

    /// The terms of a row where its elements are the values, perhaps times a factor.
    fn terms(&self, strip: &Strip<'_>, row: &MeanRow) -> Option<Terms<'a>> {
        let (elements, decision) = self.span(strip, row);
        let Elements::Single(data) = self.data else { return None };
        let factor = match (decision.status, self.granularity(), strip.center) {
            (Status::Untouched | Status::OutOfScope, _, _) => 1.0,
            (Status::Clipped, Granularity::Row | Granularity::Segment, None) => {
                single_factor(decision.factor)?
            }
            _ => return None,
        };
        Some(Terms { values: &data[elements], factor, weight: f64::from(row.weight) })
    }

    /// Adds the terms of a row whose values are made of its elements first.
    fn add_made(&self, sums: &mut Sums, strip: &Strip<'_>, row: &MeanRow, values: &mut [f32]) {
        let (elements, decision) = self.span(strip, row);
        if matches!(decision.status, Status::Zeroed | Status::Kept) {
            return;
        }
        match self.data {
            Elements::Single(data) => self.clipped(&data[elements], decision, strip.center, values),
            Elements::Half(half, data) => {
                let mut bits = [0; STRIP];
                let bits = &mut bits[..elements.len()];
                bits.copy_from_slice(&data[elements]);
                half::apply(half, bits, decision, self.granularity());
                half::widen(half, bits, values);
            }
        }
        let terms = Terms { values, factor: 1.0, weight: f64::from(row.weight) };
        vectorised(Add { sums, rows: [terms], ahead: [] });
    }

    /// What the clip stage would write of a clipped row.
    fn clipped(&self, elements: &[f32], decision: &Decision, center: Option<&[f32]>, values: &mut [f32]) {
        let (factor, bound) = (decision.factor, decision.bound);
        let pairs = values.iter_mut().zip(elements);
        match (self.granularity(), center) {
            (Granularity::Coordinate, _) => pairs.for_each(|(to, &value)| *to = clamped(value, bound)),
            (_, None) => pairs.for_each(|(to, &value)| *to = scaled(value, factor)),
            (_, Some(center)) => pairs
                .zip(center)
                .for_each(|((to, &value), &center)| *to = scaled_around(value, center, factor)),
        }
    }

    /// The mean of a coordinate that the fast sums leave open.
    fn exact(&self, strip: &Strip<'_>, i: usize) -> f32 {
        if let (false, Some(mean)) = (self.force_exact, self.exact_in_f64(strip, i)) {
            return mean;
        }
        let mut sum = ExactMean::default();
        self.terms_at(strip, i).for_each(|(weight, value)| sum.add(weight, value));
        sum.over(&self.divisor)
    }

    /// The same, where `f64` holds all sums exactly: most of what is open lies in the middle between two `f32`, as means of few
    /// rows of equal weight often do.
    fn exact_in_f64(&self, strip: &Strip<'_>, i: usize) -> Option<f32> {
        // So that its products with 25 bits are exact.
        let divisor = self.divisor.exact_f64(28)?;
        let (mut sum, mut size, mut unit) = (0.0, 0.0, i32::MAX);
        for (weight, value) in self.terms_at(strip, i) {
            let term = f64::from(weight) * f64::from(value);
            if term != 0.0 {
                sum += term;
                size += term.abs();
                unit = unit.min(unit_of(term));
            }
        }
        // All sums are multiples of the smallest unit, and those below 2^53 of it are exact.
        let is_exact = size == 0.0 || size < power_of_two(unit + 53);
        if is_exact { nearest_quotient(sum, divisor) } else { None }
    }

    /// The weights and values of a coordinate.
    fn terms_at(&self, strip: &Strip<'_>, i: usize) -> impl Iterator<Item = (f32, f32)> {
        self.rows.iter().map(move |row| {
            let (elements, decision) = self.span(strip, row);
            let (at, granularity) = (elements.start + i, self.granularity());
            let value = match self.data {
                Elements::Single(data) => {
                    let center = strip.center.map(|center| center[i]);
                    clipped(data[at], center, decision, granularity)
                }
                Elements::Half(half, data) => half.clipped(data[at], decision, granularity),
            };
            (row.weight, value)
        })
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

/// How many additions follow each other in which a term takes part, where so many parts of so many rows are summed, and joined.
fn additions(rows: usize, parts: usize) -> usize {
    rows.min(BLOCK) + rows.div_ceil(BLOCK) + parts
}

impl Sums {
    fn zeros(coordinates: usize) -> Self {
        Self { sums: vec![0.0; coordinates], sizes: vec![0.0; coordinates] }
    }

    fn joined(mut self, other: Self) -> Self {
        self.sums.iter_mut().zip(other.sums).for_each(|(a, b)| *a += b);
        self.sizes.iter_mut().zip(other.sizes).for_each(|(a, b)| *a += b);
        self
    }
}

/// Adds the terms of `N` rows.
///
/// The product of two `f32` is exact in `f64`. What is not finite counts as 0. A product with the factor that is subnormal is off by less
/// than 2^-126, which [`Certify`] knows.
struct Add<'a, 'b, const N: usize, const AHEAD: usize> {
    sums: &'a mut Sums,
    rows: [Terms<'b>; N],
    /// Memory that is asked for beside it.
    ahead: [*const f32; AHEAD],
}

/// Elements of a cache line.
const CHUNK: usize = LINE / size_of::<f32>();

// Loops over places: without optimisation across units what `zip` calls stays calls, without the vectors.
#[allow(clippy::needless_range_loop)]
impl<const N: usize, const AHEAD: usize> Kernel for Add<'_, '_, N, AHEAD> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let length = self.sums.sums.len();
        let mut rows = [&[][..]; N];
        for k in 0..N {
            rows[k] = &self.rows[k].values[..length];
        }
        let (sums, last_sums) = self.sums.sums.as_chunks_mut::<CHUNK>();
        let (sizes, last_sizes) = self.sums.sizes[..length].as_chunks_mut::<CHUNK>();
        for i in 0..sums.len() {
            for k in 0..AHEAD {
                prefetch(self.ahead[k].wrapping_add(i * CHUNK).cast(), LINE);
            }
            let mut chunks = [&[0.0; CHUNK]; N];
            for k in 0..N {
                chunks[k] = &rows[k].as_chunks().0[i];
            }
            let (sums, sizes) = (&mut sums[i], &mut sizes[i]);
            for j in 0..CHUNK {
                let mut values = [0.0; N];
                for k in 0..N {
                    values[k] = chunks[k][j];
                }
                (sums[j], sizes[j]) = added((sums[j], sizes[j]), &values, &self.rows);
            }
        }
        let done = length - last_sums.len();
        for j in 0..last_sums.len() {
            let mut values = [0.0; N];
            for k in 0..N {
                values[k] = rows[k][done + j];
            }
            (last_sums[j], last_sizes[j]) = added((last_sums[j], last_sizes[j]), &values, &self.rows);
        }
    }
}

/// A coordinate's sum and that of the magnitudes, with the terms of these values.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn added<const N: usize>(
    (mut sum, mut size): (f64, f64),
    values: &[f32; N],
    rows: &[Terms<'_>; N],
) -> (f64, f64) {
    for k in 0..N {
        let value = if values[k].is_finite() { values[k] * rows[k].factor } else { 0.0 };
        let term = f64::from(value) * rows[k].weight;
        sum += term;
        size += term.abs();
    }
    (sum, size)
}

/// The means, where every sum within the error of these rounds to the same; the others are open.
///
/// An addition rounds by at most 2^-53 of the magnitudes so far; magnitudes, divisor and what is computed here round as well. Twice as many
/// units and eight more cover all of it.
struct Certify<'a> {
    sums: &'a Sums,
    additions: usize,
    divisor: f64,
    mean: &'a mut [f32],
    open: &'a mut [bool],
}

#[allow(clippy::needless_range_loop)]
impl Kernel for Certify<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let relative = (2 * self.additions + 8) as f64 * f64::EPSILON;
        // Of subnormal products, each times its weight.
        let absolute = self.divisor * power_of_two(-125);
        let reciprocal = 1.0 / self.divisor;
        let length = self.mean.len();
        let (sums, sizes) = (&self.sums.sums[..length], &self.sums.sizes[..length]);
        let open = &mut self.open[..length];
        for i in 0..length {
            let error = sizes[i] * relative + absolute;
            let least = ((sums[i] - error) * reciprocal) as f32;
            let most = ((sums[i] + error) * reciprocal) as f32;
            self.mean[i] = if sizes[i] == 0.0 { 0.0 } else { least };
            open[i] = sizes[i] != 0.0 && least.to_bits() != most.to_bits();
        }
    }
}
