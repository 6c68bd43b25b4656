//! How much of the host a VM may have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How much of the host a VM may have. Per cent are of one processor of the host: 150 is one and a half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Its part of the processors where VMs compete for them, beside those of others. A VM with 300 gets three times what one with 100 gets.
    #[serde(default = "default_weight")]
    #[schema(minimum = 1, maximum = 10000, default = 100)]
    pub cpu_weight: u32,
    /// The most that all its threads together get, also when processors are idle; no cap if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 409_600, example = 150)]
    pub cpu_cap_percent: Option<u32>,
    /// What it gets whenever it needs it, whatever other VMs do. A VM is not started where it cannot be kept.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 409_600, default = 0)]
    pub cpu_reserve_percent: u32,
    /// Limits of disks, by their ids. A disk that is not here has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, DiskLimits>,
    /// Limits of network cards, by their ids. A card that is not here has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nets: BTreeMap<String, NetLimits>,
}

fn default_weight() -> u32 {
    100
}

impl Default for Resources {
    fn default() -> Resources {
        Resources {
            cpu_weight: default_weight(),
            cpu_cap_percent: None,
            cpu_reserve_percent: 0,
            disks: BTreeMap::new(),
            nets: BTreeMap::new(),
        }
    }
}

impl Resources {
    /// Whether nothing is limited or preferred.
    pub fn is_default(&self) -> bool {
        *self == Resources::default()
    }
}

/// How much a disk may do, all its queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Operations: one for each 8 KiB of a request, and at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<Rate>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate>,
}

/// How much a network card may carry, in bytes of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Towards the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<Rate>,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit: Option<Rate>,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// What is always allowed, in each second.
    #[schema(minimum = 1)]
    pub per_second: u64,
    /// What is allowed for a while after times of less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

/// A time of more than the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// What is allowed meanwhile, in each second: more than the rate.
    #[schema(minimum = 1)]
    pub per_second: u64,
    /// How long a full burst lasts, in seconds. It is saved up by staying below the rate.
    #[schema(minimum = 1)]
    pub seconds: u32,
}
