//! The threads that the process shares: rayon's global pool, or the one that a caller is in.

use std::error::Error as _;
use std::io;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;

use crate::error::{Error, Result};

/// The number of threads of the rayon pool that the caller is in, and else of the global one, which is started here if nobody has: rayon's
/// own start panics where the system gives no threads.
pub(crate) fn threads() -> Result<usize> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    if rayon::current_thread_index().is_none() {
        STARTED.get_or_init(start).clone()?;
    }
    Ok(rayon::current_num_threads())
}

fn start() -> Result<()> {
    let Err(error) = ThreadPoolBuilder::new().build_global() else { return Ok(()) };
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(refused) => {
            let named = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.parse().ok());
            let threads = named.filter(|threads| *threads > 0);
            let threads = threads.or(std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
            Err(Error::Threads { threads, message: refused.to_string() })
        }
        // It was there already, or somebody else's start has failed: then rayon panics.
        None => Ok(()),
    }
}
