//! A plan over a buffer of its own, for a batch in host memory.

use bytemuck::Pod;

use super::Plan;
use super::context::GpuContext;
use super::geometry::Placement;
use super::storage::Storage;
use super::transfer::Transfer;
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Scope, Status};
use crate::error::Result;
use crate::numerics::power_of_two;
use crate::threshold::Decision;

/// Elements that are looked at for NaN and Inf together: they are still in a core's cache when they are written.
const BLOCK: usize = 1 << 12;

/// From here on 2^32 times a product is no `f32` (`scale_single.wgsl`), and WGSL promises nothing of what overflows.
const BEYOND: f64 = power_of_two(128 - 32 - 1);

/// A plan, and its buffer, in which rows lie where kernels read them fastest.
#[derive(Debug)]
pub(super) struct Session {
    context: GpuContext,
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
        let buffer = context.batch_buffer((placement.length * storage.bytes()).max(16), usage)?;
        let plan = Plan::new(context, layout, clipping, &placement, storage, &buffer)?;
        let (context, layout, granularity) = (context.clone(), layout.clone(), clipping.granularity);
        Ok(Self { context, layout, granularity, storage, placement, buffer, plan })
    }

    /// Records and submits.
    pub(super) fn submit(
        &self,
        during: &'static str,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<()> {
        self.context.submit(during, record)
    }

    /// Writes the rows in scope to the device.
    pub(super) fn upload<T: Pod>(&self, data: &[T], scope: &Scope) -> Result<()> {
        let mask = scope.mask(self.layout.clients())?;
        let mut in_scope = vec![false; self.placement.spans.len()];
        for (row, &chosen) in mask.iter().enumerate() {
            in_scope[self.layout.spans_of(self.granularity, row)].fill(chosen);
        }
        self.upload_spans(data, |span| in_scope[span])
    }

    /// Writes the spans that are chosen to the device.
    pub(super) fn upload_spans<T: Pod>(&self, data: &[T], chosen: impl Fn(usize) -> bool) -> Result<()> {
        self.with_transfer(|transfer| transfer.upload(data, chosen))
    }

    /// Reads the spans back that were written.
    pub(super) fn download<T: Pod>(&self, data: &mut [T], decisions: &[Decision]) -> Result<()> {
        let is_written = |span: usize| decisions[span].status.is_written();
        self.with_transfer(|transfer| {
            transfer.download(data, is_written, |_, host, device| host.copy_from_slice(device))
        })
    }

    /// [`Session::download`] where decisions may be of other data: blocks that hold NaN or Inf, or products that may overflow on the way, are
    /// clipped on the host. Devices differ in what they make of those, and of what is beside them in a word. (Around a centre all is done on
    /// bits.)
    pub(super) fn download_given<T: Pod>(
        &self,
        data: &mut [T],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        let is_written = |span: usize| decisions[span].status.is_written();
        let store = |span: usize, host: &mut [T], device: &[T]| {
            let decision = &decisions[span];
            if decision.status != Status::Clipped || clipping.center.is_some() {
                return host.copy_from_slice(device);
            }
            for (host, device) in host.chunks_mut(BLOCK).zip(device.chunks(BLOCK)) {
                // False for NaN too.
                if f64::from(self.storage.largest_magnitude(host)) * decision.factor < BEYOND {
                    host.copy_from_slice(device);
                } else {
                    self.storage.clip(host, clipping.granularity, decision);
                }
            }
        };
        self.with_transfer(|transfer| transfer.download(data, is_written, store))
    }

    fn with_transfer<T>(&self, work: impl FnOnce(Transfer<'_>) -> Result<T>) -> Result<T> {
        let host = |span| self.layout.span(self.granularity, span);
        let Self { context, placement, buffer, .. } = self;
        work(Transfer { context, placement, buffer, host: &host })
    }
}
