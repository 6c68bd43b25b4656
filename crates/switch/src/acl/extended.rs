//! Rules by weight: 5-tuples with ranges, optionally stateful.
//!
//! The highest weight that matches wins, and what matches none is let through. 10,000 rules must not make a first packet slow, so rules
//! of one shape (which fields they look at, with how many bits) are found with one look-up of those fields; shapes are tried from the
//! one with the highest weight down, until no other can win. Ranges of ports are compared one by one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Direction, PacketSubject, Prefix, Subject, mask};
use crate::frame::{Fragment, TCP, Transport, UDP};
use crate::policy::PolicyError;

/// Port numbers from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last; not below the first.
    pub last: u16,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Effect {
    /// Let it through.
    Allow,
    /// Let it through, and what comes back, until nothing went either way for so long.
    #[serde(rename_all = "kebab-case")]
    AllowStateful {
        /// Seconds.
        idle_timeout_s: u32,
    },
    /// Drop it.
    Deny,
}

/// A rule. A part that is left out matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExtendedRule {
    /// What it does.
    pub effect: Effect,
    /// For which direction.
    pub direction: Direction,
    /// Higher ones come first; each once per direction.
    pub weight: u32,
    /// Addresses behind the port.
    #[serde(default)]
    pub local: Option<Prefix>,
    /// Addresses elsewhere.
    #[serde(default)]
    pub remote: Option<Prefix>,
    /// IANA's number.
    #[serde(default)]
    pub protocol: Option<u8>,
    /// Port numbers behind the port.
    #[serde(default)]
    pub local_ports: Option<PortRange>,
    /// Port numbers elsewhere.
    #[serde(default)]
    pub remote_ports: Option<PortRange>,
}

/// What the rules say of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It passes, and a connection is to be remembered.
    Remember {
        /// In milliseconds.
        idle_timeout_ms: u64,
    },
    /// It does not.
    Deny,
}

/// Which fields a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    local: Option<u8>,
    remote: Option<u8>,
    protocol: bool,
    local_port: bool,
    remote_port: bool,
}

/// Those fields, the others zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Fields {
    local: IpAddr,
    remote: IpAddr,
    protocol: u8,
    local_port: u16,
    remote_port: u16,
}

const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[derive(Debug)]
struct Group {
    shape: Shape,
    highest: u32,
    /// With their numbers, the highest weight first.
    rules: HashMap<Fields, Vec<(u32, ExtendedRule)>>,
}

/// A port's rules, ready to decide by.
#[derive(Debug, Default)]
pub struct ExtendedAcl {
    inbound: Vec<Group>,
    outbound: Vec<Group>,
}

impl PortRange {
    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn exact(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }
}

impl ExtendedAcl {
    /// Takes the rules. A rule's number is its place among them.
    pub fn new(rules: &[ExtendedRule]) -> Result<ExtendedAcl, PolicyError> {
        Ok(ExtendedAcl { inbound: groups(rules, Direction::Inbound)?, outbound: groups(rules, Direction::Outbound)? })
    }

    /// What the rules say, and which of them. What is not of IP is none of theirs.
    pub fn decide(&self, subject: &Subject) -> (Verdict, Option<u32>) {
        let Some(packet) = subject.packet else { return (Verdict::Allow, None) };
        let groups = match subject.direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        };
        let mut best: Option<&(u32, ExtendedRule)> = None;
        for group in groups {
            if best.is_some_and(|(_, rule)| rule.weight > group.highest) {
                break;
            }
            let found = group.find(&packet, subject.direction);
            best = best.into_iter().chain(found).max_by_key(|(_, rule)| rule.weight);
        }
        let verdict = match best.map(|(_, rule)| rule.effect) {
            None | Some(Effect::Allow) => Verdict::Allow,
            Some(Effect::Deny) => Verdict::Deny,
            // Parts of packets have no ports to know a connection by.
            Some(Effect::AllowStateful { .. }) if packet.ip.fragment == Fragment::Later => Verdict::Allow,
            Some(Effect::AllowStateful { idle_timeout_s }) => {
                Verdict::Remember { idle_timeout_ms: u64::from(idle_timeout_s) * 1000 }
            }
        };
        (verdict, best.map(|(number, _)| *number))
    }
}

fn groups(rules: &[ExtendedRule], direction: Direction) -> Result<Vec<Group>, PolicyError> {
    let mut by_shape: HashMap<Shape, Group> = HashMap::new();
    let mut rules: Vec<(u32, &ExtendedRule)> = (0..).zip(rules).filter(|(_, rule)| rule.direction == direction).collect();
    rules.sort_by_key(|(_, rule)| std::cmp::Reverse(rule.weight));
    if let Some(pair) = rules.windows(2).find(|pair| pair[0].1.weight == pair[1].1.weight) {
        return Err(PolicyError::SameWeight(pair[0].1.weight));
    }
    for (number, rule) in rules {
        let (shape, fields) = rule.shape()?;
        let group = by_shape.entry(shape).or_insert_with(|| Group { shape, highest: rule.weight, rules: HashMap::new() });
        group.rules.entry(fields).or_default().push((number, rule.clone()));
    }
    let mut groups: Vec<Group> = by_shape.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.highest));
    Ok(groups)
}

impl ExtendedRule {
    fn shape(&self) -> Result<(Shape, Fields), PolicyError> {
        let ranges = [self.local_ports, self.remote_ports];
        if let Some(range) = ranges.iter().flatten().find(|range| range.first > range.last) {
            return Err(PolicyError::Range { first: range.first, last: range.last });
        }
        if ranges != [None, None] && self.protocol.is_some_and(|protocol| protocol != TCP && protocol != UDP) {
            return Err(PolicyError::PortsWithoutProtocol);
        }
        if let (Some(local), Some(remote)) = (self.local, self.remote)
            && local.address.is_ipv4() != remote.address.is_ipv4()
        {
            return Err(PolicyError::MixedAddresses);
        }
        let exact = |range: Option<PortRange>| range.and_then(PortRange::exact);
        let (local_port, remote_port) = (exact(self.local_ports), exact(self.remote_ports));
        let shape = Shape {
            local: self.local.map(|prefix| prefix.length),
            remote: self.remote.map(|prefix| prefix.length),
            protocol: self.protocol.is_some(),
            local_port: local_port.is_some(),
            remote_port: remote_port.is_some(),
        };
        let fields = Fields {
            local: self.local.map_or(NO_ADDRESS, |prefix| prefix.address),
            remote: self.remote.map_or(NO_ADDRESS, |prefix| prefix.address),
            protocol: self.protocol.unwrap_or(0),
            local_port: local_port.unwrap_or(0),
            remote_port: remote_port.unwrap_or(0),
        };
        Ok((shape, fields))
    }

    /// Whether the rule is about the packet. A packet whose ports cannot be known, because its headers hide them, is what a rule that
    /// denies is about and one that allows is not. A later fragment is what a rule that allows is about: without its first part, which
    /// is judged by its ports, it is worth nothing.
    pub(super) fn matches(&self, packet: &PacketSubject, direction: Direction) -> bool {
        let is_unknown = packet.ip.transport == Transport::Unknown;
        let denies = self.effect == Effect::Deny;
        let addresses = self.local.is_none_or(|prefix| prefix.contains(packet.local))
            && self.remote.is_none_or(|prefix| prefix.contains(packet.remote));
        let protocol = match self.protocol {
            None => true,
            Some(_) if is_unknown => denies,
            Some(protocol) => protocol == packet.ip.protocol,
        };
        let ports = match packet.ip.transport {
            _ if self.local_ports.is_none() && self.remote_ports.is_none() => true,
            Transport::Ports { .. } => {
                let (local, remote) = packet.ports(direction);
                self.local_ports.is_none_or(|range| range.contains(local))
                    && self.remote_ports.is_none_or(|range| range.contains(remote))
            }
            Transport::Unknown => denies,
            Transport::None if packet.ip.fragment == Fragment::Later => !denies && matches!(packet.ip.protocol, TCP | UDP),
            Transport::None | Transport::Icmp { .. } => false,
        };
        addresses && protocol && ports
    }
}

impl Group {
    fn find(&self, packet: &PacketSubject, direction: Direction) -> Option<&(u32, ExtendedRule)> {
        let shape = self.shape;
        let reads_ports = shape.protocol || shape.local_port || shape.remote_port;
        let is_plain = matches!(packet.ip.transport, Transport::Ports { .. } | Transport::Icmp { .. })
            || (packet.ip.transport == Transport::None && packet.ip.fragment != Fragment::Later);
        if reads_ports && !is_plain {
            // Rare, and the fields cannot be looked up.
            let all = self.rules.values().flatten().filter(|(_, rule)| rule.matches(packet, direction));
            return all.max_by_key(|(_, rule)| rule.weight);
        }
        let fits =
            |length: Option<u8>, address: IpAddr| length.is_none_or(|length| length <= if address.is_ipv4() { 32 } else { 128 });
        if !fits(shape.local, packet.local) || !fits(shape.remote, packet.remote) {
            return None;
        }
        let (local_port, remote_port) = packet.ports(direction);
        let fields = Fields {
            local: shape.local.map_or(NO_ADDRESS, |length| mask(packet.local, length)),
            remote: shape.remote.map_or(NO_ADDRESS, |length| mask(packet.remote, length)),
            protocol: if shape.protocol { packet.ip.protocol } else { 0 },
            local_port: if shape.local_port { local_port } else { 0 },
            remote_port: if shape.remote_port { remote_port } else { 0 },
        };
        self.rules.get(&fields)?.iter().find(|(_, rule)| rule.matches(packet, direction))
    }
}
