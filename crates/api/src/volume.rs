//! Volumes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A place that holds disks and other files of VMs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name, which comes before the colon in `local:web/root.vhdx`.
    pub name: String,
    /// What it is made of.
    pub kind: VolumeKind,
    /// Where it is on the host.
    pub path: String,
    /// Whether it was made through the API; the others are those of `marud`'s command line.
    pub managed: bool,
    /// Whether all hosts of a cluster see the same files in it.
    #[serde(default)]
    pub shared: bool,
    /// Its size in bytes.
    pub total_bytes: u64,
    /// Free space in bytes.
    pub free_bytes: u64,
    /// What the files of VMs' disks take, in bytes.
    pub allocated_bytes: u64,
    /// What they would take if all of them were full.
    pub provisioned_bytes: u64,
    /// What is provisioned, in per cent of what there is for disks: more than 100 means that disks were promised more than there is.
    pub provisioned_percent: f64,
    /// From how much of it on there is a warning, in per cent used.
    pub warning_percent: u8,
    /// From how much of it on it is nearly full, in per cent used.
    pub critical_percent: u8,
    /// How full it is.
    pub level: VolumeLevel,
    /// Why it cannot be used; then its sizes are 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// A directory of the host.
    Directory,
}

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeLevel {
    /// There is space.
    Ok,
    /// It becomes full.
    Warning,
    /// It is nearly full.
    Critical,
}

impl std::fmt::Display for VolumeLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            VolumeLevel::Ok => "ok",
            VolumeLevel::Warning => "warning",
            VolumeLevel::Critical => "critical",
        })
    }
}

/// A volume to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// Its name: letters, digits, `-` and `_`, at most 64.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    pub name: String,
    /// A directory of the host that is there, from `/` on.
    #[schema(example = "/srv/vms")]
    pub path: String,
    /// Whether all hosts of the cluster see the same files there, as in a mounted share: VMs can run on any of them then. A file in the directory
    /// tells hosts whether it is the one that is meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// From how much of it on there is a warning, in per cent used; 80 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub warning_percent: Option<u8>,
    /// From how much of it on it is nearly full, in per cent used; 95 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub critical_percent: Option<u8>,
}

/// What to change of a volume. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeChange {
    /// From how much of it on there is a warning, in per cent used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub warning_percent: Option<u8>,
    /// From how much of it on it is nearly full, in per cent used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub critical_percent: Option<u8>,
}
