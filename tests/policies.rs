//! Threshold policies against their definitions, in `f64` and integers, over thousands of seeded sets of norms.
//!
//! Nothing is summed here: an element repeated k² times has the norm k·|v|, which is exact in `f64`. So every
//! norm is known without the library, those above the largest `f32` and those between two `f32` as well.
//! At segment granularity every layer is a case of its own, so one call decides dozens of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::VecDeque;

use byzclip::threshold::{self, Adaptive, Decision};
use byzclip::{
    Backend, Clipping, Error, Granularity, Layout, NonFinite, Norms, Reference, Scope, State, Status,
    Threshold,
};
use common::oracle::units;
use common::{Rng, assert_same_bits, assert_same_report};

const BILLION: u64 = 1_000_000_000;

/// A layout, and where its spans belong.
struct Shape {
    layout: Layout,
    granularity: Granularity,
    /// For each span its row, and its group: its position in the row.
    spans: Vec<(usize, usize)>,
    groups: usize,
}

impl Shape {
    fn new(layout: Layout, granularity: Granularity) -> Self {
        let of_row = |row| (0..layout.spans_of(granularity, row).len()).map(move |group| (row, group));
        let spans: Vec<_> = (0..layout.clients()).flat_map(of_row).collect();
        let groups = spans.iter().map(|(_, group)| group + 1).max().unwrap_or(0);
        Self { layout, granularity, spans, groups }
    }

    /// One norm for each of so many rows, up to three times an element.
    fn rows(n: usize) -> Self {
        Self::new(Layout::dense(n, 9).unwrap(), Granularity::Row)
    }

    /// Layers that 1, 2, … n rows have: each number of norms is a group of its own.
    fn triangle(n: usize) -> Self {
        let row = |r: usize| (0..=r).map(|k| if (r + k).is_multiple_of(3) { 9 } else { 1 }).collect();
        let rows: Vec<Vec<usize>> = (0..n).map(row).collect();
        Self::new(Layout::ragged_layered(&rows).unwrap(), Granularity::Segment)
    }

    /// Rows without segments, segments without elements, and rows of other numbers of them.
    fn uneven() -> Self {
        let rows: [&[usize]; 9] =
            [&[], &[1, 0, 4], &[9], &[0], &[1, 1, 1, 1], &[0, 0, 1], &[], &[4, 1, 9, 1], &[1, 1, 0]];
        Self::new(Layout::ragged_layered(&rows).unwrap(), Granularity::Segment)
    }

    fn coordinates(n: usize) -> Self {
        Self::new(Layout::strided(n, 3, 5).unwrap(), Granularity::Coordinate)
    }

    /// The bound of every span from that of every group.
    fn per_span(&self, bounds: &[f32]) -> Vec<f32> {
        self.spans.iter().map(|&(_, group)| bounds[group]).collect()
    }

    fn context(&self) -> String {
        format!("{:?}, {} rows, {} groups", self.granularity, self.layout.clients(), self.groups)
    }
}

/// What the values of a batch are like.
#[derive(Debug, Clone, Copy)]
enum Values {
    Any,
    Mixed,
    Ties,
    Equal,
    Zeros,
    Subnormal,
    Huge,
    /// Neighbours: they differ in the last bits.
    Close,
    /// They differ in seven neighbouring bits, which one digit of a radix selection has to tell apart.
    OneDigit(u32),
}

const ALL_VALUES: [Values; 12] = [
    Values::Any,
    Values::Mixed,
    Values::Ties,
    Values::Equal,
    Values::Zeros,
    Values::Subnormal,
    Values::Huge,
    Values::Close,
    Values::OneDigit(0),
    Values::OneDigit(8),
    Values::OneDigit(16),
    Values::OneDigit(23),
];

impl Values {
    fn value(self, rng: &mut Rng) -> f32 {
        match self {
            Self::Any => rng.finite().abs(),
            Self::Mixed => match rng.below(10) {
                0 => 0.0,
                1 => f32::from_bits(1),
                2 => f32::MAX,
                3 => f32::MIN_POSITIVE,
                4..7 => rng.below(4) as f32,
                _ => rng.unit().abs(),
            },
            Self::Ties => [0.0, 0.5, 1.5][rng.below(3) as usize],
            Self::Equal => 0.7,
            Self::Zeros => 0.0,
            Self::Subnormal => f32::from_bits(rng.below(1 << 23) as u32),
            Self::Huge => f32::from_bits(0x7f7f_ffff - rng.below(1 << 22) as u32),
            Self::Close => f32::from_bits(0x3fff_fffe + rng.below(5) as u32),
            Self::OneDigit(shift) => f32::from_bits(0x2a55_1234 ^ ((rng.below(128) as u32) << shift)),
        }
    }
}

/// What a policy is to make of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Finite,
    NonFinite,
    OutOfScope,
}

/// Norms that are known exactly.
struct Batch<'a> {
    shape: &'a Shape,
    data: Vec<f32>,
    mask: Vec<bool>,
    kinds: Vec<Kind>,
    /// The exact norm of every span, also of those that do not count.
    exact: Vec<f64>,
    norms: Norms,
}

impl<'a> Batch<'a> {
    /// A batch in which one row in `odd` holds NaN or Inf, and one in `odd` is out of scope; none where it is 0.
    fn new(shape: &'a Shape, values: Values, odd: u64, rng: &mut Rng) -> Self {
        Self::with(shape, odd, rng, |_, rng| values.value(rng))
    }

    fn with(shape: &'a Shape, odd: u64, rng: &mut Rng, value: impl Fn(usize, &mut Rng) -> f32) -> Self {
        let layout = &shape.layout;
        let (mut data, mut exact) = (vec![0.0f32; layout.len()], Vec::new());
        for span in 0..shape.spans.len() {
            let magnitude = value(span, rng);
            let elements = &mut data[layout.span(shape.granularity, span)];
            // k² times an element has k times its magnitude for a norm.
            let most = elements.len().isqrt() as u64;
            let k = if most > 1 { 1 + rng.below(most) } else { 1 };
            for element in elements.iter_mut().take((k * k) as usize) {
                *element = magnitude * rng.sign();
            }
            let k = if shape.granularity == Granularity::Coordinate { 1 } else { k };
            exact.push(if elements.is_empty() { 0.0 } else { k as f64 * f64::from(magnitude) });
        }
        let chosen = |rng: &mut Rng| odd > 0 && rng.below(odd) == 0;
        let mask: Vec<bool> = (0..layout.clients()).map(|_| !chosen(rng)).collect();
        let mut kinds = Vec::new();
        for (row, &in_scope) in mask.iter().enumerate() {
            let elements = &mut data[layout.row(row)];
            let spoiled = chosen(rng) && !elements.is_empty();
            if spoiled {
                let at = rng.below(elements.len() as u64) as usize;
                elements[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.below(3) as usize];
            }
            kinds.push(match (in_scope, spoiled) {
                (false, _) => Kind::OutOfScope,
                (true, true) => Kind::NonFinite,
                (true, false) => Kind::Finite,
            });
        }
        let norms = Reference
            .norms(
                layout,
                &data,
                &Clipping::default().scope(Scope::Mask(mask.clone())).granularity(shape.granularity),
            )
            .unwrap();
        Self { shape, data, mask, kinds, exact, norms }
    }

    /// The norms that a policy looks at in a group, each the least 24-bit number that is not below it.
    fn seen(&self, group: usize) -> Vec<f64> {
        let mut seen: Vec<f64> = (0..self.exact.len())
            .filter(|&span| {
                self.shape.spans[span].1 == group && self.kinds[self.shape.spans[span].0] == Kind::Finite
            })
            .map(|span| rounded_up(self.exact[span]))
            .collect();
        seen.sort_by(f64::total_cmp);
        seen
    }
}

/// The least number of 24 significant bits, and multiple of 2^-149, that is not below `norm`.
fn rounded_up(norm: f64) -> f64 {
    let exponent = (norm.to_bits() >> 52) as i32 - 1023;
    let unit = common::power((exponent - 23).max(-149));
    (norm / unit).ceil() * unit
}

/// `factor` times an order statistic, rounded once; +inf where there was nothing to look at.
fn multiple(value: Option<f64>, factor: f32) -> f32 {
    // Two numbers of 24 bits: the product is exact before it is rounded.
    value.map_or(f32::INFINITY, |value| (value * f64::from(factor)) as f32)
}

/// The least norm that at least `billionths` of all do not exceed.
fn quantile(sorted: &[f64], billionths: u64) -> Option<f64> {
    let n = sorted.len() as u64;
    sorted.iter().copied().find(|x| {
        let at_most = sorted.partition_point(|y| y <= x) as u64;
        at_most * BILLION >= billionths * n
    })
}

/// The lower one of the two in the middle: as many lie below it as above it, or one fewer.
fn median(sorted: &[f64]) -> Option<f64> {
    if sorted.is_empty() { None } else { Some(sorted[(sorted.len() - 1) / 2]) }
}

/// The (k + 1)-th largest, k = ⌊2(f/n)(n − f)⌋, f at most n/2.
fn arc(sorted: &[f64], f: u32) -> Option<f64> {
    let n = sorted.len() as u128;
    let f = u128::from(f).min(n / 2);
    // The largest k with k·n <= 2f(n − f).
    let k = (0..n).take_while(|k| k * n <= 2 * f * (n - f)).last()?;
    sorted.iter().rev().nth(k as usize).copied()
}

/// The policies that look at norms, as they are defined.
enum Model {
    Median {
        factor: f32,
    },
    Quantile {
        billionths: u64,
    },
    Arc {
        f: u32,
    },
    /// For each group the norms of the last rounds.
    History {
        window: usize,
        factor: f32,
        rounds: Vec<VecDeque<Vec<f64>>>,
    },
}

impl Model {
    fn threshold(&self) -> Threshold {
        match *self {
            Self::Median { factor } => Threshold::Median { factor },
            Self::Quantile { billionths } => Threshold::Quantile(billionths as f64 / BILLION as f64),
            Self::Arc { f } => Threshold::Arc { byzantine: f },
            Self::History { window, factor, .. } => Threshold::History { window: window as u32, factor },
        }
    }

    fn history(window: usize, factor: f32, groups: usize) -> Self {
        Self::History { window, factor, rounds: vec![VecDeque::new(); groups] }
    }

    /// The bound of every group.
    fn bounds(&mut self, batch: &Batch<'_>) -> Vec<f32> {
        (0..batch.shape.groups).map(|group| self.bound(group, batch.seen(group))).collect()
    }

    fn bound(&mut self, group: usize, seen: Vec<f64>) -> f32 {
        match self {
            Self::Median { factor } => multiple(median(&seen), *factor),
            Self::Quantile { billionths } => multiple(quantile(&seen, *billionths), 1.0),
            Self::Arc { f } => multiple(arc(&seen, *f), 1.0),
            Self::History { window, factor, rounds } => {
                let rounds = &mut rounds[group];
                rounds.push_back(seen);
                if rounds.len() > *window {
                    rounds.pop_front();
                }
                let mut all: Vec<f64> = rounds.iter().flatten().copied().collect();
                all.sort_by(f64::total_cmp);
                multiple(median(&all), *factor)
            }
        }
    }
}

/// The backends under test, and how many bounds they were asked for.
struct Backends {
    // A device keeps the plan of its last shape, so each test has devices of its own.
    all: Vec<(String, Box<dyn Backend>)>,
    bounds: usize,
}

impl Backends {
    fn new() -> Self {
        Self { all: common::backends(), bounds: 0 }
    }

    /// Decides on every backend, requires the same of all, and of the decisions what the bounds imply.
    fn decide(
        &mut self,
        context: &str,
        batch: &Batch<'_>,
        clipping: &Clipping,
        state: &State,
        bounds: &[f32],
    ) -> State {
        let layout = &batch.shape.layout;
        let mut next = state.clone();
        let want = Reference.threshold(layout, &batch.norms, clipping, &mut next).unwrap();
        check(context, batch, clipping, &want, bounds);
        let mut halves_next = state.clone();
        let found = threshold::bounds(layout, &batch.norms, clipping, &mut halves_next).unwrap();
        let decided = threshold::decide_from_bounds(layout, &batch.norms, &found, clipping).unwrap();
        assert_same(&format!("{context}: bounds, then decisions"), &decided, &want);
        assert_eq!(halves_next, next, "{context}: the state behind bounds");
        for (name, backend) in self.others() {
            let mut got_next = state.clone();
            let got = backend.threshold(layout, &batch.norms, clipping, &mut got_next).unwrap();
            assert_same(&format!("{context}: {name}"), &got, &want);
            assert_eq!(got_next, next, "{context}: {name}: state");
        }
        // Rows come back from a device one by one where their neighbours do not: not so many of them.
        if self.bounds.is_multiple_of(5) && bounds.len() <= 2100 {
            self.run(context, batch, clipping, state, (bounds, &next));
        }
        self.bounds += batch.shape.groups;
        next
    }

    /// Those that can differ from the reference.
    fn others(&self) -> impl Iterator<Item = &(String, Box<dyn Backend>)> {
        self.all.iter().filter(|(_, backend)| common::is_other(backend.as_ref()))
    }

    /// Decides by a policy's definition.
    fn follow(&mut self, batch: &Batch<'_>, model: &mut Model, state: &State) -> State {
        let bounds = batch.shape.per_span(&model.bounds(batch));
        let clipping = self.policies(batch, clipping(batch.shape, model.threshold()));
        let context = format!("{}, {clipping:?}", batch.shape.context());
        self.decide(&context, batch, &clipping, state, &bounds)
    }

    /// Every policy for NaN and Inf that does not refuse the batch, in turns: a bound depends on none of them.
    fn policies(&self, batch: &Batch<'_>, mut clipping: Clipping) -> Clipping {
        clipping.non_finite = match self.bounds % 3 {
            0 => NonFinite::Zero,
            1 if !batch.kinds.contains(&Kind::NonFinite) => NonFinite::Error,
            _ => NonFinite::Keep,
        };
        clipping
    }

    /// All stages as one call decide from data what the threshold stage decides from norms, and leave the same state.
    fn run(
        &self,
        context: &str,
        batch: &Batch<'_>,
        clipping: &Clipping,
        state: &State,
        (bounds, next): (&[f32], &State),
    ) {
        let layout = &batch.shape.layout;
        let clipping = clipping.clone().scope(Scope::Mask(batch.mask.clone()));
        let run = |name: &str, backend: &dyn Backend| {
            let (mut data, mut after) = (batch.data.clone(), state.clone());
            let report = backend.run_with(layout, &mut data, &clipping, &mut after).unwrap();
            assert_eq!(after, *next, "{context}: run, {name}: state");
            (report, data)
        };
        let (want, clipped) = run("reference", &Reference);
        for (span, (&(row, group), &bound)) in batch.shape.spans.iter().zip(bounds).enumerate() {
            let segment = want.segments(row).get(group);
            let got = segment.map_or(want.rows[row].bound, |segment| Some(segment.bound));
            let (got, bound) = (got.map(f32::to_bits), Some(bound.to_bits()));
            assert_eq!(got, bound, "{context}: run: span {span}: bound");
        }
        for (name, backend) in self.others() {
            let (report, data) = run(name, backend.as_ref());
            let context = format!("{context}: run, {name}");
            assert_same_report(&context, &report, &want);
            assert_same_bits(&context, &data, &clipped);
        }
    }
}

fn clipping(shape: &Shape, threshold: Threshold) -> Clipping {
    Clipping { threshold, ..Clipping::default() }.granularity(shape.granularity)
}

fn assert_same(context: &str, got: &[Decision], want: &[Decision]) {
    assert_eq!(got.len(), want.len(), "{context}: decisions");
    for (span, (got, want)) in got.iter().zip(want).enumerate() {
        let bits = |d: &Decision| (d.norm, d.bound.to_bits(), d.factor.to_bits(), d.status);
        assert_eq!(bits(got), bits(want), "{context}: span {span}: got {got:?}, expected {want:?}");
    }
}

/// Requires the bounds, and statuses and factors that follow from them and the exact norms.
fn check(context: &str, batch: &Batch<'_>, clipping: &Clipping, decisions: &[Decision], bounds: &[f32]) {
    let spans = &batch.shape.spans;
    assert_eq!(decisions.len(), spans.len(), "{context}: decisions");
    for (span, (decision, &(row, _))) in decisions.iter().zip(spans).enumerate() {
        let bound = bounds[span];
        assert_eq!(
            decision.bound.to_bits(),
            bound.to_bits(),
            "{context}: span {span}: bound {:e}, expected {bound:e}",
            decision.bound
        );
        check_decision(format_args!("{context}: span {span}"), batch, clipping, decision, span, row);
    }
}

fn check_decision(
    context: std::fmt::Arguments<'_>,
    batch: &Batch<'_>,
    clipping: &Clipping,
    decision: &Decision,
    span: usize,
    row: usize,
) {
    let (norm, bound) = (batch.exact[span], f64::from(decision.bound));
    let (status, factor) = match (batch.kinds[row], clipping.non_finite) {
        (Kind::OutOfScope, _) => (Status::OutOfScope, 1.0),
        (Kind::NonFinite, NonFinite::Keep) => (Status::Kept, 1.0),
        (Kind::NonFinite, _) => (Status::Zeroed, 0.0),
        (Kind::Finite, _) if norm > bound && clipping.granularity == Granularity::Coordinate => {
            (Status::Clipped, 1.0)
        }
        (Kind::Finite, _) if norm > bound => {
            // Both sides are exact: 26 and 24 bits in a product, 24 and 24 in the other.
            let (clipped, most) = (decision.factor * norm, bound * (1.0 - common::power(-24)));
            assert!(clipped <= most, "{context}: {decision:?}: {clipped:e} above {bound:e}");
            let least = if norm < f64::from(f32::MIN_POSITIVE) { 0.0 } else { 1.0 - common::power(-20) };
            assert!(clipped >= bound * least, "{context}: {decision:?}: {clipped:e} far below {bound:e}");
            (Status::Clipped, decision.factor)
        }
        _ => (Status::Untouched, 1.0),
    };
    assert_eq!((decision.status, decision.factor), (status, factor), "{context}: norm {norm:e}, {bound:e}");
}

/// Numbers of rows: every small one, those about powers of two, and some up to 2,000.
fn spread() -> impl Iterator<Item = usize> {
    (1..=24).chain([31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 511, 513, 1000, 1999, 2000])
}

#[test]
fn medians_and_quantiles_are_those_of_the_definition() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(1));
    let layered = [Shape::triangle(64), Shape::uneven(), Shape::coordinates(7), Shape::coordinates(64)];
    let shapes = layered.into_iter().chain(spread().map(Shape::rows));
    for (i, shape) in shapes.enumerate() {
        let most = if shape.groups > 1 { 4 * ALL_VALUES.len() } else { ALL_VALUES.len() };
        for j in 0..most {
            let values = ALL_VALUES[j % ALL_VALUES.len()];
            let batch = Batch::new(&shape, values, [0, 5, 2, 50][(i + j) % 4], &mut rng);
            let n = batch.seen(0).len().max(1) as u64;
            // A fraction of this many norms, and one that is a little more.
            let of_n = rng.below(n + 1) * BILLION / n;
            let q = [0, 1, BILLION / 2, BILLION, of_n, (of_n + 1).min(BILLION), rng.below(BILLION)];
            let factor = [1.0, 2.0, 0.0, 3.3, 1e-30, f32::MAX, f32::from_bits(1)][(i + j) % 7];
            let mut models =
                [Model::Median { factor }, Model::Quantile { billionths: q[(i / 2 + j) % q.len()] }];
            for model in &mut models {
                backends.follow(&batch, model, &State::default());
            }
        }
    }
    assert!(backends.bounds >= 7_000, "{}", backends.bounds);
}

/// 0.9 of ten norms is nine of them, whatever 0.9 is in binary.
#[test]
fn fractions_are_those_that_were_written() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(16));
    for (n, step) in [(10, 1), (1000, 37)] {
        let shape = Shape::new(Layout::dense(n, 1).unwrap(), Granularity::Row);
        let batch = Batch::with(&shape, 0, &mut rng, |row, _| 1.0 + row as f32);
        for rank in (0..=n).step_by(step) {
            let billionths = rank as u64 * BILLION / n as u64;
            let bound = rank.max(1) as f32;
            let clipping = clipping(&shape, Model::Quantile { billionths }.threshold());
            let context = format!("{rank} of {n}");
            backends.decide(&context, &batch, &clipping, &State::default(), &vec![bound; n]);
        }
    }
}

/// The norms of the layers are 1, 2, 3 and 100, and those behind them 50, 5, 0 and 10, or 5, 0 and 10.
#[test]
fn layers_have_bounds_of_their_own_across_clients() {
    let alike = Layout::dense(4, 3).unwrap().layered(&[1, 2]).unwrap();
    let uneven = Layout::ragged_layered(&[vec![1, 2], vec![1], vec![1, 1], vec![1, 2]]).unwrap();
    let threshold = Threshold::Median { factor: 1.0 };
    let clipping = Clipping { threshold, ..Clipping::default() }.granularity(Granularity::Segment);
    for (layout, data) in [
        (alike, &[1.0, 30.0, 40.0, 2.0, 3.0, 4.0, 3.0, 0.0, 0.0, 100.0, 6.0, 8.0][..]),
        (uneven, &[1.0, 3.0, 4.0, 2.0, 3.0, 0.0, 100.0, 6.0, 8.0]),
    ] {
        for (name, backend) in Backends::new().all {
            let report = backend.run(&layout, &mut data.to_vec(), &clipping).unwrap();
            for row in 0..4 {
                let bounds: Vec<f32> = report.segments(row).iter().map(|segment| segment.bound).collect();
                assert_eq!(bounds, [2.0, 5.0][..layout.segments_of(row).len()], "{name}: row {row}");
            }
        }
    }
}

#[test]
fn multiples_are_rounded_once_to_nearest_even() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(15));
    // One client with many layers: the median of each is its norm.
    let layout = Layout::dense(1, 200).unwrap().layered(&[1; 200]).unwrap();
    let shape = Shape::new(layout, Granularity::Segment);
    let ulp = f32::EPSILON;
    let special = [0.5, 0.25, 1.5, 3.0, 1.0 + ulp, 1.0 - ulp / 2.0, 2.0 - ulp, f32::MIN_POSITIVE, f32::MAX];
    let factors = special.into_iter().chain((0..=30).map(|i| f32::from_bits(1 << (i % 23) | (i / 2) << 27)));
    let factors: Vec<f32> = factors.chain((0..30).map(|_| Values::Any.value(&mut rng))).collect();
    for factor in factors {
        let batch = Batch::with(&shape, 0, &mut rng, |_, rng| {
            // Where roundings change: halves of the least numbers, the first normal ones, the last ones.
            let edge = match rng.below(5) {
                0 => (rng.below(9) as f64 + 0.5) * common::power(-149),
                1 => (1.0 + rng.unit() as f64 * 1e-7) * common::power(-126 - rng.below(24) as i32),
                2 => (1.0 - rng.below(5) as f64 * common::power(-26)) * common::power(128),
                _ => return Values::Any.value(rng),
            };
            let near = ((edge / f64::from(factor)) as f32).clamp(0.0, f32::MAX);
            [near, near.next_up().min(f32::MAX), near.next_down().max(0.0)][rng.below(3) as usize]
        });
        backends.follow(&batch, &mut Model::Median { factor }, &State::default());
    }
}

#[test]
fn arc_clips_the_k_largest_for_every_f() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(2));
    let shapes = [Shape::triangle(64), Shape::uneven()].into_iter().chain((1..=40).map(Shape::rows));
    for shape in shapes.chain([60, 61, 100, 255, 257, 1000, 1999, 2000].map(Shape::rows)) {
        let n = shape.layout.clients() as u32;
        let mut all_f: Vec<u32> = (0..=n + 2).collect();
        if n > 64 {
            all_f = vec![0, 1, 2, n / 10, n / 3, n / 2 - 1, n / 2, n / 2 + 1, n - 1, n, n + 1];
            all_f.extend((0..8).map(|_| rng.below(u64::from(n)) as u32));
        }
        // More than n/2 count as n/2, so that no f is refused.
        all_f.extend([1 << 31, u32::MAX]);
        for (i, f) in all_f.into_iter().enumerate() {
            let values = ALL_VALUES[i % ALL_VALUES.len()];
            let batch = Batch::new(&shape, values, [0, 0, 0, 4, 30][i % 5], &mut rng);
            backends.follow(&batch, &mut Model::Arc { f }, &State::default());
        }
    }
    assert!(backends.bounds >= 5_000, "{}", backends.bounds);
}

#[test]
fn arc_clips_exactly_k_of_distinct_norms() {
    let (backends, mut rng) = (Backends::new(), Rng::new(3));
    // Where a product of f64 is cut to another integer than ⌊2f(n − f)/n⌋.
    let traps = |n: usize| {
        let floats = move |f: usize| (2.0 * (f as f64 / n as f64) * (n - f) as f64).floor() as usize;
        (0..=n / 2).filter(move |&f| floats(f) != 2 * f * (n - f) / n)
    };
    let every = (1..=64).map(|n| (n, (0..=n + 1).collect::<Vec<_>>()));
    let trapped = (65..=2000).map(|n| (n, traps(n).collect::<Vec<_>>())).filter(|(_, f)| !f.is_empty());
    let trapped: Vec<_> = trapped.collect();
    assert!(trapped.len() > 20);
    for (n, all_f) in every.chain(trapped) {
        let shape = Shape::new(Layout::dense(n, 1).unwrap(), Granularity::Row);
        let mut values: Vec<f32> = (1..=n).map(|v| v as f32 * 0.37).collect();
        rng.shuffle(&mut values);
        let batch = Batch::with(&shape, 0, &mut rng, |row, _| values[row]);
        for f in all_f {
            let honest = n - f.min(n / 2);
            let k = 2 * (n - honest) * honest / n;
            let clipping = clipping(&shape, Threshold::Arc { byzantine: f as u32 });
            for (name, backend) in &backends.all {
                let decisions =
                    backend.threshold(&shape.layout, &batch.norms, &clipping, &mut State::default()).unwrap();
                let clipped = decisions.iter().filter(|d| d.status == Status::Clipped).count();
                assert_eq!(clipped, k, "{name}: n {n}, f {f}");
            }
        }
    }
}

#[test]
fn a_history_is_the_median_of_its_window_in_every_round() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(4));
    let rows = [1, 2, 3, 7, 33, 200, 2000].map(Shape::rows);
    for (i, shape) in rows.into_iter().chain([Shape::triangle(64), Shape::uneven()]).enumerate() {
        // The longest first: its plan has room for the others.
        for window in [8, 5, 3, 2, 1] {
            let factor = [1.0, 2.5, 0.3, 0.0][(i + window) % 4];
            let mut model = Model::history(window, factor, shape.groups);
            let mut state = State::default();
            for round in 0..3 * window + 2 {
                let values = ALL_VALUES[(i + round) % ALL_VALUES.len()];
                // In some rounds all rows are out of scope.
                let odd = [0, 3, 1, 20][rng.below(4) as usize];
                let batch = Batch::new(&shape, values, odd, &mut rng);
                state = backends.follow(&batch, &mut model, &state);
            }
        }
    }
    assert!(backends.bounds >= 4_000, "{}", backends.bounds);
}

#[test]
fn a_history_survives_the_end_of_its_count_of_rounds() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(5));
    let (shape, window) = (Shape::rows(9), 4);
    let mut model = Model::history(window, 1.0, 1);
    let mut state = State::default();
    for round in 0..12 {
        let batch = Batch::new(&shape, Values::Any, 4, &mut rng);
        state = backends.follow(&batch, &mut model, &state);
        if round == 3 {
            assert_eq!(state.words()[0], 4);
            // The same place in the ring, four rounds before the count begins anew.
            let mut words = state.words().to_vec();
            words[0] = u32::MAX - 3;
            state = State::from_words(words);
        }
    }
    assert_eq!(state.words()[0], 4);
}

/// Differences from a centre reach norms that no row has; the next round has to take the state they leave.
#[test]
fn a_history_of_the_greatest_differences_is_a_state() {
    let layout = Layout::dense(2, 5000).unwrap();
    let data: Vec<f32> = (0..10_000).map(|i| if i < 5000 { f32::MAX } else { 1.0 }).collect();
    let threshold = Threshold::History { window: 2, factor: 1.0 };
    let clipping = Clipping { threshold, ..Clipping::default() }.around(vec![-f32::MAX; 5000]);
    for (name, backend) in Backends::new().all {
        let mut state = State::default();
        for _ in 0..3 {
            backend.run_with(&layout, &mut data.clone(), &clipping, &mut state).expect(&name);
        }
    }
}

/// A moving bound, as Andrew et al. define its next value: between these two, of which rounding allows any.
fn moved(adaptive: &Adaptive, c: f32, seen: &[f64]) -> (f64, f64) {
    if seen.is_empty() {
        return (f64::from(c), f64::from(c));
    }
    let not_clipped = seen.iter().filter(|norm| **norm <= f64::from(c)).count();
    let b = not_clipped as f64 / seen.len() as f64;
    let exact = f64::from(c) * (-adaptive.rate * (b - adaptive.target)).exp();
    // The factor is right to 2^-23, and C is rounded once.
    let error = common::power(-23) + common::power(-24);
    let within = |next: f64| next.clamp(f64::from(adaptive.min), f64::from(adaptive.max));
    (within(exact * (1.0 - error)), within(exact * (1.0 + error)))
}

fn follow_adaptive(backends: &mut Backends, batch: &Batch<'_>, adaptive: &Adaptive, state: &State) -> State {
    let shape = batch.shape;
    let old: Vec<f32> = match state.words() {
        [] => vec![adaptive.initial; shape.groups],
        words => words.iter().map(|&word| f32::from_bits(word)).collect(),
    };
    let clipping = backends.policies(batch, clipping(shape, Threshold::Adaptive(*adaptive)));
    let context = format!("{}, {adaptive:?}", shape.context());
    // This round is clipped with the old bounds.
    let next = backends.decide(&context, batch, &clipping, state, &shape.per_span(&old));
    assert_eq!(next.words().len(), shape.groups, "{context}");
    for (group, (&old, &new)) in old.iter().zip(next.words()).enumerate() {
        let (least, most) = moved(adaptive, old, &batch.seen(group));
        let new = f64::from(f32::from_bits(new));
        assert!(
            (least..=most).contains(&new),
            "{context}: group {group}: {old:e} to {new:e}, not {least:e} to {most:e}"
        );
    }
    next
}

#[test]
fn an_adaptive_bound_moves_by_the_formula() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(6));
    let shapes = [Shape::triangle(48), Shape::uneven(), Shape::coordinates(30)].into_iter();
    for (i, shape) in shapes.chain([1, 2, 3, 10, 100, 333, 2000].map(Shape::rows)).enumerate() {
        for j in 0..60 {
            let fraction = |rng: &mut Rng| rng.below(1001) as f64 / 1000.0;
            let (a, b) = (Values::Any.value(&mut rng), Values::Any.value(&mut rng));
            let (min, max) = match j % 3 {
                0 => (f32::MIN_POSITIVE, f32::MAX),
                1 => (0.25, 64.0),
                _ => (a.min(b).max(f32::MIN_POSITIVE), a.max(b).max(f32::MIN_POSITIVE)),
            };
            let adaptive = Adaptive {
                initial: min,
                target: [0.0, 1.0, 0.5, fraction(&mut rng)][rng.below(4) as usize],
                rate: [0.0, 8.0, 0.2, 8.0 * fraction(&mut rng)][rng.below(4) as usize],
                min,
                max,
            };
            let values = ALL_VALUES[(i + j) % ALL_VALUES.len()];
            let batch = Batch::new(&shape, values, [0, 6, 0, 2][j % 4], &mut rng);
            // A bound that is a norm, or is next to one, or anything.
            let near = |rng: &mut Rng| {
                let norm = batch.exact[rng.below(batch.exact.len() as u64) as usize] as f32;
                let near = [norm, norm.next_up(), norm.next_down(), Values::Any.value(rng)];
                near[rng.below(4) as usize].clamp(min, max).to_bits()
            };
            let state = State::from_words((0..shape.groups).map(|_| near(&mut rng)).collect());
            let state = follow_adaptive(&mut backends, &batch, &adaptive, &state);
            follow_adaptive(&mut backends, &batch, &adaptive, &state);
        }
    }
    assert!(backends.bounds >= 6_000, "{}", backends.bounds);
}

#[test]
fn an_adaptive_bound_finds_its_quantile_from_both_sides() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(7));
    let (clients, layers) = (100, 7);
    let layout = Layout::dense(clients, layers).unwrap().layered(&[1; 7]).unwrap();
    let shape = Shape::new(layout, Granularity::Segment);
    let scale = |layer: usize| 10f64.powi(layer as i32 - 3);
    // The norms of a layer are spread evenly over 0.5 to 1.5 of its scale: from the same bound some layers
    // have to climb, others to descend.
    let batch = Batch::with(&shape, 0, &mut rng, |span, _| {
        let place = (span / layers * 37 % clients) as f64 + 0.5;
        ((0.5 + place / clients as f64) * scale(span % layers)) as f32
    });
    for (target, rounds) in [(0.2, 100), (0.5, 70), (0.9, 160)] {
        let adaptive = Adaptive { initial: 1.0, target, rate: 0.7, ..Adaptive::default() };
        let mut state = State::default();
        let quantile = |layer: usize| (0.5 + target) * scale(layer);
        for round in 0..rounds {
            let next = follow_adaptive(&mut backends, &batch, &adaptive, &state);
            let old = |layer: usize| if round == 0 { 1.0 } else { f32::from_bits(state.words()[layer]) };
            for (layer, &new) in next.words().iter().enumerate() {
                let (old, new) = (f64::from(old(layer)), f64::from(f32::from_bits(new)));
                // It goes towards the quantile, wherever it is.
                if old < quantile(layer) * 0.98 {
                    assert!(new > old, "target {target}, layer {layer}, round {round}: {old} to {new}");
                }
                if old > quantile(layer) * 1.02 {
                    assert!(new < old, "target {target}, layer {layer}, round {round}: {old} to {new}");
                }
            }
            state = next;
        }
        for (layer, &word) in state.words().iter().enumerate() {
            let found = f64::from(f32::from_bits(word)) / quantile(layer);
            assert!((0.98..1.02).contains(&found), "target {target}, layer {layer}: {found} of the quantile");
        }
    }
}

#[test]
fn a_saved_state_goes_on_elsewhere_with_the_same_bits() {
    let (backends, mut rng) = (Backends::new(), Rng::new(8));
    let adaptive = Adaptive { initial: 3.0, target: 0.6, rate: 1.3, ..Adaptive::default() };
    let policies = [
        Threshold::Adaptive(adaptive),
        Threshold::History { window: 4, factor: 1.5 },
        Threshold::History { window: 1, factor: 1.0 },
    ];
    for shape in [Shape::rows(1), Shape::rows(37), Shape::triangle(20), Shape::uneven()] {
        let batches: Vec<_> =
            (0..14).map(|i| Batch::new(&shape, ALL_VALUES[i % 12], [0, 4, 1][i % 3], &mut rng)).collect();
        for policy in &policies {
            let clipping = clipping(&shape, policy.clone());
            let go_on = |backend: &dyn Backend, batches: &[Batch<'_>], state: &mut State| {
                let decide = |batch: &Batch<'_>| {
                    backend.threshold(&shape.layout, &batch.norms, &clipping, state).unwrap()
                };
                batches.iter().flat_map(decide).collect::<Vec<_>>()
            };
            let mut end = State::default();
            let whole = go_on(&Reference, &batches, &mut end);
            for (i, (name, backend)) in backends.all.iter().enumerate() {
                let context = format!("{}, {policy:?}, {name}", shape.context());
                let split = 1 + (i * 3) % 12;
                let mut state = State::default();
                let mut decisions = go_on(&**backend, &batches[..split], &mut state);
                let saved = state.words().to_vec();
                // Something else comes between, of another shape and policy.
                let other = Shape::rows(5);
                let batch = Batch::new(&other, Values::Any, 0, &mut rng);
                let of_other = self::clipping(&other, Threshold::Median { factor: 1.0 });
                let between =
                    backend.threshold(&other.layout, &batch.norms, &of_other, &mut State::default()).unwrap();
                assert_eq!(between[0].bound, multiple(median(&batch.seen(0)), 1.0), "{context}");
                // The rest on the same backend, and on the next one.
                let next = &backends.all[(i + 1) % backends.all.len()];
                for (name, backend) in [(name, backend), (&next.0, &next.1)] {
                    let mut restored = State::from_words(saved.clone());
                    let context = format!("{context}, then {name}");
                    let rest = go_on(&**backend, &batches[split..], &mut restored);
                    assert_same(&context, &rest, &whole[decisions.len()..]);
                    assert_eq!(restored, end, "{context}");
                }
                decisions.extend(go_on(&**backend, &batches[split..], &mut state));
                assert_same(&context, &decisions, &whole);
                assert_eq!(state, end, "{context}");
            }
        }
    }
}

#[test]
fn a_policy_without_norms_bounds_nothing() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(9));
    let empty = Shape::new(Layout::ragged_layered(&[[0usize; 0]; 3]).unwrap(), Granularity::Segment);
    let shapes = [Shape::rows(0), Shape::rows(1), Shape::rows(300), Shape::triangle(9), empty];
    for (i, shape) in shapes.into_iter().enumerate() {
        let groups = shape.groups;
        for odd in [1, 0] {
            let mut batch = Batch::new(&shape, Values::Any, odd, &mut rng);
            if odd == 0 {
                // None out of scope, and NaN in every row that has elements.
                for row in 0..shape.layout.clients() {
                    batch.data[shape.layout.row(row)].fill(f32::NAN);
                    batch.kinds[row] = Kind::NonFinite;
                }
                batch.norms = Reference
                    .norms(&shape.layout, &batch.data, &Clipping::default().granularity(shape.granularity))
                    .unwrap();
            }
            for mut model in [
                Model::history(3, 2.0, groups),
                Model::Median { factor: 0.0 },
                Model::Median { factor: 2.0 },
                Model::Quantile { billionths: 0 },
                Model::Quantile { billionths: BILLION },
                Model::Arc { f: 0 },
                Model::Arc { f: u32::MAX },
            ] {
                assert!(model.bounds(&batch).iter().all(|bound| *bound == f32::INFINITY));
                let (mut clipping, state) = (clipping(&shape, model.threshold()), State::default());
                clipping.non_finite = [NonFinite::Zero, NonFinite::Keep][i % 2];
                let bounds = shape.per_span(&vec![f32::INFINITY; groups]);
                backends.decide(&format!("{clipping:?}"), &batch, &clipping, &state, &bounds);
            }
            // C stays, to the bit; where there was none it is the first.
            let first = Adaptive { initial: 1.25, ..Adaptive::default() };
            let next = follow_adaptive(&mut backends, &batch, &first, &State::default());
            assert_eq!(next, State::from_words(vec![1.25f32.to_bits(); groups]));
            let words: Vec<u32> = (0..groups).map(|_| 0x0080_0000 + rng.below(0x7e00_0000) as u32).collect();
            let state = State::from_words(words);
            let adaptive = Adaptive { rate: 8.0, target: 0.3, ..Adaptive::default() };
            let next = follow_adaptive(&mut backends, &batch, &adaptive, &state);
            assert_eq!(next, state);
        }
    }
}

#[test]
fn given_bounds_are_given() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(10));
    let layered = [Shape::triangle(30), Shape::uneven(), Shape::coordinates(20)];
    for shape in layered.into_iter().chain(spread().map(Shape::rows)) {
        let n = shape.layout.clients();
        for i in 0..24 {
            let batch = Batch::new(&shape, ALL_VALUES[i % ALL_VALUES.len()], [0, 4][i % 2], &mut rng);
            // A norm, the next one, and what is special.
            let mut bound = || {
                let some = batch.exact.get(rng.below(batch.exact.len().max(1) as u64) as usize);
                let norm = some.map_or(1.0, |norm| *norm as f32);
                let bounds = [norm, norm.next_up(), norm.next_down().max(0.0), 0.0, -0.0, f32::INFINITY];
                let more = [f32::from_bits(1), f32::MAX, norm / 3.0];
                *bounds.iter().chain(&more).nth(rng.below(9) as usize).unwrap()
            };
            let (one, of_rows) = (bound(), (0..n).map(|_| bound()).collect::<Vec<f32>>());
            let spans = &shape.spans;
            for (threshold, bounds) in [
                (Threshold::Fixed(one), vec![one.abs(); spans.len()]),
                (Threshold::PerRow(of_rows.clone()), spans.iter().map(|s| of_rows[s.0].abs()).collect()),
            ] {
                let clipping = backends.policies(&batch, clipping(&shape, threshold));
                let context = format!("{}, batch {i}, {:?}", shape.context(), clipping.non_finite);
                let next = backends.decide(&context, &batch, &clipping, &State::default(), &bounds);
                assert_eq!(next, State::default());
            }
        }
    }
}

#[test]
fn a_split_total_is_the_largest_that_keeps_its_share() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(11));
    let uniform = |lengths: &[usize]| {
        let layout = Layout::dense(6, lengths.iter().sum()).unwrap().layered(lengths).unwrap();
        Shape::new(layout, Granularity::Segment)
    };
    let shapes = [
        Shape::triangle(40),
        Shape::uneven(),
        uniform(&[1, 4, 9, 1, 0, 16, 100]),
        uniform(&[3; 300]),
        Shape::rows(50),
        Shape::coordinates(3),
    ];
    for shape in shapes {
        for i in 0..24 {
            let batch = Batch::new(&shape, ALL_VALUES[i % ALL_VALUES.len()], [0, 5][i % 2], &mut rng);
            let special = [0.0, f32::INFINITY, f32::MAX, f32::from_bits(1), f32::MIN_POSITIVE, -0.0];
            let total = special.get(i).copied().unwrap_or_else(|| {
                if i % 3 == 0 { Values::Subnormal.value(&mut rng) } else { Values::Any.value(&mut rng) }
            });
            for by_size in [false, true] {
                let share = |span: usize| {
                    let row = shape.spans[span].0;
                    if by_size {
                        let length = shape.layout.span(shape.granularity, span).len();
                        (length, shape.layout.row(row).len())
                    } else {
                        (1, shape.layout.spans_of(shape.granularity, row).len())
                    }
                };
                let bounds: Vec<f32> =
                    (0..shape.spans.len()).map(|span| largest_share(total.abs(), share(span))).collect();
                let threshold =
                    if by_size { Threshold::SplitBySize(total) } else { Threshold::SplitEqual(total) };
                let context = format!("{}, {threshold:?}", shape.context());
                let clipping = clipping(&shape, threshold);
                backends.decide(&context, &batch, &clipping, &State::default(), &bounds);
            }
        }
    }
    assert!(backends.bounds >= 10_000, "{}", backends.bounds);
}

/// The largest `f32` b with b² · whole <= total² · part, by bisection over bits; 0 where there is no share.
fn largest_share(total: f32, (part, whole): (usize, usize)) -> f32 {
    if part == 0 || total == f32::INFINITY {
        return if part == 0 { 0.0 } else { total };
    }
    let most = units(total).pow(2) * part;
    let (mut low, mut high) = (0, total.to_bits() + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if units(f32::from_bits(middle)).pow(2) * whole <= most {
            low = middle;
        } else {
            high = middle;
        }
    }
    f32::from_bits(low)
}

#[test]
fn order_statistics_hold_for_65536_norms_and_more() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(12));
    for n in [65_536, 65_537] {
        let shape = Shape::new(Layout::dense(n, 1).unwrap(), Granularity::Row);
        for values in [Values::Any, Values::Close] {
            let batch = Batch::new(&shape, values, 100, &mut rng);
            for mut model in [
                Model::history(2, 1.0, 1),
                Model::Quantile { billionths: 370_000_000 },
                Model::Quantile { billionths: BILLION },
                Model::Arc { f: n as u32 / 5 },
                Model::Arc { f: n as u32 / 2 },
                Model::Median { factor: 2.0 },
            ] {
                backends.follow(&batch, &mut model, &State::default());
            }
            follow_adaptive(&mut backends, &batch, &Adaptive::default(), &State::default());
            if n == 65_536 && matches!(values, Values::Any) {
                let clipping = clipping(&shape, Threshold::Median { factor: 2.0 });
                let mut next = State::default();
                let bounds = threshold::bounds(&shape.layout, &batch.norms, &clipping, &mut next).unwrap();
                backends.run("65,536 rows", &batch, &clipping, &State::default(), (&bounds, &next));
            }
        }
    }
}

#[test]
fn a_rule_looks_at_two_million_norms_at_most() {
    let (mut backends, mut rng) = (Backends::new(), Rng::new(13));
    let shape = Shape::new(Layout::dense(65_536, 1).unwrap(), Granularity::Row);
    let batch = Batch::new(&shape, Values::Any, 0, &mut rng);
    // Its ring is full of other norms: all 2,097,152 of them count.
    let old: Vec<f64> = (0..31 * 65_536).map(|_| f64::from(Values::Any.value(&mut rng))).collect();
    let mut words = vec![63, 0];
    words.resize(1 + 32 * 65_536, 0);
    for (word, norm) in words[1..].iter_mut().zip(&old) {
        *word = (*norm as f32).to_bits();
    }
    let mut all = [batch.seen(0), old].concat();
    all.sort_by(f64::total_cmp);
    let bounds = vec![multiple(median(&all), 1.0); 65_536];
    let full = clipping(&shape, Threshold::History { window: 32, factor: 1.0 });
    backends.decide("a full window", &batch, &full, &State::from_words(words), &bounds);

    let too_many = Threshold::History { window: 33, factor: 1.0 };
    let rows = Shape::rows(1);
    let many = Shape::new(Layout::dense((1 << 21) + 1, 0).unwrap(), Granularity::Row);
    let norms = Reference.norms(&many.layout, &[], &Clipping::default()).unwrap();
    for (name, backend) in &backends.all {
        let mut state = State::from_words(vec![7]);
        let got =
            backend.threshold(&shape.layout, &batch.norms, &clipping(&shape, too_many.clone()), &mut state);
        assert!(matches!(got, Err(Error::Setting { name: "threshold", .. })), "{name}: {got:?}");
        let long = Threshold::History { window: (1 << 21) + 1, factor: 1.0 };
        let one = Batch::new(&rows, Values::Equal, 0, &mut rng);
        let got = backend.threshold(&rows.layout, &one.norms, &clipping(&rows, long), &mut state);
        assert!(matches!(got, Err(Error::Setting { name: "threshold", .. })), "{name}: {got:?}");
        for threshold in [Threshold::Median { factor: 1.0 }, Threshold::Adaptive(Adaptive::default())] {
            let got = backend.threshold(&many.layout, &norms, &clipping(&many, threshold), &mut state);
            assert!(matches!(got, Err(Error::Setting { name: "threshold", .. })), "{name}: {got:?}");
        }
        assert_eq!(state.words(), [7], "{name}: a refused call moves no state");
    }
}

/// Which variant an error is, and of a setting which one.
fn kind_of(error: &Error) -> &'static str {
    match error {
        Error::Setting { name, .. } => name,
        Error::InvalidBound { .. } => "bound",
        Error::BoundCount { .. } => "bound count",
        Error::Layout { .. } => "layout",
        Error::NonFinite { row: 1 } => "NaN in row 1",
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_refused_is_refused_by_all_with_the_same_words() {
    let (backends, mut rng) = (Backends::new(), Rng::new(14));
    let shape = Shape::rows(4);
    let mut batch = Batch::new(&shape, Values::Ties, 0, &mut rng);
    batch.data[9] = f32::NAN;
    batch.norms = Reference.norms(&shape.layout, &batch.data, &Clipping::default()).unwrap();
    let with = |threshold| clipping(&shape, threshold);
    let adaptive = |adaptive| with(Threshold::Adaptive(adaptive));
    let usual = Adaptive::default();
    let history = with(Threshold::History { window: 2, factor: 1.0 });
    let median = with(Threshold::Median { factor: 1.0 });
    let other = Reference.norms(&Layout::dense(3, 1).unwrap(), &[1.0; 3], &Clipping::default()).unwrap();
    let wrong = Threshold::Median { factor: -1.0 };
    let cases: Vec<(Clipping, &Norms, Vec<u32>)> = [
        Threshold::Fixed(-1.0),
        Threshold::Fixed(f32::NAN),
        Threshold::PerRow(vec![1.0; 3]),
        Threshold::PerRow(vec![1.0, 2.0, -3.0, 4.0]),
        Threshold::SplitEqual(-1.0),
        Threshold::SplitBySize(f32::NAN),
        Threshold::Median { factor: f32::NAN },
        Threshold::Median { factor: -1e-30 },
        Threshold::Median { factor: f32::INFINITY },
        Threshold::Quantile(-1e-9),
        Threshold::Quantile(1.000_000_1),
        Threshold::Quantile(f64::NAN),
        Threshold::History { window: 0, factor: 1.0 },
        Threshold::History { window: 1, factor: f32::INFINITY },
        Threshold::History { window: u32::MAX, factor: 1.0 },
    ]
    .into_iter()
    .map(|threshold| (with(threshold), &batch.norms, vec![]))
    .chain([
        (adaptive(Adaptive { target: 1.1, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { rate: 8.1, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { rate: -0.1, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { min: 1e-40, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { min: 2.0, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { max: f32::INFINITY, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { initial: f32::NAN, ..usual }), &batch.norms, vec![]),
        (adaptive(Adaptive { initial: 0.0, ..usual }), &batch.norms, vec![]),
        // States of another policy, or beyond what this one could have left.
        (adaptive(usual), &batch.norms, vec![1.0f32.to_bits(); 2]),
        (adaptive(Adaptive { max: 2.0, ..usual }), &batch.norms, vec![3.0f32.to_bits()]),
        (history.clone(), &batch.norms, vec![0; 8]),
        (history.clone(), &batch.norms, vec![1, 2, 3]),
        (median.clone(), &batch.norms, vec![0]),
        (with(Threshold::Fixed(1.0)), &batch.norms, vec![7]),
        // Norms of another layout or granularity, and a row that the policy refuses.
        (median.clone(), &other, vec![]),
        (median.clone().granularity(Granularity::Segment), &batch.norms, vec![]),
        (median.clone().non_finite(NonFinite::Error), &batch.norms, vec![]),
        (history.non_finite(NonFinite::Error), &batch.norms, vec![]),
        (adaptive(usual).non_finite(NonFinite::Error), &batch.norms, vec![3.0f32.to_bits()]),
        // Two things at once.
        (with(wrong.clone()).non_finite(NonFinite::Error), &batch.norms, vec![]),
        (with(wrong), &other, vec![]),
        (median.non_finite(NonFinite::Error), &batch.norms, vec![0]),
    ])
    // No bound that an adaptive threshold could have left: zero, negative, subnormal, Inf, NaN.
    .chain(
        [0, 0xbf80_0000, 1, 0x7f80_0000, 0x7fc0_0000, u32::MAX]
            .map(|word| (adaptive(usual), &batch.norms, vec![word])),
    )
    .collect();
    let (mut runs, mut kinds) = (0, Vec::new());
    for (clipping, norms, words) in &cases {
        let state = State::from_words(words.clone());
        let refused = |name: &str, backend: &dyn Backend| {
            // As words, because a NaN is not equal to itself.
            let (mut after, mut data) = (state.clone(), batch.data.clone());
            let stage =
                backend.threshold(&shape.layout, norms, clipping, &mut after).unwrap_err().to_string();
            assert_eq!(after, state, "{name}: {clipping:?}");
            // A run has norms of its own, which fit.
            let run = backend.run_with(&shape.layout, &mut data, clipping, &mut after).err();
            if run.is_some() {
                assert_eq!(after, state, "{name}: {clipping:?}: run");
                assert_same_bits(&format!("{name}: {clipping:?}: run"), &data, &batch.data);
            }
            (stage, run.map(|error| error.to_string()))
        };
        let want = refused("reference", &Reference);
        kinds.push(kind_of(
            &Reference.threshold(&shape.layout, norms, clipping, &mut state.clone()).unwrap_err(),
        ));
        runs += usize::from(want.1.is_some());
        for (name, backend) in backends.others() {
            assert_eq!(refused(name, backend.as_ref()), want, "{name}: {clipping:?}");
        }
    }
    assert_eq!(runs, cases.len() - 2, "all but those whose norms alone do not fit");
    let want: [&[&str]; 7] = [
        &["bound", "bound", "bound count", "bound", "bound", "bound", "factor", "factor", "factor"],
        &["quantile", "quantile", "quantile", "window", "factor", "threshold"],
        &["adaptive target", "adaptive rate", "adaptive rate"],
        &["adaptive bounds"; 5],
        &["state"; 6],
        &[
            "layout",
            "layout",
            "NaN in row 1",
            "NaN in row 1",
            "NaN in row 1",
            "factor",
            "factor",
            "NaN in row 1",
        ],
        &["state"; 6],
    ];
    assert_eq!(kinds, want.concat());
}

/// A plan keeps its state on the device. A round that the policy refuses is none: neither state nor data move.
#[test]
#[cfg(feature = "gpu")]
fn a_refused_round_moves_no_state_of_a_plan() {
    use byzclip::{Gpu, wgpu};

    let Some(adapter) = common::gpu::adapter() else { return };
    let (device, queue) = byzclip::backend::gpu::open(&adapter).unwrap();
    let gpu = Gpu::from_device(device, queue).unwrap();
    let layout = Layout::dense(5, 1).unwrap();
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("updates"),
        size: 20,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let rounds: [[f32; 5]; 4] = [
        [1.0, 2.0, 3.0, 4.0, 50.0],
        [7.0, 7.0, f32::NAN, 7.0, 7.0],
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [9.0, 8.0, 7.0, 6.0, 5.0],
    ];
    for threshold in [Threshold::Adaptive(Adaptive::default()), Threshold::History { window: 2, factor: 1.0 }]
    {
        let clipping = Clipping { threshold, ..Clipping::default() }.non_finite(NonFinite::Error);
        let mut plan = gpu.plan(&layout, &clipping, &buffer).unwrap();
        let mut state = State::default();
        for (round, data) in rounds.iter().enumerate() {
            gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(data));
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.record(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
            let want = Reference.run_with(&layout, &mut data.to_vec(), &clipping, &mut state);
            let context = format!("{:?}, round {round}", clipping.threshold);
            match (plan.report_blocking(), want) {
                (Ok(got), Ok(want)) => assert_same_report(&context, &got, &want),
                (got, want) => {
                    assert_eq!((round, got.unwrap_err()), (1, want.unwrap_err()), "{context}");
                }
            }
            assert_eq!(plan.state_blocking().unwrap(), state, "{context}: state");
            // The same threshold with another scope goes on from where it is.
            plan.set_clipping(&clipping.clone().scope(Scope::Mask(vec![true; 5]))).unwrap();
        }
        assert_ne!(state, State::default());
    }
}
