//! Tasks.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cluster::records::Power;
use serde::Deserialize;
use store::record::Record;
use store::{Changed, Outcome, Transaction};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, IntoResponses};
use uuid::Uuid;

use super::extract::{Name, Params, limit, page};
use super::once::Once;
use super::vms::{check_if_match, find};
use super::{App, Refusal};
use crate::cluster::placements;
use crate::copies;
use crate::host::Host;
use crate::images;
use crate::records::{
    CheckpointOperation, EventKind, EventRecord, OperationRecord, Power as VmPower, TaskRecord, TaskStateRecord, VmRecord,
};
use crate::state::{Records, State, StateError};
use crate::vm::{config, edit};

/// Tasks that may wait for one VM.
pub const MAX_WAITING: usize = 16;
/// How long a request may wait, in seconds.
const MAX_WAIT: u32 = 300;

/// Which tasks.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those of the VM with this id.
    vm: Option<Uuid>,
    /// Only those in this state.
    #[param(inline)]
    state: Option<api::TaskState>,
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only those behind: `next` of the part before.
    after: Option<String>,
}

/// What to wait for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitParams {
    /// How long to wait for the task's end, in seconds: 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    pub wait: Option<u32>,
}

/// What an operation on a VM may be bound to, for the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the headers are read where they are needed")]
pub struct Conditions {
    /// The ETag that it must still have
    #[param(rename = "If-Match")]
    if_match: Option<String>,
    /// Up to 128 characters, remembered for a day
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// What is answered where a task does the work, for the document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "`answer` makes them")]
pub enum TaskAnswer {
    /// The task, which has ended
    #[response(status = 200)]
    Ended(api::Task),
    /// The task
    #[response(status = 202, headers(("Location" = String)))]
    Accepted(api::Task),
    /// Not done
    #[response(status = "default")]
    Refused(api::Error),
}

/// Makes a task for a VM.
pub fn submit(
    state: &State,
    host: &Host,
    vm: &str,
    headers: &HeaderMap,
    by: &str,
    once: Option<&Once>,
    operation: impl FnOnce(&VmRecord) -> Result<OperationRecord, Refusal> + Clone,
) -> Result<TaskRecord, Refusal> {
    loop {
        if let Some(made) = Once::made(once, state)? {
            return read(state, made);
        }
        let stored = find(state, vm)?;
        check_if_match(headers, &stored)?;
        let operation = operation.clone()(&stored.record)?;
        let waiting = state.unfinished_tasks(stored.record.id)?.len();
        if waiting >= MAX_WAITING {
            let message = format!("{waiting} tasks wait for the VM '{}' already", stored.record.name);
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many", message, "wait for them, or cancel some"));
        }
        if waiting == 0 {
            refuse_now(host, &stored.record, &operation)?;
        }
        let task = TaskRecord::new(stored.record.id, stored.record.name.clone(), operation, by.into());
        let name = task.id.to_string();
        let vm_name = stored.record.id.to_string();
        let mut transaction = Transaction::new().if_still(&vm_name, &stored).if_none::<TaskRecord>(&name).write(&name, &task);
        if state.own_host().is_some() {
            // Whoever takes the VM over meanwhile sees the task, or is seen here.
            transaction = transaction.write(&vm_name, &stored.record);
            transaction = wish(state, &stored.record, &task.operation, transaction)??;
        }
        if let Outcome::Committed(_) = state.commit(&Once::note(once, transaction, task.id))? {
            return Ok(task);
        }
    }
}

/// In a cluster, a VM runs because that is wanted, wherever it is. A task that ends it is the end of those that wait to start it.
fn wish(
    state: &State,
    vm: &VmRecord,
    operation: &OperationRecord,
    mut transaction: Transaction,
) -> Result<Result<Transaction, Refusal>, StateError> {
    match operation {
        OperationRecord::Start => transaction = placements::want(state, vm.id, Power::On, transaction)?,
        operation if operation.ends_vm() => {
            transaction = placements::want(state, vm.id, Power::Off, transaction)?;
            for mut task in state.unfinished_tasks(vm.id)? {
                if task.operation == OperationRecord::Start && task.state == TaskStateRecord::Queued {
                    task.note("cancelled: the VM is not to run any more");
                    task.end(TaskStateRecord::Cancelled, None);
                    transaction = transaction.write(&task.id.to_string(), &task);
                }
            }
        }
        OperationRecord::Delete { .. } if placements::is_wanted_on(state, vm.id)? => {
            let message = format!("the VM '{}' runs, or is to run", vm.name);
            return Ok(Err(Refusal::conflict("vm-running", message, "stop it first")));
        }
        _ => {}
    }
    Ok(Ok(transaction))
}

/// What cannot be done to a VM as it is need not become a task that fails. (With others before it, nobody knows yet.)
fn refuse_now(host: &Host, vm: &VmRecord, operation: &OperationRecord) -> Result<(), Refusal> {
    use api::VmState::{Off, Paused, Running, Saved};
    let state = host.live(vm.id).state;
    let name = &vm.name;
    match (operation, state) {
        (OperationRecord::Reset | OperationRecord::Pause | OperationRecord::Resume | OperationRecord::Save { .. }, Off) => {
            Err(Refusal::conflict("vm-off", format!("the VM '{name}' does not run"), "start it first"))
        }
        (
            OperationRecord::Reset
            | OperationRecord::Pause
            | OperationRecord::Resume
            | OperationRecord::ShutDown { .. }
            | OperationRecord::ForceOff
            | OperationRecord::Delete { .. }
            | OperationRecord::Clone(_)
            | OperationRecord::Edit { .. }
            | OperationRecord::Export { .. },
            Saved,
        ) => {
            let way_out = "start it, or drop its saved state (discard-saved)";
            Err(Refusal::conflict("vm-saved", format!("the VM '{name}' is saved"), way_out))
        }
        (OperationRecord::Checkpoint(CheckpointOperation::Apply { .. } | CheckpointOperation::Create { .. }), Saved) => {
            let way_out = "start it, or drop its saved state (discard-saved)";
            Err(Refusal::conflict("vm-saved", format!("the VM '{name}' is saved"), way_out))
        }
        (OperationRecord::DiscardSaved, Off | Running | Paused) => {
            Err(Refusal::conflict("not-saved", format!("the VM '{name}' is {state}"), "there is nothing to drop"))
        }
        (
            OperationRecord::Delete { .. }
            | OperationRecord::Clone(_)
            | OperationRecord::Export { .. }
            | OperationRecord::Checkpoint(CheckpointOperation::Apply { .. }),
            Running | Paused,
        ) => Err(Refusal::conflict("vm-running", format!("the VM '{name}' is {state}"), "stop it first")),
        (OperationRecord::Start, Paused) => {
            Err(Refusal::conflict("vm-paused", format!("the VM '{name}' is paused"), "resume it"))
        }
        (OperationRecord::ShutDown { .. }, Paused) => {
            let message = format!("the VM '{name}' is paused: its guest cannot shut down");
            Err(Refusal::conflict("vm-paused", message, "resume it first, or stop it by force"))
        }
        (OperationRecord::Edit { patch }, Running | Paused) => {
            let images = images::all(&host.state)?;
            let edited = |spec: api::VmSpec| config::edited(vm, &spec, &host.surroundings.volumes, &images);
            let wanted = edit::patched(vm, patch).and_then(edited);
            let planned = wanted.and_then(|wanted| edit::plan(vm, &wanted));
            planned.map(drop).map_err(|cause| Refusal { status: StatusCode::CONFLICT, cause })
        }
        _ => Ok(()),
    }
}

fn missing(task: impl std::fmt::Display) -> Refusal {
    Refusal::not_found(format_args!("task '{task}'"), "list those that there are; old ones are forgotten")
}

/// The task with this id.
pub fn read(state: &State, task: Uuid) -> Result<TaskRecord, Refusal> {
    Ok(state.read::<TaskRecord>(&task.to_string())?.ok_or_else(|| missing(task))?.record)
}

fn parse(task: &str) -> Result<Uuid, Refusal> {
    Uuid::parse_str(task).map_err(|_| missing(task))
}

/// Answers with a task, when it has ended or the time is over. `changes` are those since before it was read.
pub async fn answer(app: &App, task: TaskRecord, changes: Receiver<Changed>, wait: Option<u32>) -> Result<Response, Refusal> {
    let task = wait_for(app, task, changes, wait.unwrap_or(0)).await?;
    if !task.is_unfinished() {
        return Ok(Json(api::Task::from(&task)).into_response());
    }
    let mut response = (StatusCode::ACCEPTED, Json(api::Task::from(&task))).into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("{}/tasks/{}", api::BASE, task.id)) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    Ok(response)
}

async fn wait_for(app: &App, task: TaskRecord, mut changes: Receiver<Changed>, seconds: u32) -> Result<TaskRecord, Refusal> {
    if seconds > MAX_WAIT {
        let message = format!("wait={seconds}");
        let way_out = format!("wait {MAX_WAIT} s at most, and ask again");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-parameter", message, way_out));
    }
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    let (id, key) = (task.id, TaskRecord::key(&task.id.to_string()));
    let mut task = task;
    while task.is_unfinished() {
        match timeout_at(deadline, changes.recv()).await {
            Ok(Ok(changed)) if changed.key != key => {}
            // Something about it, or nobody knows what.
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => {
                task = app.host.state.run(move |state| Ok(read(state, id))).await??;
            }
            Ok(Err(RecvError::Closed)) | Err(_) => break,
        }
    }
    Ok(task)
}

/// List tasks
///
/// In the order in which they were made. The last thousand that have ended are kept.
#[utoipa::path(get, path = "/tasks", tag = "tasks", operation_id = "list_tasks", params(ListParams), responses(
    (status = 200, description = "Tasks", body = api::Page<api::Task>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<ListParams>) -> Result<Json<api::Page<api::Task>>, Refusal> {
    let limit = limit(params.limit)?;
    let stored = app.host.state.run(|state| state.all::<TaskRecord>()).await?;
    let mut tasks: Vec<api::Task> = stored.iter().map(|task| api::Task::from(&task.record)).collect();
    tasks.retain(|task| params.vm.is_none_or(|vm| task.vm == Some(vm)));
    tasks.retain(|task| params.state.is_none_or(|state| state == task.state));
    Ok(Json(page(tasks, params.after.as_deref(), limit, |task| task.id.to_string())))
}

/// Show a task
///
/// With `wait`, when it has ended.
#[utoipa::path(get, path = "/tasks/{task}", tag = "tasks", operation_id = "show_task",
    params(("task" = Uuid, Path, description = "Its id"), WaitParams), responses(
    (status = 200, description = "The task", body = api::Task),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(
    Shared(app): Shared<App>,
    Name(name): Name,
    Params(params): Params<WaitParams>,
) -> Result<Json<api::Task>, Refusal> {
    let id = parse(&name)?;
    let changes = app.host.changes();
    let task = app.host.state.run(move |state| Ok(read(state, id))).await??;
    let task = wait_for(&app, task, changes, params.wait.unwrap_or(0)).await?;
    Ok(Json((&task).into()))
}

/// Cancel a task
///
/// One that waits for others ends at once; a shutdown, or long work, which leaves nothing then, ends soon. Others are too short to be cancelled.
#[utoipa::path(post, path = "/tasks/{task}/cancel", tag = "tasks", operation_id = "cancel_task",
    params(("task" = Uuid, Path, description = "Its id"), WaitParams), responses(
    (status = 200, description = "The task, which has ended", body = api::Task),
    (status = 202, description = "The task, which will end", body = api::Task, headers(("Location" = String))),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn cancel(Shared(app): Shared<App>, Name(name): Name, Params(params): Params<WaitParams>) -> Result<Response, Refusal> {
    let id = parse(&name)?;
    let changes = app.host.changes();
    let task = app.host.state.run(move |state| Ok(request_cancel(state, id))).await??;
    answer(&app, task, changes, params.wait).await
}

/// What a task that is cancelled before it began had wanted is not wanted any more; nor is it that a VM goes elsewhere whose files are not to be copied.
fn unwish(
    state: &State,
    vm: Option<Uuid>,
    operation: &OperationRecord,
    transaction: Transaction,
) -> Result<Transaction, StateError> {
    let Some(vm) = vm else { return Ok(transaction) };
    if let OperationRecord::Copy(wanted) = operation {
        return copies::stay(state, vm, wanted, transaction);
    }
    let runs = state.read::<VmRecord>(&vm.to_string())?.is_some_and(|vm| vm.record.power == VmPower::On);
    match operation {
        OperationRecord::Start if !runs => placements::want(state, vm, Power::Off, transaction),
        operation if operation.ends_vm() && runs => placements::want(state, vm, Power::On, transaction),
        _ => Ok(transaction),
    }
}

fn request_cancel(state: &State, id: Uuid) -> Result<TaskRecord, Refusal> {
    let name = id.to_string();
    loop {
        let stored = state.read::<TaskRecord>(&name)?.ok_or_else(|| missing(id))?;
        let mut task = stored.record.clone();
        let told = api::Operation::from(&task.operation);
        let mut transaction = Transaction::new().if_still(&name, &stored);
        match (task.state, &task.operation) {
            // Its VM is there already, and goes with it.
            (TaskStateRecord::Queued, OperationRecord::Import(_)) => task.cancel_requested = true,
            (TaskStateRecord::Queued, operation) => {
                transaction = unwish(state, task.vm, operation, transaction)?;
                task.end(TaskStateRecord::Cancelled, None);
                let event = EventRecord::now(EventKind::TaskCancelled, format!("{told}: it had not begun"));
                transaction = transaction.tell(&event.of(&task));
            }
            (TaskStateRecord::Running, OperationRecord::ShutDown { .. }) => task.cancel_requested = true,
            (TaskStateRecord::Running, operation) if operation.is_long() => {
                if let OperationRecord::Copy(_) = operation {
                    transaction = unwish(state, task.vm, operation, transaction)?;
                }
                task.cancel_requested = true;
            }
            (TaskStateRecord::Running, _) => {
                let message = format!("the task ({told}) is being done, and cannot be cancelled any more");
                return Err(Refusal::conflict("not-cancellable", message, "wait for its end"));
            }
            _ => return Err(Refusal::conflict("task-ended", "the task has ended already", "there is nothing to cancel")),
        }
        if let Outcome::Committed(_) = state.commit(&transaction.write(&name, &task))? {
            return Ok(task);
        }
    }
}
