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

use super::{Cpu, SEQUENTIAL};

impl Cpu {
    /// `work` on every task, `at_once` of them at a time: by this thread alone where there are few elements, else by this one
    /// and those of the pool.
    pub(super) fn share<T: Send>(
        &self,
        elements: usize,
        tasks: impl ExactSizeIterator<Item = T>,
        at_once: usize,
        work: impl Fn(T) + Sync,
    ) {
        let at_once = at_once.max(1);
        let threads = self.threads().min(tasks.len().div_ceil(at_once));
        if elements <= SEQUENTIAL || threads <= 1 {
            return tasks.for_each(work);
        }
        let runs = Runs::new(tasks, threads);
        let take = |thread| {
            let mut taken = Vec::with_capacity(at_once);
            while thread < threads && runs.take(thread, at_once, &mut taken) {
                taken.drain(..).for_each(&work);
            }
        };
        // One more is woken than may work: those begin that are first, and systems wake some on the processor that the caller is
        // on, where they would wait for it.
        let begun = AtomicUsize::new(1);
        self.scope(|scope| {
            (0..threads).for_each(|_| scope.spawn(|_| take(begun.fetch_add(1, Ordering::Relaxed))));
            take(0);
        });
    }

    /// What `work` makes of every task, shared in the same way.
    pub(super) fn collect<T: Send, R: Send>(
        &self,
        elements: usize,
        tasks: impl ExactSizeIterator<Item = T>,
        at_once: usize,
        work: impl Fn(T) -> R + Sync,
    ) -> Vec<R> {
        let mut places: Vec<Option<R>> = (0..tasks.len()).map(|_| None).collect();
        self.share(elements, tasks.zip(&mut places), at_once, |(task, place)| *place = Some(work(task)));
        places.into_iter().flatten().collect()
    }

    /// How many threads work at the same time.
    pub(super) fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, rayon::ThreadPool::current_num_threads)
    }

    fn scope<'scope>(&self, work: impl FnOnce(&rayon::Scope<'scope>)) {
        match &self.pool {
            Some(pool) => pool.in_place_scope(work),
            None => rayon::in_place_scope(work),
        }
    }
}

/// What is left of the run of each thread.
struct Runs<T>(Vec<Mutex<vec::IntoIter<T>>>);

impl<T> Runs<T> {
    /// As many runs as threads, of equal lengths but for the last ones.
    fn new(tasks: impl ExactSizeIterator<Item = T>, threads: usize) -> Self {
        let length = tasks.len().div_ceil(threads);
        let mut tasks: Vec<T> = tasks.collect();
        let run = |thread| Mutex::new(tasks.split_off(tasks.len().min(thread * length)).into_iter());
        let mut runs: Vec<_> = (0..threads).rev().map(run).collect();
        runs.reverse();
        Self(runs)
    }

    /// Takes some tasks for a thread; false where there are none left.
    fn take(&self, thread: usize, at_once: usize, taken: &mut Vec<T>) -> bool {
        // Nothing panics while a lock is held.
        let lock = |run: usize| self.0[run].lock().unwrap_or_else(PoisonError::into_inner);
        taken.extend(lock(thread).by_ref().take(at_once));
        let others = (1..self.0.len()).map(|other| (thread + other) % self.0.len());
        for other in others {
            if !taken.is_empty() {
                break;
            }
            taken.extend(lock(other).by_ref().rev().take(at_once));
        }
        !taken.is_empty()
    }
}
