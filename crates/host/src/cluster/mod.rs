//! A host as one of a cluster.
//!
//! ```text
//!  create, join, leave, restore ──▶ forming.json ──▶ marud starts anew ──▶ cluster.json: who this host is
//!                                                                             │
//!           etcd ◀── members::Keeper: starts, restarts, makes it anew ◀───────┤
//!                                ▲                                            │
//!   members/HOST ──▶ members::Follower: where etcd runs ◀── the coordinator ──┘
//! ```
//! [`forming`] is how hosts become members and cease to be; [`members`] is where the store is.
//!
//! ```text
//!   etcd ◀──▶ Replica ──▶ State: records of all hosts, read here
//!               │ watch
//!               ▼
//!   heartbeats ─▶ runtime: cluster::Node, on a thread of its own ─▶ guard: until when VMs may run
//!               ▲                                              ├──▶ leases, transactions
//!               └──────────── machines: keepers of VMs ◀───────┘
//! ```
//! What is to be done with VMs is decided by the crate `cluster`; here it is done. Tasks are records as on a single host: that of a VM is
//! done by the host that `vms/ID` names. A VM runs because `placements/VM` says so; who starts it is decided by `owners/VM`.

pub mod authority;
pub mod backup;
pub mod beat;
pub mod forming;
pub mod guard;
pub mod handover;
pub mod identity;
pub mod machines;
pub mod members;
mod notices;
pub mod placements;
pub mod records;
mod runtime;
pub mod standing;
pub mod token;

pub use runtime::{Parts, Runtime};

use std::sync::Arc;
use std::sync::mpsc::Sender;

use ::cluster::{Config, Event, Node};
use store::{EtcdStore, Replica};

use crate::host::Host;

/// What the parts of the runtime have in common.
pub struct Shared {
    /// The numbers that hosts agree on, and this host's name.
    pub config: Config,
    /// What the kernel calls this start of the host, if that is known.
    pub boot_id: Option<String>,
    /// The VMs.
    pub host: Arc<Host>,
    /// The store, and its copy.
    pub replica: Arc<Replica<EtcdStore>>,
    inputs: Sender<Input>,
}

/// What the runtime's thread is told.
enum Input {
    Event(Event),
    Ask(Box<dyn FnOnce(&Node) + Send>),
    /// Nothing is decided any more.
    End,
}

impl Shared {
    /// Tells what happened.
    pub fn tell(&self, event: Event) {
        // The thread ends with the program only.
        let _ = self.inputs.send(Input::Event(event));
    }
}
