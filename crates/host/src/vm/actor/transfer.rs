//! Exporting the VM, and making it from an exported one.

use tokio::time::sleep;
use uuid::Uuid;

use super::super::work::WorkError;
use super::super::{delete, export, import};
use super::operations::Went;
use super::{Actor, STORE_AGAIN};
use crate::records::{Cause, FileRef, ImportRecord, TaskRecord, TaskStateRecord};
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
