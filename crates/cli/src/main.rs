//! The `maru` command.
fn main() {}
