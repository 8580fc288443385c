//! The elements of a batch, in the precision that its files store them in.

use std::fmt;
use std::ops::Range;

use byzclip::{Backend, Clipping, Half, Layout, Norms, Report, State, Weights};

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

    /// Appends elements from their little-endian bytes; memory is asked for, and not taken for granted.
    pub(super) fn extend_from_le(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::F32(values) => {
                let (elements, _) = bytes.as_chunks::<4>();
                values.try_reserve(elements.len())?;
                values.extend(elements.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Self::Half(_, bits) => {
                let (elements, _) = bytes.as_chunks::<2>();
                bits.try_reserve(elements.len())?;
                bits.extend(elements.iter().map(|bytes| u16::from_le_bytes(*bytes)));
            }
        }
        Ok(())
    }

    /// Makes room for this many elements and no more.
    pub(super) fn reserve(&mut self, elements: usize) -> std::io::Result<()> {
        match self {
            Self::F32(values) => Ok(values.try_reserve_exact(elements)?),
            Self::Half(_, bits) => Ok(bits.try_reserve_exact(elements)?),
        }
    }

    /// Writes the little-endian bytes of elements over the old ones.
    pub(super) fn write_le(&self, elements: Range<usize>, target: &mut [u8]) {
        match self {
            Self::F32(values) => {
                let (target, _) = target.as_chunks_mut::<4>();
                let pairs = target.iter_mut().zip(&values[elements]);
                pairs.for_each(|(bytes, value)| *bytes = value.to_le_bytes());
            }
            Self::Half(_, bits) => {
                let (target, _) = target.as_chunks_mut::<2>();
                let pairs = target.iter_mut().zip(&bits[elements]);
                pairs.for_each(|(bytes, half)| *bytes = half.to_le_bytes());
            }
        }
    }

    /// All elements as they lie in memory.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::Half(_, bits) => bytemuck::cast_slice(bits),
        }
    }

    /// Bytes that elements of this kind take.
    pub(super) const fn bytes_of(&self, elements: usize) -> usize {
        match self {
            Self::F32(_) => elements * Dtype::F32.bytes(),
            Self::Half(half, _) => elements * Dtype::Half(*half).bytes(),
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
}
