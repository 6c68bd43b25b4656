//! A cluster in virtual time, with everything that goes wrong.
//!
//! ```text
//!   Machine ── clock that drifts, power, freezes
//!      ├─ daemon: the real Node; crashes, freezes, restarts
//!      ├─ guard: holds the deadline, outlives the daemon; a watchdog behind it
//!      ├─ VMs: write while they run and the deadline has not passed
//!      └─ member of the store
//!   Links ──── two networks; each direction of each cable for itself, losses
//!   Engine ─── the store: linearizable, with leases, reachable through a majority of its members
//!   Checker ── after each step: who writes which VM, and may he
//! ```
//!
//! The same seed is the same run. [`fuzz::run`] makes faults of a seed; a [`Scenario`](scenario::Scenario) is a file that names them, and what
//! it prints can be read and kept.

mod checker;
mod engine;
mod faults;
pub mod fuzz;
mod links;
mod log;
mod machine;
pub mod scenario;
mod world;

#[cfg(test)]
mod tests;

pub use faults::Fault;
pub use world::{Counts, Mutation};
