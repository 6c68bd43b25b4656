//! What tasks do.

use std::time::Duration;

use cluster::records::OwnerRecord;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use vmm::control::{EventKind as Told, Request, Status};

use super::super::delete::{self, DeleteError};
use super::super::ending::Ending;
use super::super::monitor::{CallError, Happened, Monitor};
use super::super::process::{self, RunFiles};
use super::super::{Live, Surroundings, cloud_init, config};
use super::limits;
use super::{ANSWER, Actor, END, Input, Machine, START, STORE_AGAIN, Step, Stopping};
use crate::net::socket_directory;
use crate::records::{
    Cause, CheckpointOperation, CloneRecord, DeleteDisks, EventKind, EventRecord, OperationRecord, Power, ProgressRecord,
    SavedPhase, TaskRecord, TaskStateRecord, VmRecord,
};
use crate::state::{State, StateError};

/// Said of a shutdown that was cancelled.
const STILL_ASKED: &str = "cancelled: the VM is not ended by force; the guest was asked to shut down, and may still do it";

/// How a task went on.
pub(super) enum Went {
    /// It is over.
    Done(Option<EventRecord>),
    /// It waits.
    Waits,
}

/// Whether the VM that is being started may run on without a lease: its owner's record says so, if it is the one that it is started by.
fn is_bound(state: &State, vm: &VmRecord) -> Result<bool, StateError> {
    let owner = state.read::<OwnerRecord>(&vm.id.to_string())?;
    Ok(owner.is_some_and(|owner| owner.record.bound && vm.owned_at == Some(owner.revision.0)))
}

fn not_started(error: &dyn std::error::Error) -> Cause {
    Cause::new("not-started", vmm::error_chain(error), "see what stands in the way on the host, and try again")
}

impl Actor {
    pub(super) async fn perform(&mut self, task: TaskRecord) {
        let id = task.id;
        let starts = task.operation == OperationRecord::Start;
        let runs = self.machine.as_ref().is_some_and(|machine| !machine.paused);
        if task.state == TaskStateRecord::Queued {
            self.change(Some(id), move |vm, task| {
                if let Some(task) = task.filter(|task| task.state == TaskStateRecord::Queued) {
                    task.state = TaskStateRecord::Running;
                    task.started_at = Some(OffsetDateTime::now_utc());
                    if starts {
                        vm.power = Power::On;
                    }
                    if let OperationRecord::Save { ran } | OperationRecord::Checkpoint(CheckpointOperation::Create { ran, .. }) =
                        &mut task.operation
                    {
                        *ran = runs;
                    }
                }
                None
            })
            .await;
        }
        // It may have been cancelled at the last moment.
        let Some(task) = self.read_task(id).await.filter(|task| task.state == TaskStateRecord::Running) else { return };
        if task.cancel_requested && !task.operation.is_long() {
            // An earlier marud had no time for it.
            return self.cancelled(id, STILL_ASKED).await;
        }
        let went = match &task.operation {
            OperationRecord::Start => self.start().await,
            OperationRecord::ShutDown { grace_seconds } => self.shut_down(&task, *grace_seconds).await,
            OperationRecord::ForceOff => self.force_off(id).await,
            OperationRecord::Reset => self.simple(&Request::Reset, EventKind::VmReset, "it was reset").await,
            OperationRecord::Pause => self.simple(&Request::Pause, EventKind::VmPaused, "it is paused").await,
            OperationRecord::Resume => self.simple(&Request::Resume, EventKind::VmResumed, "it goes on").await,
            OperationRecord::Delete { disks } => return self.delete(&task, *disks).await,
            OperationRecord::ResetUsage => return self.reset_usage(id).await,
            OperationRecord::Save { ran } => self.save(id, *ran).await,
            OperationRecord::DiscardSaved => self.discard_saved().await,
            OperationRecord::Checkpoint(operation) => self.checkpoint(&task, operation).await,
            OperationRecord::SetResources { change, replace } => return self.set_resources(id, change, *replace).await,
            OperationRecord::SetPolicy { net, change, replace } => return self.set_policy(id, net, change, *replace).await,
            OperationRecord::Clone(wanted) => self.clone(&task, wanted.clone()),
            OperationRecord::Export { to } => self.export(&task, to.clone()),
            OperationRecord::Import(wanted) => Ok(self.import(&task, wanted.clone())),
            OperationRecord::Edit { patch } => self.edit(&task, patch.clone()),
            OperationRecord::Copy(wanted) => self.copy(&task, wanted.clone()),
            OperationRecord::ImportImage(_) => Err(Cause::new("internal", "an image is no VM's", "ask for the image anew")),
        };
        // Before it is stored: whoever gave the permit must know it also when the store cannot be written.
        if let Some((_, started)) = self.permit.take_if(|(task, _)| *task == id) {
            let _ = started.send(went.as_ref().map(drop).map_err(Clone::clone));
        }
        match went {
            Ok(Went::Waits) => {}
            Ok(Went::Done(event)) => self.finish(id, event).await,
            Err(cause) => self.fail(id, cause).await,
        }
    }

    async fn finish(&mut self, task: Uuid, event: Option<EventRecord>) {
        self.finish_with(task, event, None).await;
    }

    pub(super) async fn finish_with(&mut self, task: Uuid, event: Option<EventRecord>, progress: Option<ProgressRecord>) {
        let started = self.machine.is_some() && event.as_ref().is_some_and(|event| event.kind == EventKind::VmStarted);
        self.change(Some(task), move |vm, record| {
            if started {
                vm.started_at = Some(OffsetDateTime::now_utc());
            }
            let record = record?;
            record.progress = progress.or(record.progress);
            record.end(TaskStateRecord::Done, None);
            event.clone().map(|event| event.by_task(Some(task)))
        })
        .await;
    }

    pub(super) async fn fail(&mut self, task: Uuid, cause: Cause) {
        let runs = self.machine.is_some();
        let name = self.vm.record.name.clone();
        self.change(Some(task), move |vm, record| {
            // As before the task.
            vm.power = if runs { Power::On } else { Power::Off };
            let record = record?;
            let operation = api::Operation::from(&record.operation);
            record.end(TaskStateRecord::Failed, Some(cause.clone()));
            let event = EventRecord::now(EventKind::TaskFailed, format!("{operation}: {}; {}", cause.message, cause.way_out));
            Some(event.of_vm(vm.id, &name).by_task(Some(task)))
        })
        .await;
    }

    async fn start(&mut self) -> Result<Went, Cause> {
        if self.goes_on_from_saved() {
            return self.go_on().await;
        }
        if let Some(machine) = &self.machine {
            return if machine.paused {
                Err(Cause::new("vm-paused", "the VM is paused", "resume it"))
            } else if self.vm.record.started_at.is_none_or(|at| self.vm.record.last_end.as_ref().is_some_and(|end| end.at > at)) {
                // An earlier marud got as far as this.
                self.settle().await;
                Ok(Went::Done(Some(self.event(EventKind::VmStarted, "it runs"))))
            } else {
                Ok(Went::Done(None))
            };
        }
        self.live.send_replace(Live { state: api::VmState::Starting, pid: None, last_end: None });
        let (surroundings, record) = (self.surroundings.clone(), self.vm.record.clone());
        let limit = self.start_limit();
        let state = self.state.clone();
        let spawned = tokio::task::spawn_blocking(move || {
            // The ports are kept as long as the VM is stored as one that runs: it is already.
            surroundings.network.hold(record.id, &record.nets)?;
            let sockets = socket_directory(&surroundings.run_directory, record.id);
            let mut config = config::monitor(&record, &surroundings.volumes, &sockets)?;
            cloud_init::attach(&surroundings, &record, &mut config)?;
            let saved = record.saved.as_ref().filter(|saved| saved.phase == SavedPhase::Saved);
            let saved = saved.map(|saved| surroundings.volumes.find(&saved.file)).transpose()?;
            let is_bound = is_bound(&state, &record).map_err(|error| not_started(&error))?;
            surroundings.cgroups.begin(record.id, is_bound).map_err(|error| not_started(&error))?;
            limits::admit(&surroundings, &record, &record.resources.cpu)?;
            surroundings.ledger.set_starting(record.id, true);
            surroundings.ledger.share(&surroundings.cgroups);
            process::spawn(&surroundings, record.id, &config, saved.as_deref()).map_err(|error| not_started(&error))
        });
        let spawned = spawned.await.map_err(|_| Cause::new("not-started", "marud is about to end", "try again"))?;
        let process = spawned.inspect_err(|_| self.clean_up())?;
        let watched = Monitor::new(process);
        let mut monitor = watched.map_err(|error| Cause::new("not-started", error.to_string(), "try again"))?;
        let connected = monitor.connect(&self.files().control(), limit).await;
        let status = match connected {
            Ok(()) => monitor.call::<Status>(&Request::Status, START).await,
            Err(error) => Err(error),
        };
        let Surroundings { ledger, cgroups, .. } = &*self.surroundings;
        ledger.set_starting(self.vm.record.id, false);
        ledger.share(cgroups);
        match status {
            Ok(_) if self.vm.record.is_saved() => {
                // It has become the user by whom it must be able to connect again.
                self.surroundings.network.poke();
                self.machine = Some(Machine { monitor, paused: true, told_end: None });
                self.link().await;
                self.meter_run().await;
                self.go_on().await
            }
            Ok(_) => {
                self.surroundings.network.poke();
                let text = format!("it runs, as process {}", monitor.pid());
                self.machine = Some(Machine { monitor, paused: false, told_end: None });
                self.link().await;
                self.settle().await;
                self.meter_run().await;
                Ok(Went::Done(Some(self.event(EventKind::VmStarted, text))))
            }
            Err(error) => {
                monitor.kill();
                let ending = last_end(&mut monitor, &self.files()).await;
                self.clean_up();
                let message = match error {
                    CallError::Gone => ending.reason,
                    error => error.to_string(),
                };
                Err(Cause::new("not-started", message, "change what it says, and start the VM again"))
            }
        }
    }

    async fn simple(&mut self, request: &Request, kind: EventKind, text: &str) -> Result<Went, Cause> {
        let event = self.event(kind, text);
        let Some(machine) = &mut self.machine else {
            return Err(self.not_running());
        };
        machine.monitor.call::<Value>(request, ANSWER).await.map_err(|error| refused(&error))?;
        machine.paused = *request == Request::Pause;
        self.room = None;
        Ok(Went::Done(Some(event)))
    }

    async fn shut_down(&mut self, task: &TaskRecord, grace_seconds: u32) -> Result<Went, Cause> {
        if self.vm.record.is_saved() {
            return Err(self.not_running());
        }
        let Some(machine) = &mut self.machine else { return Ok(Went::Done(None)) };
        let asked = match self.links.guest.shut_down().await {
            Ok(()) => "the guest agent was asked to shut down",
            // There is none, or it cannot.
            Err(_) => match machine.monitor.call::<Value>(&Request::PowerButton, ANSWER).await {
                Ok(_) => "the power button was pressed",
                // As is wanted: its guest has shut down, most likely because the same was asked before marud was started anew.
                Err(CallError::Gone) => "the VM is about to end",
                Err(error) => return Err(refused(&error)),
            },
        };
        // The time counts from the first try, also when marud was started anew meanwhile.
        let passed = task.started_at.map_or(Duration::ZERO, |at| (OffsetDateTime::now_utc() - at).try_into().unwrap_or_default());
        let left = Duration::from_secs(grace_seconds.into()).saturating_sub(passed);
        self.stopping = Some(Stopping { task: task.id, deadline: Instant::now() + left, step: Step::Guest });
        self.note(task.id, format!("{asked}; the guest has {} s to shut down", left.as_secs())).await;
        Ok(Went::Waits)
    }

    async fn force_off(&mut self, task: Uuid) -> Result<Went, Cause> {
        if self.vm.record.is_saved() {
            return Err(self.not_running());
        }
        if self.machine.is_none() {
            return Ok(Went::Done(None));
        }
        if let Some(overtaken) = self.stopping.take() {
            self.note(overtaken.task, "the VM is ended by force, as another task asks").await;
            // Both wait for the same end: this one is done with it, too.
            self.queue.push_front(overtaken.task);
        }
        self.tell_to_end(task).await;
        Ok(Went::Waits)
    }

    pub(super) async fn note(&mut self, task: Uuid, text: impl Into<String>) {
        let text = text.into();
        self.change(Some(task), move |_, record| {
            record?.note(text.clone());
            None
        })
        .await;
    }

    pub(super) async fn tell_to_end(&mut self, task: Uuid) {
        let Some(machine) = &mut self.machine else { return };
        let step = match machine.monitor.call::<Value>(&Request::Stop, ANSWER).await {
            Ok(_) | Err(CallError::Gone) => Step::Monitor,
            Err(_) => {
                machine.monitor.kill();
                Step::Killed
            }
        };
        self.stopping = Some(Stopping { task, deadline: Instant::now() + END, step });
    }

    /// The time for a step to end the VM is over.
    pub(super) async fn press_harder(&mut self) {
        let Some(Stopping { task, step, .. }) = self.stopping.take() else { return };
        match step {
            Step::Guest => {
                self.note(task, "the guest has not shut down in time; the VM is ended as if its power were cut").await;
                self.tell_to_end(task).await;
            }
            // A process that is killed and does not end waits for the host's disks.
            Step::Monitor | Step::Killed => {
                if let Some(machine) = &self.machine {
                    machine.monitor.kill();
                }
                if step == Step::Monitor {
                    self.note(task, "the monitor did not end, and was killed").await;
                }
                self.stopping = Some(Stopping { task, deadline: Instant::now() + END, step: Step::Killed });
            }
        }
    }

    /// Ends a task that waits for the guest, or has not begun.
    pub(super) async fn cancel(&mut self, id: Uuid) {
        if self.stay(id).await {
            return;
        }
        let waits = self.stopping.as_ref().is_some_and(|stopping| stopping.task == id && stopping.step == Step::Guest);
        if self.cancel_work(id) || !waits {
            return;
        }
        self.stopping = None;
        self.cancelled(id, STILL_ASKED).await;
    }

    pub(super) async fn cancelled(&mut self, id: Uuid, note: &'static str) {
        let (vm, name) = (self.vm.record.id, self.vm.record.name.clone());
        self.change(Some(id), move |_, record| {
            let record = record?;
            record.note(note);
            record.end(TaskStateRecord::Cancelled, None);
            let text = format!("{}: {note}", api::Operation::from(&record.operation));
            Some(EventRecord::now(EventKind::TaskCancelled, text).of_vm(vm, &name).by_task(Some(id)))
        })
        .await;
    }

    fn clone(&mut self, task: &TaskRecord, wanted: CloneRecord) -> Result<Went, Cause> {
        if self.machine.is_some() {
            return Err(Cause::new(
                "vm-running",
                "the VM runs",
                "stop it first: its disks must not change while they are copied",
            ));
        }
        if self.vm.record.is_saved() {
            return Err(self.not_running());
        }
        let (state, surroundings, source) = (self.state.clone(), self.surroundings.clone(), self.vm.record.clone());
        self.begin(task, "cancelled; nothing of it is left", move |progress| {
            super::super::clone::clone(&state, &surroundings, &source, &wanted, progress)
        });
        Ok(Went::Waits)
    }

    async fn delete(&mut self, task: &TaskRecord, disks: DeleteDisks) {
        let id = task.id;
        if self.machine.is_some() {
            return self.fail(id, Cause::new("vm-running", "the VM runs", "stop it first")).await;
        }
        if self.vm.record.is_saved() {
            return self.fail(id, self.not_running()).await;
        }
        self.clean_up();
        let (record, surroundings) = (self.vm.record.clone(), self.surroundings.clone());
        let work = move |state: &State| Ok(delete::delete(state, &surroundings, &record, id, disks));
        loop {
            match self.state.run(work.clone()).await {
                Ok(Ok(())) => {
                    self.deleted = true;
                    return;
                }
                Ok(Err(DeleteError::Refused(cause))) => return self.fail(id, cause).await,
                Ok(Err(DeleteError::State(error))) => {
                    tracing::error!(vm = %self.vm.record.name, "cannot be stored, trying again: {error}");
                }
                Err(_) => return,
            }
            sleep(STORE_AGAIN).await;
        }
    }

    /// What was to be done to a VM that is deleted cannot be done any more.
    pub(super) async fn refuse_rest(mut self) {
        self.inputs.close();
        while let Some(input) = self.inputs.recv().await {
            if let Input::Task(task) = input {
                self.enqueue(task);
            }
        }
        for id in std::mem::take(&mut self.queue) {
            if let Err(error) = self.state.run(move |state| delete::refuse_task(state, id)).await {
                tracing::error!(task = %id, "its VM is deleted, and it cannot be stored: {error}");
            }
        }
    }
}

/// Waits for the end of a monitor that could not start its VM.
pub(super) async fn last_end(monitor: &mut Monitor, files: &RunFiles) -> Ending {
    let mut told = None;
    loop {
        match monitor.next().await {
            Happened::Event(Told::Ended { reason }) => told = Some(reason),
            Happened::Event(_) => {}
            Happened::Exited(status) => return Ending::find(told.as_deref(), status, &files.log()),
        }
    }
}

pub(super) fn refused(error: &CallError) -> Cause {
    Cause::new("monitor", error.to_string(), "do what it says, or stop the VM by force")
}
