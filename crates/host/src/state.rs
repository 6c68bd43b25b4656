//! What is wanted and known, in the store.

use std::sync::Arc;

use store::record::{self, Record, RecordError, Stored};
use store::{FileStore, Outcome, Revision, Store, StoreError, Transaction, Watch};
use uuid::Uuid;

use crate::records::{EventRecord, NameRecord, OnceRecord, Pruned, TaskRecord, VmRecord};

/// Events that are kept.
const EVENTS_KEPT: usize = 10_000;
/// Finished tasks that are kept.
const TASKS_KEPT: usize = 1000;
/// How long a repeated request with an `Idempotency-Key` is recognised.
const ONCE_KEPT: time::Duration = time::Duration::hours(24);
/// Records that one transaction takes away at most: one less than it can change.
const PRUNED_AT_ONCE: usize = store::MAX_OPERATIONS - 1;

/// The store, with its records.
#[derive(Clone)]
pub struct State {
    store: Arc<dyn Store>,
    file: Option<Arc<FileStore>>,
}

/// Why the state cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in it.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A VM or a task that is not there any more.
    #[error("{0} is not there any more")]
    Gone(String),
    /// The program ends.
    #[error("marud is about to end: ask again when it is back")]
    Ending,
}

/// Records in transactions.
pub trait Records: Sized {
    /// Writes a record.
    #[must_use]
    fn write<T: Record>(self, name: &str, record: &T) -> Self;
    /// Only if a record is as it was read.
    #[must_use]
    fn if_still<T: Record>(self, name: &str, read: &Stored<T>) -> Self;
    /// Only if there is no such record.
    #[must_use]
    fn if_none<T: Record>(self, name: &str) -> Self;
    /// Takes a record away.
    #[must_use]
    fn forget<T: Record>(self, name: &str) -> Self;
    /// Writes a new VM; only if neither its id nor its name is taken.
    #[must_use]
    fn create(self, vm: &VmRecord) -> Self;
    /// Tells of what is done with this. Once for each transaction: its revision is the event's number.
    #[must_use]
    fn tell(self, event: &EventRecord) -> Self;
}

impl Records for Transaction {
    fn write<T: Record>(self, name: &str, record: &T) -> Self {
        self.put(T::key(name), record::to_bytes(record))
    }

    fn if_still<T: Record>(self, name: &str, read: &Stored<T>) -> Self {
        self.unchanged(T::key(name), read.revision)
    }

    fn if_none<T: Record>(self, name: &str) -> Self {
        self.absent(T::key(name))
    }

    fn forget<T: Record>(self, name: &str) -> Self {
        self.delete(T::key(name))
    }

    fn create(self, vm: &VmRecord) -> Self {
        let id = vm.id.to_string();
        let named = self.if_none::<NameRecord>(&vm.name).write(&vm.name, &NameRecord { vm: vm.id });
        named.if_none::<VmRecord>(&id).write(&id, vm)
    }

    fn tell(self, event: &EventRecord) -> Self {
        self.write(&Uuid::now_v7().to_string(), event)
    }
}

impl State {
    /// Lays records over a store.
    pub fn new(store: Arc<dyn Store>) -> State {
        State { store, file: None }
    }

    /// Lays records over a store in a file.
    pub fn of_file(store: Arc<FileStore>) -> State {
        State { store: store.clone(), file: Some(store) }
    }

    /// The size of the store's file in bytes; 0 if that is not known.
    pub fn file_bytes(&self) -> u64 {
        self.file.as_ref().and_then(|file| file.file_bytes().ok()).unwrap_or(0)
    }

    /// Does something with the state where waiting for the disk hurts nobody.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let state = self.clone();
        tokio::task::spawn_blocking(move || work(&state)).await.unwrap_or(Err(StateError::Ending))
    }

    /// The record with this name.
    pub fn read<T: Record>(&self, name: &str) -> Result<Option<Stored<T>>, StateError> {
        let entry = self.store.get(&T::key(name))?;
        Ok(entry.map(|entry| record::from_entry(&entry)).transpose()?)
    }

    /// All records of a kind, in the order of their names.
    pub fn all<T: Record>(&self) -> Result<Vec<Stored<T>>, StateError> {
        let snapshot = self.store.range(T::PREFIX)?;
        Ok(snapshot.entries.iter().map(record::from_entry).collect::<Result<_, _>>()?)
    }

    /// All records of a kind with their names, in the order of these.
    pub fn named<T: Record>(&self) -> Result<Vec<(String, Stored<T>)>, StateError> {
        let named = |entry: &store::Entry| Ok((entry.key[T::PREFIX.len()..].to_owned(), record::from_entry(entry)?));
        self.store.range(T::PREFIX)?.entries.iter().map(named).collect()
    }

    /// The record with this key, of a kind that is not named after its keys.
    pub fn read_one<T: Record>(&self, key: &str) -> Result<Option<Stored<T>>, StateError> {
        let entry = self.store.get(key)?;
        Ok(entry.map(|entry| record::from_entry(&entry)).transpose()?)
    }

    /// Changes a record, if it is there, and tells of it. `edit` is done again when someone else was faster.
    pub fn edit<T: Record + Clone + PartialEq>(
        &self,
        name: &str,
        edit: impl Fn(&mut T),
        event: Option<&EventRecord>,
    ) -> Result<(), StateError> {
        loop {
            let Some(stored) = self.read::<T>(name)? else { return Ok(()) };
            let mut record = stored.record.clone();
            edit(&mut record);
            if record == stored.record {
                return Ok(());
            }
            let changed = Transaction::new().if_still(name, &stored).write(name, &record);
            let transaction = event.into_iter().fold(changed, |transaction, event| transaction.tell(event));
            if let Outcome::Committed(_) = self.commit(&transaction)? {
                return Ok(());
            }
        }
    }

    /// Makes changes.
    pub fn commit(&self, transaction: &Transaction) -> Result<Outcome, StateError> {
        Ok(self.store.commit(transaction)?)
    }

    /// The newest revision.
    pub fn revision(&self) -> Result<Revision, StateError> {
        Ok(self.store.revision()?)
    }

    /// Changes, from now on.
    pub fn watch(&self, after: Revision) -> Result<Watch, StateError> {
        Ok(self.store.watch("", after)?)
    }

    /// Changes a VM, one of its tasks, or both, and tells of it: all or nothing. `edit` is done again when someone else was faster.
    pub fn change(
        &self,
        vm: Uuid,
        task: Option<Uuid>,
        mut edit: impl FnMut(&mut VmRecord, Option<&mut TaskRecord>) -> Option<EventRecord>,
    ) -> Result<Stored<VmRecord>, StateError> {
        let vm_name = vm.to_string();
        loop {
            let stored = self.read::<VmRecord>(&vm_name)?.ok_or_else(|| StateError::Gone(format!("the VM {vm}")))?;
            let mut record = stored.record.clone();
            let mut transaction = Transaction::new().if_still(&vm_name, &stored);
            let event = if let Some(task) = task {
                let task_name = task.to_string();
                let stored = self.read::<TaskRecord>(&task_name)?.ok_or_else(|| StateError::Gone(format!("the task {task}")))?;
                let mut task = stored.record.clone();
                let event = edit(&mut record, Some(&mut task));
                if task != stored.record {
                    transaction = transaction.if_still(&task_name, &stored).write(&task_name, &task);
                }
                event
            } else {
                edit(&mut record, None)
            };
            if record != stored.record {
                transaction = transaction.write(&vm_name, &record);
            }
            if let Some(event) = event {
                transaction = transaction.tell(&event);
            }
            if let Outcome::Committed(revision) = self.commit(&transaction)? {
                let revision = if record == stored.record { stored.revision } else { revision };
                return Ok(Stored { record, revision });
            }
        }
    }

    /// Forgets old events, finished tasks and requests.
    pub fn prune(&self) -> Result<(), StateError> {
        self.prune_events(EVENTS_KEPT)?;
        let tasks = self.all::<TaskRecord>()?;
        let finished: Vec<_> = tasks.iter().filter(|task| !task.record.is_unfinished()).collect();
        let surplus = &finished[..finished.len().saturating_sub(TASKS_KEPT)];
        let mut keys: Vec<String> = surplus.iter().map(|task| TaskRecord::key(&task.record.id.to_string())).collect();
        let now = time::OffsetDateTime::now_utc();
        for entry in self.store.range(OnceRecord::PREFIX)?.entries {
            if record::from_entry::<OnceRecord>(&entry)?.record.at + ONCE_KEPT < now {
                keys.push(entry.key);
            }
        }
        for some in keys.chunks(PRUNED_AT_ONCE) {
            self.commit(&some.iter().fold(Transaction::new(), |transaction, key| transaction.delete(key)))?;
        }
        Ok(())
    }

    fn prune_events(&self, kept: usize) -> Result<(), StateError> {
        let mut entries = self.store.range(EventRecord::PREFIX)?.entries;
        entries.sort_by_key(|entry| entry.revision);
        for some in entries[..entries.len().saturating_sub(kept)].chunks(PRUNED_AT_ONCE) {
            let Some(last) = some.last() else { break };
            let transaction = Transaction::new().write("events", &Pruned { up_to: last.revision.0 });
            self.commit(&some.iter().fold(transaction, |transaction, entry| transaction.delete(&entry.key)))?;
        }
        Ok(())
    }

    /// Events after a number, in their order; `None` if some of them were forgotten, or were never there.
    pub fn events_after(&self, after: u64) -> Result<Option<Vec<api::Event>>, StateError> {
        let pruned = self.read::<Pruned>("events")?.map_or(0, |pruned| pruned.record.up_to);
        if after > self.revision()?.0 || (after > 0 && after < pruned) {
            return Ok(None);
        }
        let mut events = Vec::new();
        for event in self.all::<EventRecord>()? {
            if event.revision.0 > after {
                events.push(event.record.told(event.revision));
            }
        }
        events.sort_by_key(|event| event.id);
        Ok(Some(events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::EventKind;

    #[test]
    fn forgotten_events_are_not_passed_over_in_silence() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::new(Arc::new(FileStore::open(directory.path()).unwrap()));
        for number in 1..=10 {
            let event = EventRecord::now(EventKind::HostStarted, number.to_string());
            state.commit(&Transaction::new().tell(&event)).unwrap();
        }
        let texts =
            |after| state.events_after(after).unwrap().map(|list| list.into_iter().map(|event| event.text).collect::<Vec<_>>());
        assert_eq!(texts(8), Some(vec!["9".into(), "10".into()]));
        state.prune_events(3).unwrap();
        assert_eq!(texts(7), Some(vec!["8".into(), "9".into(), "10".into()]));
        assert_eq!(texts(6), None);
        // From the beginning means: from what there is.
        assert_eq!(texts(0).unwrap().len(), 3);
        assert_eq!(texts(99), None);
    }
}
