//! Why something is done to a frame: the slow path, run without leaving a trace of its own, with somebody who listens.

use super::decide::{Decider, Memory};
use super::{Action, PortError, PortNumber, Switch, TagEdit};
use crate::acl::{ConnectionKey, Direction, PrefixVerdict, Verdict};
use crate::counters::DropReason;
use crate::frame::{Frame, FrameError};
use crate::mac::MacAddress;
use crate::tables::{Connections, Domain, Learned, Millis, Ref, Remembered, Stations};
use crate::vlan::Wire;

/// One step of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    /// Addresses and guards of the sender's port.
    Guard { port: PortNumber, refused: Option<DropReason> },
    /// The frame's VLAN.
    VlanIn { port: PortNumber, vlan: Result<u16, DropReason> },
    /// Rules by longest prefix.
    Acl { port: PortNumber, direction: Direction, decided: PrefixVerdict },
    /// It belongs to a connection that was opened from the other side.
    Answer { port: PortNumber, direction: Direction },
    /// Rules by weight, and which of them decided.
    ExtendedAcl { port: PortNumber, direction: Direction, verdict: Verdict, rule: Option<u32> },
    /// A connection for a stateful rule.
    Connection { port: PortNumber, direction: Direction, remembered: bool },
    /// The rule that counts its bytes.
    Meter { port: PortNumber, direction: Direction, rule: u32 },
    /// Where the sender is.
    Learning { port: PortNumber, vlan: u16, mac: MacAddress, learned: Learned },
    /// Where it goes.
    Forwarding { port: PortNumber, mac: MacAddress, destination: Destination },
    /// A port that is not given what is for an unknown station, because only one station is behind it.
    NotForIt { port: PortNumber },
    /// Whether a receiver is in the VLAN.
    VlanOut { port: PortNumber, vlan: u16, wire: Option<Wire> },
    /// What is done to its tag.
    Tag { port: PortNumber, edit: Result<TagEdit, DropReason> },
    /// A copy for a mirror.
    Mirror { port: PortNumber },
    /// The sender's storm limit, in frames per second.
    Storm { port: PortNumber, limit: u32, passes: bool },
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To a station behind this port.
    Known(PortNumber),
    /// To a station behind the port that it comes from.
    Sender,
    /// To a group: to all.
    Group,
    /// To a station that is not known: to all.
    Unknown,
}

/// What would be done to a frame, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What it says about itself.
    pub frame: Result<Frame, FrameError>,
    /// The layers, in order.
    pub steps: Vec<Step>,
    /// What is done, in order.
    pub actions: Vec<Action>,
}

/// The tables as they would be, without touching them.
struct Listener<'a> {
    stations: &'a Stations,
    connections: &'a Connections,
    /// The sender, if it is behind another port than the tables say.
    sender: Option<(Domain, MacAddress, PortNumber)>,
    steps: Vec<Step>,
}

impl Memory for Listener<'_> {
    fn stations(&self) -> &Stations {
        self.stations
    }

    fn connections(&self) -> &Connections {
        self.connections
    }

    fn learn(&mut self, domain: Domain, mac: MacAddress, port: u16, _: bool, most: u32, now: Millis) -> Learned {
        let learned = self.stations.would_learn(domain, mac, port, most, now);
        self.sender = learned.station().map(|_| (domain, mac, port));
        learned
    }

    fn find(&self, domain: Domain, mac: MacAddress, now: Millis) -> Option<(Ref, u16)> {
        match self.sender {
            Some((there, sender, port)) if (there, sender) == (domain, mac) => Some((Ref::NONE, port)),
            _ => self.stations.find(domain, mac, now),
        }
    }

    fn open(&mut self, key: ConnectionKey, _: Direction, _: Remembered, most: u32, now: Millis) -> Option<Ref> {
        self.connections.would_open(&key, most, now).then_some(Ref::NONE)
    }

    fn note(&mut self, step: impl FnOnce() -> Step) {
        self.steps.push(step());
    }
}

impl Switch {
    /// What would be done to a frame that came in now, and why. `head` and `length` are as of [`Switch::receive`].
    pub fn trace(&self, number: PortNumber, head: &[u8], length: usize, now: Millis) -> Result<Trace, PortError> {
        let port = self.port(number)?;
        let parsed = Frame::parse(head, length);
        let mut actions = Vec::new();
        let mut steps = Vec::new();
        match &parsed {
            Ok(frame) => {
                let Switch { ports, domains, stations, connections, .. } = self;
                let memory = Listener { stations, connections, sender: None, steps };
                let mut decider = Decider { ports, domains, memory, list: &mut actions, hits: &mut Vec::new(), now };
                decider.decide(number, frame);
                steps = decider.memory.steps;
            }
            Err(error) => actions.push(Action::Drop { port: number, reason: (*error).into() }),
        }
        if actions.contains(&Action::Limit) {
            let (limit, passes) = (port.policy.storm_limit, port.storm.has(now));
            steps.push(Step::Storm { port: number, limit, passes });
            if !passes {
                actions = vec![Action::Drop { port: number, reason: DropReason::Storm }];
            }
        }
        Ok(Trace { frame: parsed, steps, actions })
    }
}
