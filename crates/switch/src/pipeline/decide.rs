//! The slow path: what is done to a flow, decided through all layers.

use super::port::Port;
use super::{Action, PortNumber, Switch, SwitchNumber, TagEdit};
use crate::acl::{Direction, Subject, Verdict};
use crate::counters::DropReason;
use crate::frame::{Frame, ICMP, ICMPV6, Ip, Transport, UDP};
use crate::policy::{Mirroring, Permission};
use crate::tables::{Basis, Connections, Learned, Millis, Receiver, Ref};
use crate::vlan::Refused;

const DHCP: (u16, u16) = (67, 68);
const DHCPV6: (u16, u16) = (547, 546);
/// ICMP: redirect, router advertisement (RFC 792, RFC 1256).
const ICMP_ROUTER: [u8; 2] = [5, 9];
/// ICMPv6: router advertisement, redirect (RFC 4861).
const ICMPV6_ROUTER: [u8; 2] = [134, 137];

impl Switch {
    /// Makes the list of a flow in `self.list`; returns what it rests on.
    pub(super) fn decide(&mut self, number: PortNumber, frame: &Frame, now: Millis) -> Basis {
        self.list.clear();
        let (sender, receiver) = match self.admit(number, frame, now) {
            Ok((sender, switch, vlan)) => (sender, self.forward(number, switch, frame, vlan, now)),
            Err(reason) => {
                self.list.clear();
                self.list.push(Action::Drop { port: number, reason });
                (None, Receiver::Fixed)
            }
        };
        let is_denial = |action: &Action| matches!(action, Action::Drop { reason: DropReason::ExtendedAcl, .. });
        let opened = self.list.iter().any(is_denial).then_some(self.connections.opened);
        let is_wire = |port: &PortNumber| self.ports[usize::from(*port)].as_ref().is_some_and(Port::is_wire);
        let receivers = self.list.iter().filter_map(|action| match action {
            Action::Deliver { port, .. } => Some(*port),
            _ => None,
        });
        // What goes to many must not wait for one of them.
        let wire = if matches!(receiver, Receiver::Known(_)) { receivers.into_iter().find(is_wire) } else { None };
        Basis { sender, receiver, opened, wire }
    }

    /// The sender's side: what its policy says, and where it is. Returns the sender, if it was learned, its switch, and the frame's VLAN.
    fn admit(&mut self, number: PortNumber, frame: &Frame, now: Millis) -> Result<(Option<Ref>, SwitchNumber, u16), DropReason> {
        let Some(port) = self.ports[usize::from(number)].as_mut() else { return Err(DropReason::Vlan) };
        if !frame.source.is_station() || frame.destination.is_link_local() {
            return Err(DropReason::Address);
        }
        guard(port, frame)?;
        let vlan = port.policy.vlan.ingress(frame).map_err(|refused| match refused {
            Refused::Tagged => DropReason::Tagged,
            Refused::NotAllowed => DropReason::Vlan,
        })?;
        let subject = Subject::new(frame, Direction::Outbound);
        judge(port, number, &subject, &mut self.connections, &mut self.list, now)?;
        let pinned = port.only_station().is_some();
        let most = port.policy.max_stations;
        let sender = match self.stations.learn(self.domains.of(port.switch, vlan), frame.source, number, pinned, most, now) {
            Learned::Here(sender) => Some(sender),
            Learned::Moved(sender) => {
                port.counters.moves += 1;
                Some(sender)
            }
            Learned::Full => {
                port.counters.not_learned += 1;
                None
            }
            Learned::Taken => return Err(DropReason::Taken),
        };
        Ok((sender, port.switch, vlan))
    }

    /// The receivers' side.
    fn forward(&mut self, number: PortNumber, switch: SwitchNumber, frame: &Frame, vlan: u16, now: Millis) -> Receiver {
        // A router between subnets would stand here: a frame to its address goes on with other addresses, in another VLAN.
        let domain = self.domains.of(switch, vlan);
        let known = if frame.destination.is_group() { None } else { self.stations.find(domain, frame.destination, now) };
        let receiver = match known {
            Some((station, port)) => {
                if port == number {
                    self.list.push(Action::Drop { port: number, reason: DropReason::SamePort });
                } else {
                    self.pass(port, frame, vlan, true, now);
                }
                Receiver::Known(station)
            }
            None => {
                self.list.push(Action::Limit);
                for port in 0..self.ports.len() as PortNumber {
                    if port != number && self.wants(port, switch, frame) {
                        self.pass(port, frame, vlan, false, now);
                    }
                }
                if frame.destination.is_group() { Receiver::Fixed } else { Receiver::Unknown(self.stations.news) }
            }
        };
        self.mirror(number, switch);
        receiver
    }

    /// Whether a port is to get what nobody is known to be the receiver of.
    fn wants(&self, number: PortNumber, switch: SwitchNumber, frame: &Frame) -> bool {
        let Some(port) = &self.ports[usize::from(number)] else { return false };
        port.switch == switch && (frame.destination.is_group() || port.only_station().is_none_or(|mac| mac == frame.destination))
    }

    /// Adds what is done for one receiver. That a port is not in the VLAN counts only for the one receiver that there is.
    fn pass(&mut self, number: PortNumber, frame: &Frame, vlan: u16, is_only: bool, now: Millis) {
        let Some(port) = self.ports[usize::from(number)].as_mut() else { return };
        let Some(wire) = port.policy.vlan.egress(vlan) else {
            if is_only {
                self.list.push(Action::Drop { port: number, reason: DropReason::Vlan });
            }
            return;
        };
        let start = self.list.len();
        let subject = Subject::new(frame, Direction::Inbound);
        let edit = judge(port, number, &subject, &mut self.connections, &mut self.list, now)
            .and_then(|()| wire.edit(frame.tag, frame.stacked).ok_or(DropReason::Tagged));
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
        let was_sent = receivers(&self.list, &|_| true);
        if !(is(sender, Mirroring::Source) && was_sent || receivers(&self.list, &|port| is(port, Mirroring::Source))) {
            return;
        }
        let destinations: Vec<PortNumber> = (0..self.ports.len() as PortNumber)
            .filter(|port| {
                *port != sender && is(*port, Mirroring::Destination) && !receivers(&self.list, &|other| other == *port)
            })
            .collect();
        self.list.extend(destinations.into_iter().map(|port| Action::Deliver { port, edit: TagEdit::Keep }));
    }
}

/// Spoofed addresses, rogue DHCP servers and routers.
fn guard(port: &Port, frame: &Frame) -> Result<(), DropReason> {
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

/// A port's rules of both kinds. Adds what is to be counted and kept.
fn judge(
    port: &Port,
    number: PortNumber,
    subject: &Subject,
    connections: &mut Connections,
    list: &mut Vec<Action>,
    now: Millis,
) -> Result<(), DropReason> {
    if !port.acl.allows(subject) {
        return Err(DropReason::Acl);
    }
    let connection = subject.connection(number);
    if let Some(answered) = connection.and_then(|key| connections.answered(&key, subject.direction, now)) {
        list.push(Action::Track(answered));
    } else {
        match (port.extended.decide(subject), connection) {
            (Verdict::Deny, _) => return Err(DropReason::ExtendedAcl),
            (Verdict::Allow, _) | (Verdict::Remember { .. }, None) => {}
            (Verdict::Remember { idle_timeout_ms }, Some(key)) => {
                let most = port.policy.max_connections;
                let opened = connections.open(key, subject.direction, idle_timeout_ms, most, now);
                list.push(Action::Track(opened.ok_or(DropReason::Connections)?));
            }
        }
    }
    if let Some(rule) = port.acl.meter(subject) {
        list.push(Action::Meter { port: number, rule });
    }
    Ok(())
}
