//! A port as the pipeline has it.

use std::collections::BTreeMap;

use super::Taken;
use super::bandwidth::{Limits, Tokens};
use crate::acl::{Address, ConnectionKey, Direction, ExtendedAcl, PacketSubject, PrefixAcl, PrefixRule, Subject, Verdict};
use crate::counters::Counters;
use crate::frame::{Fragment, ICMP, ICMPV6, Ip, TCP, Transport, UDP};
use crate::mac::MacAddress;
use crate::policy::{Permission, PolicyError, PortPolicy};
use crate::tables::{Domain, Millis, Ref, Remembered, RuleCounts};

/// A port's number, of all switches.
pub type PortNumber = u16;

/// A switch's number.
pub type SwitchNumber = u16;

#[derive(Debug)]
pub(super) struct Port {
    pub switch: SwitchNumber,
    pub policy: PortPolicy,
    pub acl: PrefixAcl,
    pub extended: ExtendedAcl,
    pub counters: Counters,
    pub meters: BTreeMap<u32, u64>,
    pub places: RulePlaces,
    pub storm: Bucket,
    /// Whether what the switch sends there may come back.
    pub is_reflecting: bool,
    pub limits: Option<Box<Limits>>,
}

impl PortPolicy {
    /// Whether a port could have it, other ports' policies left aside.
    pub fn check(&self) -> Result<(), PolicyError> {
        Port::new(0, self.clone()).map(drop)
    }
}

impl Port {
    pub fn new(switch: SwitchNumber, policy: PortPolicy) -> Result<Port, PolicyError> {
        policy.check_lengths()?;
        let addresses = policy.acl.iter().filter_map(|rule: &PrefixRule| match rule.address {
            Address::LocalMac(mac) => Some(mac),
            _ => None,
        });
        if let Some(mac) = policy.mac.into_iter().chain(addresses).find(|mac| !mac.is_station()) {
            return Err(PolicyError::Mac(mac));
        }
        policy.bandwidth.check()?;
        Ok(Port {
            switch,
            acl: PrefixAcl::new(&policy.acl)?,
            extended: ExtendedAcl::new(&policy.extended_acl)?,
            counters: Counters::default(),
            meters: BTreeMap::new(),
            places: RulePlaces::default(),
            storm: Bucket::new(policy.storm_limit),
            is_reflecting: false,
            limits: Limits::new(&policy.bandwidth),
            policy,
        })
    }

    pub fn keep_of(&mut self, old: &mut Port) {
        self.is_reflecting = old.is_reflecting;
        self.counters = old.counters.clone();
        // A new policy is no new burst.
        if self.policy.bandwidth == old.policy.bandwidth {
            self.limits = old.limits.take();
        }
        if self.policy.acl == old.policy.acl {
            self.meters = old.meters.clone();
        }
    }

    /// Counts a frame that it sent; says whether it may go on.
    pub fn sent(&mut self, bytes: u64) -> Taken {
        self.counters.rx_packets += 1;
        self.counters.rx_bytes += bytes;
        if let Some(out) = self.limits.as_mut().and_then(|limits| limits.out.as_mut()) {
            out.take(bytes);
        }
        if self.may_send() { Taken::Yes } else { Taken::Last }
    }

    /// Whether it has bandwidth left to send.
    pub fn may_send(&self) -> bool {
        self.limits.as_ref().and_then(|limits| limits.out.as_ref()).is_none_or(Tokens::has)
    }

    /// Whether senders share a wire behind it.
    pub fn is_wire(&self) -> bool {
        self.limits.as_ref().is_some_and(|limits| limits.is_wire())
    }

    /// The only station behind the port, if the policy says so.
    pub fn only_station(&self) -> Option<MacAddress> {
        self.policy.mac.filter(|_| self.policy.mac_spoofing == Permission::Deny)
    }

    /// Gives each rule a place to be counted at.
    pub fn count_rules(&mut self, counts: &mut RuleCounts, old: Option<&Port>) {
        let none = (&[][..], &[][..]);
        let (acl, places) = old.map_or(none, |old| (&old.policy.acl[..], &old.places.acl[..]));
        self.places.acl = counts.place(&self.policy.acl, acl, places);
        let none = (&[][..], &[][..]);
        let (extended, places) = old.map_or(none, |old| (&old.policy.extended_acl[..], &old.places.extended[..]));
        self.places.extended = counts.place(&self.policy.extended_acl, extended, places);
    }

    /// How the rules would remember a connection that is opened now.
    pub fn remembers(&self, key: &ConnectionKey, opened: Direction) -> Option<Remembered> {
        let sides = |local, remote| match opened {
            Direction::Outbound => (local, remote),
            Direction::Inbound => (remote, local),
        };
        let (source, destination) = sides(key.local_port, key.remote_port);
        let transport = match key.protocol {
            TCP | UDP => Transport::Ports { source, destination },
            ICMP | ICMPV6 => Transport::Icmp { kind: 0, code: 0, id: key.local_port },
            _ => Transport::None,
        };
        let addresses = match opened {
            Direction::Outbound => (key.local, key.remote),
            Direction::Inbound => (key.remote, key.local),
        };
        let (source, destination) = addresses;
        let ip = Ip { source, destination, protocol: key.protocol, transport, fragment: Fragment::Whole };
        let packet = Some(PacketSubject { local: key.local, remote: key.remote, ip });
        let nobody = MacAddress([0; 6]);
        let subject = Subject { direction: opened, local_mac: nobody, remote_mac: nobody, packet };
        match self.extended.decide(&subject) {
            (Verdict::Remember { idle_timeout_ms }, rule) => {
                Some(Remembered { idle_timeout: idle_timeout_ms, rule: self.places.extended(rule) })
            }
            (Verdict::Allow | Verdict::Deny, _) => None,
        }
    }
}

/// Where the rules of a port are counted.
#[derive(Debug, Default)]
pub(super) struct RulePlaces {
    pub acl: Vec<Ref>,
    pub extended: Vec<Ref>,
}

impl RulePlaces {
    /// The place of a rule by weight.
    pub fn extended(&self, rule: Option<u32>) -> Ref {
        rule.and_then(|rule| self.extended.get(rule as usize)).copied().unwrap_or(Ref::NONE)
    }
}

/// A limit of frames in a second, with a tenth of a second's worth at once.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: u64,
    /// In thousandths of a frame.
    tokens: u64,
    filled: Millis,
}

impl Bucket {
    fn new(per_second: u32) -> Bucket {
        let mut bucket = Bucket { per_second: per_second.into(), tokens: 0, filled: 0 };
        bucket.tokens = bucket.most();
        bucket
    }

    fn most(&self) -> u64 {
        (self.per_second * 100).max(1000)
    }

    fn tokens(&self, now: Millis) -> u64 {
        let gained = now.saturating_sub(self.filled).saturating_mul(self.per_second);
        self.tokens.saturating_add(gained).min(self.most())
    }

    /// Whether there is one.
    pub fn has(&self, now: Millis) -> bool {
        self.per_second == 0 || self.tokens(now) >= 1000
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Millis) -> bool {
        if self.per_second == 0 {
            return true;
        }
        self.tokens = self.tokens(now);
        self.filled = self.filled.max(now);
        let there = self.tokens >= 1000;
        self.tokens -= if there { 1000 } else { 0 };
        there
    }
}

/// In which VLAN's table a VLAN's stations are: those of a private VLAN share one, because answers come in another VLAN than questions.
#[derive(Debug, Default)]
pub(super) struct Domains(BTreeMap<(SwitchNumber, u16), u16>);

impl Domains {
    pub fn new<'a>(ports: impl Iterator<Item = &'a Port>) -> Result<Domains, PolicyError> {
        let mut domains = BTreeMap::new();
        let mut primaries = BTreeMap::new();
        for (switch, (primary, secondaries)) in ports.filter_map(|port| Some((port.switch, port.policy.vlan.private()?))) {
            let primary = u16::from(primary);
            primaries.insert((switch, primary), primary);
            for secondary in secondaries.iter().map(|vlan| u16::from(*vlan)) {
                let other = *domains.entry((switch, secondary)).or_insert(primary);
                if other != primary {
                    return Err(PolicyError::Private { secondary, primary, other });
                }
            }
        }
        // A VLAN is the one or the other.
        match domains.iter().find(|(secondary, _)| primaries.contains_key(secondary)) {
            Some(((_, secondary), primary)) => {
                Err(PolicyError::Private { secondary: *secondary, primary: *primary, other: *secondary })
            }
            None => Ok(Domains(domains)),
        }
    }

    pub fn of(&self, switch: SwitchNumber, vlan: u16) -> Domain {
        Domain { switch, vlan: self.0.get(&(switch, vlan)).copied().unwrap_or(vlan) }
    }
}
