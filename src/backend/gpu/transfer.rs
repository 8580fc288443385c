//! Batches in host memory on their way to the device and back.

use std::ops::Range;

use bytemuck::Pod;

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

/// Bytes of a run of elements: whole words, because copies are counted in those. Runs begin at multiples of four
/// elements, and what is behind an odd half is padding.
fn bytes_of<T>(run: &Range<u64>) -> u64 {
    ((run.end - run.start) * size_of::<T>() as u64).next_multiple_of(4)
}

/// Elements of one span, at the same distance from its start on both sides.
struct Part {
    host: Range<usize>,
    device: u64,
}

impl Transfer<'_> {
    /// Writes the chosen spans to the device.
    pub(super) fn upload<T: Pod>(&self, data: &[T], chosen: impl Fn(usize) -> bool) -> Result<()> {
        let size_of_element = size_of::<T>() as u64;
        let queue = &self.context.queue;
        for (run, parts) in self.pieces(chosen) {
            let Some(size) = wgpu::BufferSize::new(bytes_of::<T>(&run)) else { continue };
            let done = guarded(&self.context.device, "uploading the batch", || {
                let Some(mut view) = queue.write_buffer_with(self.buffer, run.start * size_of_element, size)
                else {
                    return;
                };
                for part in &parts {
                    let offset = (part.device - run.start) as usize * size_of::<T>();
                    let bytes = bytemuck::cast_slice::<T, u8>(&data[part.host.clone()]);
                    view.slice(offset..offset + bytes.len()).copy_from_slice(bytes);
                }
            });
            done.map_err(|e| self.context.lost.explain(e))?;
        }
        Ok(())
    }

    /// Reads the chosen spans back.
    pub(super) fn download<T: Pod>(&self, data: &mut [T], chosen: impl Fn(usize) -> bool) -> Result<()> {
        let size_of_element = size_of::<T>() as u64;
        let pieces = self.pieces(chosen);
        let Some(largest) = pieces.iter().map(|(run, _)| bytes_of::<T>(run)).max() else { return Ok(()) };
        let staging = self.context.staging("the way back", largest)?;
        for (run, parts) in &pieces {
            let bytes = bytes_of::<T>(run);
            self.context.submit("downloading the batch", |encoder| {
                encoder.copy_buffer_to_buffer(self.buffer, run.start * size_of_element, &staging, 0, bytes);
            })?;
            let read = |bytes: &[u8]| {
                for part in parts {
                    let offset = (part.device - run.start) as usize * size_of::<T>();
                    let target = bytemuck::cast_slice_mut::<T, u8>(&mut data[part.host.clone()]);
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
