//! Checkpoints of VMs.

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::extract::{Body, Name, Params};
use super::tasks::{Conditions, TaskAnswer, WaitParams};
use super::vms::{Asked, find};
use super::{App, Refusal};
use crate::records::{Cause, CheckpointOperation, OperationRecord, Otherwise, TreeRecord, VmRecord};
use crate::state::State;
use crate::vm::checkpoints::{self, MAX_CHECKPOINTS};

/// The longest name in characters.
const MAX_NAME: usize = 100;

/// How to delete a checkpoint.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteParams {
    /// Whether all that were made on it are deleted, too.
    #[serde(default)]
    subtree: bool,
    /// How long to wait for the task's end, in seconds: 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<u32>,
}

/// How to apply a checkpoint.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ApplyParams {
    /// Makes a checkpoint of this name first, of what the VM is now; otherwise that is lost.
    before: Option<String>,
    /// How long to wait for the task's end, in seconds: 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<u32>,
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        let way_out = "use 1 to 100 characters that can be seen";
        let message = format!("'{}' cannot be a checkpoint's name", name.escape_debug());
        return Err(Refusal::senseless(Cause::new("bad-name", message, way_out)));
    }
    Ok(())
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| now.to_string())
}

fn missing(name: &str) -> Refusal {
    Refusal::not_found(format_args!("checkpoint '{name}'"), "list those that there are")
}

/// The checkpoint with this id, or the only one of this name.
fn id_of(tree: &TreeRecord, name: &str) -> Result<Uuid, Refusal> {
    if let Some(found) = Uuid::parse_str(name).ok().and_then(|id| tree.checkpoint(id)) {
        return Ok(found.id);
    }
    let mut named = tree.checkpoints.iter().filter(|it| it.name == name);
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(one.id),
        (None, _) => Err(missing(name)),
        _ => Err(Refusal::conflict("ambiguous", format!("several checkpoints are called '{name}'"), "name it by its id")),
    }
}

fn locate(state: &State, vm: &str, name: &str) -> Result<(VmRecord, TreeRecord, Uuid), Refusal> {
    let vm = find(state, vm)?.record;
    let tree = checkpoints::tree(state, vm.id)?;
    let id = id_of(&tree, name)?;
    Ok((vm, tree, id))
}

/// List checkpoints
///
/// In the order in which they were made; `parent` makes a tree of them.
#[utoipa::path(get, path = "/vms/{vm}/checkpoints", tag = "checkpoints", operation_id = "list_checkpoints",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "All checkpoints", body = api::Page<api::Checkpoint>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Name(vm): Name) -> Result<Json<api::Page<api::Checkpoint>>, Refusal> {
    let surroundings = app.host.surroundings.clone();
    let listed = app.host.state.run(move |state| {
        Ok(find(state, &vm).and_then(|vm| {
            let tree = checkpoints::tree(state, vm.record.id)?;
            Ok(tree.checkpoints.iter().map(|it| checkpoints::told(it, &tree, &surroundings.volumes)).collect())
        }))
    });
    Ok(Json(api::Page { items: listed.await??, next: None }))
}

/// Show a checkpoint
#[utoipa::path(get, path = "/vms/{vm}/checkpoints/{checkpoint}", tag = "checkpoints", operation_id = "show_checkpoint", params(
    ("vm" = String, Path, description = "Its name or id"),
    ("checkpoint" = String, Path, description = "Its id, or its name if no other has that"),
), responses(
    (status = 200, description = "The checkpoint", body = api::Checkpoint),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Path((vm, name)): Path<(String, String)>) -> Result<Json<api::Checkpoint>, Refusal> {
    let surroundings = app.host.surroundings.clone();
    let told = app.host.state.run(move |state| {
        Ok(locate(state, &vm, &name).and_then(|(_, tree, id)| {
            let checkpoint = tree.checkpoint(id).ok_or_else(|| missing(&name))?;
            Ok(checkpoints::told(checkpoint, &tree, &surroundings.volumes))
        }))
    });
    Ok(Json(told.await??))
}

/// Rename a checkpoint
#[utoipa::path(patch, path = "/vms/{vm}/checkpoints/{checkpoint}", tag = "checkpoints", operation_id = "rename_checkpoint",
    request_body = api::RenameCheckpoint, params(
    ("vm" = String, Path, description = "Its name or id"),
    ("checkpoint" = String, Path, description = "Its id, or its name if no other has that"),
), responses(
    (status = 200, description = "The checkpoint", body = api::Checkpoint),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn rename(
    Shared(app): Shared<App>,
    Path((vm, name)): Path<(String, String)>,
    body: Body,
) -> Result<Json<api::Checkpoint>, Refusal> {
    let wanted: api::RenameCheckpoint = body.parse()?;
    check_name(&wanted.name)?;
    let surroundings = app.host.surroundings.clone();
    let told = app.host.state.run(move |state| {
        let (vm, _, id) = match locate(state, &vm, &name) {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let told = checkpoints::edit(state, vm.id, |_, tree| {
            tree.checkpoints.iter_mut().find(|it| it.id == id)?.name.clone_from(&wanted.name);
            Some(checkpoints::told(tree.checkpoint(id)?, tree, &surroundings.volumes))
        })?;
        Ok(told.ok_or_else(|| missing(&name)))
    });
    Ok(Json(told.await??))
}

/// Make a checkpoint
///
/// Of a VM that runs or is paused, with its memory, unless a production checkpoint is wanted; of one that is off, its disks. All disks that
/// the VM writes must be VHDX.
#[utoipa::path(post, path = "/vms/{vm}/checkpoints", tag = "checkpoints", operation_id = "create_checkpoint",
    request_body = api::NewCheckpoint, params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(
    (status = 200, description = "The task, which has ended", body = api::Task),
    (status = 202, description = "The task; `makes` is the checkpoint's id", body = api::Task, headers(("Location" = String))),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn create(Params(params): Params<WaitParams>, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let wanted: api::NewCheckpoint = body.parse()?;
    let name = wanted.name.unwrap_or_else(now);
    check_name(&name)?;
    let state = asked.state();
    let operation = move |vm: &VmRecord| {
        room(&state, vm)?;
        let otherwise = match (wanted.kind, wanted.otherwise) {
            (api::WantedCheckpoint::Standard, _) => None,
            (api::WantedCheckpoint::Production, api::Otherwise::Refuse) => Some(Otherwise::Refuse),
            (api::WantedCheckpoint::Production, api::Otherwise::CrashConsistent) => Some(Otherwise::CrashConsistent),
        };
        let operation = CheckpointOperation::Create { id: Uuid::new_v4(), name, production: otherwise, ran: false };
        Ok(OperationRecord::Checkpoint(operation))
    };
    asked.submit_body(&body.0, params.wait, operation).await
}

fn room(state: &State, vm: &VmRecord) -> Result<(), Refusal> {
    if checkpoints::tree(state, vm.id)?.checkpoints.len() < MAX_CHECKPOINTS {
        return Ok(());
    }
    let message = format!("the VM '{}' has {MAX_CHECKPOINTS} checkpoints", vm.name);
    Err(Refusal::conflict("too-many-checkpoints", message, "delete some first"))
}

/// Apply a checkpoint
///
/// The VM, which must be off, is made what it was. What it is now is lost, unless `before` names a checkpoint for it. With a checkpoint that
/// has memory, the VM is saved afterwards: start it, and it goes on from there.
#[utoipa::path(post, path = "/vms/{vm}/checkpoints/{checkpoint}/apply", tag = "checkpoints", operation_id = "apply_checkpoint", params(
    ("vm" = String, Path, description = "Its name or id"),
    ("checkpoint" = String, Path, description = "Its id, or its name if no other has that"),
    Conditions,
    ApplyParams,
), responses(TaskAnswer))]
pub async fn apply(
    Params(params): Params<ApplyParams>,
    Path((_, name)): Path<(String, String)>,
    asked: Asked,
) -> Result<Response, Refusal> {
    params.before.as_deref().map_or(Ok(()), check_name)?;
    let state = asked.state();
    let operation = move |vm: &VmRecord| {
        let id = id_of(&checkpoints::tree(&state, vm.id)?, &name)?;
        if params.before.is_some() {
            room(&state, vm)?;
        }
        let before = params.before.map(|name| (Uuid::new_v4(), name));
        Ok(OperationRecord::Checkpoint(CheckpointOperation::Apply { id, before }))
    };
    asked.submit_body(b"", params.wait, operation).await
}

/// Delete a checkpoint
///
/// What the VM is now does not change. Files that no checkpoint needs any more are merged, while the VM runs, too. The task can be cancelled:
/// the checkpoint is gone all the same, and what is not merged yet is merged with the next deletion, or when that is asked for.
#[utoipa::path(delete, path = "/vms/{vm}/checkpoints/{checkpoint}", tag = "checkpoints", operation_id = "delete_checkpoint", params(
    ("vm" = String, Path, description = "Its name or id"),
    ("checkpoint" = String, Path, description = "Its id, or its name if no other has that"),
    Conditions,
    DeleteParams,
), responses(TaskAnswer))]
pub async fn delete(
    Params(params): Params<DeleteParams>,
    Path((_, name)): Path<(String, String)>,
    asked: Asked,
) -> Result<Response, Refusal> {
    let state = asked.state();
    let operation = move |vm: &VmRecord| {
        let tree = checkpoints::tree(&state, vm.id)?;
        let id = id_of(&tree, &name)?;
        let ids = if params.subtree { tree.subtree(id) } else { vec![id] };
        Ok(OperationRecord::Checkpoint(CheckpointOperation::Delete { ids }))
    };
    asked.submit_body(b"", params.wait, operation).await
}

/// Merge what deleted checkpoints left
///
/// Goes on with what was cancelled, and does what could not be done while the VM ran.
#[utoipa::path(post, path = "/vms/{vm}/checkpoints/merge", tag = "checkpoints", operation_id = "merge_checkpoints", params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn merge(Params(params): Params<WaitParams>, asked: Asked) -> Result<Response, Refusal> {
    asked.submit_body(b"", params.wait, |_| Ok(OperationRecord::Checkpoint(CheckpointOperation::Merge))).await
}
