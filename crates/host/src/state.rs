//! What is wanted and known, in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use store::record::{self, Record, RecordError, Stored};
use store::{Outcome, Revision, Store, StoreError, Transaction, Watch};
use uuid::Uuid;

use crate::cluster::placements;
use crate::records::{EventRecord, NameRecord, OnceRecord, Power, Pruned, TaskRecord, VmRecord};

/// Events that are kept.
const EVENTS_KEPT: usize = 10_000;
/// Finished tasks that are kept.
const TASKS_KEPT: usize = 1000;
/// How long a repeated request with an `Idempotency-Key` is recognised.
const ONCE_KEPT: time::Duration = time::Duration::hours(24);
/// Records of VMs that are kept parsed: more than a cluster is made for, some of which are of VMs that were deleted.
const PARSED_AT_MOST: usize = 32_768;
/// Records that one transaction takes away at most: one less than it can change.
const PRUNED_AT_ONCE: usize = store::MAX_OPERATIONS - 1;

/// The store, with its records.
#[derive(Clone)]
pub struct State {
    store: Arc<dyn Store>,
    /// The name of this host, if it is one of a cluster. Then the store has the records of all of them.
    own: Option<Arc<str>>,
    parsed: Arc<Mutex<HashMap<Uuid, Stored<Arc<VmRecord>>>>>,
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
    /// Lays records over the store of a single host.
    pub fn new(store: Arc<dyn Store>) -> State {
        State { store, own: None, parsed: Arc::default() }
    }

    /// Lays records over the store of a cluster, for one of its hosts.
    pub fn of_cluster(store: Arc<dyn Store>, host: &str) -> State {
        State { store, own: Some(host.into()), parsed: Arc::default() }
    }

    /// The name of this host, if it is one of a cluster.
    pub fn own_host(&self) -> Option<&str> {
        self.own.as_deref()
    }

    /// Whether what is done with a VM is done here.
    pub fn is_here(&self, vm: &VmRecord) -> bool {
        self.own.is_none() || vm.host.as_deref() == self.own_host()
    }

    /// The VMs that this host looks after.
    pub fn vms_here(&self) -> Result<Vec<Stored<VmRecord>>, StateError> {
        let mut vms = self.all::<VmRecord>()?;
        vms.retain(|vm| self.is_here(&vm.record));
        Ok(vms)
    }

    /// The tasks of a VM that are not done, in the order in which they are to be done.
    pub fn unfinished_tasks(&self, vm: Uuid) -> Result<Vec<TaskRecord>, StateError> {
        let tasks = self.all::<TaskRecord>()?.into_iter().map(|stored| stored.record);
        let mut tasks: Vec<TaskRecord> = tasks.filter(|task| task.vm == Some(vm) && task.is_unfinished()).collect();
        tasks.sort_by_key(TaskRecord::turn);
        Ok(tasks)
    }

    /// Other VMs whose files may be those of this one: a file in a volume of one host's own is nobody's elsewhere.
    pub fn neighbours(&self, vm: &VmRecord) -> Result<Vec<VmRecord>, StateError> {
        let mut others: Vec<VmRecord> = self.all::<VmRecord>()?.into_iter().map(|stored| stored.record).collect();
        others.retain(|other| other.id != vm.id);
        if let Some(own) = self.own_host() {
            let shared = placements::shared_volumes(self)?;
            let is_elsewhere = |other: &VmRecord| other.host.as_deref() != Some(vm.host.as_deref().unwrap_or(own));
            let meets = |other: &VmRecord| {
                let theirs = placements::volumes(other);
                placements::volumes(vm).iter().any(|volume| shared.contains(*volume) && theirs.contains(volume))
            };
            others.retain(|other| !is_elsewhere(other) || meets(other));
        }
        Ok(others)
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

    /// A VM's record, for those that look at many: one that is as it was is not parsed again.
    pub fn vm(&self, id: Uuid) -> Result<Option<Stored<Arc<VmRecord>>>, StateError> {
        let Some(entry) = self.store.get(&VmRecord::key(&id.to_string()))? else { return Ok(None) };
        let parsed = || self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = parsed().get(&id).filter(|known| known.revision == entry.revision) {
            return Ok(Some(known.clone()));
        }
        let Stored { record, revision } = record::from_entry(&entry)?;
        let stored = Stored { record: Arc::new(record), revision };
        let mut parsed = parsed();
        if parsed.len() >= PARSED_AT_MOST {
            parsed.clear();
        }
        parsed.insert(id, stored.clone());
        Ok(Some(stored))
    }

    /// All records of a kind, in the order of their names.
    pub fn all<T: Record>(&self) -> Result<Vec<Stored<T>>, StateError> {
        let snapshot = self.store.range(T::PREFIX)?;
        Ok(snapshot.entries.iter().map(record::from_entry).collect::<Result<_, _>>()?)
    }

    /// The first records of a kind whose names come behind this one, with their names, so many at most.
    pub fn part<T: Record>(&self, behind: Option<&str>, limit: usize) -> Result<Vec<(String, T)>, StateError> {
        let behind = behind.map(T::key);
        let named =
            |entry: &store::Entry| Ok((entry.key[T::PREFIX.len()..].to_owned(), record::from_bytes(&entry.key, &entry.value)?));
        self.store.part(T::PREFIX, behind.as_deref(), limit)?.entries.iter().map(named).collect()
    }

    /// The names of all records of a kind.
    pub fn names<T: Record>(&self) -> Result<Vec<String>, StateError> {
        let entries = self.store.range(T::PREFIX)?.entries;
        Ok(entries.into_iter().map(|entry| entry.key[T::PREFIX.len()..].to_owned()).collect())
    }

    /// All records of a kind with their names, in the order of these.
    pub fn named<T: Record>(&self) -> Result<Vec<(String, Stored<T>)>, StateError> {
        let named = |entry: &store::Entry| Ok((entry.key[T::PREFIX.len()..].to_owned(), record::from_entry(entry)?));
        self.store.range(T::PREFIX)?.entries.iter().map(named).collect()
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
        match self.own_host() {
            None => Ok(self.store.commit(transaction)?),
            Some(own) => Ok(self.store.commit(&placements::complete(self, own, transaction.clone())?)?),
        }
    }

    /// The size of the store's file in bytes; 0 if that is not known.
    pub fn file_bytes(&self) -> u64 {
        self.store.file_bytes()
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
            // It went to another host while this one could not be asked: what it does is not this one's to say any more.
            if !self.is_here(&stored.record) {
                return Err(StateError::Gone(format!("the VM {vm}")));
            }
            let mut record = stored.record.clone();
            let mut transaction = Transaction::new().if_still(&vm_name, &stored);
            let event = if let Some(task) = task {
                let task_name = task.to_string();
                let stored = self.read::<TaskRecord>(&task_name)?.ok_or_else(|| StateError::Gone(format!("the task {task}")))?;
                let mut task = stored.record.clone();
                let event = edit(&mut record, Some(&mut task));
                // It goes on, though it was not to.
                if task.operation.ends_vm() && stored.record.is_unfinished() && !task.is_unfinished() && record.power == Power::On
                {
                    transaction = placements::want(self, vm, cluster::records::Power::On, transaction)?;
                }
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
        let state = State::new(Arc::new(store::FileStore::open(directory.path()).unwrap()));
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
