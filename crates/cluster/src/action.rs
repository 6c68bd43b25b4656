//! What a node wants to be done.

use store::{LeaseId, Revision, Transaction};

use crate::{Beat, HostId, Moment, Notice, VmId};

/// Something to do. None of them waits for another; each is answered by an [`Event`](crate::Event) where its text says so.
#[derive(Clone, Debug)]
pub enum Action {
    /// Read all entries anew, linearizably, and begin watches there. Answered by [`Event::Entries`](crate::Event::Entries); until then the
    /// program goes on trying.
    Read,
    /// Grant a lease and put `alive/HOST` under it if there is no such entry. Answered by [`Event::LeaseTaken`](crate::Event::LeaseTaken) or
    /// [`Event::LeaseRefused`](crate::Event::LeaseRefused).
    TakeLease {
        /// To be named in the answer.
        attempt: u64,
    },
    /// Keep a lease alive, and commit [`renewal`](crate::node::renewal), which proves it. Answered, when both are done, by
    /// [`Event::LeaseRenewed`](crate::Event::LeaseRenewed) or [`Event::LeaseEnded`](crate::Event::LeaseEnded), or not at all.
    RenewLease {
        /// To be named in the answer.
        attempt: u64,
        /// The lease.
        lease: LeaseId,
        /// The revision of `alive/HOST`.
        alive: Revision,
    },
    /// Let the guard hold this deadline: from then on no VM of this host writes or runs. Deadlines only get later, but for a new lease.
    Guard {
        /// The lease that it belongs to.
        lease: LeaseId,
        /// The deadline.
        deadline: Moment,
    },
    /// Commit a transaction. Answered by [`Event::Committed`](crate::Event::Committed).
    Commit {
        /// To be named in the answer.
        commit: u64,
        /// The transaction.
        transaction: Transaction,
    },
    /// Start a VM. Answered by [`Event::VmRunning`](crate::Event::VmRunning) or [`Event::VmEnded`](crate::Event::VmEnded).
    Start {
        /// The VM.
        vm: VmId,
        /// The fencing token: whoever keeps the VM's disks refuses one that is older than another he has seen.
        token: Revision,
        /// Restore its saved memory.
        restore: bool,
        /// It may run on without a lease: neither the guard nor its monitor looks at the deadline.
        bound: bool,
    },
    /// Ask the guest to power off, and stop the VM after its grace. Answered by [`Event::VmEnded`](crate::Event::VmEnded).
    Stop(VmId),
    /// Save the VM's memory where other hosts find it, and stop it. Answered by [`Event::VmEnded`](crate::Event::VmEnded).
    Save(VmId),
    /// Copy the files of a VM that does not run, as far as only this host reaches them, to where another host does. Answered by
    /// [`Event::VmCopied`](crate::Event::VmCopied), or, after a [`Kill`](Action::Kill), by [`Event::VmEnded`](crate::Event::VmEnded) alone.
    Copy {
        /// The VM.
        vm: VmId,
        /// The host.
        to: HostId,
        /// All to this volume there; to volumes of the same names if there is none.
        volume: Option<String>,
    },
    /// What is copied, or was copied and not given away yet, is not needed any more. A copy that is under way is still answered.
    EndCopy(VmId),
    /// Kill the VM's process at once. Answered by [`Event::VmEnded`](crate::Event::VmEnded).
    Kill(VmId),
    /// Send a heartbeat over both networks.
    Beat {
        /// To this host.
        to: HostId,
        /// What it says.
        beat: Beat,
    },
    /// Tell the users.
    Tell(Notice),
}
