//! How much of the host the VM may have.

use serde_json::Value;
use uuid::Uuid;
use vmm::control::Request;

use super::super::Surroundings;
use super::super::resources;
use super::operations::refused;
use super::{ANSWER, Actor};
use crate::records::{Cause, CpuRecord, EventKind, ResourcesRecord, TaskStateRecord, VmRecord};

/// Lets a VM have its part of the host: before it starts, and when that changes. Others give up what they do not have any more.
pub(super) fn admit(surroundings: &Surroundings, vm: &VmRecord, cpu: &CpuRecord) -> Result<(), Cause> {
    let Surroundings { cgroups, ledger, .. } = surroundings;
    if *cpu != CpuRecord::default() && !cgroups.has_cpu() {
        let message = "this host has no control groups of version 2 that share out processor time";
        return Err(Cause::new(
            "no-cgroups",
            message,
            "see marud's log for the reason; or leave the VM's CPU weight, cap and reserve",
        ));
    }
    ledger.admit(vm, cpu)?;
    let failed =
        |error| Cause::new("cgroup", format!("its CPU cap cannot be set: {error}"), "see what stands in the way on the host");
    cgroups.set_cap(vm.id, cpu.cap_percent).map_err(failed)?;
    ledger.share(cgroups);
    Ok(())
}

impl Actor {
    /// Changes what the VM may have, and stores it: now if it runs, and whenever it does.
    pub(super) async fn set_resources(&mut self, task: Uuid, change: &Value, replace: bool) {
        let wanted = match resources::changed(&self.vm.record, change, replace) {
            Ok(wanted) => wanted,
            Err(cause) => return self.fail(task, cause).await,
        };
        if self.machine.is_some() {
            let old = self.vm.record.resources.clone();
            if let Err(cause) = self.apply_resources(&old, &wanted).await {
                // All or nothing. It had this a moment ago: what refuses it now refused the other before, or is about to end.
                if let Err(again) = self.apply_resources(&wanted, &old).await {
                    tracing::warn!(vm = %self.vm.record.name, "its limits may not be what they were: {}", again.message);
                }
                return self.fail(task, cause).await;
            }
        }
        let event = self.event(EventKind::VmChanged, "how much of the host it may have was changed").by_task(Some(task));
        self.change(Some(task), move |vm, record| {
            vm.resources = wanted.clone();
            record?.end(TaskStateRecord::Done, None);
            Some(event.clone())
        })
        .await;
    }

    async fn apply_resources(&mut self, old: &ResourcesRecord, new: &ResourcesRecord) -> Result<(), Cause> {
        if old.cpu != new.cpu {
            let (surroundings, vm, cpu) = (self.surroundings.clone(), self.vm.record.clone(), new.cpu);
            let admitted = tokio::task::spawn_blocking(move || admit(&surroundings, &vm, &cpu)).await;
            admitted.map_err(|_| Cause::new("ending", "marud is about to end", "ask again when it is back"))??;
        }
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let mut requests = Vec::new();
        for disk in &self.vm.record.disks {
            let limits = resources::disk(new, &disk.id);
            if limits != resources::disk(old, &disk.id) {
                requests.push(Request::SetDiskLimits { id: disk.id.clone(), limits });
            }
        }
        for net in &self.vm.record.nets {
            let limits = resources::net(new, &net.id);
            if limits != resources::net(old, &net.id) {
                requests.push(Request::SetNetLimits { id: net.id.clone(), limits });
            }
        }
        for request in requests {
            machine.monitor.call::<Value>(&request, ANSWER).await.map_err(|error| refused(&error))?;
        }
        Ok(())
    }
}
