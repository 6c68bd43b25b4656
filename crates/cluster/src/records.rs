//! What the hosts of a cluster share in the store.
//!
//! | key | record | who changes it |
//! |---|---|---|
//! | `cluster/policy` | what holds for the cluster | the API |
//! | `hosts/HOST` | a host: what it has, what is wanted of it | the host at its start; the API |
//! | `alive/HOST` | that the host's lease lives; gone when it ends | the host, under its lease |
//! | `renewals/HOST` | that the host has renewed its lease; written with each renewal | the host, under its lease |
//! | `placements/VM` | what a VM needs of a host, and whether it is to run | the API, with the VM itself |
//! | `owners/VM` | who may run the VM | its holder; the coordinator when the holder's lease has ended |
//! | `moves/VM` | that the VM is to go to another host | the coordinator, the API; its holder when it is done |
//! | `cluster/coordinator` | who gives VMs to hosts | a host that finds its holder's lease ended |
//!
//! What a VM *is* stays in its own record, which these types do not know.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use store::LeaseId;
use store::record::Record;

use crate::{HostId, VmId};

macro_rules! record {
    ($type:ty, $prefix:literal, $kind:literal) => {
        impl Record for $type {
            const PREFIX: &'static str = $prefix;
            const KIND: &'static str = $kind;
            const VERSION: u32 = 1;
        }
    };
}

/// `cluster/policy`. What is not stored has these defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// So many hosts may fail and all VMs that run still fit: a VM whose start would break that is not started.
    #[serde(default)]
    pub survive_failures: u32,
    // Balancing by load (off, on join, always; how eager) will be here.
}
record!(PolicyRecord, "cluster/", "cluster-policy");

/// What is wanted of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostWanted {
    /// Run VMs.
    #[default]
    Active,
    /// Give all VMs away, and take none.
    Drained,
}

/// That a host is about to be switched off or restarted, or is off. It is drained as long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoingDown {
    /// What the kernel calls the start of the host that ends: under another one, the host is back.
    pub boot_id: String,
    /// It was drained for that only, and takes VMs again when it is back. Not so if someone has drained it before.
    pub resumes: bool,
}

/// What makes sure that a host which lost its lease runs nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    /// Its guard, with a watchdog behind it. Its VMs are started elsewhere when its lease has ended.
    #[default]
    Watchdog,
    /// Nothing: it has no watchdog. Someone has to confirm that it is dead. (A management controller that can cut its power will be a third.)
    Manual,
}

/// `hosts/HOST`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Memory for VMs, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Where other hosts reach it, one for each network.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// At which port: TCP for the API, UDP for heartbeats.
    #[serde(default)]
    pub port: u16,
    /// What fails together with it: a rack, a room.
    #[serde(default)]
    pub fault_domain: Option<String>,
    /// What its processors can do.
    #[serde(default)]
    pub cpu_features: BTreeSet<String>,
    /// Volumes that it reaches.
    #[serde(default)]
    pub volumes: BTreeSet<String>,
    /// Its own volumes, which no other host reaches, by their names on it, and what is free there for files of VMs that are copied to it, in MiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub local: BTreeMap<String, u64>,
    /// What is wanted of it.
    #[serde(default)]
    pub wanted: HostWanted,
    /// That it is about to be switched off: VMs that no other host can take are saved, or shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub going_down: Option<GoingDown>,
    /// What makes sure that it stopped.
    #[serde(default)]
    pub fencing: Fencing,
}

impl HostRecord {
    /// The same with what is wanted of the host in this start of it: one that was to be switched off, and is back, takes VMs again.
    #[must_use]
    pub fn started(mut self, boot_id: &str) -> HostRecord {
        if let Some(before) = self.going_down.take_if(|going_down| going_down.boot_id != boot_id)
            && before.resumes
        {
            self.wanted = HostWanted::Active;
        }
        self
    }
}
record!(HostRecord, "hosts/", "cluster-host");

/// `alive/HOST`, under the host's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliveRecord {
    /// The lease. Each is given once only, so it names this life of the host.
    pub incarnation: LeaseId,
}
record!(AliveRecord, "alive/", "alive");

/// `renewals/HOST`, under the host's lease, written with each renewal of it: its revision tells others when that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalRecord {
    /// The lease.
    pub incarnation: LeaseId,
}
record!(RenewalRecord, "renewals/", "renewal");

/// Whether a VM is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It is not.
    #[default]
    Off,
    /// It is.
    On,
}

/// Who starts first when not all can at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

/// How VMs of a group are to be placed to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// On one host, or in one fault domain.
    Together,
    /// On different ones.
    Apart,
}

/// What "one" means in a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A host.
    #[default]
    Host,
    /// A fault domain; a host that names none is one for itself.
    FaultDomain,
}

/// How strict a rule is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// Kept where it can be.
    #[default]
    Soft,
    /// A VM that would break it is not started.
    Hard,
}

/// A VM's part in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRule {
    /// The group's name.
    pub group: String,
    /// Together or apart.
    pub affinity: Affinity,
    /// Of hosts or of fault domains.
    #[serde(default)]
    pub scope: Scope,
    /// How strict.
    #[serde(default)]
    pub strength: Strength,
}

/// How often a VM is started again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// So often in a period after it failed; 0 is never, not after its host failed either.
    pub limit: u32,
    /// The period in seconds.
    pub period_s: u64,
}

impl Default for RestartPolicy {
    fn default() -> RestartPolicy {
        RestartPolicy { limit: 3, period_s: 3600 }
    }
}

/// Whether a VM goes back to where it ran before its host failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failback {
    /// It stays.
    #[default]
    Never,
    /// As soon as the host is back.
    Immediate,
    /// Then, but only at this time of the day, in minutes after midnight UTC. A window may go over midnight.
    Window {
        /// Its begin.
        from_minute: u16,
        /// Its end, which is not in it.
        to_minute: u16,
    },
}

impl Failback {
    /// Whether it may be now.
    pub fn allows(self, minute_of_day: u16) -> bool {
        match self {
            Failback::Never => false,
            Failback::Immediate => true,
            Failback::Window { from_minute, to_minute } if from_minute <= to_minute => {
                (from_minute..to_minute).contains(&minute_of_day)
            }
            Failback::Window { from_minute, to_minute } => minute_of_day >= from_minute || minute_of_day < to_minute,
        }
    }
}

/// Files of a VM on volumes that only one host reaches. It can run elsewhere only when they were copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalFiles {
    /// The host.
    pub host: HostId,
    /// What they take of its volumes, by their names on it, in MiB: as much as was seen when it was looked last.
    pub volumes: BTreeMap<String, u64>,
}

/// The name under which a host says that it reaches a volume of its own: each host's is another one.
pub fn own_volume(volume: &str, host: &HostId) -> String {
    format!("{volume}@{host}")
}

/// `placements/VM`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRecord {
    /// Whether it is to run.
    pub power: Power,
    /// Counts the user's starts: a new one forgets the failures before it.
    #[serde(default)]
    pub start: u64,
    /// Memory in MiB, with what its monitor takes.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Who starts first.
    #[serde(default)]
    pub priority: Priority,
    /// Volumes that its disks are on.
    #[serde(default)]
    pub volumes: BTreeSet<String>,
    /// Those of its files that only one host reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalFiles>,
    /// What it was promised of the processors.
    #[serde(default)]
    pub cpu_features: BTreeSet<String>,
    /// Hosts that it would like, the best first.
    #[serde(default)]
    pub preferred: Vec<HostId>,
    /// Hosts that it may run on; all if there are none.
    #[serde(default)]
    pub possible: Vec<HostId>,
    /// Groups that it is in.
    #[serde(default)]
    pub groups: Vec<GroupRule>,
    /// How often it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Whether it goes back.
    #[serde(default)]
    pub failback: Failback,
    // Probes of its health, and VMs that have to run before it, will be here.
}
record!(PlacementRecord, "placements/", "placement");

/// Who may run a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The host.
    pub host: HostId,
    /// In this life of it.
    pub incarnation: LeaseId,
}

/// That a VM did not start, or ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where.
    pub host: HostId,
    /// When, in seconds since 1970.
    pub at_s: u64,
}

/// Where a VM is to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The host.
    pub host: HostId,
    /// Why it is not there.
    pub left: Left,
}

/// Why a VM left its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// The host was drained: it goes back when the host is active again.
    Drain,
    /// The host failed: it goes back as the VM's own policy says.
    Failure,
}

/// `owners/VM`. Its revision is the fencing token. A VM that is off has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// Who may run it; none while it waits for a host.
    pub holder: Option<Holder>,
    /// It is bound to the holder's host, which alone has its files: it runs on without a lease, and only that host, in whatever life, or who
    /// vouches that the host is dead, changes this record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bound: bool,
    /// Its memory is saved, and the next start restores it.
    #[serde(default)]
    pub saved: bool,
    /// The user's start that this belongs to.
    #[serde(default)]
    pub start: u64,
    /// How often it failed in the period, the oldest first.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// Why it is not started again by itself; a start by the user tries anew.
    #[serde(default)]
    pub gave_up: Option<String>,
    /// Where it goes back to.
    #[serde(default)]
    pub home: Option<Home>,
}
record!(OwnerRecord, "owners/", "owner");

/// Why a VM goes to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveReason {
    /// Its host is drained.
    Drain,
    /// It goes back home.
    Failback,
    /// Someone wants it.
    User,
}

/// `moves/VM`. Balancing will make such records too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// To this host.
    pub to: HostId,
    /// For this reason.
    pub reason: MoveReason,
    /// The volume there for files that are copied; of the same names as now if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}
record!(MoveRecord, "moves/", "move");

/// `cluster/coordinator`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// Who it is.
    pub holder: Holder,
}
record!(CoordinatorRecord, "cluster/", "coordinator");

/// The key of the one policy.
pub const POLICY_KEY: &str = "cluster/policy";
/// The key of the one coordinator.
pub const COORDINATOR_KEY: &str = "cluster/coordinator";

/// The key of that a host is alive.
pub fn alive_key(host: &HostId) -> String {
    AliveRecord::key(host.as_str())
}

/// The key of a host's last renewal.
pub fn renewal_key(host: &HostId) -> String {
    RenewalRecord::key(host.as_str())
}

/// The key of who owns a VM.
pub fn owner_key(vm: &VmId) -> String {
    OwnerRecord::key(vm.as_str())
}

/// The key of what a VM needs.
pub fn placement_key(vm: &VmId) -> String {
    PlacementRecord::key(vm.as_str())
}

/// The key of a VM's move.
pub fn move_key(vm: &VmId) -> String {
    MoveRecord::key(vm.as_str())
}

/// The key of a host.
pub fn host_key(host: &HostId) -> String {
    HostRecord::key(host.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failback_window_may_go_over_midnight() {
        let night = Failback::Window { from_minute: 22 * 60, to_minute: 6 * 60 };
        assert!(night.allows(23 * 60) && night.allows(0) && night.allows(5 * 60 + 59));
        assert!(!night.allows(6 * 60) && !night.allows(12 * 60));
        let noon = Failback::Window { from_minute: 12 * 60, to_minute: 13 * 60 };
        assert!(noon.allows(12 * 60) && !noon.allows(13 * 60) && !noon.allows(0));
        assert!(Failback::Immediate.allows(0) && !Failback::Never.allows(0));
    }

    #[test]
    fn a_host_that_was_switched_off_takes_vms_again_when_it_is_back_unless_someone_had_drained_it() {
        let down = |resumes| HostRecord {
            wanted: HostWanted::Drained,
            going_down: Some(GoingDown { boot_id: "first".into(), resumes }),
            ..HostRecord::default()
        };
        assert_eq!(down(true).started("first"), down(true), "marud was started anew, and the host goes on going down");
        assert_eq!(down(true).started("second"), HostRecord::default());
        assert_eq!(down(false).started("second"), HostRecord { wanted: HostWanted::Drained, ..HostRecord::default() });
    }

    #[test]
    fn what_is_stored_with_the_least_has_the_defaults() {
        let bytes = br#"{"kind":"placement","version":1,"data":{"power":"on","memory_mib":512,"vcpus":2}}"#;
        let placement: PlacementRecord = store::record::from_bytes("placements/web", bytes).unwrap();
        let expected = PlacementRecord { power: Power::On, memory_mib: 512, vcpus: 2, ..PlacementRecord::default() };
        assert_eq!(placement, expected);
        assert_eq!(placement.restart, RestartPolicy { limit: 3, period_s: 3600 });
        let bytes = br#"{"kind":"owner","version":1,"data":{"holder":{"host":"h1","incarnation":7}}}"#;
        let owner: OwnerRecord = store::record::from_bytes("owners/web", bytes).unwrap();
        assert_eq!(owner.holder, Some(Holder { host: "h1".into(), incarnation: LeaseId(7) }));
        let bytes = br#"{"kind":"cluster-host","version":1,"data":{"memory_mib":512,"cpus":2}}"#;
        let host: HostRecord = store::record::from_bytes("hosts/h1", bytes).unwrap();
        assert_eq!(host, HostRecord { memory_mib: 512, cpus: 2, ..HostRecord::default() });
        let bytes = br#"{"kind":"move","version":1,"data":{"to":"h2","reason":"drain"}}"#;
        let moving: MoveRecord = store::record::from_bytes("moves/web", bytes).unwrap();
        assert_eq!(moving, MoveRecord { to: "h2".into(), reason: MoveReason::Drain, volume: None });
        // What is not there is not written: an older program reads it.
        assert_eq!(store::record::to_bytes(&moving), bytes);
    }
}
