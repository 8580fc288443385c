//! A threshold as every backend runs it: groups of spans, and one rule for the bound of a group.
//!
//! The host's evaluation here is the specification; `threshold.wgsl` computes the same integers.

use super::adaptive::{Adaptation, BILLION, adapt};
use super::{State, Threshold};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite};
use crate::error::{Error, Result};
use crate::norms::{Norm, NormClass, Norms};
use crate::numerics::power_of_two;

/// Marks a place in a history where no norm is: the row was zeroed, out of scope, or the round is to come.
pub(crate) const NO_NORM: u32 = u32::MAX;

/// The greatest norm: 2^31 differences of 2^129, rounded up, are below 2^145.
const GREATEST_NORM: u32 = (145 + 127) << 23;

/// Norms that one rule may look at, history included: what one workgroup can walk through.
pub(crate) const MOST_NORMS: usize = 1 << 21;

/// How the bound of a group follows from its norms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    /// `factor` · the quantile of this round's norms.
    Quantile { billionths: u32, factor: f32 },
    /// `factor` · the median of the norms of the last `window` rounds, this one included.
    History { window: u32, factor: f32 },
    /// The (k + 1)-th largest norm, k = ⌊2f(n − f)/n⌋.
    Arc { byzantine: u32 },
    /// The state's C, which then moves.
    Adaptive(Adaptation),
}

/// Where bounds come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// One bound per span, known before the norms.
    Given(Vec<f32>),
    /// One bound per group of spans, from their norms.
    Computed { groups: Groups, rule: Rule },
}

/// Spans that share a bound: all rows, or the k-th segments of all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Group `g` has the members `first[g]..first[g + 1]`.
    pub first: Vec<usize>,
    /// The spans, group by group.
    pub members: Vec<u32>,
}

impl Groups {
    fn of(layout: &Layout, granularity: Granularity) -> Self {
        let mut first = vec![0];
        first.extend(group_sizes(layout, granularity).into_iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        }));
        let (mut next, mut members) = (first.clone(), vec![0; layout.span_count(granularity)]);
        for row in 0..layout.clients() {
            for (next, span) in next.iter_mut().zip(layout.spans_of(granularity, row)) {
                members[*next] = span as u32;
                *next += 1;
            }
        }
        Self { first, members }
    }

    pub(crate) fn count(&self) -> usize {
        self.first.len() - 1
    }

    pub(crate) fn members_of(&self, group: usize) -> &[u32] {
        &self.members[self.first[group]..self.first[group + 1]]
    }

    fn sizes(&self) -> Vec<usize> {
        self.first.windows(2).map(|ends| ends[1] - ends[0]).collect()
    }
}

/// The number of members of each group.
pub(super) fn group_sizes(layout: &Layout, granularity: Granularity) -> Vec<usize> {
    let spans = |row| layout.spans_of(granularity, row).len();
    let mut sizes = vec![0; (0..layout.clients()).map(spans).max().unwrap_or(0)];
    // A row of k spans is in the first k groups: rows are counted by k, and added up from the last group to the first.
    for row in 0..layout.clients() {
        if let Some(last) = spans(row).checked_sub(1) {
            sizes[last] += 1;
        }
    }
    for group in (1..sizes.len()).rev() {
        sizes[group - 1] += sizes[group];
    }
    sizes
}

/// Fails where a state is not one that a rule, or none, could have left for groups of these sizes.
pub(super) fn check_state(rule: Option<&Rule>, sizes: &[usize], state: &State) -> Result<()> {
    let words = |size: &usize| rule.map_or(0, |rule| rule.state_words(*size));
    let mut rest = state.words();
    let has_length = rest.len() == sizes.iter().map(words).sum::<usize>();
    let fits = has_length
        && sizes.iter().all(|size| {
            let (of_group, tail) = rest.split_at(words(size));
            rest = tail;
            rule.is_none_or(|rule| rule.can_leave(of_group))
        });
    if fits {
        return Ok(());
    }
    Err(Error::Setting {
        name: "state",
        got: format!("{} words", state.words().len()),
        expected: "the state of this threshold, for this number of clients and segments",
    })
}

impl Rule {
    /// Fails where the rule would look at too many norms. The first group is the largest: every row that has a span is in it.
    pub(super) fn check_number(&self, layout: &Layout, granularity: Granularity) -> Result<()> {
        let rounds = if let Self::History { window, .. } = self { *window as usize } else { 1 };
        let norms =
            (0..layout.clients()).filter(|row| !layout.spans_of(granularity, *row).is_empty()).count();
        if rounds.saturating_mul(norms) <= MOST_NORMS {
            return Ok(());
        }
        Err(Error::Setting {
            name: "threshold",
            got: if rounds == 1 {
                format!("{norms} norms")
            } else {
                format!("{rounds} rounds of {norms} norms")
            },
            expected: "at most 2,097,152 norms in all",
        })
    }

    /// Words of state that a group of so many members has.
    pub(crate) fn state_words(&self, members: usize) -> usize {
        match self {
            Self::Quantile { .. } | Self::Arc { .. } => 0,
            Self::Adaptive(_) => 1,
            // The number of rounds seen, then a ring of rounds.
            Self::History { window, .. } => 1 + *window as usize * members,
        }
    }

    /// The state of a group before its first round.
    fn initial_state(&self, members: usize) -> Vec<u32> {
        let mut words = vec![NO_NORM; self.state_words(members)];
        match self {
            Self::Quantile { .. } | Self::Arc { .. } => {}
            Self::Adaptive(adaptation) => words[0] = adaptation.initial.to_bits(),
            Self::History { .. } => words[0] = 0,
        }
        words
    }

    /// Whether the words of a group are some that this could have left.
    fn can_leave(&self, words: &[u32]) -> bool {
        match self {
            Self::Quantile { .. } | Self::Arc { .. } => true,
            Self::History { .. } => {
                words.iter().skip(1).all(|&norm| norm == NO_NORM || norm <= GREATEST_NORM)
            }
            Self::Adaptive(settings) => {
                // Positive numbers have the order of their bits.
                let allowed = settings.min.to_bits()..=settings.max.to_bits();
                words.iter().all(|word| allowed.contains(word))
            }
        }
    }

    /// The bound of a group from its norms, and its next state.
    fn bound(&self, norms: &[u32], state: &mut [u32]) -> f32 {
        let mut finite: Vec<u32> = norms.iter().copied().filter(|&norm| norm != NO_NORM).collect();
        match *self {
            Self::Quantile { billionths, factor } => times(quantile(&mut finite, billionths), factor),
            Self::Arc { byzantine } => times(arc(&mut finite, byzantine), 1.0),
            Self::History { window, factor } => {
                let (seen, rounds) = state.split_at_mut(1);
                let slot = (seen[0] % window) as usize;
                rounds[slot * norms.len()..(slot + 1) * norms.len()].copy_from_slice(norms);
                seen[0] = seen[0].wrapping_add(1);
                let mut all: Vec<u32> = rounds.iter().copied().filter(|&norm| norm != NO_NORM).collect();
                times(quantile(&mut all, (BILLION / 2) as u32), factor)
            }
            Self::Adaptive(adaptation) => {
                let bound = state[0];
                let within = finite.iter().filter(|&&norm| norm <= bound).count();
                state[0] = adapt(&adaptation, bound, within as u32, finite.len() as u32);
                f32::from_bits(bound)
            }
        }
    }
}

impl Source {
    /// # Errors
    /// Where a setting is out of its range, or a rule would look at too many norms.
    pub(crate) fn new(threshold: &Threshold, layout: &Layout, granularity: Granularity) -> Result<Self> {
        let rule = match threshold.rule()? {
            None => return Ok(Self::Given(threshold.given(layout, granularity)?)),
            Some(rule) => rule,
        };
        rule.check_number(layout, granularity)?;
        Ok(Self::Computed { groups: Groups::of(layout, granularity), rule })
    }

    /// The bounds of rows that are decided alone, each as soon as it has a norm: where bounds are given, no later row may make an error
    /// of all, and no row is judged by more than one norm, as rows of segments are. Else none.
    pub(crate) fn bounds_alone(&self, clipping: &Clipping) -> Option<&[f32]> {
        let decides_alone =
            clipping.non_finite != NonFinite::Error && clipping.granularity != Granularity::Segment;
        match self {
            Self::Given(bounds) if decides_alone => Some(bounds),
            Self::Given(_) | Self::Computed { .. } => None,
        }
    }

    /// The state before the first round.
    pub(crate) fn initial_state(&self) -> State {
        match self {
            Self::Given(_) => State::default(),
            Self::Computed { groups, rule } => {
                let words =
                    (0..groups.count()).flat_map(|group| rule.initial_state(groups.members_of(group).len()));
                State::from_words(words.collect())
            }
        }
    }

    /// Fails where a state is of another policy or shape.
    pub(crate) fn check_state(&self, state: &State) -> Result<()> {
        match self {
            Self::Given(_) => check_state(None, &[], state),
            Self::Computed { groups, rule } => check_state(Some(rule), &groups.sizes(), state),
        }
    }

    /// The bound of every span, and the next state.
    pub(crate) fn bounds(
        &self,
        layout: &Layout,
        granularity: Granularity,
        norms: &Norms,
        state: &mut State,
    ) -> Result<Vec<f32>> {
        self.prepare(state)?;
        let (groups, rule) = match self {
            Self::Given(bounds) => return Ok(bounds.clone()),
            Self::Computed { groups, rule } => (groups, rule),
        };
        let spans = norms.spans(granularity);
        let mut row_of = vec![0; spans.len()];
        for row in 0..layout.clients() {
            row_of[layout.spans_of(granularity, row)].fill(row);
        }
        let mut bounds = vec![f32::INFINITY; spans.len()];
        let mut rest = state.words_mut();
        for group in 0..groups.count() {
            let members = groups.members_of(group);
            let seen: Vec<u32> = members
                .iter()
                .map(|&span| rounded_up(spans[span as usize], norms.rows[row_of[span as usize]]))
                .collect();
            let (words, tail) = rest.split_at_mut(rule.state_words(members.len()));
            rest = tail;
            let bound = rule.bound(&seen, words);
            members.iter().for_each(|&span| bounds[span as usize] = bound);
        }
        Ok(bounds)
    }

    /// Fails where no round can begin with this state: one that has seen nothing fits any policy.
    pub(crate) fn check_start(&self, state: &State) -> Result<()> {
        if state.words().is_empty() { Ok(()) } else { self.check_state(state) }
    }

    /// A state that has seen nothing becomes the initial one; any other must fit.
    pub(crate) fn prepare(&self, state: &mut State) -> Result<()> {
        if state.words().is_empty() {
            *state = self.initial_state();
        }
        self.check_state(state)
    }
}

/// The norm rounded up to an `f32` (with the exponent of a wide norm), so that the row which sets a bound
/// is never above it; [`NO_NORM`] where the row has none to count.
fn rounded_up(norm: Norm, row: Norm) -> u32 {
    match row.class() {
        NormClass::NonFinite | NormClass::OutOfScope => NO_NORM,
        _ => norm.wide() + u32::from(norm.class() == NormClass::Above),
    }
}

/// The value at rank ⌈q·n⌉ of n, counted from 1: the least value that at least a fraction q does not exceed.
fn quantile(values: &mut [u32], billionths: u32) -> Option<u32> {
    let n = values.len() as u64;
    let rank = (u64::from(billionths) * n).div_ceil(BILLION).max(1) - 1;
    select(values, rank as usize)
}

fn arc(values: &mut [u32], byzantine: u32) -> Option<u32> {
    let n = values.len() as u64;
    // More than half cannot be told from the rest by any rule.
    let f = u64::from(byzantine).min(n / 2);
    let clipped = (2 * f * (n - f)).checked_div(n)?;
    select(values, (n - 1 - clipped) as usize)
}

fn select(values: &mut [u32], rank: usize) -> Option<u32> {
    (rank < values.len()).then(|| *values.select_nth_unstable(rank).1)
}

/// `factor` · value, rounded to nearest even; +inf where there is no value, or the product is too large.
fn times(value: Option<u32>, factor: f32) -> f32 {
    let Some(wide) = value else { return f32::INFINITY };
    let (field, fraction) = ((wide >> 23) as i32, wide & 0x007f_ffff);
    let (mantissa, exponent) =
        if field == 0 { (fraction, -149) } else { (fraction | 0x0080_0000, field - 150) };
    // Both have 24 significant bits: the f64 product is exact, and one conversion rounds it.
    (f64::from(mantissa) * power_of_two(exponent) * f64::from(factor)) as f32
}
