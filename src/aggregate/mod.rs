//! After the threshold: one row from many.
//!
//! An aggregate reads the unclipped batch and the decisions of the threshold stage, and clips on the way:
//! clipped rows are never written.

mod mean;
mod mean_sum;

pub(crate) use mean::{Divisor, ExactMean, check_mean, check_mean_half, clipped, counts};
pub use mean::{Weights, mean};
pub use mean_sum::MeanSum;
