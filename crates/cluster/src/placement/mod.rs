//! Which host suits a VM, and why.
//!
//! ```text
//!   records ──▶ Inventory (what each host has, has given, and promised) ──judge──▶ a score, or reasons against
//!                                                                       ├─best────▶ the host with the highest score
//!                                                                       ├─explain─▶ all hosts, all reasons, in words
//!                                                                       └─what_if─▶ who goes where if a host fails
//! ```
//!
//! The inventory follows the records entry by entry. Judging one VM looks at each host once, and allocates nothing unless it is to explain.

mod bits;
mod inventory;
mod judge;
mod what_if;

#[cfg(test)]
mod tests;

pub use inventory::{Closed, Inventory, Needs, Slot};
pub use judge::{History, Reason, Verdict, Way};
pub use what_if::{Fate, Outlook};
