//! Short rows of one length, in groups: the sums of a few side by side, then all that they take beside their elements.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::decided::{Decided, decide, norms};
use super::group::{ROWS, RowGroup, RowSet, members};
use super::rows::{Rows, Storage};
use super::runs::is_long;
use super::simd::{Kernel, PREFETCH_DISTANCE, prefetch, vectorised};
use super::squares::SHORT;
use super::tasks::Hands;
use crate::batch::Granularity;
use crate::clip::Status;
use crate::norms::Norm;
use crate::report::RowReport;

/// Elements of a row from which on it pays to sum rows that are apart: four cache lines of `f32`.
const LEAST_APART: usize = 64;

/// A batch of short rows that lie at equal distances.
pub(super) struct ShortRows<'a, 'b, S> {
    rows: &'a Rows<'b, S>,
    stride: usize,
    /// Elements of a row.
    params: usize,
    /// Rows of a task, whole groups.
    of_task: usize,
    /// Whether norms come from fast sums where these are certain.
    by_sums: bool,
    /// How many rows ahead memory is asked for, where that is row by row.
    rows_ahead: usize,
}

impl<'a, 'b, S: Storage> ShortRows<'a, 'b, S> {
    /// The rows of the batch; `None` where they are long, or of several lengths, or one.
    pub(super) fn of(rows: &'a Rows<'b, S>) -> Option<Self> {
        let (clients, params) = (rows.layout.clients(), rows.layout.params());
        // Cut at their stride, data has a chunk for each row, as long as they have elements.
        let stride = rows.layout.stride().filter(|_| (1..=SHORT).contains(&params) && clients > 1)?;
        Some(Self {
            rows,
            stride,
            params,
            of_task: rows.rows_of_task().next_multiple_of(ROWS),
            by_sums: rows.clipping.granularity != Granularity::Coordinate && !rows.force_exact,
            rows_ahead: (PREFETCH_DISTANCE / (stride * size_of::<S::Element>()))
                .next_multiple_of(ROWS)
                .max(ROWS),
        })
    }

    /// [`Rows::norms`].
    pub(super) fn norms(&self, data: &[S::Element]) -> Vec<Norm> {
        // Never fails: `Layout::check` refused such callers. The unsafe code below rests on it.
        assert!(data.len() >= self.rows.layout.len(), "elements of the whole batch");
        self.fill_by_tasks(data.chunks(self.stride * self.of_task), |first, elements, norms| {
            self.norms_of_task(first, elements, norms);
        })
    }

    /// [`Rows::run`].
    pub(super) fn run(&self, data: &mut [S::Element], bounds: &[f32]) -> Vec<RowReport> {
        // As in `norms`; and `Source::new` has checked the number of bounds.
        assert!(data.len() >= self.rows.layout.len(), "elements of the whole batch");
        assert_eq!(bounds.len(), self.rows.layout.clients(), "a bound for every row");
        let parts = data.chunks_mut(self.stride * self.of_task).zip(bounds.chunks(self.of_task));
        self.fill_by_tasks(parts, |first, (elements, bounds), reports| {
            self.run_task(first, elements, bounds, reports);
        })
    }

    /// What `work` writes for every row. It is told the first row of a task, that task's part of the batch, and its places:
    /// it writes all of them.
    fn fill_by_tasks<T: Send, P: Send>(
        &self,
        parts: impl ExactSizeIterator<Item = P> + Send,
        work: impl Fn(usize, P, &mut [MaybeUninit<T>]) + Sync + Send,
    ) -> Vec<T> {
        let (clients, of_task) = (self.rows.layout.clients(), self.of_task);
        // Written in place: returned by groups, reports are copied twice, a sixth of the time of rows of a hundred
        // elements. A vector that is written before takes a twentieth.
        let mut filled = Vec::with_capacity(clients);
        let tasks = parts.zip(filled.spare_capacity_mut()[..clients].chunks_mut(of_task)).enumerate();
        assert_eq!(tasks.len(), clients.div_ceil(of_task), "a part of the batch to each task");
        self.rows.team.share(tasks, |(task, (part, places))| work(task * of_task, part, places));
        #[allow(unsafe_code)]
        // SAFETY: there is a task for each chunk of the first `clients` places, as was just asked, and `share` returns only when each of
        // them was done. Both kinds of `work` write every place of its chunk: their callers asked whether the data reaches to the end of
        // the last row, which has an element, and whether there is a bound for every row.
        unsafe {
            filled.set_len(clients);
        }
        filled
    }

    /// The norms of a task's rows, of which this is the first; there is a place for each.
    fn norms_of_task(&self, first: usize, elements: &[S::Element], places: &mut [MaybeUninit<Norm>]) {
        if !self.by_sums {
            return self.norms_row_by_row(first, elements, places);
        }
        let begin = self.norms_of_runs(first, elements, places);
        // Behind the last row there may be no padding.
        let elements = elements.get(begin * self.stride..).unwrap_or_default();
        let places = &mut places[begin..];
        let groups = elements.chunks(self.stride * ROWS).zip(places.chunks_mut(ROWS));
        for (index, (elements, places)) in groups.enumerate() {
            let first = first + begin + index * ROWS;
            let in_scope = self.scope_of_group(first);
            let (norms, open) = norms(&self.sums_in_scope(first, elements, in_scope));
            if open & in_scope != 0 {
                self.norms_row_by_row(first, elements, places);
                continue;
            }
            for (i, (place, norm)) in places.iter_mut().zip(norms).enumerate() {
                place.write(if in_scope >> i & 1 == 1 { norm } else { Norm::OUT_OF_SCOPE });
            }
        }
    }

    /// The norms of groups whose eight rows lie an eighth of the task apart, so that eight places are read in order; where that is slower, of
    /// none. (With clips and reports, which then lie apart too, it is slower.) Returns how many rows it has done, the first ones.
    fn norms_of_runs(
        &self,
        first: usize,
        elements: &[S::Element],
        places: &mut [MaybeUninit<Norm>],
    ) -> usize {
        let &Self { rows, stride, params, .. } = self;
        let are_dense = rows.mask.is_none() && params >= LEAST_APART && stride < 2 * params;
        let is_faster = are_dense && rows.storage.reads_apart() && is_long(elements.len());
        let apart = if is_faster { places.len() / ROWS } else { 0 };
        for row in 0..apart {
            let (elements, asks_ahead) = (&elements[row * stride..], false);
            let group = RowGroup { elements, stride: apart * stride, params, asks_ahead };
            let (norms, open) = norms(&rows.storage.sums_of_group(group));
            for (i, norm) in norms.into_iter().enumerate() {
                let place = row + i * apart;
                places[place].write(match open >> i & 1 {
                    0 => norm,
                    _ => rows.row_norm(first + place, group.rows()[i], None, Hands::One),
                });
            }
        }
        apart * ROWS
    }

    #[cold]
    #[inline(never)]
    fn norms_row_by_row(&self, first: usize, elements: &[S::Element], places: &mut [MaybeUninit<Norm>]) {
        for (i, place) in places.iter_mut().enumerate() {
            place.write(self.rows.row_norm(first + i, &elements[self.place(i)], None, Hands::One));
        }
    }

    /// A task's rows through all stages; there is a place for the report of each.
    ///
    /// A group is reported and clipped when the next one was summed: until then its norms and factors are there.
    fn run_task(
        &self,
        first: usize,
        elements: &mut [S::Element],
        bounds: &[f32],
        reports: &mut [MaybeUninit<RowReport>],
    ) {
        let groups = elements.chunks_mut(self.stride * ROWS).zip(bounds.chunks(ROWS));
        let groups = groups.zip(reports.chunks_mut(ROWS)).enumerate();
        let groups = groups.map(|(index, ((elements, bounds), reports))| {
            let first = first + index * ROWS;
            PendingGroup {
                batch: self,
                first,
                in_scope: self.scope_of_group(first),
                elements,
                bounds,
                reports,
            }
        });
        if !self.by_sums {
            return groups.for_each(PendingGroup::run_row_by_row);
        }
        let mut last: Option<PendingGroup<'_, '_, '_, S>> = None;
        let mut decided = Decided::NONE;
        for group in groups {
            let sums = self.sums_in_scope(group.first, group.elements, group.in_scope);
            if let Some(last) = last.take() {
                last.finish(&decided);
            }
            let mut of_rest = [0.0; ROWS];
            let bounds = group.bounds.first_chunk().unwrap_or_else(|| {
                of_rest[..group.bounds.len()].copy_from_slice(group.bounds);
                &of_rest
            });
            if group.in_scope == 0 {
                // A root and a quotient saved.
                decided = Decided::NONE;
            } else {
                decide(&sums, bounds, group.in_scope, &mut decided);
            }
            last = Some(group);
        }
        if let Some(last) = last {
            last.finish(&decided);
        }
    }

    /// Which rows of the group from this one on are in scope; none of those behind the last.
    #[inline]
    fn scope_of_group(&self, first: usize) -> RowSet {
        match &self.rows.mask {
            None => {
                let left = self.rows.layout.clients().saturating_sub(first);
                if left < ROWS { !(RowSet::MAX << left) } else { RowSet::MAX }
            }
            Some(mask) => {
                let rows = mask.get(first..).unwrap_or_default().iter().take(ROWS).enumerate();
                rows.fold(0, |set, (i, &in_scope)| set | RowSet::from(in_scope) << i)
            }
        }
    }

    /// The fast sums of those rows of a group that are in scope; 0 of the others.
    fn sums_in_scope(&self, first: usize, elements: &[S::Element], in_scope: RowSet) -> [f64; ROWS] {
        let &Self { rows, stride, params, rows_ahead, .. } = self;
        // Memory is asked for row by row where there is more padding than rows, or some are out of scope.
        if in_scope == RowSet::MAX && stride < 2 * params {
            return rows.storage.sums_of_group(RowGroup { elements, stride, params, asks_ahead: true });
        }
        let ahead = elements.as_ptr().wrapping_add(rows_ahead * stride);
        for i in members(self.scope_of_group(first + rows_ahead)) {
            prefetch(ahead.wrapping_add(i * stride).cast(), params * size_of::<S::Element>());
        }
        if in_scope == 0 {
            return [0.0; ROWS];
        }
        let mut chosen: [&[S::Element]; ROWS] = [&[]; ROWS];
        for i in members(in_scope) {
            chosen[i] = &elements[self.place(i)];
        }
        rows.storage.sums(&chosen, in_scope)
    }

    /// Where a row lies in its group or task.
    fn place(&self, row: usize) -> Range<usize> {
        row * self.stride..row * self.stride + self.params
    }
}

/// A group that is yet to be reported and clipped.
struct PendingGroup<'a, 'b, 'c, S: Storage> {
    batch: &'a ShortRows<'b, 'c, S>,
    first: usize,
    /// None of those behind the last row.
    in_scope: RowSet,
    elements: &'a mut [S::Element],
    bounds: &'a [f32],
    reports: &'a mut [MaybeUninit<RowReport>],
}

impl<S: Storage> PendingGroup<'_, '_, '_, S> {
    /// Reports every row, and clips those that are above their bounds; row by row where a sum leaves a norm open.
    fn finish(self, decided: &Decided) {
        const STATUSES: [Status; 4] =
            [Status::OutOfScope, Status::OutOfScope, Status::Untouched, Status::Clipped];
        let &Decided { ref norms, ref factors, clipped, open } = decided;
        if open != 0 {
            return self.run_row_by_row();
        }
        for (i, (report, &bound)) in self.reports.iter_mut().zip(self.bounds).enumerate() {
            let status = STATUSES[usize::from((self.in_scope >> i & 1) << 1 | (clipped >> i & 1))];
            report.write(RowReport { norm: norms[i], bound: Some(bound), factor: factors[i], status });
        }
        if clipped != 0 {
            let &ShortRows { rows, stride, params, .. } = self.batch;
            let (storage, elements) = (&rows.storage, self.elements);
            vectorised(ScaleRows { storage, elements, stride, params, factors, clipped });
        }
    }

    /// All stages, row by row.
    #[cold]
    #[inline(never)]
    fn run_row_by_row(self) {
        let Self { batch, first, elements, bounds, reports, .. } = self;
        for (i, (report, &bound)) in reports.iter_mut().zip(bounds).enumerate() {
            let elements = &mut elements[batch.place(i)];
            report.write(batch.rows.run_row(first + i, elements, None, bound, Hands::One));
        }
    }
}

/// The rows of a group that are clipped.
struct ScaleRows<'a, S: Storage> {
    storage: &'a S,
    elements: &'a mut [S::Element],
    stride: usize,
    params: usize,
    factors: &'a [f64; ROWS],
    clipped: RowSet,
}

impl<S: Storage> Kernel for ScaleRows<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { storage, elements, stride, params, factors, clipped } = self;
        for i in members(clipped) {
            storage.scale(&mut elements[i * stride..i * stride + params], factors[i]);
        }
    }
}
