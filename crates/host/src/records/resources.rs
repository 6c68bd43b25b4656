//! How much of the host a VM may have, as it is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A part of a VM's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesRecord {
    /// Processors.
    pub cpu: CpuRecord,
    /// Limits of disks, by their ids.
    pub disks: BTreeMap<String, DiskLimitsRecord>,
    /// Limits of network cards, by their ids.
    pub nets: BTreeMap<String, NetLimitsRecord>,
}

/// A VM's part of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRecord {
    /// Beside those of others: 1 to 10000.
    pub weight: u32,
    /// At most, in per cent of one processor.
    pub cap_percent: Option<u32>,
    /// At least, in per cent of one processor.
    pub reserve_percent: u32,
}

impl Default for CpuRecord {
    fn default() -> CpuRecord {
        CpuRecord { weight: 100, cap_percent: None, reserve_percent: 0 }
    }
}

/// Limits of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimitsRecord {
    /// Operations.
    pub iops: Option<RateRecord>,
    /// Bytes.
    pub bandwidth: Option<RateRecord>,
}

/// Limits of a network card, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetLimitsRecord {
    /// Towards the guest.
    pub receive: Option<RateRecord>,
    /// From the guest.
    pub transmit: Option<RateRecord>,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateRecord {
    /// Always, in each second.
    pub per_second: u64,
    /// For a while: in each second, and how many seconds.
    pub burst: Option<(u64, u32)>,
}

impl ResourcesRecord {
    /// As the API tells it.
    pub fn told(&self) -> api::Resources {
        let disk = |limits: &DiskLimitsRecord| api::DiskLimits { iops: told(limits.iops), bandwidth: told(limits.bandwidth) };
        let net = |limits: &NetLimitsRecord| api::NetLimits { receive: told(limits.receive), transmit: told(limits.transmit) };
        api::Resources {
            cpu_weight: self.cpu.weight,
            cpu_cap_percent: self.cpu.cap_percent,
            cpu_reserve_percent: self.cpu.reserve_percent,
            disks: self.disks.iter().map(|(id, limits)| (id.clone(), disk(limits))).collect(),
            nets: self.nets.iter().map(|(id, limits)| (id.clone(), net(limits))).collect(),
        }
    }
}

fn told(rate: Option<RateRecord>) -> Option<api::Rate> {
    let burst = |(per_second, seconds)| api::Burst { per_second, seconds };
    rate.map(|rate| api::Rate { per_second: rate.per_second, burst: rate.burst.map(burst) })
}
