//! One VM: an actor that owns it, and the monitor's process that is it.
//!
//! ```text
//!  tasks (in order) ─┐                    ┌─▶ monitor: start, requests, kill
//!  cancellations ────┼─▶ Actor::run ──────┼─▶ store: task done, VM on or off, event: one transaction
//!  monitor's events ─┤   (one at a time)  └─▶ Live: what the API shows
//!  its end, deadline ┘
//! ```
//!
//! What is wanted is in the store before anything is done, and each step can be done again. So an actor that begins, after `marud` was
//! started or killed, looks at what is there ([`process::find`]), and does the unfinished task from its start.

mod actor;
mod cgroup;
pub mod checkpoints;
pub mod clone;
pub mod cloud_init;
pub mod config;
pub mod console;
pub mod delete;
pub mod disks;
pub mod edit;
pub(crate) mod ending;
mod export;
pub mod guest;
pub mod import;
mod ledger;
mod live;
pub mod manifest;
pub mod meter;
mod monitor;
pub(crate) mod process;
pub mod resources;
pub mod staging;
pub mod work;

pub use actor::policy;
pub use actor::{Actor, Input, Links, Started};
pub use cgroup::Cgroups;
pub use delete::refuse_task;
pub use ledger::{Capacity, Ledger};
pub use process::{find, list};

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::net::Network;
use crate::peers::Peers;
use crate::records::EndingRecord;
use crate::volumes::Volumes;

/// What all VMs of a host have in common.
#[derive(Debug)]
pub struct Surroundings {
    /// The program that is a VM.
    pub monitor: PathBuf,
    /// Where the directories of running VMs are: `vms/ID` with `control`, `lock` and `log`.
    pub run_directory: PathBuf,
    /// Their control groups.
    pub cgroups: Cgroups,
    /// What running VMs have of the host.
    pub ledger: Ledger,
    /// What each has used.
    pub meters: meter::Meters,
    /// What their network cards are attached to.
    pub network: Network,
    /// Where their files are.
    pub volumes: Volumes,
    /// How many VMs may be started at once: as many as there are processors for it. The others wait.
    pub starts: Arc<Semaphore>,
    /// Held while it is decided whose a file is, and stored.
    pub files: Mutex<()>,
    /// How other hosts of the cluster are reached, if this is one of one.
    pub peers: Option<Peers>,
    /// The page that says until when VMs may run.
    pub lease: PathBuf,
    /// Whether monitors are left unconfined. For finding errors only.
    pub unconfined: bool,
}

impl Surroundings {
    /// Whose a file is does not change while this is held.
    pub fn hold_files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what an earlier VM with this id left, which does not run.
pub fn remove_traces(surroundings: &Surroundings, vm: Uuid) {
    if let Err(error) = surroundings.cgroups.remove(vm) {
        tracing::warn!(%vm, "its control group stays: {error}");
    }
    surroundings.ledger.release(vm);
    surroundings.ledger.share(&surroundings.cgroups);
    if let Err(error) = process::RunFiles::of(surroundings, vm).remove() {
        tracing::warn!(%vm, "its files of the run stay: {error}");
    }
}

/// What a VM does, as far as it is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// For people.
    pub state: api::VmState,
    /// The monitor.
    pub pid: Option<u32>,
    /// How it ended the last time, if that is newer than what is stored: a VM that is off says why, also while that is being written.
    pub last_end: Option<EndingRecord>,
}
