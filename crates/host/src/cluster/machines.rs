//! The VMs of this host, as the cluster's decisions see them: each has a keeper, which does one thing after the other.
//!
//! ```text
//!   Action::Start ─▶ takes the VM over (vms/ID names this host), permits its task ─▶ VmRunning, or VmEnded: it did not start
//!   Action::Stop, Save ─▶ makes a task, if none is under way that ends the VM ─▶ VmEnded, or VmRunning: it goes on after all
//!   Action::Copy ─▶ makes a task that copies files, and waits until they are there ─▶ VmCopied; Action::EndCopy ends that
//!   Action::Kill ─▶ kills the process, whatever its owner does ─▶ VmEnded
//!                   the VM's own end, as its owner sees it ──────▶ VmEnded
//! ```

mod leaving;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::records::{AliveRecord, MoveRecord, OwnerRecord};
use cluster::{Ending, Event, HostId, VmId};
use store::record::{Record, Stored};
use store::{Outcome, Revision, Transaction};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::Shared;
use crate::host::Host;
use crate::records::{Cause, CopyOperation, EndingRecord, OperationRecord, Power, TaskRecord, TaskStateRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::{self, Input, Live, process};

/// Who tasks are by that the cluster makes: no token is called so.
pub const BY: &str = "(cluster)";
/// How long a guest has to shut down, in seconds, when nobody said.
const GRACE: u32 = 120;
/// Between two looks whether a VM can be taken over.
const LOOK: Duration = Duration::from_millis(100);
/// How long something waits that the store does not let happen, or that failed, until it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a VM goes on that could not be saved, until that is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(30);

enum Order {
    Start(Revision),
    Stop,
    Save,
    Copy(CopyOperation),
    EndCopy,
    Kill,
    /// It runs already: whoever keeps it from now on sees its end.
    Follow,
}

/// All keepers.
pub struct Machines {
    shared: Arc<Shared>,
    runtime: Handle,
    keepers: BTreeMap<Uuid, Keeper>,
}

struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
    /// What is being started, or copied, is not to be any more.
    kill: Arc<AtomicBool>,
    /// What is being copied is not to be any more.
    end_copy: Arc<AtomicBool>,
}

impl Machines {
    /// None yet.
    pub fn new(shared: Arc<Shared>, runtime: Handle) -> Machines {
        Machines { shared, runtime, keepers: BTreeMap::new() }
    }

    /// A VM is to be started.
    pub fn start(&mut self, vm: &VmId, token: Revision) {
        self.order(vm, Order::Start(token));
    }

    /// A VM is to be shut down.
    pub fn stop(&mut self, vm: &VmId) {
        self.order(vm, Order::Stop);
    }

    /// A VM is to be saved.
    pub fn save(&mut self, vm: &VmId) {
        self.order(vm, Order::Save);
    }

    /// Files of a VM are to be copied.
    pub fn copy(&mut self, vm: &VmId, to: &HostId, volume: Option<String>) {
        self.order(vm, Order::Copy(CopyOperation { to: to.as_str().into(), volume }));
    }

    /// They are not, or not any more.
    pub fn end_copy(&mut self, vm: &VmId) {
        self.order(vm, Order::EndCopy);
    }

    /// A VM is to end now.
    pub fn kill(&mut self, vm: &VmId) {
        self.order(vm, Order::Kill);
    }

    /// A VM runs already.
    pub fn follow(&mut self, vm: &VmId) {
        self.order(vm, Order::Follow);
    }

    fn order(&mut self, vm: &VmId, order: Order) {
        let Ok(id) = Uuid::parse_str(vm.as_str()) else {
            let ending = Ending::StartFailed(format!("'{vm}' is no id of a VM"));
            return self.shared.tell(Event::VmEnded { vm: vm.clone(), ending });
        };
        let keeper = self.keepers.entry(id).or_insert_with(|| {
            let (orders, receiver) = mpsc::unbounded_channel();
            let (kill, end_copy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let machine = Machine { id, shared: self.shared.clone(), kill: kill.clone(), end_copy: end_copy.clone() };
            self.runtime.spawn(machine.run(receiver));
            Keeper { orders, kill, end_copy }
        });
        match order {
            Order::Kill => keeper.kill.store(true, Ordering::Release),
            Order::EndCopy => keeper.end_copy.store(true, Ordering::Release),
            _ => {}
        }
        // It ends with the program only.
        let _ = keeper.orders.send(order);
    }
}

/// The keeper of one VM.
struct Machine {
    id: Uuid,
    shared: Arc<Shared>,
    kill: Arc<AtomicBool>,
    end_copy: Arc<AtomicBool>,
}

/// What a keeper sees next.
enum Next {
    Order(Option<Order>),
    Ended(Ending),
    /// It was to end, and goes on.
    Runs,
}

/// What is waited for while a VM runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// Nothing but its end.
    End,
    /// The end of tasks that end it: one that fails leaves it running.
    Tasks,
}

impl Machine {
    async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut runs: Option<Awaits> = None;
        loop {
            let next = match runs {
                None => Next::Order(orders.recv().await),
                Some(awaits) => tokio::select! {
                    biased;
                    order = orders.recv() => Next::Order(order),
                    ending = self.end() => Next::Ended(ending),
                    () = self.tasks_end(awaits) => Next::Runs,
                },
            };
            match next {
                Next::Order(None) => return,
                Next::Order(Some(Order::Kill)) => {
                    self.kill.store(false, Ordering::Release);
                    self.end_process().await;
                    // One that was not there has told of its end already, or does so now.
                    self.ended(Ending::Killed);
                    runs = None;
                }
                Next::Order(Some(Order::Follow)) => runs = Some(Awaits::End),
                Next::Order(Some(Order::Start(token))) => match self.start(token).await {
                    Ok(()) => {
                        self.shared.tell(Event::VmRunning(self.vm()));
                        runs = Some(Awaits::End);
                    }
                    Err(ending) => self.ended(ending),
                },
                Next::Order(Some(Order::Stop)) => {
                    self.ask(OperationRecord::ShutDown { grace_seconds: GRACE }).await;
                    runs = Some(Awaits::Tasks);
                }
                Next::Order(Some(Order::Save)) => {
                    if self.may_leave().await {
                        self.ask(OperationRecord::Save { ran: true }).await;
                        runs = Some(Awaits::Tasks);
                    } else if !self.kill.load(Ordering::Acquire) {
                        self.shared.tell(Event::VmRunning(self.vm()));
                        runs = Some(Awaits::End);
                    }
                }
                Next::Order(Some(Order::Copy(wanted))) => {
                    let result = self.copy(&wanted).await;
                    self.shared.tell(Event::VmCopied { vm: self.vm(), result });
                }
                Next::Order(Some(Order::EndCopy)) => {
                    self.end_copy.store(false, Ordering::Release);
                    self.call_off_copies().await;
                }
                Next::Ended(ending) => {
                    self.ended(ending);
                    runs = None;
                }
                Next::Runs => {
                    self.goes_on().await;
                    self.shared.tell(Event::VmRunning(self.vm()));
                    runs = Some(Awaits::End);
                }
            }
        }
    }

    fn vm(&self) -> VmId {
        self.id.to_string().into()
    }

    fn ended(&self, ending: Ending) {
        self.shared.tell(Event::VmEnded { vm: self.vm(), ending });
    }

    fn host(&self) -> Arc<Host> {
        self.shared.host.clone()
    }

    /// Does something with the state, again and again until it can be.
    async fn state<T: Send + 'static>(
        &self,
        work: impl Fn(&State) -> Result<T, StateError> + Clone + Send + 'static,
    ) -> Option<T> {
        loop {
            match self.shared.host.state.run(work.clone()).await {
                Ok(done) => return Some(done),
                Err(StateError::Ending) => return None,
                Err(error) => tracing::debug!(vm = %self.id, "the store is tried again: {error}"),
            }
            if self.kill.load(Ordering::Acquire) {
                return None;
            }
            sleep(AGAIN).await;
        }
    }

    async fn start(&self, token: Revision) -> Result<(), Ending> {
        let stopped = || Ending::Stopped;
        // It goes on here: whatever was copied before is of no use.
        self.call_off_copies().await;
        let (task, came) = self.take_over(token).await?;
        let host = self.host();
        let id = self.id;
        let found = self.state(move |state| state.read::<VmRecord>(&id.to_string())).await.ok_or_else(stopped)?;
        let vm = found.ok_or_else(|| Ending::StartFailed("the VM was deleted".into()))?;
        // Who looked after it here before it was elsewhere knows nothing of that.
        if came {
            host.hand_over(id, vm.revision);
        }
        host.look_after(&vm.record, vm.revision);
        let (sender, started) = oneshot::channel();
        host.tell_vm(id, Input::Task(task));
        if !host.tell_vm(id, Input::Permit(task, sender)) {
            return Err(Ending::StartFailed("the VM was deleted".into()));
        }
        let mut started = started;
        loop {
            match timeout(LOOK, &mut started).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(cause))) => return Err(Ending::StartFailed(cause.message)),
                // Its task was cancelled, or its owner is gone.
                Ok(Err(_)) => return Err(stopped()),
                // What is being started is killed as soon as it is there.
                Err(_) if self.kill.load(Ordering::Acquire) => self.end_process().await,
                Err(_) => {}
            }
        }
    }

    /// Makes this host the one that looks after the VM, as its owner's record says; gives the task that starts it, and whether another host looked
    /// after it before.
    async fn take_over(&self, token: Revision) -> Result<(Uuid, bool), Ending> {
        let mut told = false;
        loop {
            if self.kill.load(Ordering::Acquire) {
                return Err(Ending::Stopped);
            }
            let (id, shared) = (self.id, self.shared.clone());
            let taken = tokio::task::spawn_blocking(move || take(&shared, id, token)).await;
            match taken {
                Ok(Ok(Taken::Done { task, came })) => return Ok((task, came)),
                Ok(Ok(Taken::Gone(reason))) => return Err(Ending::StartFailed(reason.into())),
                Ok(Ok(Taken::Waits(host))) if !told => {
                    told = true;
                    tracing::info!(vm = %self.id, "waits for what {host} is doing with it");
                    sleep(LOOK).await;
                }
                Ok(Ok(Taken::Waits(_) | Taken::Again)) => sleep(LOOK).await,
                Ok(Err(error)) => {
                    tracing::debug!(vm = %self.id, "cannot be taken over yet: {error}");
                    sleep(AGAIN).await;
                }
                Err(_) => return Err(Ending::Stopped),
            }
        }
    }

    /// Waits for the end of what runs, as its owner sees it.
    async fn end(&self) -> Ending {
        let Some(mut live) = self.shared.host.watch_vm(self.id) else {
            self.end_process().await;
            return Ending::Killed;
        };
        let is_over = |live: &Live| live.pid.is_none() && !matches!(live.state, api::VmState::Unknown | api::VmState::Starting);
        let over = live.wait_for(is_over).await.map(|live| live.last_end.clone());
        let Ok(last) = over else {
            // Its owner is gone: the VM is another host's.
            self.end_process().await;
            return Ending::Killed;
        };
        let id = self.id;
        let saved = self.state(move |state| Ok(state.read::<VmRecord>(&id.to_string())?.is_some_and(|vm| vm.record.is_saved())));
        match (saved.await, last) {
            (Some(true), _) => Ending::Saved,
            (_, Some(EndingRecord { failed: true, reason, .. })) => Ending::Crashed(reason),
            _ => Ending::PoweredOff,
        }
    }

    /// Makes a task that ends the VM, unless there is one.
    async fn ask(&self, operation: OperationRecord) {
        let id = self.id;
        let made = self.state(move |state| {
            if state.unfinished_tasks(id)?.iter().any(|task| task.operation.ends_vm()) {
                return Ok(());
            }
            make_task(state, id, &operation).map(drop)
        });
        made.await;
    }

    /// Waits until no task is left that ends the VM.
    async fn tasks_end(&self, awaits: Awaits) {
        if awaits == Awaits::End {
            return std::future::pending().await;
        }
        loop {
            sleep(AGAIN).await;
            let id = self.id;
            let left = self.state(move |state| Ok(state.unfinished_tasks(id)?.iter().any(|task| task.operation.ends_vm()))).await;
            if left == Some(false) {
                return;
            }
        }
    }

    /// A VM that was to end goes on: where it was to be saved to go elsewhere, it stays for now.
    async fn goes_on(&self) {
        let name = self.id.to_string();
        let Some(moving) = self.state(move |state| state.read::<MoveRecord>(&name)).await.flatten() else { return };
        self.call_move_off(moving.revision).await;
        let end = Instant::now() + SAVE_AGAIN;
        while Instant::now() < end && !self.kill.load(Ordering::Acquire) {
            sleep(LOOK).await;
        }
    }

    /// Ends the VM's process, if there is one, and waits until it is gone.
    async fn end_process(&self) {
        let (host, id) = (self.host(), self.id);
        let ended = tokio::task::spawn_blocking(move || {
            while let Some(process) = process::find(&host.surroundings, id)? {
                let _ = process::kill(&process.pidfd);
                process::wait(&process.pidfd);
            }
            Ok::<_, std::io::Error>(())
        });
        match ended.await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => tracing::error!(vm = %self.id, "its process cannot be found to be killed: {error}"),
        }
    }
}

/// Makes a task for a VM, unless that is gone.
fn make_task(state: &State, vm: Uuid, operation: &OperationRecord) -> Result<Option<Uuid>, StateError> {
    let Some(stored) = state.read::<VmRecord>(&vm.to_string())? else { return Ok(None) };
    let task = TaskRecord::new(vm, stored.record.name, operation.clone(), BY.into());
    let name = task.id.to_string();
    state.commit(&Transaction::new().if_none::<TaskRecord>(&name).write(&name, &task))?;
    Ok(Some(task.id))
}

/// What came of trying to take a VM over.
enum Taken {
    /// It is this host's.
    Done {
        /// The task that starts it.
        task: Uuid,
        /// Whether it was another host's before.
        came: bool,
    },
    /// The host that looks after it is doing something with it.
    Waits(String),
    /// Someone else changed something.
    Again,
    /// It is not to be started here any more.
    Gone(&'static str),
}

fn take(shared: &Shared, id: Uuid, token: Revision) -> Result<Taken, StateError> {
    let (state, own) = (&shared.host.state, shared.config.host.as_str());
    // What is decided here depends on tasks, which are no condition: nothing may be missing of them. Whoever makes one changes the VM's record.
    shared.replica.current(&[])?;
    let name = id.to_string();
    let Some(owner) = state.read::<OwnerRecord>(&name)?.filter(|owner| owner.revision == token) else {
        return Ok(Taken::Gone("another decision has come meanwhile"));
    };
    let Some(stored) = state.read::<VmRecord>(&name)? else { return Ok(Taken::Gone("the VM was deleted")) };
    let tasks = state.unfinished_tasks(id)?;
    let start = tasks.iter().find(|task| task.operation == OperationRecord::Start);
    let mut transaction = Transaction::new().if_still(&name, &stored).unchanged(OwnerRecord::key(&name), owner.revision);
    let mut vm = VmRecord { owned_at: Some(token.0), ..stored.record.clone() };
    if let Some(before) = stored.record.host.as_deref().filter(|host| *host != own) {
        let lives = state.read::<AliveRecord>(before)?.is_some();
        if lives && tasks.iter().any(|task| task.operation != OperationRecord::Start) {
            return Ok(Taken::Waits(before.into()));
        }
        if !lives {
            // What it does it has stopped doing: its lease has ended.
            transaction = transaction.if_none::<AliveRecord>(before);
            if stored.record.power == Power::On && !stored.record.is_saved() {
                let reason = format!("its host {before} is not there any more");
                vm.last_end = Some(EndingRecord { at: OffsetDateTime::now_utc(), reason, failed: true });
            }
        }
        vm.host = Some(own.into());
        vm.power = Power::Off;
    }
    let task = match start {
        Some(task) => task.clone(),
        None => TaskRecord::new(id, vm.name.clone(), OperationRecord::Start, BY.into()),
    };
    if start.is_none() {
        let name = task.id.to_string();
        transaction = transaction.if_none::<TaskRecord>(&name).write(&name, &task);
    } else if task.state == TaskStateRecord::Running && vm.host != stored.record.host {
        // The host before had begun.
        transaction = transaction.write(&task.id.to_string(), &TaskRecord { state: TaskStateRecord::Queued, ..task.clone() });
    }
    match state.commit(&transaction.write(&name, &vm))? {
        Outcome::Committed(_) => Ok(Taken::Done { task: task.id, came: vm.host != stored.record.host }),
        Outcome::Conflict { .. } => Ok(Taken::Again),
    }
}

/// The VMs that are on a host when its `marud` starts.
pub struct Found {
    /// Those with a process.
    pub running: Vec<VmId>,
    /// Those of them that run on without a lease.
    pub bound: BTreeSet<VmId>,
    /// Those that had ended in order and are still this host's, with how they ended, which is to be told.
    pub ended: Vec<(VmId, Ending)>,
}

/// Finds the VMs that are on this host.
pub fn found(host: &Host) -> Result<Found, StateError> {
    let mut running: Vec<Uuid> = Vec::new();
    for id in vm::list(&host.surroundings) {
        match process::find(&host.surroundings, id) {
            Ok(None) => {}
            Ok(Some(_)) => running.push(id),
            Err(error) => {
                tracing::error!(vm = %id, "{error}");
                running.push(id);
            }
        }
    }
    let mut ended = Vec::new();
    for Stored { record: vm, .. } in host.state.vms_here()? {
        let owner = host.state.read::<OwnerRecord>(&vm.id.to_string())?;
        let is_last = |owner: &Stored<OwnerRecord>| vm.owned_at == Some(owner.revision.0);
        if vm.power == Power::Off && !running.contains(&vm.id) && owner.as_ref().is_some_and(is_last) {
            // One that is to go elsewhere goes on there.
            let ending = if vm.is_saved() { Ending::Saved } else { Ending::PoweredOff };
            ended.push((vm.id.to_string().into(), ending));
        }
    }
    let named = |id: &Uuid| VmId::from(id.to_string());
    let bound = running.iter().filter(|id| host.surroundings.cgroups.is_bound(**id)).map(named).collect();
    Ok(Found { running: running.iter().map(named).collect(), bound, ended })
}

/// Fails the tasks that wait to start a VM.
pub fn give_up(state: &State, vm: Uuid, reason: &str) -> Result<(), StateError> {
    edit_starts(state, vm, |task| {
        if task.state == TaskStateRecord::Queued {
            task.end(TaskStateRecord::Failed, Some(Cause::new("gave-up", reason, "mend what it says, and start the VM again")));
        }
    })
}

/// Notes in the tasks that wait to start a VM what they wait for.
pub fn note_waiting(state: &State, vm: Uuid, reason: &str) -> Result<(), StateError> {
    edit_starts(state, vm, |task| {
        if task.log.last().is_none_or(|line| line.text != reason) {
            task.note(reason);
        }
    })
}

fn edit_starts(state: &State, vm: Uuid, edit: impl Fn(&mut TaskRecord)) -> Result<(), StateError> {
    let tasks = state.unfinished_tasks(vm)?;
    let mut starts = tasks.iter().filter(|task| task.operation == OperationRecord::Start);
    starts.try_for_each(|task| state.edit(&task.id.to_string(), &edit, None))
}
