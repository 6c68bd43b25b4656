//! Files of VMs that only one host reaches: copied to another one when the VM goes there.
//!
//! ```text
//!   moves/VM ─▶ the VM's host: task `copy`                    the host that it goes to
//!                 ├─ what is needed ──────POST /copies───────▶ plan: a volume, room, what is there already
//!                 ├─ copies/ID: copying                        │
//!                 ├─ pieces of files ─────PUT /copies/ID─────▶ staging ─▶ places, durable ─▶ copies/ID: whole
//!                 └─ one transaction: owners/VM, vms/ID with new places, copies/ID: given
//!   sweep: removes its files, unless others need them          sweep: they are no half-made ones any more
//! ```
//! The hosts know each other by their certificates. What one takes from the other is said by the store alone: which VM it is, that it is to go
//! there, which files it has, and where they are to be.
//!
//! Whatever ends either `marud`, or the way between them, `copies/ID` says whose the files are ([`CopyRecord`](crate::records::CopyRecord)):
//! until it is *given*, the VM is its host's, and what was copied is removed when the record is; after that, what was left is. [`sweep`] does
//! both, again and again until it is done.

pub mod files;
pub mod receive;
pub mod send;
mod stream;
pub mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use cluster::records::MoveRecord;
use serde::{Deserialize, Serialize};
use store::record::Stored;
use store::{Outcome, Transaction};
use uuid::Uuid;

use crate::cluster::placements;
use crate::records::{
    Cause, CopyOperation, CopyPhase, CopyRecord, EventKind, EventRecord, FileRef, ImageRecord, OperationRecord, Power,
    TaskRecord, TaskStateRecord, TreeRecord, VmRecord,
};
use crate::state::{Records, State, StateError};
use crate::vm::checkpoints;

/// What a host asks another one before it copies files of a VM to it. Which files these are, the store says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// The VM.
    pub vm: Uuid,
    /// What its files are, in their order.
    pub sizes: Vec<Size>,
    /// Bytes that are still to come: what it will be saved to.
    pub more: u64,
    /// Whether files that are there already are to be compared. If not, it is only asked whether there is room.
    pub compare: bool,
}

/// What a file takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Size {
    /// Its length in bytes.
    pub bytes: u64,
    /// What it takes in its file system.
    pub allocated: u64,
}

/// Where a file is to be, on the host that was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The place.
    pub to: FileRef,
    /// SHA-256 of a file that is there already and has the same length. With the same content, it need not be copied.
    pub sha256: Option<String>,
    /// Whether that is deleted with the last VM that needs it.
    pub owned: bool,
    /// Where the file can be instead, if the content is another one.
    pub otherwise: Option<FileRef>,
}

/// Whether a VM is to go to this host, and to this volume there.
fn is_to_go(state: &State, vm: Uuid, to: &str) -> Result<Option<Stored<MoveRecord>>, StateError> {
    Ok(state.read::<MoveRecord>(&vm.to_string())?.filter(|moving| moving.record.to.as_str() == to))
}

/// The VM does not go there any more.
fn called_off() -> Cause {
    Cause::new("called-off", "the VM is not to go there any more", "see where it is now, and move it again if that is wanted")
}

/// Copies of files that are to come to this host, or have come to it and are not their VM's yet.
pub fn arriving(state: &State) -> Result<BTreeSet<FileRef>, StateError> {
    let copies = state.all::<CopyRecord>()?.into_iter().map(|stored| stored.record);
    let here = copies.filter(|copy| copy.is_open() && Some(copy.to.as_str()) == state.own_host());
    Ok(here.flat_map(|copy| copy.files).map(|file| file.to).collect())
}

/// All files that VMs of this host need, that are to come to it, or that are images.
pub fn needed(state: &State) -> Result<BTreeSet<FileRef>, StateError> {
    let mut needed = arriving(state)?;
    for vm in state.vms_here()?.into_iter().map(|stored| stored.record) {
        needed.extend(files::all(&vm, &checkpoints::tree(state, vm.id)?).into_keys());
    }
    needed.extend(state.all::<ImageRecord>()?.into_iter().map(|stored| stored.record.file));
    Ok(needed)
}

/// A copy that this host makes for a VM, or has made, and has not given away.
pub fn open(state: &State, vm: Uuid) -> Result<Option<Stored<CopyRecord>>, StateError> {
    let own = state.own_host().unwrap_or_default();
    let is_its = |copy: &CopyRecord| copy.vm == vm && copy.from == own && copy.is_open();
    Ok(state.all::<CopyRecord>()?.into_iter().find(|stored| is_its(&stored.record)))
}

/// Calls a copy off, unless it was given away meanwhile: the host that has it removes it.
pub fn call_off(state: &State, id: Uuid) -> Result<(), StateError> {
    let name = id.to_string();
    while let Some(stored) = state.read::<CopyRecord>(&name)?.filter(|stored| stored.record.is_open()) {
        if let Outcome::Committed(_) = state.commit(&Transaction::new().if_still(&name, &stored).forget::<CopyRecord>(&name))? {
            break;
        }
    }
    Ok(())
}

/// How far the copying of a VM's files is.
pub enum Standing {
    /// Nobody was asked to copy them.
    None,
    /// A task does it.
    Works,
    /// They are there: this makes them the VM's, which is that host's then. It ends the task, too.
    Whole(Box<Transaction>),
}

/// How far the copying of a VM's files to a host is.
pub fn standing(state: &State, vm: Uuid, wanted: &CopyOperation) -> Result<Standing, StateError> {
    let name = vm.to_string();
    let does = |task: &TaskRecord| matches!(&task.operation, OperationRecord::Copy(copy) if copy == wanted);
    let Some(task) = state.unfinished_tasks(vm)?.into_iter().find(does) else { return Ok(Standing::None) };
    let task_name = task.id.to_string();
    let is_done = |stored: &Stored<CopyRecord>| stored.record.phase == CopyPhase::Whole && stored.record.to == wanted.to;
    let (Some(copy), Some(task), Some(stored)) =
        (open(state, vm)?.filter(is_done), state.read::<TaskRecord>(&task_name)?, state.read::<VmRecord>(&name)?)
    else {
        return Ok(Standing::Works);
    };
    if task.record.state != TaskStateRecord::Running || !state.is_here(&stored.record) {
        return Ok(Standing::Works);
    }
    let before = state.read::<TreeRecord>(&name)?;
    let (mut record, mut tree) = (stored.record.clone(), before.as_ref().map(|tree| tree.record.clone()).unwrap_or_default());
    files::give(&copy.record, &mut record, &mut tree);
    record.power = Power::Off;
    let id = copy.record.id.to_string();
    let given = CopyRecord { phase: CopyPhase::Given { left: false, arrived: false }, ..copy.record.clone() };
    let mut done = task.record.clone();
    done.progress = done.progress.map(|progress| crate::records::ProgressRecord { done: progress.total, ..progress });
    done.end(TaskStateRecord::Done, None);
    let text = format!("it goes to {} with its files", copy.record.to);
    let event = EventRecord::now(EventKind::VmPlaced, text).of(&done);
    let mut transaction = Transaction::new()
        .if_still(&name, &stored)
        .write(&name, &record)
        .if_still(&id, &copy)
        .write(&id, &given)
        .if_still(&task_name, &task)
        .write(&task_name, &done)
        .tell(&event);
    transaction = match &before {
        Some(before) => transaction.if_still(&name, before).write(&name, &tree),
        None => transaction.if_none::<TreeRecord>(&name),
    };
    let own = state.own_host().unwrap_or_default().to_owned();
    Ok(Standing::Whole(Box::new(placements::complete(state, &own, transaction)?)))
}

/// The VM does not go where its files were to be copied.
pub fn stay(state: &State, vm: Uuid, wanted: &CopyOperation, transaction: Transaction) -> Result<Transaction, StateError> {
    let Some(moving) = is_to_go(state, vm, &wanted.to)? else { return Ok(transaction) };
    Ok(transaction.if_still(&vm.to_string(), &moving).forget::<MoveRecord>(&vm.to_string()))
}

/// Ends tasks that copy a VM's files, and calls off what they have made. Gives the tasks: who does one still has to hear of it.
pub fn end(state: &State, vm: Uuid) -> Result<Vec<Uuid>, StateError> {
    let copies = |task: &TaskRecord| matches!(task.operation, OperationRecord::Copy(_));
    let tasks: Vec<Uuid> = state.unfinished_tasks(vm)?.into_iter().filter(copies).map(|task| task.id).collect();
    for task in &tasks {
        let wish = |task: &mut TaskRecord| match task.state {
            TaskStateRecord::Queued => {
                task.note("called off before it had begun");
                task.end(TaskStateRecord::Cancelled, None);
            }
            TaskStateRecord::Running => task.cancel_requested = true,
            _ => {}
        };
        state.edit(&task.to_string(), wish, None)?;
    }
    if let Some(copy) = open(state, vm)? {
        call_off(state, copy.record.id)?;
    }
    Ok(tasks)
}
