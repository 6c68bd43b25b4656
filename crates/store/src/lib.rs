//! State that outlives programs and hosts.
//!
//! ```text
//!   get, range ──▶ entries with the revision of their last change
//!   transaction ──▶ conditions all hold? ──yes──▶ all changes, one new revision ──▶ watchers
//!                                        └──no───▶ nothing; the key that did not fit
//! ```
//!
//! A [`Store`] is a map of keys to values. Each transaction that changes it has a revision, higher than all before, and each entry knows
//! the revision that it was changed with last. "If this entry is still at revision 7, then" is all the locking there is: whoever wants to
//! own something changes its entry under that condition, and the revision that results proves it.
//!
//! [`FileStore`] keeps the state of a single host in one file, [`EtcdStore`] that of a cluster in etcd, [`MemoryStore`] that of a simulation in
//! memory. All pass the tests in `testing`, and so does [`Replica`], a copy of another store in this program's memory, for whoever reads much. Where hosts look after each other, a store has [`Leases`] too: entries that vanish when their
//! host has not been heard of for a time. A single host has no use for them; its [`FileStore`] knows none.
//!
//! [`record`] lays typed records over keys and values: JSON with a kind and a version, so that what was written once can always be read.
//!
//! # I/O model
//! Calls block: a transaction returns when it is durable. A store may be used from any thread.
//!
//! # Errors
//! A condition that does not hold is an answer ([`Outcome::Conflict`]), not an error. A [`StoreError`] means that nothing was changed; with
//! [`StoreError::Unknown`] and [`StoreError::File`], a change may be done or not, never half. A file that is damaged is not opened
//! ([`OpenError::Damaged`]), is left as it is, and the error names the backups.

pub mod etcd;
mod file;
mod lease;
mod memory;
pub mod record;
mod replica;
mod table;
#[cfg(test)]
mod testing;
mod transaction;
mod watch;

pub use etcd::{EtcdConfig, EtcdStore};
pub use file::{FileStore, OpenError};
pub use lease::{Lease, LeaseId, Leases};
pub use memory::MemoryStore;
pub use replica::Replica;
pub use transaction::{Change, Condition, Outcome, Transaction};
pub use watch::{Changed, Watch};

use std::time::Duration;

/// The longest key in bytes.
pub const MAX_KEY: usize = 512;
/// The longest value in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;

/// How many conditions, and how many changes, a transaction can have. etcd takes as many.
pub const MAX_OPERATIONS: usize = 128;
/// How many bytes the keys and values of a transaction's changes can have. etcd takes 1.5 MiB, with what is around them.
pub const MAX_TRANSACTION: usize = MAX_VALUE + 256 * 1024;

/// Counts the changes of a store; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The transaction that changed it last.
    pub revision: Revision,
    /// The lease that it ends with.
    pub lease: Option<LeaseId>,
}

/// Entries as they were at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The moment.
    pub revision: Revision,
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
}

/// Keys and values with revisions.
pub trait Store: Send + Sync {
    /// The entry with this key.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All entries whose key begins so.
    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// The first entries whose key begins so and comes behind this one, so many at most. Only they are looked at.
    fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Result<Snapshot, StoreError>;

    /// The newest revision.
    fn revision(&self) -> Result<Revision, StoreError>;

    /// How many bytes it takes on this machine's disks; 0 if that is not known.
    fn file_bytes(&self) -> u64 {
        0
    }

    /// Makes all changes of a transaction if all its conditions hold. What is committed is durable.
    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Changes of entries whose key begins so, made after a revision, in their order. Of several changes of one entry made before the watch
    /// began, the last is told.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
}

/// Why a store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key that cannot be one.
    #[error("a key has 1 to {MAX_KEY} bytes, not {0}")]
    Key(usize),
    /// A value that is too long.
    #[error("the value of '{key}' has {length} bytes, and {MAX_VALUE} at most are stored")]
    Value {
        /// Its key.
        key: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Too much at once.
    #[error("a transaction has at most {MAX_OPERATIONS} conditions and {MAX_OPERATIONS} changes, not {0}: make several")]
    Operations(usize),
    /// Too much at once.
    #[error(
        "the keys and values of a transaction have {0} bytes, and {MAX_TRANSACTION} at most are stored at once: make several"
    )]
    Transaction(usize),
    /// A watch from too long ago, or from a store that was replaced by its backup.
    #[error("changes after revision {after} are not known any more, or not yet (the newest is {newest}): read everything anew")]
    NotKnown {
        /// What was asked for.
        after: Revision,
        /// The newest.
        newest: Revision,
    },
    /// A lease that has ended, or that there never was.
    #[error("the lease {0} has ended: ask for a new one")]
    NoLease(LeaseId),
    /// Whoever watches does not keep up.
    #[error("too many changes waited for whoever watched: read everything anew")]
    Behind,
    /// No member of the store answers. Nothing was done.
    #[error("no member of the store has answered within {waited:?}; at last: {reason}")]
    Unavailable {
        /// How long answers were waited for.
        waited: Duration,
        /// What kept the last one that was asked.
        reason: String,
    },
    /// A change was sent, and nobody has said whether it was done.
    #[error("whether the change was made is not known ({0}): read what it depends on, and decide anew")]
    Unknown(String),
    /// There is no room for changes.
    #[error("the store's quota is used up: delete what is not needed, compact, defragment, and end the alarm")]
    Full,
    /// etcd says no. Nothing was done.
    #[error("etcd refuses: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// An answer that makes no sense.
    #[error("etcd's answer is {0}")]
    Malformed(&'static str),
    /// The engine below.
    #[error("the store's file cannot be used")]
    File(#[from] redb::Error),
}

/// Refuses a key that cannot be one.
fn check_key(key: &str) -> Result<(), StoreError> {
    if (1..=MAX_KEY).contains(&key.len()) { Ok(()) } else { Err(StoreError::Key(key.len())) }
}

/// How much more this process's threads for the store get than others, as `nice` counts.
const NICE: i32 = -10;

/// Lets this thread go before others of the same process and session, and what it starts with it, as far as this user may: whoever holds a
/// lease loses it when the store, or who asks it, has to wait for the processors behind work that can wait.
pub fn go_first() {
    // SAFETY: it takes numbers, and touches no memory.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}
