//! A threshold's rule and groups as the kernels read them.

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::threshold::{BILLION, Rule, Source};

/// Marks spans whose bound is given.
pub(crate) const NO_GROUP: u32 = u32::MAX;

/// RULE_* of common.wgsl.
pub(super) const RULE_QUANTILE: u32 = 0;
pub(super) const RULE_HISTORY: u32 = 1;
pub(super) const RULE_ARC: u32 = 2;
pub(super) const RULE_ADAPTIVE: u32 = 3;

/// `Group` of common.wgsl.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Group {
    pub first: u32,
    pub count: u32,
    pub state: u32,
    pub rule: u32,
    pub amount: u32,
    pub factor_or_rate: u32,
    pub window_or_least: u32,
    pub greatest: u32,
}

/// Groups, members and the number of words of state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rules {
    pub groups: Vec<Group>,
    pub members: Vec<u32>,
    pub state_words: usize,
}

impl Rules {
    pub(crate) fn new(source: &Source) -> Result<Self> {
        let (groups, rule) = match source {
            Source::Given(_) => return Ok(Self::default()),
            Source::Computed { groups, rule } => (groups, rule),
        };
        let mut rules = Self { members: groups.members.clone(), ..Self::default() };
        for group in 0..groups.count() {
            let count = groups.members_of(group).len();
            rules.groups.push(Group {
                first: groups.first[group] as u32,
                count: count as u32,
                state: rules.state_words as u32,
                ..encoded(rule)
            });
            rules.state_words += rule.state_words(count);
        }
        Ok(rules)
    }
}

/// The rule in a group's fields.
fn encoded(rule: &Rule) -> Group {
    let of_norms = |rule, amount, factor: f32, window| Group {
        rule,
        amount,
        factor_or_rate: factor.to_bits(),
        window_or_least: window,
        ..Group::default()
    };
    match *rule {
        Rule::Quantile { billionths, factor } => of_norms(RULE_QUANTILE, billionths, factor, 1),
        Rule::History { window, factor } => of_norms(RULE_HISTORY, (BILLION / 2) as u32, factor, window),
        Rule::Arc { byzantine } => of_norms(RULE_ARC, byzantine, 1.0, 1),
        Rule::Adaptive(adaptation) => Group {
            rule: RULE_ADAPTIVE,
            amount: adaptation.target,
            factor_or_rate: adaptation.rate,
            window_or_least: adaptation.min.to_bits(),
            greatest: adaptation.max.to_bits(),
            ..Group::default()
        },
    }
}
