//! Where VMs of a cluster run, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is wanted of the place of a VM in a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Placement {
    /// Who starts first when not all can at once.
    pub priority: Priority,
    /// Hosts that it would like, the best first.
    #[schema(max_items = 64)]
    pub preferred: Vec<String>,
    /// Hosts that it may run on; all if there are none.
    #[schema(max_items = 64)]
    pub possible: Vec<String>,
    /// Groups that it is in.
    #[schema(max_items = 32)]
    pub groups: Vec<GroupRule>,
    /// So often it is started again in a period after it, or its host, failed. 0 is never.
    #[schema(maximum = 100)]
    pub restart_limit: u32,
    /// The period in seconds.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub restart_period_seconds: u64,
    /// Whether it goes back to where it ran before its host failed.
    pub failback: Failback,
}

/// Who starts first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// After all others.
    Low,
    /// As most.
    #[default]
    Medium,
    /// Before all others.
    High,
}

/// A VM's part in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// The group's name.
    #[schema(min_length = 1, max_length = 64)]
    pub group: String,
    /// Whether its VMs are to be together or apart.
    pub affinity: Affinity,
    /// Of what.
    #[serde(default)]
    pub scope: Scope,
    /// A VM that would break it is not started; otherwise it is kept where it can be.
    #[serde(default)]
    pub hard: bool,
}

/// How VMs of a group are placed to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// In one place.
    Together,
    /// In different ones.
    Apart,
}

/// What a place is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A host.
    #[default]
    Host,
    /// A fault domain, like a rack.
    FaultDomain,
}

/// Whether a VM goes back to where it ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Failback {
    /// It stays.
    #[default]
    Never,
    /// As soon as the host is back.
    Immediate,
    /// Then, but only at this time of the day, in minutes after midnight UTC. A window may go over midnight.
    Window(FailbackWindow),
}

/// A time of the day, in minutes after midnight UTC.
// A type of its own: generators of clients do not get along with one that has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailbackWindow {
    /// Its begin.
    #[schema(maximum = 1439)]
    pub from_minute: u16,
    /// Its end, which is not in it.
    #[schema(maximum = 1439)]
    pub to_minute: u16,
}

/// Where a VM is, and what speaks for and against each host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The VM.
    pub vm: String,
    /// The host that it runs on, or is started on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How it stands, for people: what it waits for, and the way out.
    pub standing: String,
    /// The hosts, the best first.
    pub hosts: Vec<HostVerdict>,
}

/// What speaks for and against a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostVerdict {
    /// The host.
    pub host: String,
    /// Its points; none if it cannot take the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// All that speaks against it; if nothing does, what the points consist of.
    pub reasons: Vec<String>,
}

/// What would happen if hosts failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhatIf {
    /// The hosts that would fail.
    pub down: Vec<String>,
    /// Their VMs, in the order in which they would be started.
    pub vms: Vec<VmFate>,
}

/// What would become of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmFate {
    /// The VM.
    pub vm: String,
    /// The host that it would be started on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_to: Option<String>,
    /// Why it would wait, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

/// A host to move a VM to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveVm {
    /// The host.
    #[schema(min_length = 1, max_length = 64)]
    pub to: String,
    /// The volume there for copies of files that only its host reaches; those of the same names if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub volume: Option<String>,
}

/// What holds for the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterPolicy {
    /// So many hosts may fail and all VMs that run still fit: a VM whose start would break that is not started.
    #[schema(maximum = 64)]
    pub survive_failures: u32,
}
