//! Two hosts with a switch each and a cable between them; frames that go in at one port, and all ports where they come out.
//!
//! ```text
//!  host 0                                      host 1
//!  TAP ─┐                                      ┌─ TAP
//!  TAP ─┤ maru-switch ├─ uplink ── cable ── uplink ─┤ maru-switch ├ TAP
//!  fences ┘                                    └ fences
//! ```
//!
//! That a frame does *not* come out is known without waiting for time to pass: behind the frames of a round, each host sends a *fence*, a
//! frame that goes to a port of each host. The frames of one port stay in order, and who looks at all ports in turn, as the switch does with
//! those that send and the test with those that hear, is at most one turn late with each: so whatever was to come has come when fences have
//! come that were sent when others had.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use lab::agent::{Event, Exec, Process};
use lab::appliance::program;
use lab::host::Host;
use lab::{Lab, LabSpec};
use serde_json::{Value, json};

use super::{PATIENCE, shell, start_switch, switch_program};

/// A frame that goes in at a port, seen from the VM that would be there.
pub struct Sent {
    pub host: usize,
    pub port: String,
    pub frame: Vec<u8>,
}

/// Where a frame came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub host: usize,
    pub port: String,
    pub tag: Option<u16>,
}

/// What became of a frame.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    pub heard: Vec<Heard>,
    /// Its VLAN on the cable, if it was there; 0 without a tag.
    pub on_cable: Option<u16>,
}

pub struct Wire<'l> {
    lab: &'l Lab,
    sides: [Side<'l>; 2],
    /// Frames that were sent.
    count: u32,
}

struct Side<'l> {
    host: &'l Host,
    frames: Process,
    /// What it told and was not looked at.
    told: String,
    _switch: Process,
}

/// So many fences come one after the other: two turns that may be late, of the switches and of the test.
const FENCES_IN_A_ROW: usize = 3;
/// The VLAN of the fences.
const FENCES: u16 = 999;
/// The last bytes of a frame say which one it is. No padding of the wire may come behind.
const LEAST_BYTES: usize = 64;

pub fn wire_lab() -> LabSpec {
    let find = |name: &str| program(name).unwrap_or_else(|| panic!("{name} is missing: run `cargo build --release --workspace`"));
    let lab = Lab::new().hosts(2).memory_mib(384).binary(find("maru"), "/bin/maru").binary(switch_program(), "/bin/maru-switch");
    lab.binary(find("maru-guest"), "/bin/maru-guest")
}

impl<'l> Wire<'l> {
    /// Makes the same ports on both hosts, each a TAP of its name.
    pub fn start(lab: &'l Lab, ports: &[(&str, Value)]) -> Wire<'l> {
        let sides = [lab.host(0), lab.host(1)].map(|host| {
            host.load_module("tun", "").expect("the module tun");
            // The uplink and the TAPs are the switch's and the test's only: the kernel has nothing to say there.
            shell(
                host,
                "ip addr flush dev cable0; ip link set cable0 arp off; echo 1 > /proc/sys/net/ipv6/conf/cable0/disable_ipv6",
            );
            shell(host, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
            let switch = start_switch(host);
            add(
                host,
                "wire",
                "--uplink cable0",
                &json!({ "vlan": { "mode": "trunk", "allowed": [{ "first": 1, "last": 4094 }] } }),
            );
            let fence = json!({ "vlan": { "mode": "access", "vlan": FENCES } });
            let fences = ["fence0", "fence1"].map(|name| (name, fence.clone()));
            let all: Vec<&(&str, Value)> = ports.iter().chain(&fences).collect();
            for (name, policy) in &all {
                add(host, name, &format!("--tap {name}"), policy);
                shell(host, &format!("ip link set {name} arp off up"));
            }
            let command = ["maru-guest", "frames"].into_iter().chain(all.iter().map(|(name, _)| *name));
            let mut frames = host.spawn(Exec::new(command)).unwrap();
            frames.wait_for("a socket for frames", PATIENCE, |said| said == "ready\n").unwrap();
            Side { host, frames, told: String::new(), _switch: switch }
        });
        // Frames of others hardly end like ours.
        Wire { lab, sides, count: 0x5eed_0000 }
    }

    /// Gives a port another policy.
    pub fn set(&self, host: usize, port: &str, policy: &Value) {
        shell(self.sides[host].host, &format!("echo '{policy}' > /tmp/policy; maru port set {port} --policy /tmp/policy"));
    }

    /// The switch's state.
    pub fn status(&self, host: usize) -> Value {
        serde_json::from_str(&shell(self.sides[host].host, "maru switch status -o json")).unwrap()
    }

    /// All that a port knows.
    pub fn export(&self, host: usize, port: &str) -> Value {
        serde_json::from_str(&shell(self.sides[host].host, &format!("maru port export {port}"))).unwrap()
    }

    /// Has these frames go in, those of one host one after the other; returns what became of each. A few bytes that make it known, and
    /// padding, are added to them.
    pub fn round(&mut self, sent: &[Sent]) -> Vec<Passed> {
        let recording = self.lab.state_dir().join("cable0.pcap");
        self.lab.cable(0).pcap(&recording).unwrap();
        let first = self.count;
        let mut passed = vec![Passed::default(); sent.len()];
        self.send(sent.iter().map(|sent| (sent.host, &sent.port[..], &sent.frame[..])));
        for _ in 0..FENCES_IN_A_ROW {
            let fences = [self.count, self.count + 1];
            let frames = [0, 1].map(|host| ethernet(station(host, 255), EVERYBODY, &[], OTHER, &[]));
            self.send(frames.iter().enumerate().map(|(host, frame)| (host, "fence0", &frame[..])));
            for (host, side) in self.sides.iter_mut().enumerate() {
                let mut open = fences.to_vec();
                while !open.is_empty() {
                    let (port, frame) = side.next();
                    let (number, tag) = (number(&frame), tag(&frame));
                    if port == "fence1" {
                        open.retain(|fence| *fence != number);
                    } else if let Some(passed) = number.checked_sub(first).and_then(|number| passed.get_mut(number as usize)) {
                        passed.heard.push(Heard { host, port, tag });
                    }
                }
            }
        }
        self.lab.cable(0).pcap_end();
        let seen = recorded(&recording);
        for (passed, number) in passed.iter_mut().zip(first..) {
            passed.on_cable = seen.get(&number).copied();
        }
        passed
    }

    /// Has frames go in, each with the next number at its end.
    fn send<'f>(&mut self, frames: impl Iterator<Item = (usize, &'f str, &'f [u8])>) {
        let mut lines = [String::new(), String::new()];
        for (host, port, frame) in frames {
            let mut bytes = frame.to_vec();
            bytes.resize(bytes.len().max(LEAST_BYTES - 4), 0);
            bytes.extend(self.count.to_be_bytes());
            self.count += 1;
            lines[host] += &format!("{port} {}\n", to_hex(&bytes));
        }
        for (side, lines) in self.sides.iter().zip(lines) {
            side.frames.write_stdin(lines.as_bytes()).unwrap();
        }
    }
}

impl Side<'_> {
    /// The next frame that came out, and at which port.
    fn next(&mut self) -> (String, Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((line, rest)) = self.told.split_once('\n') {
                let (port, digits) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                let found = (port.to_owned(), from_hex(digits));
                self.told = rest.to_owned();
                return found;
            }
            match self.frames.next_event(Some(deadline)).unwrap() {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => self.told += &String::from_utf8_lossy(&bytes),
                other => panic!("{}: {other:?} instead of a fence; {}", self.host.name(), self.told),
            }
        }
    }
}

/// An address of Ethernet.
pub type Mac = [u8; 6];

pub const EVERYBODY: Mac = [0xff; 6];
/// The type of a protocol that nobody has.
pub const OTHER: u16 = 0x88b5;
pub const ARP: u16 = 0x0806;

/// The address of the station behind a port.
pub fn station(host: usize, number: usize) -> Mac {
    [2, 0, 0, 0, host as u8, number as u8]
}

pub fn ethernet(source: Mac, destination: Mac, tags: &[u16], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    frame.extend(tags.iter().flat_map(|tag| words(&[0x8100, *tag])));
    frame.extend(words(&[kind]));
    frame.extend(payload);
    frame
}

/// A packet between addresses of one kind, and its type. The fragment's offset is in units of eight bytes, and of IPv4 only.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, offset: u16, payload: &[u8]) -> (u16, Vec<u8>) {
    let length = payload.len() as u16;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = words(&[0x4500, 20 + length, 1, offset, 0x4000 | u16::from(protocol), 0]);
            (0x0800, [&header[..], &source.octets(), &destination.octets(), payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = words(&[0x6000, 0, length, u16::from(protocol) << 8 | 64]);
            (0x86dd, [&header[..], &source.octets(), &destination.octets(), payload].concat())
        }
        _ => panic!("{source} to {destination}"),
    }
}

/// As they are on the wire.
pub fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or_else(|_| panic!("{digits}"));
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn add(host: &Host, name: &str, backend: &str, policy: &Value) {
    shell(host, &format!("echo '{policy}' > /tmp/policy; maru port add {name} {backend} --policy /tmp/policy"));
}

/// The VLAN of each frame in a recording.
fn recorded(path: &Path) -> BTreeMap<u32, u16> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut seen) = (&bytes[24..], BTreeMap::new());
    while let Some((header, behind)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let (frame, next) = behind.split_at(length);
        seen.insert(number(frame), tag(frame).unwrap_or(0));
        rest = next;
    }
    seen
}

fn number(frame: &[u8]) -> u32 {
    frame.last_chunk().map_or(0, |last| u32::from_be_bytes(*last))
}

fn tag(frame: &[u8]) -> Option<u16> {
    (frame[12..14] == [0x81, 0]).then(|| u16::from_be_bytes([frame[14], frame[15]]) & 0xfff)
}
