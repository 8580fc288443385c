//! The choice of a backend by name.

use std::str::FromStr;

use super::{Backend, Cpu, Reference};
use crate::error::{Error, Result};

/// A backend as a person asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Choice {
    /// A hardware GPU if there is one, else the CPU; a software adapter only if named.
    #[default]
    Auto,
    /// A GPU, or an error.
    Gpu,
    /// Threads and SIMD.
    Cpu,
    /// Exact and slow.
    Reference,
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "gpu" => Ok(Self::Gpu),
            "cpu" => Ok(Self::Cpu),
            "reference" => Ok(Self::Reference),
            _ => Err(Error::Setting {
                name: "backend",
                got: name.to_owned(),
                expected: "auto, gpu, cpu or reference",
            }),
        }
    }
}

/// Makes the backend that was asked for.
///
/// `adapter` is a part of an adapter's name, in any case: naming one asks for the GPU backend, and is
/// the only way to a software adapter. What was taken, and why, is in [`Backend::ran`].
///
/// # Errors
/// [`Error::NoAdapter`] where a GPU was asked for and none fits; [`Error::Setting`] where an adapter is
/// named for a backend that has none; errors of the device.
///
/// # Examples
/// ```
/// use byzclip::backend::{Choice, select};
///
/// let backend = select(Choice::Cpu, None)?;
/// assert_eq!(backend.ran().to_string(), "cpu (asked for by name)");
/// # Ok::<(), byzclip::Error>(())
/// ```
pub fn select(choice: Choice, adapter: Option<&str>) -> Result<Box<dyn Backend>> {
    match (choice, adapter) {
        (Choice::Cpu, None) => Ok(Box::new(Cpu::new()?)),
        (Choice::Reference, None) => Ok(Box::new(Reference)),
        (Choice::Cpu | Choice::Reference, Some(adapter)) => Err(Error::Setting {
            name: "adapter",
            got: adapter.to_owned(),
            expected: "no adapter with the backends cpu and reference",
        }),
        (Choice::Gpu, _) | (Choice::Auto, Some(_)) => gpu(adapter),
        (Choice::Auto, None) => automatic(),
    }
}

#[cfg(feature = "gpu")]
fn gpu(adapter: Option<&str>) -> Result<Box<dyn Backend>> {
    Ok(Box::new(super::Gpu::open(adapter)?))
}

#[cfg(not(feature = "gpu"))]
fn gpu(_adapter: Option<&str>) -> Result<Box<dyn Backend>> {
    Err(Error::NoAdapter {
        wanted: "a build with the feature `gpu`".into(),
        found: "a build without GPU support".into(),
    })
}

/// The first hardware GPU that opens, else the CPU, with the reason.
fn automatic() -> Result<Box<dyn Backend>> {
    #[cfg(feature = "gpu")]
    let why = match super::Gpu::open(None) {
        Ok(gpu) => return Ok(Box::new(gpu.because("auto: the first hardware GPU".into()))),
        Err(Error::NoAdapter { found, .. }) => format!("auto: no hardware GPU, found {found}"),
        Err(error) => format!("auto: the GPU did not open: {error}"),
    };
    #[cfg(not(feature = "gpu"))]
    let why = "auto: built without GPU support".into();
    Ok(Box::new(Cpu::new()?.because(why)))
}
