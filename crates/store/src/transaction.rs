//! Changes under conditions.

use std::collections::HashSet;

use crate::{LeaseId, MAX_OPERATIONS, MAX_TRANSACTION, MAX_VALUE, Revision, StoreError, check_key};

/// What must hold for a transaction to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no entry with this key.
    Absent(String),
    /// The entry with this key was changed last with this revision.
    Unchanged(String, Revision),
}

impl Condition {
    /// The key that it is about.
    pub fn key(&self) -> &str {
        let (Condition::Absent(key) | Condition::Unchanged(key, _)) = self;
        key
    }

    /// Whether it holds for what was found at its key.
    pub(crate) fn holds(&self, found: Option<Revision>) -> bool {
        match self {
            Condition::Absent(_) => found.is_none(),
            Condition::Unchanged(_, revision) => found == Some(*revision),
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This key has this value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The lease that the entry ends with.
        lease: Option<LeaseId>,
    },
    /// There is no entry with this key.
    Delete(String),
}

impl Change {
    /// The key that it is about.
    pub fn key(&self) -> &str {
        let (Change::Put { key, .. } | Change::Delete(key)) = self;
        key
    }

    pub(crate) fn lease(&self) -> Option<LeaseId> {
        if let Change::Put { lease, .. } = self { *lease } else { None }
    }
}

/// Changes that are all done or not at all.
///
/// ```
/// # use store::{FileStore, Outcome, Store, Transaction};
/// # let directory = tempfile::tempdir().unwrap();
/// # let store = FileStore::open(&directory.path().join("state")).unwrap();
/// let take = Transaction::new().absent("owner").put("owner", b"h1");
/// let Outcome::Committed(revision) = store.commit(&take).unwrap() else { panic!("nobody else was there") };
/// // Whoever comes later finds it taken; the owner can give it back.
/// assert!(matches!(store.commit(&take).unwrap(), Outcome::Conflict { .. }));
/// store.commit(&Transaction::new().unchanged("owner", revision).delete("owner")).unwrap();
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) changes: Vec<Change>,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All changes are made, and durable. This is their revision; the newest one that there was if nothing had to be changed.
    Committed(Revision),
    /// A condition does not hold; nothing was changed.
    Conflict {
        /// The key that the condition is about.
        key: String,
        /// The revision of its entry; `None` if there is none.
        found: Option<Revision>,
    },
}

impl Transaction {
    /// Without conditions and changes.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Only if there is no entry with this key.
    #[must_use]
    pub fn absent(mut self, key: impl Into<String>) -> Transaction {
        self.conditions.push(Condition::Absent(key.into()));
        self
    }

    /// Only if the entry with this key was changed last with this revision.
    #[must_use]
    pub fn unchanged(mut self, key: impl Into<String>, revision: Revision) -> Transaction {
        self.conditions.push(Condition::Unchanged(key.into(), revision));
        self
    }

    /// Gives a key a value; its entry is under no lease then. Of several changes of one key, the last counts.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Transaction {
        self.changes.push(Change::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Gives a key a value, until a lease ends.
    #[must_use]
    pub fn put_under(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Transaction {
        self.changes.push(Change::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Takes an entry away, if there is one.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Transaction {
        self.changes.push(Change::Delete(key.into()));
        self
    }

    /// Does what another one does, too, under the conditions of both.
    #[must_use]
    pub fn and(mut self, other: Transaction) -> Transaction {
        self.conditions.extend(other.conditions);
        self.changes.extend(other.changes);
        self
    }

    /// What must hold.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// What is changed.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Refuses what no store takes.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let operations = self.conditions.len().max(self.changes.len());
        if operations > MAX_OPERATIONS {
            return Err(StoreError::Operations(operations));
        }
        self.conditions.iter().try_for_each(|condition| check_key(condition.key()))?;
        let mut bytes = 0;
        for change in &self.changes {
            check_key(change.key())?;
            bytes += change.key().len();
            if let Change::Put { key, value, .. } = change {
                if value.len() > MAX_VALUE {
                    return Err(StoreError::Value { key: key.clone(), length: value.len() });
                }
                bytes += value.len();
            }
        }
        if bytes > MAX_TRANSACTION { Err(StoreError::Transaction(bytes)) } else { Ok(()) }
    }

    /// The changes that count: the last of each key, in their order.
    pub(crate) fn last_changes(&self) -> Vec<&Change> {
        let mut seen = HashSet::new();
        let mut last: Vec<&Change> = self.changes.iter().rev().filter(|change| seen.insert(change.key())).collect();
        last.reverse();
        last
    }
}
