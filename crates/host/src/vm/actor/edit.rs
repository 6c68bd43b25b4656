//! Changing what the VM is to be.

use serde_json::Value;
use vmm::control::Request;

use super::super::edit;
use super::operations::Went;
use super::{ANSWER, Actor};
use crate::records::{Cause, EventKind, TaskRecord};

impl Actor {
    pub(super) fn edit(&mut self, task: &TaskRecord, patch: Value) -> Result<Went, Cause> {
        if self.vm.record.saved.is_some() && self.machine.is_none() {
            // What is in the file is as it was.
            return Err(self.not_running());
        }
        let control = self.machine.is_some().then(|| self.files().control());
        let (state, surroundings, vm, id) = (self.state.clone(), self.surroundings.clone(), self.vm.record.clone(), task.id);
        self.begin(task, "cancelled; nothing was changed", move |progress| {
            edit::edit(&state, &surroundings, id, &patch, control.as_deref(), (&vm, progress))
        });
        Ok(Went::Waits)
    }

    /// Tells a monitor that has started what it is not started with: cables that are out, and what the balloon takes.
    pub(super) async fn settle(&mut self) {
        let nets = self.vm.record.nets.iter().filter(|net| net.disconnected);
        let mut requests: Vec<Request> = nets.map(|net| Request::SetLink { id: net.id.clone(), up: false }).collect();
        if self.vm.record.balloon_bytes > 0 {
            requests.push(Request::SetBalloon { bytes: self.vm.record.balloon_bytes });
        }
        for request in requests {
            let Some(machine) = &mut self.machine else { return };
            if let Err(error) = machine.monitor.call::<Value>(&request, ANSWER).await {
                let event = self.event(EventKind::VmAlarm, format!("it is not as it is to be: {error}"));
                self.change(None, move |_, _| Some(event.clone())).await;
            }
        }
    }
}
