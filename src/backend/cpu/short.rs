//! Short rows of one length, in groups: the sums of a few side by side, then all that they take beside their elements.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::group::{Decided, RowGroup, RowSet, decide, members, norms};
use super::rows::{Rows, Storage};
use super::simd::{AHEAD, Kernel, prefetch, vectorised};
use super::squares::{ROWS, SHORT};
use crate::batch::Granularity;
use crate::clip::Status;
use crate::norms::Norm;
use crate::report::RowReport;

impl<S: Storage> Rows<'_, S> {
    /// The stride of rows that are worked on in groups: short ones of a length, more than one.
    pub(super) fn stride_in_groups(&self) -> Option<usize> {
        self.stride().filter(|_| self.layout.params() <= SHORT && self.layout.clients() > 1)
    }

    /// [`Rows::norms`] of short rows.
    pub(super) fn norms_in_groups(&self, data: &[S::Element], stride: usize) -> Vec<Norm> {
        let of_task = self.rows_of_group_task();
        self.of_groups(data.par_chunks(stride * of_task), of_task, |first, elements, norms| {
            NormsTask { rows: self, shape: self.shape(stride), first, elements, norms }.run();
        })
    }

    /// [`Rows::run`] over short rows.
    pub(super) fn run_in_groups(
        &self,
        data: &mut [S::Element],
        stride: usize,
        bounds: &[f32],
    ) -> Vec<RowReport> {
        let of_task = self.rows_of_group_task();
        let parts = data.par_chunks_mut(stride * of_task).zip(bounds.par_chunks(of_task));
        self.of_groups(parts, of_task, |first, (elements, bounds), reports| {
            RunTask { rows: self, shape: self.shape(stride), first, elements, bounds, reports }.run();
        })
    }

    /// What `work` writes for every row: it is told the first row of a task and that task's part of the batch, and writes
    /// every place that it is given.
    fn of_groups<T: Send, P: Send>(
        &self,
        parts: impl IndexedParallelIterator<Item = P>,
        of_task: usize,
        work: impl Fn(usize, P, &mut [MaybeUninit<T>]) + Sync + Send,
    ) -> Vec<T> {
        let clients = self.layout.clients();
        let mut of_rows = Vec::with_capacity(clients);
        let tasks = parts.zip(of_rows.spare_capacity_mut()[..clients].par_chunks_mut(of_task)).enumerate();
        assert_eq!(tasks.len(), clients.div_ceil(of_task), "a part of the batch to each task");
        self.cpu.install(self.work, || {
            tasks.for_each(|(task, (part, places))| work(task * of_task, part, places));
        });
        #[allow(unsafe_code)]
        // SAFETY: there is a task for each chunk of the first `clients` places, as was just asked, and both kinds of `work`
        // write every place of its chunk: the data reaches to the end of the last row, which has an element, and there is
        // a bound for every row. Groups that return their reports have them copied twice on the way, which took a sixth of
        // the time of rows of a hundred elements; a vector that is written before takes a twentieth.
        unsafe {
            of_rows.set_len(clients);
        }
        of_rows
    }

    fn rows_of_group_task(&self) -> usize {
        self.rows_of_task().next_multiple_of(ROWS)
    }

    fn shape(&self, stride: usize) -> Shape {
        let by_sums = self.clipping.granularity != Granularity::Coordinate && !self.cpu.force_exact;
        let rows_ahead = (AHEAD / (stride * size_of::<S::Element>())).next_multiple_of(ROWS).max(ROWS);
        Shape { stride, params: self.layout.params(), by_sums, rows_ahead }
    }

    /// Which rows of the group from this one on are in scope; none of those behind the last.
    #[inline]
    fn scope_of_group(&self, first: usize) -> RowSet {
        match &self.mask {
            None => {
                let left = self.layout.clients().saturating_sub(first);
                if left < ROWS { !(RowSet::MAX << left) } else { RowSet::MAX }
            }
            Some(mask) => {
                let rows = mask.get(first..).unwrap_or_default().iter().take(ROWS).enumerate();
                rows.fold(0, |set, (i, &in_scope)| set | RowSet::from(in_scope) << i)
            }
        }
    }

    /// The fast sums of those rows of a group that are in scope.
    fn group_sums(
        &self,
        first: usize,
        elements: &[S::Element],
        shape: Shape,
        in_scope: RowSet,
    ) -> [f64; ROWS] {
        let Shape { stride, params, rows_ahead, .. } = shape;
        // Where there is more padding than rows, it is not asked for.
        if in_scope == RowSet::MAX && stride < 2 * params {
            return self.storage.sums_of_group(RowGroup { elements, stride, params });
        }
        let ahead = elements.as_ptr().wrapping_add(rows_ahead * stride);
        for i in members(self.scope_of_group(first + rows_ahead)) {
            prefetch(ahead.wrapping_add(i * stride).cast(), params * size_of::<S::Element>());
        }
        if in_scope == 0 {
            return [0.0; ROWS];
        }
        let mut of_rows: [&[S::Element]; ROWS] = [&[]; ROWS];
        for i in members(in_scope) {
            of_rows[i] = &elements[i * stride..i * stride + params];
        }
        self.storage.sums(&of_rows, in_scope)
    }

    /// The norms of a group, row by row.
    #[cold]
    #[inline(never)]
    fn norms_of_rows(
        &self,
        first: usize,
        elements: &[S::Element],
        shape: Shape,
        norms: &mut [MaybeUninit<Norm>],
    ) {
        for (i, norm) in norms.iter_mut().enumerate() {
            let row = &elements[i * shape.stride..i * shape.stride + shape.params];
            norm.write(self.row_norm(first + i, row));
        }
    }
}

/// How short rows lie, and whether their fast sums come first.
#[derive(Clone, Copy)]
struct Shape {
    stride: usize,
    params: usize,
    by_sums: bool,
    /// Of how many rows ahead memory is asked for.
    rows_ahead: usize,
}

/// The norms of short rows; there is a place for each row, and every one is written.
struct NormsTask<'a, 'b, S: Storage> {
    rows: &'a Rows<'b, S>,
    shape: Shape,
    /// The number of the first row, which begins the elements.
    first: usize,
    elements: &'a [S::Element],
    norms: &'a mut [MaybeUninit<Norm>],
}

impl<S: Storage> NormsTask<'_, '_, S> {
    fn run(self) {
        let Self { rows, shape, first, elements, norms: places } = self;
        let groups = elements.chunks(shape.stride * ROWS).zip(places.chunks_mut(ROWS));
        for (index, (elements, places)) in groups.enumerate() {
            let first = first + index * ROWS;
            if !shape.by_sums {
                rows.norms_of_rows(first, elements, shape, places);
                continue;
            }
            let in_scope = rows.scope_of_group(first);
            let (norms, open) = norms(&rows.group_sums(first, elements, shape, in_scope));
            if open & in_scope != 0 {
                rows.norms_of_rows(first, elements, shape, places);
                continue;
            }
            for (i, (place, norm)) in places.iter_mut().zip(norms).enumerate() {
                place.write(if in_scope >> i & 1 == 1 { norm } else { Norm::OUT_OF_SCOPE });
            }
        }
    }
}

/// Short rows through all stages; there is a report for each row, and every one is written.
///
/// A group is reported and clipped when the next one was summed: until then its norms and factors are there.
struct RunTask<'a, 'b, S: Storage> {
    rows: &'a Rows<'b, S>,
    shape: Shape,
    /// The number of the first row, which begins the elements.
    first: usize,
    elements: &'a mut [S::Element],
    bounds: &'a [f32],
    reports: &'a mut [MaybeUninit<RowReport>],
}

impl<S: Storage> RunTask<'_, '_, S> {
    fn run(self) {
        let Self { rows, shape, first, elements, bounds, reports } = self;
        let groups = elements.chunks_mut(shape.stride * ROWS).zip(bounds.chunks(ROWS));
        let groups = groups.zip(reports.chunks_mut(ROWS)).enumerate();
        let groups = groups.map(|(index, ((elements, bounds), reports))| {
            let first = first + index * ROWS;
            SummedGroup { rows, shape, first, in_scope: 0, elements, bounds, reports }
        });
        if !shape.by_sums {
            return groups.for_each(SummedGroup::run_rows);
        }
        let mut last: Option<SummedGroup<'_, '_, S>> = None;
        let mut decided = Decided::NONE;
        for mut group in groups {
            group.in_scope = rows.scope_of_group(group.first);
            let sums = rows.group_sums(group.first, group.elements, shape, group.in_scope);
            if let Some(last) = last.take() {
                last.finish(&decided);
            }
            if group.in_scope == 0 {
                decided = Decided::NONE;
            } else if let Some(bounds) = group.bounds.first_chunk() {
                decide(&sums, bounds, group.in_scope, &mut decided);
            } else {
                let mut bounds = [0.0; ROWS];
                bounds[..group.bounds.len()].copy_from_slice(group.bounds);
                decide(&sums, &bounds, group.in_scope, &mut decided);
            }
            last = Some(group);
        }
        if let Some(last) = last {
            last.finish(&decided);
        }
    }
}

/// A group, and which of its rows are in scope: none behind the last.
struct SummedGroup<'a, 'b, S: Storage> {
    rows: &'a Rows<'b, S>,
    shape: Shape,
    first: usize,
    in_scope: RowSet,
    elements: &'a mut [S::Element],
    bounds: &'a [f32],
    reports: &'a mut [MaybeUninit<RowReport>],
}

impl<S: Storage> SummedGroup<'_, '_, S> {
    /// Reports every row, and clips those that are above their bounds; row by row where a sum leaves a norm open.
    fn finish(self, decided: &Decided) {
        const STATUSES: [Status; 4] =
            [Status::OutOfScope, Status::OutOfScope, Status::Untouched, Status::Clipped];
        let &Decided { ref norms, ref factors, clipped, open } = decided;
        if open != 0 {
            return self.run_rows();
        }
        for (i, (report, &bound)) in self.reports.iter_mut().zip(self.bounds).enumerate() {
            let status = STATUSES[usize::from((self.in_scope >> i & 1) << 1 | (clipped >> i & 1))];
            report.write(RowReport { norm: norms[i], bound: Some(bound), factor: factors[i], status });
        }
        if clipped != 0 {
            let (storage, elements) = (&self.rows.storage, self.elements);
            vectorised(ScaleRows { storage, elements, shape: self.shape, factors, clipped });
        }
    }

    /// All of it, row by row.
    #[cold]
    #[inline(never)]
    fn run_rows(self) {
        let Shape { stride, params, .. } = self.shape;
        for (i, (report, &bound)) in self.reports.iter_mut().zip(self.bounds).enumerate() {
            let row = &mut self.elements[i * stride..i * stride + params];
            report.write(self.rows.run_row(self.first + i, row, bound));
        }
    }
}

/// The rows of a group that are clipped.
struct ScaleRows<'a, S: Storage> {
    storage: &'a S,
    elements: &'a mut [S::Element],
    shape: Shape,
    factors: &'a [f64; ROWS],
    clipped: RowSet,
}

impl<S: Storage> Kernel for ScaleRows<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { storage, elements, shape: Shape { stride, params, .. }, factors, clipped } = self;
        for i in members(clipped) {
            storage.scale(&mut elements[i * stride..i * stride + params], factors[i]);
        }
    }
}
