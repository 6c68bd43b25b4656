//! The host: an actor for each VM, made and fed as the store says.
//!
//! ```text
//!  API ──▶ store: a VM, a task ──▶ Watch ──▶ one thread ──┬─▶ actors: there is a task, cancel it
//!                                                         └─▶ whoever listens: API requests that wait, event streams
//! ```
//!
//! The API changes nothing but the store. So it does not matter where a request came in, and a request that was answered is not
//! forgotten, whatever happens to this process.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::record::{self, Record, Stored};
use store::{Changed, Revision, Transaction, Watch};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::autostart;
use crate::copies::{self, sweep};
use crate::images::{self, Library};
use crate::records::{
    CopyRecord, EventKind, EventRecord, ImageRecord, OperationRecord, PlaceRecord, Power, SwitchRecord, TaskRecord,
    TaskStateRecord, VmRecord, VolumeRecord,
};
use crate::state::{Records, State, StateError};
use crate::vm::console::Console;
use crate::vm::{self, Actor, Input, Links, Live, Surroundings, staging};

use crate::volumes::{Directory, alarm};

/// Changes that a slow listener may be behind; then it has to look for itself.
const BEHIND: usize = 4096;

/// How long a VM may take to say what it has used.
const MEASURE: Duration = Duration::from_secs(3);

const OFF: Live = Live { state: api::VmState::Off, pid: None, last_end: None };

/// A host with its VMs.
pub struct Host {
    /// What is wanted and known.
    pub state: State,
    /// What all VMs have in common.
    pub surroundings: Arc<Surroundings>,
    /// When this `marud` started.
    pub started_at: OffsetDateTime,
    library: Arc<Library>,
    vms: Mutex<HashMap<Uuid, VmHandle>>,
    changes: broadcast::Sender<Changed>,
    runtime: Handle,
}

struct VmHandle {
    /// The VM's record was this one when its actor was made.
    since: Revision,
    inputs: mpsc::UnboundedSender<Input>,
    live: watch::Receiver<Live>,
    links: Links,
}

impl Host {
    /// Takes care of all VMs from now on: finds those that run, and goes on with what was not finished.
    pub fn start(state: State, surroundings: Surroundings, boot_id: Option<&str>) -> Result<Arc<Host>, StateError> {
        let surroundings = Arc::new(surroundings);
        let host = Arc::new(Host {
            library: Library::new(state.clone(), surroundings.clone(), Handle::current()),
            state,
            surroundings,
            started_at: OffsetDateTime::now_utc(),
            vms: Mutex::default(),
            changes: broadcast::channel(BEHIND).0,
            runtime: Handle::current(),
        });
        host.state.prune()?;
        for record in host.state.all::<VolumeRecord>()?.into_iter().map(|stored| stored.record) {
            host.open_volume(&record);
        }
        images::finish_deletions(&host.state, &host.surroundings.volumes)?;
        let text = format!("marud {} has started", env!("CARGO_PKG_VERSION"));
        host.state.commit(&Transaction::new().tell(&EventRecord::now(EventKind::HostStarted, text)))?;
        let revision = host.state.revision()?;
        let vms = host.state.vms_here()?;
        let mut unfinished: HashMap<Option<Uuid>, Vec<TaskRecord>> = HashMap::new();
        for task in host.state.all::<TaskRecord>()?.into_iter().map(|stored| stored.record).filter(TaskRecord::is_unfinished) {
            unfinished.entry(task.vm).or_default().push(task);
        }
        // What they have nobody else can have, from the first request on.
        for vm in vms.iter().filter(|vm| vm.record.power == Power::On) {
            host.surroundings.ledger.note(&vm.record);
        }
        if let Some(boot_id) = boot_id {
            autostart::note(&host.state, &vms, boot_id)?;
        }
        let everybody = host.state.all::<VmRecord>()?;
        host.look_for_strangers(&everybody)?;
        host.look_for_half_made_files(&everybody, &unfinished)?;
        for vm in vms {
            let mut tasks = unfinished.remove(&Some(vm.record.id)).unwrap_or_default();
            tasks.sort_by_key(TaskRecord::turn);
            host.take(
                vm,
                tasks.into_iter().map(|task| task.id).collect(),
                Live { state: api::VmState::Unknown, pid: None, last_end: None },
            );
        }
        for task in unfinished.into_values().flatten() {
            match task.operation {
                OperationRecord::ImportImage(_) if task.host.as_deref() == host.state.own_host() => host.library.begin(task.id),
                OperationRecord::ImportImage(_) => {}
                // Its VM is another host's.
                _ if task.vm.is_some_and(|id| everybody.iter().any(|vm| vm.record.id == id)) => {}
                _ => vm::refuse_task(&host.state, task.id)?,
            }
        }
        // Ports of VMs that run are seen to before anything is done to these.
        host.surroundings.network.keep(host.state.clone(), host.surroundings.clone());
        let (watch, watching) = (host.state.watch(revision)?, host.clone());
        std::thread::spawn(move || watching.follow(watch));
        host.runtime.spawn(autostart::run(host.clone()));
        host.runtime.spawn(alarm::watch(host.state.clone(), host.surroundings.clone()));
        Ok(host)
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<Uuid, VmHandle>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a VM does.
    pub fn live(&self, vm: Uuid) -> Live {
        // One that nobody took yet was just created.
        self.handles().get(&vm).map_or(OFF, |handle| handle.live.borrow().clone())
    }

    /// The console of a VM.
    pub fn console(&self, vm: Uuid) -> Option<Arc<Console>> {
        self.handles().get(&vm).map(|handle| handle.links.console.clone())
    }

    /// What runs in a VM, if its guest agent says so.
    pub fn guest(&self, vm: Uuid) -> Option<api::Guest> {
        self.handles().get(&vm)?.links.guest.info()
    }

    /// Has a VM looked at, for what it has used. One whose owner is busy is not waited for longer than this takes otherwise.
    pub async fn measure(&self, vm: Uuid) {
        let (sender, known) = oneshot::channel();
        let asked = self.handles().get(&vm).is_some_and(|handle| handle.inputs.send(Input::Measure(sender)).is_ok());
        if asked {
            let _ = tokio::time::timeout(MEASURE, known).await;
        }
    }

    /// Changes of what is stored, from now on.
    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    /// Uses a volume that was made through the API. Its directory is not made: what should be mounted there may not be yet.
    fn open_volume(&self, record: &VolumeRecord) {
        let Some(PlaceRecord::Directory { path }) = &record.place else { return };
        match Directory::open(path.as_ref()) {
            Ok(directory) if record.shared.is_some_and(|id| !directory.is_shared(id)) => {
                tracing::error!("the volume '{}' is not at {path}: what should be mounted there is not", record.name);
            }
            Ok(_) if self.surroundings.volumes.names().contains(&record.name) => {
                tracing::warn!("the volume '{}' is that of the command line, and not {path}", record.name);
            }
            Ok(directory) => self.surroundings.volumes.insert(&record.name, Arc::new(directory)),
            Err(error) => tracing::error!("the volume '{}' cannot be opened: {path}: {error}", record.name),
        }
    }

    /// Uses the volumes that all hosts of the cluster see, as long as this one sees them.
    pub fn open_shared_volumes(&self) -> Result<(), StateError> {
        let volumes = &self.surroundings.volumes;
        for record in self.state.all::<VolumeRecord>()?.into_iter().map(|stored| stored.record) {
            let (Some(id), Some(PlaceRecord::Directory { path })) = (record.shared, &record.place) else { continue };
            let is_used = volumes.names().contains(&record.name);
            let directory = Directory::open(path.as_ref()).ok().filter(|directory| directory.is_shared(id));
            match directory {
                Some(directory) if !is_used => {
                    tracing::info!("the volume '{}' is at {path}", record.name);
                    volumes.insert(&record.name, Arc::new(directory));
                }
                None if is_used => {
                    tracing::error!("the volume '{}' is not at {path} any more", record.name);
                    volumes.give_up(&record.name);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Files and control groups of VMs that are not stored here: those that do not run are removed; a VM that runs is never ended because
    /// of what is not known.
    fn look_for_strangers(&self, vms: &[Stored<VmRecord>]) -> Result<(), StateError> {
        let surroundings = &self.surroundings;
        let mut ids: Vec<Uuid> = vm::list(surroundings).into_iter().chain(surroundings.cgroups.list()).collect();
        ids.sort();
        ids.dedup();
        for id in ids.into_iter().filter(|id| !vms.iter().any(|vm| vm.record.id == *id)) {
            match vm::find(surroundings, id) {
                Ok(Some(process)) => {
                    let text = format!(
                        "a VM with the id {id} runs as process {} and is not known here: the store was replaced by an older one, \
                         perhaps; end the process, or bring the store back",
                        process.pid
                    );
                    tracing::warn!("{text}");
                    self.state.commit(&Transaction::new().tell(&EventRecord::now(EventKind::VmAlarm, text)))?;
                }
                Ok(None) => vm::remove_traces(surroundings, id),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(())
    }

    /// Files that were being made when an earlier `marud` ended: those of unfinished tasks are theirs to remove.
    fn look_for_half_made_files(
        &self,
        vms: &[Stored<VmRecord>],
        unfinished: &HashMap<Option<Uuid>, Vec<TaskRecord>>,
    ) -> Result<(), StateError> {
        let (volumes, images) = (&self.surroundings.volumes, self.state.all::<ImageRecord>()?);
        let (copies, needed) = (self.state.all::<CopyRecord>()?, copies::needed(&self.state)?);
        for id in staging::list(volumes) {
            // What has come from other hosts, or goes to them by a volume that all see: its record says whose it is.
            if copies.iter().any(|copy| copy.record.id == id) {
                continue;
            }
            if unfinished.values().flatten().any(|task| task.id == id || task.operation.stages(id)) {
                continue;
            }
            if vms.iter().any(|vm| vm.record.id == id) || images.iter().any(|image| image.record.id == id) {
                staging::forget(volumes, id);
            } else {
                staging::clear(volumes, id, &needed);
            }
        }
        Ok(())
    }

    /// Looks after files that VMs take along to other hosts, from now on.
    pub fn watch_copies(self: &Arc<Host>) {
        self.runtime.spawn(sweep::watch(self.clone()));
    }

    /// Makes the actor of a VM.
    fn take(&self, vm: Stored<VmRecord>, unfinished: Vec<Uuid>, known: Live) {
        let (id, since) = (vm.record.id, vm.revision);
        let mut handles = self.handles();
        // Who takes it over, and who follows the store, come at once: a second actor would know nothing of what the first does.
        let Entry::Vacant(place) = handles.entry(id) else { return };
        let (inputs, receiver) = mpsc::unbounded_channel();
        let (sender, live) = watch::channel(known);
        let links = Links::default();
        let actor = Actor::new(vm, self.state.clone(), self.surroundings.clone(), receiver, sender, links.clone(), unfinished);
        place.insert(VmHandle { since, inputs, live, links });
        drop(handles);
        self.runtime.spawn(actor.run());
    }

    /// Passes on what changes, until the store is closed.
    fn follow(self: &Arc<Host>, mut watch: Watch) {
        while let Some(changed) = watch.next_change() {
            if let Some(id) = id_of::<VmRecord>(&changed.key) {
                self.surroundings.network.poke();
                self.vm_changed(id, &changed);
            } else if changed.key.starts_with(SwitchRecord::PREFIX) {
                self.surroundings.network.poke();
            } else if self.state.own_host().is_some() && changed.key.starts_with(VolumeRecord::PREFIX) {
                // Not here: a file server may let us wait, and VMs with it.
                let host = self.clone();
                self.runtime.spawn_blocking(move || {
                    if let Err(error) = host.open_shared_volumes() {
                        tracing::error!("{error}");
                    }
                });
            } else if let Some(id) = id_of::<TaskRecord>(&changed.key) {
                self.task_changed(id, &changed);
            }
            // Nobody listens: nobody misses it.
            let _ = self.changes.send(changed);
        }
    }

    fn vm_changed(&self, id: Uuid, changed: &Changed) {
        match &changed.value {
            None => {
                if let Some(handle) = self.handles().remove(&id) {
                    handle.links.console.close();
                }
                self.surroundings.meters.forget(id);
            }
            Some(_) if self.state.own_host().is_none() && self.handles().contains_key(&id) => {}
            Some(value) => match record::from_bytes::<VmRecord>(&changed.key, value) {
                Ok(record) if self.state.is_here(&record) => self.look_after(&record, changed.revision),
                Ok(_) => self.hand_over(id, changed.revision),
                Err(error) => tracing::error!("{error}"),
            },
        }
    }

    /// Makes the actor of a VM that is here, if it has none, with the tasks that others have left.
    pub fn look_after(&self, vm: &VmRecord, revision: Revision) {
        if self.handles().contains_key(&vm.id) {
            return;
        }
        let tasks = match self.state.own_host() {
            // Those that come to a new VM are told one by one.
            None => Ok(Vec::new()),
            Some(_) => self.state.unfinished_tasks(vm.id),
        };
        let tasks = tasks.unwrap_or_else(|error| {
            tracing::error!(vm = %vm.name, "its tasks cannot be read: {error}");
            Vec::new()
        });
        self.take(Stored { record: vm.clone(), revision }, tasks.into_iter().map(|task| task.id).collect(), OFF);
    }

    /// Another host looked after a VM at this revision. It may have come back since: changes are heard of later than they can be read.
    pub fn hand_over(&self, id: Uuid, revision: Revision) {
        let handle = match self.handles().entry(id) {
            Entry::Occupied(handle) if handle.get().since < revision => Some(handle.remove()),
            _ => None,
        };
        if let Some(handle) = handle {
            handle.links.console.close();
            self.surroundings.meters.forget(id);
        }
    }

    /// Tells a VM's owner something. Gives whether there is one.
    pub fn tell_vm(&self, id: Uuid, input: Input) -> bool {
        self.handles().get(&id).is_some_and(|handle| handle.inputs.send(input).is_ok())
    }

    /// What a VM does, whenever that changes.
    pub fn watch_vm(&self, id: Uuid) -> Option<watch::Receiver<Live>> {
        self.handles().get(&id).map(|handle| handle.live.clone())
    }

    fn task_changed(&self, id: Uuid, changed: &Changed) {
        let Some(value) = &changed.value else { return };
        let task = match record::from_bytes::<TaskRecord>(&changed.key, value) {
            Ok(task) => task,
            Err(error) => return tracing::error!("{error}"),
        };
        let input = match task.state {
            TaskStateRecord::Queued => Input::Task(id),
            TaskStateRecord::Running if task.cancel_requested => Input::Cancel(id),
            _ => return,
        };
        if let OperationRecord::ImportImage(_) = task.operation {
            return match input {
                _ if task.host.as_deref() != self.state.own_host() => {}
                Input::Cancel(task) => self.library.cancel(task),
                _ => self.library.begin(task.id),
            };
        }
        if let Some(vm) = task.vm
            && !self.handles().contains_key(&vm)
            && let Ok(Some(vm)) = self.state.read::<VmRecord>(&vm.to_string())
        {
            if !self.state.is_here(&vm.record) {
                return;
            }
            // One transaction made both.
            self.take(vm, Vec::new(), OFF);
        }
        let sent = task.vm.and_then(|vm| Some(self.handles().get(&vm)?.inputs.send(input)));
        if !matches!(sent, Some(Ok(())))
            && let Err(error) = vm::refuse_task(&self.state, id)
        {
            tracing::error!("{error}");
        }
    }
}

fn id_of<T: Record>(key: &str) -> Option<Uuid> {
    Uuid::parse_str(key.strip_prefix(T::PREFIX)?).ok()
}

/// Finds another program of Maru: beside this program, or on `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = own.parent().map(PathBuf::from).into_iter().chain(std::env::split_paths(&path));
    places.filter(|place| place.is_absolute()).map(|place| place.join(name)).find(|program| program.is_file())
}
