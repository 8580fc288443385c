//! The batch on the device, twice: what runs work on, and what it is restored from.

use std::ops::Range;

use super::super::cases::{Case, Shape};
use crate::backend::gpu::{GpuContext, guard, read_mapped, wait_for_device};
use crate::error::Result;

/// Elements that cross at a time: 64 MiB.
const PIECE: usize = 1 << 24;

/// Separate copies beyond which one of the whole batch is taken.
const COPIES: usize = 1024;

pub(super) struct Memory {
    pub work: wgpu::Buffer,
    original: wgpu::Buffer,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(context: &GpuContext, shape: Shape) -> Result<Self> {
        let transfer = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let bytes = shape.elements() as u64 * 4;
        let buffer = |usage| context.buffer("the batch", bytes, usage);
        Ok(Self { work: buffer(wgpu::BufferUsages::STORAGE | transfer)?, original: buffer(transfer)?, bytes })
    }

    /// Writes both buffers.
    pub(super) fn upload(&self, context: &GpuContext, values: &[f32]) -> Result<()> {
        for (piece, values) in values.chunks(PIECE).enumerate() {
            guard(&context.device, "uploading the batch", || {
                let offset = (piece * PIECE * 4) as u64;
                context.queue.write_buffer(&self.original, offset, bytemuck::cast_slice(values));
                // Pieces leave one by one, so that staging memory is used again.
                context.queue.submit([]);
                wait_for_device(&context.device, None, "uploading the batch")
            })??;
        }
        self.restore_all(context)
    }

    /// Reads what runs have worked on.
    pub(super) fn download(&self, context: &GpuContext, values: &mut [f32]) -> Result<()> {
        const DURING: &str = "downloading the batch";
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = context.buffer("the way back", (values.len().min(PIECE) * 4) as u64, usage)?;
        for (piece, values) in values.chunks_mut(PIECE).enumerate() {
            let bytes = (values.len() * 4) as u64;
            context.submit(DURING, |encoder| {
                encoder.copy_buffer_to_buffer(&self.work, (piece * PIECE * 4) as u64, &staging, 0, bytes);
            })?;
            let read = |bytes: &[u8]| bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
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
        let row = shape.params as u64 * 4;
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
