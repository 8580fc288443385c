//! What threads share: tasks in order, a run of them for each thread.
//!
//! The caller works too. In a program that does something else between two batches the threads of a pool are asleep, and a caller
//! that waits for one to wake, which then wakes the others, may have worked through half of the batch by then.
//!
//! Each thread begins with a run of its own, so that it finds what it has read in its own caches when it writes it, and takes from
//! the ends of the others' when it has done with that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::vec;

use super::lent::Pool;
use crate::error::Result;

/// Elements up to which a caller has done sooner alone than with others that it has to wake first: to wake one takes it as long as to sum
/// 300,000.
pub(super) const WORTH_WAKING: usize = 3 << 18;

/// Elements up to which one thread is faster than several that are awake.
pub(super) const WORTH_SHARING: usize = 1 << 17;

/// The threads that share a batch: the caller, and those of a pool besides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Team<'a> {
    pool: &'a Pool,
    threads: usize,
}

impl<'a> Team<'a> {
    /// Those that are worth waking for so many elements: the caller alone where they are few.
    pub(super) fn new(pool: &'a Pool, elements: usize) -> Result<Self> {
        let threads = if elements <= WORTH_WAKING { 1 } else { pool.threads()? };
        Ok(Self { pool, threads })
    }

    /// For benchmarks: the same of rayon's global pool, and the caller alone where that cannot be started.
    #[cfg(feature = "cli")]
    pub(crate) fn global(elements: usize) -> Self {
        let pool = &Pool::SHARED;
        Self::new(pool, elements).unwrap_or(Self { pool, threads: 1 })
    }

    /// Those that are worth waking for a part of the batch.
    pub(super) fn for_part(self, elements: usize) -> Self {
        Self { threads: if elements <= WORTH_WAKING { 1 } else { self.threads }, ..self }
    }

    /// Those that are worth sharing a row with, in the midst of a batch.
    pub(super) fn for_row(self, elements: usize) -> Self {
        Self { threads: if elements <= WORTH_SHARING { 1 } else { self.threads }, ..self }
    }

    /// Whether there are so many rows, or other tasks, that a thread with one more than the others does not tell.
    pub(super) fn is_even_over(self, tasks: usize) -> bool {
        tasks >= self.even_tasks()
    }

    /// How many that are.
    pub(super) fn even_tasks(self) -> usize {
        const FEW: usize = 4;
        FEW * self.threads
    }

    /// How many threads work at the same time.
    pub(crate) fn threads(self) -> usize {
        self.threads
    }

    /// `work` on every task: returns when each was done once, or panics as one did.
    pub(crate) fn share<T: Send>(self, tasks: impl ExactSizeIterator<Item = T>, work: impl Fn(T) + Sync) {
        let threads = self.threads.min(tasks.len());
        if threads <= 1 {
            return tasks.for_each(work);
        }
        let runs = Runs::new(tasks, threads);
        let take = |thread| {
            if thread < threads {
                while let Some(task) = runs.take(thread) {
                    work(task);
                }
            }
        };
        let begun = AtomicUsize::new(1);
        let begin = || take(begun.fetch_add(1, Ordering::Relaxed));
        // One more is called than may work: those begin that are first, and systems wake some on the processor that the caller is
        // on, where they would wait for it.
        self.pool.lend(threads, &begin, || take(0));
    }

    /// What `work` makes of every task, shared in the same way.
    pub(crate) fn collect<T: Send, R: Send>(
        self,
        tasks: impl ExactSizeIterator<Item = T>,
        work: impl Fn(T) -> R + Sync,
    ) -> Vec<R> {
        let mut places: Vec<Option<R>> = (0..tasks.len()).map(|_| None).collect();
        self.share(tasks.zip(&mut places), |(task, place)| *place = Some(work(task)));
        places.into_iter().flatten().collect()
    }
}

/// What is left of the run of each thread.
struct Runs<T>(Vec<Mutex<vec::IntoIter<T>>>);

impl<T> Runs<T> {
    /// As many runs as threads, of lengths that differ by at most one.
    fn new(tasks: impl ExactSizeIterator<Item = T>, threads: usize) -> Self {
        let mut tasks: Vec<T> = tasks.collect();
        let length = tasks.len();
        let run = |thread| Mutex::new(tasks.split_off(thread * length / threads).into_iter());
        let mut runs: Vec<_> = (0..threads).rev().map(run).collect();
        runs.reverse();
        Self(runs)
    }

    /// The next task for a thread, of its own run or from the end of another's; none when all have been taken.
    fn take(&self, thread: usize) -> Option<T> {
        // Nothing panics while a lock is held.
        let lock = |run: usize| self.0[run].lock().unwrap_or_else(PoisonError::into_inner);
        let own = lock(thread).next();
        let mut others = (1..self.0.len()).map(|other| (thread + other) % self.0.len());
        own.or_else(|| others.find_map(|other| lock(other).next_back()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 7] {
            let pool = pool(threads);
            let team = Team::new(&pool, WORTH_WAKING + 1).unwrap();
            for tasks in [0, 1, 2, 3, 10, 100] {
                let done: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let work = |task: usize| {
                    done[task].fetch_add(1, Ordering::Relaxed);
                    2 * task
                };
                let found = team.collect(0..tasks, work);
                assert_eq!(found, (0..tasks).map(|task| 2 * task).collect::<Vec<_>>());
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "{threads}, {tasks}");
            }
        }
    }

    #[test]
    fn a_thread_begins_with_its_own_run_and_takes_from_the_ends_of_others() {
        let runs = Runs::new(0..10, 3);
        let taken: Vec<_> = (0..10).map(|_| runs.take(1).unwrap()).collect();
        assert_eq!(taken, [3, 4, 5, 9, 8, 7, 6, 2, 1, 0]);
        assert_eq!(runs.take(0), None);
    }

    #[test]
    fn no_more_threads_work_than_there_are() {
        let pool = pool(2);
        let team = Team::new(&pool, WORTH_WAKING + 1).unwrap();
        let (working, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for _ in 0..20 {
            team.share(0..40, |_| {
                most.fetch_max(1 + working.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_micros(200));
                working.fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert_eq!(most.into_inner(), 2);
    }

    #[test]
    #[should_panic(expected = "a task of thread")]
    fn a_panic_reaches_the_caller() {
        let pool = pool(2);
        let team = Team::new(&pool, WORTH_WAKING + 1).unwrap();
        team.share(0..40, |task| assert!(task != 39, "a task of thread"));
    }
}
