//! byzclip on the CPU for programs in other languages: `libraries.py` calls it on the memory that Python's libraries work on.

#![allow(unsafe_code)]

use std::panic::{self, AssertUnwindSafe};
use std::sync::LazyLock;
use std::{ptr, slice};

use byzclip::threshold::decide;
use byzclip::{Backend, Clipping, Cpu, Decision, Error, Layout, State, Weights};

static CPU: LazyLock<Result<Cpu, Error>> = LazyLock::new(Cpu::new);

fn cpu() -> Result<&'static Cpu, String> {
    CPU.as_ref().map_err(ToString::to_string)
}

/// Nothing where it failed, which is told on stderr.
fn done<T>(work: impl FnOnce() -> Result<T, String>) -> Option<T> {
    let done = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("got a panic".into()));
    done.inspect_err(|error| eprintln!("byzclip: {error}")).ok()
}

/// 0, or 1 where it failed.
fn status(work: impl FnOnce() -> Result<(), String>) -> i32 {
    i32::from(done(work).is_none())
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

/// Rows of which a mean is to be taken, and the last one that was.
pub struct Decided {
    layout: Layout,
    clipping: Clipping,
    decisions: Vec<Decision>,
    weights: Weights,
    mean: Vec<f32>,
}

/// Decides what becomes of each of `clients` rows of `params` elements in a mean, where rows are clipped to `max_norm` and
/// weigh what is at `weights`. Null where it failed.
///
/// # Safety
/// There are `clients * params` elements at `data` and `clients` at `weights`, and nobody writes them meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn byzclip_decide(
    data: *const f32,
    clients: usize,
    params: usize,
    max_norm: f32,
    weights: *const f32,
) -> *mut Decided {
    // SAFETY: the caller promises it.
    let (data, weights) =
        unsafe { (slice::from_raw_parts(data, clients * params), slice::from_raw_parts(weights, clients)) };
    let decided = done(|| {
        let (clipping, weights) = (Clipping::fixed(max_norm), Weights::PerRow(weights.to_vec()));
        let layout = Layout::dense(clients, params).map_err(|error| error.to_string())?;
        let norms = cpu()?.norms(&layout, data, &clipping).map_err(|error| error.to_string())?;
        let decisions = decide(&layout, &norms, &clipping, &mut State::default());
        let decisions = decisions.map_err(|error| error.to_string())?;
        Ok(Decided { layout, clipping, decisions, weights, mean: Vec::new() })
    });
    decided.map_or(ptr::null_mut(), |decided| Box::into_raw(Box::new(decided)))
}

/// The mean of the rows at `data`, `params` elements that are there until the next mean, [`byzclip_discard`] or [`byzclip_release`].
/// Null where it failed.
///
/// It is not copied to the caller's memory: other libraries return what they have allocated as well.
///
/// # Safety
/// `decided` is of [`byzclip_decide`] and not released, and there are as many elements at `data` as it was given; nobody else uses
/// the one, or writes the other meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn byzclip_mean(decided: *mut Decided, data: *const f32) -> *const f32 {
    // SAFETY: the caller promises it.
    let decided = unsafe { &mut *decided };
    // SAFETY: the caller promises it.
    let data = unsafe { slice::from_raw_parts(data, decided.layout.elements()) };
    let mean = done(|| {
        let Decided { layout, clipping, decisions, weights, .. } = &*decided;
        cpu()?.mean(layout, data, clipping, decisions, weights).map_err(|error| error.to_string())
    });
    mean.map_or(ptr::null(), |mean| {
        decided.mean = mean;
        decided.mean.as_ptr()
    })
}

/// Lets go of the last mean.
///
/// # Safety
/// `decided` is of [`byzclip_decide`] and not released, and nobody else uses it or reads its mean any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn byzclip_discard(decided: *mut Decided) {
    // SAFETY: the caller promises it.
    unsafe { (*decided).mean = Vec::new() };
}

/// Lets go of what was decided, and of the last mean.
///
/// # Safety
/// `decided` is of [`byzclip_decide`] and not released, and nobody uses it or its mean any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn byzclip_release(decided: *mut Decided) {
    // SAFETY: the caller promises it.
    drop(unsafe { Box::from_raw(decided) });
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 4] = [3.0, 4.0, 0.3, 0.4];

    fn decided(max_norm: f32, weights: [f32; 2]) -> *mut Decided {
        // SAFETY: two rows of two elements, and their weights.
        unsafe { byzclip_decide(ROWS.as_ptr(), 2, 2, max_norm, weights.as_ptr()) }
    }

    #[test]
    fn a_mean_is_that_of_the_rows_that_were_decided() {
        let decided = decided(2.5, [1.0, 3.0]);
        assert!(!decided.is_null());
        // SAFETY: of these rows; the mean is read before it is discarded.
        unsafe {
            let mean = byzclip_mean(decided, ROWS.as_ptr());
            assert!(!mean.is_null());
            let weights = Weights::PerRow(vec![1.0, 3.0]);
            let expected = Cpu::new()
                .and_then(|cpu| cpu.run_mean(&Layout::dense(2, 2)?, &ROWS, &Clipping::fixed(2.5), &weights));
            assert_eq!(expected.map(|(mean, _)| mean), Ok(slice::from_raw_parts(mean, 2).to_vec()));
            byzclip_discard(decided);
            assert!((*decided).mean.is_empty());
            byzclip_release(decided);
        }
    }

    #[test]
    fn what_fails_is_null() {
        assert!(decided(f32::NAN, [1.0, 3.0]).is_null());
        let decided = decided(2.5, [1.0, f32::NAN]);
        assert!(!decided.is_null(), "weights are looked at with the rows");
        // SAFETY: of these rows.
        unsafe {
            assert!(byzclip_mean(decided, ROWS.as_ptr()).is_null());
            byzclip_release(decided);
        }
    }
}
