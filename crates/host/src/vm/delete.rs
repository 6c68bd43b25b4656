//! Deleting a VM.

use std::io;

use store::{Outcome, Transaction};
use uuid::Uuid;

use super::checkpoints::{self, files};
use super::{Surroundings, disks};
use crate::copies;
use crate::records::{
    Cause, DeleteDisks, DiskRecord, EventKind, EventRecord, FileRef, NameRecord, TaskRecord, TaskStateRecord, TreeRecord,
    UsageRecord, VmRecord,
};
use crate::state::{Records, State, StateError};

/// Why something is not deleted.
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
    delete_checkpoints(state, surroundings, vm, disks)?;
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
            .forget::<TreeRecord>(&vm.id.to_string())
            .forget::<UsageRecord>(&vm.id.to_string())
            .tell(&event);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(());
        }
    }
}

/// The memory of checkpoints is of no use without the VM; the files of disks follow the rule for disks.
fn delete_checkpoints(state: &State, surroundings: &Surroundings, vm: &VmRecord, disks: DeleteDisks) -> Result<(), DeleteError> {
    let (layers, memories) = files::all(&checkpoints::tree(state, vm.id)?);
    let layers = layers.into_iter().filter(|_| disks == DeleteDisks::Delete);
    for file in memories.into_iter().chain(layers) {
        surroundings.volumes.remove(&file).map_err(DeleteError::Refused)?;
    }
    Ok(())
}

fn delete_disks(state: &State, surroundings: &Surroundings, vm: &VmRecord) -> Result<(), DeleteError> {
    let mut others = Vec::new();
    for other in state.neighbours(vm)? {
        others.push((disks::all_of(&other, &checkpoints::tree(state, other.id)?), other));
    }
    let is_on = |disk: &DiskRecord, file: &FileRef| disk.file == *file || disk.parents.iter().any(|parent| parent.file == *file);
    for own in &vm.disks {
        if let Some((_, other)) = others.iter().find(|(theirs, _)| theirs.iter().any(|disk| is_on(disk, &own.file))) {
            let message = format!("the disk {} belongs to the VM '{}', too", own.file, other.name);
            return Err(DeleteError::Refused(Cause::new("disk-in-use", message, "delete this VM and keep its disks")));
        }
    }
    let others_need = |file: &FileRef| {
        let boots = |vm: &VmRecord| vm.boot.kernel == *file || vm.boot.initrd.as_ref() == Some(file);
        others.iter().any(|(theirs, other)| theirs.iter().any(|disk| is_on(disk, file)) || boots(other))
    };
    let arriving = copies::arriving(state)?;
    let parents = vm.disks.iter().flat_map(|disk| &disk.parents).filter(|parent| parent.inherited).map(|parent| &parent.file);
    let shared = parents.chain(&vm.own_files).filter(|file| !others_need(file) && !arriving.contains(*file));
    for file in vm.disks.iter().map(|disk| &disk.file).chain(shared) {
        let path = match surroundings.volumes.find(file) {
            Ok(path) => path,
            // Gone already: an earlier try got as far as that. Whether its directory went, too, is not known.
            Err(cause) if cause.code == "no-file" => {
                surroundings.volumes.place(file).iter().for_each(|path| surroundings.volumes.remove_if_empty(path));
                continue;
            }
            Err(cause) => return Err(DeleteError::Refused(cause)),
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("the file {file} cannot be deleted: {error}");
                return Err(DeleteError::Refused(Cause::new("disk", message, "mend that, or keep the disks")));
            }
            _ => surroundings.volumes.remove_if_empty(&path),
        }
    }
    Ok(())
}

/// Takes a VM away that could not be made, with the end of the task that was to do it.
pub fn abandon(state: &State, vm: &VmRecord, task: Uuid, end: TaskStateRecord, cause: Option<&Cause>) -> Result<(), StateError> {
    let name = task.to_string();
    loop {
        let stored = state.read::<TaskRecord>(&name)?.ok_or_else(|| StateError::Gone(format!("the task {task}")))?;
        let mut record = stored.record.clone();
        record.end(end, cause.cloned());
        let (kind, text) = match cause {
            Some(cause) => (EventKind::TaskFailed, format!("import: {}; {}", cause.message, cause.way_out)),
            None => (EventKind::TaskCancelled, "import: cancelled; nothing of it is left".into()),
        };
        let transaction = Transaction::new()
            .if_still(&name, &stored)
            .write(&name, &record)
            .forget::<VmRecord>(&vm.id.to_string())
            .forget::<NameRecord>(&vm.name)
            .tell(&EventRecord::now(kind, text).of_vm(vm.id, &vm.name).by_task(Some(task)));
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(());
        }
    }
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
