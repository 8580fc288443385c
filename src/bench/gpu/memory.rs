//! The batch on the device, twice: what runs work on, and what it is restored from.

use std::ops::Range;

use super::super::cases::{Case, Shape};
use super::super::element::{Dtype, Element};
use crate::backend::gpu::{GpuContext, guard, read_mapped, wait_for_device};
use crate::error::Result;

/// Bytes that cross at a time.
const PIECE: usize = 64 << 20;

/// Separate copies beyond which one of the whole batch is taken.
const COPIES: usize = 1024;

pub(super) struct Memory {
    pub work: wgpu::Buffer,
    original: wgpu::Buffer,
    bytes: u64,
    dtype: Dtype,
}

impl Memory {
    pub(super) fn new(context: &GpuContext, shape: Shape, dtype: Dtype) -> Result<Self> {
        let transfer = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let bytes = shape.elements() as u64 * dtype.bytes();
        let buffer = |usage| context.batch_buffer(bytes, usage);
        let work = buffer(wgpu::BufferUsages::STORAGE | transfer)?;
        Ok(Self { work, original: buffer(transfer)?, bytes, dtype })
    }

    /// Writes both buffers.
    pub(super) fn upload<E: Element>(&self, context: &GpuContext, elements: &[E]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        for (piece, bytes) in bytes.chunks(PIECE).enumerate() {
            guard(&context.device, "uploading the batch", || {
                context.queue.write_buffer(&self.original, (piece * PIECE) as u64, bytes);
                // Pieces leave one by one, so that staging memory is used again.
                context.queue.submit([]);
                wait_for_device(&context.device, None, "uploading the batch")
            })??;
        }
        self.restore_all(context)
    }

    /// Reads what runs have worked on.
    pub(super) fn download<E: Element>(&self, context: &GpuContext, elements: &mut [E]) -> Result<()> {
        const DURING: &str = "downloading the batch";
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(elements);
        let staging = context.staging("the way back", bytes.len().min(PIECE) as u64)?;
        for (piece, values) in bytes.chunks_mut(PIECE).enumerate() {
            let bytes = values.len() as u64;
            context.submit(DURING, |encoder| {
                encoder.copy_buffer_to_buffer(&self.work, (piece * PIECE) as u64, &staging, 0, bytes);
            })?;
            let read = |bytes: &[u8]| values.copy_from_slice(bytes);
            context.wait_for(read_mapped(&staging, bytes, DURING, read), DURING)?;
        }
        Ok(())
    }

    /// Records the copy of the whole batch from the original.
    pub(super) fn record_copy(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.copy_buffer_to_buffer(&self.original, 0, &self.work, 0, self.bytes);
    }

    pub(super) fn restore_all(&self, context: &GpuContext) -> Result<()> {
        context.submit("restoring the batch", |encoder| self.record_copy(encoder))?;
        wait_for_device(&context.device, None, "restoring the batch")
    }

    /// Restores the rows that the case writes, and waits.
    pub(super) fn restore(&self, context: &GpuContext, shape: Shape, case: &Case) -> Result<()> {
        let runs = written(shape, case);
        if runs.len() > COPIES {
            return self.restore_all(context);
        }
        let row = shape.params as u64 * self.dtype.bytes();
        context.submit("restoring the batch", |encoder| {
            for rows in runs {
                let (start, bytes) = (rows.start as u64 * row, rows.len() as u64 * row);
                encoder.copy_buffer_to_buffer(&self.original, start, &self.work, start, bytes);
            }
        })?;
        wait_for_device(&context.device, None, "restoring the batch")
    }
}

/// The rows that the case writes, as runs.
fn written(shape: Shape, case: &Case) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for row in (0..shape.clients).filter(|&row| case.writes(row)) {
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_restored_together() {
        let shape = Shape { clients: 10, params: 3 };
        assert_eq!(written(shape, &Case::clip(1.0)), vec![Range { start: 0, end: 10 }]);
        assert_eq!(written(shape, &Case::clip(0.2)), [4..5, 9..10]);
        assert!(written(shape, &Case::norms()).is_empty());
    }
}
