//! Batches in host memory on their way to the device and back.

use std::collections::VecDeque;
use std::ops::Range;

use bytemuck::Pod;

use super::context::GpuContext;
use super::device::{guarded, read_mapped, write_mapped};
use super::geometry::Placement;
use crate::error::Result;

/// Bytes of a load: large enough that a copy's start does not show, small beside the batch. Two are under way at a
/// time, so that the host packs or unpacks one while the device copies the other.
const LOAD: u64 = 16 << 20;

/// Bytes between two spans that are read back with them: cheaper than another copy.
const GAP: u64 = 4 << 10;

/// Copies the elements of some spans between host and device.
pub(super) struct Transfer<'a> {
    pub context: &'a GpuContext,
    pub placement: &'a Placement,
    pub buffer: &'a wgpu::Buffer,
    /// The host's place of each span.
    pub host: &'a dyn Fn(usize) -> Range<usize>,
}

/// Elements of one span, on the host and in a load.
struct SpanPart {
    span: usize,
    host: Range<usize>,
    /// In elements from the start of the load.
    at: u64,
}

/// Elements that lie together on the device.
struct Run {
    device: Range<u64>,
    /// In elements from the start of the load.
    at: u64,
}

/// Runs that travel together.
#[derive(Default)]
struct Load {
    runs: Vec<Run>,
    parts: Vec<SpanPart>,
    /// Elements of all runs, each at a multiple of four.
    length: u64,
}

impl Run {
    /// Its bytes: whole words, because copies are counted in those. Runs begin at multiples of four elements, and what
    /// is behind an odd half is padding.
    fn bytes<T>(&self) -> u64 {
        ((self.device.end - self.device.start) * size_of::<T>() as u64).next_multiple_of(4)
    }
}

/// A buffer, and an offset in bytes.
type Place<'a> = (&'a wgpu::Buffer, u64);

impl Transfer<'_> {
    /// Writes the chosen spans to the device.
    pub(super) fn upload<T: Pod>(&self, data: &[T], chosen: impl Fn(usize) -> bool) -> Result<()> {
        const DURING: &str = "uploading the batch";
        let size = size_of::<T>() as u64;
        // Up to three elements of padding between two spans may be overwritten, and no more.
        let loads = self.loads(chosen, size, 4);
        let Some(largest) = loads.iter().map(|load| load.length).max() else { return Ok(()) };
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let mut under_way = VecDeque::new();
        for load in &loads {
            // What a buffer held before has to be copied first; other loads go on meanwhile.
            let free = if under_way.len() == 2 { under_way.pop_front() } else { None };
            let (staging, copied) = match free {
                Some((staging, copied)) => (staging, Some(copied)),
                None => (self.context.buffer("the way there", largest * size, usage)?, None),
            };
            let fill = |mut bytes: wgpu::BufferViewMut| {
                for part in &load.parts {
                    let values = bytemuck::cast_slice::<T, u8>(&data[part.host.clone()]);
                    let offset = part.at as usize * size_of::<T>();
                    bytes.slice(offset..offset + values.len()).copy_from_slice(values);
                }
            };
            let mapped = write_mapped(&staging, load.bytes::<T>(), DURING, fill);
            self.context.wait_for_submission(mapped, copied, DURING)?;
            let submitted = self.submit_copies::<T>(load, DURING, |run| {
                ((&staging, run.at * size), (self.buffer, run.device.start * size))
            })?;
            under_way.push_back((staging, submitted));
        }
        Ok(())
    }

    /// Reads the chosen spans back. `store` is told the span of elements, and writes what came from the device where they are on the host.
    pub(super) fn download<T: Pod>(
        &self,
        data: &mut [T],
        chosen: impl Fn(usize) -> bool,
        store: impl Fn(usize, &mut [T], &[T]),
    ) -> Result<()> {
        const DURING: &str = "downloading the batch";
        let size = size_of::<T>() as u64;
        let loads = self.loads(chosen, size, GAP / size);
        let Some(largest) = loads.iter().map(|load| load.length).max() else { return Ok(()) };
        let two = loads.len().min(2);
        let staging: Vec<_> =
            (0..two).map(|_| self.context.staging("the way back", largest * size)).collect::<Result<_>>()?;
        let back = |run: &Run, staging| ((self.buffer, run.device.start * size), (staging, run.at * size));
        let mut next = self.submit_copies::<T>(&loads[0], DURING, |run| back(run, &staging[0]))?;
        for (i, load) in loads.iter().enumerate() {
            let copied = match loads.get(i + 1) {
                Some(after) => {
                    let submitted =
                        self.submit_copies::<T>(after, DURING, |run| back(run, &staging[(i + 1) % two]))?;
                    std::mem::replace(&mut next, submitted)
                }
                None => next.clone(),
            };
            let read = |bytes: &[u8]| {
                // A view begins at a multiple of 8 bytes of the map (`wgpu::MAP_ALIGNMENT`), and a map at one of a page's or an allocation's.
                let elements: &[T] = bytemuck::cast_slice(&bytes[..load.length as usize * size_of::<T>()]);
                for part in &load.parts {
                    let at = part.at as usize;
                    store(part.span, &mut data[part.host.clone()], &elements[at..at + part.host.len()]);
                }
            };
            let mapped = read_mapped(&staging[i % two], load.bytes::<T>(), DURING, read);
            self.context.wait_for_submission(mapped, Some(copied), DURING)?;
        }
        Ok(())
    }

    /// Copies the runs of a load, each between the places that `ends` names: a buffer and an offset in bytes.
    fn submit_copies<'b, T>(
        &self,
        load: &Load,
        during: &'static str,
        ends: impl Fn(&Run) -> (Place<'b>, Place<'b>),
    ) -> Result<wgpu::SubmissionIndex> {
        let device = &self.context.device;
        let submitted = guarded(device, during, || {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(during) });
            for run in &load.runs {
                let ((from, start), (to, offset)) = ends(run);
                encoder.copy_buffer_to_buffer(from, start, to, offset, run.bytes::<T>());
            }
            self.context.queue.submit([encoder.finish()])
        });
        submitted.map_err(|e| self.context.lost.explain(e))
    }

    /// The chosen spans in loads. Spans with less than `gap` elements between them are one run.
    fn loads(&self, chosen: impl Fn(usize) -> bool, size: u64, gap: u64) -> Vec<Load> {
        let most = LOAD / size;
        let mut loads: Vec<Load> = Vec::new();
        for (index, span) in self.placement.spans.iter().enumerate().filter(|(index, _)| chosen(*index)) {
            let host = (self.host)(index);
            let mut start = span.start;
            while start < span.end {
                let end = (start + most).min(span.end);
                let from = host.start + (start - span.start) as usize;
                let host = from..from + (end - start) as usize;
                // A whole span, or as much as a load holds: one that is nearly full takes no part of it.
                if loads.last().is_none_or(|load| load.length + gap + (end - start) > most) {
                    loads.push(Load::default());
                }
                if let Some(load) = loads.last_mut() {
                    load.push(start..end, SpanPart { span: index, host, at: 0 }, gap);
                }
                start = end;
            }
        }
        loads
    }
}

impl Load {
    /// The bytes of all runs, in whole words.
    fn bytes<T>(&self) -> u64 {
        (self.length * size_of::<T>() as u64).next_multiple_of(4)
    }

    fn push(&mut self, device: Range<u64>, part: SpanPart, gap: u64) {
        let at = match self.runs.last_mut() {
            Some(run) if device.start - run.device.end < gap => {
                run.device.end = device.end;
                run.at + (device.start - run.device.start)
            }
            _ => {
                self.runs.push(Run { device: device.clone(), at: self.length });
                self.length
            }
        };
        self.parts.push(SpanPart { at, ..part });
        self.length = (at + (device.end - device.start)).next_multiple_of(4);
    }
}
