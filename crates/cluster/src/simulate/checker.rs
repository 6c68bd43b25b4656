//! What must hold at every moment, judged from outside with the true time.

use std::collections::BTreeMap;
use std::time::Duration;

use store::Changed;
use store::record::{Record, from_bytes};

use super::machine::Machine;
use crate::records::{AliveRecord, OwnerRecord};
use crate::{HostId, VmId};

/// Follows the store and the machines.
#[derive(Default)]
pub(super) struct Checker {
    owners: BTreeMap<VmId, Option<HostId>>,
    pub(super) violation: Option<String>,
    /// Whether VMs look at the deadline before they write.
    vms_look: bool,
}

impl Checker {
    pub(super) fn new(vms_look: bool) -> Checker {
        Checker { vms_look, ..Checker::default() }
    }

    /// Whether a VM writes on a machine at this moment.
    fn writes(&self, machine: &Machine, vm: &VmId, now: Duration) -> bool {
        machine.goes(now) && machine.vms.contains_key(vm) && !(self.vms_look && machine.is_past_deadline(now))
    }

    fn found(&mut self, now: Duration, what: String) {
        self.violation.get_or_insert_with(|| format!("at {:.6} s {what}", now.as_secs_f64()));
    }

    /// No VM is written by two, nor by one who does not own it.
    pub(super) fn check_vm(&mut self, machines: &[Machine], vm: &VmId, now: Duration) {
        let mut writers = machines.iter().filter(|machine| self.writes(machine, vm, now)).map(|machine| machine.id.clone());
        let Some(first) = writers.next() else { return };
        if let Some(second) = writers.next() {
            self.found(now, format!("{vm} runs twice: on {first} and on {second}"));
            return;
        }
        let owner = self.owners.get(vm).cloned().flatten();
        if owner.as_ref() != Some(&first) {
            let owner = owner.map_or("nobody".into(), |owner| owner.to_string());
            self.found(now, format!("{vm} runs on {first} and belongs to {owner}"));
        }
    }

    pub(super) fn check_machine(&mut self, machines: &[Machine], machine: usize, now: Duration) {
        for vm in machines[machine].vms.keys() {
            self.check_vm(machines, vm, now);
        }
    }

    /// A change in the store: owners are followed, and whoever's lease has ended writes nothing.
    pub(super) fn changed(&mut self, machines: &[Machine], change: &Changed, now: Duration) {
        if let Some(vm) = change.key.strip_prefix(OwnerRecord::PREFIX) {
            let record = change.value.as_ref().map(|value| from_bytes::<OwnerRecord>(&change.key, value));
            let holder = record.and_then(Result::ok).and_then(|owner| owner.holder).map(|holder| holder.host);
            self.owners.insert(vm.into(), holder);
            self.check_vm(machines, &vm.into(), now);
        }
        if let (Some(host), None) = (change.key.strip_prefix(AliveRecord::PREFIX), &change.value)
            && let Some(machine) = machines.iter().find(|machine| machine.id.as_str() == host)
            && let Some(vm) = machine.vms.keys().find(|vm| self.writes(machine, vm, now))
        {
            self.found(now, format!("{vm} still runs on {host}, whose lease has ended"));
        }
    }
}
