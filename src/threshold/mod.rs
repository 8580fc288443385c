//! Stage 2: a policy turns norms into bounds, and bounds into one factor and status per row or segment.

mod adaptive;
mod rule;
mod state;

pub use self::adaptive::Adaptive;
pub(crate) use self::adaptive::BILLION;
pub(crate) use self::rule::{Rule, Source};
pub use self::state::State;
#[cfg(all(test, feature = "gpu"))]
pub(crate) use self::{adaptive::ROOTS_OF_TWO, rule::NO_NORM};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, NonFinite, Status};
use crate::error::{Error, Result};
use crate::norms::{Norm, NormClass, Norms};
use crate::numerics;

/// The policy that yields the bound λ of each row or segment.
///
/// Policies that look at norms take those of the rows in scope that are not zeroed; at segment granularity
/// each position (layer) has a bound of its own, from the norms of that layer across clients. A policy that
/// finds no norm to look at gives the bound +inf, but an adaptive one its C. An order statistic is a norm rounded up to an `f32`, so
/// the row that sets a bound is not clipped by it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Threshold {
    /// The same λ everywhere.
    Fixed(f32),
    /// One λ per row, `[clients]`; at segment granularity each segment of a row has the row's λ.
    PerRow(Vec<f32>),
    /// One total C for the K segments of a row: λ = C/√K each, so the whole row stays within C.
    SplitEqual(f32),
    /// One total C for the segments of a row: λ = C·√(dᵢ/d) for a segment of dᵢ of the row's d elements.
    SplitBySize(f32),
    /// λ = factor · the median of this round's norms (the lower one of two).
    Median {
        /// The multiple; 2 to 5 leaves honest clients alone.
        factor: f32,
    },
    /// λ = the q-quantile of this round's norms: the least norm that at least a fraction q does not exceed.
    Quantile(
        /// q, 0 to 1, counted in billionths.
        f64,
    ),
    /// λ follows a quantile from round to round.
    Adaptive(Adaptive),
    /// λ = factor · the median of all norms of the last rounds, this one included.
    History {
        /// How many rounds.
        window: u32,
        /// The multiple.
        factor: f32,
    },
    /// Adaptive robust clipping (Allouah et al. 2025): the k = ⌊2(f/n)(n − f)⌋ largest of n norms are
    /// clipped to the next one.
    Arc {
        /// f, the number of Byzantine clients; more than n/2 count as n/2.
        byzantine: u32,
    },
}

impl Threshold {
    /// Whether bounds follow from the norms of a round, so that no row can be clipped before all have a norm.
    #[must_use]
    pub const fn looks_at_norms(&self) -> bool {
        match self {
            Self::Fixed(_) | Self::PerRow(_) | Self::SplitEqual(_) | Self::SplitBySize(_) => false,
            Self::Median { .. }
            | Self::Quantile(_)
            | Self::Adaptive(_)
            | Self::History { .. }
            | Self::Arc { .. } => true,
        }
    }

    /// Checks that the policy can bound a batch of this layout.
    ///
    /// # Errors
    /// [`Error::InvalidBound`], [`Error::BoundCount`] or [`Error::Setting`], with what is out of its range.
    pub fn check(&self, layout: &Layout, granularity: Granularity) -> Result<()> {
        // Given bounds are checked without being made: those of all rows of a file may not fit in memory.
        match self.rule()? {
            None => self.check_given(layout),
            Some(rule) => rule.check_number(layout, granularity),
        }
    }

    /// The same, and that its next round can begin with this state.
    pub(crate) fn check_with(&self, layout: &Layout, granularity: Granularity, state: &State) -> Result<()> {
        self.check(layout, granularity)?;
        if state.words().is_empty() {
            return Ok(());
        }
        // Without the members, of which a file may have more than memory has room for.
        match self.rule()? {
            None => rule::check_state(None, &[], state),
            Some(rule) => rule::check_state(Some(&rule), &rule::group_sizes(layout, granularity), state),
        }
    }

    /// Checks bounds that are given; policies that look at norms have a rule, which is checked with it.
    fn check_given(&self, layout: &Layout) -> Result<()> {
        match self {
            Self::PerRow(bounds) if bounds.len() != layout.clients() => {
                Err(Error::BoundCount { got: bounds.len(), expected: layout.clients() })
            }
            Self::PerRow(bounds) => bounds.iter().try_for_each(|bound| checked(*bound).map(drop)),
            Self::Fixed(bound) | Self::SplitEqual(bound) | Self::SplitBySize(bound) => {
                checked(*bound).map(drop)
            }
            Self::Median { .. }
            | Self::Quantile(_)
            | Self::Adaptive(_)
            | Self::History { .. }
            | Self::Arc { .. } => Ok(()),
        }
    }

    /// The bounds of every span, for policies that do not look at norms.
    fn given(&self, layout: &Layout, granularity: Granularity) -> Result<Vec<f32>> {
        self.check_given(layout)?;
        match self {
            Self::PerRow(bounds) => {
                let mut spans = Vec::with_capacity(layout.span_count(granularity));
                for (row, &bound) in bounds.iter().enumerate() {
                    let bound = checked(bound)?;
                    spans.extend(layout.spans_of(granularity, row).map(|_| bound));
                }
                Ok(spans)
            }
            Self::SplitEqual(total) => split(layout, granularity, *total, |share| (1, share.spans)),
            Self::SplitBySize(total) => {
                split(layout, granularity, *total, |share| (share.length, share.row_length))
            }
            Self::Fixed(bound) => Ok(vec![checked(*bound)?; layout.span_count(granularity)]),
            // These have a rule.
            Self::Median { .. }
            | Self::Quantile(_)
            | Self::Adaptive(_)
            | Self::History { .. }
            | Self::Arc { .. } => Ok(vec![f32::INFINITY; layout.span_count(granularity)]),
        }
    }

    /// The rule of policies that look at norms.
    fn rule(&self) -> Result<Option<Rule>> {
        Ok(Some(match *self {
            Self::Fixed(_) | Self::PerRow(_) | Self::SplitEqual(_) | Self::SplitBySize(_) => return Ok(None),
            Self::Median { factor } => {
                Rule::Quantile { billionths: (BILLION / 2) as u32, factor: multiple(factor)? }
            }
            Self::Quantile(q) if (0.0..=1.0).contains(&q) => {
                Rule::Quantile { billionths: (q * BILLION as f64).round() as u32, factor: 1.0 }
            }
            Self::Quantile(q) => {
                return Err(Error::Setting {
                    name: "quantile",
                    got: q.to_string(),
                    expected: "a fraction from 0 to 1",
                });
            }
            Self::Adaptive(adaptive) => Rule::Adaptive(adaptive.adaptation()?),
            Self::History { window: 0, .. } => {
                return Err(Error::Setting {
                    name: "window",
                    got: "0".into(),
                    expected: "at least one round",
                });
            }
            Self::History { window, factor } => Rule::History { window, factor: multiple(factor)? },
            Self::Arc { byzantine } => Rule::Arc { byzantine },
        }))
    }
}

fn multiple(factor: f32) -> Result<f32> {
    if (0.0..f32::INFINITY).contains(&factor) {
        return Ok(factor.abs());
    }
    Err(Error::Setting { name: "factor", got: factor.to_string(), expected: "a finite number >= 0" })
}

/// λ = total · √(part/whole) for each span of each row, rounded down so that a row's squares stay within
/// total².
fn split(
    layout: &Layout,
    granularity: Granularity,
    total: f32,
    share: impl Fn(Share) -> (usize, usize),
) -> Result<Vec<f32>> {
    let total = checked(total)?;
    let mut bounds = Vec::with_capacity(layout.span_count(granularity));
    for row in 0..layout.clients() {
        let spans = layout.spans_of(granularity, row);
        let of_row = Share { length: 0, row_length: layout.row(row).len(), spans: spans.len() };
        for span in spans {
            let (part, whole) = share(Share { length: layout.span(granularity, span).len(), ..of_row });
            bounds.push(numerics::root_of_share(total, part, whole));
        }
    }
    Ok(bounds)
}

/// What a split of a total may depend on.
#[derive(Debug, Clone, Copy)]
struct Share {
    length: usize,
    row_length: usize,
    spans: usize,
}

fn checked(bound: f32) -> Result<f32> {
    if bound.is_nan() || bound < 0.0 {
        return Err(Error::InvalidBound { got: bound });
    }
    // -0 is a legal zero; one zero is enough.
    Ok(bound.abs())
}

/// What happens to one row or segment, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// The norm before clipping.
    pub norm: Norm,
    /// The bound λ.
    pub bound: f32,
    /// The multiplier: 1 where nothing is written, 0 where the row is zeroed.
    ///
    /// It has 24 significant bits and is exact as `f64`, also below the range of `f32`.
    pub factor: f64,
    /// The outcome.
    pub status: Status,
}

/// Decides every span of the batch: bound, factor min(1, λ/‖g‖) and status, `[spans]`, row by row; none where there are no
/// rows. The state moves on by a round.
///
/// A row with NaN or Inf anywhere is decided as a whole, also at segment granularity: under
/// [`NonFinite::Zero`] all of its segments are zeroed. At coordinate
/// granularity the factor is 1: coordinates are cut and not scaled.
///
/// # Errors
/// [`Error::Setting`] for settings of the threshold out of their range, or a state of another one; [`Error::InvalidBound`] and
/// [`Error::BoundCount`] for given bounds; [`Error::Layout`] where the norms are of another layout or granularity;
/// [`Error::NonFinite`] under [`NonFinite::Error`].
pub fn decide(
    layout: &Layout,
    norms: &Norms,
    clipping: &Clipping,
    state: &mut State,
) -> Result<Vec<Decision>> {
    let bounds = bounds(layout, norms, clipping, state)?;
    decide_from_bounds(layout, norms, &bounds, clipping)
}

/// The first half of [`decide`]: the bound λ of every span, `[spans]`, as [`Threshold`] says. The state
/// moves on by a round.
///
/// The k-th segments of all rows are a group, which has one bound, and no other group's norms change it. So bounds of
/// a batch of many layers may be found some layers at a time, where their norms do not fit in memory together. A state
/// holds the words of the first group, then those of the second, and so on, equally many for groups of one size: it can
/// be cut likewise.
///
/// # Errors
/// Those of [`decide`].
///
/// # Examples
/// ```
/// use byzclip::{Backend, Clipping, Cpu, Layout, State, Threshold, threshold};
///
/// let clipping = Clipping { threshold: Threshold::Median { factor: 2.0 }, ..Clipping::default() };
/// let (layout, data) = (Layout::dense(3, 1)?, [1.0, 2.0, 90.0]);
/// let norms = Cpu::new()?.norms(&layout, &data, &clipping)?;
/// assert_eq!(threshold::bounds(&layout, &norms, &clipping, &mut State::default())?, [4.0; 3]);
/// # Ok::<(), byzclip::Error>(())
/// ```
pub fn bounds(layout: &Layout, norms: &Norms, clipping: &Clipping, state: &mut State) -> Result<Vec<f32>> {
    checked_source(layout, norms, clipping)?.bounds(layout, clipping.granularity, norms, state)
}

/// The second half of [`decide`]: bound, factor and status of every span from the bounds of all, `[spans]`, whatever the
/// threshold of the clipping.
///
/// The bound +inf clips nothing, and −0 is 0. Rows with NaN or Inf are decided as [`decide`] does.
///
/// # Errors
/// [`Error::BoundCount`] where there is not one bound for each span; [`Error::InvalidBound`] for a bound below zero or NaN;
/// [`Error::Layout`] where the norms are of another layout or granularity; [`Error::NonFinite`] under [`NonFinite::Error`].
///
/// # Examples
/// ```
/// use byzclip::{Backend, Clipping, Cpu, Layout, Status, threshold};
///
/// let (layout, data, clipping) = (Layout::dense(2, 2)?, [3.0, 4.0, 0.3, 0.4], Clipping::default());
/// let norms = Cpu::new()?.norms(&layout, &data, &clipping)?;
/// let decisions = threshold::decide_from_bounds(&layout, &norms, &[2.5, 0.5], &clipping)?;
/// // Rounded towards zero, so that what is written stays within the bound.
/// assert!((0.499_999..0.5).contains(&decisions[0].factor));
/// // The norm of 0.3 and 0.4 as f32 have them is a little above 0.5.
/// assert_eq!(decisions[1].status, Status::Clipped);
/// # Ok::<(), byzclip::Error>(())
/// ```
pub fn decide_from_bounds(
    layout: &Layout,
    norms: &Norms,
    bounds: &[f32],
    clipping: &Clipping,
) -> Result<Vec<Decision>> {
    let expected = layout.span_count(clipping.granularity);
    if bounds.len() != expected {
        return Err(Error::BoundCount { got: bounds.len(), expected });
    }
    check_norms(layout, norms, clipping)?;
    let spans = norms.spans(clipping.granularity);
    let mut decisions = Vec::with_capacity(spans.len());
    for (row, &row_norm) in norms.rows.iter().enumerate() {
        for span in layout.spans_of(clipping.granularity, row) {
            decisions.push(decide_span(spans[span], row_norm, checked(bounds[span])?, clipping));
        }
    }
    Ok(decisions)
}

/// Checks settings, norms and rows in the one order that every backend keeps, so that a call that is wrong in
/// two ways has the same error everywhere; the state comes last.
pub(crate) fn checked_source(layout: &Layout, norms: &Norms, clipping: &Clipping) -> Result<Source> {
    let source = Source::new(&clipping.threshold, layout, clipping.granularity)?;
    check_norms(layout, norms, clipping)?;
    Ok(source)
}

/// Checks that the norms are of this layout at this granularity, and that no row is non-finite where that is an error.
fn check_norms(layout: &Layout, norms: &Norms, clipping: &Clipping) -> Result<()> {
    let spans = norms.spans(clipping.granularity).len();
    let expected = layout.span_count(clipping.granularity);
    if norms.rows.len() != layout.clients() || spans != expected {
        return Err(Error::Layout {
            got: format!("norms of {} rows and {spans} spans for {expected} spans", norms.rows.len()),
            expected: "the norms of this layout at this granularity",
        });
    }
    match clipping.non_finite {
        NonFinite::Error => refuse_non_finite(&norms.rows),
        NonFinite::Zero | NonFinite::Keep => Ok(()),
    }
}

/// Checks that there is a decision for each span, with a factor that the threshold stage can give where it is clipped, and with a
/// bound that is not negative where its coordinates are.
pub(crate) fn check_decisions(
    layout: &Layout,
    granularity: Granularity,
    decisions: &[Decision],
) -> Result<()> {
    let expected = layout.span_count(granularity);
    if decisions.len() != expected {
        return Err(Error::Layout {
            got: format!("{} decisions for {expected} spans", decisions.len()),
            expected: "one decision per row or segment of the layout",
        });
    }
    for decision in decisions.iter().filter(|decision| decision.status == Status::Clipped) {
        let &Decision { bound, factor, .. } = decision;
        match granularity {
            Granularity::Coordinate if bound.is_nan() || bound.is_sign_negative() => {
                return Err(Error::InvalidBound { got: bound });
            }
            Granularity::Row | Granularity::Segment if !is_factor(factor) => {
                return Err(Error::Setting {
                    name: "factor",
                    got: factor.to_string(),
                    expected: "a factor of the threshold stage: 24 significant bits, from 0 to below 1",
                });
            }
            Granularity::Coordinate | Granularity::Row | Granularity::Segment => {}
        }
    }
    Ok(())
}

/// Whether a clipped row can have this factor: what the kernels hold is a mantissa of 24 bits.
fn is_factor(factor: f64) -> bool {
    const BELOW_24_BITS: u64 = (1 << 29) - 1;
    (0.0..1.0).contains(&factor) && factor.to_bits() & BELOW_24_BITS == 0
}

/// Fails with the first row that holds NaN or Inf.
pub(crate) fn refuse_non_finite(rows: &[Norm]) -> Result<()> {
    match rows.iter().position(|norm| norm.class() == NormClass::NonFinite) {
        Some(row) => Err(Error::NonFinite { row }),
        None => Ok(()),
    }
}

/// The decision for a span of this norm, in a row of that one.
#[inline]
pub(crate) fn decide_span(norm: Norm, row: Norm, bound: f32, clipping: &Clipping) -> Decision {
    let (factor, status) = match (row.class(), clipping.non_finite) {
        (NormClass::OutOfScope, _) => (1.0, Status::OutOfScope),
        (NormClass::NonFinite, NonFinite::Keep) => (1.0, Status::Kept),
        (NormClass::NonFinite, NonFinite::Zero | NonFinite::Error) => (0.0, Status::Zeroed),
        _ if norm.exceeds(bound) && clipping.granularity == Granularity::Coordinate => (1.0, Status::Clipped),
        _ if norm.exceeds(bound) => (numerics::factor(bound, norm), Status::Clipped),
        _ => (1.0, Status::Untouched),
    };
    Decision { norm, bound, factor, status }
}
