//! What VMs have used.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;

use super::extract::{Name, Params, limit, page};
use super::tasks::{Conditions, TaskAnswer, WaitParams};
use super::vms::{Asked, find};
use super::{App, Refusal};
use crate::records::{OperationRecord, VmRecord};

/// Which VMs.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only those behind: `next` of the part before.
    after: Option<String>,
}

/// Show what a VM has used
///
/// Up to this moment, if its monitor answers.
#[utoipa::path(get, path = "/vms/{vm}/usage", tag = "vms", operation_id = "show_vm_usage",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "What it has used", body = api::Usage),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Usage>, Refusal> {
    let vm = app.host.state.run(move |state| Ok(find(state, &name))).await??;
    app.host.measure(vm.record.id).await;
    Ok(Json(app.host.surroundings.meters.told(&vm.record)))
}

/// List what VMs have used
///
/// In the order of their names. Each was looked at within the last ten seconds or so.
#[utoipa::path(get, path = "/usage", tag = "vms", operation_id = "list_usage", params(ListParams), responses(
    (status = 200, description = "What each VM has used", body = api::Page<api::Usage>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<ListParams>) -> Result<Json<api::Page<api::Usage>>, Refusal> {
    let limit = limit(params.limit)?;
    let vms = app.host.state.run(|state| state.all::<VmRecord>()).await?;
    let mut usage: Vec<api::Usage> = vms.iter().map(|vm| app.host.surroundings.meters.told(&vm.record)).collect();
    usage.sort_by(|a, b| a.vm_name.cmp(&b.vm_name));
    Ok(Json(page(usage, params.after.as_deref(), limit, |usage| usage.vm_name.clone())))
}

/// Reset a VM's meter
///
/// What it uses counts from now on.
#[utoipa::path(post, path = "/vms/{vm}/usage/reset", tag = "vms", operation_id = "reset_vm_usage", params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn reset(Params(params): Params<WaitParams>, asked: Asked) -> Result<Response, Refusal> {
    asked.submit(params.wait, |_| Ok(OperationRecord::ResetUsage)).await
}
