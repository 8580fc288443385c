//! The `byzclip` command.
fn main() {}
