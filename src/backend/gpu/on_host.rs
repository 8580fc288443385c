//! The CPU backend, for what a device's buffers do not hold, on elements of any storage.

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use super::storage::Storage;
use crate::aggregate::Weights;
use crate::backend::{Backend, Cpu};
use crate::batch::Layout;
use crate::clip::Clipping;
use crate::error::Result;
use crate::norms::Norms;
use crate::report::Report;
use crate::threshold::{Decision, State};

/// The stages on the host.
pub(super) struct OnHost {
    cpu: Cpu,
    storage: Storage,
}

impl OnHost {
    pub(super) fn of(storage: Storage) -> Result<Self> {
        Ok(Self { cpu: Cpu::new()?, storage })
    }

    pub(super) fn norms<T: Pod>(&self, layout: &Layout, data: &[T], clipping: &Clipping) -> Result<Norms> {
        match self.storage {
            Storage::Single => self.cpu.norms(layout, cast_slice(data), clipping),
            Storage::Half(half) => self.cpu.norms_half(layout, half, cast_slice(data), clipping),
        }
    }

    pub(super) fn clip<T: Pod>(
        &self,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        match self.storage {
            Storage::Single => self.cpu.clip(layout, cast_slice_mut(data), clipping, decisions),
            Storage::Half(half) => {
                self.cpu.clip_half(layout, half, cast_slice_mut(data), clipping, decisions)
            }
        }
    }

    pub(super) fn run<T: Pod>(
        &self,
        layout: &Layout,
        data: &mut [T],
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Report> {
        match self.storage {
            Storage::Single => self.cpu.run_with(layout, cast_slice_mut(data), clipping, state),
            Storage::Half(half) => {
                self.cpu.run_half_with(layout, half, cast_slice_mut(data), clipping, state)
            }
        }
    }

    pub(super) fn mean<T: Pod>(
        &self,
        layout: &Layout,
        data: &[T],
        clipping: &Clipping,
        decisions: &[Decision],
        weights: &Weights,
    ) -> Result<Vec<f32>> {
        match self.storage {
            Storage::Single => self.cpu.mean(layout, cast_slice(data), clipping, decisions, weights),
            Storage::Half(half) => {
                self.cpu.mean_half(layout, half, cast_slice(data), clipping, decisions, weights)
            }
        }
    }
}
