//! Changing VMs.

use axum::http::StatusCode;
use axum::response::Response;

use super::Refusal;
use super::extract::{Body, Params};
use super::tasks::{Conditions, TaskAnswer, WaitParams};
use super::vms::{Asked, check_room, disks_refused};
use crate::images;
use crate::net;
use crate::records::{NameRecord, OperationRecord, VmRecord};
use crate::vm::{clone, disks, edit};

/// Change a VM
///
/// By a merge patch (RFC 7396) of its `spec`: fields that are left out stay, `null` takes a field away, a list is replaced as a whole. A VM that
/// is off can be changed in everything. While it runs, it can be renamed, and these are done at once: disks and network cards are added and
/// removed, disks grow (`size_bytes`), vCPUs are added up to `max_cpus`, memory changes between that at start and `max_memory_bytes`, the
/// balloon (`balloon_bytes`), cables (`disconnected`). Anything else is refused, and nothing is changed then. A disk with `size_bytes` that the VM
/// does not have is made.
#[utoipa::path(patch, path = "/vms/{vm}", tag = "vms", operation_id = "edit_vm", params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), request_body(content = serde_json::Value, content_type = "application/merge-patch+json", description = "What is to change of the VM's spec"),
responses(TaskAnswer))]
pub async fn edit(Params(params): Params<WaitParams>, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let patch: serde_json::Value = body.parse()?;
    let (state, surroundings) = (asked.state(), asked.surroundings());
    let operation = move |vm: &VmRecord| {
        let (patch, wanted) =
            edit::resolved(vm, &patch, &surroundings.volumes, &images::all(&state)?).map_err(Refusal::senseless)?;
        check_room(&wanted.vm)?;
        disks::check(&state, &wanted.vm)?.map_err(disks_refused)?;
        net::check(&state, &wanted.vm)?.map_err(Refusal::senseless)?;
        if wanted.vm.name != vm.name && state.read::<NameRecord>(&wanted.vm.name)?.is_some() {
            return Err(Refusal { status: StatusCode::CONFLICT, cause: clone::name_taken(&wanted.vm.name) });
        }
        Ok(OperationRecord::Edit { patch })
    };
    asked.submit_body(&body.0, params.wait, operation).await
}
