//! Shared by the tests.
pub mod gpu;
