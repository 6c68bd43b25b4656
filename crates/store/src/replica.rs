//! A copy of another store in memory.
//!
//! ```text
//!   get, range, watch ◀── the copy ◀── one thread ◀── watch of all keys ── the other store
//!   commit ───────────────────────────────────────────────────────────────▶
//!            answers when the copy has it, too
//! ```
//!
//! What is read costs no way over the network, and can be read while the other store does not answer. It may be a moment old; whoever commits
//! something reads it, and what was there before it. Safe is only what is committed under a condition: that is decided by the other store.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use crate::table::{Held, Table};
use crate::{Changed, Entry, Outcome, Revision, Snapshot, Store, StoreError, Transaction, Watch, check_key};

/// How long a commit waits for the copy. It is done in any case; who reads after that may find what was before.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Between two tries to read a store that does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// A copy of another store. Its thread ends some time after it was dropped.
pub struct Replica<S> {
    remote: Arc<S>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    grown: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the copy is as it is to be; not for ever.
    fn wait(&self, is_so: impl Fn(&Table) -> bool) {
        drop(self.grown.wait_timeout_while(self.lock(), CATCH_UP, |table| !is_so(table)));
    }
}

impl<S: Store + 'static> Replica<S> {
    /// Copies a store.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn new(remote: Arc<S>) -> Result<Replica<S>, StoreError> {
        let (snapshot, watch) = begin(&*remote)?;
        let shared = Arc::new(Shared { table: Mutex::new(Table::of(snapshot)), grown: Condvar::new() });
        let follower = (remote.clone(), Arc::downgrade(&shared));
        thread::spawn(move || follow(&*follower.0, &follower.1, watch));
        Ok(Replica { remote, shared })
    }

    /// All entries whose keys begin in one of these ways, so that nothing is missing that was committed before this was called.
    ///
    /// # Errors
    /// When the other store does not answer, or the copy does not hear of what it has.
    pub fn current(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        let newest = self.remote.revision()?;
        self.shared.wait(|table| table.revision >= newest);
        let table = self.shared.lock();
        if table.revision < newest {
            let reason = format!("the copy is at revision {}, and {newest} is the newest", table.revision);
            return Err(StoreError::Unavailable { waited: CATCH_UP, reason });
        }
        let entries = prefixes.iter().flat_map(|prefix| table.range(prefix).entries).collect();
        Ok(Snapshot { revision: table.revision, entries })
    }

    #[cfg(test)]
    pub(crate) fn forget(&self, up_to: Revision) {
        self.shared.lock().forget(up_to);
    }

    /// The store that this is a copy of.
    pub fn remote(&self) -> &Arc<S> {
        &self.remote
    }
}

fn begin(remote: &dyn Store) -> Result<(Snapshot, Watch), StoreError> {
    let snapshot = remote.range("")?;
    let watch = remote.watch("", snapshot.revision)?;
    Ok((snapshot, watch))
}

fn follow(remote: &dyn Store, shared: &Weak<Shared>, mut watch: Watch) {
    loop {
        while let Some((revision, changes)) = watch.next_transaction() {
            let Some(shared) = shared.upgrade() else { return };
            apply(&shared, revision, changes);
        }
        tracing::debug!("the watch of the store has ended ({:?}): all is read anew", watch.ended());
        // It has missed something, or the store is about to be closed.
        watch = loop {
            let Some(shared) = shared.upgrade() else { return };
            match begin(remote) {
                Ok((snapshot, watch)) => {
                    catch_up(&shared, snapshot);
                    break watch;
                }
                Err(error) => tracing::debug!("the store cannot be read: {error}"),
            }
            drop(shared);
            thread::sleep(PAUSE);
        };
    }
}

fn apply(shared: &Shared, revision: Revision, changes: Vec<Changed>) {
    let mut table = shared.lock();
    if revision <= table.revision {
        return;
    }
    for change in &changes {
        // A watch does not tell of leases; nobody reads of them here.
        let held = change.value.clone().map(|value| Held { value, revision, lease: None });
        table.set(&change.key, held);
    }
    table.tell(changes);
    shared.grown.notify_all();
}

/// Makes the copy what was read, and tells watchers of the difference, as if it had been made by the transactions that are known of it.
fn catch_up(shared: &Shared, snapshot: Snapshot) {
    let mut changes: Vec<Changed> = Vec::new();
    let mut table = shared.lock();
    for entry in &snapshot.entries {
        if table.revision_of(&entry.key) != Some(entry.revision) {
            changes.push(Changed { key: entry.key.clone(), value: Some(entry.value.clone()), revision: entry.revision });
        }
    }
    let is_there = |key: &str| snapshot.entries.binary_search_by(|entry| entry.key.as_str().cmp(key)).is_ok();
    for entry in table.range("").entries.into_iter().filter(|entry| !is_there(&entry.key)) {
        changes.push(Changed { key: entry.key, value: None, revision: snapshot.revision });
    }
    changes.sort_by_key(|change| change.revision);
    for together in changes.chunk_by(|one, other| one.revision == other.revision) {
        for change in together {
            let held = change.value.clone().map(|value| Held { value, revision: change.revision, lease: None });
            table.set(&change.key, held);
        }
        table.tell(together.to_vec());
    }
    table.revision = table.revision.max(snapshot.revision);
    shared.grown.notify_all();
}

impl<S: Store + 'static> Store for Replica<S> {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        Ok(self.shared.lock().get(key))
    }

    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        Ok(self.shared.lock().range(prefix))
    }

    fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Result<Snapshot, StoreError> {
        Ok(self.shared.lock().part(prefix, behind, limit))
    }

    fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.lock().revision)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let outcome = self.remote.commit(transaction)?;
        match &outcome {
            Outcome::Committed(revision) => self.shared.wait(|table| table.revision >= *revision),
            // Whoever was refused looks what is there, and decides anew.
            Outcome::Conflict { key, found } => self.shared.wait(|table| match found {
                Some(revision) => table.revision >= *revision,
                None => table.revision_of(key).is_none(),
            }),
        }
        Ok(outcome)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.shared.lock().watch(prefix, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    #[test]
    fn a_copy_that_has_missed_changes_tells_of_the_difference() {
        let remote = Arc::new(MemoryStore::new());
        let put = |key: &str, value: &str| remote.commit(&Transaction::new().put(key, value)).unwrap();
        put("a", "1");
        put("b", "1");
        let shared = Shared { table: Mutex::new(Table::of(remote.range("").unwrap())), grown: Condvar::new() };
        let mut watch = shared.lock().watch("", Revision(2)).unwrap();
        put("b", "2");
        remote.commit(&Transaction::new().delete("a").put("c", "1")).unwrap();
        catch_up(&shared, remote.range("").unwrap());
        assert_eq!(shared.lock().range(""), remote.range("").unwrap());
        let told: Vec<(u64, Vec<(String, bool)>)> = watch
            .try_transactions()
            .into_iter()
            .map(|(revision, changes)| {
                (revision.0, changes.into_iter().map(|change| (change.key, change.value.is_some())).collect())
            })
            .collect();
        assert_eq!(told, [(3, vec![("b".into(), true)]), (4, vec![("c".into(), true), ("a".into(), false)])]);
        // What was told late is told no second time.
        apply(&shared, Revision(4), vec![Changed { key: "c".into(), value: None, revision: Revision(4) }]);
        assert_eq!(watch.try_next(), None);
    }

    #[test]
    fn a_copy_can_be_read_without_the_other_store() {
        struct Deaf(MemoryStore, std::sync::atomic::AtomicBool);
        impl Deaf {
            fn heard(&self) -> Result<(), StoreError> {
                let deaf = self.1.load(std::sync::atomic::Ordering::Relaxed);
                let unavailable = || StoreError::Unavailable { waited: Duration::ZERO, reason: "it is deaf".into() };
                if deaf { Err(unavailable()) } else { Ok(()) }
            }
        }
        impl Store for Deaf {
            fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
                self.heard().and_then(|()| self.0.get(key))
            }
            fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
                self.heard().and_then(|()| self.0.range(prefix))
            }
            fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Result<Snapshot, StoreError> {
                self.heard().and_then(|()| self.0.part(prefix, behind, limit))
            }
            fn revision(&self) -> Result<Revision, StoreError> {
                self.heard().and_then(|()| self.0.revision())
            }
            fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
                self.heard().and_then(|()| self.0.commit(transaction))
            }
            fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
                self.heard().and_then(|()| self.0.watch(prefix, after))
            }
        }
        let remote = Arc::new(Deaf(MemoryStore::new(), false.into()));
        let replica = Replica::new(remote.clone()).unwrap();
        replica.commit(&Transaction::new().put("a", "1")).unwrap();
        remote.1.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(replica.get("a").unwrap().unwrap().value, b"1");
        assert!(matches!(replica.commit(&Transaction::new().put("a", "2")), Err(StoreError::Unavailable { .. })));
    }

    /// A commit's conditions are about what the other store has, not about the copy.
    #[test]
    fn conditions_are_decided_by_the_other_store() {
        let remote = Arc::new(MemoryStore::new());
        let replica = Replica::new(remote.clone()).unwrap();
        remote.commit(&Transaction::new().put("a", "theirs")).unwrap();
        let taken = replica.commit(&Transaction::new().absent("a").put("a", "ours")).unwrap();
        assert_eq!(taken, Outcome::Conflict { key: "a".into(), found: Some(Revision(1)) });
        // Whoever was refused sees why.
        assert_eq!(replica.get("a").unwrap().unwrap().value, b"theirs");
    }
}
