//! The cluster that is measured: hosts in racks of 16, and VMs of four sizes, in groups of three that should or must be apart.

use std::collections::BTreeSet;

use cluster::records::{Affinity, GroupRule, HostRecord, PlacementRecord, Power, Priority, Scope, Strength};
use cluster::{HostId, VmId};

/// The name of a host.
pub fn host_name(number: usize) -> HostId {
    format!("h{number:03}").into()
}

/// The name of a VM: an id, as all have.
pub fn vm_name(number: usize) -> VmId {
    format!("{number:08x}-0000-4000-8000-000000000000").into()
}

/// What hosts have and VMs need.
pub struct Shape {
    features: BTreeSet<String>,
}

impl Shape {
    pub fn new() -> Shape {
        Shape { features: (0..30).map(|number| format!("feature{number}")).collect() }
    }

    pub fn host(&self, number: usize) -> HostRecord {
        HostRecord {
            memory_mib: 512 * 1024,
            cpus: 128,
            fault_domain: Some(format!("rack{}", number / 16)),
            volumes: BTreeSet::from(["shared".into()]),
            cpu_features: self.features.clone(),
            ..HostRecord::default()
        }
    }

    pub fn placement(&self, number: usize) -> PlacementRecord {
        let apart = GroupRule {
            group: format!("group{}", number / 3),
            affinity: Affinity::Apart,
            scope: Scope::Host,
            strength: if number.is_multiple_of(2) { Strength::Hard } else { Strength::Soft },
        };
        PlacementRecord {
            power: Power::On,
            memory_mib: 1024 * (1 + number as u64 % 4),
            vcpus: 1 + (number % 4) as u32,
            priority: [Priority::Low, Priority::Medium, Priority::High][number % 3],
            volumes: BTreeSet::from(["shared".into()]),
            cpu_features: self.features.clone(),
            groups: vec![apart],
            ..PlacementRecord::default()
        }
    }
}
