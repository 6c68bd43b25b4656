//! What the hosts of a cluster decide: who runs which VM, and when that is safe.
//!
//! ```text
//!   store's entries, leases, commits ─┐                       ┌─▶ transactions, renewals
//!   heartbeats of other hosts ────────┤                       ├─▶ the guard's deadline
//!   what became of VMs ───────────────┼─▶ Node::step(now) ────┼─▶ start, stop, save, kill a VM
//!   time ─────────────────────────────┘                       └─▶ heartbeats, notices
//! ```
//!
//! Each host has one [`Node`]. It is told what happens ([`Event`]), and answers what is to be done ([`Action`]); it does no I/O, asks no
//! clock, and uses no chance, so the same events lead to the same actions. The program around it is thin, and can be replaced by a
//! [simulation](simulate).
//!
//! # Parts
//! [`records`] are what hosts share in the store. [`View`] is what one host knows of them. [`placement`] says which host suits a VM and why.
//! [`node`] is the machine that decides: the lease, the VMs of its own host, and, on one host at a time, the coordinator that gives VMs
//! to hosts.
//!
//! # Safety
//! A host runs a VM only while it owns it by a record in the store and has proof on its own clock that its lease has not ended; the record
//! changes hands only when the lease of its holder has ended in the store, or when the holder itself has stopped the VM. `docs/src/cluster.md`
//! has the argument, with the arithmetic of time.
//!
//! # Errors
//! What is stored is taken as data: a record that cannot be read is told ([`Notice::Unreadable`]) and treated as if it were absent where
//! that is safe, and nothing here panics on it. Outcomes that nobody knows are expected, not errors.

pub mod action;
pub mod baseline;
pub mod event;
pub mod ids;
pub mod node;
pub mod notice;
pub mod placement;
pub mod records;
pub mod requests;
pub mod simulate;
pub mod view;

pub use action::Action;
pub use event::{Answer, Beat, Ending, Event, Network};
pub use ids::{HostId, Moment, VmId};
pub use node::{Config, Guarded, Node};
pub use notice::Notice;
pub use view::View;
