//! Deleting a VM.

use std::io;

use store::{Outcome, Transaction};
use uuid::Uuid;

use super::Surroundings;
use crate::records::{
    Cause, DeleteDisks, EventKind, EventRecord, NameRecord, TaskRecord, TaskStateRecord, UsageRecord, VmRecord,
};
use crate::state::{Records, State, StateError};

/// Why a VM is not deleted.
pub enum DeleteError {
    /// It cannot be.
    Refused(Cause),
    /// The store cannot be used now.
    State(StateError),
}

impl<E: Into<StateError>> From<E> for DeleteError {
    fn from(error: E) -> DeleteError {
        DeleteError::State(error.into())
    }
}

/// Deletes a VM that does not run: its disks if so asked, and then what is stored of it. Can be done again after it was interrupted.
pub fn delete(
    state: &State,
    surroundings: &Surroundings,
    vm: &VmRecord,
    task: Uuid,
    disks: DeleteDisks,
) -> Result<(), DeleteError> {
    let _held = surroundings.hold_files();
    if disks == DeleteDisks::Delete {
        delete_disks(state, surroundings, vm)?;
    }
    let task_name = task.to_string();
    loop {
        let stored = state.read::<TaskRecord>(&task_name)?.ok_or_else(|| StateError::Gone(format!("the task {task}")))?;
        let mut record = stored.record.clone();
        record.end(TaskStateRecord::Done, None);
        let event = EventRecord::now(EventKind::VmDeleted, "it was deleted").of_vm(vm.id, &vm.name).by_task(Some(task));
        let transaction = Transaction::new()
            .if_still(&task_name, &stored)
            .write(&task_name, &record)
            .forget::<VmRecord>(&vm.id.to_string())
            .forget::<NameRecord>(&vm.name)
            .forget::<UsageRecord>(&vm.id.to_string())
            .tell(&event);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(());
        }
    }
}

fn delete_disks(state: &State, surroundings: &Surroundings, vm: &VmRecord) -> Result<(), DeleteError> {
    for other in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record).filter(|other| other.id != vm.id) {
        let shared = other.disks.iter().find(|disk| vm.disks.iter().any(|own| own.file == disk.file));
        if let Some(disk) = shared {
            let message = format!("the disk {} belongs to the VM '{}', too", disk.file, other.name);
            return Err(DeleteError::Refused(Cause::new("disk-in-use", message, "delete this VM and keep its disks")));
        }
    }
    for disk in &vm.disks {
        let path = match surroundings.volumes.find(&disk.file) {
            Ok(path) => path,
            // Gone already: an earlier try got as far as that.
            Err(cause) if cause.code == "no-file" => continue,
            Err(cause) => return Err(DeleteError::Refused(cause)),
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("the disk {} cannot be deleted: {error}", disk.file);
                return Err(DeleteError::Refused(Cause::new("disk", message, "mend that, or keep the disks")));
            }
            _ => surroundings.volumes.remove_if_empty(&path),
        }
    }
    Ok(())
}

/// Fails a task whose VM is not there any more.
pub fn refuse_task(state: &State, task: Uuid) -> Result<(), StateError> {
    let name = task.to_string();
    while let Some(stored) = state.read::<TaskRecord>(&name)?.filter(|stored| stored.record.is_unfinished()) {
        let mut record = stored.record.clone();
        record.end(TaskStateRecord::Failed, Some(Cause::new("no-vm", "the VM was deleted", "there is nothing left to do")));
        let event = EventRecord::now(EventKind::TaskFailed, "the VM was deleted").of(&record);
        let transaction = Transaction::new().if_still(&name, &stored).write(&name, &record).tell(&event);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            break;
        }
    }
    Ok(())
}
