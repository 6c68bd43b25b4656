//! A store in one file, for a single host.
//!
//! ```text
//!  DIRECTORY/store.redb       the state
//!            store.lock       held by the process that uses it
//!            backup/          the newest copies: TIME-REVISION.redb
//! ```
//!
//! Opening copies the file, checks every page of the copy, and keeps it as a backup; only then is the file itself opened. So a file that is
//! damaged is never changed, not even by the repair that the engine does after a crash, and each start leaves a backup that is known
//! to be whole.

mod backup;
mod open;
#[cfg(test)]
mod tests;

pub use open::OpenError;

use std::fs::File;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::watch::Watchers;
use crate::{Change, Changed, Condition, Entry, Outcome, Revision, Snapshot, Store, StoreError, Transaction, Watch, check_key};

/// Key to revision and value.
const ENTRIES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("entries");
/// Revision to a key that was deleted then, for watches that begin later.
const DELETED: TableDefinition<(u64, &str), ()> = TableDefinition::new("deleted");
/// Numbers about the whole.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
/// Deletions up to this revision are forgotten.
const FORGOTTEN: &str = "forgotten";
/// The form of the tables.
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
/// How many revisions deletions are remembered for.
const MEMORY: u64 = 100_000;

/// A store in one file.
pub struct FileStore {
    directory: PathBuf,
    database: Database,
    /// Those who hear of changes. Held during a commit, so that all hear of them in their order.
    watchers: Mutex<Watchers>,
    /// Held until the store is closed.
    _lock: File,
}

/// All of redb's errors are one to us: it says what it is.
fn file(error: impl Into<redb::Error>) -> StoreError {
    StoreError::File(error.into())
}

/// The first key behind all that begin with the prefix is not needed: keys are in order, so the first that does not begin so ends it.
fn scan(
    table: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    prefix: &str,
    behind: Option<&str>,
    limit: usize,
    mut take: impl FnMut(&str, u64, &[u8]),
) -> Result<(), StoreError> {
    let start = match behind.filter(|behind| *behind >= prefix) {
        Some(behind) => Bound::Excluded(behind),
        None => Bound::Included(prefix),
    };
    for item in table.range::<&str>((start, Bound::Unbounded)).map_err(file)?.take(limit) {
        let (key, value) = item.map_err(file)?;
        if !key.value().starts_with(prefix) {
            break;
        }
        let (revision, bytes) = value.value();
        take(key.value(), revision, bytes);
    }
    Ok(())
}

impl FileStore {
    #[cfg(test)]
    pub(crate) fn forget(&self, up_to: Revision) {
        let writing = self.database.begin_write().unwrap();
        writing.open_table(META).unwrap().insert(FORGOTTEN, up_to.0).unwrap();
        writing.commit().unwrap();
    }

    fn number(&self, name: &str) -> Result<u64, StoreError> {
        let transaction = self.database.begin_read().map_err(file)?;
        let meta = transaction.open_table(META).map_err(file)?;
        Ok(meta.get(name).map_err(file)?.map_or(0, |value| value.value()))
    }

    /// The first condition that does not hold.
    fn conflict(
        entries: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
        conditions: &[Condition],
    ) -> Result<Option<Outcome>, StoreError> {
        for condition in conditions {
            let key = condition.key();
            let found = entries.get(key).map_err(file)?.map(|value| Revision(value.value().0));
            if !condition.holds(found) {
                return Ok(Some(Outcome::Conflict { key: key.into(), found }));
            }
        }
        Ok(None)
    }

    fn apply(writing: &WriteTransaction, transaction: &Transaction) -> Result<(Outcome, Vec<Changed>), StoreError> {
        let mut entries = writing.open_table(ENTRIES).map_err(file)?;
        if let Some(conflict) = Self::conflict(&entries, &transaction.conditions)? {
            return Ok((conflict, Vec::new()));
        }
        let mut meta = writing.open_table(META).map_err(file)?;
        let mut deleted = writing.open_table(DELETED).map_err(file)?;
        let before = meta.get(REVISION).map_err(file)?.map_or(0, |value| value.value());
        let number = before + 1;
        let revision = Revision(number);
        let mut changed = Vec::new();
        for change in transaction.last_changes() {
            match change {
                // There are no leases here.
                Change::Put { lease: Some(lease), .. } => return Err(StoreError::NoLease(*lease)),
                Change::Put { key, value, lease: None } => {
                    entries.insert(key.as_str(), (number, value.as_slice())).map_err(file)?;
                    changed.push(Changed { key: key.clone(), value: Some(value.clone()), revision });
                }
                Change::Delete(key) => {
                    if entries.remove(key.as_str()).map_err(file)?.is_some() {
                        deleted.insert((number, key.as_str()), ()).map_err(file)?;
                        changed.push(Changed { key: key.clone(), value: None, revision });
                    }
                }
            }
        }
        if changed.is_empty() {
            return Ok((Outcome::Committed(Revision(before)), changed));
        }
        meta.insert(REVISION, number).map_err(file)?;
        let forgotten = number.saturating_sub(MEMORY);
        if forgotten > 0 {
            deleted.retain_in(..(forgotten + 1, ""), |_, ()| false).map_err(file)?;
            meta.insert(FORGOTTEN, forgotten).map_err(file)?;
        }
        Ok((Outcome::Committed(revision), changed))
    }

    /// What was changed under a prefix after a revision, in the order of the changes.
    fn changes_after(&self, prefix: &str, after: Revision) -> Result<Vec<Changed>, StoreError> {
        let reading = self.database.begin_read().map_err(file)?;
        let entries = reading.open_table(ENTRIES).map_err(file)?;
        let deleted = reading.open_table(DELETED).map_err(file)?;
        let mut changes = Vec::new();
        scan(&entries, prefix, None, usize::MAX, |key, revision, value| {
            if revision > after.0 {
                changes.push(Changed { key: key.into(), value: Some(value.into()), revision: Revision(revision) });
            }
        })?;
        for item in deleted.range((after.0 + 1, "")..).map_err(file)? {
            let (key, _) = item.map_err(file)?;
            let (revision, key) = key.value();
            // What was made again since is among the entries.
            if key.starts_with(prefix) && entries.get(key).map_err(file)?.is_none() {
                changes.retain(|change: &Changed| change.key != key);
                changes.push(Changed { key: key.into(), value: None, revision: Revision(revision) });
            }
        }
        changes.sort_by_key(|change| change.revision);
        Ok(changes)
    }
}

impl Store for FileStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let reading = self.database.begin_read().map_err(file)?;
        let entries = reading.open_table(ENTRIES).map_err(file)?;
        Ok(entries.get(key).map_err(file)?.map(|value| {
            let (revision, bytes) = value.value();
            Entry { key: key.into(), value: bytes.into(), revision: Revision(revision), lease: None }
        }))
    }

    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.part(prefix, None, usize::MAX)
    }

    fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Result<Snapshot, StoreError> {
        let reading = self.database.begin_read().map_err(file)?;
        let meta = reading.open_table(META).map_err(file)?;
        let revision = Revision(meta.get(REVISION).map_err(file)?.map_or(0, |value| value.value()));
        let mut entries = Vec::new();
        scan(&reading.open_table(ENTRIES).map_err(file)?, prefix, behind, limit, |key, revision, value| {
            entries.push(Entry { key: key.into(), value: value.into(), revision: Revision(revision), lease: None });
        })?;
        Ok(Snapshot { revision, entries })
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(self.directory.join("store.redb")).map_or(0, |metadata| metadata.len())
    }

    fn revision(&self) -> Result<Revision, StoreError> {
        self.number(REVISION).map(Revision)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let writing = self.database.begin_write().map_err(file)?;
        let (outcome, changed) = Self::apply(&writing, transaction)?;
        if changed.is_empty() {
            writing.abort().map_err(file)?;
        } else {
            writing.commit().map_err(file)?;
            watchers.tell(&changed);
        }
        Ok(outcome)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        // No commit may come between what is read and what is heard.
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let (oldest, newest) = (Revision(self.number(FORGOTTEN)?), self.revision()?);
        if after < oldest || after > newest {
            return Err(StoreError::NotKnown { after, newest });
        }
        let earlier = self.changes_after(prefix, after)?;
        Ok(watchers.add(prefix, earlier))
    }
}
