//! The elements of a batch, in the precision that its files store them in.

use std::borrow::Cow;
use std::fmt;

use byzclip::{Backend, Clipping, Decision, Half, Layout, MeanSum, Norms, Report, State, Weights};

/// What an element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    Half(Half),
}

impl Dtype {
    /// Bytes of an element.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Half(_) => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::Half(Half::F16) => "F16",
            Self::Half(Half::Bf16) => "BF16",
        })
    }
}

/// Values, or the bits of halves.
#[derive(Debug)]
pub(super) enum Elements {
    F32(Vec<f32>),
    Half(Half, Vec<u16>),
}

impl Elements {
    /// None yet, of this kind.
    pub(super) const fn new(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(Vec::new()),
            Dtype::Half(half) => Self::Half(half, Vec::new()),
        }
    }

    /// The bytes of this many elements, to be filled; memory is asked for, and not taken for granted.
    pub(super) fn bytes_mut(&mut self, elements: usize) -> std::io::Result<&mut [u8]> {
        match self {
            Self::F32(values) => {
                values.try_reserve_exact(elements.saturating_sub(values.len()))?;
                values.resize(elements, 0.0);
                Ok(bytemuck::cast_slice_mut(values))
            }
            Self::Half(_, bits) => {
                bits.try_reserve_exact(elements.saturating_sub(bits.len()))?;
                bits.resize(elements, 0);
                Ok(bytemuck::cast_slice_mut(bits))
            }
        }
    }

    /// All elements as they lie in memory, which is how files hold them on a little-endian machine.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::Half(_, bits) => bytemuck::cast_slice(bits),
        }
    }

    /// All elements as values.
    pub(super) fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(values),
            Self::Half(half, bits) => Cow::Owned(half.widened(bits)),
        }
    }

    pub(super) fn norms(
        &self,
        backend: &dyn Backend,
        layout: &Layout,
        clipping: &Clipping,
    ) -> byzclip::Result<Norms> {
        match self {
            Self::F32(values) => backend.norms(layout, values, clipping),
            Self::Half(half, bits) => backend.norms_half(layout, *half, bits, clipping),
        }
    }

    pub(super) fn run_with(
        &mut self,
        backend: &dyn Backend,
        layout: &Layout,
        clipping: &Clipping,
        state: &mut State,
    ) -> byzclip::Result<Report> {
        match self {
            Self::F32(values) => backend.run_with(layout, values, clipping, state),
            Self::Half(half, bits) => backend.run_half_with(layout, *half, bits, clipping, state),
        }
    }

    pub(super) fn run_mean_with(
        &self,
        backend: &dyn Backend,
        layout: &Layout,
        clipping: &Clipping,
        weights: &Weights,
        state: &mut State,
    ) -> byzclip::Result<(Vec<f32>, Report)> {
        match self {
            Self::F32(values) => backend.run_mean_with(layout, values, clipping, weights, state),
            Self::Half(half, bits) => {
                backend.run_mean_half_with(layout, *half, bits, clipping, weights, state)
            }
        }
    }

    pub(super) fn clip(
        &mut self,
        backend: &dyn Backend,
        layout: &Layout,
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> byzclip::Result<()> {
        match self {
            Self::F32(values) => backend.clip(layout, values, clipping, decisions),
            Self::Half(half, bits) => backend.clip_half(layout, *half, bits, clipping, decisions),
        }
    }

    pub(super) fn mean(
        &self,
        backend: &dyn Backend,
        layout: &Layout,
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> byzclip::Result<Vec<f32>> {
        match self {
            Self::F32(values) => backend.mean(layout, values, clipping, decisions, weights),
            Self::Half(half, bits) => backend.mean_half(layout, *half, bits, clipping, decisions, weights),
        }
    }

    /// Adds rows, from an element on, to a mean.
    pub(super) fn add_to(
        &self,
        sum: &mut MeanSum,
        layout: &Layout,
        first: usize,
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> byzclip::Result<()> {
        match self {
            Self::F32(values) => sum.add(layout, &values[first..], clipping, decisions, weights),
            Self::Half(half, bits) => {
                sum.add_half(layout, *half, &bits[first..], clipping, decisions, weights)
            }
        }
    }
}
