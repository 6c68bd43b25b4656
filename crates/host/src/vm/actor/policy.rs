//! What the VM's network cards may do at their switches.

use serde_json::Value;
use uuid::Uuid;

use super::Actor;
use crate::net::{Held, policy};
use crate::records::{AttachmentRecord, Cause, EventKind, NetRecord, TaskStateRecord, VmRecord};

/// The network card with this id of a VM, as it is after a change of its policy.
pub fn changed(vm: &VmRecord, net: &str, change: &Value, replace: bool) -> Result<NetRecord, Cause> {
    let card = vm.nets.iter().find(|card| card.id == net).ok_or_else(|| {
        let known: Vec<&str> = vm.nets.iter().map(|card| card.id.as_str()).collect();
        let message = format!("the VM '{}' has no network card '{net}'; it has: {}", vm.name, known.join(", "));
        Cause::new("no-net", message, "name one of these")
    })?;
    let Some((switch, before)) = card.switch() else {
        let message = format!("the network card '{net}' of the VM '{}' is on a TAP", vm.name);
        return Err(Cause::new("not-on-switch", message, "attach it to a switch: that keeps to policies"));
    };
    let policy = policy::changed(before, change, replace)?.into();
    Ok(NetRecord { attachment: AttachmentRecord::Switch { switch: switch.into(), policy }, ..card.clone() })
}

impl Actor {
    /// Changes what a network card may do, and stores it: at once if the VM runs, and whenever it does.
    pub(super) async fn set_policy(&mut self, task: Uuid, net: &str, change: &Value, replace: bool) {
        let wanted = match changed(&self.vm.record, net, change, replace) {
            Ok(wanted) => wanted,
            Err(cause) => return self.fail(task, cause).await,
        };
        let held = match self.machine.is_some() {
            true => self.hold_port(wanted.clone()).await,
            false => Ok(Held::none()),
        };
        let held = match held {
            Ok(held) => held,
            Err(cause) => return self.fail(task, cause).await,
        };
        let event = self.event(EventKind::VmChanged, format!("{} has another policy", wanted.id)).by_task(Some(task));
        self.change(Some(task), move |vm, record| {
            if let Some(card) = vm.nets.iter_mut().find(|card| card.id == wanted.id) {
                card.attachment = wanted.attachment.clone();
            }
            record?.end(TaskStateRecord::Done, None);
            Some(event.clone())
        })
        .await;
        // From here on, it is stored.
        drop(held);
    }

    async fn hold_port(&self, card: NetRecord) -> Result<Held, Cause> {
        let (surroundings, vm) = (self.surroundings.clone(), self.vm.record.id);
        let held = tokio::task::spawn_blocking(move || surroundings.network.hold(vm, &[card])).await;
        held.map_err(|_| Cause::new("ending", "marud is about to end", "ask again when it is back"))?
    }
}
