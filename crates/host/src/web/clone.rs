//! VMs made from VMs.

use axum::http::StatusCode;
use axum::response::Response;
use uuid::Uuid;

use super::Refusal;
use super::extract::{Body, Params};
use super::tasks::{Conditions, TaskAnswer, WaitParams};
use super::vms::Asked;
use crate::records::{CloneRecord, NameRecord, OperationRecord, VmRecord};
use crate::vm::{clone, config};

/// Clone a VM
///
/// It must be off. The new VM has copies of its disks, addresses of its own for its network cards, and is off; disks that are only read are
/// shared. Where the file system can, copies share their data until one is changed, and take no time. With `linked`, nothing is copied: what each
/// disk is now becomes the parent of two new files, one for each VM, and is not changed any more.
#[utoipa::path(post, path = "/vms/{vm}/clone", tag = "vms", operation_id = "clone_vm", request_body = api::CloneVm, params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn clone(Params(params): Params<WaitParams>, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let wanted: api::CloneVm = body.parse()?;
    config::check_name(&wanted.name).map_err(Refusal::senseless)?;
    let (state, surroundings) = (asked.state(), asked.surroundings());
    let operation = move |source: &VmRecord| {
        if let Some(volume) = &wanted.volume {
            surroundings.volumes.root(volume).map_err(Refusal::senseless)?;
        }
        if state.read::<NameRecord>(&wanted.name)?.is_some() {
            return Err(Refusal { status: StatusCode::CONFLICT, cause: clone::name_taken(&wanted.name) });
        }
        if wanted.linked {
            clone::can_be_linked(&state, source)?.map_err(|cause| Refusal { status: StatusCode::CONFLICT, cause })?;
        }
        Ok(OperationRecord::Clone(CloneRecord {
            id: Uuid::new_v4(),
            name: wanted.name,
            linked: wanted.linked,
            volume: wanted.volume,
        }))
    };
    asked.submit_body(&body.0, params.wait, operation).await
}
