//! Truth tables over two hosts: which frames get from port to port through two switches and the cable between them, and which do not.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::wait_until;
use common::wire::{ARP, EVERYBODY, Heard, Mac, OTHER, Passed, Sent, Wire, ethernet, packet, station, wire_lab, words};
use serde_json::{Value, json};

// --- VLANs and private VLANs -----------------------------------------------------------------------------------------

/// Ports of each host, in the order of the table's columns.
fn vlan_ports() -> Vec<(&'static str, Value)> {
    let access = |vlan: u16| json!({ "mode": "access", "vlan": vlan });
    let trunk = |native: Option<u16>, first: u16, last: u16| json!({ "mode": "trunk", "native": native, "allowed": [{ "first": first, "last": last }] });
    let private = |mode: &str, secondary: u16| json!({ "mode": mode, "primary": 100, "secondary": secondary });
    let promiscuous = |secondaries: &[u16]| json!({ "mode": "promiscuous", "primary": 100, "secondaries": secondaries });
    let ports = [
        ("U", json!({ "mode": "untagged" })),
        ("A", access(10)),
        ("B", access(20)),
        ("T", trunk(Some(10), 20, 29)),
        ("W", trunk(None, 10, 20)),
        ("I", private("isolated", 101)),
        ("J", private("isolated", 101)),
        ("C", private("community", 102)),
        ("D", private("community", 102)),
        ("E", private("community", 103)),
        ("P", promiscuous(&[101, 102, 103])),
        ("Q", promiscuous(&[102])),
        ("R", trunk(None, 100, 103)),
    ];
    ports.map(|(name, vlan)| (name, json!({ "vlan": vlan }))).to_vec()
}

/// What a port sends, with which tags; its VLAN on the cable; at which ports it comes out, without a tag (`u`) or with one (`t`). It is the
/// same at both hosts, but a frame does not come back to its own port.
const VLANS: &str = "
    from        | cable | U A B T W  I J C D E P Q  R
    U           | 0     | u . . . u  . . . . . . .  u
    A           | 10    | . u . u t  . . . . . . .  .
    A 0         | 10    | . u . u t  . . . . . . .  .
    A 10        |       | . . . . .  . . . . . . .  .
    A 20        |       | . . . . .  . . . . . . .  .
    A 10 20     |       | . . . . .  . . . . . . .  .
    A 0 20      |       | . . . . .  . . . . . . .  .
    B           | 20    | . . u t t  . . . . . . .  .
    T           | 10    | . u . u t  . . . . . . .  .
    T 0         | 10    | . u . u t  . . . . . . .  .
    T 10        | 10    | . u . u t  . . . . . . .  .
    T 20        | 20    | . . u t t  . . . . . . .  .
    T 25        | 25    | . . . t .  . . . . . . .  .
    T 30        |       | . . . . .  . . . . . . .  .
    T 20 77     | 20    | . . . t t  . . . . . . .  .
    W           | 0     | u . . . u  . . . . . . .  u
    W 10        | 10    | . u . u t  . . . . . . .  .
    W 20        | 20    | . . u t t  . . . . . . .  .
    W 21        |       | . . . . .  . . . . . . .  .
    I           | 101   | . . . . .  . . . . . u .  t
    J           | 101   | . . . . .  . . . . . u .  t
    C           | 102   | . . . . .  . . u u . u u  t
    D           | 102   | . . . . .  . . u u . u u  t
    E           | 103   | . . . . .  . . . . u u .  t
    P           | 100   | . . . . .  u u u u u u u  t
    Q           | 100   | . . . . .  u u u u u u u  t
    R           | 0     | u . . . u  . . . . . . .  u
    R 100       | 100   | . . . . .  u u u u u u u  t
    R 101       | 101   | . . . . .  . . . . . u .  t
    R 102       | 102   | . . . . .  . . u u . u u  t
    R 103       | 103   | . . . . .  . . . . u u .  t
    R 104       |       | . . . . .  . . . . . . .  .
";

struct Row {
    from: String,
    tags: Vec<u16>,
    cable: Option<u16>,
    /// By column.
    marks: Vec<char>,
}

fn rows() -> Vec<Row> {
    let lines = VLANS.trim().lines().skip(1).map(|line| {
        let [from, cable, marks] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (from, tags) = from.split_once(' ').unwrap_or((from, ""));
        let tags = tags.split_whitespace().map(|tag| tag.parse().unwrap()).collect();
        let marks = marks.chars().filter(|mark| !mark.is_whitespace()).collect();
        Row { from: from.into(), tags, cable: cable.parse().ok(), marks }
    });
    lines.collect()
}

impl Row {
    /// Where a frame of this row from a host comes out, if it is for everybody.
    fn expected(&self, host: usize, ports: &[(&str, Value)]) -> Vec<Heard> {
        let of = |at: usize| {
            let reached = ports
                .iter()
                .zip(&self.marks)
                .filter(move |((name, _), mark)| **mark != '.' && (at, *name) != (host, &self.from[..]));
            reached.map(move |((name, _), mark)| Heard { host: at, port: name.to_string(), tag: self.tag(*mark) })
        };
        (0..2).flat_map(of).collect()
    }

    fn tag(&self, mark: char) -> Option<u16> {
        (mark == 't').then(|| self.cable.expect("it is in a VLAN"))
    }
}

fn sorted(mut heard: Vec<Heard>) -> Vec<Heard> {
    heard.sort_by(|a, b| (a.host, &a.port).cmp(&(b.host, &b.port)));
    heard
}

#[test]
fn vlans_and_private_vlans_decide_who_hears_whom_on_one_host_and_over_two() {
    let lab = wire_lab().start().unwrap();
    let (ports, rows) = (vlan_ports(), rows());
    assert!(rows.iter().all(|row| row.marks.len() == ports.len()), "each row has a mark for each port");
    let mut wire = Wire::start(&lab, &ports);
    let number = |name: &str| ports.iter().position(|(port, _)| *port == name).unwrap();
    let frame = |host: usize, row: &Row, to: Mac| {
        let frame = ethernet(station(host, number(&row.from)), to, &row.tags, OTHER, &[]);
        Sent { host, port: row.from.clone(), frame }
    };
    // For everybody. By that, all stations are known to both switches.
    for host in 0..2 {
        let sent: Vec<Sent> = rows.iter().map(|row| frame(host, row, EVERYBODY)).collect();
        for (row, Passed { heard, on_cable }) in rows.iter().zip(wire.round(&sent)) {
            let what = format!("from {} {:?} of host {host} to all", row.from, row.tags);
            assert_eq!(sorted(heard), sorted(row.expected(host, &ports)), "{what}");
            assert_eq!(on_cable, row.cable, "the VLAN on the cable, {what}");
        }
    }
    // For one, each to each.
    let entering: Vec<&Row> = rows.iter().filter(|row| row.cable.is_some()).collect();
    for host in 0..2 {
        for (target, (name, _)) in (0..2).flat_map(|at| ports.iter().enumerate().map(move |(number, port)| ((at, number), port)))
        {
            let rows: Vec<&&Row> = entering.iter().filter(|row| (host, number(&row.from)) != target).collect();
            let sent: Vec<Sent> = rows.iter().map(|row| frame(host, row, station(target.0, target.1))).collect();
            for (row, Passed { heard, on_cable }) in rows.iter().zip(wire.round(&sent)) {
                let what = format!("from {} {:?} of host {host} to {name} of host {}", row.from, row.tags, target.0);
                match row.marks[target.1] {
                    // It is nowhere to be found in its VLAN, so others may get it.
                    '.' => {
                        assert!(!heard.iter().any(|heard| (heard.host, &heard.port[..]) == (target.0, name)), "{what}: {heard:?}")
                    }
                    mark => {
                        assert_eq!(heard, [Heard { host: target.0, port: name.to_string(), tag: row.tag(mark) }], "{what}");
                        assert_eq!(on_cable, row.cable.filter(|_| host != target.0), "the VLAN on the cable, {what}");
                    }
                }
            }
        }
    }
}

// --- rules -----------------------------------------------------------------------------------------------------------

/// The port that has rules is at the second host, and the one that talks with it at the first.
fn rule_ports() -> [(&'static str, Value); 1] {
    [("vm", json!({}))]
}

const PEER: usize = 0;
const RULED: usize = 1;

/// A frame as text: its direction at the port with rules; `udp`, `tcp`, `icmp`, a number or `arp`; the address and port (of an echo, its
/// identifier) elsewhere and behind the port; `later` for a later fragment, `from 3` for another station elsewhere.
fn frame(text: &str) -> Sent {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let is_in = match parts[0] {
        "in" => true,
        "out" => false,
        other => panic!("{other}"),
    };
    let after = |word: &str| parts.iter().position(|found| *found == word).map(|at| parts[at + 1]);
    let elsewhere = station(PEER, after("from").map_or(1, |number| number.parse().unwrap()));
    let behind = station(RULED, 2);
    let (from, to) = if is_in { (elsewhere, behind) } else { (behind, elsewhere) };
    let (host, port) = (if is_in { PEER } else { RULED }, "vm".to_owned());
    if parts[1] == "arp" {
        return Sent { host, port, frame: ethernet(from, to, &[], ARP, &[]) };
    }
    let [remote, local] =
        [parts[2], parts[3]].map(|address| address.parse::<SocketAddr>().unwrap_or_else(|_| panic!("{address}")));
    let (source, destination) = if is_in { (remote, local) } else { (local, remote) };
    let ports = [source.port(), destination.port()];
    let offset = if parts.contains(&"later") { 100 } else { 0 };
    let (protocol, payload) = match parts[1] {
        "udp" => (UDP, [words(&ports), words(&[8, 0])].concat()),
        "tcp" => (TCP, [words(&ports), words(&[0, 1, 0, 0, 0x5010, 0xffff, 0, 0])].concat()),
        // Who asks is behind the port.
        "icmp" => {
            let (protocol, kinds) = if source.is_ipv4() { (ICMP, [8, 0]) } else { (ICMPV6, [128, 129]) };
            (protocol, words(&[kinds[usize::from(is_in)] << 8, 0, local.port(), 1]))
        }
        number => (number.parse().unwrap(), vec![0; 40]),
    };
    let (kind, packet) = packet(source.ip(), destination.ip(), protocol, offset, &payload);
    Sent { host, port, frame: ethernet(from, to, &[], kind, &packet) }
}

/// Has these frames go in one after the other, and says which came out at the other end.
fn pass(wire: &mut Wire<'_>, frames: &[&str]) -> Vec<bool> {
    let sent: Vec<Sent> = frames.iter().map(|text| frame(text)).collect();
    wire.round(&sent).into_iter().map(|passed| passed.heard.iter().any(|heard| heard.port == "vm")).collect()
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect()
}

/// A port with this policy lets these frames through and stops those.
fn decides(wire: &mut Wire<'_>, policy: &Value, passes: &str, stops: &str) {
    wire.set(RULED, "vm", policy);
    let (passes, stops) = (list(passes), list(stops));
    let all = [&passes[..], &stops[..]].concat();
    for (text, (found, expected)) in all.iter().zip(pass(wire, &all).into_iter().zip((0..).map(|at| at < passes.len()))) {
        assert_eq!(found, expected, "whether '{text}' passes, with {policy}");
    }
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn by_prefix(action: &str, direction: Option<&str>, address: &Value) -> Value {
    json!({ "action": action, "direction": direction, "address": address })
}

#[test]
fn rules_by_longest_prefix_decide_over_two_hosts() {
    let lab = wire_lab().start().unwrap();
    let mut wire = Wire::start(&lab, &rule_ports());
    let wire = &mut wire;
    let remote = |prefix: &str| json!({ "remote-ip": prefix });
    let local = |prefix: &str| json!({ "local-ip": prefix });
    let remote_mac = |number: usize| json!({ "remote-mac": mac_text(station(PEER, number)) });
    let local_mac = || json!({ "local-mac": mac_text(station(RULED, 2)) });
    let (any_ip, any_mac) = (json!("any-ip"), json!("any-mac"));
    let inbound = |action: &str, address: &Value| by_prefix(action, Some("inbound"), address);
    let acl = |rules: &[Value]| json!({ "acl": rules });
    let first = "udp 10.9.0.1:1000 10.9.0.2:53";

    decides(wire, &acl(&[]), &format!("in {first}, out {first}, in arp, out arp, in udp [fd00::1]:1 [fd00::2]:2"), "");
    // Directions, and that nothing is remembered: what comes in may be answered although its answer's answer may not come in.
    let one = remote("10.9.0.1/32");
    let (only_in, only_out) = (inbound("deny", &one), by_prefix("deny", Some("outbound"), &one));
    let others = "in udp 10.9.0.3:1000 10.9.0.2:53, out udp 10.9.0.3:1000 10.9.0.2:53, in arp, out arp";
    decides(wire, &acl(&[only_in]), &format!("out {first}, {others}"), &format!("in {first}, in icmp 10.9.0.1:7 10.9.0.2:7"));
    decides(wire, &acl(&[only_out]), &format!("in {first}, {others}"), &format!("out {first}, out icmp 10.9.0.1:7 10.9.0.2:7"));
    decides(wire, &acl(&[by_prefix("deny", None, &one)]), others, &format!("in {first}, out {first}"));
    // The longest prefix wins, whatever the order.
    let mut rules = [
        inbound("deny", &remote("10.0.0.0/8")),
        inbound("allow", &remote("10.9.0.0/16")),
        inbound("deny", &remote("10.9.0.0/24")),
        inbound("allow", &remote("10.9.0.1/32")),
    ];
    for _ in 0..2 {
        decides(
            wire,
            &acl(&rules),
            "in udp 10.9.0.1:1 10.9.0.2:2, in udp 10.9.1.1:1 10.9.0.2:2, in udp 192.0.2.1:1 10.9.0.2:2",
            "in udp 10.9.0.3:1 10.9.0.2:2, in udp 10.8.0.1:1 10.9.0.2:2",
        );
        rules.reverse();
    }
    // Any address is the shortest prefix of all, and of IP only.
    let (v4, v6) = ("in udp 192.0.2.1:1 10.9.0.2:2", "in udp [fd00::1]:1 [fd00::9]:2");
    decides(
        wire,
        &acl(&[inbound("deny", &any_ip), inbound("allow", &one)]),
        &format!("in {first}, in arp, out {first}"),
        &format!("{v4}, {v6}"),
    );
    decides(wire, &acl(&[inbound("allow", &any_ip), inbound("deny", &remote("0.0.0.0/0"))]), &format!("{v6}, in arp"), v4);
    decides(
        wire,
        &acl(&[inbound("deny", &remote("fd00::/64")), inbound("allow", &remote("fd00::1/128"))]),
        &format!("{v6}, {v4}"),
        "in udp [fd00::3]:1 [fd00::9]:2",
    );
    // Local beside remote: the longer one; of equal ones, the one that denies.
    let near = local("10.9.0.2/32");
    decides(
        wire,
        &acl(&[inbound("deny", &near), inbound("allow", &remote("10.9.0.0/24"))]),
        "in udp 10.9.0.1:1 10.9.0.4:2",
        &format!("in {first}"),
    );
    decides(
        wire,
        &acl(&[inbound("allow", &near), inbound("deny", &remote("10.9.0.0/24"))]),
        &format!("in {first}"),
        "in udp 10.9.0.1:1 10.9.0.4:2",
    );
    decides(wire, &acl(&[inbound("deny", &near), inbound("allow", &one)]), "", &format!("in {first}"));
    decides(wire, &acl(&[inbound("allow", &near), inbound("deny", &one)]), "", &format!("in {first}"));
    // Stations, with all that they send.
    let from_3 = format!("in {first} from 3, in arp from 3");
    decides(wire, &acl(&[inbound("deny", &remote_mac(3))]), &format!("in {first}, in arp, out {first} from 3"), &from_3);
    decides(
        wire,
        &acl(&[inbound("deny", &any_mac), inbound("allow", &remote_mac(1))]),
        &format!("in {first}, in arp, out arp"),
        &from_3,
    );
    decides(
        wire,
        &acl(&[by_prefix("deny", Some("outbound"), &local_mac())]),
        &format!("in {first}, in arp"),
        &format!("out {first}, out arp"),
    );
    // Stations and addresses: both have to be allowed.
    decides(wire, &acl(&[inbound("allow", &remote_mac(1)), inbound("deny", &one)]), "in arp", &format!("in {first}"));
    decides(wire, &acl(&[inbound("deny", &remote_mac(1)), inbound("allow", &one)]), "", &format!("in {first}, in arp"));

    meters_count_by_longest_prefix(wire);
}

/// Meters count what passes, each packet at the longest prefix, and stop nothing.
fn meters_count_by_longest_prefix(wire: &mut Wire<'_>) {
    let meter = |direction: &str, address: Value| by_prefix("meter", Some(direction), &address);
    let rules = [
        meter("inbound", json!({ "remote-ip": "10.0.0.0/8" })),
        meter("inbound", json!({ "remote-ip": "10.9.0.0/24" })),
        meter("inbound", json!({ "remote-ip": "10.9.0.1/32" })),
        meter("outbound", json!("any-ip")),
        by_prefix("deny", Some("inbound"), &json!({ "remote-ip": "10.9.0.66/32" })),
    ];
    let most =
        "in udp 10.9.0.1:1 10.9.0.2:2, in udp 10.9.0.3:1 10.9.0.2:2, in udp 10.9.0.4:1 10.9.0.2:2, in udp 10.7.0.1:1 10.9.0.2:2,
        in udp 10.7.0.1:1 10.9.0.2:2, in udp 10.7.0.2:1 10.9.0.2:2, in udp 192.0.2.1:1 10.9.0.2:2, in arp,
        out udp 192.0.2.1:1 10.9.0.2:2, out udp 10.9.0.1:1 10.9.0.2:2, out arp";
    decides(wire, &json!({ "acl": rules }), most, "in udp 10.9.0.66:1 10.9.0.2:2");
    let status = wire.status(RULED);
    let port = status["ports"].as_array().unwrap().iter().find(|port| port["name"] == "vm").unwrap();
    // Each of these frames has 64 bytes.
    assert_eq!(port["meters"], json!({ "0": 3 * 64, "1": 2 * 64, "2": 64, "3": 2 * 64 }), "{port}");
}

/// A rule by weight, with more of its parts.
fn by_weight(effect: &str, direction: &str, weight: u32, parts: Value) -> Value {
    let effect = match effect {
        "stateful" => json!({ "allow-stateful": { "idle-timeout-s": 600 } }),
        effect => json!(effect),
    };
    let mut rule = json!({ "effect": effect, "direction": direction, "weight": weight });
    rule.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    rule
}

fn extended(rules: &[Value]) -> Value {
    json!({ "extended-acl": rules })
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

#[test]
fn rules_by_weight_decide_over_two_hosts() {
    let lab = wire_lab().start().unwrap();
    let mut wire = Wire::start(&lab, &rule_ports());
    let wire = &mut wire;
    let ports = |first: u16, last: u16| json!({ "first": first, "last": last });
    let no_more = || by_weight("deny", "inbound", 1, json!({}));
    let web = "in tcp 10.9.0.1:1000 10.9.0.2:80";

    decides(
        wire,
        &extended(&[]),
        &format!("{web}, out tcp 10.9.0.1:1 10.9.0.2:2, in icmp 10.9.0.1:7 10.9.0.2:7, in 47 10.9.0.1:0 10.9.0.2:0"),
        "",
    );
    // Everything of IP, in one direction.
    let all = format!(
        "{web}, in udp 10.9.0.1:1 10.9.0.2:2, in icmp 10.9.0.1:7 10.9.0.2:7, in 47 10.9.0.1:0 10.9.0.2:0, in tcp [fd00::1]:1 [fd00::2]:2"
    );
    decides(wire, &extended(&[no_more()]), "out tcp 10.9.0.1:1 10.9.0.2:2, in arp, out arp", &all);
    // Weight, not the order and not the prefix; each direction has its own.
    let allow_80 = |weight| by_weight("allow", "inbound", weight, json!({ "protocol": TCP, "local-ports": ports(80, 80) }));
    let not_80 = "in tcp 10.9.0.1:80 10.9.0.2:81, in udp 10.9.0.1:80 10.9.0.2:80, in icmp 10.9.0.1:80 10.9.0.2:80";
    decides(wire, &extended(&[no_more(), allow_80(2)]), web, not_80);
    decides(wire, &extended(&[allow_80(2), no_more()]), web, not_80);
    decides(wire, &extended(&[allow_80(1), by_weight("deny", "inbound", 2, json!({}))]), "", web);
    let long = by_weight("deny", "inbound", 5, json!({ "remote": "10.9.0.1/32" }));
    let short = by_weight("allow", "inbound", 6, json!({ "remote": "10.0.0.0/8" }));
    decides(wire, &extended(&[long, short, no_more()]), web, "in tcp 192.0.2.1:1000 10.9.0.2:80");
    let both = [no_more(), by_weight("deny", "outbound", 1, json!({ "protocol": UDP }))];
    decides(wire, &extended(&both), "out tcp 10.9.0.1:1 10.9.0.2:2", &format!("{web}, out udp 10.9.0.1:1 10.9.0.2:2"));
    // Ranges, with both their ends.
    let range = by_weight("allow", "inbound", 9, json!({ "protocol": TCP, "local-ports": ports(1000, 2000) }));
    let [inside, outside] = [[1000, 1001, 1999, 2000], [0, 999, 2001, 65535]]
        .map(|ports| ports.map(|port| format!("in tcp 10.9.0.1:1500 10.9.0.2:{port}")).join(","));
    decides(wire, &extended(&[range, no_more()]), &inside, &outside);
    let range = by_weight("deny", "outbound", 9, json!({ "protocol": UDP, "remote-ports": ports(53, 54) }));
    let [inside, outside] =
        [[53, 54], [52, 55]].map(|ports| ports.map(|port| format!("out udp 10.9.0.1:{port} 10.9.0.2:53")).join(","));
    decides(
        wire,
        &extended(&[range]),
        &format!("{outside}, in udp 10.9.0.1:53 10.9.0.2:53, out tcp 10.9.0.1:53 10.9.0.2:53"),
        &inside,
    );
    // Ports of any protocol that has some.
    let range = by_weight("allow", "inbound", 9, json!({ "local-ports": ports(80, 80) }));
    decides(
        wire,
        &extended(&[range, no_more()]),
        &format!("{web}, in udp 10.9.0.1:1 10.9.0.2:80"),
        "in icmp 10.9.0.1:80 10.9.0.2:80",
    );
    // Protocols by their numbers.
    let gre = by_weight("deny", "inbound", 1, json!({ "protocol": 47 }));
    decides(wire, &extended(&[gre]), &format!("{web}, in icmp 10.9.0.1:7 10.9.0.2:7"), "in 47 10.9.0.1:0 10.9.0.2:0");
    let echo = by_weight("allow", "inbound", 2, json!({ "protocol": 1 }));
    decides(wire, &extended(&[echo, no_more()]), "in icmp 10.9.0.1:7 10.9.0.2:7", web);
    // All five at once: one that differs is enough.
    let five = json!({
        "local": "10.9.0.2/32", "remote": "10.9.0.0/30", "protocol": TCP, "local-ports": ports(443, 443), "remote-ports": ports(40000, 40010)
    });
    decides(
        wire,
        &extended(&[by_weight("allow", "inbound", 2, five), no_more()]),
        "in tcp 10.9.0.1:40000 10.9.0.2:443, in tcp 10.9.0.3:40010 10.9.0.2:443",
        "in udp 10.9.0.1:40000 10.9.0.2:443, in tcp 10.9.0.4:40000 10.9.0.2:443, in tcp 10.9.0.1:40000 10.9.0.3:443,
         in tcp 10.9.0.1:40011 10.9.0.2:443, in tcp 10.9.0.1:40000 10.9.0.2:444",
    );
    // One kind of addresses says nothing of the other.
    let of_v6 = by_weight("deny", "inbound", 1, json!({ "remote": "fd00::/64" }));
    decides(wire, &extended(&[of_v6]), &format!("{web}, in tcp [fd01::1]:1 [fd00::9]:2"), "in tcp [fd00::1]:1 [fd00::9]:2");
    // Later fragments have no ports: they follow what allows, and are worth nothing without their first.
    let later = "in udp 10.9.0.1:0 10.9.0.2:0 later";
    let allow_53 = by_weight("allow", "inbound", 2, json!({ "protocol": UDP, "local-ports": ports(53, 53) }));
    decides(wire, &extended(&[allow_53, no_more()]), later, "in udp 10.9.0.1:1 10.9.0.2:54");
    let deny_53 = by_weight("deny", "inbound", 2, json!({ "protocol": UDP, "local-ports": ports(53, 53) }));
    decides(wire, &extended(&[deny_53]), later, "in udp 10.9.0.1:1 10.9.0.2:53");
    decides(wire, &extended(&[no_more()]), "", later);
    // Both kinds of rules: each may stop it.
    let other = by_prefix("deny", Some("inbound"), &json!({ "remote-ip": "10.9.0.1/32" }));
    let policy = json!({ "acl": [other], "extended-acl": [allow_80(2), no_more()] });
    decides(wire, &policy, "in tcp 10.9.0.3:1000 10.9.0.2:80", &format!("{web}, in tcp 10.9.0.3:1000 10.9.0.2:81"));
}

#[test]
fn stateful_rules_let_answers_through_and_nothing_else_over_two_hosts() {
    let lab = wire_lab().start().unwrap();
    let mut wire = Wire::start(&lab, &rule_ports());
    let wire = &mut wire;
    let deny = |direction: &str| by_weight("deny", direction, 1, json!({}));
    let answer = "in tcp 10.9.0.1:80 10.9.0.2:5000";
    let ask = "out tcp 10.9.0.1:80 10.9.0.2:5000";

    // A rule that allows remembers nothing.
    let web = json!({ "protocol": TCP, "remote-ports": { "first": 80, "last": 80 } });
    decides(wire, &extended(&[by_weight("allow", "outbound", 2, web.clone()), deny("outbound"), deny("inbound")]), ask, answer);
    // One that is stateful does, and only what it is about.
    let stateful = extended(&[by_weight("stateful", "outbound", 2, web), deny("outbound"), deny("inbound")]);
    decides(wire, &stateful, "", &format!("{answer}, out tcp 10.9.0.1:81 10.9.0.2:5000, in tcp 10.9.0.1:81 10.9.0.2:5000"));
    let others = "in tcp 10.9.0.1:81 10.9.0.2:5000, in tcp 10.9.0.1:80 10.9.0.2:5001, in tcp 10.9.0.3:80 10.9.0.2:5000,
        in tcp 10.9.0.1:80 10.9.0.3:5000, in udp 10.9.0.1:80 10.9.0.2:5000, out tcp 10.9.0.1:5000 10.9.0.2:80";
    decides(wire, &stateful, ask, "");
    decides(wire, &stateful, &format!("{answer}, {ask}, {answer}"), others);
    // Without the rule the connection is over, and does not come back with it.
    decides(wire, &extended(&[deny("outbound"), deny("inbound")]), "", answer);
    decides(wire, &stateful, "", answer);
    // The other way round, and both ways at once.
    let inbound = extended(&[by_weight("stateful", "inbound", 2, json!({})), deny("outbound")]);
    decides(wire, &inbound, "", ask);
    decides(wire, &inbound, answer, "");
    decides(wire, &inbound, ask, "out tcp 10.9.0.1:81 10.9.0.2:5000");
    // Echoes, by their identifier; IPv6.
    let any = extended(&[by_weight("stateful", "outbound", 2, json!({})), deny("inbound")]);
    decides(wire, &any, "out icmp 10.9.0.1:7 10.9.0.2:7, out udp [fd00::1]:53 [fd00::2]:5000", "");
    let others = "in icmp 10.9.0.1:8 10.9.0.2:8, in icmp 10.9.0.3:7 10.9.0.2:7, in udp [fd00::3]:53 [fd00::2]:5000";
    decides(wire, &any, "in icmp 10.9.0.1:7 10.9.0.2:7, in udp [fd00::1]:53 [fd00::2]:5000", others);

    each_packet_begins_the_idle_time_anew(wire);
    a_connection_is_over_after_its_idle_time(wire);
}

fn idle_policy(idle_timeout_s: u32) -> Value {
    let effect = json!({ "allow-stateful": { "idle-timeout-s": idle_timeout_s } });
    let rule = json!({ "effect": effect, "direction": "outbound", "weight": 2 });
    extended(&[rule, by_weight("deny", "inbound", 1, json!({}))])
}

/// The idle time of the one connection.
fn idle_ms(wire: &Wire<'_>) -> u64 {
    let state = wire.export(RULED, "vm");
    let [connection] = &state["connections"].as_array().unwrap()[..] else { panic!("{}", state["connections"]) };
    connection["idle-ms"].as_u64().unwrap()
}

fn each_packet_begins_the_idle_time_anew(wire: &mut Wire<'_>) {
    wire.set(RULED, "vm", &extended(&[]));
    decides(wire, &idle_policy(600), "out udp 10.9.0.1:53 10.9.0.2:6000", "");
    for packet in ["in udp 10.9.0.1:53 10.9.0.2:6000", "out udp 10.9.0.1:53 10.9.0.2:6000"] {
        // More than a round takes.
        wait_until("an idle connection", || idle_ms(wire) > 3000);
        let before = idle_ms(wire);
        assert_eq!(pass(wire, &[packet]), [true], "{packet}");
        let idle = idle_ms(wire);
        assert!(idle < before, "idle for {before} ms, and for {idle} ms after '{packet}'");
    }
}

fn a_connection_is_over_after_its_idle_time(wire: &mut Wire<'_>) {
    wire.set(RULED, "vm", &extended(&[]));
    wire.set(RULED, "vm", &idle_policy(2));
    let begun = Instant::now();
    assert_eq!(pass(wire, &["out udp 10.9.0.1:53 10.9.0.2:7000"]), [true]);
    assert_eq!(wire.status(RULED)["connections"], 1);
    wait_until("a connection that is over", || wire.status(RULED)["connections"] == 0);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it was over after {:?}", begun.elapsed());
    assert_eq!(pass(wire, &["in udp 10.9.0.1:53 10.9.0.2:7000"]), [false], "an answer that comes too late");
    println!("a connection with an idle time-out of 2 s was gone after {:?}", begun.elapsed());
}
