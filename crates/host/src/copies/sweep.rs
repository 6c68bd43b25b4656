//! What is left of copies: at the host that had the files when they are another one's, at the other one when they never were, and the records
//! themselves. All of it follows from the records, and is done again until it is done, by whichever `marud` comes then.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use cluster::records::MoveRecord;
use store::record::{Record, Stored};
use store::{Changed, Outcome, Transaction};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::cluster::records::MemberRecord;
use crate::host::Host;
use crate::records::{CopyPhase, CopyRecord, FileRef, OperationRecord, TaskRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::{Input, Surroundings, staging};
use crate::volumes::Volumes;

/// How often it is looked, also when nothing has changed: files may not be removed yet, or a host was removed.
const LOOK: Duration = Duration::from_secs(30);
/// Between two looks when something changes all the time.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks after copies that this host makes or gets, for ever.
pub async fn watch(host: Arc<Host>) {
    let mut changes = host.changes();
    let mut gone = BTreeSet::new();
    loop {
        let (there, ended) = (host.clone(), std::mem::take(&mut gone));
        match host.state.run(move |state| look(state, &there, &ended)).await {
            Err(StateError::Ending) => return,
            Err(error) => tracing::debug!("what is left of copies waits: {error}"),
            Ok(()) => {}
        }
        if !change(&mut changes, &mut gone).await {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Waits for a change that copies depend on, not for ever; notes copies that are called off. Gives whether there can be more.
async fn change(changes: &mut Receiver<Changed>, gone: &mut BTreeSet<Uuid>) -> bool {
    let heard = timeout(LOOK, async {
        loop {
            match changes.recv().await {
                Ok(Changed { key, value, .. }) => {
                    let copy = key.strip_prefix(CopyRecord::PREFIX).and_then(|id| Uuid::parse_str(id).ok());
                    gone.extend(copy.filter(|_| value.is_none()));
                    if copy.is_some() || key.starts_with(MoveRecord::PREFIX) {
                        return true;
                    }
                }
                Err(RecvError::Lagged(_)) => return true,
                Err(RecvError::Closed) => return false,
            }
        }
    });
    heard.await.unwrap_or(true)
}

fn look(state: &State, host: &Host, gone: &BTreeSet<Uuid>) -> Result<(), StateError> {
    let (surroundings, own) = (&host.surroundings, state.own_host().unwrap_or_default());
    if !gone.is_empty() {
        let needed = super::needed(state)?;
        gone.iter().for_each(|id| staging::clear(&surroundings.volumes, *id, &needed));
    }
    for stored in state.all::<CopyRecord>()? {
        let copy = &stored.record;
        match copy.phase {
            CopyPhase::Copying | CopyPhase::Whole if copy.from == own && !is_wanted(state, copy)? => end(state, &stored)?,
            // Whoever made it was removed from the cluster; or whoever has still to do something about it.
            CopyPhase::Copying | CopyPhase::Whole | CopyPhase::Given { left: false, arrived: true }
                if copy.to == own && !is_member(state, &copy.from)? =>
            {
                end(state, &stored)?;
            }
            CopyPhase::Given { left: true, arrived: false } if copy.from == own && !is_member(state, &copy.to)? => {
                end(state, &stored)?;
            }
            CopyPhase::Given { left: false, .. } if copy.from == own && remove_left(state, surroundings, copy)? => {
                note(state, &stored, |left, _| *left = true)?;
            }
            CopyPhase::Given { arrived: false, .. } if copy.to == own && arrives(surroundings, copy) => {
                note(state, &stored, |_, arrived| *arrived = true)?;
            }
            _ => {}
        }
    }
    end_tasks(state, host)
}

/// Whether a copy is for a move that still is to be.
fn is_wanted(state: &State, copy: &CopyRecord) -> Result<bool, StateError> {
    let vm = copy.vm.to_string();
    let is_here = state.read::<VmRecord>(&vm)?.is_some_and(|vm| state.is_here(&vm.record));
    Ok(is_here && super::is_to_go(state, copy.vm, &copy.to)?.is_some())
}

fn is_member(state: &State, host: &str) -> Result<bool, StateError> {
    Ok(state.read::<MemberRecord>(host)?.is_some())
}

fn end(state: &State, stored: &Stored<CopyRecord>) -> Result<(), StateError> {
    let id = stored.record.id.to_string();
    // Changed meanwhile: the next look sees that.
    state.commit(&Transaction::new().if_still(&id, stored).forget::<CopyRecord>(&id)).map(drop)
}

/// Removes what a VM left that is another host's, unless something here needs it. Gives whether all of it is done.
fn remove_left(state: &State, surroundings: &Surroundings, copy: &CopyRecord) -> Result<bool, StateError> {
    let _held = surroundings.hold_files();
    let needed = super::needed(state)?;
    let mut done = true;
    for file in copy.files.iter().filter(|file| file.goes && !needed.contains(&file.from)) {
        if let Err(reason) = remove(&surroundings.volumes, &file.from) {
            tracing::warn!(vm = %copy.vm, "what it left here stays for now: {}: {reason}", file.from);
            done = false;
        }
    }
    Ok(done)
}

/// Removes a file, and its directory if that is empty then. That it is gone is no error.
fn remove(volumes: &Volumes, file: &FileRef) -> Result<(), String> {
    let path = match volumes.find(file) {
        Ok(path) => path,
        Err(cause) if cause.code == "no-file" => {
            volumes.place(file).iter().for_each(|path| volumes.remove_if_empty(path));
            return Ok(());
        }
        // A volume that was given up has nothing left that is ours.
        Err(cause) if cause.code == "no-volume" => return Ok(()),
        Err(cause) => return Err(cause.message),
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.to_string()),
        _ => {
            volumes.remove_if_empty(&path);
            Ok(())
        }
    }
}

/// Files that have arrived are no half-made ones any more. Gives whether nothing says so: as long as something does, the record has to say the contrary.
fn arrives(surroundings: &Surroundings, copy: &CopyRecord) -> bool {
    let volumes = &surroundings.volumes;
    staging::forget(volumes, copy.id);
    copy.files.iter().all(|file| volumes.root(&file.to.volume).is_ok()) && !staging::list(volumes).contains(&copy.id)
}

/// Notes what is done of a copy that was given away; it is forgotten when all is.
fn note(state: &State, stored: &Stored<CopyRecord>, done: impl Fn(&mut bool, &mut bool)) -> Result<(), StateError> {
    let id = stored.record.id.to_string();
    let mut record = stored.record.clone();
    let CopyPhase::Given { left, arrived } = &mut record.phase else { return Ok(()) };
    done(left, arrived);
    let over = *left && *arrived;
    let transaction = Transaction::new().if_still(&id, stored);
    let transaction = if over { transaction.forget::<CopyRecord>(&id) } else { transaction.write(&id, &record) };
    // The other host may have been faster: then this is seen again.
    match state.commit(&transaction)? {
        Outcome::Committed(_) | Outcome::Conflict { .. } => Ok(()),
    }
}

/// Ends tasks that copy files for moves which are not to be any more.
fn end_tasks(state: &State, host: &Host) -> Result<(), StateError> {
    for task in state.all::<TaskRecord>()?.into_iter().map(|stored| stored.record).filter(TaskRecord::is_unfinished) {
        let (OperationRecord::Copy(wanted), Some(vm)) = (&task.operation, task.vm) else { continue };
        let is_here = state.read::<VmRecord>(&vm.to_string())?.is_some_and(|vm| state.is_here(&vm.record));
        if is_here && super::is_to_go(state, vm, &wanted.to)?.is_none() {
            super::end(state, vm)?;
            host.tell_vm(vm, Input::Cancel(task.id));
        }
    }
    Ok(())
}
