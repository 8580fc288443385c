//! The choice of a backend by name.

use std::str::FromStr;

#[cfg(feature = "gpu")]
use super::Gpu;
use super::{Backend, Cpu, Reference};
#[cfg(feature = "gpu")]
use crate::batch::Layout;
#[cfg(feature = "gpu")]
use crate::clip::Clipping;
use crate::error::{Error, Result};
#[cfg(all(test, feature = "gpu"))]
use crate::report::BackendKind;
#[cfg(feature = "gpu")]
use crate::report::Ran;

/// A backend as a person asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Choice {
    /// The CPU, or a hardware GPU where a trial shows that it is faster on a batch in host memory, which has to
    /// travel there and back; a software adapter only if named.
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
/// the only way to a software adapter. [`Choice::Auto`] tries both where there is a hardware GPU, in some tenths of a
/// second; batches that are on a device already need no choice but the GPU backend. What was taken, and why, is in [`Backend::ran`].
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
    choose(choice, adapter, Ok)
}

/// [`select`], where a GPU goes through `prepare` before it is tried or taken: to be given a
/// [`Calibration`](super::gpu::Calibration), for example.
///
/// # Errors
/// Those of [`select`] and of `prepare`; under [`Choice::Auto`] these only say why the CPU was taken.
#[cfg(feature = "gpu")]
pub fn select_prepared(
    choice: Choice,
    adapter: Option<&str>,
    prepare: impl FnOnce(Gpu) -> Result<Gpu>,
) -> Result<Box<dyn Backend>> {
    choose(choice, adapter, prepare)
}

fn choose(
    choice: Choice,
    adapter: Option<&str>,
    prepare: impl FnOnce(Gpu) -> Result<Gpu>,
) -> Result<Box<dyn Backend>> {
    match (choice, adapter) {
        (Choice::Cpu, None) => Ok(Box::new(Cpu::new()?)),
        (Choice::Reference, None) => Ok(Box::new(Reference)),
        (Choice::Cpu | Choice::Reference, Some(adapter)) => Err(Error::Setting {
            name: "adapter",
            got: adapter.to_owned(),
            expected: "no adapter with the backends cpu and reference",
        }),
        (Choice::Gpu, _) | (Choice::Auto, Some(_)) => gpu(adapter, prepare),
        (Choice::Auto, None) => automatic(prepare),
    }
}

#[cfg(feature = "gpu")]
fn gpu(adapter: Option<&str>, prepare: impl FnOnce(Gpu) -> Result<Gpu>) -> Result<Box<dyn Backend>> {
    Ok(Box::new(prepare(Gpu::open(adapter)?)?))
}

/// The CPU, or a hardware GPU where that is faster although the batch has to be shipped there and back.
#[cfg(feature = "gpu")]
fn automatic(prepare: impl FnOnce(Gpu) -> Result<Gpu>) -> Result<Box<dyn Backend>> {
    let cpu = Cpu::new()?;
    let why = match Gpu::open(None).and_then(prepare) {
        Ok(gpu) => match Contest::of(&cpu, &gpu) {
            Ok(contest) if contest.second_wins() => return Ok(Box::new(gpu.because(contest.why()))),
            Ok(contest) => contest.why(),
            Err(error) => format!("auto: the GPU failed a trial: {error}"),
        },
        Err(Error::NoAdapter { found, .. }) => format!("auto: no hardware GPU, found {found}"),
        Err(error) => format!("auto: the GPU did not open: {error}"),
    };
    Ok(Box::new(cpu.because(why)))
}

/// What a build without the feature has none of.
#[cfg(not(feature = "gpu"))]
enum Gpu {}

#[cfg(not(feature = "gpu"))]
fn gpu(_: Option<&str>, _: impl FnOnce(Gpu) -> Result<Gpu>) -> Result<Box<dyn Backend>> {
    Err(Error::NoAdapter {
        wanted: "a build with the feature `gpu`".into(),
        found: "a build without GPU support".into(),
    })
}

#[cfg(not(feature = "gpu"))]
fn automatic(_: impl FnOnce(Gpu) -> Result<Gpu>) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Cpu::new()?.because("auto: built without GPU support".into())))
}

/// Rows and params of the batch that backends are tried on: 16 MiB, beyond most caches, and a moment's work.
#[cfg(feature = "gpu")]
const TRIAL: (usize, usize) = (64, 1 << 16);

/// Runs that the best is taken of, behind one that warms up.
#[cfg(feature = "gpu")]
const TRIALS: usize = 3;

/// Two backends on the same batch in host memory: what each can do, in bytes a second.
#[cfg(feature = "gpu")]
struct Contest {
    names: [String; 2],
    rates: [f64; 2],
}

#[cfg(feature = "gpu")]
impl Contest {
    fn of(first: &dyn Backend, second: &dyn Backend) -> Result<Self> {
        let name = |backend: &dyn Backend| match backend.ran() {
            Ran { adapter: Some(adapter), .. } => adapter,
            Ran { backend, .. } => format!("the {}", backend.name().to_uppercase()),
        };
        Ok(Self { names: [name(first), name(second)], rates: [rate(first)?, rate(second)?] })
    }

    fn second_wins(&self) -> bool {
        self.rates[1] > self.rates[0]
    }

    fn why(&self) -> String {
        let winner = usize::from(self.second_wins());
        let figure = |i: usize| format!("{:.1} GB/s", self.rates[i] / 1e9);
        format!(
            "auto: {} clips a batch in host memory at {}, {} at {}, there and back",
            self.names[winner],
            figure(winner),
            self.names[1 - winner],
            figure(1 - winner)
        )
    }
}

/// Bytes of a batch by the time to clip a fifth of its rows.
#[cfg(feature = "gpu")]
fn rate(backend: &dyn Backend) -> Result<f64> {
    let (clients, params) = TRIAL;
    let layout = Layout::dense(clients, params)?;
    let norm = |row: usize| if row.is_multiple_of(5) { 40.0 } else { 1.0 };
    let original: Vec<f32> =
        (0..clients * params).map(|i| norm(i / params) / (params as f32).sqrt()).collect();
    let mut fastest = f64::INFINITY;
    let mut batch = original.clone();
    for trial in 0..=TRIALS {
        batch.copy_from_slice(&original);
        let start = std::time::Instant::now();
        backend.run(&layout, &mut batch, &Clipping::fixed(2.0))?;
        if trial > 0 {
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
    }
    Ok((original.len() * size_of::<f32>()) as f64 / fastest)
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_faster_of_two_is_taken_and_named_first() {
        let cpu = Cpu::new().unwrap();
        for (first, second) in [(&cpu as &dyn Backend, &Reference as &dyn Backend), (&Reference, &cpu)] {
            let contest = Contest::of(first, second).unwrap();
            assert_eq!(contest.second_wins(), second.ran().backend == BackendKind::Cpu);
            assert!(contest.why().starts_with("auto: the CPU clips"), "{}", contest.why());
        }
    }
}
