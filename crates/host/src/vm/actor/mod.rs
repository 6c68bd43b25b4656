//! The owner of one VM.
//!
//! ```text
//!            start                        its monitor answers
//!   off ─────────────▶ (spawned) ─────────────────────────────▶ running ◀──pause, resume──▶ paused
//!    ▲                     └── ends: the task fails ──▶ off        │
//!    └──────────────────── the monitor ends, for whatever reason ──┘
//! ```
//! How a VM is saved and restored is drawn at [`crate::records::SavedPhase`].
//!
//! It does one task after the other. Two kinds are not done at once:
//!
//! - A shutdown waits for the guest. Meanwhile it can be cancelled, and a task that ends the VM by force overtakes it.
//! - Long work ([`OperationRecord::is_long`]), like copying disks, is done by a thread of its own ([`work`]), which the actor looks after:
//!   it stores how far the work is about once a second, and passes on the wish that it end. What the VM must obey at any time
//!   ([`OperationRecord::overtakes`]: stop, reset, pause, resume) is done meanwhile; everything else waits for the work's end.

mod checkpoints;
mod edit;
mod limits;
mod links;
mod metering;
mod operations;
pub mod policy;
mod room;
mod saved;
mod transfer;
mod work;

pub use links::Links;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use store::record::Stored;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;
use vmm::control::{EventKind as Told, Request, RunStatus, Status};

use self::metering::Metering;
use self::room::Room;
use super::ending::Ending;
use super::monitor::{Happened, Monitor};
use super::process::{self, RunFiles};
use super::{Live, Surroundings};
use crate::records::{
    Cause, EndingRecord, EventKind, EventRecord, OperationRecord, Power, TaskRecord, TaskStateRecord, VmRecord,
};
use crate::state::{State, StateError};

/// How long a monitor may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to put the machine together.
const START: Duration = Duration::from_secs(60);
/// How long it may take to end after it was told to.
const END: Duration = Duration::from_secs(10);
/// Between two tries to write to a store that cannot be written.
const STORE_AGAIN: Duration = Duration::from_secs(2);

/// What an actor is told.
#[derive(Debug)]
pub enum Input {
    /// There is a task.
    Task(Uuid),
    /// A task is to end.
    Cancel(Uuid),
    /// Someone wants to know what was used, and is told when it is known.
    Measure(oneshot::Sender<()>),
    /// The VM may be started, by this task: in a cluster, it is not before.
    Permit(Uuid, Started),
}

/// Told when a VM was started, or why it was not; dropped if it was not to be any more.
pub type Started = oneshot::Sender<Result<(), Cause>>;

/// A VM's owner.
pub struct Actor {
    vm: Stored<VmRecord>,
    state: State,
    surroundings: Arc<Surroundings>,
    inputs: mpsc::UnboundedReceiver<Input>,
    live: watch::Sender<Live>,
    links: Links,
    machine: Option<Machine>,
    queue: VecDeque<Uuid>,
    /// A task that waits for the monitor to end.
    stopping: Option<Stopping>,
    /// A task that a thread does.
    work: Option<work::Work>,
    /// A task that copies its files to another host. When that is done, nothing is done to the VM any more that would change them: it goes there,
    /// which ends the task, or someone cancels that.
    leaving: Option<Uuid>,
    /// Its turn to be started.
    turn: Turn,
    /// The task that may start it, and whom to tell.
    permit: Option<(Uuid, Started)>,
    /// How it ended under this actor.
    last_end: Option<EndingRecord>,
    metering: Metering,
    /// What it waits for, paused.
    room: Option<Room>,
    deleted: bool,
}

/// A VM that runs.
struct Machine {
    monitor: Monitor,
    paused: bool,
    /// Why it ends, if it said so.
    told_end: Option<String>,
}

/// Whether it may be started: not all VMs of a host at once, since none of them would get on.
enum Turn {
    /// Nobody wants to.
    None,
    /// When others have started.
    Waiting(Pin<Box<dyn Future<Output = Permit> + Send + Sync>>),
    /// Now, as long as this is here.
    Now { _until: Permit },
}

type Permit = Option<OwnedSemaphorePermit>;

/// A VM that is to end.
struct Stopping {
    task: Uuid,
    deadline: Instant,
    step: Step,
}

/// How a VM is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Its guest was asked.
    Guest,
    /// Its monitor was told.
    Monitor,
    /// Its monitor was killed.
    Killed,
}

impl Actor {
    /// Takes a VM. `unfinished` are its tasks that are not done, in their order.
    pub fn new(
        vm: Stored<VmRecord>,
        state: State,
        surroundings: Arc<Surroundings>,
        inputs: mpsc::UnboundedReceiver<Input>,
        live: watch::Sender<Live>,
        links: Links,
        unfinished: Vec<Uuid>,
    ) -> Actor {
        Actor {
            vm,
            state,
            surroundings,
            inputs,
            live,
            links,
            machine: None,
            queue: unfinished.into(),
            stopping: None,
            work: None,
            leaving: None,
            turn: Turn::None,
            permit: None,
            last_end: None,
            metering: Metering::new(),
            room: None,
            deleted: false,
        }
    }

    /// Owns the VM until it is deleted, or `marud` ends.
    pub async fn run(mut self) {
        self.load_usage().await;
        self.adopt().await;
        loop {
            self.advance().await;
            if self.deleted {
                return self.refuse_rest().await;
            }
            let deadline = self.stopping.as_ref().map(|stopping| stopping.deadline);
            let (look_at, room_at) = (self.look_at(), self.room_at());
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(Input::Task(task)) => self.enqueue(task),
                    Some(Input::Cancel(task)) => self.cancel(task).await,
                    Some(Input::Permit(task, started)) => self.permit = Some((task, started)),
                    Some(Input::Measure(known)) => {
                        self.measure().await;
                        // Who does not wait any more need not know.
                        let _ = known.send(());
                    }
                    None => return,
                },
                happened = next(&mut self.machine) => match happened {
                    Happened::Event(event) => self.told(event).await,
                    Happened::Exited(status) => self.ended(status).await,
                },
                () = wait_until(deadline) => self.press_harder().await,
                () = wait_until(look_at) => self.look().await,
                () = wait_until(room_at) => self.look_for_room().await,
                stage = work::next(&mut self.work) => self.worked(stage).await,
                permit = turn(&mut self.turn) => self.turn = Turn::Now { _until: permit },
            }
        }
    }

    fn enqueue(&mut self, task: Uuid) {
        let stops = self.stopping.as_ref().is_some_and(|stopping| stopping.task == task);
        let works = self.work.as_ref().is_some_and(|work| work.task == task) || self.leaving == Some(task);
        if !(stops || works || self.queue.contains(&task)) {
            self.queue.push_back(task);
        }
    }

    fn files(&self) -> RunFiles {
        RunFiles::of(&self.surroundings, self.vm.record.id)
    }

    fn event(&self, kind: EventKind, text: impl Into<String>) -> EventRecord {
        EventRecord::now(kind, text).of_vm(self.vm.record.id, &self.vm.record.name)
    }

    fn show(&self) {
        let state = match &self.machine {
            None if self.vm.record.is_saved() => api::VmState::Saved,
            None if self.vm.record.made_by.is_some() => api::VmState::Creating,
            None => api::VmState::Off,
            Some(_) if self.stopping.is_some() => api::VmState::Stopping,
            Some(machine) if machine.paused => api::VmState::Paused,
            Some(_) => api::VmState::Running,
        };
        let pid = self.machine.as_ref().map(|machine| machine.monitor.pid());
        self.live.send_replace(Live { state, pid, last_end: self.last_end.clone() });
    }

    /// Changes what is stored; waits for a store that cannot be written, since what is done cannot be undone.
    async fn change(
        &mut self,
        task: Option<Uuid>,
        edit: impl FnMut(&mut VmRecord, Option<&mut TaskRecord>) -> Option<EventRecord> + Clone + Send + 'static,
    ) {
        // Whoever hears of the change finds the VM as it is then.
        self.show();
        let vm = self.vm.record.id;
        loop {
            let edit = edit.clone();
            match self.state.run(move |state| state.change(vm, task, edit)).await {
                Ok(stored) => {
                    self.vm = stored;
                    return;
                }
                Err(StateError::Gone(_) | StateError::Ending) => return,
                Err(error) => tracing::error!(vm = %self.vm.record.name, "cannot be stored, trying again: {error}"),
            }
            sleep(STORE_AGAIN).await;
        }
    }

    /// Finds the monitor of an earlier `marud`.
    async fn adopt(&mut self) {
        let (surroundings, id) = (self.surroundings.clone(), self.vm.record.id);
        let found = tokio::task::spawn_blocking(move || process::find(&surroundings, id)).await;
        let process = match found {
            Ok(Ok(process)) => process,
            Ok(Err(error)) => {
                let event = self.event(EventKind::VmAlarm, format!("its monitor cannot be found: {error}"));
                self.change(None, move |_, _| Some(event.clone())).await;
                None
            }
            Err(_) => return,
        };
        let process = match process {
            Some(process) if self.vm.record.is_saved() => return self.end_saved(process).await,
            process => process,
        };
        match process.map(Monitor::new) {
            Some(Ok(monitor)) => self.take_over(monitor).await,
            Some(Err(error)) => tracing::error!(vm = %self.vm.record.name, "its monitor cannot be watched: {error}"),
            None if self.vm.record.power == Power::On && !self.is_being_started().await => {
                let ending = Ending::find(None, None, &self.files().log());
                self.note_end(Ending { reason: format!("while marud was not running: {}", ending.reason), failed: true }).await;
            }
            None => self.clean_up(),
        }
        self.show();
    }

    /// Whether an earlier `marud` was about to start it: the task goes on, and says itself what becomes of it.
    async fn is_being_started(&self) -> bool {
        let Some(first) = self.queue.front() else { return false };
        let task = self.read_task(*first).await;
        task.is_some_and(|task| task.state == TaskStateRecord::Running && task.operation == OperationRecord::Start)
    }

    async fn take_over(&mut self, mut monitor: Monitor) {
        let connected = monitor.connect(&self.files().control(), START).await;
        let status = match connected {
            Ok(()) => monitor.call::<Status>(&Request::Status, START).await,
            Err(error) => Err(error),
        };
        let paused = matches!(&status, Ok(status) if status.state == RunStatus::Paused);
        let event = match &status {
            Ok(_) => self.event(EventKind::VmAdopted, format!("it runs, as process {}", monitor.pid())),
            Err(error) => self.event(EventKind::VmAlarm, format!("it runs, as process {}, but: {error}", monitor.pid())),
        };
        self.machine = Some(Machine { monitor, paused, told_end: None });
        if status.is_ok() {
            self.link().await;
        }
        self.change(None, move |vm, _| {
            vm.power = Power::On;
            Some(event.clone())
        })
        .await;
        self.meter_run().await;
        self.wait_for_room(false).await;
    }

    /// Begins tasks as long as there are some that can be done now.
    async fn advance(&mut self) {
        while !self.deleted {
            let Some(task) = self.next_task().await else { break };
            self.perform(task).await;
            self.turn = Turn::None;
            self.show();
        }
        // Its task was cancelled.
        self.permit.take_if(|(task, _)| !self.queue.contains(task));
        self.show();
    }

    /// Whether it may be started as far as others are concerned.
    fn may_start(&self) -> bool {
        self.state.own_host().is_none() || self.machine.is_some() || self.permit.is_some()
    }

    /// Takes the first task of the queue that can be done now.
    async fn next_task(&mut self) -> Option<TaskRecord> {
        let may_go: fn(&OperationRecord) -> bool = match (&self.stopping, &self.work) {
            (Some(stopping), _) if stopping.step == Step::Guest => |operation| *operation == OperationRecord::ForceOff,
            (Some(_), _) => return None,
            (None, Some(_)) => OperationRecord::overtakes,
            (None, None) if self.leaving.is_some() => OperationRecord::overtakes,
            (None, None) => |_| true,
        };
        let mut index = 0;
        while let Some(id) = self.queue.get(index) {
            match self.read_task(*id).await.filter(TaskRecord::is_unfinished) {
                Some(task) if !may_go(&task.operation) => index += 1,
                Some(task) if task.operation == OperationRecord::Start && !self.may_start() => return None,
                Some(task) if task.operation == OperationRecord::Start && self.machine.is_none() && !self.has_turn() => {
                    return None;
                }
                task => {
                    self.queue.remove(index);
                    if task.is_some() {
                        return task;
                    }
                }
            }
        }
        None
    }

    /// Whether it may be started now; if not, it waits for that from now on.
    fn has_turn(&mut self) -> bool {
        if matches!(self.turn, Turn::None) {
            let starts = self.surroundings.starts.clone();
            self.turn = Turn::Waiting(Box::pin(async move { starts.acquire_owned().await.ok() }));
        }
        matches!(self.turn, Turn::Now { .. })
    }

    async fn read_task(&self, id: Uuid) -> Option<TaskRecord> {
        loop {
            match self.state.run(move |state| state.read::<TaskRecord>(&id.to_string())).await {
                Ok(stored) => return stored.map(|stored| stored.record),
                Err(StateError::Ending) => return None,
                Err(error) => tracing::error!(task = %id, "cannot be read, trying again: {error}"),
            }
            sleep(STORE_AGAIN).await;
        }
    }

    /// The monitor told something.
    async fn told(&mut self, event: Told) {
        let Some(machine) = &mut self.machine else { return };
        let text = match event {
            Told::Running => {
                machine.paused = false;
                return;
            }
            Told::Paused => {
                machine.paused = true;
                return;
            }
            Told::GuestAgent { open } => {
                self.links.guest.set_open(open);
                return;
            }
            // By the guest, or by a task that says so itself.
            Told::Reset | Told::CpusRemoved { .. } => return,
            Told::DeviceRemoved { .. } if self.work.is_some() => return,
            Told::DeviceRemoved { id } => format!(
                "the guest has given {id} back, which nobody waits for: it is not plugged in any more, until the VM is started again"
            ),
            Told::Ended { reason } => {
                machine.told_end = Some(reason);
                return;
            }
            Told::FinalCounters { devices } => return self.keep_last_counters(devices),
            Told::GuestPanicked => "the guest's kernel says that it has crashed".into(),
            Told::DeviceFailed { id, reason } => format!("the device {id} cannot go on until its driver resets it: {reason}"),
            Told::DiskFailed { id, reason } if machine.paused => {
                let way_out = match self.wait_for_room(true).await {
                    true => "it goes on when there is more",
                    false => "when that is mended, resume it",
                };
                format!("the disk {id} failed a request, and the VM is paused: {reason}; {way_out}")
            }
            Told::DiskFailed { id, reason } => format!("the disk {id} failed a request: {reason}"),
        };
        let event = self.event(EventKind::VmAlarm, text);
        self.change(None, move |_, _| Some(event.clone())).await;
    }

    /// The monitor has ended.
    async fn ended(&mut self, status: Option<std::process::ExitStatus>) {
        let Some(machine) = self.machine.take() else { return };
        let mut ending = Ending::find(machine.told_end.as_deref(), status, &self.files().log());
        self.links.guest.detach().await;
        let stopping = self.stopping.take();
        if stopping.as_ref().is_some_and(|stopping| stopping.step == Step::Killed) {
            ending = Ending { reason: "its monitor was killed, since it did not end".into(), failed: false };
        }
        match stopping {
            Some(stopping) => self.note_end_of(Some(stopping.task), ending).await,
            None => self.note_end(ending).await,
        }
    }

    async fn note_end(&mut self, ending: Ending) {
        self.note_end_of(None, ending).await;
    }

    /// Stores that the VM is off, and why; a task that waited for this is done.
    async fn note_end_of(&mut self, task: Option<Uuid>, ending: Ending) {
        self.room = None;
        self.meter_end().await;
        self.clean_up();
        if self.vm.record.is_saved() {
            return self.note_saved(task).await;
        }
        self.forget_saved().await;
        let kind = if ending.failed { EventKind::VmFailed } else { EventKind::VmStopped };
        let event = self.event(kind, ending.reason.clone()).by_task(task);
        let end = EndingRecord { at: OffsetDateTime::now_utc(), reason: ending.reason, failed: ending.failed };
        self.last_end = Some(end.clone());
        self.change(task, move |vm, record| {
            vm.power = Power::Off;
            vm.last_end = Some(end.clone());
            if let Some(record) = record {
                record.end(TaskStateRecord::Done, None);
            }
            Some(event.clone())
        })
        .await;
    }

    /// Removes what a VM that does not run has no use for.
    fn clean_up(&self) {
        super::remove_traces(&self.surroundings, self.vm.record.id);
    }
}

/// What the monitor does next; never anything without one.
async fn next(machine: &mut Option<Machine>) -> Happened {
    match machine {
        Some(machine) => machine.monitor.next().await,
        None => std::future::pending().await,
    }
}

/// When its turn has come; never if it does not wait for that.
async fn turn(turn: &mut Turn) -> Permit {
    match turn {
        Turn::Waiting(permit) => permit.await,
        Turn::None | Turn::Now { .. } => std::future::pending().await,
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
