//! How much of the host a VM may have.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use serde_json::Value;

use super::extract::{Body, Name, Params};
use super::tasks::{Conditions, TaskAnswer, WaitParams};
use super::vms::{Asked, find};
use super::{App, Refusal};
use crate::records::{OperationRecord, VmRecord};
use crate::vm::resources;

/// Show how much of the host a VM may have
#[utoipa::path(get, path = "/vms/{vm}/resources", tag = "vms", operation_id = "show_vm_resources",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "Weight, cap, reserve and limits", body = api::Resources),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Resources>, Refusal> {
    let vm = app.host.state.run(move |state| Ok(find(state, &name))).await??;
    Ok(Json(vm.record.told_resources()))
}

/// Set how much of the host a VM may have
///
/// What is left out is as usual: without a limit. It holds at once if the VM runs.
#[utoipa::path(put, path = "/vms/{vm}/resources", tag = "vms", operation_id = "set_vm_resources", request_body = api::Resources, params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn replace(Params(params): Params<WaitParams>, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let wanted: api::Resources = body.parse()?;
    let change = serde_json::to_value(&wanted).unwrap_or_default();
    asked.submit_body(&body.0, params.wait, |vm| operation(vm, change, true)).await
}

/// Change how much of the host a VM may have
///
/// A JSON merge patch (RFC 7396): what is left out stays, `null` takes a limit away. It holds at once if the VM runs.
#[utoipa::path(patch, path = "/vms/{vm}/resources", tag = "vms", operation_id = "change_vm_resources", request_body = api::Resources, params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn change(Params(params): Params<WaitParams>, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let change: Value = body.parse()?;
    asked.submit_body(&body.0, params.wait, |vm| operation(vm, change, false)).await
}

/// What makes no sense for the VM as it is need not become a task.
fn operation(vm: &VmRecord, change: Value, replace: bool) -> Result<OperationRecord, Refusal> {
    resources::changed(vm, &change, replace).map_err(Refusal::senseless)?;
    Ok(OperationRecord::SetResources { change, replace })
}
