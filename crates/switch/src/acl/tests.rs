//! Both kinds of rules against tables and against a plain list.

use proptest::prelude::*;

use super::*;
use crate::frame::build::{ethernet, mac};
use crate::frame::{Fragment, HEADER_BYTES, TCP, UDP};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn subject(bytes: &[u8], direction: Direction) -> Subject {
    Subject::new(&Frame::parse(&bytes[..bytes.len().min(HEADER_BYTES)], bytes.len()).unwrap(), direction)
}

/// A packet that the station at 10.0.0.5 (address 1) sends to, or gets from, `remote`.
fn packet(direction: Direction, remote: &str) -> Subject {
    let (local, remote) = ((ip("10.0.0.5"), 80), (ip(remote), 4000));
    match direction {
        Direction::Outbound => subject(&ethernet(mac(1), mac(2)).tcp(local, remote), direction),
        Direction::Inbound => subject(&ethernet(mac(2), mac(1)).tcp(remote, local), direction),
    }
}

#[test]
fn the_longest_prefix_wins_and_no_rule_lets_through() {
    use Address::*;
    use PrefixAction::*;
    let prefix = |text: &str| text.parse::<Prefix>().unwrap();
    let rule = |action, address| PrefixRule { action, direction: None, address };
    let remote = |text| RemoteIp(prefix(text));
    let cases: &[(&[PrefixRule], &str, bool)] = &[
        (&[], "10.1.0.1", true),
        (&[rule(Deny, AnyIp)], "10.1.0.1", false),
        (&[rule(Deny, AnyIp), rule(Allow, remote("10.1.0.0/16"))], "10.1.0.1", true),
        (&[rule(Deny, AnyIp), rule(Allow, remote("10.1.0.0/16"))], "10.2.0.1", false),
        (&[rule(Allow, remote("10.1.0.0/16")), rule(Deny, remote("10.1.2.0/24"))], "10.1.2.1", false),
        (&[rule(Allow, remote("10.1.2.3")), rule(Deny, remote("10.1.2.0/24"))], "10.1.2.3", true),
        // The longer of a local and a remote prefix; of equal ones the one that denies.
        (&[rule(Deny, LocalIp(prefix("10.0.0.0/8"))), rule(Allow, remote("10.1.0.0/16"))], "10.1.0.1", true),
        (&[rule(Allow, LocalIp(prefix("10.0.0.0/16"))), rule(Deny, remote("10.1.0.0/16"))], "10.1.0.1", false),
        // Each class by itself.
        (&[rule(Allow, AnyIp), rule(Deny, RemoteMac(mac(2)))], "10.1.0.1", false),
        (&[rule(Deny, AnyMac), rule(Allow, RemoteMac(mac(2)))], "10.1.0.1", true),
        (&[rule(Deny, AnyMac), rule(Allow, RemoteMac(mac(3)))], "10.1.0.1", false),
        (&[rule(Deny, AnyIp), rule(Meter, remote("10.1.0.1"))], "10.1.0.1", false),
    ];
    for (number, (rules, remote, expected)) in cases.iter().enumerate() {
        let acl = PrefixAcl::new(rules).unwrap();
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(acl.decide(&packet(direction, remote)).allowed, *expected, "case {number}, {direction:?}");
        }
    }
    let inbound = PrefixRule { direction: Some(Direction::Inbound), ..rule(Deny, AnyIp) };
    let acl = PrefixAcl::new(&[inbound]).unwrap();
    let decide = |direction| acl.decide(&packet(direction, "10.1.0.1"));
    assert_eq!(decide(Direction::Outbound), PrefixVerdict { allowed: true, mac: None, ip: None });
    assert_eq!(decide(Direction::Inbound), PrefixVerdict { allowed: false, mac: None, ip: Some(0) });
    let both =
        PrefixAcl::new(&[rule(Deny, remote("10.1.0.0/16")), rule(Allow, AnyMac), rule(Allow, remote("10.1.0.1"))]).unwrap();
    let decided = both.decide(&packet(Direction::Inbound, "10.1.0.1"));
    assert_eq!(decided, PrefixVerdict { allowed: true, mac: Some(1), ip: Some(2) });
    assert_eq!(PrefixAcl::new(&[rule(Meter, AnyMac)]).unwrap_err(), PolicyError::MacMeter);
}

#[test]
fn the_longest_meter_counts() {
    let meter = |text: &str| PrefixRule {
        action: PrefixAction::Meter,
        direction: None,
        address: Address::RemoteIp(text.parse().unwrap()),
    };
    let acl = PrefixAcl::new(&[meter("10.0.0.0/8"), meter("10.1.0.0/16")]).unwrap();
    let found = ["10.1.0.1", "10.2.0.1", "11.0.0.1"].map(|remote| acl.meter(&packet(Direction::Outbound, remote)));
    assert_eq!(found, [Some(1), Some(0), None]);
}

fn extended(effect: Effect, weight: u32) -> ExtendedRule {
    ExtendedRule {
        effect,
        direction: Direction::Inbound,
        weight,
        local: None,
        remote: None,
        protocol: None,
        local_ports: None,
        remote_ports: None,
    }
}

#[test]
fn hidden_ports_are_denied_and_later_fragments_follow_their_first() {
    let range = Some(PortRange { first: 22, last: 22 });
    let deny = ExtendedRule { local_ports: range, protocol: Some(UDP), ..extended(Effect::Deny, 2) };
    let allow = ExtendedRule { local_ports: range, protocol: Some(UDP), ..extended(Effect::Allow, 2) };
    let closed = extended(Effect::Deny, 1);
    let later = ethernet(mac(2), mac(1)).ipv4("10.1.0.1".parse().unwrap(), "10.0.0.5".parse().unwrap(), UDP, 10, &[0; 64]);
    let mut hidden = vec![UDP, 15];
    hidden.resize(136, 0);
    let hidden = ethernet(mac(2), mac(1)).ipv6("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), 60, &hidden);
    let decide =
        |rules: &[ExtendedRule], bytes: &[u8]| ExtendedAcl::new(rules).unwrap().decide(&subject(bytes, Direction::Inbound)).0;
    assert_eq!(decide(std::slice::from_ref(&deny), &later), Verdict::Allow);
    assert_eq!(decide(&[allow.clone(), closed.clone()], &later), Verdict::Allow);
    assert_eq!(decide(&[deny], &hidden), Verdict::Deny);
    assert_eq!(decide(&[allow, closed], &hidden), Verdict::Deny);
}

#[test]
fn rules_that_contradict_themselves_are_refused() {
    let range = |first, last| Some(PortRange { first, last });
    let prefix = |text: &str| Some(text.parse::<Prefix>().unwrap());
    let rule = extended(Effect::Allow, 1);
    let cases = [
        (ExtendedRule { local_ports: range(2, 1), ..rule.clone() }, PolicyError::Range { first: 2, last: 1 }),
        (ExtendedRule { local_ports: range(1, 2), protocol: Some(1), ..rule.clone() }, PolicyError::PortsWithoutProtocol),
        (ExtendedRule { local: prefix("10.0.0.1"), remote: prefix("::1"), ..rule.clone() }, PolicyError::MixedAddresses),
    ];
    for (wrong, expected) in cases {
        assert_eq!(ExtendedAcl::new(&[wrong]).unwrap_err(), expected);
    }
    assert_eq!(ExtendedAcl::new(&[rule.clone(), rule]).unwrap_err(), PolicyError::SameWeight(1));
    assert!("10.0.0.0/33".parse::<Prefix>().is_err() && "::/129".parse::<Prefix>().is_err());
}

fn any_prefix() -> impl Strategy<Value = Option<Prefix>> {
    prop::option::of((0u32..4, 0u8..=32, any::<bool>()).prop_map(|(host, length, is_v4)| {
        let v4 = std::net::Ipv4Addr::from(0x0a00_0000 | host);
        let v6 = std::net::Ipv6Addr::from(u128::from(host));
        if is_v4 { Prefix::new(v4.into(), length) } else { Prefix::new(v6.into(), length * 4) }.unwrap()
    }))
}

fn any_ports() -> impl Strategy<Value = Option<PortRange>> {
    prop::option::of((0u16..4, 0u16..3).prop_map(|(first, more)| PortRange { first, last: first + more }))
}

prop_compose! {
    fn any_rule()(
        effect in prop::sample::select(vec![Effect::Allow, Effect::Deny, Effect::AllowStateful { idle_timeout_s: 9 }]),
        direction in prop::sample::select(vec![Direction::Inbound, Direction::Outbound]),
        local in any_prefix(),
        remote in any_prefix(),
        ports in (any_ports(), any_ports()),
        protocol in prop::option::of(prop::sample::select(vec![TCP, UDP])),
    ) -> ExtendedRule {
        ExtendedRule { effect, direction, weight: 0, local, remote, protocol, local_ports: ports.0, remote_ports: ports.1 }
    }
}

prop_compose! {
    fn any_packet()(
        hosts in (0u32..4, 0u32..4),
        is_v4 in any::<bool>(),
        protocol in prop::sample::select(vec![TCP, UDP, 47]),
        transport in prop::sample::select(vec![
            Transport::Unknown, Transport::None, Transport::Ports { source: 1, destination: 2 },
            Transport::Ports { source: 3, destination: 3 }, Transport::Icmp { kind: 8, code: 0, id: 1 },
        ]),
        is_later in any::<bool>(),
        direction in prop::sample::select(vec![Direction::Inbound, Direction::Outbound]),
    ) -> Subject {
        let address = |host: u32| -> IpAddr {
            if is_v4 { std::net::Ipv4Addr::from(0x0a00_0000 | host).into() } else { std::net::Ipv6Addr::from(u128::from(host)).into() }
        };
        let (source, destination) = (address(hosts.0), address(hosts.1));
        let fragment = if is_later && transport == Transport::None { Fragment::Later } else { Fragment::Whole };
        let ip = Ip { source, destination, protocol, transport, fragment };
        let (destination, source) = (mac(1), mac(2));
        let frame =
            Frame { destination, source, tag: None, stacked: false, ether_type: 0x0800, is_announcement: false, ip: Some(ip) };
        Subject::new(&frame, direction)
    }
}

proptest! {
    /// The look-ups decide as reading the list from the highest weight down does.
    #[test]
    fn extended_rules_are_an_ordered_list(
        mut rules in prop::collection::vec(any_rule(), 0..40),
        packets in prop::collection::vec(any_packet(), 1..20),
    ) {
        // Weights that are not in the list's order.
        for (number, rule) in rules.iter_mut().enumerate() {
            rule.weight = (number as u32 * 17) % 41;
        }
        let mixed = |rule: &ExtendedRule| matches!((rule.local, rule.remote), (Some(a), Some(b)) if a.address.is_ipv4() != b.address.is_ipv4());
        rules.retain(|rule| !mixed(rule));
        let acl = ExtendedAcl::new(&rules).unwrap();
        let mut rules: Vec<(u32, ExtendedRule)> = (0..).zip(rules).collect();
        rules.sort_by_key(|(_, rule)| std::cmp::Reverse(rule.weight));
        for subject in packets {
            let packet = subject.packet.unwrap();
            let first = rules.iter().find(|(_, rule)| {
                rule.direction == subject.direction && rule.matches(&packet, subject.direction)
            });
            let expected = match first.map(|(_, rule)| rule.effect) {
                None | Some(Effect::Allow) => Verdict::Allow,
                Some(Effect::Deny) => Verdict::Deny,
                Some(Effect::AllowStateful { .. }) if packet.ip.fragment == Fragment::Later => Verdict::Allow,
                Some(Effect::AllowStateful { .. }) => Verdict::Remember { idle_timeout_ms: 9000 },
            };
            prop_assert_eq!(acl.decide(&subject), (expected, first.map(|(number, _)| *number)));
        }
    }
}
