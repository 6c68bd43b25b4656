//! A host as one of a cluster.
//!
//! ```text
//!  create, join, leave, restore ──▶ forming.json ──▶ marud starts anew ──▶ cluster.json: who this host is
//!                                                                             │
//!           etcd ◀── members::Keeper: starts, restarts, makes it anew ◀───────┤
//!                                ▲                                            │
//!   members/HOST ──▶ members::Follower: where etcd runs ◀── the coordinator ──┘
//! ```
//!
//! [`forming`] is how hosts become members and cease to be; [`members`] is where the store is. What the hosts of a cluster decide about
//! VMs is in the crate `cluster`.

pub mod authority;
pub mod backup;
pub mod forming;
pub mod identity;
pub mod members;
pub mod presence;
pub mod records;
pub mod standing;
pub mod token;
