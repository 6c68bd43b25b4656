//! Virtqueues in memory that a VM shares with the switch: the fast path's own code.
//!
//! `virtio-queue` was measured four to eight times slower. What is unsafe is here: [`memory`] gives pointers only to what is mapped, and
//! [`split`] follows rings with them. The other side may write anything at any moment: every number is read once, checked, and then used.

pub mod bus_error;
pub mod memory;
pub mod split;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
