//! Truth tables of the whole pipeline, and its properties.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::acl::{Address, Effect, ExtendedRule, PortRange, PrefixAction, PrefixRule, PrefixVerdict, Verdict};
use crate::frame::build::{ethernet, mac};
use crate::frame::{HEADER_BYTES, TCP};
use crate::mac::MacAddress;
use crate::policy::{Mirroring, Permission};
use crate::tables::{Learned, Ref};
use crate::vlan::{Vlan, VlanMode, VlanRange, Wire};

/// A switch and what it delivered last.
struct Lab {
    switch: Switch,
    now: Millis,
}

#[derive(Default)]
struct Got(BTreeMap<PortNumber, TagEdit>);

impl Sink for Got {
    fn deliver(&mut self, port: PortNumber, edit: TagEdit, _: u64) -> Result<(), DropReason> {
        assert!(self.0.insert(port, edit).is_none(), "port {port} got two copies");
        Ok(())
    }
}

impl Lab {
    fn new(policies: Vec<PortPolicy>) -> Lab {
        let mut switch = Switch::new(Limits { station_age: 1000, flows: 64, stations: 64, ..Limits::default() });
        for policy in policies {
            switch.add_port(policy).unwrap();
        }
        Lab { switch, now: 0 }
    }

    /// Sends a frame; returns who got it, and how.
    fn send(&mut self, port: PortNumber, frame: &[u8]) -> BTreeMap<PortNumber, TagEdit> {
        let mut got = Got::default();
        self.switch.receive(port, &frame[..frame.len().min(HEADER_BYTES)], frame.len(), self.now, &mut got);
        got.0
    }

    fn to(&mut self, port: PortNumber, frame: &[u8]) -> BTreeSet<PortNumber> {
        self.send(port, frame).into_keys().collect()
    }

    fn drops(&self, port: PortNumber, reason: DropReason) -> u64 {
        self.switch.counters(port).unwrap().drops(reason)
    }
}

fn open(vlan: VlanMode) -> PortPolicy {
    PortPolicy { vlan, ..PortPolicy::default() }
}

fn plain(count: usize) -> Vec<PortPolicy> {
    vec![PortPolicy::default(); count]
}

fn vlan(number: u16) -> Vlan {
    number.try_into().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn arp(source: u8, destination: MacAddress) -> Vec<u8> {
    ethernet(mac(source), destination).other(0x0806)
}

fn set<const N: usize>(ports: [PortNumber; N]) -> BTreeSet<PortNumber> {
    ports.into()
}

#[test]
fn stations_are_learned_followed_and_forgotten() {
    let mut lab = Lab::new(plain(3));
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([1, 2]), "unknown: to all");
    assert_eq!(lab.to(1, &arp(2, mac(1))), set([0]));
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([1]), "the flow that flooded is decided anew");
    assert_eq!(lab.to(2, &arp(2, MacAddress::BROADCAST)), set([0, 1]), "it has moved");
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([2]));
    assert_eq!(lab.switch.counters(2).unwrap().moves, 1);
    assert_eq!(lab.to(1, &arp(3, mac(3))), set([]), "to itself");
    assert_eq!(lab.to(1, &arp(4, mac(3))), set([]), "to its neighbour at the same port");
    assert_eq!(lab.drops(1, DropReason::SamePort), 2);
    lab.now = 900;
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([2]));
    lab.now = 1100;
    assert_eq!(lab.to(2, &arp(2, mac(1))), set([0]), "a frame by a known flow keeps its sender");
    lab.now = 3000;
    assert_eq!(lab.to(1, &arp(3, mac(1))), set([0, 2]), "both are silent for too long");
    lab.switch.tick(lab.now);
    assert_eq!(lab.switch.stations().count(), 1);
}

#[test]
fn a_station_that_was_silent_for_too_long_is_found_as_soon_as_it_speaks() {
    let mut lab = Lab::new(plain(3));
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    lab.now = 1500;
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([1, 2]), "it is old, and not swept yet");
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([1]), "the flow that flooded is decided anew");
}

#[test]
fn a_flow_is_decided_once() {
    let mut lab = Lab::new(plain(2));
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    let frame = ethernet(mac(1), mac(2)).tcp((ip("10.0.0.1"), 1), (ip("10.0.0.2"), 2));
    (0..100).for_each(|_| assert_eq!(lab.to(0, &frame), set([1])));
    assert_eq!(lab.switch.decisions(), 2);
    lab.switch.set_policy(1, open(VlanMode::Access { vlan: vlan(5) })).unwrap();
    assert_eq!(lab.to(0, &frame), set([]), "a new policy takes effect at once");
}

#[test]
fn a_flood_of_addresses_takes_no_more_than_a_ports_share() {
    let few = PortPolicy { max_stations: 4, ..PortPolicy::default() };
    let mut lab = Lab::new(vec![few, PortPolicy::default()]);
    for number in 10..30 {
        lab.to(0, &arp(number, MacAddress::BROADCAST));
    }
    assert_eq!(lab.switch.stations().count(), 4);
    assert_eq!(lab.switch.counters(0).unwrap().not_learned, 16);
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    assert_eq!(lab.to(0, &arp(29, mac(2))), set([1]), "others are still learned");
    lab.now = 2500;
    lab.switch.tick(lab.now);
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    lab.to(0, &arp(29, mac(2)));
    assert_eq!(lab.to(1, &arp(2, mac(29))), set([0]));
    assert!(lab.switch.stations().any(|station| station.mac == mac(29)), "its flow does not hold it back when there is room");
}

/// Every kind of port sends an untagged frame, or one with a tag, to every other.
#[test]
fn vlans_are_a_truth_table() {
    let range = |first, last| VlanRange { first: vlan(first), last: vlan(last) };
    let trunk = |native: Option<u16>, allowed| open(VlanMode::Trunk { native: native.map(vlan), allowed });
    let ports = || {
        vec![
            open(VlanMode::Untagged),
            open(VlanMode::Access { vlan: vlan(10) }),
            open(VlanMode::Access { vlan: vlan(20) }),
            trunk(None, vec![range(10, 15)]),
            trunk(Some(20), vec![range(10, 10)]),
            open(VlanMode::Untagged),
            open(VlanMode::Access { vlan: vlan(10) }),
        ]
    };
    use TagEdit::*;
    // Sender, its tags, and who gets it how.
    type Row<'a> = (PortNumber, &'a [u16], &'a [(PortNumber, TagEdit)]);
    let table: &[Row<'_>] = &[
        (0, &[], &[(3, Keep), (5, Keep)]),
        (0, &[0], &[(3, Pop), (5, Pop)]),
        (0, &[10], &[]),
        (1, &[], &[(3, Push(10)), (4, Push(10)), (6, Keep)]),
        (1, &[0], &[(3, Replace(10)), (4, Replace(10)), (6, Pop)]),
        (1, &[10], &[]),
        // A tag behind a priority would be the frame's own after the first is taken off.
        (1, &[0, 20], &[]),
        (2, &[], &[(4, Keep)]),
        (3, &[], &[(0, Keep), (5, Keep)]),
        (3, &[10], &[(1, Pop), (4, Keep), (6, Pop)]),
        (3, &[15], &[]),
        (3, &[16], &[]),
        (3, &[20], &[]),
        // The same through a trunk: nobody who gets it without its tag gets it at all.
        (3, &[10, 20], &[(4, Keep)]),
        (4, &[], &[(2, Keep)]),
        (4, &[20], &[(2, Pop)]),
        (4, &[10], &[(1, Pop), (3, Keep), (6, Pop)]),
        (4, &[11], &[]),
    ];
    for (sender, tags, expected) in table {
        let mut lab = Lab::new(ports());
        let start = ethernet(mac(1), MacAddress::BROADCAST);
        let frame = tags.iter().fold(start, |frame, tag| frame.tag(*tag)).other(0x0806);
        assert_eq!(lab.send(*sender, &frame), expected.iter().copied().collect(), "port {sender} with tags {tags:?}");
    }
}

#[test]
fn stations_of_two_vlans_do_not_know_each_other() {
    let access = |number| open(VlanMode::Access { vlan: vlan(number) });
    let mut lab = Lab::new(vec![access(10), access(10), access(20), access(20)]);
    lab.to(0, &arp(1, MacAddress::BROADCAST));
    assert_eq!(lab.to(2, &arp(1, MacAddress::BROADCAST)), set([3]), "the same address in another VLAN is another station");
    assert_eq!(lab.to(1, &arp(2, mac(1))), set([0]));
    assert_eq!(lab.to(3, &arp(2, mac(1))), set([2]));
}

#[test]
fn switches_share_nothing() {
    let source = PortPolicy { mirroring: Mirroring::Source, ..PortPolicy::default() };
    let copies = PortPolicy { mirroring: Mirroring::Destination, ..open(VlanMode::Access { vlan: vlan(99) }) };
    let mut lab = Lab::new(vec![source.clone(), PortPolicy::default(), copies.clone()]);
    for policy in [source, PortPolicy::default(), copies] {
        lab.switch.add_port_to(7, policy).unwrap();
    }
    assert_eq!(lab.to(0, &arp(1, MacAddress::BROADCAST)), set([1, 2]), "a flood, and its copy, stay in the switch");
    assert_eq!(lab.to(3, &arp(1, MacAddress::BROADCAST)), set([4, 5]), "the same address is another station");
    assert_eq!((lab.to(1, &arp(2, mac(1))), lab.to(4, &arp(2, mac(1)))), (set([0, 2]), set([3, 5])));
    assert_eq!(lab.switch.counters(3).unwrap().moves, 0);
    // A VLAN may be private in one of them and anything in the other.
    let isolated = |primary, secondary| open(VlanMode::Isolated { primary: vlan(primary), secondary: vlan(secondary) });
    lab.switch.add_port_to(0, isolated(100, 101)).unwrap();
    lab.switch.add_port_to(7, isolated(101, 102)).unwrap();
    assert!(lab.switch.add_port_to(0, isolated(101, 102)).is_err());
}

fn private_ports() -> Vec<PortPolicy> {
    let primary = vlan(100);
    let secondaries = vec![vlan(101), vlan(102), vlan(103)];
    vec![
        open(VlanMode::Isolated { primary, secondary: vlan(101) }),
        open(VlanMode::Isolated { primary, secondary: vlan(101) }),
        open(VlanMode::Community { primary, secondary: vlan(102) }),
        open(VlanMode::Community { primary, secondary: vlan(102) }),
        open(VlanMode::Community { primary, secondary: vlan(103) }),
        open(VlanMode::Promiscuous { primary, secondaries: secondaries.clone() }),
        open(VlanMode::Promiscuous { primary, secondaries }),
        open(VlanMode::all()),
        open(VlanMode::Access { vlan: vlan(200) }),
    ]
}

#[test]
fn private_vlans_are_a_truth_table() {
    // I isolated, C community, D another community, P promiscuous, T the trunk to other hosts.
    let reach: [(PortNumber, &[PortNumber]); 8] = [
        (0, &[5, 6, 7]),
        (1, &[5, 6, 7]),
        (2, &[3, 5, 6, 7]),
        (3, &[2, 5, 6, 7]),
        (4, &[5, 6, 7]),
        (5, &[0, 1, 2, 3, 4, 6, 7]),
        (6, &[0, 1, 2, 3, 4, 5, 7]),
        (8, &[7]),
    ];
    for (sender, expected) in reach {
        let expected: BTreeSet<PortNumber> = expected.iter().copied().collect();
        let mut lab = Lab::new(private_ports());
        assert_eq!(lab.to(sender, &arp(1, MacAddress::BROADCAST)), expected, "port {sender} to all");
        // The same when everybody knows everybody.
        let mut lab = Lab::new(private_ports());
        for port in 0..9 {
            lab.to(port, &arp(port as u8, MacAddress::BROADCAST));
        }
        for other in (0..9).filter(|other| *other != sender && *other != 7) {
            let got = lab.to(sender, &arp(sender as u8, mac(other as u8)));
            let is_known = sender != 8 && other != 8;
            let to_other = if expected.contains(&other) { set([other]) } else { set([]) };
            // Nobody of another VLAN is known, so all get it that may.
            assert_eq!(got, if is_known { to_other } else { expected.clone() }, "port {sender} to {other}");
        }
    }
    // From other hosts, by tag.
    let by_tag: [(u16, &[PortNumber]); 4] =
        [(100, &[0, 1, 2, 3, 4, 5, 6]), (101, &[5, 6]), (102, &[2, 3, 5, 6]), (103, &[4, 5, 6])];
    for (tag, expected) in by_tag {
        let mut lab = Lab::new(private_ports());
        let got = lab.to(7, &ethernet(mac(9), MacAddress::BROADCAST).tag(tag).other(0x0806));
        assert_eq!(got, expected.iter().copied().collect(), "tag {tag}");
    }
}

#[test]
fn a_vlan_is_in_one_private_vlan_only() {
    let isolated = |primary, secondary| open(VlanMode::Isolated { primary: vlan(primary), secondary: vlan(secondary) });
    let mut lab = Lab::new(vec![isolated(100, 101)]);
    for wrong in [isolated(200, 101), isolated(101, 102), isolated(300, 100)] {
        assert!(matches!(lab.switch.add_port(wrong), Err(PortError::Policy(PolicyError::Private { .. }))));
    }
    lab.switch.remove_port(0).unwrap();
    assert_eq!(lab.switch.add_port(isolated(200, 101)), Ok(0));
}

fn guarded(number: u8) -> PortPolicy {
    let deny = Permission::Deny;
    PortPolicy { mac: Some(mac(number)), mac_spoofing: deny, dhcp_server: deny, router: deny, ..PortPolicy::default() }
}

#[test]
fn guards_stop_what_a_station_must_not_send() {
    let mut lab = Lab::new(vec![guarded(1), PortPolicy::default()]);
    let start = || ethernet(mac(1), MacAddress::BROADCAST);
    let (four, six) = (ip("10.0.0.1"), ip("fd00::1"));
    let mut hidden = vec![58, 15];
    hidden.resize(136, 0);
    let cases = [
        (arp(2, MacAddress::BROADCAST), DropReason::Spoofed),
        (start().udp((four, 67), (four, 68)), DropReason::DhcpGuard),
        (start().udp((six, 547), (six, 546)), DropReason::DhcpGuard),
        (start().icmp(six, six, 134), DropReason::RouterGuard),
        (start().icmp(six, six, 137), DropReason::RouterGuard),
        (start().icmp(four, four, 5), DropReason::RouterGuard),
        (start().icmp(four, four, 9), DropReason::RouterGuard),
        (start().ip(six, six, 60, &hidden), DropReason::DhcpGuard),
        (arp(1, MacAddress([0x01, 0x80, 0xc2, 0, 0, 0])), DropReason::Address),
        (ethernet(MacAddress::BROADCAST, mac(1)).other(0x0806), DropReason::Address),
    ];
    for (frame, reason) in cases {
        let before = lab.drops(0, reason);
        assert_eq!(lab.to(0, &frame), set([]));
        assert_eq!(lab.drops(0, reason), before + 1, "{reason:?}");
    }
    for good in [start().udp((four, 68), (four, 67)), start().icmp(six, six, 133), start().icmp(six, six, 136)] {
        assert_eq!(lab.to(0, &good), set([1]));
    }
    // Nobody else takes its address, and it hears nothing that is for others.
    assert_eq!(lab.to(1, &arp(1, MacAddress::BROADCAST)), set([]));
    assert_eq!(lab.drops(1, DropReason::Taken), 1);
    assert_eq!(lab.to(1, &arp(3, mac(4))), set([]));
    assert_eq!(lab.to(1, &arp(3, mac(1))), set([0]));
}

#[test]
fn a_storm_is_limited_and_other_frames_are_not() {
    let limited = PortPolicy { storm_limit: 100, ..PortPolicy::default() };
    let mut lab = Lab::new(vec![limited, PortPolicy::default()]);
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    let passed = |lab: &mut Lab, frame: &[u8]| (0..200).filter(|_| !lab.to(0, frame).is_empty()).count();
    assert_eq!(passed(&mut lab, &arp(1, MacAddress::BROADCAST)), 10, "a tenth of a second's worth at once");
    assert_eq!(passed(&mut lab, &arp(1, mac(9))), 0, "unknown stations count, too");
    assert_eq!(passed(&mut lab, &arp(1, mac(2))), 200);
    lab.now = 50;
    assert_eq!(passed(&mut lab, &arp(1, MacAddress::BROADCAST)), 5);
    assert_eq!(lab.drops(0, DropReason::Storm), 190 + 200 + 195);
}

#[test]
fn mirrors_get_copies_of_what_passes() {
    let role = |mirroring, mode| PortPolicy { mirroring, ..open(mode) };
    let ten = || VlanMode::Access { vlan: vlan(10) };
    let mut lab = Lab::new(vec![
        role(Mirroring::Source, ten()),
        role(Mirroring::None, ten()),
        role(Mirroring::Destination, VlanMode::Access { vlan: vlan(99) }),
        role(Mirroring::None, ten()),
    ]);
    assert_eq!(lab.to(0, &arp(1, MacAddress::BROADCAST)), set([1, 2, 3]));
    assert_eq!(lab.to(1, &arp(2, mac(1))), set([0, 2]), "what it gets");
    assert_eq!(lab.to(0, &arp(1, mac(2))), set([1, 2]), "what it sends");
    assert_eq!(lab.to(3, &arp(3, mac(2))), set([1]), "what is not its own");
    assert_eq!(lab.to(0, &ethernet(mac(1), mac(2)).tag(7).other(0x0806)), set([]), "what is dropped");
}

/// An ARP packet in which a station asks for itself.
fn gratuitous(source: u8) -> Vec<u8> {
    let mut frame = arp(source, MacAddress::BROADCAST);
    for at in [14 + 14, 14 + 24] {
        frame[at..at + 4].copy_from_slice(&[10, 0, 0, source]);
    }
    frame
}

#[test]
fn what_comes_back_from_a_team_moves_no_station_and_an_announcement_does() {
    let mut lab = Lab::new(plain(3));
    lab.switch.set_reflecting(2, true);
    // Station 1 is behind port 0; its broadcast comes back through another NIC.
    assert_eq!(lab.to(0, &arp(1, MacAddress::BROADCAST)), set([1, 2]));
    assert_eq!(lab.to(2, &arp(1, MacAddress::BROADCAST)), set([]));
    assert_eq!(lab.drops(2, DropReason::Reflected), 1);
    assert_eq!(lab.to(1, &arp(2, mac(1))), set([0]));
    // It has moved to another host, which says so.
    assert_eq!(lab.to(2, &gratuitous(1)), set([0, 1]));
    assert_eq!(lab.to(1, &arp(2, mac(1))), set([2]));
    assert_eq!(lab.to(2, &arp(1, mac(2))), set([1]));
}

#[test]
fn an_announcement_from_here_that_comes_back_moves_nothing_for_five_seconds() {
    for announced_by_us in [false, true] {
        let mut lab = Lab::new(plain(2));
        lab.switch.set_reflecting(1, true);
        lab.now = 10;
        if announced_by_us {
            lab.to(0, &arp(1, MacAddress::BROADCAST));
            lab.switch.hold_station(Domain { switch: 0, vlan: 0 }, mac(1), lab.now);
        } else {
            lab.to(0, &gratuitous(1));
        }
        assert_eq!(lab.to(1, &gratuitous(1)), set([]));
        assert_eq!(lab.drops(1, DropReason::Reflected), 1);
        // Its own frames keep it alive here.
        (1..=5).for_each(|second| {
            lab.now = 10 + second * 900;
            lab.to(0, &arp(1, mac(9)));
        });
        lab.now = 10 + HOLD - 1;
        assert_eq!(lab.to(1, &gratuitous(1)), set([]), "{announced_by_us}");
        // What was decided then is decided anew after a second.
        for _ in 0..2 {
            lab.now += 600;
            lab.to(0, &arp(1, mac(9)));
        }
        assert_eq!(lab.to(1, &gratuitous(1)), set([0]), "{announced_by_us}");
    }
}

#[test]
fn stations_move_to_an_uplink_of_one_nic_by_any_frame() {
    let mut lab = Lab::new(plain(2));
    lab.to(0, &arp(1, MacAddress::BROADCAST));
    assert_eq!(lab.to(1, &arp(1, MacAddress::BROADCAST)), set([0]));
    assert_eq!(lab.switch.counters(1).unwrap().moves, 1);
}

fn rule(effect: Effect, direction: Direction, weight: u32) -> ExtendedRule {
    ExtendedRule { effect, direction, weight, local: None, remote: None, protocol: None, local_ports: None, remote_ports: None }
}

#[test]
fn a_stateful_rule_lets_answers_in_until_it_was_idle() {
    let port_443 = Some(PortRange { first: 443, last: 443 });
    let stateful = Effect::AllowStateful { idle_timeout_s: 10 };
    let client = PortPolicy {
        extended_acl: vec![
            rule(Effect::Deny, Direction::Inbound, 1),
            rule(Effect::Deny, Direction::Outbound, 1),
            ExtendedRule { protocol: Some(TCP), remote_ports: port_443, ..rule(stateful, Direction::Outbound, 2) },
        ],
        ..PortPolicy::default()
    };
    let mut lab = Lab::new(vec![client.clone(), PortPolicy { max_stations: 9, ..PortPolicy::default() }]);
    let (near, far) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let question = |port| ethernet(mac(1), mac(2)).tcp((near, 4000), (far, port));
    let answer = |port| ethernet(mac(2), mac(1)).tcp((far, port), (near, 4000));
    assert_eq!(lab.to(1, &answer(443)), set([]), "nobody asked");
    assert_eq!(lab.to(0, &question(80)), set([]));
    assert_eq!(lab.to(0, &question(443)), set([1]));
    assert_eq!(lab.to(1, &answer(443)), set([0]));
    assert_eq!(lab.to(1, &answer(444)), set([]), "another connection");
    // Answers keep it, here for twice the time-out.
    for now in [5_000, 14_000, 20_000] {
        lab.now = now;
        assert_eq!(lab.to(1, &answer(443)), set([0]), "at {now}");
    }
    lab.now = 30_001;
    assert_eq!(lab.to(1, &answer(443)), set([]), "it was idle");
    assert_eq!(lab.to(0, &question(443)), set([1]), "a question opens it again");
    assert_eq!(lab.to(1, &answer(443)), set([0]));
    // A new policy keeps what it still allows.
    lab.switch.set_policy(0, PortPolicy { storm_limit: 9, ..client.clone() }).unwrap();
    assert_eq!(lab.to(1, &answer(443)), set([0]));
    let closed = PortPolicy { extended_acl: client.extended_acl[..2].to_vec(), ..client.clone() };
    lab.switch.set_policy(0, closed).unwrap();
    assert_eq!(lab.to(1, &answer(443)), set([]));
    lab.switch.set_policy(0, client).unwrap();
    assert_eq!(lab.to(1, &answer(443)), set([]), "what was cut off does not come back by itself");
}

/// A port of whose connections the station behind it must open each, TCP to port 443.
fn client() -> PortPolicy {
    let https = Some(PortRange { first: 443, last: 443 });
    let stateful = rule(Effect::AllowStateful { idle_timeout_s: 10 }, Direction::Outbound, 2);
    PortPolicy {
        extended_acl: vec![
            rule(Effect::Deny, Direction::Inbound, 1),
            rule(Effect::Deny, Direction::Outbound, 1),
            ExtendedRule { protocol: Some(TCP), remote_ports: https, ..stateful },
        ],
        ..PortPolicy::default()
    }
}

#[test]
fn a_port_takes_its_connections_to_another_switch() {
    let (near, far) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let question = ethernet(mac(1), mac(2)).tcp((near, 4000), (far, 443));
    let answer = ethernet(mac(2), mac(1)).tcp((far, 443), (near, 4000));
    let meter = PrefixRule { action: PrefixAction::Meter, direction: None, address: Address::AnyIp };
    let mut here = Lab::new(vec![PortPolicy { acl: vec![meter], ..client() }, PortPolicy::default()]);
    here.now = 1_000_000;
    here.to(1, &arp(2, MacAddress::BROADCAST));
    assert_eq!(here.to(0, &question), set([1]));
    assert_eq!(here.to(0, &ethernet(mac(1), mac(2)).tcp((near, 1), (far, 80))), set([]));
    here.now += 6_000;
    let mut state = here.switch.export_port(0).unwrap();
    let (connections, more) = here.switch.export_connections(0, 0, 100, here.now);
    assert_eq!((connections.len(), more), (1, None));
    state.connections = connections;
    // As it is sent.
    let state: PortState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();

    let there = || {
        let mut lab = Lab::new(vec![PortPolicy::default(), PortPolicy::default()]);
        lab.now = 2_000_000;
        lab
    };
    let mut without = there();
    without.switch.set_policy(0, state.policy.clone()).unwrap();
    assert_eq!(without.to(1, &answer), set([]), "nobody asked here");

    let mut lab = there();
    let imported = lab.switch.import_port(0, &state, lab.now).unwrap();
    assert_eq!((imported.stations, imported.stations_left_out), (1, 0));
    assert_eq!(lab.to(1, &answer), set([]), "and the flow that is denied now is asked again");
    assert_eq!(lab.switch.import_connections(0, &state.connections, lab.now), Ok(1));
    assert_eq!(lab.switch.export_port(0).unwrap().stations, state.stations, "it is known before it sends anything");
    assert_eq!(lab.drops(0, DropReason::ExtendedAcl), 2, "one was counted where it was before");
    assert_eq!(lab.switch.meters(0).unwrap().collect::<BTreeMap<_, _>>(), state.meters);
    lab.now += 4_000;
    assert_eq!(lab.to(1, &answer), set([0]), "10 s after the question");
    lab.now += 9_000;
    assert_eq!(lab.to(1, &answer), set([0]), "an answer keeps it as ever");
    let mut late = there();
    late.switch.import_port(0, &state, late.now).unwrap();
    late.switch.import_connections(0, &state.connections, late.now).unwrap();
    late.now += 4_001;
    assert_eq!(late.to(1, &answer), set([]), "it was idle for too long, most of it elsewhere");
}

#[test]
fn what_a_port_must_not_have_is_not_imported() {
    let connection = ConnectionState {
        local: ip("10.0.0.1"),
        remote: ip("10.0.0.2"),
        protocol: TCP,
        local_port: 4000,
        remote_port: 443,
        opened: Direction::Outbound,
        idle_ms: 0,
        idle_timeout_ms: u64::MAX,
    };
    let state = |policy: PortPolicy| PortState { policy, ..Lab::new(plain(1)).switch.export_port(0).unwrap() };
    let mut lab = Lab::new(vec![PortPolicy::default(), guarded(2)]);
    lab.now = 1_000_000;
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    let few = PortPolicy { max_connections: 1, ..client() };
    let wrong = [
        PortState { version: 2, ..state(client()) },
        PortState { connections: vec![connection; 2], ..state(few) },
        PortState { connections: vec![ConnectionState { remote: ip("::1"), ..connection }], ..state(client()) },
        PortState { stations: vec![StationState { mac: MacAddress::BROADCAST, vlan: 0 }], ..state(client()) },
        state(PortPolicy { mac: Some(MacAddress([0; 6])), ..client() }),
    ];
    let before = format!("{:?}", lab.switch.policy(0));
    for state in wrong {
        let error = lab.switch.import_port(0, &state, lab.now).unwrap_err();
        assert_eq!(format!("{:?}", lab.switch.policy(0)), before, "{error}");
    }
    // Another's station, one of a VLAN that the port is not in; connections that no rule remembers, or that are over.
    let stations = [(2, 0), (3, 7)].map(|(number, vlan)| StationState { mac: mac(number), vlan });
    let imported = lab.switch.import_port(0, &PortState { stations: stations.to_vec(), ..state(client()) }, lab.now).unwrap();
    assert_eq!(imported, Imported { stations_left_out: 2, ..Imported::default() });
    let left_out = [
        ConnectionState { remote_port: 80, ..connection },
        ConnectionState { opened: Direction::Inbound, ..connection },
        ConnectionState { protocol: 17, ..connection },
        ConnectionState { idle_ms: 10_001, ..connection },
        ConnectionState { idle_ms: 6, idle_timeout_ms: 5, ..connection },
    ];
    assert_eq!(lab.switch.import_connections(0, &left_out, lab.now), Ok(0));
    assert_eq!(lab.switch.import_connections(0, &[connection; 3], lab.now), Ok(3));
    assert_eq!(lab.switch.connections(), 1);
    let guarded_state = PortState { stations: vec![StationState { mac: mac(5), vlan: 0 }], ..state(guarded(4)) };
    assert_eq!(lab.switch.import_port(0, &guarded_state, lab.now).unwrap().stations_left_out, 1, "not its own address");
}

#[test]
fn connections_are_limited_and_make_room_when_they_are_over() {
    let all = rule(Effect::AllowStateful { idle_timeout_s: 1 }, Direction::Outbound, 1);
    let few = PortPolicy { max_connections: 3, extended_acl: vec![all], ..PortPolicy::default() };
    let mut lab = Lab::new(vec![few, PortPolicy::default()]);
    let open = |lab: &mut Lab, from: u16| {
        (from..from + 10)
            .filter(|port| !lab.to(0, &ethernet(mac(1), mac(2)).udp((ip("10.0.0.1"), *port), (ip("10.0.0.2"), 53))).is_empty())
            .count()
    };
    assert_eq!(open(&mut lab, 1000), 3);
    assert_eq!(lab.drops(0, DropReason::Connections), 7);
    lab.now = 2000;
    assert_eq!(open(&mut lab, 2000), 3);
    assert_eq!(lab.switch.connections(), 3);
}

#[test]
fn a_flow_that_there_was_no_room_for_is_tried_again() {
    let all = rule(Effect::AllowStateful { idle_timeout_s: 2 }, Direction::Inbound, 1);
    let few = PortPolicy { max_connections: 1, extended_acl: vec![all], ..PortPolicy::default() };
    let mut lab = Lab::new(vec![PortPolicy::default(), few]);
    let packet = |port| ethernet(mac(1), mac(2)).udp((ip("10.0.0.1"), port), (ip("10.0.0.2"), 53));
    assert_eq!((lab.to(0, &packet(1)), lab.to(0, &packet(2))), (set([1]), set([])));
    // It goes on sending, so that its flow is never forgotten.
    for now in (0..3500).step_by(100) {
        lab.now = now;
        let passes = now >= 3000;
        assert_eq!(lab.to(0, &packet(2)), if passes { set([1]) } else { set([]) }, "at {now}");
    }
}

/// Weight decides, whatever the order of the rules; each direction by itself; both ports' rules count.
#[test]
fn extended_rules_are_a_truth_table() {
    use Direction::*;
    use Effect::*;
    let to_80 = |effect, weight| ExtendedRule {
        protocol: Some(TCP),
        local_ports: Some(PortRange { first: 80, last: 90 }),
        ..rule(effect, Inbound, weight)
    };
    let table: &[(&[ExtendedRule], u16, bool)] = &[
        (&[], 80, true),
        (&[rule(Deny, Inbound, 1)], 80, false),
        (&[rule(Deny, Outbound, 1)], 80, true),
        (&[to_80(Allow, 2), rule(Deny, Inbound, 1)], 80, true),
        (&[rule(Deny, Inbound, 1), to_80(Allow, 2)], 90, true),
        (&[rule(Deny, Inbound, 1), to_80(Allow, 2)], 91, false),
        (&[rule(Deny, Inbound, 3), to_80(Allow, 2)], 80, false),
        (&[to_80(Deny, 2), rule(Allow, Inbound, 1)], 80, false),
        (&[to_80(Deny, 2), rule(Allow, Inbound, 1)], 79, true),
    ];
    for (number, (rules, port, passes)) in table.iter().enumerate() {
        let server = PortPolicy { extended_acl: rules.to_vec(), ..PortPolicy::default() };
        let mut lab = Lab::new(vec![PortPolicy::default(), server]);
        let frame = ethernet(mac(1), mac(2)).tcp((ip("10.0.0.1"), 4000), (ip("10.0.0.2"), *port));
        assert_eq!(lab.to(0, &frame) == set([1]), *passes, "case {number}");
        assert_eq!(lab.drops(1, DropReason::ExtendedAcl), u64::from(!passes));
        assert_eq!(lab.to(0, &arp(1, mac(2))), set([1]), "what is not of IP is none of theirs");
    }
}

#[test]
fn lists_without_end_are_refused() {
    use crate::policy::{MAX_RULES, MAX_VLAN_RANGES};
    let deny = PrefixRule { action: PrefixAction::Deny, direction: None, address: Address::AnyIp };
    let allowed = |count| vec![VlanRange { first: vlan(1), last: vlan(1) }; count];
    let mut switch = Switch::new(Limits::default());
    let most = PortPolicy {
        acl: vec![deny; MAX_RULES],
        extended_acl: (0..MAX_RULES as u32).map(|weight| rule(Effect::Allow, Direction::Inbound, weight)).collect(),
        ..open(VlanMode::Trunk { native: None, allowed: allowed(MAX_VLAN_RANGES) })
    };
    switch.add_port(most.clone()).unwrap();
    let one_more = rule(Effect::Allow, Direction::Outbound, 1);
    let longer = [
        PortPolicy { acl: vec![deny; MAX_RULES + 1], ..most.clone() },
        PortPolicy { extended_acl: [&most.extended_acl[..], &[one_more]].concat(), ..most.clone() },
        open(VlanMode::Trunk { native: None, allowed: allowed(MAX_VLAN_RANGES + 1) }),
    ];
    for policy in longer {
        assert!(matches!(switch.add_port(policy), Err(PortError::Policy(PolicyError::TooMany { .. }))));
    }
}

#[test]
fn meters_count_both_ways() {
    let meter =
        PrefixRule { action: PrefixAction::Meter, direction: None, address: Address::RemoteIp("10.0.0.0/8".parse().unwrap()) };
    let mut lab = Lab::new(vec![PortPolicy { acl: vec![meter], ..PortPolicy::default() }, PortPolicy::default()]);
    let there = ethernet(mac(1), mac(2)).tcp((ip("10.0.0.1"), 1), (ip("10.0.0.2"), 2));
    let back = ethernet(mac(2), mac(1)).tcp((ip("10.0.0.2"), 2), (ip("10.0.0.1"), 1));
    for _ in 0..3 {
        lab.to(0, &there);
        lab.to(1, &back);
    }
    assert_eq!(lab.switch.meters(0).unwrap().collect::<Vec<_>>(), [(0, 6 * there.len() as u64)]);
}

/// What a trace says that is done: who gets the frame, and what is dropped where.
fn traced(lab: &Lab, port: PortNumber, frame: &[u8]) -> (BTreeMap<PortNumber, TagEdit>, Vec<(PortNumber, DropReason)>) {
    let trace = lab.switch.trace(port, &frame[..frame.len().min(HEADER_BYTES)], frame.len(), lab.now).unwrap();
    let mut delivered = BTreeMap::new();
    let mut dropped = Vec::new();
    for action in trace.actions {
        match action {
            Action::Deliver { port, edit } => _ = delivered.insert(port, edit),
            Action::Drop { port, reason } => dropped.push((port, reason)),
            _ => {}
        }
    }
    (delivered, dropped)
}

fn all_drops(lab: &Lab) -> Vec<BTreeMap<String, u64>> {
    (0..lab.switch.ports.len()).map(|port| lab.switch.counters(port as PortNumber).unwrap().report().drops).collect()
}

fn any_policy() -> impl Strategy<Value = PortPolicy> {
    let deny = || prop::sample::select(vec![Permission::Allow, Permission::Deny]);
    let modes = vec![
        VlanMode::Untagged,
        VlanMode::Access { vlan: vlan(10) },
        VlanMode::Trunk { native: Some(vlan(10)), allowed: vec![VlanRange { first: vlan(99), last: vlan(101) }] },
        VlanMode::Isolated { primary: vlan(100), secondary: vlan(101) },
        VlanMode::Promiscuous { primary: vlan(100), secondaries: vec![vlan(101)] },
    ];
    let mirrorings = vec![Mirroring::None, Mirroring::None, Mirroring::Source, Mirroring::Destination];
    let acls = vec![vec![], vec![PrefixAction::Deny], vec![PrefixAction::Meter]];
    let extended = vec![
        vec![],
        vec![rule(Effect::Deny, Direction::Inbound, 1)],
        vec![
            rule(Effect::AllowStateful { idle_timeout_s: 1 }, Direction::Outbound, 2),
            rule(Effect::Deny, Direction::Inbound, 1),
        ],
    ];
    let limits =
        (prop::sample::select(vec![0u32, 20]), prop::sample::select(vec![2u32, 1024]), prop::sample::select(vec![1u32, 1000]));
    let guards = (prop::option::of(1u8..4), deny(), deny());
    let select = (
        prop::sample::select(modes),
        prop::sample::select(mirrorings),
        prop::sample::select(acls),
        prop::sample::select(extended),
    );
    (guards, select, limits).prop_map(|((station, spoofing, router), (vlan, mirroring, acl, extended_acl), limits)| PortPolicy {
        mac: station.map(mac),
        mac_spoofing: if station.is_some() { spoofing } else { Permission::Allow },
        router,
        vlan,
        mirroring,
        storm_limit: limits.0,
        max_stations: limits.1,
        max_connections: limits.2,
        acl: acl
            .into_iter()
            .map(|action| PrefixRule { action, direction: None, address: Address::RemoteIp("10.0.0.2/31".parse().unwrap()) })
            .collect(),
        extended_acl,
        ..PortPolicy::default()
    })
}

proptest! {
    /// A trace says what then is done, whatever the policies are, and asking changes nothing.
    #[test]
    fn a_trace_says_what_is_done(
        policies in prop::collection::vec(any_policy(), 2..6),
        frames in prop::collection::vec((0u16..6, 0u8..5, 0u8..6, 0u16..3, prop::sample::select(vec![0u16, 10, 100]), 1000u64..1500), 1..80),
    ) {
        let limits = Limits { station_age: 4000, flows: 64, stations: 6, connections: 8, ..Limits::default() };
        let mut lab = Lab { switch: Switch::new(limits), now: 0 };
        for policy in policies {
            lab.switch.add_port(policy).unwrap();
        }
        // Between frames, what is only kept for a moment is over.
        for (port, source, destination, number, tag, later) in frames {
            let port = port % lab.switch.ports.len() as u16;
            lab.now += later;
            let destination = if destination == 5 { MacAddress::BROADCAST } else { mac(destination) };
            let start = ethernet(mac(source), destination);
            let start = if tag == 0 { start } else { start.tag(tag) };
            let address = |number: u8| ip(&format!("10.0.0.{number}"));
            let frame = if number == 0 {
                start.other(0x0806)
            } else {
                start.udp((address(source), number), (address(destination.0[5]), 3 - number))
            };
            let before = (all_drops(&lab), lab.switch.decisions(), lab.switch.connections(), lab.switch.stations().count());
            let (delivered, dropped) = traced(&lab, port, &frame);
            let after = (all_drops(&lab), lab.switch.decisions(), lab.switch.connections(), lab.switch.stations().count());
            prop_assert_eq!(&before, &after);
            let mut expected = before.0;
            dropped.iter().for_each(|(port, reason)| *expected[usize::from(*port)].entry(reason.label().into()).or_default() += 1);
            prop_assert_eq!(lab.send(port, &frame), delivered, "port {}", port);
            prop_assert_eq!(all_drops(&lab), expected);
        }
    }
}

#[test]
fn a_trace_says_which_layer_stops_a_frame_and_why() {
    let deny = PrefixRule { action: PrefixAction::Deny, direction: Some(Direction::Inbound), address: Address::AnyIp };
    let meter = PrefixRule { action: PrefixAction::Meter, direction: None, address: Address::AnyIp };
    let ten = || VlanMode::Access { vlan: vlan(10) };
    let mut lab = Lab::new(vec![
        PortPolicy { vlan: ten(), acl: vec![meter], ..client() },
        PortPolicy { acl: vec![meter, deny], ..open(ten()) },
        PortPolicy::default(),
    ]);
    lab.to(1, &arp(2, MacAddress::BROADCAST));
    let steps = |lab: &Lab, frame: &[u8]| lab.switch.trace(0, frame, frame.len(), lab.now).unwrap().steps;
    let packet = |port| ethernet(mac(1), mac(2)).tcp((ip("10.0.0.1"), 4000), (ip("10.0.0.2"), port));
    use Direction::*;
    let acl = |port, direction, allowed, ip| Step::Acl { port, direction, decided: PrefixVerdict { allowed, mac: None, ip } };
    let start = [Step::Guard { port: 0, refused: None }, Step::VlanIn { port: 0, vlan: Ok(10) }, acl(0, Outbound, true, None)];
    let denied = Step::ExtendedAcl { port: 0, direction: Outbound, verdict: Verdict::Deny, rule: Some(1) };
    assert_eq!(steps(&lab, &packet(80)), [&start[..], &[denied]].concat());
    let verdict = Verdict::Remember { idle_timeout_ms: 10_000 };
    let expected = [
        Step::ExtendedAcl { port: 0, direction: Outbound, verdict, rule: Some(2) },
        Step::Connection { port: 0, direction: Outbound, remembered: true },
        Step::Meter { port: 0, direction: Outbound, rule: 0 },
        Step::Learning { port: 0, vlan: 10, mac: mac(1), learned: Learned::New(Ref::NONE) },
        Step::Forwarding { port: 0, mac: mac(2), destination: Destination::Known(1) },
        Step::VlanOut { port: 1, vlan: 10, wire: Some(Wire::Untagged) },
        acl(1, Inbound, false, Some(1)),
    ];
    assert_eq!(steps(&lab, &packet(443)), [&start[..], &expected].concat());
    assert!(lab.switch.trace(3, &packet(1), 60, 0).is_err(), "no such port");
    let wrong = lab.switch.trace(0, &packet(1), 30, 0).unwrap();
    assert_eq!(wrong.actions, [Action::Drop { port: 0, reason: DropReason::Ip }]);
}

#[test]
fn rules_and_flows_count_what_they_decided() {
    let deny =
        PrefixRule { action: PrefixAction::Deny, direction: None, address: Address::RemoteIp("10.0.0.9/32".parse().unwrap()) };
    let meter = PrefixRule { action: PrefixAction::Meter, direction: None, address: Address::AnyIp };
    let policy = PortPolicy { acl: vec![deny, meter], ..client() };
    let mut lab = Lab::new(vec![policy.clone(), PortPolicy::default()]);
    let (near, far) = ((ip("10.0.0.1"), 4000), (ip("10.0.0.2"), 443));
    let question = ethernet(mac(1), mac(2)).tcp(near, far);
    let answer = ethernet(mac(2), mac(1)).tcp(far, near);
    let length = question.len() as u64;
    (0..3).for_each(|_| assert_eq!(lab.to(0, &question), set([1])));
    (0..2).for_each(|_| assert_eq!(lab.to(1, &answer), set([0])));
    (0..4).for_each(|_| assert_eq!(lab.to(0, &ethernet(mac(1), mac(2)).tcp(near, (ip("10.0.0.2"), 80))), set([])));
    assert_eq!(lab.to(0, &ethernet(mac(1), mac(2)).tcp(near, (ip("10.0.0.9"), 443))), set([]));
    let counts = |lab: &mut Lab| {
        assert_eq!(lab.switch.settle(0, usize::MAX), None);
        let counts = lab.switch.rule_counts(0).unwrap();
        counts.acl.into_iter().chain(counts.extended).map(|count| (count.packets, count.bytes / length)).collect::<Vec<_>>()
    };
    let expected = [(1, 1), (5, 5), (0, 0), (4, 4), (5, 5)];
    assert_eq!(counts(&mut lab), expected);
    assert_eq!(counts(&mut lab), expected, "asking counts nothing twice");
    let (flows, next) = lab.switch.flows(Some(0), 0, usize::MAX);
    let mut seen: Vec<_> = flows.iter().map(|flow| (flow.count.packets, flow.actions.len())).collect();
    seen.sort();
    assert_eq!((seen.as_slice(), next), (&[(1, 1), (3, 4), (4, 1)][..], None));
    assert!(flows.iter().any(|flow| flow.frame == Frame::parse(&question, question.len()).unwrap()));
    // Rules that stay keep their counts wherever they are; flows that were decided by the old list count for them too.
    lab.to(0, &question);
    let mut other = policy.clone();
    other.acl.swap(0, 1);
    other.extended_acl.remove(0);
    other.extended_acl.push(ExtendedRule { protocol: Some(17), ..rule(Effect::Allow, Direction::Outbound, 9) });
    lab.switch.set_policy(0, other).unwrap();
    lab.to(1, &answer);
    assert_eq!(counts(&mut lab), [(7, 7), (1, 1), (4, 4), (7, 7), (0, 0)]);
    let (flows, _) = lab.switch.flows(Some(1), 0, usize::MAX);
    assert_eq!(flows.iter().map(|flow| flow.count.packets).collect::<Vec<_>>(), [3], "a flow that is decided anew goes on");
    // They move with the port.
    let state = lab.switch.export_port(0).unwrap();
    let mut there = Lab::new(plain(1));
    there.switch.import_port(0, &state, 0).unwrap();
    assert_eq!(counts(&mut there), counts(&mut lab));
    // Flows that make room for others are not forgotten: there are 64 at once.
    (0..500).for_each(|port| _ = lab.to(0, &ethernet(mac(1), mac(2)).udp((ip("10.0.0.1"), port), far)));
    let udp = lab.switch.settle(0, usize::MAX).is_none().then(|| lab.switch.rule_counts(0).unwrap().extended[2].packets);
    assert_eq!(udp, Some(500));
    lab.switch.remove_port(0).unwrap();
    assert_eq!(lab.switch.add_port(PortPolicy { acl: vec![deny], ..PortPolicy::default() }), Ok(0));
    assert_eq!(counts(&mut lab), [(0, 0)]);
}

/// How a switch that decides every frame anew would deliver: nothing but a map from stations to ports.
#[derive(Default)]
struct Model(BTreeMap<(u16, MacAddress), PortNumber>);

const MODEL_VLANS: [u16; 4] = [10, 10, 20, 10];

impl Model {
    fn send(&mut self, port: PortNumber, source: MacAddress, destination: MacAddress) -> BTreeSet<PortNumber> {
        let vlan = MODEL_VLANS[usize::from(port)];
        self.0.insert((vlan, source), port);
        match self.0.get(&(vlan, destination)) {
            Some(receiver) => set([*receiver]).into_iter().filter(|receiver| *receiver != port).collect(),
            None => (0..4).filter(|other| *other != port && MODEL_VLANS[usize::from(*other)] == vlan).collect(),
        }
    }
}

proptest! {
    /// With flows or without: the same copies, however stations move.
    #[test]
    fn the_fast_path_delivers_as_the_slow_path_would(frames in prop::collection::vec((0u16..4, 0u8..6, 0u8..7), 1..300)) {
        let policies = MODEL_VLANS.map(|number| open(VlanMode::Access { vlan: vlan(number) })).to_vec();
        let (mut lab, mut model) = (Lab::new(policies), Model::default());
        for (port, source, destination) in frames {
            let destination = if destination == 6 { MacAddress::BROADCAST } else { mac(destination) };
            prop_assert_eq!(lab.to(port, &arp(source, destination)), model.send(port, mac(source), destination));
        }
    }
}
