//! PID 1 of test guests.
fn main() {}
