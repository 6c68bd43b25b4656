//! A store in memory, in virtual time, for simulations and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::lease::whole_seconds;
use crate::table::{Held, Table};
use crate::{
    Change, Changed, Condition, Entry, Lease, LeaseId, Leases, Outcome, Revision, Snapshot, Store, StoreError, Transaction,
    Watch, check_key,
};

/// A store in memory. Its clones share one content; the watches end with the last of them.
///
/// Nothing in it depends on a clock or on chance: the same calls have the same answers. Time passes only by
/// [`advance`](MemoryStore::advance), which ends the leases whose time has come.
///
/// ```
/// # use std::time::Duration;
/// # use store::{Leases, MemoryStore, Revision, Store, Transaction};
/// let store = MemoryStore::new();
/// let lease = store.grant(Duration::from_secs(10)).unwrap();
/// store.commit(&Transaction::new().put_under("hosts/h1", b"up", lease.id)).unwrap();
/// let mut watch = store.watch("hosts/", Revision(1)).unwrap();
/// store.advance(Duration::from_secs(9));
/// assert!(store.get("hosts/h1").unwrap().is_some() && watch.try_next().is_none());
/// store.advance(Duration::from_secs(10));
/// assert_eq!(watch.try_next().unwrap().value, None);
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Since the store began.
    now: Duration,
    table: Table,
    leases: BTreeMap<LeaseId, Granted>,
    /// How many there ever were.
    leases_granted: i64,
}

struct Granted {
    ttl: Duration,
    ends: Duration,
    keys: BTreeSet<String>,
}

impl MemoryStore {
    /// An empty store, at the beginning of time.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since the store began.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// The moment at which the next lease ends if nobody keeps it alive.
    pub fn next_end(&self) -> Option<Duration> {
        self.lock().next_end().map(|(ends, _)| ends)
    }

    /// Lets time pass until a moment, and ends the leases whose time comes before or with it, in the order of their ends. Does nothing if
    /// the moment has passed.
    pub fn advance(&self, to: Duration) {
        let mut inner = self.lock();
        while let Some((ends, lease)) = inner.next_end().filter(|(ends, _)| *ends <= to) {
            inner.now = ends;
            inner.end(lease);
        }
        inner.now = inner.now.max(to);
    }

    /// Forgets the changes up to a revision: no watch can begin with them any more.
    pub fn compact(&self, up_to: Revision) {
        self.lock().table.forget(up_to);
    }
}

impl Inner {
    fn next_end(&self) -> Option<(Duration, LeaseId)> {
        self.leases.iter().map(|(id, granted)| (granted.ends, *id)).min()
    }

    /// Ends a lease that there is.
    fn end(&mut self, lease: LeaseId) {
        let keys = self.leases.get(&lease).map(|granted| granted.keys.clone()).unwrap_or_default();
        self.apply(keys.into_iter().map(Change::Delete).collect::<Vec<_>>().iter());
        self.leases.remove(&lease);
    }

    fn conflict(&self, conditions: &[Condition]) -> Option<Outcome> {
        conditions.iter().find_map(|condition| {
            let key = condition.key();
            let found = self.table.revision_of(key);
            (!condition.holds(found)).then(|| Outcome::Conflict { key: key.into(), found })
        })
    }

    /// Makes changes of different keys with one revision, and tells of them.
    fn apply<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) -> Revision {
        let revision = Revision(self.table.revision.0 + 1);
        let mut changed = Vec::new();
        for change in changes {
            let (key, value) = match change {
                Change::Put { key, value, lease } => (key, Some((value, *lease))),
                Change::Delete(key) => (key, None),
            };
            let held = value.map(|(value, lease)| Held { value: value.clone(), revision, lease });
            let before = self.table.set(key, held);
            if before.is_none() && value.is_none() {
                continue;
            }
            if let Some(granted) = before.and_then(|held| held.lease).and_then(|lease| self.leases.get_mut(&lease)) {
                granted.keys.remove(key);
            }
            if let Some(granted) = value.and_then(|(_, lease)| lease).and_then(|lease| self.leases.get_mut(&lease)) {
                granted.keys.insert(key.clone());
            }
            changed.push(Changed { key: key.clone(), value: value.map(|(value, _)| value.clone()), revision });
        }
        self.table.tell(changed);
        self.table.revision
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        Ok(self.lock().table.get(key))
    }

    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        Ok(self.lock().table.range(prefix))
    }

    fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Result<Snapshot, StoreError> {
        Ok(self.lock().table.part(prefix, behind, limit))
    }

    fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.lock().table.revision)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let mut inner = self.lock();
        if let Some(conflict) = inner.conflict(&transaction.conditions) {
            return Ok(conflict);
        }
        let changes = transaction.last_changes();
        if let Some(lease) = changes.iter().filter_map(|change| change.lease()).find(|lease| !inner.leases.contains_key(lease)) {
            return Err(StoreError::NoLease(lease));
        }
        Ok(Outcome::Committed(inner.apply(changes.into_iter())))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.lock().table.watch(prefix, after)
    }
}

impl Leases for MemoryStore {
    fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let mut inner = self.lock();
        inner.leases_granted += 1;
        let (id, ttl) = (LeaseId(inner.leases_granted), Duration::from_secs(whole_seconds(ttl)));
        let ends = inner.now.saturating_add(ttl);
        inner.leases.insert(id, Granted { ttl, ends, keys: BTreeSet::new() });
        Ok(Lease { id, ttl })
    }

    fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let mut inner = self.lock();
        let now = inner.now;
        let granted = inner.leases.get_mut(&lease).ok_or(StoreError::NoLease(lease))?;
        granted.ends = now.saturating_add(granted.ttl);
        Ok(granted.ttl)
    }

    fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if !inner.leases.contains_key(&lease) {
            return Err(StoreError::NoLease(lease));
        }
        inner.end(lease);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::MEMORY;

    const SECOND: Duration = Duration::from_secs(1);

    fn put(store: &MemoryStore, key: &str, lease: Option<Lease>) {
        let transaction = match lease {
            Some(lease) => Transaction::new().put_under(key, "", lease.id),
            None => Transaction::new().put(key, ""),
        };
        assert!(matches!(store.commit(&transaction).unwrap(), Outcome::Committed(_)));
    }

    fn drain(watch: &mut Watch) -> Vec<(String, bool, u64)> {
        std::iter::from_fn(|| watch.try_next()).map(|change| (change.key, change.value.is_some(), change.revision.0)).collect()
    }

    #[test]
    fn leases_end_in_the_order_of_their_ends_each_with_one_revision() {
        let store = MemoryStore::new();
        let (long, short) = (store.grant(SECOND * 9).unwrap(), store.grant(SECOND * 4).unwrap());
        put(&store, "a", Some(long));
        put(&store, "b", Some(short));
        put(&store, "c", Some(short));
        let mut watch = store.watch("", Revision(3)).unwrap();
        assert_eq!(store.next_end(), Some(SECOND * 4));
        store.advance(SECOND * 60);
        assert_eq!(drain(&mut watch), [("b".into(), false, 4), ("c".into(), false, 4), ("a".into(), false, 5)]);
        assert_eq!((store.now(), store.next_end()), (SECOND * 60, None));
    }

    #[test]
    fn a_lease_lives_for_its_ttl_after_each_keep_alive_and_ends_at_that_moment() {
        let store = MemoryStore::new();
        let lease = store.grant(Duration::from_millis(4100)).unwrap();
        assert_eq!(lease.ttl, SECOND * 5);
        put(&store, "a", Some(lease));
        for _ in 0..10 {
            store.advance(store.now() + SECOND * 4);
            assert_eq!(store.keep_alive(lease.id).unwrap(), SECOND * 5);
        }
        store.advance(SECOND * 45 - Duration::from_nanos(1));
        assert!(store.get("a").unwrap().is_some());
        store.advance(SECOND * 45);
        assert!(store.get("a").unwrap().is_none());
        assert!(matches!(store.keep_alive(lease.id), Err(StoreError::NoLease(id)) if id == lease.id));
        // Back in time is nowhere.
        store.advance(SECOND);
        assert_eq!(store.now(), SECOND * 45);
    }

    #[test]
    fn the_oldest_changes_are_forgotten_and_no_revision_by_half() {
        let store = MemoryStore::new();
        let pair = Transaction::new().put("a", "").put("b", "");
        for _ in 0..=MEMORY / 2 {
            store.commit(&pair).unwrap();
        }
        let newest = store.range("").unwrap().revision;
        assert!(matches!(store.watch("", Revision(0)), Err(StoreError::NotKnown { .. })));
        let told = drain(&mut store.watch("", Revision(1)).unwrap());
        assert_eq!((told.len(), told.last().unwrap().2), (MEMORY, newest.0));
    }

    #[test]
    fn watches_end_with_the_last_clone() {
        let store = MemoryStore::new();
        let clone = store.clone();
        let mut watch = store.watch("", Revision(0)).unwrap();
        drop(store);
        put(&clone, "a", None);
        drop(clone);
        assert_eq!(watch.next_change().unwrap().key, "a");
        assert_eq!(watch.next_change(), None);
    }
}
