//! What a node is told.

use store::{Changed, LeaseId, Revision, Snapshot, Transaction};

use crate::{HostId, VmId};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// All entries below the prefixes of [`records`](crate::records), read so that nothing committed before is missing. Comes first, after
    /// [`Action::Read`](crate::Action::Read), and whenever a watch had to begin anew.
    Entries(Snapshot),
    /// The changes of one transaction, in the order of revisions. What was told before, by entries or changes, is ignored.
    Changed {
        /// The transaction.
        revision: Revision,
        /// What it changed below those prefixes.
        changes: Vec<Changed>,
    },
    /// A lease is granted, and the entry `alive/HOST` was put under it.
    LeaseTaken {
        /// Which attempt.
        attempt: u64,
        /// The lease.
        lease: LeaseId,
    },
    /// No lease was taken: the entry is there, or the store did not answer.
    LeaseRefused {
        /// Which attempt.
        attempt: u64,
        /// Why, in words.
        reason: String,
    },
    /// The lease was kept alive, the [renewal](crate::node::renewal) was committed, **and it is proven that a majority of the store's members
    /// knew the answering leader then**. An answer to a keep-alive alone is no such proof: a leader that was replaced still gives some.
    LeaseRenewed {
        /// Which attempt.
        attempt: u64,
    },
    /// The store says that there is no such lease, or that `alive/HOST` is not what it was: others have ended it.
    LeaseEnded {
        /// The lease.
        lease: LeaseId,
    },
    /// What became of a transaction. There is one answer to each commit, after a time-out at the latest.
    Committed {
        /// Which one.
        commit: u64,
        /// What became of it.
        answer: Answer,
    },
    /// A heartbeat came directly from another host.
    Heartbeat {
        /// From this host.
        from: HostId,
        /// Over this network.
        network: Network,
        /// What it says.
        beat: Beat,
    },
    /// A VM on this host runs: its start, or its restoration, is done. Or it goes on, since it could not be stopped or saved.
    VmRunning(VmId),
    /// A VM on this host is not there any more: no process of it is left.
    VmEnded {
        /// The VM.
        vm: VmId,
        /// How it ended.
        ending: Ending,
    },
    /// Files of a VM were copied, or could not be.
    VmCopied {
        /// The VM.
        vm: VmId,
        /// What the transaction that gives the VM away has to change, too: where its files are from then on; and under which conditions these
        /// are what was copied. Or why they could not be copied; nothing is left there then.
        result: Result<Transaction, String>,
    },
    /// What others call the time; told at the start and from time to time. Only policies depend on it, never safety.
    WallClock {
        /// Seconds since 1970.
        unix_s: u64,
    },
    /// The moment that [`Node::wake_at`](crate::Node::wake_at) named has come. May come at any time.
    Timer,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, with this revision.
    Done(Revision),
    /// A condition did not hold; nothing was changed.
    Conflict {
        /// The key that the condition is about.
        key: String,
    },
    /// Nobody knows: it may be done, not done, or be done later.
    Unknown,
}

/// One of the two networks over which hosts hear of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The one that the store is reached over.
    First,
    /// The other one.
    Second,
}

impl Network {
    /// Both.
    pub const ALL: [Network; 2] = [Network::First, Network::Second];
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Network::First => "the first network",
            Network::Second => "the second network",
        })
    }
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether its sender holds a lease.
    pub leased: bool,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its guest powered it off.
    PoweredOff,
    /// It was stopped as was asked for.
    Stopped,
    /// Its memory is saved where the next host finds it.
    Saved,
    /// It could not be saved; it was stopped, and its memory is lost.
    SaveFailed(String),
    /// It did not start.
    StartFailed(String),
    /// It ended by itself, and not well.
    Crashed(String),
    /// It was killed, by this node or by the guard.
    Killed,
}
