//! NICs by AF_XDP. Loading a program for a NIC is for root of the machine alone, see `space::in_roots_namespace`.

use std::net::{TcpListener, UdpSocket};

use switch::control::Backend;
use switch::policy::{Bandwidth, PortPolicy};
use switch::ports::nic::{DatapathKind, DatapathStatus};
use switch::team::config::{Datapath, TeamConfig, TeamMode};
use switch::team::nic::NicStatus;
use switch::vlan::VlanMode;

use super::space::{
    ARP, IPV4, Peer, STATION, Station, assert_refused, ethtool, in_namespace, in_roots_namespace, ip, received, until,
};
use super::{answer_in_vlan_10, echo, know_station};

fn by(datapath: Datapath, nics: &[&str]) -> Backend {
    let nics = nics.iter().map(|nic| nic.to_string()).collect();
    Backend::Team(TeamConfig { nics, datapath, ..TeamConfig::single("") })
}

fn trunk() -> PortPolicy {
    PortPolicy { vlan: VlanMode::all(), ..PortPolicy::default() }
}

/// A cable from `v0` to `w0`, on which frames are as on a wire; a switch with a TAP of `10.9.0.1`, whose uplink is `v0`.
fn by_xdp(host: PortPolicy) -> (Station, Peer) {
    let peer = Peer::start();
    peer.cable("v0", "w0");
    peer.whole_frames("w0");
    let mut station = Station::start();
    station.add_tap(host, "10.9.0.1");
    station.add("wire", by(Datapath::AfXdp, &["v0"]), trunk());
    (station, peer)
}

fn nic(station: &mut Station) -> NicStatus {
    station.nics().remove(0)
}

fn datapath(station: &mut Station) -> Option<DatapathStatus> {
    nic(station).datapath
}

fn is_by(station: &mut Station, kind: DatapathKind) -> bool {
    datapath(station).is_some_and(|datapath| datapath.kind == kind)
}

/// Whether somebody at the other end of `w0` gets an answer from the host.
fn answers(peer: &Peer, what: &str) {
    let mut wire = peer.wire("w0");
    until(what, || {
        wire.ask(0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        wire.take(ARP).iter().any(|answer| answer[..6] == STATION.0)
    });
}

#[test]
fn who_may_not_load_programs_has_af_packet() {
    in_namespace("xdp::who_may_not_load_programs_has_af_packet", || {
        let _peer = assert_refused();
        let mut station = Station::start();
        station.add("wire", by(Datapath::Auto, &["v0"]), PortPolicy::default());
        let auto = datapath(&mut station).unwrap();
        assert_eq!((auto.kind, auto.queues), (DatapathKind::AfPacket, 1));
        assert!(auto.reason.unwrap().starts_with("its driver is veth: "));
        station.set_team(TeamConfig { datapath: Datapath::AfPacket, ..TeamConfig::single("v0") });
        let asked = DatapathStatus { kind: DatapathKind::AfPacket, queues: 1, reason: None };
        assert_eq!(datapath(&mut station), Some(asked));
    });
}

#[test]
fn a_stream_crosses_an_af_xdp_uplink_in_packets_with_checksums() {
    in_roots_namespace("xdp::a_stream_crosses_an_af_xdp_uplink_in_packets_with_checksums", || {
        let (mut station, peer) = by_xdp(PortPolicy::default());
        let is = datapath(&mut station).unwrap();
        assert_eq!((is.kind, is.queues), (DatapathKind::AfXdpCopy, 1));
        assert!(is.reason.unwrap().contains("zero copy"));
        peer.ip("addr add 10.9.0.2/24 dev w0");
        echo(32 << 20, peer.run(|| TcpListener::bind("10.9.0.2:7").unwrap()));
        let counters = nic(&mut station).counters;
        println!("{counters:?}");
        assert!(counters.tx_bytes > 32 << 20 && counters.rx_bytes > 32 << 20);
        assert!(counters.tx_bytes / counters.tx_packets > 1514, "the host sends large segments");
        assert_eq!((counters.tx_errors, counters.rx_errors), (0, 0));
        let (packets, bytes) = peer.run(|| received("w0"));
        assert!(bytes > 32 << 20 && bytes / packets <= 1514, "and packets leave: {bytes} bytes in {packets}");
    });
}

#[test]
fn tags_pass_an_af_xdp_uplink_both_ways() {
    in_roots_namespace("xdp::tags_pass_an_af_xdp_uplink_both_ways", || {
        let access = PortPolicy { vlan: VlanMode::Access { vlan: 10.try_into().unwrap() }, ..PortPolicy::default() };
        let (_station, peer) = by_xdp(access.clone());
        let mut wire = peer.wire("w0");
        answer_in_vlan_10(&mut wire);
        // Segments with tags are cut behind them. At the other end is a switch, too.
        drop(wire);
        let other = peer.run(move || {
            let mut other = Station::start();
            other.add_tap(access, "10.9.0.2");
            other.add("wire", by(Datapath::AfPacket, &["w0"]), trunk());
            other
        });
        ip("neigh flush dev sw0");
        echo(4 << 20, peer.run(|| TcpListener::bind("10.9.0.2:7").unwrap()));
        drop(other);
    });
}

#[test]
fn an_af_xdp_uplink_survives_whatever_happens_to_its_interface() {
    in_roots_namespace("xdp::an_af_xdp_uplink_survives_whatever_happens_to_its_interface", || {
        let (mut station, peer) = by_xdp(PortPolicy::default());
        answers(&peer, "at first");
        ip("link set v0 down");
        until("switched off", || !nic(&mut station).has_link);
        ip("link set v0 up");
        until("switched on", || nic(&mut station).has_link);
        answers(&peer, "after it was off");
        ip("link del v0");
        until("gone", || !nic(&mut station).is_present);
        assert_eq!(datapath(&mut station), None);
        peer.cable("v0", "w0");
        until("there again", || nic(&mut station).has_link);
        answers(&peer, "as another interface of that name");

        // Longer packets get more room; what is too long for it goes nowhere, and is counted.
        peer.ip("link set w0 mtu 3000");
        ip("link set v0 mtu 3000");
        until("the new MTU", || nic(&mut station).mtu == Some(3000) && nic(&mut station).has_link);
        know_station();
        ip("link set sw0 mtu 5000");
        let mut wire = peer.wire("w0");
        let before = nic(&mut station).counters.tx_errors;
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        for bytes in [3500, 2900, 100] {
            socket.send_to(&vec![1; bytes], "10.9.0.2:9").unwrap();
        }
        let mut seen = Vec::new();
        until("two frames", || {
            seen.extend(wire.take_lengths(IPV4));
            seen.len() >= 2
        });
        assert_eq!(seen, [2942, 142]);
        assert_eq!(nic(&mut station).counters.tx_errors, before + 1);
        assert!(station.port("wire").counters.drops["receiver-cannot"] >= 1);

        // One for which there is no room at all: it is said why, and tried again.
        ip("link set v0 mtu 9000");
        until("refused", || nic(&mut station).error.is_some_and(|error| error.contains("its MTU of 9000")));
        assert!(!station.port("wire").connected);
        ip("link set v0 mtu 1500");
        until("used again", || nic(&mut station).has_link);
        assert_eq!(nic(&mut station).error, None);
        answers(&peer, "after it was refused");
    });
}

#[test]
fn all_queues_of_a_nic_are_heard_also_when_there_are_more() {
    in_roots_namespace("xdp::all_queues_of_a_nic_are_heard_also_when_there_are_more", || {
        let peer = Peer::start();
        let queues = "numtxqueues 4 numrxqueues 4";
        ip(&format!("link add v0 {queues} type veth peer name w0 {queues}"));
        // ETHTOOL_SCHANNELS: so many that receive and send.
        let set = |name: &str, receive, transmit| ethtool(name, [0x3d, 0, 0, 0, 0, receive, transmit, 0, 0]);
        set("w0", 2, 2);
        set("v0", 2, 2);
        ip(&format!("link set w0 netns {}", peer.thread()));
        ip("link set v0 arp off up");
        peer.ip("link set w0 up");
        peer.whole_frames("w0");
        let mut station = Station::start();
        station.add_tap(PortPolicy::default(), "10.9.0.1");
        station.add("wire", by(Datapath::AfXdp, &["v0"]), trunk());
        assert_eq!(datapath(&mut station).unwrap().queues, 2);
        answers(&peer, "with two queues");
        set("v0", 4, 4);
        until("four queues", || {
            datapath(&mut station).is_some_and(|datapath| datapath.queues == 4) && nic(&mut station).has_link
        });
        peer.run(move || set("w0", 4, 4));
        // Flows that are spread over queues by the other end.
        know_station();
        peer.ip("addr add 10.9.0.2/24 dev w0");
        peer.run(|| {
            let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
            (0..256).for_each(|port| _ = socket.send_to(b"spread", ("10.9.0.1", 3000 + port)).unwrap());
        });
        let before = nic(&mut station).counters.rx_packets;
        until("all of them", || nic(&mut station).counters.rx_packets >= before.max(256));
        answers(&peer, "with four queues");
    });
}

#[test]
fn a_driver_that_refuses_is_done_without() {
    in_roots_namespace("xdp::a_driver_that_refuses_is_done_without", || {
        let peer = Peer::start();
        peer.cable("v0", "w0");
        peer.whole_frames("w0");
        // What it cannot receive in one page, a driver with a program refuses.
        peer.ip("link set w0 mtu 9000");
        let mut station = Station::start();
        station.add_tap(PortPolicy::default(), "10.9.0.1");
        station.add("wire", by(Datapath::AfXdp, &["v0"]), trunk());
        let generic = datapath(&mut station).unwrap();
        assert_eq!(generic.kind, DatapathKind::AfXdpGeneric);
        assert!(generic.reason.unwrap().contains("does not take an XDP program"));
        answers(&peer, "by the kernel's XDP");
        peer.ip("addr add 10.9.0.2/24 dev w0");
        peer.ip("link set w0 mtu 1500");
        // Who was there before is not any more.
        ip("neigh flush dev sw0");
        echo(1 << 20, peer.run(|| TcpListener::bind("10.9.0.2:7").unwrap()));
    });
}

#[test]
fn an_uplink_changes_its_datapath_and_its_nics_under_its_port() {
    in_roots_namespace("xdp::an_uplink_changes_its_datapath_and_its_nics_under_its_port", || {
        let (mut station, peer) = by_xdp(PortPolicy::default());
        peer.cable("v1", "w1");
        let team = |datapath, nics: &[&str]| TeamConfig {
            nics: nics.iter().map(|nic| nic.to_string()).collect(),
            mode: TeamMode::ActiveStandby,
            datapath,
            ..TeamConfig::single("")
        };
        answers(&peer, "at first");
        let counted = nic(&mut station).counters.rx_packets;
        station.set_team(team(Datapath::AfXdp, &["v1", "v0"]));
        let kinds: Vec<_> = station.nics().into_iter().map(|nic| nic.datapath.unwrap().kind).collect();
        assert_eq!(kinds, [DatapathKind::AfXdpCopy; 2]);
        assert!(station.nics()[1].is_active && station.nics()[1].counters.rx_packets >= counted);
        answers(&peer, "beside another one");
        for (datapath, kind) in [
            (Datapath::AfPacket, DatapathKind::AfPacket),
            (Datapath::AfXdp, DatapathKind::AfXdpCopy),
            (Datapath::AfXdp, DatapathKind::AfXdpCopy),
            (Datapath::Auto, DatapathKind::AfXdpCopy),
        ] {
            station.set_team(team(datapath, &["v0"]));
            assert!(is_by(&mut station, kind), "{datapath:?}");
            answers(&peer, "after a change");
        }
        // Another switch's program is not taken off.
        let mut other = Station::start();
        let refused = other.refusal(by(Datapath::AfXdp, &["v0"]));
        assert!(refused.contains("another XDP program is attached"), "{refused}");
        drop(other);
        answers(&peer, "after somebody tried");
    });
}

#[test]
fn rings_that_are_not_emptied_lose_frames_and_nobody_else_notices() {
    in_roots_namespace("xdp::rings_that_are_not_emptied_lose_frames_and_nobody_else_notices", || {
        let peer = Peer::start();
        peer.cable("v0", "w0");
        peer.cable("v1", "w1");
        ["w0", "w1"].into_iter().for_each(|name| peer.whole_frames(name));
        let mut station = Station::start();
        station.add_tap(PortPolicy::default(), "10.9.0.1");
        let slow = Bandwidth { max_out_bps: 8000, burst_bytes: 1000, ..Bandwidth::default() };
        station.add("slow", by(Datapath::AfXdp, &["v1"]), PortPolicy { bandwidth: slow, ..trunk() });
        station.add("wire", by(Datapath::AfXdp, &["v0"]), trunk());
        let mut flood = peer.wire("w1");
        let frame = [&[0x52, 0x54, 0, 0, 0, 9][..], &[0x52, 0x54, 0, 0, 0, 8], &[0x88, 0xb5], &[0; 1000]].concat();
        until("losses are counted", || {
            flood.flood(&frame, 1000);
            station.port("slow").team.unwrap().nics[0].counters.rx_drops > 0
        });
        answers(&peer, "at the other uplink");
    });
}
