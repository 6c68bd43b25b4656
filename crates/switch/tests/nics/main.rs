//! Uplinks and teams with real interfaces.

mod confined;
mod space;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use space::{ARP, IPV4, Peer, RARP, STATION, Station, in_namespace, ip, until};
use switch::control::Backend;
use switch::mac::MacAddress;
use switch::policy::PortPolicy;
use switch::team::config::{TeamConfig, TeamMode};
use switch::team::lacp::{LacpRate, MuxState};
use switch::vlan::VlanMode;

fn team(mode: TeamMode) -> TeamConfig {
    TeamConfig { nics: vec!["v0".into(), "v1".into()], mode, ..TeamConfig::single("") }
}

/// A switch with a TAP of `10.9.0.1` and two cables, `v0` to `w0` and `v1` to `w1`.
fn two_cables() -> (Station, Peer) {
    let peer = Peer::start();
    peer.cable("v0", "w0");
    peer.cable("v1", "w1");
    let mut station = Station::start();
    station.add_tap(PortPolicy::default(), "10.9.0.1");
    (station, peer)
}

/// Somebody out there, whom nobody has to ask for.
fn know_station() {
    ip(&format!("neigh replace 10.9.0.2 lladdr {STATION} dev sw0 nud permanent"));
}

/// Sends bytes both ways over one connection, from here to `10.9.0.2` there, and compares what comes back.
fn echo(bytes: usize, listener: TcpListener) {
    let echoing = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
    });
    let mut stream = TcpStream::connect("10.9.0.2:7").unwrap();
    let mut writing = stream.try_clone().unwrap();
    let word = |at: usize| (at as u32).wrapping_mul(0x9e37_79b9).to_be_bytes();
    let sent: Vec<u8> = (0..bytes / 4).flat_map(word).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&sent).unwrap();
        writing.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    writer.join().unwrap();
    echoing.join().unwrap();
}

/// A connection from here to `10.9.0.2` at the peer's, which sends back what it gets, and says at the end how many bytes that were.
fn conversation(peer: &Peer) -> (TcpStream, JoinHandle<u64>) {
    let listener = peer.run(|| TcpListener::bind("10.9.0.2:7").unwrap());
    let echoing = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap_or_default()
    });
    let stream = TcpStream::connect("10.9.0.2:7").unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(space::PATIENCE)).unwrap();
    (stream, echoing)
}

#[test]
fn a_stream_crosses_an_uplink_in_large_segments() {
    in_namespace("a_stream_crosses_an_uplink_in_large_segments", || {
        let peer = Peer::start();
        peer.cable("v0", "w0");
        peer.ip("addr add 10.9.0.2/24 dev w0");
        let mut station = Station::start();
        station.add_tap(PortPolicy::default(), "10.9.0.1");
        station.add("wire", Backend::Uplink("v0".into()), PortPolicy::default());
        let listener = peer.run(|| TcpListener::bind("10.9.0.2:7").unwrap());
        echo(32 << 20, listener);
        let nic = station.nics().remove(0);
        let counters = nic.counters;
        println!("{counters:?}");
        assert!(nic.has_link && nic.is_active && nic.mtu == Some(1500) && nic.speed_mbps == Some(10_000), "{nic:?}");
        assert!(counters.tx_bytes > 32 << 20 && counters.rx_bytes > 32 << 20);
        // One way and the other, more than a packet's bytes in each frame.
        assert!(counters.tx_bytes / counters.tx_packets > 1514 && counters.rx_bytes / counters.rx_packets > 1514);
        assert_eq!((counters.tx_errors, counters.rx_errors), (0, 0));
    });
}

#[test]
fn tags_that_the_kernel_takes_off_are_put_back() {
    in_namespace("tags_that_the_kernel_takes_off_are_put_back", || {
        let peer = Peer::start();
        peer.cable("v0", "w0");
        let mut station = Station::start();
        let access = PortPolicy { vlan: VlanMode::Access { vlan: 10.try_into().unwrap() }, ..PortPolicy::default() };
        station.add_tap(access, "10.9.0.1");
        let trunk = PortPolicy { vlan: VlanMode::all(), ..PortPolicy::default() };
        station.add("wire", Backend::Uplink("v0".into()), trunk);
        let mut wire = peer.wire("w0");
        let answer = answer_in_vlan_10(&mut wire);
        assert_eq!(answer[18 + 14..18 + 18], [10, 9, 0, 1]);
    });
}

/// The answer of a host that is in VLAN 10 only, which comes back there.
fn answer_in_vlan_10(wire: &mut space::Wire) -> Vec<u8> {
    wire.ask(11);
    wire.ask(0);
    wire.ask(10);
    let answer = wire.next(ARP).remove(0);
    assert_eq!(answer[..6], STATION.0);
    assert_eq!(answer[12..18], [0x81, 0, 0, 10, 8, 6], "{answer:x?}");
    answer
}

#[test]
fn an_uplink_survives_whatever_happens_to_its_interface() {
    in_namespace("an_uplink_survives_whatever_happens_to_its_interface", || {
        let peer = Peer::start();
        peer.cable("v0", "w0");
        let mut station = Station::start();
        station.add_tap(PortPolicy::default(), "10.9.0.1");
        let missing = station.refusal(Backend::Uplink("v9".into()));
        assert!(missing.contains("no NIC 'v9'"), "{missing}");
        station.add("wire", Backend::Uplink("v0".into()), PortPolicy::default());
        let taken = station.refusal(Backend::Uplink("v0".into()));
        assert!(taken.contains("v0 is an uplink already, of the port 'wire'"), "{taken}");
        let answers = |what: &str| {
            let mut wire = peer.wire("w0");
            // As stations do, it asks again: its own interface may not be ready for the first one.
            until(what, || {
                wire.ask(0);
                std::thread::sleep(Duration::from_millis(20));
                wire.take(ARP).iter().any(|answer| answer[..6] == STATION.0)
            });
        };
        answers("at first");
        let mut is = |what: &str, present: bool, link: bool| {
            until(what, || {
                let port = station.port("wire");
                let nic = &port.team.as_ref().unwrap().nics[0];
                (nic.is_present, nic.has_link, port.connected) == (present, link, link)
            });
        };
        ip("link set v0 down");
        is("switched off", true, false);
        ip("link set v0 up");
        is("switched on", true, true);
        answers("after it was off");
        peer.ip("link set w0 down");
        is("without carrier", true, false);
        peer.ip("link set w0 up");
        is("with carrier", true, true);
        answers("after it had no carrier");
        ip("link del v0");
        is("gone", false, false);
        peer.cable("v0", "w0");
        is("there again", true, true);
        answers("as another interface of that name");
        ip("link set v0 down");
        ip("link set v0 name x0");
        is("under another name", false, false);
        ip("link set x0 name v0");
        ip("link set v0 up");
        is("under its name", true, true);
        answers("after it had another name");

        // What is too long for it is counted, and shorter ones pass.
        ip("link set v0 mtu 600");
        until("the new MTU", || station.nics()[0].mtu == Some(600));
        know_station();
        let mut wire = peer.wire("w0");
        let before = station.nics()[0].counters.tx_errors;
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.send_to(&[1; 1000], "10.9.0.2:9").unwrap();
        socket.send_to(&[1; 100], "10.9.0.2:9").unwrap();
        assert_eq!(wire.next(IPV4)[0].len(), 128);
        assert_eq!(station.nics()[0].counters.tx_errors, before + 1);
        assert!(station.port("wire").counters.drops["receiver-cannot"] >= 1);
    });
}

#[test]
fn a_dead_link_is_left_in_less_than_100_ms() {
    in_namespace("a_dead_link_is_left_in_less_than_100_ms", || {
        let (mut station, peer) = two_cables();
        station.add_team(team(TeamMode::ActiveStandby));
        know_station();
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        let links = switch::links::netlink::list().unwrap();
        let host = links.iter().find(|link| link.name == "sw0").unwrap().mac;
        let mut wires = ["w0", "w1"].map(|name| peer.wire(name));
        let mut times = Vec::new();
        for round in 0..10 {
            let (dead, other) = (round % 2, (round + 1) % 2);
            until("both links", || station.nics().iter().all(|nic| nic.has_link));
            // Everything leaves through the one.
            socket.send_to(b"before", "10.9.0.2:9").unwrap();
            wires[dead].next(IPV4);
            wires.iter_mut().for_each(|wire| drop(wire.take(IPV4)));
            let begin = Instant::now();
            peer.ip(&format!("link set w{dead} down"));
            while wires[other].take(IPV4).is_empty() {
                assert!(begin.elapsed() < space::PATIENCE);
                socket.send_to(b"after", "10.9.0.2:9").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            times.push(begin.elapsed());
            let active: Vec<bool> = station.nics().iter().map(|nic| nic.is_active).collect();
            assert_eq!(active, [dead == 1, dead == 0]);
            peer.ip(&format!("link set w{dead} up"));
        }
        times.sort();
        println!("ten links, from `ip link set down` to the first frame through the other one: {times:?}");
        assert!(times[5] < Duration::from_millis(100), "{times:?}");
        // The host's station was announced there.
        let mut wire = peer.wire("w0");
        peer.ip("link set w1 down");
        until("the first link", || station.nics()[0].is_active);
        peer.ip("link set w1 up");
        until("both links", || station.nics().iter().all(|nic| nic.has_link));
        wire.take(RARP);
        peer.ip("link set w0 down");
        let announced = peer.wire("w1").next(RARP).remove(0);
        assert_eq!(announced[6..12], host.0);
    });
}

#[test]
fn a_primary_nic_is_used_whenever_it_has_a_link() {
    in_namespace("a_primary_nic_is_used_whenever_it_has_a_link", || {
        let (mut station, peer) = two_cables();
        station.add_team(TeamConfig { primary: Some("v1".into()), ..team(TeamMode::ActiveStandby) });
        let mut active = |expected: [bool; 2]| {
            until("the active NIC", || station.nics().iter().map(|nic| nic.is_active).eq(expected));
        };
        active([false, true]);
        peer.ip("link set w1 down");
        active([true, false]);
        peer.ip("link set w1 up");
        active([false, true]);
        // What comes in at the other one is not taken.
        peer.wire("w0").ask(0);
        let mut wire = peer.wire("w1");
        wire.ask(0);
        assert_eq!(wire.next(ARP).len(), 1);
        until("the refused frame", || station.nics()[0].counters.rx_drops == 1);
    });
}

#[test]
fn flows_are_spread_and_each_station_stays_where_switches_know_it() {
    in_namespace("flows_are_spread_and_each_station_stays_where_switches_know_it", || {
        let (mut station, peer) = two_cables();
        station.add_team(team(TeamMode::AddressHash));
        until("both links", || station.nics().iter().all(|nic| nic.has_link));
        know_station();
        let mut wires = ["w0", "w1"].map(|name| peer.wire(name));
        let own: Vec<MacAddress> = station.nics().iter().map(|nic| nic.mac.unwrap()).collect();
        // Each from a port of its own: 64 flows, twice.
        let sockets: Vec<UdpSocket> = (0..64).map(|_| UdpSocket::bind("10.9.0.1:0").unwrap()).collect();
        let mut seen: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
        let mut sources: [BTreeSet<MacAddress>; 2] = Default::default();
        let mut count = 0;
        for round in 1..=2 {
            for socket in &sockets {
                socket.send_to(b"flow", "10.9.0.2:9").unwrap();
            }
            until("all datagrams", || {
                for (wire, nic) in wires.iter_mut().zip(0..) {
                    for frame in wire.take(IPV4).into_iter().filter(|frame| frame[23] == 17) {
                        count += 1;
                        seen.entry(u16::from_be_bytes([frame[34], frame[35]])).or_default().insert(nic);
                        sources[nic].insert(MacAddress(frame[6..12].try_into().unwrap()));
                    }
                }
                count == round * 64
            });
        }
        assert!(seen.len() == 64 && seen.values().all(|nics| nics.len() == 1), "a flow stays where it is: {seen:?}");
        let there = |nic: usize| seen.values().filter(|nics| nics.contains(&nic)).count();
        println!("{} and {} flows", there(0), there(1));
        assert!(there(0) >= 16 && there(1) >= 16);
        // Both have one source: at home the station's, elsewhere the NIC's.
        assert!(sources.iter().all(|sources| sources.len() == 1), "{sources:?}");
        let first = |nic: usize| *sources[nic].first().unwrap();
        assert!((first(0) == own[0]) != (first(1) == own[1]), "{sources:?} with {own:?}");
    });
}

#[test]
fn nics_come_and_go_under_a_stream_and_the_port_stays() {
    in_namespace("nics_come_and_go_under_a_stream_and_the_port_stays", || {
        let (mut station, peer) = two_cables();
        // At the other end, a bridge that learns where stations are.
        peer.ip("link add br0 type bridge");
        for nic in ["w0", "w1"] {
            peer.ip(&format!("link set {nic} master br0"));
        }
        peer.ip("addr add 10.9.0.2/24 dev br0");
        peer.ip("link set br0 up");
        let nics =
            |names: &[&str]| TeamConfig { nics: names.iter().map(ToString::to_string).collect(), ..TeamConfig::single("") };
        station.add_team(nics(&["v0"]));
        let (mut stream, echoing) = conversation(&peer);
        let changes: [&[&str]; 4] = [&["v0", "v1"], &["v1"], &["v1", "v9"], &["v0", "v1"]];
        let mut longest = Duration::ZERO;
        for number in 0..500u32 {
            if number % 100 == 99
                && let Some(names) = changes.get(number as usize / 100)
            {
                let before = station.nics();
                station.set_team(nics(names));
                let after = station.nics();
                assert_eq!(after.iter().map(|nic| nic.name.as_str()).collect::<Vec<_>>(), *names);
                for nic in &after {
                    let same = before.iter().find(|same| same.name == nic.name);
                    let sent = same.map_or(0, |same| same.counters.tx_packets);
                    assert!(nic.counters.tx_packets >= sent, "what was counted stays");
                }
            }
            let begin = Instant::now();
            stream.write_all(&number.to_be_bytes()).unwrap();
            let mut back = [0; 4];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, number.to_be_bytes());
            longest = longest.max(begin.elapsed());
        }
        println!("no answer for {} ms at most", longest.as_millis());
        drop(stream);
        assert_eq!(echoing.join().unwrap(), 500 * 4);
        let active: Vec<bool> = station.nics().iter().map(|nic| nic.is_active).collect();
        assert_eq!(active, [false, true], "the one in use stays so");
        let port = station.port("wire");
        assert!(matches!(port.backend, Backend::Team(team) if team.nics == ["v0", "v1"]));
    });
}

/// A switch in the peer's namespace with a TAP of `10.9.0.2` and a team of `w0` and `w1`. It stays until the test ends.
fn lacp_peer(peer: &Peer) {
    peer.run(|| {
        ["w0", "w1"].into_iter().for_each(|nic| ip(&format!("link set {nic} arp off")));
        let mut station = Station::start();
        station.add_tap(PortPolicy::default(), "10.9.0.2");
        let nics = vec!["w0".into(), "w1".into()];
        station.add_team(TeamConfig { nics, lacp_rate: LacpRate::Fast, ..team(TeamMode::Lacp) });
        std::mem::forget(station);
    });
}

#[test]
fn two_switches_speak_lacp_and_a_stream_outlives_a_cable() {
    in_namespace("two_switches_speak_lacp_and_a_stream_outlives_a_cable", || {
        let (mut station, peer) = two_cables();
        station.add_team(TeamConfig { lacp_rate: LacpRate::Fast, ..team(TeamMode::Lacp) });
        assert!(!station.port("wire").connected, "nobody speaks at the other end yet");
        lacp_peer(&peer);
        let distributing = |station: &mut Station| -> Vec<bool> {
            station.nics().iter().map(|nic| nic.lacp.is_some_and(|lacp| lacp.mux == MuxState::Distributing)).collect()
        };
        until("both cables", || distributing(&mut station) == [true, true]);
        let (mut stream, echoing) = conversation(&peer);
        for round in 0..4 {
            let cable = round % 2;
            let mut longest = Duration::ZERO;
            for number in 0..300u32 {
                if number == 100 {
                    peer.ip(&format!("link set w{cable} down"));
                }
                let begin = Instant::now();
                stream.write_all(&number.to_be_bytes()).unwrap();
                let mut back = [0; 4];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(back, number.to_be_bytes());
                longest = longest.max(begin.elapsed());
            }
            // A stream that was on the other cable may be through before anybody notices.
            until("the dead cable is left", || distributing(&mut station) == [cable == 1, cable == 0]);
            println!("cable {cable} out under a stream: no answer for {} ms at most", longest.as_millis());
            peer.ip(&format!("link set w{cable} up"));
            until("both cables again", || distributing(&mut station) == [true, true]);
        }
        drop(stream);
        assert_eq!(echoing.join().unwrap(), 4 * 300 * 4);
        let nics = station.nics();
        assert!(nics.iter().all(|nic| nic.lacp.unwrap().partner.is_some_and(|partner| partner.system != nic.mac.unwrap())));
    });
}
