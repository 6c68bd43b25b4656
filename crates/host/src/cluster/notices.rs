//! What the cluster's decisions tell users, as events and in the logs of tasks.

use cluster::{Notice, VmId};
use store::Transaction;
use uuid::Uuid;

use super::machines;
use crate::records::{EventKind, EventRecord, VmRecord};
use crate::state::{Records, State, StateError};

fn vm_of(notice: &Notice) -> Option<&VmId> {
    match notice {
        Notice::Placed { vm, .. }
        | Notice::Waits { vm, .. }
        | Notice::Moves { vm, .. }
        | Notice::Stays { vm, .. }
        | Notice::Failed { vm, .. }
        | Notice::GaveUp { vm, .. } => Some(vm),
        _ => None,
    }
}

fn kind_of(notice: &Notice) -> EventKind {
    match notice {
        Notice::HostLost { .. } | Notice::LeaseLost { .. } => EventKind::HostLost,
        Notice::HostBack(_) => EventKind::HostBack,
        Notice::Placed { .. } | Notice::Moves { .. } => EventKind::VmPlaced,
        Notice::Waits { .. } | Notice::Stays { .. } | Notice::Failed { .. } | Notice::GaveUp { .. } => EventKind::VmAlarm,
        Notice::Unreadable(_) | Notice::NetworkSilent(..) | Notice::Suspected(..) => EventKind::HostAlarm,
        _ => EventKind::ClusterNote,
    }
}

/// Stores what is told.
pub fn store(state: &State, own: &str, notice: &Notice) -> Result<(), StateError> {
    let id = vm_of(notice).and_then(|vm| Uuid::parse_str(vm.as_str()).ok());
    let vm = id.map(|id| state.read::<VmRecord>(&id.to_string())).transpose()?.flatten().map(|stored| stored.record);
    let mut text = notice.to_string();
    let mut event = EventRecord::now(kind_of(notice), "");
    if let Some(vm) = &vm {
        // People know it by its name.
        text = text.replace(&vm.id.to_string(), &vm.name);
        event = event.of_vm(vm.id, &vm.name);
    } else {
        text = text.replace("this host", &format!("the host {own}"));
    }
    state.commit(&Transaction::new().tell(&EventRecord { text, ..event }))?;
    match (notice, id) {
        (Notice::GaveUp { reason, .. }, Some(id)) => machines::give_up(state, id, reason),
        (Notice::Waits { reason, .. }, Some(id)) => machines::note_waiting(state, id, &format!("waits: {reason}")),
        _ => Ok(()),
    }
}
