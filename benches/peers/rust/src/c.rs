//! byzclip on the CPU for programs in other languages: `libraries.py` calls it on the memory that Python's libraries work on.

#![allow(unsafe_code)]

use std::panic::{self, AssertUnwindSafe};
use std::slice;
use std::sync::LazyLock;

use byzclip::{Backend, Clipping, Cpu, Error, Layout};

static CPU: LazyLock<Result<Cpu, Error>> = LazyLock::new(Cpu::new);

fn cpu() -> Result<&'static Cpu, String> {
    CPU.as_ref().map_err(ToString::to_string)
}

/// 0, or 1 where it failed, which is told on stderr.
fn status(work: impl FnOnce() -> Result<(), String>) -> i32 {
    let done = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("got a panic".into()));
    done.map_or_else(
        |error| {
            eprintln!("byzclip: {error}");
            1
        },
        |()| 0,
    )
}

/// Writes the norm of each of `clients` rows of `params` elements to `norms`.
///
/// # Safety
/// There are `clients * params` elements at `data`, and room for `clients` at `norms`, apart from those; nobody else uses either of
/// them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn byzclip_norms(
    data: *const f32,
    clients: usize,
    params: usize,
    norms: *mut f32,
) -> i32 {
    // SAFETY: the caller promises it.
    let (data, norms) =
        unsafe { (slice::from_raw_parts(data, clients * params), slice::from_raw_parts_mut(norms, clients)) };
    status(|| {
        let layout = Layout::dense(clients, params).map_err(|error| error.to_string())?;
        let found = cpu()?.norms(&layout, data, &Clipping::default()).map_err(|error| error.to_string())?;
        norms.iter_mut().zip(&found.rows).for_each(|(to, norm)| *to = norm.value());
        Ok(())
    })
}

/// Clips each of `clients` rows of `params` elements to `max_norm`, in place.
///
/// # Safety
/// There are `clients * params` elements at `data`, and nobody else uses them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn byzclip_clip(data: *mut f32, clients: usize, params: usize, max_norm: f32) -> i32 {
    // SAFETY: the caller promises it.
    let data = unsafe { slice::from_raw_parts_mut(data, clients * params) };
    status(|| {
        let layout = Layout::dense(clients, params).map_err(|error| error.to_string())?;
        cpu()?.run(&layout, data, &Clipping::fixed(max_norm)).map_err(|error| error.to_string())?;
        Ok(())
    })
}
