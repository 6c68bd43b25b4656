//! Entries in memory, with the changes that led to them, for stores that keep all there.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use crate::watch::Watchers;
use crate::{Changed, Entry, LeaseId, Revision, Snapshot, StoreError, Watch};

/// How many changes are remembered for watches that begin later.
pub(crate) const MEMORY: usize = 100_000;

#[derive(Default)]
pub(crate) struct Table {
    pub revision: Revision,
    entries: BTreeMap<String, Held>,
    /// In their order.
    history: VecDeque<Changed>,
    /// Changes up to this revision are not in the history any more.
    forgotten: Revision,
    watchers: Watchers,
}

#[derive(Clone)]
pub(crate) struct Held {
    pub value: Vec<u8>,
    pub revision: Revision,
    pub lease: Option<LeaseId>,
}

impl Held {
    fn entry(&self, key: &str) -> Entry {
        Entry { key: key.into(), value: self.value.clone(), revision: self.revision, lease: self.lease }
    }
}

impl Table {
    /// What was there at a moment, and nothing of what was before.
    pub fn of(snapshot: Snapshot) -> Table {
        let held = |entry: Entry| (entry.key, Held { value: entry.value, revision: entry.revision, lease: entry.lease });
        Table {
            revision: snapshot.revision,
            entries: snapshot.entries.into_iter().map(held).collect(),
            forgotten: snapshot.revision,
            ..Table::default()
        }
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|held| held.entry(key))
    }

    /// The revision that an entry was changed with last.
    pub fn revision_of(&self, key: &str) -> Option<Revision> {
        self.entries.get(key).map(|held| held.revision)
    }

    pub fn range(&self, prefix: &str) -> Snapshot {
        let from = self.entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let entries = from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, held)| held.entry(key)).collect();
        Snapshot { revision: self.revision, entries }
    }

    /// The first entries whose key begins so and comes behind this one.
    pub fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Snapshot {
        let start = match behind.filter(|behind| *behind >= prefix) {
            Some(behind) => Bound::Excluded(behind),
            None => Bound::Included(prefix),
        };
        let from = self.entries.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        Snapshot { revision: self.revision, entries: from.take(limit).map(|(key, held)| held.entry(key)).collect() }
    }

    /// Gives a key a value, or none; returns what it had.
    pub fn set(&mut self, key: &str, held: Option<Held>) -> Option<Held> {
        match held {
            Some(held) => self.entries.insert(key.into(), held),
            None => self.entries.remove(key),
        }
    }

    /// Tells watchers of a transaction's changes, which were [`set`](Table::set), and remembers them.
    pub fn tell(&mut self, changed: Vec<Changed>) {
        let Some(last) = changed.last() else { return };
        self.revision = self.revision.max(last.revision);
        self.watchers.tell(&changed);
        self.history.extend(changed);
        if let Some(surplus) = self.history.len().checked_sub(MEMORY + 1) {
            self.forget(self.history[surplus].revision);
        }
    }

    pub fn forget(&mut self, up_to: Revision) {
        let up_to = up_to.min(self.revision);
        self.forgotten = self.forgotten.max(up_to);
        let gone = self.history.partition_point(|change| change.revision <= up_to);
        self.history.drain(..gone);
    }

    pub fn watch(&mut self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (oldest, newest) = (self.forgotten, self.revision);
        if after < oldest || after > newest {
            return Err(StoreError::NotKnown { after, newest });
        }
        let start = self.history.partition_point(|change| change.revision <= after);
        let earlier = self.history.range(start..).filter(|change| change.key.starts_with(prefix)).cloned().collect();
        Ok(self.watchers.add(prefix, earlier))
    }
}
