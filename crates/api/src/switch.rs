//! Virtual switches of a host, and their ports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Datapath, Nic, PortPolicy, Team, TeamChange};

/// A virtual switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switch {
    /// Its name, which network cards name.
    pub name: String,
    /// Whom VMs reach over it.
    pub kind: SwitchKind,
    /// The NIC of the host that is its way out, if it is external.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// The NICs of the host that are its way out, if it is external and they are a team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Team>,
    /// What its wire carries, in bits a second, if it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bps: Option<u64>,
    /// How frames come from its NICs and go to them, if that was said.
    #[serde(default, skip_serializing_if = "Datapath::is_default")]
    pub datapath: Datapath,
    /// The NICs of its way out, one or more, as they are now; none while the process that switches does not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// The interface by which the host itself is on it, if it is internal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
    /// The host's address there, with the length of its prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
    /// Network cards that are attached to it, also of VMs that do not run.
    pub nets: u32,
    /// The process that switches, for all switches of the host; absent while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Why it, or its way out, does not work now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whom VMs reach over a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchKind {
    /// Each other, and what is behind a NIC of the host.
    External,
    /// Each other, and the host.
    Internal,
    /// Each other.
    Private,
}

impl std::fmt::Display for SwitchKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SwitchKind::External => "external",
            SwitchKind::Internal => "internal",
            SwitchKind::Private => "private",
        })
    }
}

/// A switch to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSwitch {
    /// Its name: letters, digits, `-` and `_`, at most 64.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-]+$", example = "lan")]
    pub name: String,
    /// Whom VMs reach over it.
    pub kind: SwitchKind,
    /// The NIC of the host that is its way out: of an external switch, which needs one, or a team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "eth1")]
    pub uplink: Option<String>,
    /// Instead of one NIC: some, as one way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Team>,
    /// What its wire carries, in bits a second, 8000 or more: of an external switch. Those who send to it share that by their policies, and
    /// wait while it is full; without it, what the wire does not take is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bps: Option<u64>,
    /// How frames come from its NICs and go to them, by AF_PACKET if left out: of an external switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<Datapath>,
    /// The host's interface, which is made: of an internal switch. Its name if left out, as far as interfaces have such names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "lan0")]
    pub host_interface: Option<String>,
    /// The host's address there, with the length of its prefix: of an internal switch. Without one, the host has none there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.20.0.1/24")]
    pub host_address: Option<String>,
}

/// What to change of a switch. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchChange {
    /// Another NIC, of an external switch; a team is none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Other NICs, or another use of them, of an external switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamChange>,
    /// What its wire carries, in bits a second, 8000 or more; 0 for what nobody knows. Of an external switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bps: Option<u64>,
    /// How frames come from its NICs and go to them, of an external switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<Datapath>,
    /// Another address of the host, of an internal switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
}

/// A port of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// Its name: `VM/CARD`, or the switch's for the way out or the host itself.
    pub name: String,
    /// The switch.
    pub switch: String,
    /// What is behind it.
    pub kind: PortKind,
    /// The VM whose network card it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Uuid>,
    /// The card's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether somebody is there. The ports of VMs that do not run are not there.
    pub connected: bool,
    /// What it may do.
    pub policy: PortPolicy,
    /// What passed it since it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<PortCounters>,
    /// Bytes that its meters counted, by the number of the rule in `acl`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meters: BTreeMap<String, u64>,
    /// What its rules have decided: told when one port is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleCounters>,
    /// Why it is not as it is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a rule has decided. Answers count at the stateful rule that lets them through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleCounters {
    /// The rule: its number in `acl`, or its direction and its weight.
    #[schema(example = "in:10")]
    pub rule: String,
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A network card of a VM.
    Vm,
    /// The wire.
    Uplink,
    /// The host itself.
    Host,
}

impl std::fmt::Display for PortKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PortKind::Vm => "vm",
            PortKind::Uplink => "uplink",
            PortKind::Host => "host",
        })
    }
}

/// What passed a port, seen from who is behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortCounters {
    /// Frames that came to it.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that it sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that were dropped because of its policy or its buffers, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Stations that came here from another port.
    pub moves: u64,
    /// Stations that were not learned because the port had its share.
    pub not_learned: u64,
}

/// Who is behind which port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Station {
    /// Its address.
    pub mac: String,
    /// Its VLAN; of a private VLAN, the primary; 0 for none.
    pub vlan: u16,
    /// The port's name.
    pub port: String,
}
