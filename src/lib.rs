//! Bounds what one client can do to a federated model: L2 norms of a batch of client updates, and
//! scaling of the ones above a bound λ, in place: `g' = min(1, λ/‖g‖) · g`.
//!
//! On any GPU that wgpu reaches or on the CPU, with the same bits everywhere, norms that are
//! correctly rounded at any length and magnitude, a bound that provably holds, and hostile input
//! (NaN, Inf, 1e38, 1e-30) that cannot poison anything.
//!
//! The data takes this way, and the modules stand in its order:
//!
//! | stage | what | module | shader |
//! |---|---|---|---|
//! | | rows = clients, columns = parameters, segments = layers | [`batch`] | |
//! | norms | one norm per row or segment | [`norms`] | `norms.wgsl`, `exact.wgsl` |
//! | threshold | a bound, factor and status per row or segment | [`threshold`] | `threshold.wgsl` |
//! | clip | rows whose factor is 1 are not written at all | [`clip`] | `clip.wgsl` |
//! | mean | instead of clip: the weighted mean of the clipped rows, nothing written | [`aggregate`] | `mean.wgsl` |
//! | | norms, bounds, factors, statuses | [`report`] | |
//!
//! Elements are `f32`, or stored as f16 or bf16: [`half`].
//!
//! # Example
//! ```
//! use byzclip::{Backend, Clipping, Cpu, Layout, Status};
//!
//! // Two clients with three parameters each; the second is hostile.
//! let mut updates = vec![0.5, -0.5, 0.5, 90.0, -120.0, 0.0];
//! let layout = Layout::dense(2, 3)?;
//!
//! let report = Cpu::new()?.run(&layout, &mut updates, &Clipping::fixed(2.0))?;
//!
//! assert_eq!(report.rows[1].norm, 150.0);
//! assert_eq!(report.rows[1].status, Status::Clipped);
//! assert_eq!(&updates[..3], &[0.5, -0.5, 0.5]);
//! assert!(updates[3].hypot(updates[4]) <= 2.0);
//! # Ok::<(), byzclip::Error>(())
//! ```
//!
//! # Features
//! - `gpu` (default): the wgpu backend, `backend::gpu`.
//! - `train`: the federated training loop under attack.
//! - `cli` (default): the `byzclip` command; brings `train`.
//! - `trusted`: shaders without wgpu's own checks, which calibrations may choose; takes `unsafe` code.

pub mod aggregate;
pub mod attack;
pub mod backend;
pub mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod bench;
pub mod clip;
pub mod error;
pub mod half;
pub mod norms;
pub mod numerics;
mod pool;
pub mod report;
pub mod threshold;
#[cfg(feature = "train")]
pub mod train;

pub use aggregate::{MeanSum, Weights};
pub use attack::AdversaryMode;
#[cfg(feature = "gpu")]
pub use backend::Gpu;
pub use backend::{Backend, Cpu, Reference};
pub use batch::{Granularity, Layout};
pub use clip::{Clipping, NonFinite, Scope, Status};
pub use error::{Error, Result};
pub use half::Half;
pub use norms::{Norm, NormClass, NormSum, Norms};
pub use report::{BackendKind, Ran, Report, RowReport, SegmentReport, Strategy};
pub use threshold::{Adaptive, Decision, State, Threshold};
#[cfg(feature = "gpu")]
pub use wgpu;

/// The examples of the README run as doctests.
#[cfg(all(doctest, feature = "gpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
