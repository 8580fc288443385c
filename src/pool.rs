//! The threads that the process shares: rayon's global pool, or the one that a caller is in.

use std::error::Error as _;
use std::io;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;

use crate::error::{Error, Result};

/// How many threads rayon has where this is called. Its global pool is started where that is asked for and nobody has: rayon itself would
/// panic where threads cannot be had, as it does after another one's failed start.
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
        // It was there already.
        None => Ok(()),
    }
}
