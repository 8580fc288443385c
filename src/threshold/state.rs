//! What a threshold remembers from round to round.

/// The memory of an adaptive or history threshold; empty for the others, and before the first round.
///
/// The words are the same on the host and in a device's buffer, so a state may be saved on one machine
/// and restored on another.
///
/// # Examples
/// ```
/// use byzclip::threshold::{Adaptive, State, Threshold};
/// use byzclip::{Backend, Clipping, Cpu, Layout};
///
/// let adaptive = Threshold::Adaptive(Adaptive { initial: 1.0, ..Adaptive::default() });
/// let clipping = Clipping { threshold: adaptive, ..Clipping::default() };
/// let (layout, mut updates) = (Layout::dense(1, 2)?, vec![3.0, 4.0]);
/// let mut state = State::default();
/// let report = Cpu::new()?.run_with(&layout, &mut updates, &clipping, &mut state)?;
/// assert_eq!(report.rows[0].bound, Some(1.0));
/// // The norm 5 was above the bound, so the bound has grown.
/// assert!(f32::from_bits(state.words()[0]) > 1.0);
/// # Ok::<(), byzclip::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct State {
    words: Vec<u32>,
}

impl State {
    /// A saved state.
    #[must_use]
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// The state, to be saved. For an adaptive threshold each group's C as the bits of an `f32`; for a
    /// history each group's number of rounds and the ring of their norms.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// What [`State::words`] shows, without a copy.
    #[must_use]
    pub fn into_words(self) -> Vec<u32> {
        self.words
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }
}
