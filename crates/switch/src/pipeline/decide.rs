//! The slow path: what is done to a flow, decided through all layers.

use super::port::{Domains, Port};
use super::trace::{Destination, Step};
use super::{Action, HOLD, PortNumber, Switch, SwitchNumber, TagEdit};
use crate::acl::{ConnectionKey, Direction, Subject, Verdict};
use crate::counters::DropReason;
use crate::frame::{Frame, ICMP, ICMPV6, Ip, Transport, UDP};
use crate::mac::MacAddress;
use crate::policy::{Mirroring, Permission};
use crate::tables::{Basis, Connections, Domain, Learned, Millis, Receiver, Ref, Remembered, Stations};
use crate::vlan::Refused;

const DHCP: (u16, u16) = (67, 68);
const DHCPV6: (u16, u16) = (547, 546);
/// ICMP: redirect, router advertisement (RFC 792, RFC 1256).
const ICMP_ROUTER: [u8; 2] = [5, 9];
/// ICMPv6: router advertisement, redirect (RFC 4861).
const ICMPV6_ROUTER: [u8; 2] = [134, 137];

/// What is known, as the decision reads and changes it: the tables, or for a trace something that leaves them as they are.
pub(super) trait Memory {
    /// Who is where.
    fn stations(&self) -> &Stations;
    /// The connections.
    fn connections(&self) -> &Connections;
    /// As [`Stations::learn`].
    fn learn(&mut self, domain: Domain, mac: MacAddress, port: u16, pinned: bool, most: u32, now: Millis) -> Learned;
    /// As [`Stations::find`].
    fn find(&self, domain: Domain, mac: MacAddress, now: Millis) -> Option<(Ref, u16)> {
        self.stations().find(domain, mac, now)
    }
    /// As [`Connections::open`].
    fn open(&mut self, key: ConnectionKey, opened: Direction, by: Remembered, most: u32, now: Millis) -> Option<Ref>;
    /// Hears what was decided, and why.
    fn note(&mut self, step: impl FnOnce() -> Step);
}

/// The tables themselves. Nobody listens.
struct Tables<'a> {
    stations: &'a mut Stations,
    connections: &'a mut Connections,
}

impl Memory for Tables<'_> {
    fn stations(&self) -> &Stations {
        self.stations
    }

    fn connections(&self) -> &Connections {
        self.connections
    }

    fn learn(&mut self, domain: Domain, mac: MacAddress, port: u16, pinned: bool, most: u32, now: Millis) -> Learned {
        self.stations.learn(domain, mac, port, pinned, most, now)
    }

    fn open(&mut self, key: ConnectionKey, opened: Direction, by: Remembered, most: u32, now: Millis) -> Option<Ref> {
        self.connections.open(key, opened, by, most, now)
    }

    #[inline(always)]
    fn note(&mut self, _: impl FnOnce() -> Step) {}
}

/// One decision in the making.
pub(super) struct Decider<'a, M> {
    pub ports: &'a [Option<Port>],
    pub domains: &'a Domains,
    pub memory: M,
    pub list: &'a mut Vec<Action>,
    /// The rules that decided, as places to count at.
    pub hits: &'a mut Vec<Ref>,
    pub now: Millis,
}

impl Switch {
    /// Makes the list of a flow in `self.list`; returns what it rests on.
    pub(super) fn decide(&mut self, number: PortNumber, frame: &Frame, now: Millis) -> Basis {
        let Switch { ports, domains, stations, connections, list, hits, .. } = self;
        let memory = Tables { stations, connections };
        let (learned, receiver) = Decider { ports, domains, memory, list, hits, now }.decide(number, frame);
        if let (Some(port), Some(learned)) = (ports[usize::from(number)].as_mut(), learned) {
            match learned {
                Learned::Moved(_) => port.counters.moves += 1,
                Learned::Full => port.counters.not_learned += 1,
                Learned::New(_) | Learned::Here(_) | Learned::Taken => {}
            }
        }
        let station = learned.and_then(Learned::station);
        let is_reflecting = ports[usize::from(number)].as_ref().is_some_and(|port| port.is_reflecting);
        if let Some(station) = station.filter(|_| frame.is_announcement && !is_reflecting) {
            stations.hold(station, now + HOLD);
        }
        let is_denial = |action: &Action| matches!(action, Action::Drop { reason: DropReason::ExtendedAcl, .. });
        let opened = list.iter().any(is_denial).then_some(connections.opened);
        // A connection that there was no room for is tried again as a sender is that could not be learned, and an announcement is noted
        // again.
        let is_full = |action: &Action| matches!(action, Action::Drop { reason: DropReason::Connections, .. });
        let sender = station.filter(|_| !frame.is_announcement && !list.iter().any(is_full));
        let is_wire = |port: &PortNumber| ports[usize::from(*port)].as_ref().is_some_and(Port::is_wire);
        let mut receivers = list.iter().filter_map(|action| match action {
            Action::Deliver { port, .. } => Some(*port),
            _ => None,
        });
        // What goes to many must not wait for one of them.
        let wire = if matches!(receiver, Receiver::Known(_)) { receivers.find(is_wire) } else { None };
        Basis { sender, receiver, opened, wire }
    }
}

impl<M: Memory> Decider<'_, M> {
    /// Makes the list of a flow. Returns what became of its sender, if it came to that, and what is known of its receiver.
    pub fn decide(&mut self, number: PortNumber, frame: &Frame) -> (Option<Learned>, Receiver) {
        self.list.clear();
        self.hits.clear();
        let mut learned = None;
        let receiver = match self.admit(number, frame, &mut learned) {
            Ok((switch, vlan)) => self.forward(number, switch, frame, vlan),
            Err(reason) => {
                self.list.clear();
                self.list.push(Action::Drop { port: number, reason });
                Receiver::Fixed
            }
        };
        (learned, receiver)
    }

    /// The sender's side: what its policy says, and where it is. Returns its switch, and the frame's VLAN.
    fn admit(
        &mut self,
        number: PortNumber,
        frame: &Frame,
        learned: &mut Option<Learned>,
    ) -> Result<(SwitchNumber, u16), DropReason> {
        let Some(port) = &self.ports[usize::from(number)] else { return Err(DropReason::Vlan) };
        let guarded = guard(port, frame);
        self.memory.note(|| Step::Guard { port: number, refused: guarded.err() });
        guarded?;
        let vlan = port.policy.vlan.ingress(frame).map_err(|refused| match refused {
            Refused::Tagged => DropReason::Tagged,
            Refused::NotAllowed => DropReason::Vlan,
        });
        self.memory.note(|| Step::VlanIn { port: number, vlan });
        let vlan = vlan?;
        let subject = Subject::new(frame, Direction::Outbound);
        self.judge(port, number, &subject)?;
        let domain = self.domains.of(port.switch, vlan);
        if port.is_reflecting && self.is_reflected(number, domain, frame) {
            return Err(DropReason::Reflected);
        }
        let pinned = port.only_station().is_some();
        let sender = self.memory.learn(domain, frame.source, number, pinned, port.policy.max_stations, self.now);
        self.memory.note(|| Step::Learning { port: number, vlan: domain.vlan, mac: frame.source, learned: sender });
        *learned = Some(sender);
        if sender == Learned::Taken { Err(DropReason::Taken) } else { Ok((port.switch, vlan)) }
    }

    /// Whether a frame is one of the switch's own that came back, as far as can be told.
    fn is_reflected(&self, number: PortNumber, domain: Domain, frame: &Frame) -> bool {
        let known = self.memory.find(domain, frame.source, self.now).filter(|(_, port)| *port != number);
        known.is_some_and(|(station, _)| !frame.is_announcement || self.memory.stations().is_held(station, self.now))
    }

    /// The receivers' side.
    fn forward(&mut self, number: PortNumber, switch: SwitchNumber, frame: &Frame, vlan: u16) -> Receiver {
        // A router between subnets would stand here: a frame to its address goes on with other addresses, in another VLAN.
        let domain = self.domains.of(switch, vlan);
        let is_group = frame.destination.is_group();
        let known = if is_group { None } else { self.memory.find(domain, frame.destination, self.now) };
        let destination = match known {
            Some((_, port)) if port == number => Destination::Sender,
            Some((_, port)) => Destination::Known(port),
            None if is_group => Destination::Group,
            None => Destination::Unknown,
        };
        self.memory.note(|| Step::Forwarding { port: number, mac: frame.destination, destination });
        let receiver = match (destination, known) {
            (Destination::Sender, Some((station, _))) => {
                self.list.push(Action::Drop { port: number, reason: DropReason::SamePort });
                Receiver::Known(station)
            }
            (_, Some((station, port))) => {
                self.pass(port, frame, vlan, true);
                Receiver::Known(station)
            }
            (_, None) => {
                self.list.push(Action::Limit);
                for port in 0..self.ports.len() as PortNumber {
                    if port != number && self.wants(port, switch, frame) {
                        self.pass(port, frame, vlan, false);
                    }
                }
                if is_group { Receiver::Fixed } else { Receiver::Unknown(self.memory.stations().news) }
            }
        };
        self.mirror(number, switch);
        receiver
    }

    /// Whether a port is to get what nobody is known to be the receiver of.
    fn wants(&mut self, number: PortNumber, switch: SwitchNumber, frame: &Frame) -> bool {
        let Some(port) = self.ports[usize::from(number)].as_ref().filter(|port| port.switch == switch) else { return false };
        let wants = frame.destination.is_group() || port.only_station().is_none_or(|mac| mac == frame.destination);
        if !wants {
            self.memory.note(|| Step::NotForIt { port: number });
        }
        wants
    }

    /// Adds what is done for one receiver. That a port is not in the VLAN counts only for the one receiver that there is.
    fn pass(&mut self, number: PortNumber, frame: &Frame, vlan: u16, is_only: bool) {
        let Some(port) = &self.ports[usize::from(number)] else { return };
        let wire = port.policy.vlan.egress(vlan);
        self.memory.note(|| Step::VlanOut { port: number, vlan, wire });
        let Some(wire) = wire else {
            if is_only {
                self.list.push(Action::Drop { port: number, reason: DropReason::Vlan });
            }
            return;
        };
        let start = self.list.len();
        let subject = Subject::new(frame, Direction::Inbound);
        let edit = self.judge(port, number, &subject).and_then(|()| {
            let edit = wire.edit(frame.tag, frame.stacked).ok_or(DropReason::Tagged);
            self.memory.note(|| Step::Tag { port: number, edit });
            edit
        });
        match edit {
            // An overlay would add its encapsulation here.
            Ok(edit) => self.list.push(Action::Deliver { port: number, edit }),
            Err(reason) => {
                self.list.truncate(start);
                self.list.push(Action::Drop { port: number, reason });
            }
        }
    }

    /// Adds copies, as the sender sent it, if it or a receiver is mirrored.
    fn mirror(&mut self, sender: PortNumber, switch: SwitchNumber) {
        let is = |number: PortNumber, role| {
            let port = self.ports[usize::from(number)].as_ref();
            port.is_some_and(|port| port.switch == switch && port.policy.mirroring == role)
        };
        let receivers = |list: &[Action], fits: &dyn Fn(PortNumber) -> bool| {
            list.iter().any(|action| matches!(action, Action::Deliver { port, .. } if fits(*port)))
        };
        let was_sent = receivers(self.list, &|_| true);
        if !(is(sender, Mirroring::Source) && was_sent || receivers(self.list, &|port| is(port, Mirroring::Source))) {
            return;
        }
        let destinations: Vec<PortNumber> = (0..self.ports.len() as PortNumber)
            .filter(|port| *port != sender && is(*port, Mirroring::Destination) && !receivers(self.list, &|other| other == *port))
            .collect();
        self.list.extend(destinations.iter().map(|port| Action::Deliver { port: *port, edit: TagEdit::Keep }));
        destinations.into_iter().for_each(|port| self.memory.note(|| Step::Mirror { port }));
    }

    /// A port's rules of both kinds. Adds what is to be counted and kept.
    fn judge(&mut self, port: &Port, number: PortNumber, subject: &Subject) -> Result<(), DropReason> {
        let direction = subject.direction;
        let acl = port.acl.decide(subject);
        self.memory.note(|| Step::Acl { port: number, direction, decided: acl });
        self.hits.extend([acl.mac, acl.ip].into_iter().flatten().filter_map(|rule| port.places.acl.get(rule as usize)));
        if !acl.allowed {
            return Err(DropReason::Acl);
        }
        let connection = subject.connection(number);
        let answered = connection.and_then(|key| self.memory.connections().answered(&key, direction, self.now));
        if let Some((answered, rule)) = answered {
            self.hits.push(rule);
            self.memory.note(|| Step::Answer { port: number, direction });
            self.list.push(Action::Track(answered));
        } else {
            let (verdict, rule) = port.extended.decide(subject);
            self.memory.note(|| Step::ExtendedAcl { port: number, direction, verdict, rule });
            let place = port.places.extended(rule);
            self.hits.extend(rule.map(|_| place));
            match (verdict, connection) {
                (Verdict::Deny, _) => return Err(DropReason::ExtendedAcl),
                (Verdict::Allow, _) | (Verdict::Remember { .. }, None) => {}
                (Verdict::Remember { idle_timeout_ms }, Some(key)) => {
                    let most = port.policy.max_connections;
                    let by = Remembered { idle_timeout: idle_timeout_ms, rule: place };
                    let opened = self.memory.open(key, direction, by, most, self.now);
                    self.memory.note(|| Step::Connection { port: number, direction, remembered: opened.is_some() });
                    self.list.push(Action::Track(opened.ok_or(DropReason::Connections)?));
                }
            }
        }
        if let Some(rule) = port.acl.meter(subject) {
            self.hits.extend(port.places.acl.get(rule as usize));
            self.memory.note(|| Step::Meter { port: number, direction, rule });
            self.list.push(Action::Meter { port: number, rule });
        }
        Ok(())
    }
}

/// Reserved and spoofed addresses, rogue DHCP servers and routers.
fn guard(port: &Port, frame: &Frame) -> Result<(), DropReason> {
    if !frame.source.is_station() || frame.destination.is_link_local() {
        return Err(DropReason::Address);
    }
    let policy = &port.policy;
    if policy.mac_spoofing == Permission::Deny && policy.mac != Some(frame.source) {
        return Err(DropReason::Spoofed);
    }
    let Some(ip) = &frame.ip else { return Ok(()) };
    // Headers that hide what they carry hide a router advertisement (RFC 7113), or a DHCP answer.
    let is_hidden = ip.transport == Transport::Unknown;
    let from_to =
        |ports: (u16, u16)| ip.protocol == UDP && ip.transport == Transport::Ports { source: ports.0, destination: ports.1 };
    if policy.dhcp_server == Permission::Deny && (is_hidden || from_to(DHCP) || from_to(DHCPV6)) {
        return Err(DropReason::DhcpGuard);
    }
    if policy.router == Permission::Deny && (is_hidden || is_of_router(ip)) {
        return Err(DropReason::RouterGuard);
    }
    Ok(())
}

fn is_of_router(ip: &Ip) -> bool {
    match ip.transport {
        Transport::Icmp { kind, .. } if ip.protocol == ICMP => ICMP_ROUTER.contains(&kind),
        Transport::Icmp { kind, .. } if ip.protocol == ICMPV6 => ICMPV6_ROUTER.contains(&kind),
        _ => false,
    }
}
