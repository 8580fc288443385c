//! Stage 3: rows whose factor is below 1 are scaled in place; all others are not written.

#[cfg(feature = "gpu")]
use std::ops::Range;
use std::sync::Arc;

use crate::attack::AdversaryMode;
use crate::batch::{Granularity, Layout};
use crate::error::{Error, Result};
use crate::threshold::{State, Threshold};

/// Which rows may be clipped. Rows out of scope are neither read nor written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    /// Every row.
    #[default]
    All,
    /// The rows whose entry is true, `[clients]`.
    Mask(Vec<bool>),
    /// The rows listed, in any order, each once.
    Rows(Vec<usize>),
    /// The rows whose client is hostile, `[clients]`: [`AdversaryMode::None`] is never clipped.
    Adversaries(Vec<AdversaryMode>),
}

impl Scope {
    /// One entry per row: whether it is in scope.
    ///
    /// # Errors
    /// [`Error::ScopeLength`], [`Error::RowOutOfRange`] or [`Error::DuplicateRow`].
    pub fn mask(&self, clients: usize) -> Result<Vec<bool>> {
        let of_length = |got: usize| {
            if got == clients { Ok(()) } else { Err(Error::ScopeLength { got, expected: clients }) }
        };
        match self {
            Self::All => Ok(vec![true; clients]),
            Self::Mask(mask) => of_length(mask.len()).map(|()| mask.clone()),
            Self::Adversaries(modes) => {
                of_length(modes.len())?;
                Ok(modes.iter().map(|mode| mode.is_hostile()).collect())
            }
            Self::Rows(rows) => {
                let mut mask = vec![false; clients];
                for &row in rows {
                    let entry = mask.get_mut(row).ok_or(Error::RowOutOfRange { row, clients })?;
                    if std::mem::replace(entry, true) {
                        return Err(Error::DuplicateRow { row });
                    }
                }
                Ok(mask)
            }
        }
    }
}

/// What is done with rows that hold NaN or Inf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum NonFinite {
    /// Every element of the row becomes +0, or the centre's where there is one.
    #[default]
    Zero,
    /// The call fails and no row is written.
    Error,
    /// The row is left as it is.
    Keep,
}

/// How a batch is clipped: the threshold, and what it applies to.
///
/// # Examples
/// ```
/// use byzclip::{Clipping, NonFinite, Scope};
///
/// let clipping = Clipping::fixed(2.0).scope(Scope::Rows(vec![0, 3])).non_finite(NonFinite::Error);
/// assert_eq!(clipping.granularity, byzclip::Granularity::Row);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Clipping {
    /// The policy that yields λ.
    pub threshold: Threshold,
    /// The rows that may be clipped.
    pub scope: Scope,
    /// What is done with NaN and Inf.
    pub non_finite: NonFinite,
    /// What has a bound of its own: rows, segments or coordinates.
    pub granularity: Granularity,
    /// The vector that updates are clipped around, `[params]`; the origin where there is none.
    pub center: Option<Arc<[f32]>>,
}

impl Default for Clipping {
    /// λ = 2.0 for all rows, non-finite rows zeroed.
    fn default() -> Self {
        Self {
            threshold: Threshold::Fixed(2.0),
            scope: Scope::default(),
            non_finite: NonFinite::default(),
            granularity: Granularity::default(),
            center: None,
        }
    }
}

impl Clipping {
    /// The same bound for every row.
    #[must_use]
    pub fn fixed(max_norm: f32) -> Self {
        Self { threshold: Threshold::Fixed(max_norm), ..Self::default() }
    }

    /// One bound per row.
    #[must_use]
    pub fn per_row(bounds: Vec<f32>) -> Self {
        Self { threshold: Threshold::PerRow(bounds), ..Self::default() }
    }

    /// Sets the rows that may be clipped.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the non-finite policy.
    #[must_use]
    pub fn non_finite(mut self, policy: NonFinite) -> Self {
        self.non_finite = policy;
        self
    }

    /// Sets what has a bound of its own: rows, segments or coordinates.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// Clips around a vector `v`, `[params]`, for example the server's model or the last aggregate:
    /// `g' = v + min(1, λ/‖g − v‖)·(g − v)` (Karimireddy et al. 2021, "Learning from History").
    ///
    /// Norms are those of the exact differences, correctly rounded; the differences are never stored. Of what is
    /// written, `‖g' − v‖ ≤ λ` holds in exact arithmetic, after the centre was added back: every step rounds
    /// towards the centre. A row that is zeroed becomes the centre: its difference is zero.
    ///
    /// The centre has to be finite and all rows as long as it is; bounds on coordinates have no centre.
    ///
    /// # Examples
    /// ```
    /// use byzclip::{Backend, Clipping, Cpu, Layout};
    ///
    /// let mut models = vec![10.5, 20.0, /* client 1 */ 13.0, 24.0];
    /// let clipping = Clipping::fixed(1.0).around(vec![10.0, 20.0]);
    /// let report = Cpu::new()?.run(&Layout::dense(2, 2)?, &mut models, &clipping)?;
    /// assert_eq!(report.rows[1].norm, 5.0);
    /// assert_eq!(&models[..2], &[10.5, 20.0]);
    /// assert!((models[2] - 10.6).abs() < 1e-5 && (models[3] - 20.8).abs() < 1e-5);
    /// # Ok::<(), byzclip::Error>(())
    /// ```
    #[must_use]
    pub fn around(mut self, center: impl Into<Arc<[f32]>>) -> Self {
        self.center = Some(center.into());
        self
    }

    /// The same clipping of some rows of a batch of this layout, where bounds are given.
    #[cfg(feature = "gpu")]
    pub(crate) fn of_rows(&self, layout: &Layout, rows: Range<usize>) -> Result<Self> {
        let threshold = match &self.threshold {
            Threshold::PerRow(bounds) => Threshold::PerRow(bounds[rows.clone()].to_vec()),
            threshold => threshold.clone(),
        };
        let scope = match &self.scope {
            Scope::All => Scope::All,
            scope => Scope::Mask(scope.mask(layout.clients())?[rows].to_vec()),
        };
        Ok(Self { threshold, scope, ..self.clone() })
    }

    /// Checks all that does not depend on the elements: settings of the threshold, scope, centre, and the state that
    /// the next round begins with. Every stage checks what it uses; this is for callers who want to know before
    /// they read a large batch.
    ///
    /// # Errors
    /// Those that [`Backend::run_with`](crate::Backend::run_with) has for them.
    pub fn check(&self, layout: &Layout, state: &State) -> Result<()> {
        self.threshold.check_with(layout, self.granularity, state)?;
        self.check_center(layout)?;
        match &self.scope {
            Scope::All => Ok(()),
            scope => scope.mask(layout.clients()).map(drop),
        }
    }

    /// What the stages behind the threshold read of it: granularity and centre. Every row is in scope, because its decision says whether it
    /// is clipped.
    pub(crate) fn of_decisions(&self) -> Self {
        Self { granularity: self.granularity, center: self.center.clone(), ..Self::default() }
    }

    /// Whether the clip stage multiplies elements of spans of this status. Around a centre, and of coordinates, it makes something else of
    /// them, on their bits.
    pub(crate) fn multiplies(&self, status: Status) -> bool {
        status == Status::Clipped && self.granularity != Granularity::Coordinate && self.center.is_none()
    }

    /// Checks that the centre, where there is one, fits the rows.
    pub(crate) fn check_center(&self, layout: &Layout) -> Result<()> {
        let Some(center) = &self.center else { return Ok(()) };
        let invalid = |got: String, expected| Err(Error::Setting { name: "center", got, expected });
        if self.granularity == Granularity::Coordinate {
            return invalid("bounds on coordinates".into(), "bounds on rows or segments");
        }
        layout.check_alike()?;
        if center.len() != layout.params() {
            let got = format!("{} elements for rows of {}", center.len(), layout.params());
            return invalid(got, "as many elements as a row has");
        }
        match center.iter().position(|value| !value.is_finite()) {
            Some(at) => invalid(format!("{} in element {at}", center[at]), "finite elements"),
            None => Ok(()),
        }
    }
}

/// What happened to a row or segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// Its norm is at most the bound; not written.
    Untouched = 0,
    /// Its norm exceeded the bound; scaled.
    Clipped = 1,
    /// It held NaN or Inf; every element is now +0, or the centre's where there is one.
    Zeroed = 2,
    /// It was out of scope; neither read nor written.
    OutOfScope = 3,
    /// It holds NaN or Inf and was left as it is.
    Kept = 4,
}

impl Status {
    /// The status with this number.
    #[cfg(feature = "gpu")]
    pub(crate) const fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Untouched,
            1 => Self::Clipped,
            2 => Self::Zeroed,
            3 => Self::OutOfScope,
            _ => Self::Kept,
        }
    }

    /// The name used in reports: `untouched`, `clipped`, `zeroed`, `out_of_scope` or `kept`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untouched => "untouched",
            Self::Clipped => "clipped",
            Self::Zeroed => "zeroed",
            Self::OutOfScope => "out_of_scope",
            Self::Kept => "kept",
        }
    }

    /// Whether the row is in a mean: all are but those that are zeroed, or kept with NaN or Inf.
    #[must_use]
    pub const fn is_in_mean(self) -> bool {
        !matches!(self, Self::Zeroed | Self::Kept)
    }

    /// Whether the clip stage writes the row.
    #[must_use]
    pub const fn is_written(self) -> bool {
        matches!(self, Self::Clipped | Self::Zeroed)
    }
}
