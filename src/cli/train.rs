//! `byzclip train`.
use super::failure::{Failure, Outcome};
#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {}
pub(super) fn run(_args: &Args, _json: bool) -> Result<Outcome, Failure> {
    Ok(Outcome::Success)
}
