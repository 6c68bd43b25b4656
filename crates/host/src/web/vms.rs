//! VMs: what they are, and what is to be done to them.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use cluster::records::AliveRecord;
use serde::Deserialize;
use store::record::{Record, Stored};
use store::{Outcome, Transaction};
use utoipa::IntoParams;
use uuid::Uuid;

use super::extract::{Body, Name, Params, limit, page};
use super::guard::Caller;
use super::once::Once;
use super::suggest::did_you_mean;
use super::tasks::{Conditions, TaskAnswer, WaitParams, answer, submit};
use super::{App, Refusal};
use crate::host::Host;
use crate::images;
use crate::net;
use crate::records::{Cause, DeleteDisks, EventKind, EventRecord, NameRecord, OnceRecord, OperationRecord, Power, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::config::{self, Wanted};
use crate::vm::staging::Staging;
use crate::vm::work::WorkError;
use crate::vm::{Surroundings, checkpoints, clone, disks};

/// The most bytes that a name of a VM has.
const LONGEST_NAME: usize = 64;
/// How long a guest has to shut down if nothing else is said, in seconds.
const GRACE: u32 = 120;
/// How long it may have.
const MAX_GRACE: u32 = 86_400;

/// Which VMs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only the one with this name.
    name: Option<String>,
    /// Only those in this state.
    #[param(inline)]
    state: Option<api::VmState>,
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only those behind: `next` of the part before.
    after: Option<String>,
}

/// How to stop a VM.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StopParams {
    /// Whether to end it at once, as if its power were cut.
    #[serde(default)]
    force: bool,
    /// How long its guest has to shut down before it is ended by force, in seconds; 120 if left out.
    #[param(minimum = 0, maximum = 86400)]
    grace: Option<u32>,
    /// How long to wait for the task's end, in seconds: 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<u32>,
}

/// How to delete a VM.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteParams {
    /// What happens to the files of its disks. Needed if it has disks.
    #[param(inline)]
    disks: Option<api::DiskAction>,
    /// How long to wait for the task's end, in seconds: 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<u32>,
}

/// What a VM of another host does, as far as that is stored.
fn elsewhere(vm: &VmRecord, lives: bool) -> api::VmState {
    match vm.power {
        _ if vm.is_saved() => api::VmState::Saved,
        _ if vm.made_by.is_some() => api::VmState::Creating,
        Power::On if lives => api::VmState::Running,
        Power::On => api::VmState::Unknown,
        Power::Off => api::VmState::Off,
    }
}

/// A VM as it is told. `living` are the hosts of the cluster that are there.
fn told(host: &Host, vm: &VmRecord, living: &HashSet<String>) -> api::Vm {
    let live = host.state.is_here(vm).then(|| host.live(vm.id));
    let lives = || vm.host.as_ref().is_some_and(|host| living.contains(host));
    let last_end = live.as_ref().and_then(|live| live.last_end.as_ref()).or(vm.last_end.as_ref());
    api::Vm {
        id: vm.id,
        spec: vm.spec(),
        host: vm.host.clone(),
        state: live.as_ref().map_or_else(|| elsewhere(vm, lives()), |live| live.state),
        last_end: last_end.map(api::Ending::from),
        chains: Vec::new(),
        saved: vm.saved.as_ref().filter(|_| vm.is_saved()).map(api::SavedVm::from),
        pid: live.as_ref().and_then(|live| live.pid),
        guest: live.and_then(|_| host.guest(vm.id)),
        created_at: vm.created_at,
        started_at: vm.started_at,
    }
}

/// The `ETag` of a VM.
pub fn etag(vm: &Stored<VmRecord>) -> String {
    format!("\"{}\"", vm.revision)
}

/// An answer with a VM.
fn with_vm(status: StatusCode, host: &Host, vm: &Stored<VmRecord>) -> Response {
    answer_with(status, told(host, &vm.record, &HashSet::new()), vm)
}

/// The hosts of the cluster that are there; none on a single host.
fn living(state: &State) -> Result<HashSet<String>, StateError> {
    let names = state.own_host().map_or(Ok(Vec::new()), |_| state.names::<AliveRecord>())?;
    Ok(names.into_iter().collect())
}

fn answer_with(status: StatusCode, told: api::Vm, vm: &Stored<VmRecord>) -> Response {
    let mut response = (status, Json(told)).into_response();
    if let Ok(value) = HeaderValue::from_str(&etag(vm)) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The VM with this name or id.
pub fn find(state: &State, name: &str) -> Result<Stored<VmRecord>, Refusal> {
    let missing = || {
        let known: Vec<String> = state.all::<VmRecord>().into_iter().flatten().map(|vm| vm.record.name).collect();
        let way_out = did_you_mean(name, known.iter().map(String::as_str), "list those that there are");
        Refusal::not_found(format_args!("VM '{name}'"), &way_out)
    };
    let id = match Uuid::parse_str(name) {
        Ok(id) => id,
        // No name has characters that a key may not have.
        Err(_) if name.len() > LONGEST_NAME => return Err(missing()),
        Err(_) => state.read::<NameRecord>(name)?.ok_or_else(missing)?.record.vm,
    };
    state.read::<VmRecord>(&id.to_string())?.ok_or_else(missing)
}

/// Refuses what was meant for another version of a VM.
pub fn check_if_match(headers: &HeaderMap, vm: &Stored<VmRecord>) -> Result<(), Refusal> {
    let Some(wanted) = headers.get(header::IF_MATCH) else { return Ok(()) };
    let own = etag(vm);
    let fits = wanted.to_str().is_ok_and(|list| list.split(',').any(|tag| tag.trim() == own || tag.trim() == "*"));
    if fits {
        return Ok(());
    }
    let message = format!("the VM '{}' was changed meanwhile", vm.record.name);
    Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "changed", message, "look at it again, and decide again"))
}

/// List VMs
///
/// In the order of their names.
#[utoipa::path(get, path = "/vms", tag = "vms", operation_id = "list_vms", params(ListParams), responses(
    (status = 200, description = "VMs", body = api::Page<api::Vm>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<ListParams>) -> Result<Response, Refusal> {
    let limit = limit(params.limit)?;
    let host = app.host.clone();
    // Half of the time is that of writing it down: not on a thread that others wait for.
    let listed = app.host.state.run(move |state| Ok(serde_json::to_vec(&listed(state, &host, &params, limit)?)));
    let json = listed.await?.map_err(|error| {
        let way_out = "tell the people who make Maru: no VM should be able to do that";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "strange-answer", format!("VMs cannot be written down: {error}"), way_out)
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// Those that are asked for, and whether there are more. The store has names in their order: of all others, nothing is read.
fn listed(state: &State, host: &Host, params: &ListParams, limit: usize) -> Result<api::Page<api::Vm>, StateError> {
    let living = living(state)?;
    let mut items: Vec<api::Vm> = Vec::new();
    let mut behind = params.after.clone();
    while items.len() <= limit {
        let names = names(state, params, behind.as_deref(), limit + 1)?;
        let Some((last, _)) = names.last() else { break };
        behind = Some(last.clone());
        for (name, NameRecord { vm }) in names {
            // What VMs of this host do is known without their records.
            if state.own_host().is_none() && params.state.is_some_and(|state| state != host.live(vm).state) {
                continue;
            }
            // One that was deleted or got another name meanwhile is none of this name.
            let vm = state.vm(vm)?.filter(|vm| vm.record.name == name);
            let Some(vm) = vm else { continue };
            let vm = told(host, &vm.record, &living);
            if params.state.is_none_or(|state| state == vm.state) {
                items.push(vm);
            }
        }
    }
    Ok(page(items, None, limit, |vm| vm.spec.name.clone()))
}

/// The first names behind one, as far as they are asked for.
fn names(
    state: &State,
    params: &ListParams,
    behind: Option<&str>,
    limit: usize,
) -> Result<Vec<(String, NameRecord)>, StateError> {
    let Some(name) = &params.name else { return state.part(behind, limit) };
    // A longer one has no key.
    if behind.is_some_and(|behind| behind >= name.as_str()) || name.len() > LONGEST_NAME {
        return Ok(Vec::new());
    }
    Ok(state.read::<NameRecord>(name)?.map(|named| (name.clone(), named.record)).into_iter().collect())
}

/// Show a VM
///
/// The `ETag` changes when what is stored of it changes.
#[utoipa::path(get, path = "/vms/{vm}", tag = "vms", operation_id = "show_vm",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "The VM", body = api::Vm, headers(("ETag" = String))),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Response, Refusal> {
    let surroundings = app.host.surroundings.clone();
    let found = app.host.state.run(move |state| {
        let found = find(state, &name);
        let chains = found.as_ref().map_or_else(|_| Vec::new(), |vm| checkpoints::chains(&vm.record, &surroundings.volumes));
        let living = living(state)?;
        Ok(found.map(|vm| (vm, chains, living)))
    });
    let (vm, chains, living) = found.await??;
    Ok(answer_with(StatusCode::OK, api::Vm { chains, ..told(&app.host, &vm.record, &living) }, &vm))
}

/// Create a VM
///
/// It is off. With `Idempotency-Key`, a request that is sent again answers with the VM that the first one made.
#[utoipa::path(post, path = "/vms", tag = "vms", operation_id = "create_vm", request_body = api::VmSpec,
    params(("Idempotency-Key" = Option<String>, Header, description = "Up to 128 characters, remembered for a day")), responses(
    (status = 201, description = "The VM", body = api::Vm, headers(("Location" = String), ("ETag" = String))),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn create(
    Shared(app): Shared<App>,
    Extension(caller): Extension<Caller>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let once = Once::of(&caller, &headers, &method, &uri, &body.0)?;
    let spec: api::VmSpec = body.parse()?;
    let surroundings = app.host.surroundings.clone();
    let made = app.host.state.run(move |state| Ok(insert(state, once.as_ref(), &spec, &surroundings)));
    let vm = made.await??;
    let mut response = with_vm(StatusCode::CREATED, &app.host, &vm);
    if let Ok(value) = HeaderValue::from_str(&format!("{}/vms/{}", api::BASE, vm.record.id)) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    Ok(response)
}

/// Stores a new VM; gives the one that is there if this was done before.
fn insert(
    state: &State,
    once: Option<&Once>,
    spec: &api::VmSpec,
    surroundings: &Surroundings,
) -> Result<Stored<VmRecord>, Refusal> {
    loop {
        if let Some(made) = Once::made(once, state)? {
            return find(state, &made.to_string());
        }
        // No image goes before the VM is stored that is made from it.
        let _held = surroundings.hold_files();
        let wanted = config::record(spec, &surroundings.volumes, &images::all(state)?);
        let Wanted { vm, make, .. } = wanted.map_err(Refusal::senseless)?;
        check_room(&vm)?;
        if state.read::<NameRecord>(&vm.name)?.is_some() && once.is_none() {
            return Err(Refusal { status: StatusCode::CONFLICT, cause: clone::name_taken(&vm.name) });
        }
        disks::check(state, &vm)?.map_err(disks_refused)?;
        net::check(state, &vm)?.map_err(Refusal::senseless)?;
        let mut staging = Staging::begin(&surroundings.volumes, vm.id).map_err(Refusal::senseless)?;
        disks::make(&mut staging, &make, &surroundings.volumes).map_err(not_made)?;
        let event = EventRecord::now(EventKind::VmCreated, "it was created").of_vm(vm.id, &vm.name);
        let transaction = Transaction::new().create(&vm).tell(&event);
        match state.commit(&Once::note(once, transaction, vm.id))? {
            Outcome::Committed(revision) => {
                staging.keep();
                return Ok(Stored { record: vm, revision });
            }
            // The same request, at the same time.
            Outcome::Conflict { key, .. } if key.starts_with(OnceRecord::PREFIX) => {}
            Outcome::Conflict { .. } if once.is_some() && Once::made(once, state)?.is_some() => {}
            Outcome::Conflict { .. } => {
                return Err(Refusal { status: StatusCode::CONFLICT, cause: clone::name_taken(&vm.name) });
            }
        }
    }
}

/// Refuses a VM that this host cannot hold.
pub fn check_room(vm: &VmRecord) -> Result<(), Refusal> {
    let (total, _) = super::host::memory();
    if vm.memory_bytes > total {
        let message = format!("memory of {} bytes, of which this host has {total}", vm.memory_bytes);
        return Err(Refusal::senseless(Cause::new("no-memory", message, "give it less")));
    }
    Ok(())
}

/// Disks that others have may be free later; one that is there twice never makes sense.
pub fn disks_refused(cause: Cause) -> Refusal {
    let status = if matches!(cause.code.as_str(), "disk-in-use" | "image-file") {
        StatusCode::CONFLICT
    } else {
        StatusCode::UNPROCESSABLE_ENTITY
    };
    Refusal { status, cause }
}

/// Why files were not made.
fn not_made(error: WorkError) -> Refusal {
    match error {
        WorkError::Failed(cause) if cause.code == "file-exists" => Refusal { status: StatusCode::CONFLICT, cause },
        WorkError::Failed(cause) => Refusal::senseless(cause),
        WorkError::Cancelled => StateError::Ending.into(),
    }
}

/// What the operations on a VM take out of a request.
pub struct Asked {
    app: App,
    caller: Caller,
    headers: HeaderMap,
    method: Method,
    uri: Uri,
    vm: String,
}

impl axum::extract::FromRequestParts<App> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, app: &App) -> Result<Asked, Refusal> {
        // There may be more names in the address; the VM's is the first.
        let Path(names) = Path::<Vec<(String, String)>>::from_request_parts(parts, app).await.map_err(|rejection| {
            Refusal::new(StatusCode::BAD_REQUEST, "bad-address", rejection.body_text(), "write names in UTF-8, percent-encoded")
        })?;
        let vm = names.into_iter().next().map(|(_, name)| name).unwrap_or_default();
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Refusal::from(StateError::Ending))?;
        let (headers, method, uri) = (parts.headers.clone(), parts.method.clone(), parts.uri.clone());
        Ok(Asked { app: app.clone(), caller, headers, method, uri, vm })
    }
}

impl Asked {
    /// What is wanted and known.
    pub fn state(&self) -> State {
        self.app.host.state.clone()
    }

    /// What all VMs have in common.
    pub fn surroundings(&self) -> Arc<Surroundings> {
        self.app.host.surroundings.clone()
    }

    /// Makes a task of it, and answers with that.
    pub async fn submit(
        self,
        wait: Option<u32>,
        operation: impl FnOnce(&VmRecord) -> Result<OperationRecord, Refusal> + Clone + Send + 'static,
    ) -> Result<Response, Refusal> {
        self.submit_body(b"", wait, operation).await
    }

    /// The same for a request with a body.
    pub async fn submit_body(
        self,
        body: &[u8],
        wait: Option<u32>,
        operation: impl FnOnce(&VmRecord) -> Result<OperationRecord, Refusal> + Clone + Send + 'static,
    ) -> Result<Response, Refusal> {
        let once = Once::of(&self.caller, &self.headers, &self.method, &self.uri, body)?;
        let (host, headers, vm, by) = (self.app.host.clone(), self.headers, self.vm, self.caller.name);
        let changes = host.changes();
        let made = self.app.host.state.run(move |state| Ok(submit(state, &host, &vm, &headers, &by, once.as_ref(), operation)));
        answer(&self.app, made.await??, changes, wait).await
    }
}

macro_rules! operation {
    ($(#[$about:meta])* $name:ident, $path:literal, $id:literal, $operation:expr) => {
        $(#[$about])*
        #[utoipa::path(post, path = $path, tag = "vms", operation_id = $id, params(
            ("vm" = String, Path, description = "Its name or id"),
            Conditions,
            WaitParams,
        ), responses(TaskAnswer))]
        pub async fn $name(Params(params): Params<WaitParams>, asked: Asked) -> Result<Response, Refusal> {
            asked.submit(params.wait, |_| Ok($operation)).await
        }
    };
}

operation!(
    /// Start a VM
    ///
    /// One that is saved goes on where it was.
    start, "/vms/{vm}/start", "start_vm", OperationRecord::Start
);
operation!(
    /// Reset a VM, at once
    reset, "/vms/{vm}/reset", "reset_vm", OperationRecord::Reset
);
operation!(
    /// Pause a VM
    pause, "/vms/{vm}/pause", "pause_vm", OperationRecord::Pause
);
operation!(
    /// Let a paused VM go on
    resume, "/vms/{vm}/resume", "resume_vm", OperationRecord::Resume
);
operation!(
    /// Save a VM
    ///
    /// Its memory goes into a file, and it does not run any more. When it is started, it goes on from there, and the file is removed.
    save, "/vms/{vm}/save", "save_vm", OperationRecord::Save { ran: false }
);
operation!(
    /// Drop what a VM was saved to
    ///
    /// It is off then, as if its power had been cut.
    discard_saved, "/vms/{vm}/discard-saved", "discard_saved_vm", OperationRecord::DiscardSaved
);

/// Stop a VM
///
/// Its guest is asked to shut down; if it has not after the grace time, or with `force`, the VM is ended as if its power were cut.
#[utoipa::path(post, path = "/vms/{vm}/stop", tag = "vms", operation_id = "stop_vm", params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    StopParams,
), responses(TaskAnswer))]
pub async fn stop(Params(params): Params<StopParams>, asked: Asked) -> Result<Response, Refusal> {
    let grace_seconds = params.grace.unwrap_or(GRACE);
    if grace_seconds > MAX_GRACE {
        let message = format!("a grace time of {grace_seconds} s");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-parameter", message, "give it a day at most"));
    }
    let operation = if params.force { OperationRecord::ForceOff } else { OperationRecord::ShutDown { grace_seconds } };
    asked.submit(params.wait, |_| Ok(operation)).await
}

/// Delete a VM
///
/// It must be off.
#[utoipa::path(delete, path = "/vms/{vm}", tag = "vms", operation_id = "delete_vm", params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    DeleteParams,
), responses(TaskAnswer))]
pub async fn delete(Params(params): Params<DeleteParams>, asked: Asked) -> Result<Response, Refusal> {
    let disks = params.disks;
    let operation = move |vm: &VmRecord| match disks {
        Some(api::DiskAction::Delete) => Ok(OperationRecord::Delete { disks: DeleteDisks::Delete }),
        Some(api::DiskAction::Keep) => Ok(OperationRecord::Delete { disks: DeleteDisks::Keep }),
        None if vm.disks.is_empty() => Ok(OperationRecord::Delete { disks: DeleteDisks::Keep }),
        None => {
            let message = format!("the VM '{}' has disks", vm.name);
            let way_out = "say what happens to their files: disks=keep or disks=delete (--disks of maru vm delete)";
            Err(Refusal::senseless(Cause::new("disks", message, way_out)))
        }
    };
    asked.submit(params.wait, operation).await
}
