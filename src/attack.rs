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
    /// Descends the loss of wrong labels: each class becomes its mirror image, and the gradient is boosted.
    LabelFlip,
}

impl AdversaryMode {
    /// Whether the client is an adversary.
    #[must_use]
    pub const fn is_hostile(self) -> bool {
        !matches!(self, Self::None)
    }

    /// The label that a client in this mode trains on: `classes − 1 − label` where it flips labels, else
    /// `label`.
    ///
    /// # Examples
    /// ```
    /// use byzclip::AdversaryMode;
    ///
    /// assert_eq!(AdversaryMode::LabelFlip.label(3, 10), 6);
    /// assert_eq!(AdversaryMode::GradAscent.label(3, 10), 3);
    /// ```
    #[must_use]
    pub const fn label(self, label: u8, classes: u8) -> u8 {
        match self {
            Self::None | Self::GradAscent => label,
            Self::LabelFlip => classes.saturating_sub(1).saturating_sub(label),
        }
    }

    /// Turns the gradient of a client in this mode hostile, in place: times `−boost` where it climbs the
    /// loss, times `boost` where it flips labels, unchanged where it is honest.
    ///
    /// # Examples
    /// ```
    /// use byzclip::AdversaryMode;
    ///
    /// let mut gradient = [0.5, -1.0];
    /// AdversaryMode::GradAscent.turn_gradient(&mut gradient, 10.0);
    /// assert_eq!(gradient, [-5.0, 10.0]);
    /// ```
    pub fn turn_gradient(self, gradient: &mut [f32], boost: f32) {
        let factor = match self {
            Self::None => return,
            Self::GradAscent => -boost,
            Self::LabelFlip => boost,
        };
        gradient.iter_mut().for_each(|value| *value *= factor);
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
