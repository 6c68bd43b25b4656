//! VMs that leave this host: the other one is asked first, and files that only this one reaches are copied there.

use std::sync::atomic::Ordering;

use cluster::records::{HostRecord, MoveRecord};
use store::record::Record;
use store::{Revision, Transaction};
use tokio::runtime::Handle;
use tokio::time::sleep;
use uuid::Uuid;

use super::{LOOK, Machine, make_task};
use crate::copies::{self, Standing, send};
use crate::records::{CopyOperation, EventKind, EventRecord, OperationRecord, TaskRecord, VmRecord};
use crate::state::{Records, StateError};
use crate::vm::Input;
use crate::vm::work::WorkError;

impl Machine {
    /// Before a VM is saved to go elsewhere: whether its files could be copied there, if that is needed. If not, the move is called off, and
    /// users are told why.
    pub(super) async fn may_leave(&self) -> bool {
        let (id, name) = (self.id, self.id.to_string());
        let own = self.shared.config.host.clone();
        let read = self.state(move |state| {
            let goes_down = state.read::<HostRecord>(own.as_str())?.is_some_and(|host| host.record.going_down.is_some());
            Ok((state.read::<MoveRecord>(&name)?, goes_down))
        });
        let moving = match read.await {
            Some((Some(moving), _)) => moving,
            // It goes nowhere: it waits here for the host to be back, or was called off meanwhile.
            Some((None, goes_down)) => return goes_down,
            None => return false,
        };
        let (host, runtime, to) = (self.host(), Handle::current(), moving.record.to.clone());
        let asked = tokio::task::spawn_blocking(move || {
            send::ask(&host.state, &host.surroundings, &runtime, id, to.as_str()).map_err(|error| (to, error))
        });
        let Ok(Err((to, error))) = asked.await else { return true };
        let reason = match error {
            WorkError::Failed(cause) => format!("{}; {}", cause.message, cause.way_out),
            // The lease has ended.
            WorkError::Cancelled => return false,
        };
        let text = format!("it does not go to {to}, and goes on here: {reason}");
        self.call_move_off(moving.revision).await;
        self.state(move |state| {
            let vm = state.read::<VmRecord>(&id.to_string())?.map(|vm| vm.record.name).unwrap_or_default();
            let event = EventRecord::now(EventKind::VmAlarm, text.clone()).of_vm(id, &vm);
            state.commit(&Transaction::new().tell(&event)).map(drop)
        })
        .await;
        false
    }

    /// Has the files of the VM copied to where it goes. Gives what makes them its files there.
    pub(super) async fn copy(&self, wanted: &CopyOperation) -> Result<Transaction, String> {
        let id = self.id;
        let mut made: Option<Uuid> = None;
        loop {
            if self.kill.load(Ordering::Acquire) || self.end_copy.load(Ordering::Acquire) {
                self.call_off_copies().await;
                return Err(
                    "the move was called off: the other host is not there any more, or someone wants something else".into()
                );
            }
            let operation = wanted.clone();
            let standing = self.shared.host.state.run(move |state| {
                let ended = made.map(|task| state.read::<TaskRecord>(&task.to_string())).transpose()?.flatten();
                Ok((copies::standing(state, id, &operation)?, ended.map(|task| task.record)))
            });
            match standing.await {
                Ok((Standing::Whole(transaction), _)) => return Ok(*transaction),
                Ok((Standing::Works, _)) => {}
                Ok((Standing::None, None)) => made = self.ask_to_copy(wanted).await,
                // It has ended between the two looks, perhaps; and then it is not found unfinished.
                Ok((Standing::None, Some(task))) if task.is_unfinished() => {}
                Ok((Standing::None, Some(task))) => {
                    let cancelled = || "it was cancelled".to_owned();
                    return Err(task.error.map_or_else(cancelled, |cause| format!("{}; {}", cause.message, cause.way_out)));
                }
                Err(StateError::Ending) => return Err("marud is about to end".into()),
                Err(error) => tracing::debug!(vm = %self.id, "the store is tried again: {error}"),
            }
            sleep(LOOK).await;
        }
    }

    /// Makes a task that copies the VM's files.
    async fn ask_to_copy(&self, wanted: &CopyOperation) -> Option<Uuid> {
        let (id, operation) = (self.id, OperationRecord::Copy(wanted.clone()));
        self.state(move |state| make_task(state, id, &operation)).await.flatten()
    }

    /// Ends what copies the VM's files, and gives up what was copied.
    pub(super) async fn call_off_copies(&self) {
        let id = self.id;
        // Without the store, the work sees the lease end, and what it has made is called off later.
        if let Ok(tasks) = self.shared.host.state.run(move |state| copies::end(state, id)).await {
            for task in tasks {
                self.shared.host.tell_vm(id, Input::Cancel(task));
            }
        }
    }

    /// The VM does not go elsewhere, unless something else is wanted by now.
    pub(super) async fn call_move_off(&self, revision: Revision) {
        let key = MoveRecord::key(&self.id.to_string());
        let transaction = Transaction::new().unchanged(key.clone(), revision).delete(key);
        self.state(move |state| state.commit(&transaction).map(drop)).await;
    }
}
