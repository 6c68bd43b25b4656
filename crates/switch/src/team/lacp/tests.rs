//! Systems that talk to each other over cables that tests can cut, in time that tests make.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::pdu::{PDU_BYTES, SlowPdu, parse};
use super::*;

const TICK: Millis = 100;

fn system(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

/// An end of a cable: which system, which of its ports.
type End = (usize, usize);

struct World {
    systems: Vec<Lacp>,
    cables: Vec<(End, End)>,
    /// Cables that lose everything, without their ends noticing.
    silent: Vec<usize>,
    now: Millis,
    /// Packets that were sent, by system and port.
    sent: Vec<(Millis, End, Lacpdu)>,
}

impl World {
    /// Systems with so many ports; all cables are plugged in.
    fn new(rate: LacpRate, ports: &[usize], cables: &[(End, End)]) -> World {
        let systems = (1..).zip(ports).map(|(number, ports)| Lacp::new(system(number), DEFAULT_PRIORITY, rate, *ports)).collect();
        let mut world = World { systems, cables: cables.to_vec(), silent: Vec::new(), now: 0, sent: Vec::new() };
        (0..cables.len()).for_each(|cable| world.plug(cable, Some(1000)));
        world
    }

    fn plug(&mut self, cable: usize, speed_mbps: Option<u32>) {
        let (a, b) = self.cables[cable];
        [a, b].into_iter().for_each(|end| self.link(end, speed_mbps));
    }

    fn link(&mut self, (system, port): End, speed_mbps: Option<u32>) {
        self.step(system, Event::Link { port, speed_mbps });
    }

    fn step(&mut self, system: usize, event: Event<'_>) {
        let mut out = Vec::new();
        self.systems[system].step(self.now, event, &mut out);
        let mut under_way: VecDeque<(End, Lacpdu)> = out.drain(..).map(|(port, pdu)| ((system, port), pdu)).collect();
        while let Some(((system, port), pdu)) = under_way.pop_front() {
            self.sent.push((self.now, (system, port), pdu));
            let carried = |(cable, (a, b)): (usize, &(End, End))| match self.silent.contains(&cable) {
                false if *a == (system, port) => Some(*b),
                false if *b == (system, port) => Some(*a),
                _ => None,
            };
            let Some((other, port)) = self.cables.iter().enumerate().find_map(carried) else { continue };
            // As on the wire.
            let Some(SlowPdu::Lacp(heard)) = parse(&pdu.bytes()) else { panic!("{pdu:?}") };
            assert_eq!(heard, pdu);
            self.systems[other].step(self.now, Event::Pdu { port, pdu: &heard }, &mut out);
            under_way.extend(out.drain(..).map(|(port, pdu)| ((other, port), pdu)));
        }
    }

    fn run(&mut self, time: Millis) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            (0..self.systems.len()).for_each(|system| self.step(system, Event::Tick));
        }
    }

    /// The ports of a system that frames leave through.
    fn distributing(&self, system: usize) -> Vec<usize> {
        let lacp = &self.systems[system];
        (0..lacp.ports.len()).filter(|port| lacp.is_distributing(*port)).collect()
    }

    /// Runs until these ports of the first system distribute; returns how long that took.
    fn until(&mut self, ports: &[usize], limit: Millis) -> Millis {
        let begin = self.now;
        while self.distributing(0) != ports {
            assert!(self.now < begin + limit, "{:?} instead of {ports:?}: {:#?}", self.distributing(0), self.systems[0]);
            self.run(TICK);
        }
        self.now - begin
    }
}

/// Two systems with two cables.
fn pair(rate: LacpRate) -> World {
    World::new(rate, &[2, 2], &[((0, 0), (1, 0)), ((0, 1), (1, 1))])
}

#[test]
fn two_systems_agree_on_both_cables_soon() {
    let mut world = pair(LacpRate::Slow);
    let time = world.until(&[0, 1], 4000);
    assert!(time <= 2500, "two seconds of waiting for other ports, and little more: {time}");
    // No more than three packets in a second: the last word may have to wait.
    world.run(1000);
    assert_eq!(world.distributing(1), [0, 1]);
    let status = world.systems[0].status(0).unwrap();
    assert_eq!((status.receive, status.mux), (ReceiveState::Current, MuxState::Distributing));
    assert_eq!(status.partner.map(|partner| (partner.system, partner.port)), Some((system(2), 1)));
}

#[test]
fn a_port_collects_before_its_partner_distributes() {
    let mut world = pair(LacpRate::Fast);
    for _ in 0..60 {
        world.run(TICK);
        for port in 0..2 {
            let [a, b] = [0, 1].map(|system| &world.systems[system]);
            assert!(!a.is_distributing(port) || b.is_collecting(port));
            assert!(!b.is_distributing(port) || a.is_collecting(port));
        }
    }
    assert_eq!(world.distributing(0), [0, 1]);
}

#[test]
fn a_quiet_partner_is_missed_after_three_seconds_or_ninety() {
    for (rate, limit) in [(LacpRate::Fast, 3000), (LacpRate::Slow, 90_000)] {
        let mut world = pair(rate);
        world.until(&[0, 1], 4000);
        world.run(30_000);
        world.silent = vec![1];
        let time = world.until(&[0], limit + 1000);
        assert!(time + 31_000 > limit, "{rate:?}: {time}");
        // The flows' other way is closed, too.
        world.run(limit);
        assert_eq!(world.distributing(1), [0]);
        world.silent.clear();
        world.until(&[0, 1], limit + 5000);
    }
}

#[test]
fn a_lost_link_is_left_at_once_and_comes_back() {
    let mut world = pair(LacpRate::Slow);
    world.until(&[0, 1], 4000);
    world.plug(0, None);
    assert_eq!((world.distributing(0), world.distributing(1)), (vec![1], vec![1]));
    world.plug(0, Some(1000));
    // Two seconds of waiting for others, and one because there were three packets just now.
    assert_eq!(world.until(&[0, 1], 5000), 3000);
}

#[test]
fn lost_packets_delay_and_do_not_confuse() {
    let mut world = pair(LacpRate::Fast);
    // Each second packet or so gets through.
    for round in 0..100u64 {
        world.silent = if round % 3 == 0 { vec![0, 1] } else { Vec::new() };
        world.run(700);
    }
    world.silent.clear();
    world.until(&[0, 1], 5000);
    for cut in 0..2 {
        world.silent = vec![cut];
        world.run(2000);
        world.silent.clear();
        world.run(2000);
        assert_eq!(world.distributing(0), [0, 1], "less than three seconds without a word are none");
    }
}

#[test]
fn a_cable_to_another_system_waits_outside() {
    let mut world = World::new(LacpRate::Fast, &[3, 2, 1], &[((0, 0), (2, 0)), ((0, 1), (1, 0)), ((0, 2), (1, 1))]);
    world.until(&[1, 2], 6000);
    world.run(20_000);
    assert_eq!(world.distributing(0), [1, 2]);
    assert!(!world.systems[0].is_collecting(0));
    assert!(world.distributing(2).is_empty(), "it is not answered with synchronization");
    // When the larger group is gone, the other one is the team.
    world.plug(1, None);
    world.plug(2, None);
    world.until(&[0], 5000);
}

#[test]
fn a_working_group_stays_when_a_larger_one_appears() {
    let mut world = World::new(LacpRate::Fast, &[3, 2, 1], &[((0, 0), (2, 0)), ((0, 1), (1, 0)), ((0, 2), (1, 1))]);
    world.plug(1, None);
    world.plug(2, None);
    world.until(&[0], 6000);
    world.plug(1, Some(1000));
    world.plug(2, Some(1000));
    world.run(20_000);
    assert_eq!(world.distributing(0), [0]);
}

#[test]
fn nics_of_different_speeds_are_not_mixed() {
    let mut world = pair(LacpRate::Fast);
    world.plug(0, Some(10_000));
    world.until(&[0], 6000);
    world.run(20_000);
    assert_eq!(world.distributing(0), [0], "the faster one, although it is one as well");
    world.plug(0, Some(1000));
    world.until(&[0, 1], 6000);
}

#[test]
fn without_a_partner_one_port_carries_everything_until_somebody_speaks() {
    let mut world = pair(LacpRate::Fast);
    world.silent = vec![0, 1];
    // The first words were heard: three seconds until they are old, three for others, two of waiting.
    let time = world.until(&[0], 9000);
    assert!(time >= 8000, "somebody could have spoken: {time}");
    world.run(60_000);
    assert_eq!(world.distributing(0), [0]);
    world.silent = vec![0];
    world.until(&[1], 10_000);
}

#[test]
fn a_cable_between_two_ports_of_one_system_carries_nothing() {
    let mut world = World::new(LacpRate::Fast, &[2], &[((0, 0), (0, 1))]);
    world.run(60_000);
    assert_eq!(world.distributing(0), [0; 0]);
}

#[test]
fn packets_are_as_frequent_as_the_partner_asks_for_and_never_more_than_three_a_second() {
    for (rate, expected) in [(LacpRate::Fast, 58..=62), (LacpRate::Slow, 2..=3)] {
        let mut world = pair(rate);
        world.run(10_000);
        world.sent.clear();
        world.run(60_000);
        let from = |end: End| world.sent.iter().filter(|(_, from, _)| *from == end).count();
        assert!(expected.contains(&from((0, 0))), "{rate:?}: {}", from((0, 0)));
    }
    // A partner that says something else each time.
    let mut lacp = Lacp::new(system(1), DEFAULT_PRIORITY, LacpRate::Fast, 1);
    let mut out = Vec::new();
    lacp.step(0, Event::Link { port: 0, speed_mbps: Some(1000) }, &mut out);
    for now in 0..10_000u64 {
        let info =
            PortInfo { system_priority: 1, system: system(9), key: now as u16, port_priority: 1, port: 1, state: now as u8 };
        lacp.step(now, Event::Pdu { port: 0, pdu: &Lacpdu { actor: info, partner: info } }, &mut out);
    }
    assert!((28..=31).contains(&out.len()), "{} in ten seconds", out.len());
}

#[test]
fn bytes_are_those_of_the_standard() {
    let actor = PortInfo {
        system_priority: 0x8000,
        system: system(1),
        key: 0x0102,
        port_priority: 0x00ff,
        port: 3,
        state: state::ACTIVITY | state::AGGREGATION,
    };
    let partner = PortInfo { system: system(2), state: state::EXPIRED, ..actor };
    let bytes = Lacpdu { actor, partner }.bytes();
    let expected = [
        [1, 1, 1, 20, 0x80, 0, 2, 0, 0, 0, 0, 1, 1, 2, 0, 0xff, 0, 3, 0x05, 0, 0, 0].as_slice(),
        &[2, 20, 0x80, 0, 2, 0, 0, 0, 0, 2, 1, 2, 0, 0xff, 0, 3, 0x80, 0, 0, 0],
        &[3, 16],
        &[0; PDU_BYTES - 44],
    ];
    assert_eq!(bytes.as_slice(), expected.concat());
    assert_eq!(parse(&bytes), Some(SlowPdu::Lacp(Lacpdu { actor, partner })));
    // A later version is read as this one; another length is none.
    let mut other = bytes;
    other[1] = 2;
    assert!(parse(&other).is_some());
    other[3] = 21;
    assert_eq!(parse(&other), None);
    assert_eq!(parse(&bytes[..41]), None);
}

#[test]
fn a_marker_is_answered_with_what_it_says() {
    let mut marker = [0; 60];
    marker[..18].copy_from_slice(&[2, 1, 1, 16, 0, 7, 2, 0, 0, 0, 0, 9, 0xde, 0xad, 0xbe, 0xef, 0, 0]);
    let Some(SlowPdu::Marker(answer)) = parse(&marker) else { panic!("no answer") };
    assert_eq!(answer[..4], [2, 1, 2, 16]);
    assert_eq!(answer[4..18], marker[4..18]);
    assert_eq!(parse(&answer), None, "an answer is not answered");
}

proptest! {
    /// Whatever comes, what was said of collecting and distributing holds, and not more is sent than may be.
    #[test]
    fn any_partner_is_survived(steps in prop::collection::vec((0u8..4, 0usize..3, prop::collection::vec(any::<u8>(), 16), 0u64..5000), 1..60)) {
        let mut lacp = Lacp::new(system(1), DEFAULT_PRIORITY, LacpRate::Fast, 3);
        let (mut out, mut now) = (Vec::new(), 0);
        for (kind, port, bytes, time) in steps {
            now += time;
            let info = |at: usize| PortInfo {
                system_priority: 1,
                system: system(bytes[at] % 3),
                key: u16::from(bytes[at + 1] % 2),
                port_priority: 1,
                port: u16::from(bytes[at + 2] % 3),
                state: bytes[at + 3],
            };
            let pdu = Lacpdu { actor: info(0), partner: info(8) };
            let event = match kind {
                0 => Event::Link { port, speed_mbps: (bytes[0] & 1 == 0).then_some(u32::from(bytes[1] & 1) * 1000) },
                1 => Event::Tick,
                _ => Event::Pdu { port, pdu: &pdu },
            };
            let before = out.len();
            lacp.step(now, event, &mut out);
            assert!(out.len() <= before + 3);
            for port in &lacp.ports {
                assert_eq!(port.actor.has(state::COLLECTING), port.mux >= MuxState::Collecting);
                assert_eq!(port.actor.has(state::DISTRIBUTING), port.mux == MuxState::Distributing);
                assert!(port.mux < MuxState::Waiting || port.is_selected);
            }
            let used: Vec<Option<Group>> = lacp.ports.iter().filter(|port| port.mux == MuxState::Distributing).map(group).collect();
            assert!(used.windows(2).all(|pair| pair[0] == pair[1]), "one group at a time");
        }
    }
}
