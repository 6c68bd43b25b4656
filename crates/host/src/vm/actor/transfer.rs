//! Exporting the VM, making it from an exported one, and copying its files to another host.

use tokio::runtime::Handle;
use tokio::time::sleep;
use uuid::Uuid;

use super::super::work::WorkError;
use super::super::{delete, export, import};
use super::operations::Went;
use super::{Actor, STORE_AGAIN};
use crate::copies::send;
use crate::records::{Cause, CopyOperation, FileRef, ImportRecord, TaskRecord, TaskStateRecord};
use crate::state::StateError;

impl Actor {
    pub(super) fn export(&mut self, task: &TaskRecord, to: FileRef) -> Result<Went, Cause> {
        if self.machine.is_some() {
            return Err(Cause::new(
                "vm-running",
                "the VM runs",
                "stop it first: its disks must not change while they are copied",
            ));
        }
        if self.vm.record.is_saved() {
            return Err(self.not_running());
        }
        let (surroundings, vm, id) = (self.surroundings.clone(), self.vm.record.clone(), task.id);
        self.begin(task, "cancelled; nothing of it is left", move |progress| {
            export::export(&surroundings, id, &vm, &to, progress)
        });
        Ok(Went::Waits)
    }

    /// Copies the VM's files to the host that it goes to.
    pub(super) fn copy(&mut self, task: &TaskRecord, wanted: CopyOperation) -> Result<Went, Cause> {
        if self.machine.is_some() {
            return Err(Cause::new("vm-running", "the VM runs", "move it with `maru vm move`, which saves it first"));
        }
        let (state, surroundings, vm) = (self.state.clone(), self.surroundings.clone(), self.vm.record.id);
        let runtime = Handle::current();
        self.leaving = Some(task.id);
        self.begin(task, "cancelled; the VM stays where it is", move |progress| {
            send::copy(&state, &surroundings, &runtime, vm, &wanted, progress)
        });
        Ok(Went::Waits)
    }

    /// The VM does not leave after all, though its files were copied. Gives whether it was about to.
    pub(super) async fn stay(&mut self, task: Uuid) -> bool {
        if self.work.is_some() || self.leaving.take_if(|leaving| *leaving == task).is_none() {
            return false;
        }
        self.cancelled(task, "cancelled; the VM stays where it is").await;
        true
    }

    pub(super) fn import(&mut self, task: &TaskRecord, wanted: ImportRecord) -> Went {
        let (state, surroundings, id) = (self.state.clone(), self.surroundings.clone(), task.id);
        self.begin(task, "cancelled; nothing of it is left", move |progress| {
            import::import(&state, &surroundings, id, &wanted, progress)
        });
        Went::Waits
    }

    /// Gives up a VM that could not be made.
    pub(super) async fn abandon(&mut self, task: Uuid, error: WorkError) {
        let (end, cause) = match error {
            WorkError::Cancelled => (TaskStateRecord::Cancelled, None),
            WorkError::Failed(cause) => (TaskStateRecord::Failed, Some(cause)),
        };
        loop {
            let (vm, cause) = (self.vm.record.clone(), cause.clone());
            match self.state.run(move |state| delete::abandon(state, &vm, task, end, cause.as_ref())).await {
                Ok(()) => self.deleted = true,
                Err(StateError::Gone(_) | StateError::Ending) => {}
                Err(error) => {
                    tracing::error!(vm = %self.vm.record.name, "cannot be stored, trying again: {error}");
                    sleep(STORE_AGAIN).await;
                    continue;
                }
            }
            return;
        }
    }
}
