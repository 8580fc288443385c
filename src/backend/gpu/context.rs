//! A device, and what all plans on it share: kernels, buffers, submissions, waiting, and what a report says of it.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::device::{LostReason, guarded, read_mapped, wait};
use super::kernels::Pipelines;
use super::storage::{Storage, Sums};
use super::tuning::Tuning;
use crate::error::{Error, Result};
use crate::half::Half;
use crate::report::{BackendKind, Ran};

/// A device, and what all plans on it share. Clones are handles.
#[derive(Debug, Clone)]
pub(crate) struct GpuContext {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub adapter: String,
    pub why: String,
    pub tuning: Tuning,
    pub pipelines: Arc<Pipelines>,
    /// Whether kernels of this tuning passed the check of their fast sums; unset before the check.
    pub fast_sums: Arc<[OnceLock<bool>; Sums::COUNT]>,
    /// The same of the fast sums of means, of updates and around a centre, before the first plan of a mean.
    pub fast_means: Arc<[OnceLock<bool>; 2]>,
    /// Whether the device's own conversion of f16 passed its check.
    pub unpacking: Arc<OnceLock<bool>>,
    pub lost: LostReason,
}

impl GpuContext {
    /// The same device with kernels of another shape.
    pub(super) fn with_tuning(&self, tuning: Tuning) -> Self {
        let (fast_sums, fast_means, unpacking) = (Arc::default(), Arc::default(), Arc::default());
        Self { tuning, pipelines: Arc::default(), fast_sums, fast_means, unpacking, ..self.clone() }
    }

    pub(crate) fn fast_sums_failed(&self, sums: Sums) -> bool {
        self.fast_sums[sums.index()].get() == Some(&false)
    }

    pub(crate) fn fast_means_failed(&self, centered: bool) -> bool {
        self.fast_means[usize::from(centered)].get() == Some(&false)
    }

    /// Whether sums of this storage take the device's own conversion.
    pub(crate) fn unpacks(&self, storage: Storage) -> bool {
        storage == Storage::Half(Half::F16) && self.tuning.unpacks && self.unpacking.get() == Some(&true)
    }

    /// Whether anything takes exact sums because its fast ones failed their check.
    pub(crate) fn has_failed(&self) -> bool {
        Sums::ALL.into_iter().any(|sums| self.fast_sums_failed(sums))
            || [false, true].into_iter().any(|centered| self.fast_means_failed(centered))
    }

    pub(crate) fn ran(&self) -> Ran {
        let mut why = self.why.clone();
        let failed = [
            (self.fast_sums_failed(Sums::Singles), "norm"),
            (self.fast_sums_failed(Sums::Differences), "norm around a centre"),
            (self.fast_sums_failed(Sums::Halves(Half::F16)), "norm of f16"),
            (self.fast_sums_failed(Sums::Halves(Half::Bf16)), "norm of bf16"),
            (self.fast_means_failed(false), "mean"),
            (self.fast_means_failed(true), "mean around a centre"),
        ];
        for (failed, what) in failed {
            if failed {
                why.push_str(&format!(
                    "; its fast sums failed the check, so every {what} takes the exact sum"
                ));
            }
        }
        if self.unpacking.get() == Some(&false) {
            why.push_str("; its conversion of f16 failed the check, so integers widen f16");
        }
        Ran { backend: BackendKind::Gpu, adapter: Some(self.adapter.clone()), strategy: None, why }
    }

    /// A buffer that kernels bind as a whole, if at all, where the device's limits and memory allow it.
    pub(crate) fn buffer(
        &self,
        what: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let limits = self.device.limits();
        let is_bound = usage.contains(wgpu::BufferUsages::STORAGE);
        let limit = if is_bound { limits.max_storage_buffer_binding_size } else { u64::MAX };
        self.buffer_within(limit.min(limits.max_buffer_size), what, bytes, usage)
    }

    /// A buffer for a batch, which is bound in windows.
    pub(crate) fn batch_buffer(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.buffer_within(self.device.limits().max_buffer_size, "the batch", bytes, usage)
    }

    fn buffer_within(
        &self,
        limit: u64,
        what: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        if bytes > limit {
            return Err(Error::BatchTooLarge { adapter: self.adapter.clone(), what, got: bytes, limit });
        }
        guarded(&self.device, "allocating memory", || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size: bytes.next_multiple_of(4),
                usage,
                mapped_at_creation: false,
            })
        })
        .map_err(|e| self.lost.explain(e))
    }

    /// A buffer for the way back to the host.
    pub(crate) fn staging(&self, what: &'static str, bytes: u64) -> Result<wgpu::Buffer> {
        self.buffer(what, bytes, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
    }

    /// Writes bytes to a buffer from an offset on, for the submissions that follow.
    pub(crate) fn write(
        &self,
        during: &'static str,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        guarded(&self.device, during, || self.queue.write_buffer(buffer, offset, bytes))
            .map_err(|e| self.lost.explain(e))
    }

    /// Copies bytes of some buffers to the host, and hands them to `read` one behind the other; waits for the device.
    pub(crate) fn read_back<T>(
        &self,
        what: &'static str,
        during: &'static str,
        parts: &[(&wgpu::Buffer, Range<u64>)],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        let bytes = parts.iter().map(|(_, part)| part.end - part.start).sum();
        let staging = self.staging(what, bytes)?;
        self.submit(during, |encoder| {
            let mut at = 0;
            for (buffer, part) in parts {
                encoder.copy_buffer_to_buffer(buffer, part.start, &staging, at, part.end - part.start);
                at += part.end - part.start;
            }
        })?;
        self.wait_for(read_mapped(&staging, bytes, during, read), during)
    }

    /// Waits for the device until a map that it was asked for is there.
    pub(crate) fn wait_for<T>(
        &self,
        mapped: impl Future<Output = Result<T>>,
        during: &'static str,
    ) -> Result<T> {
        self.wait_for_submission(mapped, None, during)
    }

    /// The same for a map of what a submission writes: later ones go on meanwhile.
    pub(crate) fn wait_for_submission<T>(
        &self,
        mapped: impl Future<Output = Result<T>>,
        submission: Option<wgpu::SubmissionIndex>,
        during: &'static str,
    ) -> Result<T> {
        let mut mapped = std::pin::pin!(mapped);
        // The first poll of the future asks for the map; only then is there something to wait for.
        let waker = std::task::Waker::noop();
        let done = match mapped.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Ready(done) => done,
            std::task::Poll::Pending => {
                wait(&self.device, submission, during).and_then(|()| pollster::block_on(mapped))
            }
        };
        done.map_err(|e| self.lost.explain(e))
    }

    /// Records and submits.
    pub(crate) fn submit(
        &self,
        during: &'static str,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<()> {
        guarded(&self.device, during, || {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(during) });
            record(&mut encoder);
            self.queue.submit([encoder.finish()]);
        })
        .map_err(|e| self.lost.explain(e))
    }
}
