//! Batches in host memory on their way to the device and back.

use std::ops::Range;

use super::GpuContext;
use super::device::{guarded, read_mapped};
use super::geometry::Placement;
use crate::error::Result;

/// Bytes of a piece: large enough that a copy's start does not show, small beside the batch.
const PIECE: u64 = 32 << 20;

/// Copies the elements of some spans between host and device.
pub(super) struct Transfer<'a> {
    pub context: &'a GpuContext,
    pub placement: &'a Placement,
    pub buffer: &'a wgpu::Buffer,
    /// The host's place of each span.
    pub host: &'a dyn Fn(usize) -> Range<usize>,
}

/// Elements of one span, at the same distance from its start on both sides.
struct Part {
    host: Range<usize>,
    device: u64,
}

impl Transfer<'_> {
    /// Writes the chosen spans to the device.
    pub(super) fn upload(&self, data: &[f32], chosen: impl Fn(usize) -> bool) -> Result<()> {
        let queue = &self.context.queue;
        for (run, parts) in self.pieces(chosen) {
            let Some(size) = wgpu::BufferSize::new((run.end - run.start) * 4) else { continue };
            let done = guarded(&self.context.device, "uploading the batch", || {
                let Some(mut view) = queue.write_buffer_with(self.buffer, run.start * 4, size) else {
                    return;
                };
                for part in &parts {
                    let offset = (part.device - run.start) as usize * 4;
                    let bytes = bytemuck::cast_slice::<f32, u8>(&data[part.host.clone()]);
                    view.slice(offset..offset + bytes.len()).copy_from_slice(bytes);
                }
            });
            done.map_err(|e| self.context.lost.explain(e))?;
        }
        Ok(())
    }

    /// Reads the chosen spans back.
    pub(super) fn download(&self, data: &mut [f32], chosen: impl Fn(usize) -> bool) -> Result<()> {
        let pieces = self.pieces(chosen);
        let Some(largest) = pieces.iter().map(|(run, _)| run.end - run.start).max() else { return Ok(()) };
        let staging = self.context.staging("the way back", largest * 4)?;
        for (run, parts) in &pieces {
            let bytes = (run.end - run.start) * 4;
            self.context.submit("downloading the batch", |encoder| {
                encoder.copy_buffer_to_buffer(self.buffer, run.start * 4, &staging, 0, bytes);
            })?;
            let read = |bytes: &[u8]| {
                for part in parts {
                    let offset = (part.device - run.start) as usize * 4;
                    let target = bytemuck::cast_slice_mut::<f32, u8>(&mut data[part.host.clone()]);
                    target.copy_from_slice(&bytes[offset..offset + target.len()]);
                }
            };
            let mapped = read_mapped(&staging, bytes, "downloading the batch", read);
            self.context.wait_for(mapped, "downloading the batch")?;
        }
        Ok(())
    }

    /// The chosen spans in runs of the device's buffer, each at most a piece long.
    fn pieces(&self, chosen: impl Fn(usize) -> bool) -> Vec<(Range<u64>, Vec<Part>)> {
        let mut pieces: Vec<(Range<u64>, Vec<Part>)> = Vec::new();
        for (index, span) in self.placement.spans.iter().enumerate().filter(|(index, _)| chosen(*index)) {
            let host = (self.host)(index);
            let mut start = span.start;
            while start < span.end {
                let end = (start + PIECE / 4).min(span.end);
                let from = host.start + (start - span.start) as usize;
                let part = Part { host: from..from + (end - start) as usize, device: start };
                match pieces.last_mut() {
                    // Up to three elements of padding between two spans may be overwritten.
                    Some((run, parts)) if start - run.end < 4 && end - run.start <= PIECE / 4 => {
                        run.end = end;
                        parts.push(part);
                    }
                    _ => pieces.push((start..end, vec![part])),
                }
                start = end;
            }
        }
        pieces
    }
}
