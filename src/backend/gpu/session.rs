//! The plan and buffer of a batch in host memory, and the way there and back.

use bytemuck::Pod;

use super::Plan;
use super::context::GpuContext;
use super::geometry::Placement;
use super::sources::Storage;
use super::transfer::Transfer;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Scope};
use crate::error::Result;
use crate::threshold::Decision;

/// A plan over a buffer of its own, whose rows lie where kernels read them fastest.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) layout: Layout,
    pub(super) granularity: Granularity,
    pub(super) storage: Storage,
    placement: Placement,
    pub(super) buffer: wgpu::Buffer,
    pub(super) plan: Plan,
}

impl Session {
    pub(super) fn new(
        context: &GpuContext,
        layout: &Layout,
        clipping: &Clipping,
        storage: Storage,
    ) -> Result<Self> {
        let placement = Placement::packed(layout, clipping.granularity);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = context.buffer("the batch", (placement.length * storage.bytes()).max(16), usage)?;
        let plan = Plan::new(context, layout, clipping, &placement, storage, &buffer)?;
        let granularity = clipping.granularity;
        Ok(Self { layout: layout.clone(), granularity, storage, placement, buffer, plan })
    }

    /// Writes the rows in scope to the device.
    pub(super) fn upload<T: Pod>(&self, context: &GpuContext, data: &[T], scope: &Scope) -> Result<()> {
        let mask = scope.mask(self.layout.clients())?;
        let mut in_scope = vec![false; self.placement.spans.len()];
        for (row, &chosen) in mask.iter().enumerate() {
            in_scope[self.layout.spans_of(self.granularity, row)].fill(chosen);
        }
        self.upload_spans(context, data, |span| in_scope[span])
    }

    pub(super) fn upload_spans<T: Pod>(
        &self,
        context: &GpuContext,
        data: &[T],
        chosen: impl Fn(usize) -> bool,
    ) -> Result<()> {
        self.transfer(context, &|span| self.layout.span(self.granularity, span)).upload(data, chosen)
    }

    pub(super) fn download<T: Pod>(
        &self,
        context: &GpuContext,
        data: &mut [T],
        decisions: &[Decision],
    ) -> Result<()> {
        self.transfer(context, &|span| self.layout.span(self.granularity, span))
            .download(data, |span| decisions[span].status.is_written())
    }

    fn transfer<'a>(
        &'a self,
        context: &'a GpuContext,
        host: &'a dyn Fn(usize) -> std::ops::Range<usize>,
    ) -> Transfer<'a> {
        Transfer { context, placement: &self.placement, buffer: &self.buffer, host }
    }
}
