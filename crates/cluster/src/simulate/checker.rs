//! What must hold at every moment, judged from outside with the true time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use store::Changed;
use store::record::{Record, from_bytes};

use super::machine::{Machine, Process};
use crate::records::{AliveRecord, OwnerRecord, PlacementRecord};
use crate::{HostId, VmId};

/// What the keys of the simulation's own records begin with, which say how often a VM had been started whose files were copied.
pub(super) const COPIES: &str = "copies/";

/// Follows the store and the machines.
#[derive(Default)]
pub(super) struct Checker {
    owners: BTreeMap<VmId, Option<HostId>>,
    /// VMs that only their owner's host may give away.
    bound: BTreeSet<VmId>,
    /// Where files are that only one host reaches.
    files: BTreeMap<VmId, HostId>,
    /// How often VMs were started.
    starts: BTreeMap<VmId, u64>,
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
        let is_stopped = |process: &Process| self.vms_look && !process.bound && machine.is_past_deadline(now);
        machine.goes(now) && machine.vms.get(vm).is_some_and(|process| !is_stopped(process))
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
        if let Some(host) = self.files.get(vm).filter(|host| **host != first) {
            self.found(now, format!("{vm} runs on {first} and its files are on {host}"));
        }
    }

    pub(super) fn started(&mut self, vm: &VmId) {
        *self.starts.entry(vm.clone()).or_default() += 1;
    }

    pub(super) fn starts(&self, vm: &VmId) -> u64 {
        self.starts.get(vm).copied().unwrap_or_default()
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
            let record = record.and_then(Result::ok);
            match record.as_ref().is_some_and(|owner| owner.bound) {
                true => self.bound.insert(vm.into()),
                false => self.bound.remove(&vm.into()),
            };
            let holder = record.and_then(|owner| owner.holder).map(|holder| holder.host);
            self.owners.insert(vm.into(), holder);
            self.check_vm(machines, &vm.into(), now);
        }
        if let Some(vm) = change.key.strip_prefix(PlacementRecord::PREFIX) {
            let record = change.value.as_ref().map(|value| from_bytes::<PlacementRecord>(&change.key, value));
            match record.and_then(Result::ok).and_then(|placement| placement.local) {
                Some(local) => self.files.insert(vm.into(), local.host),
                None => self.files.remove(&vm.into()),
            };
            self.check_vm(machines, &vm.into(), now);
        }
        // Files are of use only as the VM left them.
        if let (Some(vm), Some(value)) = (change.key.strip_prefix(COPIES), &change.value)
            && *value != self.starts(&vm.into()).to_le_bytes()
        {
            self.found(now, format!("{vm} goes on with files that were copied before it ran again"));
        }
        if let (Some(host), None) = (change.key.strip_prefix(AliveRecord::PREFIX), &change.value)
            && let Some(machine) = machines.iter().find(|machine| machine.id.as_str() == host)
            && let Some(vm) = machine.vms.keys().find(|vm| self.writes(machine, vm, now) && !self.bound.contains(*vm))
        {
            self.found(now, format!("{vm} still runs on {host}, whose lease has ended"));
        }
    }
}
