//! What hosts have, and have given away.

use std::collections::BTreeMap;

use super::bits::{Bits, Names};
use crate::HostId;
use crate::records::{Affinity, GroupRule, HostRecord, PlacementRecord, Priority, Scope, Strength, own_volume};

/// A host's place in the inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub(super) usize);

/// Why a host takes no VMs at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Nothing is known of it.
    Unknown,
    /// It holds no lease.
    Dead,
    /// It is drained, or to be.
    Drained,
}

/// What one host has and has given away.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) id: HostId,
    pub(super) closed: Option<Closed>,
    pub(super) memory_mib: u64,
    pub(super) cpus: u32,
    pub(super) volumes: Bits,
    /// What is free on its own volumes, in MiB.
    pub(super) local: BTreeMap<String, u64>,
    pub(super) features: Bits,
    pub(super) domain: usize,
    pub(super) used_mib: u64,
    pub(super) used_vcpus: u64,
    pub(super) vms: u32,
}

impl Load {
    pub(super) fn free_mib(&self) -> u64 {
        self.memory_mib.saturating_sub(self.used_mib)
    }
}

/// What a VM needs, in a form that is quick to compare.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub(super) memory_mib: u64,
    pub(super) vcpus: u32,
    pub(super) priority: Priority,
    pub(super) volumes: Bits,
    /// Those that other hosts reach, too.
    pub(super) shared: Bits,
    /// Where files are that only this host reaches, and what they take of its volumes in MiB.
    pub(super) files_on: Option<Slot>,
    pub(super) files: Vec<(String, u64)>,
    pub(super) features: Bits,
    pub(super) possible: Vec<Slot>,
    pub(super) preferred: Vec<Slot>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) group: usize,
    pub(super) affinity: Affinity,
    pub(super) scope: Scope,
    pub(super) hard: bool,
}

/// How many VMs of a group are where.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) total: u32,
    pub(super) hosts: BTreeMap<Slot, u32>,
    pub(super) domains: BTreeMap<usize, u32>,
}

/// What all hosts have and have given away.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(super) hosts: Vec<Load>,
    slots: BTreeMap<HostId, Slot>,
    pub(super) names: Names,
    pub(super) group_names: Vec<String>,
    group_numbers: BTreeMap<String, usize>,
    pub(super) groups: Vec<Group>,
    domains: BTreeMap<String, usize>,
    /// Memory that VMs have on hosts that take VMs.
    used_mib: u64,
}

impl Inventory {
    /// The place of a host, which is made if there is none.
    pub fn slot(&mut self, host: &HostId) -> Slot {
        if let Some(slot) = self.slots.get(host) {
            return *slot;
        }
        let slot = Slot(self.hosts.len());
        let domain = self.domain(&format!("\0{host}"));
        self.hosts.push(Load {
            id: host.clone(),
            closed: Some(Closed::Unknown),
            memory_mib: 0,
            cpus: 0,
            volumes: Bits::default(),
            local: BTreeMap::new(),
            features: Bits::default(),
            domain,
            used_mib: 0,
            used_vcpus: 0,
            vms: 0,
        });
        self.slots.insert(host.clone(), slot);
        slot
    }

    /// The place of a host that there is.
    pub fn find(&self, host: &HostId) -> Option<Slot> {
        self.slots.get(host).copied()
    }

    /// The host in a place.
    pub fn host(&self, slot: Slot) -> &HostId {
        &self.hosts[slot.0].id
    }

    fn domain(&mut self, name: &str) -> usize {
        let next = self.domains.len();
        *self.domains.entry(name.into()).or_insert(next)
    }

    /// Sets what a host has. Its VMs are to be taken off before and put back after, since its fault domain may change.
    pub fn set_host(&mut self, host: &HostId, record: Option<&HostRecord>, closed: Option<Closed>) {
        let slot = self.slot(host);
        let empty = HostRecord::default();
        let (record, closed) = match record {
            Some(record) => (record, closed),
            None => (&empty, Some(Closed::Unknown)),
        };
        // A name cannot have a zero byte, so a host without a domain is alone in its own.
        let domain = match &record.fault_domain {
            Some(name) => self.domain(name),
            None => self.domain(&format!("\0{host}")),
        };
        let (volumes, features) = (self.names.set(&record.volumes), self.names.set(&record.cpu_features));
        let load = &mut self.hosts[slot.0];
        let counted = |load: &Load| if load.closed.is_none() { load.used_mib } else { 0 };
        self.used_mib -= counted(load);
        (load.memory_mib, load.cpus) = (record.memory_mib, record.cpus);
        (load.volumes, load.features, load.domain, load.closed) = (volumes, features, domain, closed);
        load.local.clone_from(&record.local);
        self.used_mib += counted(load);
    }

    /// What a VM needs.
    pub fn needs(&mut self, record: &PlacementRecord) -> Needs {
        let local = record.local.as_ref();
        let own: Vec<String> =
            local.map(|local| local.volumes.keys().map(|volume| own_volume(volume, &local.host)).collect()).unwrap_or_default();
        Needs {
            shared: self.names.set(record.volumes.iter().filter(|volume| !own.contains(volume))),
            files_on: local.map(|local| self.slot(&local.host)),
            files: local.map(|local| local.volumes.clone().into_iter().collect()).unwrap_or_default(),
            memory_mib: record.memory_mib,
            vcpus: record.vcpus,
            priority: record.priority,
            volumes: self.names.set(&record.volumes),
            features: self.names.set(&record.cpu_features),
            possible: record.possible.iter().map(|host| self.slot(host)).collect(),
            preferred: record.preferred.iter().map(|host| self.slot(host)).collect(),
            rules: record.groups.iter().map(|rule| self.rule(rule)).collect(),
        }
    }

    fn rule(&mut self, rule: &GroupRule) -> Rule {
        let next = self.group_names.len();
        let group = *self.group_numbers.entry(rule.group.clone()).or_insert(next);
        if group == next {
            self.group_names.push(rule.group.clone());
            self.groups.push(Group::default());
        }
        Rule { group, affinity: rule.affinity, scope: rule.scope, hard: rule.strength == Strength::Hard }
    }

    /// Puts a VM on a host.
    pub fn put(&mut self, needs: &Needs, slot: Slot) {
        let load = &mut self.hosts[slot.0];
        load.used_mib += needs.memory_mib;
        load.used_vcpus += u64::from(needs.vcpus);
        load.vms += 1;
        if load.closed.is_none() {
            self.used_mib += needs.memory_mib;
        }
        for rule in &needs.rules {
            let group = &mut self.groups[rule.group];
            group.total += 1;
            *group.hosts.entry(slot).or_default() += 1;
            *group.domains.entry(load.domain).or_default() += 1;
        }
    }

    /// Takes a VM off a host that it was put on.
    pub fn take(&mut self, needs: &Needs, slot: Slot) {
        fn less<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
        let load = &mut self.hosts[slot.0];
        load.used_mib -= needs.memory_mib;
        load.used_vcpus -= u64::from(needs.vcpus);
        load.vms -= 1;
        if load.closed.is_none() {
            self.used_mib -= needs.memory_mib;
        }
        for rule in &needs.rules {
            let group = &mut self.groups[rule.group];
            group.total -= 1;
            less(&mut group.hosts, slot);
            less(&mut group.domains, load.domain);
        }
    }

    /// Whether so many hosts may fail, and the memory of the others holds all VMs, this one too: the memory that would be missing in MiB
    /// if not. It is a sum: whether each VM finds a host of its own then, [`what_if`](Inventory::what_if) says.
    pub fn missing_for_failures(&self, needs: &Needs, failures: u32) -> Option<u64> {
        if failures == 0 {
            return None;
        }
        let mut sizes: Vec<u64> = self.hosts.iter().filter(|load| load.closed.is_none()).map(|load| load.memory_mib).collect();
        let failing = usize::try_from(failures).unwrap_or(usize::MAX).min(sizes.len());
        let left: u64 = if failing == sizes.len() {
            0
        } else {
            sizes.select_nth_unstable_by(failing, |a, b| b.cmp(a));
            sizes[failing..].iter().sum()
        };
        (self.used_mib + needs.memory_mib).checked_sub(left).filter(|missing| *missing > 0)
    }
}
