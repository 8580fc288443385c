//! What hostile clients do.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// How a client behaves: honestly, or as one of the attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AdversaryMode {
    /// Honest: never clipped under [`Scope::Adversaries`](crate::Scope::Adversaries).
    #[default]
    None,
    /// Climbs the loss: the gradient is negated and boosted.
    GradAscent,
    /// Trains on wrong labels.
    LabelFlip,
}

impl AdversaryMode {
    /// Whether the client is an adversary.
    #[must_use]
    pub const fn is_hostile(self) -> bool {
        !matches!(self, Self::None)
    }

    /// `none`, `grad_ascent` or `label_flip`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::GradAscent => "grad_ascent",
            Self::LabelFlip => "label_flip",
        }
    }
}

impl fmt::Display for AdversaryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AdversaryMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::None, Self::GradAscent, Self::LabelFlip]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| Error::Setting {
                name: "adversary mode",
                got: name.to_owned(),
                expected: "none, grad_ascent or label_flip",
            })
    }
}
