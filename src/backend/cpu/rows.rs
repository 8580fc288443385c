//! The stages over rows, however their elements are stored: who works on which, and what one row takes.

use std::ops::Range;

use super::group::{ROWS, RowGroup, RowSet};
use super::runs::are_summed_together;
use super::short::ShortRows;
use super::simd::prefetches_within;
use super::sum::FastSum;
use super::tasks::{Cursor, Hands, cut, each, elements_of_task};
use super::threads::{Team, WORTH_SHARING};
use super::{Cpu, LINE, PART};
use crate::batch::{Granularity, Layout};
use crate::clip::{Clipping, Scope};
use crate::error::Result;
use crate::norms::{INFINITY_BITS, Norm, NormClass, Norms};
use crate::numerics::ExactSum;
use crate::report::{RowReport, row_of_one};
use crate::threshold::{Decision, decide_span};

/// What norm, decision and report of a row cost beside its elements, as a number of those.
const ROW: usize = 32;

/// What a row out of scope costs, in the same way: its report. Long rows have that before threads are woken, so it is no part of a task.
const ROW_OUT_OF_SCOPE: usize = 4;

/// From how many elements on it pays to write from where a line begins.
const WORTH_ALIGNING: usize = 1 << 12;

/// How elements are stored, and what one thread does with some of a row that lie side by side. `first` is the
/// coordinate of the first of them.
pub(super) trait Storage: Sync {
    type Element: Copy + Default + Send + Sync;

    /// Their sum of squares; the first `prefetches` of them ask for memory ahead.
    fn sum(&self, elements: &[Self::Element], first: usize, prefetches: usize) -> FastSum;

    /// The same to [`QUALITY`](super::sum::QUALITY), where the other may be coarser.
    fn finer_sum(&self, elements: &[Self::Element], first: usize) -> FastSum {
        self.sum(elements, first, 0)
    }

    /// Whether sums are faster where several rows are read at once, each in a place of its own.
    fn reads_apart(&self) -> bool;

    /// The fast sums of rows of one length, from their first element on: side by side, where that makes them faster.
    fn sums_of_rows(&self, rows: &[&[Self::Element]; ROWS]) -> [FastSum; ROWS] {
        rows.map(|row| self.sum(row, 0, 0))
    }

    /// The fast sums of some short rows, from their first element on; 0 of the others, which are empty.
    fn sums(&self, rows: &[&[Self::Element]; ROWS], which: RowSet) -> [f64; ROWS];

    /// The same of all rows of a group, while memory ahead of it is asked for where it says so.
    fn sums_of_group(&self, group: RowGroup<'_, Self::Element>) -> [f64; ROWS];

    /// Scales a row, from its first element on.
    fn scale(&self, elements: &mut [Self::Element], factor: f64);

    /// The sum of squares of finite elements without any error.
    fn exact_sum(&self, elements: &[Self::Element], first: usize) -> ExactSum;

    /// The largest magnitude, as the bits of an `f32`; those of infinity or more where one is not finite.
    fn largest_magnitude(&self, elements: &[Self::Element]) -> u32;

    /// Writes what the decision makes of them.
    fn apply(&self, elements: &mut [Self::Element], first: usize, decision: &Decision);
}

/// What decisions were made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The elements that they are applied to: none of those that are clipped is NaN or Inf.
    SameData,
    /// Perhaps others.
    AnyData,
}

/// A batch, and how its rows are worked on.
pub(super) struct Rows<'a, S> {
    pub(super) layout: &'a Layout,
    pub(super) clipping: &'a Clipping,
    pub(super) storage: S,
    pub(super) force_exact: bool,
    /// Which rows are in scope; `None` is all.
    pub(super) mask: Option<Vec<bool>>,
    /// How many those are.
    rows_in_scope: usize,
    /// What is to be done, in elements.
    work: usize,
    /// Who does it.
    pub(super) team: Team<'a>,
}

impl<'a, S: Storage> Rows<'a, S> {
    pub(super) fn new(cpu: &'a Cpu, layout: &'a Layout, clipping: &'a Clipping, storage: S) -> Result<Self> {
        clipping.check_center(layout)?;
        let clients = layout.clients();
        let mask = match &clipping.scope {
            Scope::All => None,
            scope => Some(scope.mask(clients)?),
        };
        let rows_in_scope =
            mask.as_ref().map_or(clients, |mask| mask.iter().filter(|in_scope| **in_scope).count());
        let elements = match (&mask, layout.stride()) {
            (None, _) => layout.elements(),
            (Some(_), Some(_)) => layout.params() * rows_in_scope,
            (Some(mask), None) => {
                (0..clients).filter(|&row| mask[row]).map(|row| layout.row(row).len()).sum()
            }
        };
        let work = elements + ROW * rows_in_scope + ROW_OUT_OF_SCOPE * (clients - rows_in_scope);
        let team = Team::new(&cpu.pool, work)?;
        Ok(Self { layout, clipping, storage, force_exact: cpu.force_exact, mask, rows_in_scope, work, team })
    }

    fn in_scope(&self, row: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[row])
    }

    /// The norms stage.
    pub(super) fn norms(&self, data: &[S::Element]) -> Norms {
        if self.clipping.granularity != Granularity::Segment {
            let rows = match ShortRows::of(self) {
                Some(short) => short.norms(data),
                None => self.norms_by(Norm::OUT_OF_SCOPE, data, |row, elements, sum, hands| {
                    self.row_norm(row, elements, sum, hands)
                }),
            };
            return Norms { rows, segments: Vec::new() };
        }
        let norms = self.norms_by((Norm::OUT_OF_SCOPE, Vec::new()), data, |row, elements, _, hands| {
            self.segment_norms(row, elements, hands)
        });
        let mut segments = Vec::with_capacity(self.layout.segment_count());
        let rows = norms.into_iter().enumerate().map(|(row, (norm, of_segments))| {
            segments.extend(of_segments);
            // Those of a row out of scope.
            segments.resize(self.layout.segments_of(row).end, Norm::OUT_OF_SCOPE);
            norm
        });
        Norms { rows: rows.collect(), segments }
    }

    /// Calls `norm` for each row in scope, with its fast sum where that was taken together with others; other rows get `out_of_scope`.
    fn norms_by<T: Clone + Send>(
        &self,
        out_of_scope: T,
        data: &[S::Element],
        norm: impl Fn(usize, &[S::Element], Option<FastSum>, Hands) -> T + Sync,
    ) -> Vec<T> {
        let mut norms = vec![out_of_scope; self.layout.clients()];
        let mut places = Cursor::at(0, &mut norms);
        let elements = |row| &data[self.layout.row(row)];
        self.each_task(
            |rows| places.take(rows),
            |rows, places, hands| {
                let mut in_scope = rows.zip(places).filter(|(row, _)| self.in_scope(*row));
                while let Some(group) = next_group(&mut in_scope) {
                    let sums = self.sums_side_by_side(&group, elements);
                    for ((row, place), sum) in group.into_iter().flatten().zip(sums) {
                        *place = norm(row, elements(row), sum, hands);
                    }
                }
            },
        );
        norms
    }

    /// The sums of a group of rows, where they are taken together.
    fn sums_side_by_side<'e, P>(
        &self,
        group: &[Option<(usize, P)>; ROWS],
        elements: impl Fn(usize) -> &'e [S::Element],
    ) -> [Option<FastSum>; ROWS]
    where
        S::Element: 'e,
    {
        const NONE: [Option<FastSum>; ROWS] = [None; ROWS];
        let Some((first, _)) = &group[0] else { return NONE };
        let length = self.layout.row(*first).len();
        let reads_apart = self.clipping.granularity == Granularity::Row && self.storage.reads_apart();
        if !reads_apart || !are_summed_together(length) {
            return NONE;
        }
        let mut rows = [&[][..]; ROWS];
        for (row, place) in rows.iter_mut().zip(group) {
            let Some((of_group, _)) = place else { return NONE };
            *row = elements(*of_group);
            if row.len() != length {
                return NONE;
            }
        }
        self.storage.sums_of_rows(&rows).map(Some)
    }

    /// Norm, decision and clip of each row while it is in a cache, for bounds of rows that are known before the norms.
    pub(super) fn run(&self, data: &mut [S::Element], bounds: &[f32]) -> Vec<RowReport> {
        if let Some(short) = ShortRows::of(self) {
            return short.run(data, bounds);
        }
        let mut reports: Vec<RowReport> =
            bounds.iter().map(|&bound| RowReport::out_of_scope(bound)).collect();
        let (mut data, mut places) = (Cursor::at(0, data), Cursor::at(0, &mut reports));
        let place = |row| self.layout.row(row);
        self.each_task(
            |rows| (data.take(place(rows.start).start..place(rows.end - 1).end), places.take(rows)),
            |rows, (elements, reports), hands| {
                let begin = place(rows.start).start;
                let within = |row| place(row).start - begin..place(row).end - begin;
                let mut in_scope = rows.zip(reports).filter(|(row, _)| self.in_scope(*row));
                while let Some(group) = next_group(&mut in_scope) {
                    let sums = self.sums_side_by_side(&group, |row| &elements[within(row)]);
                    for ((row, report), sum) in group.into_iter().flatten().zip(sums) {
                        *report = self.run_row(row, &mut elements[within(row)], sum, bounds[row], hands);
                    }
                }
            },
        );
        reports
    }

    /// All stages of a row, whose sum may have been taken.
    #[inline(never)]
    pub(super) fn run_row(
        &self,
        row: usize,
        elements: &mut [S::Element],
        sum: Option<FastSum>,
        bound: f32,
        hands: Hands,
    ) -> RowReport {
        let norm = self.row_norm(row, elements, sum, hands);
        let decision = decide_span(norm, norm, bound, self.clipping);
        if decision.status.is_written() {
            self.clip_row(elements, &decision, hands);
        }
        row_of_one(&decision)
    }

    /// The clip stage. A long span is cut in parts, so that threads share it.
    pub(super) fn clip(&self, data: &mut [S::Element], decisions: &[Decision], origin: Origin) {
        let mut work = 0;
        let mut parts = Vec::new();
        let mut data = Cursor::at(0, data);
        for row in 0..self.layout.clients() {
            let start = self.layout.row(row).start;
            for index in self.layout.spans_of(self.clipping.granularity, row) {
                let decision = &decisions[index];
                if !decision.status.is_written() {
                    continue;
                }
                let span = self.layout.span(self.clipping.granularity, index);
                work += span.len() + ROW;
                let first = span.start - start;
                let of_span = data.take(span).chunks_mut(PART).enumerate();
                parts.extend(of_span.map(|(part, elements)| (elements, first + part * PART, decision)));
            }
        }
        let team = self.team.for_part(work);
        let sizes = parts.iter().map(|(elements, ..)| (elements.len() + ROW, Hands::One));
        let tasks = cut(sizes, elements_of_task(work, team));
        let mut parts = Cursor::at(0, &mut parts);
        let apply = |_, parts: &mut [(&mut [S::Element], usize, &Decision)], _| {
            for (elements, first, decision) in parts {
                match origin {
                    Origin::SameData => self.apply(elements, *first, decision),
                    Origin::AnyData => self.apply_to_finite(elements, *first, decision),
                }
            }
        };
        each(team, tasks, |of_task| parts.take(of_task), apply);
    }

    /// Writes what a decision makes of elements that it may not have been made from: where they are multiplied, NaN and Inf stay what they
    /// are, because processors differ in the product of a NaN.
    fn apply_to_finite(&self, elements: &mut [S::Element], first: usize, decision: &Decision) {
        let is_finite = |elements: &[S::Element]| self.storage.largest_magnitude(elements) < INFINITY_BITS;
        if !self.clipping.multiplies(decision.status) || is_finite(elements) {
            return self.apply(elements, first, decision);
        }
        // Without a centre, what becomes of an element does not depend on its place.
        for finite in elements.split_mut(|element| !is_finite(std::slice::from_ref(element))) {
            self.apply(finite, first, decision);
        }
    }

    /// The clip stage on a whole row.
    fn clip_row(&self, elements: &mut [S::Element], decision: &Decision, hands: Hands) {
        if hands == Hands::One {
            return self.apply(elements, 0, decision);
        }
        let team = self.team.for_row(elements.len());
        team.share(elements.chunks_mut(PART).enumerate(), |(part, elements)| {
            self.apply(elements, part * PART, decision);
        });
    }

    /// Writes what the decision makes of elements that lie side by side: of long ones from where a cache line begins, because a
    /// vector that is written across two lines takes as long as both.
    fn apply(&self, elements: &mut [S::Element], first: usize, decision: &Decision) {
        if elements.len() < WORTH_ALIGNING {
            return self.storage.apply(elements, first, decision);
        }
        let before = elements.as_ptr().align_offset(LINE);
        let (before, from_line) = elements.split_at_mut(before.min(elements.len()));
        self.storage.apply(before, first, decision);
        self.storage.apply(from_line, first + before.len(), decision);
    }

    /// The norm of a row, where rows have bounds; its sum may have been taken.
    #[inline(never)]
    pub(super) fn row_norm(
        &self,
        row: usize,
        elements: &[S::Element],
        sum: Option<FastSum>,
        hands: Hands,
    ) -> Norm {
        if !self.in_scope(row) {
            return Norm::OUT_OF_SCOPE;
        }
        match self.clipping.granularity {
            Granularity::Coordinate => self.largest_magnitude(elements, hands),
            Granularity::Row | Granularity::Segment => {
                let sum = sum.unwrap_or_else(|| self.sum(elements, 0, hands));
                self.norm(elements, 0, sum, hands)
            }
        }
    }

    /// The norm of a row in scope, and of its segments, where those have bounds.
    fn segment_norms(&self, row: usize, elements: &[S::Element], hands: Hands) -> (Norm, Vec<Norm>) {
        let segments = self.layout.segments_of(row);
        let start = self.layout.row(row).start;
        let segments = segments.map(|segment| {
            let segment = self.layout.segment(segment);
            segment.start - start..segment.end - start
        });
        let of_segment = |segment: Range<usize>, hands| {
            let (elements, first) = (&elements[segment.clone()], segment.start);
            let sum = self.sum(elements, first, hands);
            (sum, self.norm(elements, first, sum, hands))
        };
        let of_segments = match hands {
            Hands::One => segments.map(|segment| of_segment(segment, Hands::One)).collect(),
            Hands::All => {
                let team = self.team.for_row(elements.len());
                let share = (elements.len() / team.threads()).max(WORTH_SHARING);
                let hands = |length| if length > share { Hands::All } else { Hands::One };
                let sizes = segments.clone().map(|segment| (ROW + segment.len(), hands(segment.len())));
                let tasks = cut(sizes, elements_of_task(elements.len(), team));
                let segments: Vec<_> = segments.collect();
                let mut found = vec![(FastSum::default(), Norm::OUT_OF_SCOPE); segments.len()];
                let mut places = Cursor::at(0, &mut found);
                each(
                    team,
                    tasks,
                    |of_task| places.take(of_task),
                    |of_task, places, hands| {
                        let pairs = segments[of_task].iter().zip(places);
                        pairs.for_each(|(segment, place)| *place = of_segment(segment.clone(), hands));
                    },
                );
                found
            }
        };
        let total = of_segments.iter().fold(FastSum::default(), |total, (sum, _)| total.join(*sum));
        (self.norm(elements, 0, total, hands), of_segments.into_iter().map(|(_, norm)| norm).collect())
    }

    /// The norm of a span in scope: from its fast sum where that is certain, else from a finer or the exact one.
    #[inline(always)]
    fn norm(&self, elements: &[S::Element], first: usize, sum: FastSum, hands: Hands) -> Norm {
        let certain = if self.force_exact && sum.is_finite() { None } else { sum.norm() };
        certain.unwrap_or_else(|| self.open_norm(elements, first, sum, hands))
    }

    /// The norm of finite elements whose fast sum leaves it open.
    #[cold]
    #[inline(never)]
    fn open_norm(&self, elements: &[S::Element], first: usize, sum: FastSum, hands: Hands) -> Norm {
        let finer = (sum.is_coarse() && !self.force_exact).then(|| match hands {
            Hands::One => self.storage.finer_sum(elements, first),
            Hands::All => {
                let sums = self.of_parts(elements, |start, part| self.storage.finer_sum(part, first + start));
                sums.into_iter().fold(FastSum::default(), FastSum::join)
            }
        });
        finer.and_then(FastSum::norm).unwrap_or_else(|| self.exact_norm(elements, first, hands))
    }

    /// The fast sum.
    #[inline(always)]
    fn sum(&self, elements: &[S::Element], first: usize, hands: Hands) -> FastSum {
        let sum = |elements: &[S::Element], first| {
            // Behind a row there may be one out of scope.
            let count = elements.len();
            let prefetches = if self.mask.is_none() { count } else { prefetches_within::<S::Element>(count) };
            self.storage.sum(elements, first, prefetches)
        };
        if hands == Hands::One {
            return sum(elements, first);
        }
        let sums = self.of_parts(elements, |start, part| sum(part, first + start));
        sums.into_iter().fold(FastSum::default(), FastSum::join)
    }

    /// The exact norm of finite elements.
    fn exact_norm(&self, elements: &[S::Element], first: usize, hands: Hands) -> Norm {
        if hands == Hands::One {
            return self.storage.exact_sum(elements, first).norm();
        }
        let mut sum = ExactSum::default();
        let of_parts = self.of_parts(elements, |start, part| self.storage.exact_sum(part, first + start));
        of_parts.iter().for_each(|part| sum.add(part));
        sum.norm()
    }

    /// The norm of a row whose coordinates are bounded.
    fn largest_magnitude(&self, elements: &[S::Element], hands: Hands) -> Norm {
        let largest = match hands {
            Hands::One => self.storage.largest_magnitude(elements),
            Hands::All => {
                let of_parts = self.of_parts(elements, |_, part| self.storage.largest_magnitude(part));
                of_parts.into_iter().max().unwrap_or(0)
            }
        };
        if largest >= INFINITY_BITS { Norm::NON_FINITE } else { Norm::new(largest, NormClass::Exact) }
    }

    /// Cuts the rows in tasks, and has `work` done on the part of each.
    fn each_task<P: Send>(
        &self,
        part: impl FnMut(Range<usize>) -> P,
        work: impl Fn(Range<usize>, P, Hands) + Sync,
    ) {
        let clients = self.layout.clients();
        let (in_scope, threads) = (self.rows_in_scope, self.team.threads());
        // Those in scope that are left over where every thread has as many as the others, and the first of them.
        let left_over = if self.team.is_even_over(in_scope) { 0 } else { in_scope % threads };
        let mut last = (0..clients).rev().filter(|row| self.in_scope(*row));
        let first_left_over = left_over.checked_sub(1).and_then(|place| last.nth(place)).unwrap_or(clients);
        let sizes = (0..clients).map(|row| {
            if !self.in_scope(row) {
                return (0, Hands::One);
            }
            let length = self.layout.row(row).len();
            let left_over = if row < first_left_over { 0 } else { left_over };
            (ROW + length, Hands::for_row(length, left_over, threads))
        });
        each(self.team, cut(sizes, elements_of_task(self.work, self.team)), part, work);
    }

    /// What `work` makes of the parts of a long row, by all threads; it is told where a part begins.
    fn of_parts<T: Send>(
        &self,
        elements: &[S::Element],
        work: impl Fn(usize, &[S::Element]) -> T + Sync,
    ) -> Vec<T> {
        let parts = elements.chunks(PART).enumerate();
        self.team.for_row(elements.len()).collect(parts, |(part, elements)| work(part * PART, elements))
    }

    /// How many rows of one length are worth a task: all of them where one thread takes the batch.
    pub(super) fn rows_of_task(&self) -> usize {
        let clients = self.layout.clients();
        let share = elements_of_task(self.work, self.team) as f64 / self.work.max(1) as f64;
        ((share * clients as f64) as usize).clamp(1, clients.max(1))
    }
}

/// The next rows of a task; none when it has no more.
fn next_group<P>(rows: &mut impl Iterator<Item = (usize, P)>) -> Option<[Option<(usize, P)>; ROWS]> {
    let first = rows.next()?;
    let mut group = [const { None }; ROWS];
    group[0] = Some(first);
    for place in &mut group[1..] {
        *place = rows.next();
    }
    Some(group)
}
