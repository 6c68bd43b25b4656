//! VMs in directories: exported and imported.

use axum::Extension;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use store::record::Record;
use store::{Outcome, Transaction};

use super::extract::{Body, Params};
use super::guard::Caller;
use super::once::Once;
use super::tasks::{Conditions, TaskAnswer, WaitParams, answer, read};
use super::vms::{Asked, check_room, disks_refused};
use super::{App, Refusal};
use crate::records::{NameRecord, OnceRecord, OperationRecord, TaskRecord, VmRecord};
use crate::state::{Records, State};
use crate::vm::{Surroundings, clone, disks, import};

/// Export a VM
///
/// It must be off. The directory that is made has copies of its kernel and disks, each disk one file, and `manifest.json` with the VM's
/// specification and the checksums of all files.
#[utoipa::path(post, path = "/vms/{vm}/export", tag = "vms", operation_id = "export_vm", request_body = api::ExportVm, params(
    ("vm" = String, Path, description = "Its name or id"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn export(Params(params): Params<WaitParams>, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let wanted: api::ExportVm = body.parse()?;
    let surroundings = asked.surroundings();
    let operation = move |_: &VmRecord| {
        let to = surroundings.volumes.parse(&wanted.to).map_err(Refusal::senseless)?;
        let place = surroundings.volumes.place(&to).map_err(Refusal::senseless)?;
        if std::fs::symlink_metadata(place).is_ok() {
            let message = format!("there is something at {to} already");
            return Err(Refusal::conflict("file-exists", message, "choose another directory"));
        }
        Ok(OperationRecord::Export { to })
    };
    asked.submit_body(&body.0, params.wait, operation).await
}

/// Import a VM
///
/// From a directory that one was exported to. All files are compared with their checksums. `makes` of the task is the new VM, which is there
/// when the task is done; it has an id of its own, and new addresses for its network cards if VMs of this host have theirs.
#[utoipa::path(post, path = "/vms/import", tag = "vms", operation_id = "import_vm", request_body = api::ImportVm, params(
    ("Idempotency-Key" = Option<String>, Header, description = "Up to 128 characters, remembered for a day"),
    WaitParams,
), responses(TaskAnswer))]
pub async fn import(
    Shared(app): Shared<App>,
    Extension(caller): Extension<Caller>,
    (method, uri): (Method, Uri),
    headers: HeaderMap,
    Params(params): Params<WaitParams>,
    body: Body,
) -> Result<Response, Refusal> {
    let once = Once::of(&caller, &headers, &method, &uri, &body.0)?;
    let wanted: api::ImportVm = body.parse()?;
    let (surroundings, changes) = (app.host.surroundings.clone(), app.host.changes());
    let made = app.host.state.run(move |state| Ok(insert(state, &surroundings, once.as_ref(), &wanted, caller.name)));
    answer(&app, made.await??, changes, params.wait).await
}

/// Stores the VM that is to be made, and the task that makes it.
fn insert(
    state: &State,
    surroundings: &Surroundings,
    once: Option<&Once>,
    wanted: &api::ImportVm,
    by: String,
) -> Result<TaskRecord, Refusal> {
    loop {
        if let Some(made) = Once::made(once, state)? {
            return read(state, made);
        }
        let (mut vm, import) = import::read(wanted, &surroundings.volumes).map_err(Refusal::senseless)?;
        check_room(&vm)?;
        if once.is_none() && state.read::<NameRecord>(&vm.name)?.is_some() {
            return Err(Refusal { status: StatusCode::CONFLICT, cause: clone::name_taken(&vm.name) });
        }
        let _held = surroundings.hold_files();
        disks::check(state, &vm)?.map_err(disks_refused)?;
        let others: Vec<VmRecord> = state.all::<VmRecord>()?.into_iter().map(|stored| stored.record).collect();
        import::avoid_addresses(&mut vm, &others);
        let task = TaskRecord::new(vm.id, vm.name.clone(), OperationRecord::Import(import), by.clone());
        vm.made_by = Some(task.id);
        let name = task.id.to_string();
        let transaction = Transaction::new().create(&vm).if_none::<TaskRecord>(&name).write(&name, &task);
        match state.commit(&Once::note(once, transaction, task.id))? {
            Outcome::Committed(_) => return Ok(task),
            Outcome::Conflict { key, .. } if key.starts_with(OnceRecord::PREFIX) => {}
            Outcome::Conflict { .. } if once.is_some() && Once::made(once, state)?.is_some() => {}
            Outcome::Conflict { .. } => {
                return Err(Refusal { status: StatusCode::CONFLICT, cause: clone::name_taken(&vm.name) });
            }
        }
    }
}
