//! Teams: NICs that are one uplink. A single NIC is a team of one.
//!
//! ```text
//!            sender's port ──▶ home ─┐
//!  frame ──▶                         ├─▶ NIC        both are arrays of 256 slots, which change with links and load
//!            flow's hash ──▶ buckets ┘
//! ```
//!
//! # Switch-independent modes
//! Nothing at the other end knows of the team. Each station has a home NIC, where switches learn it. A broadcast or multicast is taken
//! from the active NIC only, since each of them gets a copy. What the team sent through one NIC and gets back through another is known
//! by its source, a station behind another port of this switch: [`crate::pipeline::Switch::set_reflecting`]. When a station's home
//! changes, it is announced there.
//!
//! # LACP
//! NICs are used as far as both ends agree, see [`lacp`].

pub mod config;
pub mod lacp;
pub mod nic;
pub mod spread;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};

use crate::counters::DropReason;
use crate::frame::{TYPE_IPV4, TYPE_IPV6, TYPE_VLAN};
use crate::links::FoundNic;
use crate::mac::MacAddress;
use crate::pipeline::PortNumber;
use crate::ports::nic::NicPort;
use crate::ports::packet::Packet;
use crate::ports::vnet::Vnet;
use crate::ring::split::Segment;
use crate::tables::Millis;
use config::{TeamConfig, TeamMode};
use lacp::pdu::{self, PDU_BYTES, SlowPdu};
use lacp::{Event, Lacp};
use nic::{LinkState, Nic, NicStatus};
use spread::{NOBODY, SLOTS, Spread};

/// How often load is looked at.
pub const REBALANCE: Millis = 10_000;

const ETHERNET_BYTES: usize = 14;

/// What is to be done with a frame that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes into the switch.
    Take,
    /// It was for the team itself.
    Done,
    /// It goes nowhere.
    Drop(DropReason),
}

/// A team at work.
#[derive(Debug)]
pub struct Team {
    mode: TeamMode,
    primary: Option<usize>,
    nics: Vec<Nic>,
    lacp: Option<Lacp>,
    /// Where groups are taken from, and where everything leaves if nothing is spread.
    active: Option<usize>,
    home: Spread,
    buckets: Spread,
    /// What the slots are shared out by.
    weights: Vec<u64>,
    rebalanced: Millis,
    /// Homes that have changed and were not asked for yet.
    moved: Option<[bool; SLOTS]>,
    /// Whether what came in has to wait: the port has used up its bandwidth.
    pub held: bool,
}

impl Team {
    /// A team with the NICs that are there.
    pub fn new(config: &TeamConfig, nics: Vec<FoundNic>, now: Millis) -> Team {
        let nics: Vec<Nic> = (config.nics.iter().zip(nics))
            .map(|(name, found)| {
                let mut nic = Nic::new(name);
                if let Some((socket, link)) = found {
                    nic.set_socket(socket);
                    nic.set_link(Some(link));
                }
                nic
            })
            .collect();
        // A system needs an address of its own that stays: that of its first NIC.
        let system = nics.iter().find_map(Nic::link).map_or_else(any_address, |link| link.mac);
        let lacp =
            (config.mode == TeamMode::Lacp).then(|| Lacp::new(system, config.lacp_priority, config.lacp_rate, config.nics.len()));
        let primary = config.primary.as_ref().and_then(|primary| config.nics.iter().position(|nic| nic == primary));
        let mut team = Team {
            mode: config.mode,
            primary,
            nics,
            lacp,
            active: None,
            home: Spread::default(),
            buckets: Spread::default(),
            weights: Vec::new(),
            rebalanced: now,
            moved: None,
            held: false,
        };
        (0..team.nics.len()).for_each(|nic| team.tell_lacp_link(nic, now));
        team.arrange();
        team
    }

    /// Takes over from the team that was there before: what NICs of the same names have counted, and which of them was in use.
    pub fn keep_of(&mut self, before: &TeamStatus) {
        for (index, nic) in self.nics.iter_mut().enumerate() {
            let Some(same) = before.nics.iter().find(|same| same.name == nic.name()) else { continue };
            nic.set_counters(same.counters);
            if same.is_active && before.mode == TeamMode::ActiveStandby {
                self.active = Some(index);
            }
        }
        // Weights that nothing has: all is arranged anew.
        self.weights.clear();
        self.arrange();
    }

    /// Whether what it sends may come back to it: it has several NICs, and switches at their other ends that do not know of it.
    pub fn is_reflecting(&self) -> bool {
        self.nics.len() > 1 && matches!(self.mode, TeamMode::SourcePort | TeamMode::AddressHash)
    }

    /// Its NICs.
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// A NIC is there again: its socket, whose link is told next.
    pub fn set_socket(&mut self, nic: usize, socket: NicPort) {
        if let Some(nic) = self.nics.get_mut(nic) {
            nic.set_socket(Some(socket));
        }
    }

    /// A NIC is there, but cannot be used.
    pub fn set_refusal(&mut self, nic: usize, reason: String) {
        if let Some(nic) = self.nics.get_mut(nic) {
            nic.set_refusal(reason);
        }
    }

    /// The socket of a NIC, for the team that comes after this one.
    pub fn take_socket(&mut self, name: &str) -> Option<NicPort> {
        self.nics.iter_mut().find(|nic| nic.name() == name)?.take_socket()
    }

    /// Has the kernel take what was written. Returns whether it has to be told once more, later.
    pub fn flush(&mut self) -> bool {
        let mut has_more = false;
        for nic in &mut self.nics {
            has_more |= nic.flush();
        }
        has_more
    }

    /// Whether there may be something to read.
    pub fn is_ready(&self) -> bool {
        self.nics.iter().any(Nic::is_ready)
    }

    /// A NIC has something to read.
    pub fn set_ready(&mut self, nic: usize) {
        self.nics.get_mut(nic).into_iter().for_each(Nic::set_ready);
    }

    /// A NIC's link changed, or it is gone.
    pub fn set_link(&mut self, nic: usize, link: Option<LinkState>, now: Millis) {
        let Some(member) = self.nics.get_mut(nic) else { return };
        member.set_link(link);
        if link.is_none() {
            member.set_socket(None);
        }
        self.tell_lacp_link(nic, now);
        self.arrange();
    }

    fn tell_lacp_link(&mut self, nic: usize, now: Millis) {
        let member = &self.nics[nic];
        let speed_mbps = member.is_up().then(|| member.link().and_then(|link| link.speed_mbps).unwrap_or(0));
        self.step_lacp(Event::Link { port: nic, speed_mbps }, now);
    }

    /// To be called some times in a second.
    pub fn tick(&mut self, now: Millis) {
        if self.lacp.is_some() {
            self.step_lacp(Event::Tick, now);
            self.arrange();
        }
        if now >= self.rebalanced + REBALANCE {
            self.rebalanced = now;
            let before = self.home.clone();
            match self.mode {
                TeamMode::ActiveStandby => {}
                TeamMode::SourcePort => self.home.rebalance(&self.weights),
                TeamMode::AddressHash | TeamMode::Lacp => self.buckets.rebalance(&self.weights),
            }
            self.note_moved(&before);
        }
    }

    fn step_lacp(&mut self, event: Event<'_>, now: Millis) {
        let Some(lacp) = &mut self.lacp else { return };
        let mut out = Vec::new();
        lacp.step(now, event, &mut out);
        for (nic, pdu) in out {
            self.send_slow(nic, &pdu.bytes());
        }
    }

    fn send_slow(&mut self, nic: usize, bytes: &[u8; PDU_BYTES]) {
        let Some(nic) = self.nics.get_mut(nic) else { return };
        let Some(link) = nic.link() else { return };
        let mut frame = [0; ETHERNET_BYTES + PDU_BYTES];
        frame[..6].copy_from_slice(&pdu::DESTINATION.0);
        frame[6..12].copy_from_slice(&link.mac.0);
        frame[12..14].copy_from_slice(&pdu::ETHER_TYPE.to_be_bytes());
        frame[14..].copy_from_slice(bytes);
        // It is counted at the NIC; the next one comes by itself.
        let _ = nic.write(&Vnet::default(), &[Segment::of(&frame)], frame.len(), 0);
    }

    /// Whether frames may go out at a NIC.
    fn is_usable(&self, nic: usize) -> bool {
        self.nics[nic].is_up() && self.lacp.as_ref().is_none_or(|lacp| lacp.is_distributing(nic))
    }

    /// Gives every slot a NIC that can be used, if what can be used has changed.
    fn arrange(&mut self) {
        let weights: Vec<u64> =
            (0..self.nics.len()).map(|nic| if self.is_usable(nic) { self.nics[nic].weight() } else { 0 }).collect();
        if weights == self.weights {
            return;
        }
        let before = self.home.clone();
        let primary = self.primary.filter(|nic| self.is_usable(*nic));
        let current = self.active.filter(|nic| self.is_usable(*nic));
        self.active = primary.or(current).or_else(|| (0..self.nics.len()).find(|nic| self.is_usable(*nic)));
        match self.mode {
            TeamMode::ActiveStandby | TeamMode::Lacp => self.home.give_all(self.active),
            TeamMode::SourcePort => {
                self.home.share(&weights);
                self.home.balance_by_last(&weights);
            }
            TeamMode::AddressHash => self.home.share(&weights),
        }
        if matches!(self.mode, TeamMode::AddressHash | TeamMode::Lacp) {
            self.buckets.share(&weights);
            self.buckets.balance_by_last(&weights);
        }
        self.weights = weights;
        self.note_moved(&before);
    }

    fn note_moved(&mut self, before: &Spread) {
        let now = self.home.moved_since(before);
        if now.contains(&true) {
            let earlier = self.moved.unwrap_or([false; SLOTS]);
            self.moved = Some(std::array::from_fn(|slot| earlier[slot] || now[slot]));
        }
    }

    /// Which homes have changed since the last time, by the low byte of the port.
    pub fn take_moved(&mut self) -> Option<[bool; SLOTS]> {
        self.moved.take()
    }

    /// Looks at a frame that came in at a NIC.
    pub fn judge(&mut self, nic: usize, head: &[u8], now: Millis) -> Verdict {
        if let Some(lacp) = &self.lacp {
            if let Some(body) = slow_protocol(head) {
                self.hear(nic, body, now);
                return Verdict::Done;
            }
            return if lacp.is_collecting(nic) { Verdict::Take } else { self.refuse(nic) };
        }
        let is_group = head.first().is_some_and(|byte| byte & 1 != 0);
        let is_taken = self.active == Some(nic) || !(is_group || self.mode == TeamMode::ActiveStandby);
        if is_taken { Verdict::Take } else { self.refuse(nic) }
    }

    fn refuse(&mut self, nic: usize) -> Verdict {
        self.nics[nic].count_refused();
        Verdict::Drop(DropReason::Inactive)
    }

    fn hear(&mut self, nic: usize, body: &[u8], now: Millis) {
        match pdu::parse(body) {
            Some(SlowPdu::Lacp(pdu)) => {
                self.step_lacp(Event::Pdu { port: nic, pdu: &pdu }, now);
                self.arrange();
            }
            Some(SlowPdu::Marker(answer)) => self.send_slow(nic, &answer),
            None => self.nics[nic].count_refused(),
        }
    }

    /// The NIC through which a flow from a port leaves, and whether that is not its station's home.
    fn choose(&mut self, from: &Origin<'_>, length: usize) -> (u8, bool) {
        let (port, bucket) = (from.port as u8, from.hash as u8);
        let home = self.home.nic(port);
        match self.mode {
            TeamMode::ActiveStandby => (home, false),
            TeamMode::SourcePort => {
                self.home.count(port, length);
                (home, false)
            }
            // What is not IP may tell others where a station is.
            TeamMode::AddressHash if !is_ip_unicast(from.head) => (home, false),
            TeamMode::AddressHash | TeamMode::Lacp => {
                self.buckets.count(bucket, length);
                let nic = self.buckets.nic(bucket);
                (nic, self.mode == TeamMode::AddressHash && nic != home)
            }
        }
    }

    /// Writes a frame of `length` bytes; `pieces` begin with both addresses.
    pub fn write(&mut self, from: &Origin<'_>, vnet: &Vnet, pieces: &mut Vec<Segment>, length: usize) -> Result<(), DropReason> {
        let (nic, is_away) = self.choose(from, length);
        if nic == NOBODY {
            return Err(DropReason::NoLink);
        }
        let Some(nic) = self.nics.get_mut(usize::from(nic)) else { return Err(DropReason::NoLink) };
        let own = nic.link().map(|link| link.mac);
        let (true, Some(own), Some(first)) = (is_away, &own, pieces.first().copied()) else {
            return nic.write(vnet, pieces, length, from.hash);
        };
        let mut rest = first;
        rest.skip(12);
        pieces.splice(0..1, [Segment::of(&from.head[..6]), Segment::of(&own.0), rest]);
        let written = nic.write(vnet, pieces, length, from.hash);
        // For whoever looks at it next it is as it was.
        pieces.splice(0..3, [first]);
        written
    }

    /// Reads the next frame from a NIC. `None` if there is none now.
    pub fn read(&mut self, nic: usize, packet: &mut Packet) -> Option<Result<(), DropReason>> {
        self.nics.get_mut(nic)?.read(packet)
    }

    /// How it is.
    pub fn status(&mut self) -> TeamStatus {
        let usable: Vec<bool> = (0..self.nics.len()).map(|nic| self.is_usable(nic)).collect();
        let (mode, active, lacp) = (self.mode, self.active, &self.lacp);
        let nics = self.nics.iter_mut().zip(usable).enumerate().map(|(index, (nic, is_usable))| {
            let is_active = is_usable && (mode != TeamMode::ActiveStandby || active == Some(index));
            nic.status(is_active, lacp.as_ref().and_then(|lacp| lacp.status(index)))
        });
        TeamStatus { mode, nics: nics.collect() }
    }
}

/// An address that nobody else has, for a system without NICs so far: a local one, at random.
fn any_address() -> MacAddress {
    let [a, b, c, d, e, ..] = RandomState::new().hash_one(0).to_be_bytes();
    MacAddress([2, a, b, c, d, e])
}

/// Where a frame that leaves comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The port of the switch.
    pub port: PortNumber,
    /// The hash of its flow.
    pub hash: u64,
    /// Its beginning, as it came in.
    pub head: &'a [u8],
}

/// The body of a frame of slow protocols.
fn slow_protocol(head: &[u8]) -> Option<&[u8]> {
    let (addresses, body) = head.split_at_checked(ETHERNET_BYTES)?;
    (addresses[..6] == pdu::DESTINATION.0 && addresses[12..] == pdu::ETHER_TYPE.to_be_bytes()).then_some(body)
}

fn is_ip_unicast(head: &[u8]) -> bool {
    let kind = |at: usize| head.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let kind = if kind(12) == Some(TYPE_VLAN) { kind(16) } else { kind(12) };
    head.first().is_some_and(|byte| byte & 1 == 0) && matches!(kind, Some(TYPE_IPV4 | TYPE_IPV6))
}

/// A team as it is on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TeamStatus {
    /// How it uses its NICs.
    pub mode: TeamMode,
    /// They.
    pub nics: Vec<NicStatus>,
}
