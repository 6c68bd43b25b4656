//! Rules by longest prefix: stateless; for MAC addresses, for IP addresses, and meters, each class by itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Direction, Prefix, Subject, mask};
use crate::mac::MacAddress;
use crate::policy::PolicyError;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixAction {
    /// Let it through.
    Allow,
    /// Drop it.
    Deny,
    /// Count its bytes.
    Meter,
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// Packets from or to these addresses behind the port.
    LocalIp(Prefix),
    /// Packets to or from these addresses elsewhere.
    RemoteIp(Prefix),
    /// Any packet of IP.
    AnyIp,
    /// Frames from or to this station behind the port.
    LocalMac(MacAddress),
    /// Frames to or from this station elsewhere.
    RemoteMac(MacAddress),
    /// Any frame.
    AnyMac,
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PrefixRule {
    /// What it does.
    pub action: PrefixAction,
    /// For which direction; without one, for both.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// Whom it is about.
    pub address: Address,
}

/// Values by prefix, found by trying the lengths that there are, the longest first.
#[derive(Debug)]
struct Longest<V> {
    lengths: Vec<u8>,
    values: HashMap<(u8, IpAddr), V>,
}

impl<V> Default for Longest<V> {
    fn default() -> Self {
        Longest { lengths: Vec::new(), values: HashMap::new() }
    }
}

impl<V: Copy> Longest<V> {
    fn insert(&mut self, prefix: Prefix, value: V, wins: impl Fn(V, V) -> V) {
        if let Err(at) = self.lengths.binary_search_by(|length| prefix.length.cmp(length)) {
            self.lengths.insert(at, prefix.length);
        }
        insert(&mut self.values, (prefix.length, prefix.address), value, wins);
    }

    fn find(&self, address: IpAddr) -> Option<(u8, V)> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let fitting = self.lengths.iter().filter(|length| **length <= bits);
        fitting.filter_map(|length| Some((*length, *self.values.get(&(*length, mask(address, *length)))?))).next()
    }
}

fn insert<K: Eq + Hash, V: Copy>(map: &mut HashMap<K, V>, key: K, value: V, wins: impl Fn(V, V) -> V) {
    map.entry(key).and_modify(|old| *old = wins(*old, value)).or_insert(value);
}

/// One direction's rules about IP addresses.
#[derive(Debug)]
struct IpRules<V> {
    local: Longest<V>,
    remote: Longest<V>,
    any: Option<V>,
}

impl<V> Default for IpRules<V> {
    fn default() -> Self {
        IpRules { local: Longest::default(), remote: Longest::default(), any: None }
    }
}

impl<V: Copy> IpRules<V> {
    fn insert(&mut self, address: Address, value: V, wins: impl Fn(V, V) -> V) {
        match address {
            Address::LocalIp(prefix) => self.local.insert(prefix, value, wins),
            Address::RemoteIp(prefix) => self.remote.insert(prefix, value, wins),
            _ => self.any = Some(self.any.map_or(value, |old| wins(old, value))),
        }
    }

    fn find(&self, local: IpAddr, remote: IpAddr, wins: impl Fn(V, V) -> V) -> Option<V> {
        match (self.local.find(local), self.remote.find(remote)) {
            (Some((near, a)), Some((far, b))) if near == far => Some(wins(a, b)),
            (Some((near, a)), Some((far, b))) => Some(if near > far { a } else { b }),
            (found, other) => found.or(other).map(|(_, value)| value).or(self.any),
        }
    }
}

#[derive(Debug, Default)]
struct Rules {
    ip: IpRules<Allowed>,
    meters: IpRules<u32>,
    mac: HashMap<Side, Allowed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Local(MacAddress),
    Remote(MacAddress),
    Any,
}

/// A rule's number, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowed {
    number: u32,
    allowed: bool,
}

/// Of two rules with equal prefixes, the one that denies; of two that say the same, the first.
fn stricter(a: Allowed, b: Allowed) -> Allowed {
    if (a.allowed, a.number) <= (b.allowed, b.number) { a } else { b }
}

/// What the rules say of a frame, and which of them: by their place among all of the port's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixVerdict {
    /// Whether it passes.
    pub allowed: bool,
    /// The rule about MAC addresses that decided, if one did.
    pub mac: Option<u32>,
    /// The rule about IP addresses that decided, if one did.
    pub ip: Option<u32>,
}

/// A port's rules, ready to decide by.
#[derive(Debug, Default)]
pub struct PrefixAcl {
    inbound: Rules,
    outbound: Rules,
}

impl PrefixAcl {
    /// Takes the rules. A rule's number is its place among all of `rules`.
    pub fn new(rules: &[PrefixRule]) -> Result<PrefixAcl, PolicyError> {
        let mut acl = PrefixAcl::default();
        for (number, rule) in (0u32..).zip(rules) {
            for direction in [Direction::Inbound, Direction::Outbound] {
                if rule.direction.is_some_and(|wanted| wanted != direction) {
                    continue;
                }
                let part = match direction {
                    Direction::Inbound => &mut acl.inbound,
                    Direction::Outbound => &mut acl.outbound,
                };
                part.insert(rule, number)?;
            }
        }
        Ok(acl)
    }

    fn rules(&self, direction: Direction) -> &Rules {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Whether the rules let it through: those about MAC addresses and those about IP addresses both must. What no rule is about is.
    pub fn decide(&self, subject: &Subject) -> PrefixVerdict {
        let rules = self.rules(subject.direction);
        let by_mac = [Side::Local(subject.local_mac), Side::Remote(subject.remote_mac)];
        let mac = by_mac.iter().filter_map(|side| rules.mac.get(side).copied()).reduce(stricter);
        let mac = mac.or_else(|| rules.mac.get(&Side::Any).copied());
        let ip = subject.packet.and_then(|packet| rules.ip.find(packet.local, packet.remote, stricter));
        let number = |rule: Allowed| rule.number;
        let allowed = [mac, ip].into_iter().flatten().all(|rule| rule.allowed);
        PrefixVerdict { allowed, mac: mac.map(number), ip: ip.map(number) }
    }

    /// The number of the rule that counts its bytes.
    pub fn meter(&self, subject: &Subject) -> Option<u32> {
        let packet = subject.packet?;
        self.rules(subject.direction).meters.find(packet.local, packet.remote, u32::min)
    }
}

impl Rules {
    fn insert(&mut self, rule: &PrefixRule, number: u32) -> Result<(), PolicyError> {
        let is_mac = matches!(rule.address, Address::LocalMac(_) | Address::RemoteMac(_) | Address::AnyMac);
        let allowed = match rule.action {
            PrefixAction::Meter if is_mac => return Err(PolicyError::MacMeter),
            PrefixAction::Meter => {
                self.meters.insert(rule.address, number, u32::min);
                return Ok(());
            }
            action => Allowed { number, allowed: action == PrefixAction::Allow },
        };
        let side = match rule.address {
            Address::LocalMac(mac) => Side::Local(mac),
            Address::RemoteMac(mac) => Side::Remote(mac),
            Address::AnyMac => Side::Any,
            Address::LocalIp(_) | Address::RemoteIp(_) | Address::AnyIp => {
                self.ip.insert(rule.address, allowed, stricter);
                return Ok(());
            }
        };
        insert(&mut self.mac, side, allowed, stricter);
        Ok(())
    }
}
