//! Rows, segments and parts of them, cut in tasks: runs of them that one thread takes, and long ones that all share.

use std::ops::Range;

use super::threads::{Team, WORTH_SHARING};
use super::{OWN, PART};

/// In how many tasks a thread's share of a batch is cut, so that no thread is left with much at the end.
const TASKS: usize = 16;

/// Elements that a task has at least, where there are several.
const LEAST: usize = 1 << 15;

/// Who works on a row or segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hands {
    /// This thread, beside others that have rows or segments of their own.
    One,
    /// All threads.
    All,
}

impl Hands {
    /// All threads for a row that is longer than `OWN`, and for a long one that is left over, where its parts keep more threads at work
    /// than there are rows left over.
    pub(super) fn for_row(length: usize, left_over: usize, threads: usize) -> Self {
        let is_long = length > WORTH_SHARING && length.div_ceil(PART).min(threads) > left_over;
        let is_shared = threads > 1 && (length > OWN || left_over > 0 && is_long);
        if is_shared { Self::All } else { Self::One }
    }
}

/// Some that lie side by side, and who works on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// One at least.
    spans: Range<usize>,
    hands: Hands,
}

/// How many elements are worth a task: all of them where one thread takes them.
pub(super) fn elements_of_task(elements: usize, team: Team<'_>) -> usize {
    if team.threads() == 1 { usize::MAX } else { LEAST.max(elements / (TASKS * team.threads())) }
}

/// Cuts what has these sizes in tasks of about so many elements; what all threads share is a task of its own, and where nothing has a
/// size there is none.
pub(super) fn cut(sizes: impl Iterator<Item = (usize, Hands)>, most: usize) -> Vec<Task> {
    let (mut tasks, mut open, mut elements) = (Vec::new(), 0..0, 0);
    for (span, (size, hands)) in sizes.enumerate() {
        let is_shared = hands == Hands::All;
        if !is_shared {
            (open.end, elements) = (span + 1, elements + size);
        }
        if is_shared || elements >= most {
            tasks.push((Task { spans: open, hands: Hands::One }, elements));
            (open, elements) = (span + 1..span + 1, 0);
        }
        if is_shared {
            tasks.push((Task { spans: span..span + 1, hands }, size));
        }
    }
    tasks.push((Task { spans: open, hands: Hands::One }, elements));
    tasks.into_iter().filter(|(_, elements)| *elements > 0).map(|(task, _)| task).collect()
}

/// `work` on each task and its part of the batch: first on those that one thread takes, by the threads side by side, then on the others
/// one by one, so that nothing is shared within what is shared. `part` is asked for them in order.
pub(super) fn each<P: Send>(
    team: Team<'_>,
    tasks: Vec<Task>,
    mut part: impl FnMut(Range<usize>) -> P,
    work: impl Fn(Range<usize>, P, Hands) + Sync,
) {
    let (mut shared, mut others) = (Vec::new(), Vec::new());
    for Task { spans, hands } in tasks {
        let task = (spans.clone(), part(spans));
        if hands == Hands::All { shared.push(task) } else { others.push(task) }
    }
    team.share(others.into_iter(), |(spans, part)| work(spans, part, Hands::One));
    shared.into_iter().for_each(|(spans, part)| work(spans, part, Hands::All));
}

/// A slice from which parts are taken, from front to back.
pub(super) struct Cursor<'a, T> {
    rest: &'a mut [T],
    /// Where the rest begins.
    position: usize,
}

impl<'a, T> Cursor<'a, T> {
    /// At the beginning of a slice, which has this position.
    pub(super) fn at(position: usize, rest: &'a mut [T]) -> Self {
        Self { rest, position }
    }

    /// A part that lies behind those before.
    pub(super) fn take(&mut self, part: Range<usize>) -> &'a mut [T] {
        let (_, rest) = std::mem::take(&mut self.rest).split_at_mut(part.start - self.position);
        let (elements, rest) = rest.split_at_mut(part.len());
        (self.rest, self.position) = (rest, part.end);
        elements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_where_that_leaves_no_thread_without_work() {
        // Length, rows left over, threads.
        let shared =
            [(OWN + 1, 0, 2), (WORTH_SHARING + 1, 1, 2), (8 * PART, 3, 4), (OWN, 7, 8), (11 << 20, 10, 16)];
        // The last ones are too short, or there are enough of them.
        let alone = [
            (OWN, 0, 2),
            (OWN + 1, 0, 1),
            (OWN, 1, 1),
            (WORTH_SHARING, 1, 2),
            (100_000, 10, 16),
            (3 * PART, 7, 8),
        ];
        for (cases, expected) in [(&shared[..], Hands::All), (&alone[..], Hands::One)] {
            for &(length, left_over, threads) in cases {
                let hands = Hands::for_row(length, left_over, threads);
                assert_eq!(hands, expected, "{length}, {left_over}, {threads}");
            }
        }
    }

    #[test]
    fn spans_are_cut_in_tasks_by_their_elements() {
        let sizes = [3, 3, 3, 50, 0, 50, 10, 1, 1];
        let hands = |size| if size == 50 { Hands::All } else { Hands::One };
        let tasks = |sizes: &[usize], most| {
            let tasks = cut(sizes.iter().map(|&size| (size, hands(size))), most);
            tasks.into_iter().map(|Task { spans, hands }| (spans, hands)).collect::<Vec<_>>()
        };
        let (one, all) = (Hands::One, Hands::All);
        assert_eq!(
            tasks(&sizes, 6),
            [(0..2, one), (2..3, one), (3..4, all), (5..6, all), (6..7, one), (7..9, one)]
        );
        assert_eq!(tasks(&[0, 0, 3, 0, 3, 0, 0], 6), [(0..5, one)]);
        assert_eq!(tasks(&[0, 0], 6), []);
        assert_eq!(tasks(&[3, 3, 3], usize::MAX), [(0..3, one)]);
        assert_eq!(tasks(&[], 6), []);
    }
}
