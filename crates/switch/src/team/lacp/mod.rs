//! The link aggregation control protocol (IEEE 802.1AX-2014 clause 6), as a machine without I/O or clock.
//!
//! ```text
//!  Event ─▶ receive machine ─▶ mux ─▶ selection ─▶ mux ─▶ periodic ─▶ packets to send
//! ```
//!
//! Selection: ports whose partners are the same system with the same key, and that have the same key here (the same speed), are one
//! link aggregation group. One group at a time is the team; the others wait. It stays as long as it works; if none does, the one with
//! most bandwidth becomes it. Where nobody speaks LACP, one port carries everything, as an individual link.

pub mod pdu;
mod port;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::mac::MacAddress;
use crate::tables::Millis;
use pdu::{Lacpdu, PortInfo, state};
use port::Port;
pub use port::{MuxState, ReceiveState};

/// How often a partner is asked to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LacpRate {
    /// Every 30 seconds; it is missed after 90.
    #[default]
    Slow,
    /// Every second; it is missed after 3.
    Fast,
}

/// Priority of ports, and of systems that are not told otherwise.
pub const DEFAULT_PRIORITY: u16 = 0x8000;

/// What happens to the machine.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A link is up with a speed in Mb/s, zero if that is not known, or it is down.
    Link {
        /// The port.
        port: usize,
        /// Its speed.
        speed_mbps: Option<u32>,
    },
    /// A packet came.
    Pdu {
        /// Where.
        port: usize,
        /// What it says.
        pdu: &'a Lacpdu,
    },
    /// Time has passed; to be told some times in a second.
    Tick,
}

/// What may be aggregated: ports for which this is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    system: (u16, MacAddress),
    keys: (u16, u16),
    /// A port that is to be alone.
    individual: Option<u16>,
}

/// A system with its ports.
#[derive(Debug)]
pub struct Lacp {
    ports: Vec<Port>,
    chosen: Option<Group>,
}

impl Lacp {
    /// A system whose ports have no links yet.
    pub fn new(system: MacAddress, system_priority: u16, rate: LacpRate, ports: usize) -> Lacp {
        let rate = match rate {
            LacpRate::Slow => 0,
            LacpRate::Fast => state::SHORT_TIMEOUT,
        };
        let state = state::ACTIVITY | state::AGGREGATION | rate;
        let actor = |port| PortInfo { system_priority, system, key: key(0), port_priority: DEFAULT_PRIORITY, port, state };
        Lacp { ports: (1..).take(ports).map(|number| Port::new(actor(number))).collect(), chosen: None }
    }

    /// Goes on; adds packets to be sent, with their ports.
    pub fn step(&mut self, now: Millis, event: Event<'_>, out: &mut Vec<(usize, Lacpdu)>) {
        match event {
            Event::Link { port, speed_mbps } => {
                if let Some(port) = self.ports.get_mut(port) {
                    let speed = speed_mbps.unwrap_or(port.speed_mbps);
                    if key(speed) != port.actor.key {
                        // Another key: what it was part of it is no longer.
                        (port.actor.key, port.is_selected) = (key(speed), false);
                    }
                    port.speed_mbps = speed;
                    port.set_enabled(speed_mbps.is_some(), now);
                }
            }
            Event::Pdu { port, pdu } => self.ports.get_mut(port).into_iter().for_each(|port| port.hear(pdu, now)),
            Event::Tick => {}
        }
        for port in &mut self.ports {
            port.age(now);
            // What is no longer selected leaves before it can be selected again.
            port.step_mux(now);
        }
        self.select();
        for (index, port) in self.ports.iter_mut().enumerate() {
            port.step_mux(now);
            out.extend(port.transmit(now).map(|pdu| (index, pdu)));
        }
    }

    fn select(&mut self) {
        let groups: Vec<Option<Group>> = self.ports.iter().map(group).collect();
        let members = |group: Group| self.ports.iter().zip(&groups).filter(move |(_, other)| **other == Some(group));
        let has_partner = |group: Group| members(group).any(|(port, _)| port.has_partner);
        let is_any_spoken = groups.iter().flatten().any(|group| has_partner(*group));
        let stays = self.chosen.filter(|group| {
            members(*group).any(|(port, _)| port.mux >= MuxState::Attached) && (has_partner(*group) || !is_any_spoken)
        });
        let bandwidth = |group: Group| members(group).map(|(port, _)| u64::from(port.speed_mbps.max(1))).sum::<u64>();
        // Of equal ones, the one with the first port.
        let best = || groups.iter().rev().flatten().copied().max_by_key(|group| (has_partner(*group), bandwidth(*group)));
        self.chosen = stays.or_else(best);
        let chosen = self.chosen;
        for (port, group) in self.ports.iter_mut().zip(groups) {
            // One that has just left is selected when it is detached.
            port.is_selected = group.is_some() && group == chosen && (port.is_selected || port.mux == MuxState::Detached);
        }
    }

    /// Whether frames that come in at a port are taken.
    pub fn is_collecting(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|port| port.mux >= MuxState::Collecting)
    }

    /// Whether frames may go out at a port.
    pub fn is_distributing(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|port| port.mux == MuxState::Distributing)
    }

    /// How a port stands.
    pub fn status(&self, port: usize) -> Option<LacpStatus> {
        let port = self.ports.get(port)?;
        let partner = port.has_partner.then_some(LacpPartner {
            system: port.partner.system,
            system_priority: port.partner.system_priority,
            key: port.partner.key,
            port: port.partner.port,
        });
        Some(LacpStatus { receive: port.receive, mux: port.mux, key: port.actor.key, partner })
    }
}

/// What a port may be aggregated with, if with anything.
fn group(port: &Port) -> Option<Group> {
    let (actor, partner) = (&port.actor, &port.partner);
    let is_settled = match port.receive {
        ReceiveState::Disabled => false,
        // Until the time is over it is not known whether somebody speaks there.
        ReceiveState::Expired => port.has_partner,
        ReceiveState::Defaulted | ReceiveState::Current => true,
    };
    // A cable from us to us is none to send frames over.
    let is_loop = (partner.system_priority, partner.system) == (actor.system_priority, actor.system);
    let individual = (!partner.has(state::AGGREGATION)).then_some(actor.port);
    let group = Group { system: (partner.system_priority, partner.system), keys: (actor.key, partner.key), individual };
    (is_settled && !is_loop).then_some(group)
}

/// Ports of one speed have one key. Zero is not allowed.
fn key(speed_mbps: u32) -> u16 {
    1 + u16::try_from(speed_mbps / 10).unwrap_or(u16::MAX - 1).min(u16::MAX - 1)
}

/// How a NIC stands in LACP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LacpStatus {
    /// Whether the partner is heard.
    pub receive: ReceiveState,
    /// Whether frames pass.
    pub mux: MuxState,
    /// NICs with the same key can be used together: those of one speed.
    pub key: u16,
    /// Who is at the other end, if anybody speaks LACP there.
    pub partner: Option<LacpPartner>,
}

/// The other end of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub struct LacpPartner {
    pub system: MacAddress,
    pub system_priority: u16,
    pub key: u16,
    pub port: u16,
}
