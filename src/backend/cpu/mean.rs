//! The mean on the CPU: certified `f64` sums for a strip of coordinates at a time, four rows together, exact ones where those
//! leave the rounding open.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::mean_256;
#[cfg(target_arch = "x86_64")]
use super::simd::has_avx2;
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
pub(super) const TOGETHER: usize = 4;

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
    /// What magnitudes are counted in, a power of two.
    unit: f64,
    /// Whether each of these rows weighs 1.
    equal: bool,
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
    /// The coordinates' values of the centre.
    center: Option<&'a [f32]>,
    mean: &'a mut [f32],
}

/// The sums of the terms of some coordinates, and of the terms' magnitudes.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) sums: Vec<f64>,
    /// In units of [`MeanBatch::unit`], and no less than 7/8 of what they are: an addition rounds by 2^-24, and no term takes part in 2^21.
    pub(super) sizes: Vec<f32>,
    /// Where all weigh 1, the bits of the least magnitude that is not 0, less one.
    pub(super) least: Vec<u32>,
}

/// What a row adds to a strip: its values times a factor, times its weight.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) values: &'a [f32],
    pub(super) factor: f32,
    pub(super) weight: f32,
    pub(super) size: f32,
}

/// How the elements of a row become values.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Times a factor.
    Straight(f32),
    /// By what the clip stage makes of them.
    Made,
    /// Not at all.
    Left,
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
        Ok(Self { layout, data, clipping, decisions, rows, divisor, unit, equal, team, force_exact })
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
            Sums::joined(self.team.collect(parts, |rows| self.sums(strip, rows)).into_iter(), strip)
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
                let center = self.clipping.center.as_ref().map(|center| &center[first..first + length]);
                strips.push(Strip { span, first, center, mean });
                first += length;
            }
        }
        strips
    }

    /// The means of a strip from its fast sums, in which a term took part in so many additions; coordinates that those leave open are
    /// summed exactly.
    fn mean_of(&self, mut strip: Strip<'_>, sums: &Sums, additions: u32) {
        let mut open = [false; STRIP];
        let open = &mut open[..strip.mean.len()];
        if self.force_exact {
            open.fill(true);
        } else {
            let (unit, divisor) = (self.unit, self.divisor.to_f64());
            vectorised(Certify { sums, unit, additions, divisor, mean: &mut *strip.mean, open: &mut *open });
        }
        let mut open: Vec<usize> = (0..open.len()).filter(|i| open[*i]).collect();
        // So that its products with 25 bits are exact.
        let divisor = if self.force_exact { None } else { self.divisor.exact_f64(28) };
        if let (true, Some(divisor)) = (self.equal, divisor) {
            let mean = |i: usize| nearest_quotient(sums.exact(i)?, divisor);
            open.retain(|&i| settle(&mut strip.mean[i], mean(i)));
        }
        if !open.is_empty() {
            self.exact(&mut strip, open, divisor);
        }
    }

    /// The fast sums of some rows of a strip, a block of them after the other.
    fn sums(&self, strip: &Strip<'_>, rows: &[MeanRow]) -> Sums {
        let blocks = (0..rows.len()).step_by(BLOCK);
        let sums = |start| self.sums_of_block(strip, rows, start..rows.len().min(start + BLOCK));
        Sums::joined(blocks.map(sums), strip)
    }

    fn sums_of_block(&self, strip: &Strip<'_>, rows: &[MeanRow], block: Range<usize>) -> Sums {
        let mut sums = Sums::zeros(strip.mean.len());
        let mut made = Vec::new();
        for start in block.clone().step_by(TOGETHER) {
            let group = &rows[start..block.end.min(start + TOGETHER)];
            let ahead = std::array::from_fn(|k| match rows.get(start + TOGETHER + k) {
                Some(row) => self.address(strip, row, 0),
                // The next strip of the rows that come first, most likely.
                None => self.address(strip, &rows[k.min(rows.len() - 1)], STRIP),
            });
            let ahead = RowsAhead { rows: ahead, step: self.bytes() * CHUNK };
            self.add_group(&mut sums, strip, group, ahead, &mut made);
        }
        sums
    }

    /// Adds the terms of up to [`TOGETHER`] rows; `made` is room for values.
    fn add_group(
        &self,
        sums: &mut Sums,
        strip: &Strip<'_>,
        rows: &[MeanRow],
        ahead: RowsAhead,
        made: &mut Vec<f32>,
    ) {
        let length = strip.mean.len();
        let mut ways = [Way::Left; TOGETHER];
        let mut unchecked = false;
        for (way, row) in ways.iter_mut().zip(rows) {
            let decision = self.span(strip, row).1;
            *way = self.way(strip, decision);
            unchecked |= decision.status == Status::OutOfScope;
        }
        if ways.contains(&Way::Made) {
            made.resize(TOGETHER * STRIP, 0.0);
            for ((row, way), values) in rows.iter().zip(ways).zip(made.chunks_exact_mut(STRIP)) {
                if way == Way::Made {
                    self.make(strip, row, &mut values[..length]);
                }
            }
        }
        // Rows that are not there have a factor of 0.
        let mut terms = [Terms { values: &[], factor: 0.0, weight: 0.0, size: 0.0 }; TOGETHER];
        let mut some = None;
        for (k, row) in rows.iter().enumerate() {
            let (values, factor) = match (ways[k], self.data) {
                (Way::Straight(factor), Elements::Single(data)) => (&data[self.span(strip, row).0], factor),
                (Way::Made, _) => (&made[k * STRIP..k * STRIP + length], 1.0),
                _ => continue,
            };
            let size = (f64::from(row.weight) / self.unit).max(1.0) as f32;
            terms[k] = Terms { values, factor, weight: row.weight, size };
            some = Some(values);
        }
        let Some(some) = some else { return };
        terms.iter_mut().filter(|terms| terms.values.is_empty()).for_each(|terms| terms.values = some);
        match (self.equal, unchecked) {
            (false, false) => add(Add::<false, false> { sums, terms, ahead }),
            (false, true) => add(Add::<false, true> { sums, terms, ahead }),
            (true, false) => add(Add::<true, false> { sums, terms, ahead }),
            (true, true) => add(Add::<true, true> { sums, terms, ahead }),
        }
    }

    /// Where the elements of a row lie, and what was decided on them.
    #[inline(always)]
    fn span(&self, strip: &Strip<'_>, row: &MeanRow) -> (Range<usize>, &Decision) {
        let start = row.start + strip.first;
        (start..start + strip.mean.len(), &self.decisions[row.span as usize + strip.span])
    }

    /// Where the elements begin, or so many behind that, in memory.
    fn address(&self, strip: &Strip<'_>, row: &MeanRow, behind: usize) -> *const u8 {
        let at = self.span(strip, row).0.start + behind;
        match self.data {
            Elements::Single(data) => data.as_ptr().wrapping_add(at).cast(),
            Elements::Half(_, data) => data.as_ptr().wrapping_add(at).cast(),
        }
    }

    /// Bytes of an element.
    fn bytes(&self) -> usize {
        match self.data {
            Elements::Single(_) => size_of::<f32>(),
            Elements::Half(..) => size_of::<u16>(),
        }
    }

    fn way(&self, strip: &Strip<'_>, decision: &Decision) -> Way {
        match (decision.status, self.data) {
            (Status::Zeroed | Status::Kept, _) => Way::Left,
            (_, Elements::Half(..)) => Way::Made,
            (Status::Untouched | Status::OutOfScope, _) => Way::Straight(1.0),
            (Status::Clipped, _)
                if self.granularity() == Granularity::Coordinate || strip.center.is_some() =>
            {
                Way::Made
            }
            (Status::Clipped, _) => single_factor(decision.factor).map_or(Way::Made, Way::Straight),
        }
    }

    /// Writes the values of a row whose elements they are made of.
    fn make(&self, strip: &Strip<'_>, row: &MeanRow, values: &mut [f32]) {
        let (elements, decision) = self.span(strip, row);
        match self.data {
            Elements::Single(data) => self.clipped(&data[elements], decision, strip.center, values),
            Elements::Half(half, data) if decision.status != Status::Clipped => {
                half::widen(half, &data[elements], values);
            }
            Elements::Half(half, data) => {
                let mut bits = [0; STRIP];
                let bits = &mut bits[..elements.len()];
                bits.copy_from_slice(&data[elements]);
                half::apply(half, bits, decision, self.granularity());
                half::widen(half, bits, values);
            }
        }
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

    /// The means of coordinates that the fast sums leave open: in `f64` where that holds all of a coordinate's sums exactly. Most of what is
    /// open lies in the middle between two `f32`, as means of few rows of equal weight often do.
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
    fn sums_at<S: Clone + Default>(
        &self,
        strip: &Strip<'_>,
        coordinates: &[usize],
        add: impl Fn(&mut S, f32, f32),
    ) -> Vec<S> {
        let mut sums = vec![S::default(); coordinates.len()];
        for row in &self.rows {
            let (elements, decision) = self.span(strip, row);
            for (&i, sum) in coordinates.iter().zip(&mut sums) {
                let value = match self.data {
                    Elements::Single(data) => {
                        let center = strip.center.map(|center| center[i]);
                        clipped(data[elements.start + i], center, decision, self.granularity())
                    }
                    Elements::Half(half, data) => {
                        half.clipped(data[elements.start + i], decision, self.granularity())
                    }
                };
                add(sum, row.weight, value);
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

/// How many additions follow each other in which a term takes part, where so many parts of so many rows are summed, and joined.
fn additions(rows: usize, parts: usize) -> u32 {
    let joins = |sums: usize| 2 * (usize::BITS - sums.leading_zeros());
    (BLOCK / TOGETHER + TOGETHER) as u32 + joins(rows.div_ceil(BLOCK)) + joins(parts)
}

impl Sums {
    fn zeros(coordinates: usize) -> Self {
        Self {
            sums: vec![0.0; coordinates],
            sizes: vec![0.0; coordinates],
            least: vec![u32::MAX; coordinates],
        }
    }

    /// The sum of some for a strip. Neighbours join first, then pairs of those, so that a term takes part in two joins for each level at most.
    fn joined(sums: impl Iterator<Item = Self>, strip: &Strip<'_>) -> Self {
        let mut waiting: Vec<Self> = Vec::new();
        for (place, mut sums) in sums.enumerate() {
            for _ in 0..place.trailing_ones() {
                sums = sums.and(waiting.pop());
            }
            waiting.push(sums);
        }
        let last = waiting.pop().unwrap_or_else(|| Self::zeros(strip.mean.len()));
        waiting.into_iter().rev().fold(last, |sums, more| sums.and(Some(more)))
    }

    fn and(mut self, other: Option<Self>) -> Self {
        if let Some(other) = other {
            self.sums.iter_mut().zip(other.sums).for_each(|(a, b)| *a += b);
            self.sizes.iter_mut().zip(other.sizes).for_each(|(a, b)| *a += b);
            self.least.iter_mut().zip(other.least).for_each(|(a, b)| *a = b.min(*a));
        }
        self
    }

    /// A sum of terms of weight 1, where that is exact: all of it are multiples of the last bit of the least value, and below 2^53 of that. Subnormal
    /// values may be what is not right of products.
    fn exact(&self, i: usize) -> Option<f64> {
        let least = f32::from_bits(self.least[i].wrapping_add(1));
        let size = self.sizes[i];
        let is_exact = least > f32::MIN_POSITIVE && size < f32::INFINITY && size <= least * 2f32.powi(28);
        is_exact.then_some(self.sums[i])
    }
}

/// What magnitudes are counted in: 2^-20 of the greatest weight, so that no magnitude vanishes, and those of lesser weights count as more.
fn unit_of_sizes(rows: &[MeanRow]) -> f64 {
    let greatest = rows.iter().fold(0.0f32, |most, row| most.max(row.weight));
    let power = (f64::from(greatest).to_bits() >> 52) as i32 - 1023;
    power_of_two(power - 20)
}

/// Adds the terms of some rows: the product of two `f32` is exact in `f64`.
///
/// Rows that are `UNCHECKED` may have elements that are not finite, which count as 0. In others, whose norms are finite, such elements would
/// make a size that is not, of which [`Certify`] decides nothing. A product with the factor that is subnormal is off by less than 2^-126,
/// which that knows.
pub(super) struct Add<'a, 'b, const EQUAL: bool, const UNCHECKED: bool> {
    pub(super) sums: &'a mut Sums,
    pub(super) terms: [Terms<'b>; TOGETHER],
    pub(super) ahead: RowsAhead,
}

/// Memory that is asked for while other rows are added.
#[derive(Clone, Copy)]
pub(super) struct RowsAhead {
    rows: [*const u8; TOGETHER],
    /// How much of a row beside each chunk, in bytes: a line, or half of one.
    step: usize,
}

impl RowsAhead {
    /// Asks for what goes with a chunk.
    #[inline(always)]
    pub(super) fn ask(&self, chunk: usize) {
        for row in self.rows {
            prefetch(row.wrapping_add(chunk * self.step), 1);
        }
    }
}

/// Elements of a cache line.
pub(super) const CHUNK: usize = LINE / size_of::<f32>();

/// Adds by intrinsics where compilers make less of the loop.
fn add<const EQUAL: bool, const UNCHECKED: bool>(add: Add<'_, '_, EQUAL, UNCHECKED>) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() && !std::arch::is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has AVX2 and FMA, as was just asked.
        return unsafe { mean_256::add(add) };
    }
    vectorised(add);
}

// Loops over places: without optimisation across units what `zip` calls stays calls, without the vectors.
#[allow(clippy::needless_range_loop)]
impl<const EQUAL: bool, const UNCHECKED: bool> Kernel for Add<'_, '_, EQUAL, UNCHECKED> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let length = self.sums.sums.len();
        let mut rows = [&[][..]; TOGETHER];
        for k in 0..TOGETHER {
            rows[k] = &self.terms[k].values[..length];
        }
        let sums = self.sums.sums.as_chunks_mut::<CHUNK>().0;
        let sizes = self.sums.sizes[..length].as_chunks_mut::<CHUNK>().0;
        let least = self.sums.least[..length].as_chunks_mut::<CHUNK>().0;
        for i in 0..sums.len() {
            self.ahead.ask(i);
            let mut chunks = [&[0.0; CHUNK]; TOGETHER];
            for k in 0..TOGETHER {
                chunks[k] = &rows[k].as_chunks().0[i];
            }
            let (sums, sizes, least) = (&mut sums[i], &mut sizes[i], &mut least[i]);
            for j in 0..CHUNK {
                let mut values = [0.0; TOGETHER];
                for k in 0..TOGETHER {
                    values[k] = chunks[k][j];
                }
                (sums[j], sizes[j], least[j]) =
                    added::<EQUAL, UNCHECKED>((sums[j], sizes[j], least[j]), &values, &self.terms);
            }
        }
        add_one_by_one::<EQUAL, UNCHECKED>(self.sums, &self.terms, length - length % CHUNK);
    }
}

/// Adds what lies behind so many coordinates.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub(super) fn add_one_by_one<const EQUAL: bool, const UNCHECKED: bool>(
    sums: &mut Sums,
    terms: &[Terms<'_>; TOGETHER],
    done: usize,
) {
    for i in done..sums.sums.len() {
        let mut values = [0.0; TOGETHER];
        for k in 0..TOGETHER {
            values[k] = terms[k].values[i];
        }
        (sums.sums[i], sums.sizes[i], sums.least[i]) =
            added::<EQUAL, UNCHECKED>((sums.sums[i], sums.sizes[i], sums.least[i]), &values, terms);
    }
}

/// A coordinate's sum, that of the magnitudes and the least, with the terms of these values, which are summed first.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn added<const EQUAL: bool, const UNCHECKED: bool>(
    (sum, size, mut least): (f64, f32, u32),
    values: &[f32; TOGETHER],
    terms: &[Terms<'_>; TOGETHER],
) -> (f64, f32, u32) {
    let (mut more, mut larger) = (0.0, 0.0);
    for k in 0..TOGETHER {
        let value = if !UNCHECKED || values[k].is_finite() { values[k] } else { 0.0 };
        let value = value * terms[k].factor;
        if EQUAL {
            more += f64::from(value);
            larger += value.abs();
            least = least.min(value.abs().to_bits().wrapping_sub(1));
        } else {
            more += f64::from(value) * f64::from(terms[k].weight);
            larger += value.abs() * terms[k].size;
        }
    }
    (sum + more, size + larger, least)
}

/// The means, where every sum within the error of these rounds to the same; the others are open.
///
/// An addition rounds by at most 2^-53 of the magnitudes, which may be 8/7 of what was counted: 0.58 · 2^-52 of that. Divisor, reciprocal and what
/// is computed here round by less than 10 · 2^-52 of the sum.
struct Certify<'a> {
    sums: &'a Sums,
    unit: f64,
    additions: u32,
    divisor: f64,
    mean: &'a mut [f32],
    open: &'a mut [bool],
}

#[allow(clippy::needless_range_loop)]
impl Kernel for Certify<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let relative = (0.625 * f64::from(self.additions) + 12.0) * f64::EPSILON * self.unit;
        // Of subnormal products, each times its weight.
        let absolute = self.divisor * power_of_two(-125);
        let reciprocal = 1.0 / self.divisor;
        let length = self.mean.len();
        let (sums, sizes) = (&self.sums.sums[..length], &self.sums.sizes[..length]);
        let open = &mut self.open[..length];
        for i in 0..length {
            let error = f64::from(sizes[i]) * relative + absolute;
            let least = ((sums[i] - error) * reciprocal) as f32;
            let most = ((sums[i] + error) * reciprocal) as f32;
            self.mean[i] = if sizes[i] == 0.0 { 0.0 } else { least };
            let certain = sizes[i] < f32::INFINITY && least.to_bits() == most.to_bits();
            open[i] = !certain && sizes[i] != 0.0;
        }
    }
}
