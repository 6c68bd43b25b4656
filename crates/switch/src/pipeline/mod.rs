//! The way of a frame through the switch.
//!
//! ```text
//!  frame ─▶ parse ─▶ flow known and still true? ──yes──▶ its action list ─▶ Sink
//!                          │ no                            ▲
//!                          ▼                               │
//!   slow path, once per flow, each layer adds to the list: │
//!   address and guards ─ VLAN in ─ ACLs out ─ learning ─ [router] ─ forwarding ─ per receiver: VLAN out, ACLs in ─ [overlay] ─ mirror
//! ```
//! In brackets: where later layers go. A list is true as long as the configuration is the same (a generation), sender and receiver are
//! where they were (references with versions), and its connections stand.
//!
//! Several virtual switches are in one core: each port is of one, and stations, VLANs and mirrors are each switch's own.
//!
//! The core does no I/O and knows no time but what it is told. One thread owns it: there is nothing to lock.

mod action;
mod bandwidth;
#[cfg(test)]
mod bandwidth_tests;
mod decide;
mod flows;
mod port;
#[cfg(test)]
mod tests;
mod trace;
mod transfer;

pub use action::{Action, TagEdit};
pub use flows::{FlowView, PortRuleCounts};
pub use port::{PortNumber, SwitchNumber};
pub use trace::{Destination, Step, Trace};
pub use transfer::{ConnectionState, ImportError, Imported, PORT_STATE_VERSION, PortState, StationState};

use crate::acl::{ConnectionKey, Direction};
use crate::counters::{Counters, DropReason};
use crate::frame::Frame;
use crate::mac::MacAddress;
use crate::policy::{PolicyError, PortPolicy};
use crate::tables::{Connections, Domain, Flow, FlowKey, Flows, Millis, Receiver, Ref, RuleCounts, Station, Stations};
use port::{Domains, Port};

/// Sizes of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ports.
    pub ports: usize,
    /// Stations of all ports.
    pub stations: usize,
    /// Connections of all ports.
    pub connections: usize,
    /// Flows that are not decided again.
    pub flows: usize,
    /// After so long without a frame a station is forgotten.
    pub station_age: Millis,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { ports: 1024, stations: 65_536, connections: 1 << 20, flows: 65_536, station_age: 300_000 }
    }
}

/// Why a port could not be added or changed. Nothing changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// As many as there may be.
    #[error("the switch has {0} ports, which is as many as it may have: remove one")]
    TooMany(usize),
    /// There is none.
    #[error("the switch has no port {0}")]
    NoPort(u16),
    /// The policy contradicts itself or those of other ports.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Where copies of frames go. It knows the frame at hand.
pub trait Sink {
    /// Gives a copy to a port. `hash` is the flow's: frames of one flow have the same.
    fn deliver(&mut self, port: PortNumber, edit: TagEdit, hash: u64) -> Result<(), DropReason>;
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It went where it went.
    Yes,
    /// As well; but its port is to wait before it sends more: it has used up its bandwidth.
    Last,
    /// Nothing was done: the wire that it wants is busy. It may be brought again later.
    Held,
}

/// The core: the ports of all switches, and what is known of them.
#[derive(Debug)]
pub struct Switch {
    limits: Limits,
    ports: Vec<Option<Port>>,
    domains: Domains,
    stations: Stations,
    connections: Connections,
    flows: Flows,
    rules: RuleCounts,
    generation: u64,
    decisions: u64,
    /// Whether any port has limits.
    limited: bool,
    /// Nanoseconds that were not yet given to them.
    elapsed: u64,
    /// The list that is being made.
    list: Vec<Action>,
    /// The rules that it comes from.
    hits: Vec<Ref>,
}

/// After so long a sender that could not be learned, or a connection that there was no room for, is tried again.
const RETRY: Millis = 1000;
/// So long after it was announced from here, a station is not moved to a team: the announcement may come back through another NIC.
const HOLD: Millis = 5000;
/// Places of tables that one call of [`Switch::tick`] looks at.
const SWEEP: usize = 256;

impl Switch {
    /// A switch without ports.
    pub fn new(limits: Limits) -> Switch {
        Switch {
            limits,
            ports: Vec::new(),
            domains: Domains::default(),
            stations: Stations::new(limits.stations, limits.station_age),
            connections: Connections::new(limits.connections),
            flows: Flows::new(limits.flows),
            rules: RuleCounts::default(),
            generation: 0,
            decisions: 0,
            limited: false,
            elapsed: 0,
            list: Vec::new(),
            hits: Vec::new(),
        }
    }

    /// Adds a port to the first switch.
    pub fn add_port(&mut self, policy: PortPolicy) -> Result<PortNumber, PortError> {
        self.add_port_to(0, policy)
    }

    /// Adds a port to a switch; returns its number, which the next port may get when it is removed.
    pub fn add_port_to(&mut self, switch: SwitchNumber, policy: PortPolicy) -> Result<PortNumber, PortError> {
        let number = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        if number >= self.limits.ports {
            return Err(PortError::TooMany(self.limits.ports));
        }
        let mut port = Port::new(switch, policy)?;
        let domains = self.domains_with(number, Some(&port))?;
        port.count_rules(&mut self.rules, None);
        if number == self.ports.len() {
            self.ports.push(None);
        }
        self.ports[number] = Some(port);
        self.changed(domains);
        Ok(number as PortNumber)
    }

    /// Gives a port another policy. What it has counted stays, and connections that the new rules still allow.
    pub fn set_policy(&mut self, number: PortNumber, policy: PortPolicy) -> Result<(), PortError> {
        let old = self.port(number)?;
        let mut port = Port::new(old.switch, policy)?;
        let moved = old.policy.vlan != port.policy.vlan || old.policy.mac != port.policy.mac;
        let domains = self.domains_with(usize::from(number), Some(&port))?;
        if let Some(old) = &mut self.ports[usize::from(number)] {
            port.keep_of(old);
        }
        port.count_rules(&mut self.rules, self.ports[usize::from(number)].as_ref());
        self.connections.retain(number, |key, opened| port.remembers(key, opened));
        if moved {
            self.stations.forget_port(number);
        }
        self.ports[usize::from(number)] = Some(port);
        self.changed(domains);
        Ok(())
    }

    /// Removes a port with all that is known of it.
    pub fn remove_port(&mut self, number: PortNumber) -> Result<(), PortError> {
        self.port(number)?;
        let domains = self.domains_with(usize::from(number), None)?;
        if let Some(port) = self.ports[usize::from(number)].take() {
            self.rules.place(&[], &port.policy.acl, &port.places.acl);
            self.rules.place(&[], &port.policy.extended_acl, &port.places.extended);
        }
        self.stations.forget_port(number);
        self.connections.retain(number, |_: &ConnectionKey, _: Direction| None);
        self.changed(domains);
        Ok(())
    }

    fn port(&self, number: PortNumber) -> Result<&Port, PortError> {
        self.ports.get(usize::from(number)).and_then(Option::as_ref).ok_or(PortError::NoPort(number))
    }

    fn domains_with(&self, number: usize, port: Option<&Port>) -> Result<Domains, PolicyError> {
        let others = (0usize..).zip(&self.ports).filter(|(other, _)| *other != number).filter_map(|(_, port)| port.as_ref());
        Domains::new(others.chain(port))
    }

    fn changed(&mut self, domains: Domains) {
        self.domains = domains;
        self.generation += 1;
        self.limited = self.ports.iter().flatten().any(|port| port.limits.is_some());
        let policies: Vec<_> = self.ports.iter().map(|port| port.as_ref().map(|port| port.policy.bandwidth)).collect();
        for limits in self.ports.iter_mut().flatten().filter_map(|port| port.limits.as_mut()) {
            limits.share(policies.iter().map(Option::as_ref));
        }
    }

    /// Says that what is sent to a port may come back from there (a team of NICs, of which nobody at their other ends knows): a station
    /// that is behind another port is then moved to it by an announcement only, and not if it has just been announced from here.
    pub fn set_reflecting(&mut self, number: PortNumber, is_reflecting: bool) {
        if let Some(port) = self.ports.get_mut(usize::from(number)).and_then(Option::as_mut) {
            port.is_reflecting = is_reflecting;
            self.generation += 1;
        }
    }

    /// The stations of a port's switch that are behind other ports.
    pub fn stations_beyond(&self, number: PortNumber) -> impl Iterator<Item = &Station> {
        let switch = self.port(number).ok().map(|port| port.switch);
        self.stations.iter().filter(move |station| station.port != number && Some(station.domain.switch) == switch)
    }

    /// A station is announced from here.
    pub fn hold_station(&mut self, domain: Domain, mac: MacAddress, now: Millis) {
        if let Some((station, _)) = self.stations.find(domain, mac, now) {
            self.stations.hold(station, now + HOLD);
        }
    }

    /// A port's policy.
    pub fn policy(&self, number: PortNumber) -> Result<&PortPolicy, PortError> {
        Ok(&self.port(number)?.policy)
    }

    /// A port's counters.
    pub fn counters(&self, number: PortNumber) -> Result<&Counters, PortError> {
        Ok(&self.port(number)?.counters)
    }

    /// The bytes that a port's meters counted, by the number of the rule.
    pub fn meters(&self, number: PortNumber) -> Result<impl Iterator<Item = (u32, u64)>, PortError> {
        Ok(self.port(number)?.meters.iter().map(|(rule, bytes)| (*rule, *bytes)))
    }

    /// The stations that are known.
    pub fn stations(&self) -> impl Iterator<Item = &Station> {
        self.stations.iter()
    }

    /// How many connections are remembered.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How often the slow path decided.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Counts a frame that did not get as far as [`Switch::receive`].
    pub fn refuse(&mut self, number: PortNumber, reason: DropReason) {
        if let Some(port) = self.ports.get_mut(usize::from(number)).and_then(Option::as_mut) {
            port.counters.drop(reason);
        }
    }

    /// Forgets what is over, a part at a time; to be called some times in a second.
    pub fn tick(&mut self, now: Millis) {
        self.stations.sweep(SWEEP, now);
        self.connections.sweep(SWEEP, now);
    }

    /// Tells how much time passed since it was last told: bandwidth comes with time.
    pub fn elapse(&mut self, nanos: u64) {
        if !self.limited {
            return;
        }
        self.elapsed += nanos;
        if self.elapsed >= bandwidth::STEP {
            let nanos = std::mem::take(&mut self.elapsed);
            self.ports.iter_mut().flatten().filter_map(|port| port.limits.as_mut()).for_each(|limits| limits.refill(nanos));
        }
    }

    /// Whether a port has bandwidth left to send.
    pub fn may_send(&self, number: PortNumber) -> bool {
        let port = self.ports.get(usize::from(number)).and_then(Option::as_ref);
        port.is_none_or(Port::may_send)
    }

    /// Takes a frame of `length` bytes from a port; `head` is its first [`crate::frame::HEADER_BYTES`] bytes, which nobody else can
    /// change.
    pub fn receive(&mut self, number: PortNumber, head: &[u8], length: usize, now: Millis, sink: &mut impl Sink) -> Taken {
        let Some(port) = self.ports.get_mut(usize::from(number)).and_then(Option::as_mut) else { return Taken::Yes };
        // Most flows are known by what is most common, so that nothing needs to be taken apart.
        let (key, parsed) = match FlowKey::quick(number, head, length) {
            Some(key) => (key, None),
            None => match Frame::parse(head, length) {
                Ok(frame) => (FlowKey::new(number, &frame), Some(frame)),
                Err(error) => {
                    let taken = port.sent(length as u64);
                    port.counters.drop(error.into());
                    return taken;
                }
            },
        };
        let hash = self.flows.hash(&key);
        let place = match self.flows.find(&key, hash).filter(|place| self.is_true(*place, now)) {
            Some(place) => place,
            None => {
                let Some(frame) = parsed.or_else(|| Frame::parse(head, length).ok()) else { return Taken::Yes };
                self.decisions += 1;
                let basis = self.decide(number, &frame, now);
                self.keep_connections(now);
                let flow = Flow::new(key, self.generation, basis, &self.list, &self.hits, now);
                let Switch { flows, rules, .. } = self;
                flows.insert(hash, flow, |old| rules.settle(old))
            }
        };
        if self.limited && self.holds(number, place) {
            return Taken::Held;
        }
        self.execute(number, place, length as u64, hash, now, sink)
    }

    /// Whether a flow's receiver is behind a wire that has nothing left for this port.
    fn holds(&mut self, number: PortNumber, place: usize) -> bool {
        let Some(wire) = self.flows.at(place).and_then(|flow| flow.basis.wire) else { return false };
        let limits = self.ports[usize::from(wire)].as_mut().and_then(|port| port.limits.as_mut());
        limits.is_some_and(|limits| !limits.may_pass(number))
    }

    /// Keeps the connections of the list that was just made.
    fn keep_connections(&mut self, now: Millis) {
        for action in &self.list {
            if let Action::Track(connection) = action {
                self.connections.keep(*connection, now);
            }
        }
    }

    /// Whether a flow's list is still what the slow path would decide. Keeps its sender and its connections.
    #[inline]
    fn is_true(&mut self, place: usize, now: Millis) -> bool {
        // Each part only grows, so the sum is another one after any change.
        let version = self.generation + self.stations.changes() + self.connections.changes();
        let Some(flow) = self.flows.at(place) else { return false };
        // Once in a millisecond is enough where nothing has changed.
        flow.checked == (now, version) || self.check(place, now, version)
    }

    fn check(&mut self, place: usize, now: Millis, version: u64) -> bool {
        let Switch { flows, stations, connections, generation, .. } = self;
        let Some(flow) = flows.at(place) else { return false };
        let is_true = flow.generation == *generation
            && match flow.basis.receiver {
                Receiver::Fixed => true,
                Receiver::Known(station) => stations.holds(station, now),
                Receiver::Unknown(news) => news == stations.news,
            }
            && flow.basis.opened.is_none_or(|opened| opened == connections.opened)
            && match flow.basis.sender {
                Some(sender) => stations.touch(sender, now),
                // There may be room for it by now.
                None => now.saturating_sub(flow.decided) < RETRY,
            }
            && flow.actions.iter().all(|action| match action {
                Action::Track(connection) => connections.keep(*connection, now),
                _ => true,
            });
        if is_true {
            flow.checked = (now, version);
        }
        is_true
    }

    fn execute(&mut self, number: PortNumber, place: usize, bytes: u64, hash: u64, now: Millis, sink: &mut impl Sink) -> Taken {
        let Switch { flows, ports, .. } = self;
        let Some(flow) = flows.at(place) else { return Taken::Yes };
        let Some(port) = ports[usize::from(number)].as_mut() else { return Taken::Yes };
        let taken = port.sent(bytes);
        flow.used = now;
        flow.count.packets += 1;
        flow.count.bytes += bytes;
        for action in &flow.actions {
            match *action {
                // It was kept when the list was found to be true.
                Action::Track(_) => {}
                Action::Limit => {
                    let Some(port) = ports[usize::from(number)].as_mut() else { return taken };
                    if !port.storm.take(now) {
                        port.counters.drop(DropReason::Storm);
                        return taken;
                    }
                }
                Action::Meter { port, rule } => {
                    if let Some(port) = ports[usize::from(port)].as_mut() {
                        *port.meters.entry(rule).or_default() += bytes;
                    }
                }
                Action::Deliver { port: receiver, edit } => {
                    let Some(port) = ports[usize::from(receiver)].as_mut() else { continue };
                    if let Some(limits) = &mut port.limits {
                        if !limits.may_pass(number) {
                            port.counters.drop(DropReason::Bandwidth);
                            continue;
                        }
                        limits.passed(number, bytes);
                    }
                    match sink.deliver(receiver, edit, hash) {
                        Ok(()) => {
                            port.counters.tx_packets += 1;
                            port.counters.tx_bytes += bytes;
                        }
                        Err(reason) => port.counters.drop(reason),
                    }
                }
                Action::Drop { port, reason } => {
                    if let Some(port) = ports[usize::from(port)].as_mut() {
                        port.counters.drop(reason);
                    }
                }
            }
        }
        taken
    }
}
