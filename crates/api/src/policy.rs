//! What a network card may do at its port of a virtual switch. The names are those that the switch itself has, so that one file with a policy
//! can be used everywhere.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a network card may do at its port. The port's address is the card's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortPolicy {
    /// Whether it may send from other addresses than its own.
    pub mac_spoofing: Permission,
    /// Whether it may answer as a DHCP server.
    pub dhcp_server: Permission,
    /// Whether it may send router advertisements and redirects.
    pub router: Permission,
    /// Its VLANs.
    pub vlan: VlanMode,
    /// Broadcasts, multicasts and frames to unknown stations that it may send in a second; 0 is no limit.
    #[schema(default = 0)]
    pub storm_limit: u32,
    /// How much it may send and get.
    pub bandwidth: Bandwidth,
    /// Its part in mirroring.
    pub mirroring: Mirroring,
    /// Stations that are learned behind it at most.
    #[schema(default = 1024)]
    pub max_stations: u32,
    /// Connections that its stateful rules remember at most.
    #[schema(default = 65536)]
    pub max_connections: u32,
    /// Rules by longest prefix.
    pub acl: Vec<PrefixRule>,
    /// Rules by weight.
    pub extended_acl: Vec<ExtendedRule>,
}

impl Default for PortPolicy {
    fn default() -> PortPolicy {
        PortPolicy {
            // A guest that pretends to be another one is no usual guest.
            mac_spoofing: Permission::Deny,
            dhcp_server: Permission::Allow,
            router: Permission::Allow,
            vlan: VlanMode::Untagged,
            storm_limit: 0,
            bandwidth: Bandwidth::default(),
            mirroring: Mirroring::None,
            max_stations: 1024,
            max_connections: 65_536,
            acl: Vec::new(),
            extended_acl: Vec::new(),
        }
    }
}

/// Whether something is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// It is.
    Allow,
    /// It is dropped and counted.
    Deny,
}

/// How much a port may send and get. Rates are bits in a second, 8000 or more; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bandwidth {
    /// It sends at most so much; the rest waits in the VM.
    #[schema(default = 0)]
    pub max_out_bps: u64,
    /// It gets at most so much; the rest is dropped.
    #[schema(default = 0)]
    pub max_in_bps: u64,
    /// Bytes that may go at once beyond these rates; 0 for 20 ms of the rate, at least 128 KiB.
    #[schema(default = 0)]
    pub burst_bytes: u32,
    /// So much of a shared wire is there for it whenever it wants it.
    #[schema(default = 0)]
    pub min_out_bps: u64,
    /// Its part of what is left of a shared wire, beside the others'.
    #[schema(minimum = 1, maximum = 100, default = 1)]
    pub weight: u8,
    /// What the wire behind it carries.
    #[schema(default = 0)]
    pub capacity_bps: u64,
}

impl Default for Bandwidth {
    fn default() -> Bandwidth {
        Bandwidth { max_out_bps: 0, max_in_bps: 0, burst_bytes: 0, min_out_bps: 0, weight: 1, capacity_bps: 0 }
    }
}

/// A port's part in mirroring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mirroring {
    /// None.
    None,
    /// All that it sends and gets is copied to the destinations.
    Source,
    /// It gets the copies.
    Destination,
}

/// What a port is in VLANs, which are 1 to 4094.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VlanMode {
    /// In none.
    Untagged,
    /// In one, without knowing it.
    Access {
        /// The VLAN.
        #[schema(minimum = 1, maximum = 4094)]
        vlan: u16,
    },
    /// In many, by tags.
    Trunk {
        /// The VLAN of frames without a tag; without one they stay in none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 4094)]
        native: Option<u16>,
        /// The VLANs of frames with a tag.
        allowed: Vec<VlanRange>,
    },
    /// In a private VLAN: reaches promiscuous ports only.
    Isolated {
        /// The private VLAN.
        #[schema(minimum = 1, maximum = 4094)]
        primary: u16,
        /// The VLAN of what it sends.
        #[schema(minimum = 1, maximum = 4094)]
        secondary: u16,
    },
    /// In a private VLAN: reaches promiscuous ports and those of the same community.
    Community {
        /// The private VLAN.
        #[schema(minimum = 1, maximum = 4094)]
        primary: u16,
        /// The community.
        #[schema(minimum = 1, maximum = 4094)]
        secondary: u16,
    },
    /// In a private VLAN: reaches all of it.
    Promiscuous {
        /// The private VLAN.
        #[schema(minimum = 1, maximum = 4094)]
        primary: u16,
        /// The VLANs that it takes frames from.
        secondaries: Vec<u16>,
    },
}

/// VLANs from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VlanRange {
    /// The first.
    #[schema(minimum = 1, maximum = 4094)]
    pub first: u16,
    /// The last; not below the first.
    #[schema(minimum = 1, maximum = 4094)]
    pub last: u16,
}

/// Where frames go, seen from the network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To it.
    Inbound,
    /// From it.
    Outbound,
}

/// A rule by longest prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PrefixRule {
    /// What it does.
    pub action: PrefixAction,
    /// For which direction; without one, for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Whom it is about.
    pub address: RuleAddress,
}

/// What a rule by longest prefix does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixAction {
    /// Let it through.
    Allow,
    /// Drop it.
    Deny,
    /// Count its bytes.
    Meter,
}

/// Whom a rule by longest prefix is about. Prefixes are like `10.0.0.0/8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAddress {
    /// Packets from or to these addresses of the card's guest.
    LocalIp(String),
    /// Packets to or from these addresses elsewhere.
    RemoteIp(String),
    /// Any packet of IP.
    AnyIp,
    /// Frames from or to this station behind the port.
    LocalMac(String),
    /// Frames to or from this station elsewhere.
    RemoteMac(String),
    /// Any frame.
    AnyMac,
}

/// A rule by weight. A part that is left out matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExtendedRule {
    /// What it does.
    pub effect: Effect,
    /// For which direction.
    pub direction: Direction,
    /// Higher ones come first; each once per direction.
    pub weight: u32,
    /// Addresses of the card's guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.0.0.5/32")]
    pub local: Option<String>,
    /// Addresses elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.0.0.0/8")]
    pub remote: Option<String>,
    /// IANA's number: 6 is TCP, 17 is UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Port numbers of the card's guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_ports: Option<PortRange>,
    /// Port numbers elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ports: Option<PortRange>,
}

/// What a rule by weight does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Effect {
    /// Let it through.
    Allow,
    /// Let it through, and what comes back, until nothing went either way for so long.
    AllowStateful(Stateful),
    /// Drop it.
    Deny,
}

/// How long a rule remembers what it let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Stateful {
    /// Seconds without a packet of either side.
    pub idle_timeout_s: u32,
}

/// Port numbers from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last; not below the first.
    pub last: u16,
}
