//! What threads share: tasks in order, a run of them for each thread.
//!
//! The caller works too. In a program that does something else between two batches the threads of a pool are asleep, and a caller
//! that waits for one to wake, which then wakes the others, may have worked through half of the batch by then.
//!
//! Each thread begins with a run of its own, so that it finds what it has read in its own caches when it writes it, and takes from
//! the ends of the others' when it has done with that.

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::vec;

use super::Cpu;
use crate::error::{Error, Result};

/// Elements up to which one thread is faster than waking others: a dozen microseconds of work.
const SEQUENTIAL: usize = 1 << 17;

/// The threads that share a batch: the caller, and those of a pool besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Team<'a> {
    /// `None` is rayon's global pool.
    pool: Option<&'a rayon::ThreadPool>,
    threads: usize,
}

impl<'a> Team<'a> {
    /// Those that are worth waking for so many elements: the caller alone where they are few.
    pub(super) fn new(cpu: &'a Cpu, elements: usize) -> Result<Self> {
        let pool = cpu.pool.as_ref();
        let threads = match pool {
            _ if elements <= SEQUENTIAL => 1,
            Some(pool) => pool.current_num_threads(),
            None => {
                start_global_pool()?;
                rayon::current_num_threads()
            }
        };
        Ok(Self { pool, threads })
    }

    /// Those that are worth waking for a part of the batch.
    pub(super) fn for_part(self, elements: usize) -> Self {
        Self { threads: if elements <= SEQUENTIAL { 1 } else { self.threads }, ..self }
    }

    /// How many threads work at the same time.
    pub(super) fn threads(self) -> usize {
        self.threads
    }

    /// `work` on every task, `at_once` of them at a time.
    pub(super) fn share<T: Send>(
        self,
        tasks: impl ExactSizeIterator<Item = T>,
        at_once: usize,
        work: impl Fn(T) + Sync,
    ) {
        let at_once = at_once.max(1);
        let threads = self.threads.min(tasks.len().div_ceil(at_once));
        if threads <= 1 {
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
        self,
        tasks: impl ExactSizeIterator<Item = T>,
        at_once: usize,
        work: impl Fn(T) -> R + Sync,
    ) -> Vec<R> {
        let mut places: Vec<Option<R>> = (0..tasks.len()).map(|_| None).collect();
        self.share(tasks.zip(&mut places), at_once, |(task, place)| *place = Some(work(task)));
        places.into_iter().flatten().collect()
    }

    fn scope<'scope>(self, work: impl FnOnce(&rayon::Scope<'scope>)) {
        match self.pool {
            Some(pool) => pool.in_place_scope(work),
            None => rayon::in_place_scope(work),
        }
    }
}

/// Starts rayon's global pool where nobody has: rayon itself would panic where threads cannot be had.
fn start_global_pool() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    if rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a source it was there already.
        Err(error) if error.source().is_some() => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            Err(Error::Threads { threads, message: error.to_string() })
        }
        _ => Ok(()),
    };
    STARTED.get_or_init(start).clone()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 7] {
            let cpu = Cpu::with_threads(threads).unwrap();
            let team = Team::new(&cpu, SEQUENTIAL + 1).unwrap();
            for tasks in [0, 1, 2, 3, 10, 100] {
                for at_once in [0, 1, 3, 1000] {
                    let done: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    let work = |task: usize| {
                        done[task].fetch_add(1, Ordering::Relaxed);
                        2 * task
                    };
                    let found = team.collect(0..tasks, at_once, work);
                    assert_eq!(found, (0..tasks).map(|task| 2 * task).collect::<Vec<_>>());
                    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "{threads}, {tasks}");
                }
            }
        }
    }

    #[test]
    fn a_thread_begins_with_its_own_run_and_takes_from_the_ends_of_others() {
        let runs = Runs::new(0..10, 3);
        let take = |thread| {
            let mut taken = Vec::new();
            runs.take(thread, 2, &mut taken).then_some(taken)
        };
        let taken: Vec<_> = (0..5).map(|_| take(1).unwrap()).collect();
        assert_eq!(taken, [vec![4, 5], vec![6, 7], vec![9, 8], vec![3, 2], vec![1, 0]]);
        assert_eq!(take(0), None);
    }

    #[test]
    fn no_more_threads_work_than_there_are() {
        let cpu = Cpu::with_threads(2).unwrap();
        let team = Team::new(&cpu, SEQUENTIAL + 1).unwrap();
        let (working, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for _ in 0..20 {
            team.share(0..40, 1, |_| {
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
        let cpu = Cpu::with_threads(2).unwrap();
        Team::new(&cpu, SEQUENTIAL + 1)
            .unwrap()
            .share(0..40, 1, |task| assert!(task != 39, "a task of thread"));
    }
}
