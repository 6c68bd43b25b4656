//! What a port may do: the configuration type, as it is on the control socket.

use serde::{Deserialize, Serialize};

use crate::acl::{ExtendedRule, PrefixRule};
use crate::mac::MacAddress;
use crate::vlan::VlanMode;

/// How many stations may be behind a port that is not told otherwise.
pub const DEFAULT_STATIONS: u32 = 1024;
/// How many connections a port may have at once if it is not told otherwise.
pub const DEFAULT_CONNECTIONS: u32 = 65_536;

/// The most rules of one kind at a port.
pub const MAX_RULES: usize = 65_536;
/// The most ranges of VLANs, or secondary VLANs, of a port: more than there are VLANs say nothing new.
pub const MAX_VLAN_RANGES: usize = 4094;

/// Whether something is let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// It is.
    #[default]
    Allow,
    /// It is dropped and counted.
    Deny,
}

/// A port's part in mirroring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mirroring {
    /// None.
    #[default]
    None,
    /// All that it sends and gets is copied to the destinations.
    Source,
    /// It gets the copies.
    Destination,
}

/// How much a port may send and get. Rates are bits in a second, of frames as they are at the port, without preamble and checksum;
/// [`Bandwidth::LEAST`] to [`Bandwidth::MOST`], or 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bandwidth {
    /// It sends at most so much; the rest waits in the VM.
    pub max_out_bps: u64,
    /// It gets at most so much; the rest is dropped.
    pub max_in_bps: u64,
    /// Bytes that may go at once beyond these rates; 0 for 20 ms of the rate, at least 128 KiB.
    pub burst_bytes: u32,
    /// So much of a shared wire is there for it whenever it wants it.
    pub min_out_bps: u64,
    /// Its part of what is left of a shared wire, beside the others': 1 to 100.
    pub weight: u8,
    /// What the wire behind it carries. Who sends to it shares that by promises and weights, and waits for it.
    pub capacity_bps: u64,
}

impl Bandwidth {
    /// The lowest rate.
    pub const LEAST: u64 = 8_000;
    /// The highest rate.
    pub const MOST: u64 = 10_000_000_000_000;

    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<(), PolicyError> {
        let rates = [self.max_out_bps, self.max_in_bps, self.min_out_bps, self.capacity_bps];
        if let Some(rate) = rates.into_iter().find(|rate| *rate != 0 && !(Bandwidth::LEAST..=Bandwidth::MOST).contains(rate)) {
            return Err(PolicyError::Rate(rate));
        }
        if !(1..=100).contains(&self.weight) {
            return Err(PolicyError::Weight(self.weight));
        }
        if self.max_out_bps != 0 && self.min_out_bps > self.max_out_bps {
            return Err(PolicyError::Promise { promised: self.min_out_bps, most: self.max_out_bps });
        }
        Ok(())
    }
}

impl Default for Bandwidth {
    fn default() -> Bandwidth {
        Bandwidth { max_out_bps: 0, max_in_bps: 0, burst_bytes: 0, min_out_bps: 0, weight: 1, capacity_bps: 0 }
    }
}

/// A port's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortPolicy {
    /// The address of the station behind it, if there is one only.
    pub mac: Option<MacAddress>,
    /// Whether it may send from other addresses than `mac`. Denied without a `mac`, nothing may be sent.
    pub mac_spoofing: Permission,
    /// Whether it may answer as a DHCP server (IPv4 and IPv6).
    pub dhcp_server: Permission,
    /// Whether it may send router advertisements and redirects (ICMP and ICMPv6).
    pub router: Permission,
    /// Its VLANs.
    pub vlan: VlanMode,
    /// Broadcasts, multicasts and frames to unknown stations that it may send in a second; zero is no limit.
    pub storm_limit: u32,
    /// How much it may send and get.
    pub bandwidth: Bandwidth,
    /// Its part in mirroring.
    pub mirroring: Mirroring,
    /// Stations that are learned behind it at most.
    pub max_stations: u32,
    /// Connections that its stateful rules remember at most.
    pub max_connections: u32,
    /// Rules by longest prefix.
    pub acl: Vec<PrefixRule>,
    /// Rules by weight.
    pub extended_acl: Vec<ExtendedRule>,
}

impl Default for PortPolicy {
    fn default() -> PortPolicy {
        PortPolicy {
            mac: None,
            mac_spoofing: Permission::Allow,
            dhcp_server: Permission::Allow,
            router: Permission::Allow,
            vlan: VlanMode::Untagged,
            storm_limit: 0,
            bandwidth: Bandwidth::default(),
            mirroring: Mirroring::None,
            max_stations: DEFAULT_STATIONS,
            max_connections: DEFAULT_CONNECTIONS,
            acl: Vec::new(),
            extended_acl: Vec::new(),
        }
    }
}

impl PortPolicy {
    /// Whether its lists are of a length that can be worked with.
    pub(crate) fn check_lengths(&self) -> Result<(), PolicyError> {
        let vlans = match &self.vlan {
            VlanMode::Trunk { allowed, .. } => allowed.len(),
            VlanMode::Promiscuous { secondaries, .. } => secondaries.len(),
            _ => 0,
        };
        let lists = [
            ("rules by longest prefix", self.acl.len(), MAX_RULES),
            ("rules by weight", self.extended_acl.len(), MAX_RULES),
            ("ranges of VLANs", vlans, MAX_VLAN_RANGES),
        ];
        match lists.into_iter().find(|(_, count, most)| count > most) {
            Some((what, count, most)) => Err(PolicyError::TooMany { what, count, most }),
            None => Ok(()),
        }
    }
}

/// What is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An address that no station has.
    #[error("{0} is no station's address: a group's, or all zeros")]
    Mac(MacAddress),
    /// A rate out of range.
    #[error("a rate of {0} bits in a second: it is {least} to {most}, or 0 for none", least = Bandwidth::LEAST, most = Bandwidth::MOST)]
    Rate(u64),
    /// A weight out of range.
    #[error("a bandwidth weight of {0}: it is 1 to 100")]
    Weight(u8),
    /// More promised than allowed.
    #[error("{promised} bits in a second are promised to a port that may send {most}")]
    Promise {
        /// The promise.
        promised: u64,
        /// The limit.
        most: u64,
    },
    /// More rules or VLANs than make sense.
    #[error("{count} {what}: a port has at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// So many.
        count: usize,
        /// Not more than so many.
        most: usize,
    },
    /// A prefix longer than its address.
    #[error("an address with a prefix of {length} bits: it has {bits}")]
    PrefixLength {
        /// As given.
        length: u8,
        /// The address's.
        bits: u8,
    },
    /// A range that ends before it begins.
    #[error("the range {first}-{last} ends before it begins")]
    Range {
        /// As given.
        first: u16,
        /// As given.
        last: u16,
    },
    /// A meter for MAC addresses.
    #[error("a meter counts by IP address: give it a local or remote prefix of IP addresses")]
    MacMeter,
    /// Addresses of two kinds in a rule.
    #[error("a rule whose local and remote addresses are not both of IPv4 or both of IPv6 matches nothing")]
    MixedAddresses,
    /// Ports of a protocol that has none.
    #[error("a rule with port numbers needs protocol tcp (6) or udp (17), or none at all")]
    PortsWithoutProtocol,
    /// A deny rule that should remember what it denied.
    #[error("only a rule that allows can be stateful")]
    StatefulDeny,
    /// Two rules of one direction with the same weight.
    #[error("two rules of one direction have the weight {0}: which one is first?")]
    SameWeight(u32),
    /// A VLAN in two private VLANs.
    #[error("VLAN {secondary} cannot be in the private VLAN {primary}: it is in {other} already, or a private VLAN itself")]
    Private {
        /// The VLAN.
        secondary: u16,
        /// Where it should be.
        primary: u16,
        /// Where it is.
        other: u16,
    },
}
