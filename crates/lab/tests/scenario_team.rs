//! Teams of NICs under a TCP stream: cables that are pulled and cut, switches that do not know of the team, and the kernel's own bonding as
//! the other end.

mod common;

use common::{shell, start_switch, switch_program, wait_until};
use lab::agent::{Exec, Process};
use lab::appliance::program;
use lab::cable::Direction;
use lab::host::Host;
use lab::{Lab, LabSpec};
use serde_json::Value;

/// Hosts whose NICs say how fast they are, as LACP wants to know.
fn team_lab(hosts: usize) -> LabSpec {
    let maru = program("maru").expect("maru is missing: run `cargo build --release --workspace`");
    let programs = Lab::new().binary(maru, "/bin/maru").binary(switch_program(), "/bin/maru-switch");
    let speed = ["-global", "virtio-net-pci.speed=1000", "-global", "virtio-net-pci.duplex=full"];
    programs.hosts(hosts).memory_mib(384).qemu_arguments(speed)
}

/// A switch with an uplink. Its NICs are the switch's only: the kernel has no addresses there, and answers for none.
fn uplink(host: &Host, options: &str) -> Process {
    for cable in ["cable0", "cable1"] {
        shell(host, &format!("ip addr flush dev {cable}; ip link set {cable} arp off"));
    }
    // For what joins: a confined switch opens what was there when it started.
    host.load_module("tun", "").expect("the module tun");
    let switch = start_switch(host);
    shell(host, &format!("maru port add wire {options}"));
    switch
}

/// The host itself at its switch, as `10.9.0.NUMBER`.
fn join(host: &Host, number: u8) {
    shell(host, &format!("maru port add host --tap sw0; ip addr add 10.9.0.{number}/24 dev sw0; ip link set sw0 up"));
}

fn nics(host: &Host) -> Vec<Value> {
    let team: Value = serde_json::from_str(&shell(host, "maru team show wire -o json")).unwrap();
    team["nics"].as_array().unwrap().clone()
}

fn wait_for_active(host: &Host, expected: [bool; 2]) {
    wait_until(&format!("{expected:?}"), || nics(host).iter().map(|nic| nic["is-active"] == true).eq(expected));
}

/// One connection from the first host to the second one, over which a line goes every ten milliseconds or so. The receiver notes when.
struct Stream<'h> {
    receiver: &'h Host,
    _processes: [Process; 2],
}

impl<'h> Stream<'h> {
    fn start(sender: &Host, receiver: &'h Host) -> Stream<'h> {
        let noting = "nc -l -p 7 | while read line; do read up rest < /proc/uptime; echo $line $up; done > /tmp/stream";
        let listening = receiver.spawn(Exec::new(["sh", "-c", noting])).unwrap();
        wait_until("the receiver", || receiver.exec(["sh", "-c", "netstat -ltn | grep -q :7"]).unwrap().success());
        let talking = "number=0; while :; do echo $number; number=$((number + 1)); usleep 10000; done | nc 10.9.0.2 7";
        let talking = sender.spawn(Exec::new(["sh", "-c", talking])).unwrap();
        let stream = Stream { receiver, _processes: [listening, talking] };
        stream.goes_on();
        stream
    }

    /// What came and when, in seconds: all numbers, and none twice.
    fn lines(&self) -> Vec<f64> {
        let text = shell(self.receiver, "cat /tmp/stream");
        let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let lines = complete.lines().enumerate().map(|(number, line)| {
            let (got, time) = line.split_once(' ').unwrap();
            assert_eq!(got.parse(), Ok(number), "the one connection is whole");
            time.parse().unwrap()
        });
        lines.collect()
    }

    /// Waits for a hundred more lines.
    fn goes_on(&self) {
        let before = self.lines().len();
        wait_until("more of the stream", || self.lines().len() > before + 100);
    }

    /// Does something to the cables; returns how long nothing came around that time.
    fn gap(&self, what: &str, disturb: impl FnOnce()) {
        let before = self.lines().len();
        disturb();
        self.goes_on();
        let lines = self.lines();
        let longest = lines[before - 1..].windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        println!("{what}: nothing came for {longest:.2} s at most, and nothing was lost");
    }
}

fn plug(lab: &Lab, cable: usize, plugged_in: bool) {
    (0..2).for_each(|host| lab.host(host).set_carrier(cable, plugged_in).unwrap());
}

#[test]
fn a_standby_takes_over_between_switches_that_know_nothing_of_it() {
    // The third host is the switch between both cable nets.
    let lab = team_lab(3).start().unwrap();
    let _switches = [
        uplink(lab.host(0), "--team cable0,cable1"),
        uplink(lab.host(1), "--team cable0,cable1"),
        uplink(lab.host(2), "--uplink cable0"),
    ];
    shell(lab.host(2), "maru port add other --uplink cable1");
    join(lab.host(0), 1);
    join(lab.host(1), 2);
    let stream = Stream::start(lab.host(0), lab.host(1));
    wait_for_active(lab.host(0), [true, false]);
    stream.gap("the sender's cable was pulled", || lab.host(0).set_carrier(0, false).unwrap());
    wait_for_active(lab.host(0), [false, true]);
    stream.gap("the receiver's cable was pulled", || lab.host(1).set_carrier(0, false).unwrap());
    wait_for_active(lab.host(1), [false, true]);
    stream.gap("both cables are in again, and the others were pulled", || {
        for host in [0, 1] {
            lab.host(host).set_carrier(0, true).unwrap();
            wait_until("the first cable", || nics(lab.host(host))[0]["has-link"] == true);
            lab.host(host).set_carrier(1, false).unwrap();
        }
    });
    wait_for_active(lab.host(0), [true, false]);
}

#[test]
fn two_switches_agree_by_lacp_and_live_through_pulled_and_cut_cables() {
    let lab = team_lab(2).start().unwrap();
    let options = "--team cable0,cable1 --team-mode lacp --lacp-rate fast";
    let _switches = [uplink(lab.host(0), options), uplink(lab.host(1), options)];
    join(lab.host(0), 1);
    join(lab.host(1), 2);
    streams_live_on(&lab, 2);
}

#[test]
fn the_kernels_bonding_agrees_with_a_team() {
    let lab = team_lab(2).module("bonding").start().unwrap();
    let _switch = uplink(lab.host(0), "--team cable0,cable1 --team-mode lacp --lacp-rate fast");
    join(lab.host(0), 1);
    let peer = lab.host(1);
    peer.load_module("bonding", "max_bonds=0").expect("the module bonding");
    shell(
        peer,
        "bond=/sys/class/net/bond0/bonding
         echo +bond0 > /sys/class/net/bonding_masters
         echo 802.3ad > $bond/mode; echo fast > $bond/lacp_rate; echo 50 > $bond/miimon; echo layer3+4 > $bond/xmit_hash_policy
         for nic in cable0 cable1; do ip addr flush dev $nic; ip link set $nic down; echo +$nic > $bond/slaves; done
         ip addr add 10.9.0.2/24 dev bond0; ip link set bond0 up",
    );
    streams_live_on(&lab, 1);
    let bond = shell(peer, "cat /proc/net/bonding/bond0");
    println!("{bond}");
    assert!(bond.contains("Number of ports: 2"), "{bond}");
}

/// Both cables are used, and a stream goes on whatever happens to one of them. As many of the hosts have a switch of ours.
fn streams_live_on(lab: &Lab, ours: usize) {
    let both = || (0..ours).for_each(|host| wait_for_active(lab.host(host), [true, true]));
    both();
    assert!(nics(lab.host(0)).iter().all(|nic| nic["lacp"]["mux"] == "distributing" && nic["lacp"]["partner"].is_object()));
    let stream = Stream::start(lab.host(0), lab.host(1));
    for cable in 0..2 {
        stream.gap(&format!("cable {cable} was pulled"), || plug(lab, cable, false));
        stream.gap(&format!("cable {cable} was plugged in"), || plug(lab, cable, true));
        both();
    }
    for cable in 0..2 {
        stream.gap(&format!("cable {cable} was cut, and nobody noticed but LACP"), || {
            lab.cable(cable).cut(0);
            wait_for_active(lab.host(0), [cable == 1, cable == 0]);
        });
        stream.gap(&format!("cable {cable} was mended"), || lab.cable(cable).uncut(0));
        both();
    }
    // One way only: who is not heard is not spoken to either.
    stream.gap("cable 0 was cut one way", || {
        lab.cable(0).cut_way(0, Direction::ToHost);
        wait_for_active(lab.host(0), [false, true]);
    });
}
