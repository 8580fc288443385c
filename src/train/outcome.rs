//! What a training run reports.

use std::cmp::Ordering;

use crate::norms::{Norm, NormClass};
use crate::report::Ran;

/// Where a run stands, after a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The round that ended, from 1.
    pub round: usize,
    /// All rounds of the run.
    pub rounds: usize,
    /// The share of test images whose digit the global model finds now.
    pub accuracy: f64,
}

/// What a training run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The share of the 360 test images whose digit the final model finds: the greatest logit, the
    /// first of equal ones. A NaN logit never wins, and an image with no other logit counts as not found.
    pub accuracy: f64,
    /// The accuracy after every round, `[rounds]`.
    pub accuracies: Vec<f64>,
    /// The updates of honest clients as the server received them, of all rounds.
    pub honest: NormFigures,
    /// The updates of hostile clients as the server received them, of all rounds.
    pub hostile: NormFigures,
    /// The gradients that could have been clipped at local steps, before that; none where clipping
    /// happens elsewhere.
    pub gradients: NormFigures,
    /// Rows clipped: updates at the server, gradients at local steps.
    pub clipped: usize,
    /// Rows zeroed, since they held NaN or Inf.
    pub zeroed: usize,
    /// The final model, `[params]`; every NaN is the same one, so equal runs have equal bits.
    pub model: Vec<f32>,
    /// Which backend ran.
    pub ran: Ran,
}

/// Norms before the server clips, summed up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct NormFigures {
    /// Rows that have a norm.
    pub finite: usize,
    /// Rows that have none, since they hold NaN or Inf.
    pub non_finite: usize,
    /// The median of the norms, between two the middle; `None` where there are none.
    pub median: Option<f32>,
    /// The greatest norm; `None` where there are none.
    pub max: Option<f32>,
}

impl NormFigures {
    /// Rows that were out of scope count as nothing.
    pub(super) fn of(norms: &[Norm]) -> Self {
        let non_finite = norms.iter().filter(|norm| norm.class() == NormClass::NonFinite).count();
        let mut values: Vec<f32> =
            norms.iter().map(|norm| norm.value()).filter(|value| !value.is_nan()).collect();
        values.sort_by(f32::total_cmp);
        Self { finite: values.len(), non_finite, median: median(&values), max: values.last().copied() }
    }
}

/// The median of sorted values.
fn median(sorted: &[f32]) -> Option<f32> {
    let middle = sorted.len() / 2;
    let high = f64::from(*sorted.get(middle)?);
    match (sorted.len() % 2).cmp(&1) {
        Ordering::Equal => Some(high as f32),
        _ => Some(((f64::from(sorted[middle - 1]) + high) / 2.0) as f32),
    }
}

/// One of the three runs of a [`Comparison`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    /// Every client is honest, nothing is clipped.
    NoAttack,
    /// The attack, nothing is clipped.
    Attack,
    /// The attack, clipped as the settings say.
    AttackClipped,
}

impl Run {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 3] = [Self::NoAttack, Self::Attack, Self::AttackClipped];

    /// `no_attack`, `attack` or `attack_clipped`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAttack => "no_attack",
            Self::Attack => "attack",
            Self::AttackClipped => "attack_clipped",
        }
    }
}

/// The same seed without an attack, with it, and with it and clipping.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Every client is honest, nothing is clipped.
    pub no_attack: Outcome,
    /// The attack, nothing is clipped.
    pub attack: Outcome,
    /// The attack, clipped as the settings say.
    pub attack_clipped: Outcome,
}

impl Comparison {
    /// The outcome of this run.
    #[must_use]
    pub const fn outcome(&self, run: Run) -> &Outcome {
        match run {
            Run::NoAttack => &self.no_attack,
            Run::Attack => &self.attack,
            Run::AttackClipped => &self.attack_clipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::ExactSum;

    #[test]
    fn figures_leave_out_what_has_no_norm() {
        let norm = |value: f32| {
            let mut sum = ExactSum::default();
            sum.add_square(value);
            sum.norm()
        };
        let norms = [norm(4.0), Norm::NON_FINITE, norm(1.0), norm(2.0), Norm::OUT_OF_SCOPE, norm(7.0)];
        let expected = NormFigures { finite: 4, non_finite: 1, median: Some(3.0), max: Some(7.0) };
        assert_eq!(NormFigures::of(&norms), expected);
        assert_eq!(NormFigures::of(&norms[..3]).median, Some(2.5));
        assert_eq!(NormFigures::of(&norms[1..3]).median, Some(1.0));
        assert_eq!(NormFigures::of(&[]), NormFigures::default());
    }
}
