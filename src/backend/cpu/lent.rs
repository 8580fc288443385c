//! Work that is lent to the threads of a pool for as long as its owner works too.
//!
//! rayon's scopes end only when every thread that was called has come, if only to find nothing left. That takes tens of microseconds
//! where they sleep, and as long as they are busy otherwise. Here an owner that has done takes the work back: it waits for those that
//! have begun, and who comes later finds nothing.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;

use crate::error::Result;
use crate::pool;

/// About how many calls may be unanswered: each takes some memory until a thread has come. With more, owners work alone.
const MOST_CALLS: usize = 1 << 10;

/// How many times an owner looks for the others' end before it sleeps: for some tens of microseconds, about what it takes to wake it.
/// No clock, which may panic where the owner must not.
const LOOKS: usize = 1 << 12;

/// Threads to lend to: those of an own pool, or else of the pool that the caller is in, or else of rayon's global one.
#[derive(Debug)]
pub(super) struct Pool(Option<OwnPool>);

#[derive(Debug)]
struct OwnPool {
    threads: ThreadPool,
    /// Calls that none of them has answered yet.
    calls: Arc<AtomicUsize>,
}

impl Pool {
    /// What has no threads of its own.
    pub(super) const SHARED: Self = Self(None);

    pub(super) fn new(threads: ThreadPool) -> Self {
        Self(Some(OwnPool { threads, calls: Arc::default() }))
    }

    /// Calls that nobody has answered yet; of shared threads those of this caller, because nobody knows all pools.
    fn calls(&self) -> Arc<AtomicUsize> {
        thread_local! {
            static OF_CALLER: Arc<AtomicUsize> = Arc::default();
        }
        self.0.as_ref().map_or_else(|| OF_CALLER.with(Arc::clone), |own| Arc::clone(&own.calls))
    }

    /// How many threads it has; one that is shared is started where it was not.
    pub(super) fn threads(&self) -> Result<usize> {
        self.0.as_ref().map_or_else(pool::threads, |own| Ok(own.threads.current_num_threads()))
    }

    /// Runs `own` here and, until it ends, `others` on those of so many threads that come. Returns when all that have begun have ended;
    /// panics as one did.
    pub(super) fn lend(&self, threads: usize, others: &(dyn Fn() + Sync), own: impl FnOnce()) {
        let calls = self.calls();
        if calls.load(Ordering::Relaxed) >= MOST_CALLS {
            return own();
        }
        let lent = Arc::new(Lent::new(others));
        let taken_back = TakenBack(&lent);
        let root = Call { lent: Arc::clone(&lent), calls, place: 0, last: threads };
        root.next(|job| match &self.0 {
            Some(own) => own.threads.spawn(job),
            None => rayon::spawn(job),
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
    /// The last place of the tree.
    last: usize,
}

impl Call {
    fn answer(self) {
        if !self.lent.is_taken_back() {
            self.next(rayon::spawn);
            self.lent.join_in();
        }
        self.calls.fetch_sub(1, Ordering::Release);
    }

    /// Calls those below in the tree.
    fn next(&self, mut spawn: impl FnMut(Box<dyn FnOnce() + Send>)) {
        for place in (2 * self.place + 1..=2 * self.place + 2).filter(|place| *place <= self.last) {
            let (lent, calls) = (Arc::clone(&self.lent), Arc::clone(&self.calls));
            let call = Self { lent, calls, place, last: self.last };
            self.calls.fetch_add(1, Ordering::Relaxed);
            spawn(Box::new(move || call.answer()));
        }
    }
}

/// The work, and who is at it.
struct Lent {
    /// There as long as it was not taken back, or somebody is at it.
    work: NonNull<dyn Fn() + Sync>,
    /// How many are at it; [`TAKEN_BACK`] besides, once nobody may begin any more.
    workers: AtomicUsize,
    /// For an owner that sleeps until the last of them has done.
    sleeping: Mutex<()>,
    done: Condvar,
    /// The first panic of those that were at it.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Above all numbers of workers.
const TAKEN_BACK: usize = 1 << (usize::BITS - 1);

#[allow(unsafe_code)]
// SAFETY: `work` points to what may be called by several threads, and is read where it is there (`Lent::join_in`); the rest is `Send`.
unsafe impl Send for Lent {}

#[allow(unsafe_code)]
// SAFETY: as above; the rest is `Sync`.
unsafe impl Sync for Lent {}

impl Lent {
    fn new<'work>(work: &'work (dyn Fn() + Sync + 'work)) -> Self {
        let work = NonNull::from(work);
        #[allow(unsafe_code)]
        // SAFETY: the types differ in how long the work is there: see `Lent::join_in`.
        let work = unsafe {
            std::mem::transmute::<NonNull<dyn Fn() + Sync + 'work>, NonNull<dyn Fn() + Sync>>(work)
        };
        let (workers, sleeping, done, panic) = Default::default();
        Self { work, workers, sleeping, done, panic }
    }

    fn is_taken_back(&self) -> bool {
        self.workers.load(Ordering::Relaxed) >= TAKEN_BACK
    }

    /// Works, if it was not taken back.
    fn join_in(&self) {
        let Some(_begun) = self.begin() else { return };
        #[allow(unsafe_code)]
        // SAFETY: `lend` borrows the work and does not return before it was taken back, for which it waits until `_begun` is dropped:
        // `begin` has counted it before.
        let work = unsafe { self.work.as_ref() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let mut first = locked(&self.panic);
            if first.is_none() {
                *first = Some(panic);
            }
        }
    }

    fn begin(&self) -> Option<Begun<'_>> {
        let mut workers = self.workers.load(Ordering::Relaxed);
        while workers < TAKEN_BACK {
            let (with_one_more, failed) = (Ordering::AcqRel, Ordering::Relaxed);
            match self.workers.compare_exchange_weak(workers, workers + 1, with_one_more, failed) {
                Ok(_) => return Some(Begun(self)),
                Err(changed) => workers = changed,
            }
        }
        None
    }

    /// Must not panic: `lend` would return while others are at work that it only borrows.
    fn take_back(&self) {
        self.workers.fetch_or(TAKEN_BACK, Ordering::AcqRel);
        let is_done = || self.workers.load(Ordering::Acquire) == TAKEN_BACK;
        for _ in 0..LOOKS {
            if is_done() {
                return;
            }
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

/// Somebody is at it: the owner waits until this is dropped.
struct Begun<'a>(&'a Lent);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.0.workers.fetch_sub(1, Ordering::AcqRel) == TAKEN_BACK + 1 {
            // The owner looks under this lock before it sleeps: once it was had here, the owner has seen the count, or sleeps and is woken.
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
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::{Duration, Instant};

    fn pool(threads: usize) -> Pool {
        Pool::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
    }

    fn until(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(20), "waits for nothing");
            thread::yield_now();
        }
    }

    fn count(counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::AcqRel);
    }

    impl Pool {
        /// Until every thread that was called has answered.
        fn settle(&self) {
            until(|| self.calls().load(Ordering::Acquire) == 0);
        }

        /// Keeps all threads from coming as long as `meanwhile` runs.
        fn busy(&self, meanwhile: impl FnOnce()) {
            let threads = self.threads().unwrap();
            let (busy, free) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            for _ in 0..threads {
                let (busy, free) = (Arc::clone(&busy), Arc::clone(&free));
                self.0.as_ref().unwrap().threads.spawn(move || {
                    count(&busy);
                    until(|| free.load(Ordering::Acquire));
                });
            }
            until(|| busy.load(Ordering::Acquire) == threads);
            meanwhile();
            free.store(true, Ordering::Release);
        }
    }

    #[test]
    fn an_owner_waits_for_none_that_has_not_begun() {
        let pool = pool(2);
        let (worked, came, is_back) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        pool.busy(|| {
            pool.lend(2, &|| count(&came), || count(&worked));
            is_back.store(true, Ordering::Relaxed);
            assert_eq!(pool.calls().load(Ordering::Relaxed), 2);
        });
        pool.settle();
        assert_eq!((worked.into_inner(), came.into_inner(), is_back.into_inner()), (1, 0, true));
    }

    #[test]
    fn an_owner_waits_for_all_that_have_begun() {
        let pool = pool(3);
        for pause in [0, 1, 100, 5_000].map(Duration::from_micros) {
            let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let others = || {
                count(&begun);
                thread::sleep(pause);
                count(&ended);
            };
            pool.lend(3, &others, || until(|| begun.load(Ordering::Acquire) > 0));
            assert_eq!(begun.into_inner(), ended.into_inner(), "{pause:?}");
        }
    }

    #[test]
    fn every_thread_is_called_once() {
        // One thread answers all calls, one after the other, so that none is left out by chance.
        let pool = pool(1);
        for threads in [1, 2, 3, 6, 13, MOST_CALLS + 1] {
            let came = AtomicUsize::new(0);
            let own = || {
                until(|| came.load(Ordering::Acquire) >= threads);
                pool.settle();
            };
            pool.lend(threads, &|| count(&came), own);
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
                most = most.max(pool.calls().load(Ordering::Relaxed));
            }
        });
        assert_eq!(most, MOST_CALLS);
        pool.settle();
        let came = AtomicUsize::new(0);
        pool.lend(1, &|| count(&came), || until(|| came.load(Ordering::Acquire) == 1));
    }

    #[test]
    fn callers_of_a_shared_pool_count_their_own_calls() {
        let calls = || Pool::SHARED.calls();
        assert!(Arc::ptr_eq(&calls(), &calls()));
        assert!(!Arc::ptr_eq(&calls(), &thread::spawn(calls).join().unwrap()));
    }

    #[test]
    fn a_panic_waits_for_the_others_and_reaches_the_owner() {
        let pool = pool(1);
        let message = |panic: Box<dyn Any + Send>| *panic.downcast::<&str>().unwrap();
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let begin = || begun.store(true, Ordering::Release);
        let until_begun = || until(|| begun.swap(false, Ordering::AcqRel));
        let others = || {
            begin();
            thread::sleep(Duration::from_millis(5));
            ended.store(true, Ordering::Relaxed);
        };
        let own = || {
            until_begun();
            panic!("the owner's")
        };
        let panic = catch_unwind(AssertUnwindSafe(|| pool.lend(1, &others, own))).unwrap_err();
        assert_eq!((message(panic), ended.load(Ordering::Relaxed)), ("the owner's", true));

        let others = || {
            begin();
            panic!("another's")
        };
        let panic = catch_unwind(AssertUnwindSafe(|| pool.lend(1, &others, until_begun))).unwrap_err();
        assert_eq!(message(panic), "another's");
    }
}
