//! Work that is lent to the threads of a pool for as long as its owner works too.
//!
//! rayon's scopes end when every thread that was called has come, if only to find nothing left: for tens of microseconds where they
//! sleep, and for as long as it takes where they are busy with something else. Here an owner that has done takes the work back: it waits
//! for those that have begun, and who comes later finds nothing.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

use crate::error::Result;
use crate::pool;

/// Calls that may wait for a pool whose threads are busy: each takes some memory until one of them has come, and owners work alone meanwhile.
const MOST_CALLS: usize = 1 << 10;

/// How long an owner looks for the others' end before it sleeps: about as long as it would take to wake it.
const PATIENCE: Duration = Duration::from_micros(50);

/// Threads to lend to.
#[derive(Debug)]
pub(super) struct Pool {
    /// `None` is the pool that the caller is in, and else rayon's global one.
    own: Option<ThreadPool>,
    /// Calls that no thread has answered yet.
    calls: Arc<AtomicUsize>,
}

impl Pool {
    pub(super) fn new(own: Option<ThreadPool>) -> Self {
        Self { own, calls: Arc::default() }
    }

    /// The pool that the caller is in, and else rayon's global one.
    pub(super) fn shared() -> &'static Self {
        static SHARED: LazyLock<Pool> = LazyLock::new(|| Pool::new(None));
        &SHARED
    }

    /// How many threads it has; one that is shared is started where it was not.
    pub(super) fn threads(&self) -> Result<usize> {
        self.own.as_ref().map_or_else(pool::threads, |own| Ok(own.current_num_threads()))
    }

    /// Runs `own` here, and `others` on those of so many threads that come before it has ended: returns when all of them have done, or
    /// panics as one did.
    pub(super) fn lend(&self, threads: usize, others: &(dyn Fn() + Sync), own: impl FnOnce()) {
        if self.calls.load(Ordering::Relaxed) + threads > MOST_CALLS {
            return own();
        }
        let lent = Arc::new(Lent::new(others));
        let taken_back = TakenBack(&lent);
        let call = Call { lent: Arc::clone(&lent), calls: Arc::clone(&self.calls), place: 0, threads };
        call.call_next(|call| match &self.own {
            Some(own) => own.spawn(call),
            None => rayon::spawn(call),
        });
        own();
        drop(taken_back);
        if let Some(panic) = locked(&lent.panic).take() {
            resume_unwind(panic);
        }
    }
}

/// A thread is asked to come. Threads are called as a tree, each calls two others before it begins: one that called all would do nothing
/// else for a while.
struct Call {
    lent: Arc<Lent>,
    calls: Arc<AtomicUsize>,
    /// Of the thread that is called in the tree; the owner has 0.
    place: usize,
    /// The last place.
    threads: usize,
}

impl Call {
    fn answer(self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        if let Some(begun) = self.lent.begin() {
            self.call_next(rayon::spawn);
            begun.work();
        }
    }

    fn call_next(&self, mut spawn: impl FnMut(Box<dyn FnOnce() + Send>)) {
        for place in (2 * self.place + 1..=2 * self.place + 2).filter(|place| *place <= self.threads) {
            let call = Self { lent: Arc::clone(&self.lent), calls: Arc::clone(&self.calls), place, ..*self };
            self.calls.fetch_add(1, Ordering::Relaxed);
            spawn(Box::new(move || call.answer()));
        }
    }
}

/// The work, and who is at it.
struct Lent {
    /// There until it is taken back.
    work: NonNull<dyn Fn() + Sync>,
    /// How many are at it; [`TAKEN_BACK`] besides, once nobody may begin any more.
    workers: AtomicUsize,
    /// For an owner that sleeps until the last of them has done.
    sleeping: Mutex<()>,
    done: Condvar,
    /// The first of theirs.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Above all numbers of workers.
const TAKEN_BACK: usize = 1 << (usize::BITS - 1);

#[allow(unsafe_code)]
// SAFETY: `work` points to what may be called by several threads, and is read where it is there (`Begun::work`); the rest is `Send`.
unsafe impl Send for Lent {}

#[allow(unsafe_code)]
// SAFETY: as above; the rest is `Sync`.
unsafe impl Sync for Lent {}

impl Lent {
    fn new<'work>(work: &'work (dyn Fn() + Sync + 'work)) -> Self {
        let work = NonNull::from(work);
        #[allow(unsafe_code)]
        // SAFETY: the types differ in how long the work is there, which `work` of `Begun` answers for.
        let work = unsafe {
            std::mem::transmute::<NonNull<dyn Fn() + Sync + 'work>, NonNull<dyn Fn() + Sync>>(work)
        };
        let (workers, sleeping, done, panic) = Default::default();
        Self { work, workers, sleeping, done, panic }
    }

    /// Who begins, if it was not taken back.
    fn begin(&self) -> Option<Begun<'_>> {
        let one_more = |workers| (workers < TAKEN_BACK).then_some(workers + 1);
        let begun = self.workers.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more);
        begun.ok().map(|_| Begun(self))
    }

    fn take_back(&self) {
        self.workers.fetch_or(TAKEN_BACK, Ordering::AcqRel);
        let is_done = || self.workers.load(Ordering::Acquire) == TAKEN_BACK;
        let start = Instant::now();
        while !is_done() && start.elapsed() < PATIENCE {
            spin_loop();
        }
        let mut sleeping = locked(&self.sleeping);
        while !is_done() {
            sleeping = self.done.wait(sleeping).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Takes the work back when it is dropped, also where the owner panics.
struct TakenBack<'a>(&'a Lent);

impl Drop for TakenBack<'_> {
    fn drop(&mut self) {
        self.0.take_back();
    }
}

/// A thread that has begun: the owner waits until it is dropped.
struct Begun<'a>(&'a Lent);

impl Begun<'_> {
    fn work(self) {
        #[allow(unsafe_code)]
        // SAFETY: `lend` borrows the work and does not return before it was taken back. That takes until this is dropped, because
        // `begin` has counted it before.
        let work = unsafe { self.0.work.as_ref() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            locked(&self.0.panic).get_or_insert(panic);
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.0.workers.fetch_sub(1, Ordering::AcqRel) == TAKEN_BACK + 1 {
            // Whoever is about to sleep has seen this, or sleeps when the lock is had.
            drop(locked(&self.0.sleeping));
            self.0.done.notify_one();
        }
    }
}

/// Nothing panics while a lock is held.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn pool(threads: usize) -> Pool {
        Pool::new(Some(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()))
    }

    fn until(is_so: impl Fn() -> bool) {
        while !is_so() {
            thread::yield_now();
        }
    }

    impl Pool {
        /// Until every thread that was called has come.
        fn settle(&self) {
            until(|| self.calls.load(Ordering::Acquire) == 0);
        }

        /// Keeps all threads from coming as long as `meanwhile` runs.
        fn busy(&self, meanwhile: impl FnOnce()) {
            let threads = self.threads().unwrap();
            let (busy, free) = (Arc::new(Barrier::new(threads + 1)), Arc::new(Barrier::new(threads + 1)));
            for _ in 0..threads {
                let (busy, free) = (Arc::clone(&busy), Arc::clone(&free));
                self.own.as_ref().unwrap().spawn(move || {
                    busy.wait();
                    free.wait();
                });
            }
            busy.wait();
            meanwhile();
            free.wait();
        }
    }

    #[test]
    fn an_owner_waits_for_none_that_has_not_begun() {
        let pool = pool(2);
        let came = Arc::new(AtomicUsize::new(0));
        let others = {
            let came = Arc::clone(&came);
            move || _ = came.fetch_add(1, Ordering::Relaxed)
        };
        let mut worked = 0;
        pool.busy(|| pool.lend(2, &others, || worked += 1));
        pool.settle();
        assert_eq!((worked, came.load(Ordering::Relaxed)), (1, 0));
        // Nobody keeps what was lent.
        drop(others);
        assert_eq!(Arc::strong_count(&came), 1);
    }

    #[test]
    fn an_owner_waits_for_all_that_have_begun() {
        let pool = pool(3);
        for pause in [Duration::ZERO, PATIENCE, Duration::from_millis(5)] {
            let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let others = || {
                begun.fetch_add(1, Ordering::Relaxed);
                thread::sleep(pause);
                ended.fetch_add(1, Ordering::Relaxed);
            };
            pool.lend(3, &others, || until(|| begun.load(Ordering::Relaxed) > 0));
            assert_eq!(begun.into_inner(), ended.into_inner(), "{pause:?}");
        }
    }

    #[test]
    fn every_thread_is_called_once() {
        // One thread answers all calls, one after the other, so that none is left out by chance.
        let pool = pool(1);
        for threads in [1, 2, 3, 6, 13] {
            let came = AtomicUsize::new(0);
            let others = || _ = came.fetch_add(1, Ordering::Relaxed);
            pool.lend(threads, &others, || until(|| came.load(Ordering::Relaxed) == threads));
            pool.settle();
            assert_eq!(came.into_inner(), threads);
        }
    }

    #[test]
    fn calls_that_nobody_answers_are_bounded() {
        let pool = pool(1);
        let mut most = 0;
        pool.busy(|| {
            for _ in 0..2 * MOST_CALLS {
                pool.lend(2, &|| (), || ());
                most = most.max(pool.calls.load(Ordering::Relaxed));
            }
        });
        assert_eq!(most, MOST_CALLS);
        pool.settle();
        let begun = Barrier::new(2);
        pool.lend(1, &|| _ = begun.wait(), || _ = begun.wait());
    }

    #[test]
    fn a_panic_waits_for_the_others_and_reaches_the_owner() {
        let pool = pool(1);
        let message = |panic: Box<dyn Any + Send>| *panic.downcast::<&str>().unwrap();
        let (begun, ended) = (Barrier::new(2), AtomicBool::new(false));
        let others = || {
            begun.wait();
            thread::sleep(Duration::from_millis(5));
            ended.store(true, Ordering::Relaxed);
        };
        let own = || {
            begun.wait();
            panic!("the owner's")
        };
        let panic = catch_unwind(AssertUnwindSafe(|| pool.lend(1, &others, own))).unwrap_err();
        assert_eq!((message(panic), ended.into_inner()), ("the owner's", true));

        let others = || {
            begun.wait();
            panic!("another's")
        };
        let panic =
            catch_unwind(AssertUnwindSafe(|| pool.lend(1, &others, || _ = begun.wait()))).unwrap_err();
        assert_eq!(message(panic), "another's");
    }
}
