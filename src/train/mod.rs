//! Federated training under attack: handwritten digits, hostile clients, clipping through a backend.
//!
//! Twenty clients share 1,437 images and train one model; a fifth of them is hostile. Each round runs
//!
//! ```text
//! global model → local steps (each client) → updates → norms → clip → mean → global model
//! ```
//!
//! and [`ClipAt`] says whether the server clips the updates, or every local step its gradients.
//! [`Training::compare`] shows what the attack does and what clipping saves.
//!
//! # Example
//! ```
//! use byzclip::Cpu;
//! use byzclip::train::Training;
//!
//! let training = Training { rounds: 15, ..Training::default() };
//! let runs = training.compare(&Cpu::new()?, &mut |_, _| {})?;
//! assert!(runs.attack.accuracy < 0.5);
//! assert!(runs.attack_clipped.accuracy > 0.8);
//! # Ok::<(), byzclip::Error>(())
//! ```
//!
//! The images, their licence and their source: `data/README.md`.

mod checked;
mod client;
mod data;
mod model;
mod outcome;
mod random;
mod server;
mod settings;

pub use model::Model;
pub use outcome::{Comparison, NormFigures, Outcome, Progress, Run};
pub use settings::{CLIP_FACTOR_VARIABLE, ClipAt, ClipScope, Training, max_norm_from};
