//! Whole ways: front ends that connect, and frames from VM to VM.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::segment::{complete_checksum, cut};
use super::vhost_user::FrontDoor;
use super::virtio::VirtioPort;
use super::vnet::{SHORT, Vnet};
use crate::frame::build::{ethernet, mac};
use crate::mac::MacAddress;
use crate::pipeline::{Limits, Switch};
use crate::policy::{Bandwidth, PortPolicy};
use crate::ring::testing::{Driver, GUEST, SIZE, USER, memory_file};
use crate::vlan::{Vlan, VlanMode};
use crate::worker::{Device, Handle, Worker};

const RINGS: u16 = 256;
const VERSION_1: u64 = 1 << 32;
const MRG_RXBUF: u64 = 1 << 15;
/// Checksums and both TCPs, of what it receives.
const OFFLOADS: u64 = 1 << 1 | 1 << 7 | 1 << 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// A switch whose ports listen in a directory.
struct Host {
    worker: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
    doors: Vec<FrontDoor>,
}

fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(port.to_string())
}

impl Host {
    fn start(directory: &Path, policies: &[PortPolicy]) -> Host {
        let (worker, thread) = Worker::start(0, Switch::new(Limits::default()), Duration::from_micros(50)).unwrap();
        let mut doors = Vec::new();
        for policy in policies.iter().cloned() {
            let add = |worker: &mut Worker| {
                let port = worker.switch.add_port(policy).unwrap();
                worker.attach(port, Device::Virtio(VirtioPort::default())).unwrap();
                port
            };
            let port = worker.call(add).unwrap();
            doors.push(FrontDoor::open(&socket(directory, port), 0o600, worker.clone(), port, 2).unwrap());
        }
        Host { worker, thread: Some(thread), doors }
    }

    fn drops(&self, port: u16) -> Vec<(String, u64)> {
        let report = self.worker.call(move |worker| worker.switch.counters(port).unwrap().report()).unwrap();
        report.drops.into_iter().collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.doors.clear();
        self.worker.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A VM: front end and driver in one.
pub(crate) struct Vm {
    pub(crate) receive: Driver,
    transmit: Driver,
    kick: EventFd,
    call: EventFd,
    features: u64,
    front: Option<Frontend>,
}

impl Vm {
    pub(crate) fn new(features: u64) -> Vm {
        let file = memory_file();
        let event = || EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let (receive, transmit) = (Driver::new(&file, 0, RINGS), Driver::new(&file, 1, RINGS));
        Vm { receive, transmit, kick: event(), call: event(), features: features | VERSION_1, front: None }
    }

    pub(crate) fn connect(&mut self, path: &Path) {
        // One at a time: the last one's connection ends first.
        self.front = None;
        let mut front = Frontend::connect(path, 4).unwrap();
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        assert_eq!(self.features & !offered, 0);
        front.set_features(self.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()).unwrap();
        let protocol = front.get_protocol_features().unwrap();
        front.set_protocol_features(protocol & (VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)).unwrap();
        front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front.get_queue_num().unwrap(), 2);
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: SIZE,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.receive.fd(),
        };
        front.set_mem_table(&[region]).unwrap();
        for (index, driver) in [&self.receive, &self.transmit].into_iter().enumerate() {
            let [descriptors, available, used] = driver.parts().map(|part| USER + part);
            front.set_vring_num(index, RINGS).unwrap();
            // As a monitor does it that lost its switch.
            front.set_vring_base(index, driver.used_index()).unwrap();
            let config = VringConfigData {
                queue_max_size: RINGS,
                queue_size: RINGS,
                flags: 0,
                desc_table_addr: descriptors,
                used_ring_addr: used,
                avail_ring_addr: available,
                log_addr: None,
            };
            front.set_vring_addr(index, &config).unwrap();
            front.set_vring_call(index, &self.call).unwrap();
            front.set_vring_kick(index, &self.kick).unwrap();
            front.set_vring_enable(index, true).unwrap();
        }
        self.front = Some(front);
    }

    /// Ends the connection, and returns when the switch has seen it.
    fn disconnect(&mut self) {
        let front = self.front.take().unwrap();
        // The answer comes when the ring was taken back.
        front.get_vring_base(1).unwrap();
    }

    /// Sends a frame behind a header.
    pub(crate) fn send(&mut self, header: [u8; 12], frame: &[u8]) {
        self.transmit.send(&[&header[..], frame].concat());
        self.kick.write(1).unwrap();
    }

    /// The next frames.
    pub(crate) fn receive(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        loop {
            let frames = self.receive.take_frames();
            if !frames.is_empty() {
                return frames;
            }
            self.wait();
        }
    }

    fn wait(&self) {
        let mut poll = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
        assert_eq!(ready, 1, "nothing came");
        self.call.read().unwrap();
    }

    /// Waits until all that was sent is used.
    pub(crate) fn drain(&mut self, count: usize) {
        let mut done = 0;
        while done < count {
            done += self.transmit.take_used().len();
            if done < count {
                self.wait();
            }
        }
    }
}

fn plain(count: usize) -> Vec<PortPolicy> {
    vec![PortPolicy::default(); count]
}

fn pair(directory: &Path, features: [u64; 2]) -> [Vm; 2] {
    let mut vms = features.map(Vm::new);
    for (port, vm) in (0u16..).zip(&mut vms) {
        vm.connect(&socket(directory, port));
    }
    vms
}

/// A large TCP segment from station 1 to station 2, with its header: cut to 1000 bytes each, checksum left to others.
fn segment(payload: usize) -> ([u8; 12], Vec<u8>) {
    let mut tcp = vec![0x0f, 0xa0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x19, 0xff, 0xff, 0, 0, 0, 0];
    tcp.extend((0..payload).map(|byte| byte as u8));
    let frame = ethernet(mac(1), mac(2)).ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 6, &tcp);
    ([1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0], frame)
}

#[test]
fn a_large_segment_crosses_as_one_in_merged_buffers() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::start(directory.path(), &plain(2));
    let [mut sender, mut receiver] = pair(directory.path(), [0, MRG_RXBUF | OFFLOADS]);
    (0..32).for_each(|_| receiver.receive.offer_room(4096));
    let (header, frame) = segment(60_000);
    sender.send(header, &frame);
    let frames = receiver.receive();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].1, frame);
    assert_eq!(frames[0].0[..10], header[..10]);
    assert_eq!(frames[0].0[10], 15, "60,066 bytes in buffers of 4096");
    sender.drain(1);
    drop(host);
}

#[test]
fn a_vm_that_arrives_is_announced_until_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let vlan = |number: u16| Vlan::try_from(number).unwrap();
    let arriving = PortPolicy { mac: Some(mac(1)), vlan: VlanMode::Access { vlan: vlan(7) }, ..PortPolicy::default() };
    let host = Host::start(directory.path(), &[arriving, PortPolicy { vlan: VlanMode::all(), ..PortPolicy::default() }]);
    let mut elsewhere = Vm::new(0);
    elsewhere.connect(&socket(directory.path(), 1));
    (0..16).for_each(|_| elsewhere.receive.offer_room(2048));
    let mut arrived = Vm::new(0);
    arrived.connect(&socket(directory.path(), 0));
    let mut frames = elsewhere.receive();
    while frames.len() < 5 {
        frames.extend(elsewhere.receive());
    }
    for (_, frame) in &frames {
        let start = [&[0xff; 6][..], &mac(1).0, &[0x81, 0, 0, 7, 0x80, 0x35]].concat();
        assert_eq!(frame[..18], start, "a reverse ARP request with the tag that it has elsewhere");
    }
    // It comes back and goes at once: nothing more is said of it than at its arrival.
    arrived.connect(&socket(directory.path(), 0));
    arrived.disconnect();
    let sent = |host: &Host| host.worker.call(|worker| worker.switch.counters(0).unwrap().rx_packets).unwrap();
    let (at_once, end) = (sent(&host), std::time::Instant::now() + Duration::from_millis(500));
    assert!(at_once >= 6, "{at_once}");
    while std::time::Instant::now() < end {
        assert_eq!(sent(&host), at_once);
    }
}

#[test]
fn who_cannot_take_segments_gets_packets() {
    let directory = tempfile::tempdir().unwrap();
    let _host = Host::start(directory.path(), &plain(2));
    let [mut sender, mut receiver] = pair(directory.path(), [0, 0]);
    (0..8).for_each(|_| receiver.receive.offer_room(2048));
    let (header, frame) = segment(2500);
    sender.send(header, &frame);
    let mut frames = receiver.receive();
    while frames.len() < 3 {
        frames.extend(receiver.receive());
    }
    assert_eq!(frames.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [1054, 1054, 554]);
    let payload: Vec<u8> = frames.iter().flat_map(|(_, frame)| frame[54..].to_vec()).collect();
    assert_eq!(payload, frame[54..]);
    for (number, (header, part)) in frames.iter().enumerate() {
        assert_eq!(header[..10], [0; 10]);
        assert!(is_intact(part), "part {number}");
        assert_eq!(part[47], if number == 2 { 0x19 } else { 0x10 }, "FIN and PSH in the last only");
        assert_eq!(part[38..42], (1 + 1000 * number as u32).to_be_bytes());
    }
}

/// Whether a TCP packet of IPv4 has right checksums, by the definition: the sum of all words is all ones.
fn is_intact(frame: &[u8]) -> bool {
    let fold = |bytes: &[u8]| {
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
        (sum & 0xffff) + (sum >> 16)
    };
    let pseudo = [&frame[26..34], &[0, 6], &((frame.len() - 34) as u16).to_be_bytes(), &frame[34..]].concat();
    let ones = |sum: u32| (sum & 0xffff) + (sum >> 16) == 0xffff;
    ones(fold(&frame[14..34])) && ones(fold(&pseudo))
}

#[test]
fn tags_come_and_go_between_ports() {
    let directory = tempfile::tempdir().unwrap();
    let access = PortPolicy { vlan: VlanMode::Access { vlan: Vlan::try_from(7).unwrap() }, ..PortPolicy::default() };
    let trunk = PortPolicy { vlan: VlanMode::all(), ..PortPolicy::default() };
    let _host = Host::start(directory.path(), &[access, trunk]);
    let [mut inner, mut outer] = pair(directory.path(), [OFFLOADS, OFFLOADS]);
    (0..4).for_each(|_| inner.receive.offer_room(2048));
    (0..4).for_each(|_| outer.receive.offer_room(2048));
    let (header, frame) = segment(1200);
    inner.send(header, &frame);
    let (got_header, got) = outer.receive().remove(0);
    assert_eq!(got, [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat());
    assert_eq!((got_header[2], got_header[6]), (58, 38), "lengths of headers move with the tag");
    let tagged = ethernet(mac(2), MacAddress::BROADCAST).tag(0xa007).other(0x0806);
    outer.send([0; 12], &tagged);
    assert_eq!(inner.receive().remove(0).1, [&tagged[..12], &tagged[16..]].concat());
}

#[test]
fn a_port_that_stops_reading_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::start(directory.path(), &plain(3));
    let [mut sender, mut deaf] = pair(directory.path(), [0, 0]);
    let mut other = Vm::new(0);
    other.connect(&socket(directory.path(), 2));
    deaf.receive.offer_room(2048);
    let frame = ethernet(mac(1), MacAddress::BROADCAST).other(0x0806);
    for _ in 0..5 {
        other.receive.offer_room(2048);
        sender.send([0; 12], &frame);
        assert_eq!(other.receive()[0].1, frame);
    }
    sender.drain(5);
    assert_eq!(deaf.receive.take_frames().len(), 1);
    assert_eq!(host.drops(1), [("no-buffer".to_string(), 4)]);
}

#[test]
fn a_sender_that_waits_for_bandwidth_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let limited = |bandwidth| PortPolicy { bandwidth, ..PortPolicy::default() };
    let out = Bandwidth { max_out_bps: 40_000_000, burst_bytes: 2000, ..Bandwidth::default() };
    let wire = Bandwidth { capacity_bps: 200_000_000, ..Bandwidth::default() };
    let host = Host::start(directory.path(), &[limited(out), limited(Bandwidth::default()), limited(wire)]);
    let mut vms = [0, 1, 2].map(|_| Vm::new(0));
    for (port, vm) in (0u16..).zip(&mut vms) {
        vm.connect(&socket(directory.path(), port));
        (0..200).for_each(|_| vm.receive.offer_room(2048));
    }
    let [limited, free, wire] = &mut vms;
    wire.send([0; 12], &ethernet(mac(3), MacAddress::BROADCAST).other(0x0806));
    assert_eq!(free.receive().len(), 1);
    let frame = |from: u8, number: u8| {
        let mut frame = ethernet(mac(from), mac(3)).other(0x88b5);
        frame.resize(1500, number);
        frame
    };
    // 60 KiB that a limited port sends, and more than the wire takes at once from the other.
    let count = 40;
    for number in 0..count {
        limited.send([0; 12], &frame(1, number));
        (0..3).for_each(|_| free.send([0; 12], &frame(2, number)));
    }
    let mut got = Vec::new();
    while got.len() < 4 * usize::from(count) {
        got.extend(wire.receive().into_iter().map(|(_, frame)| frame));
    }
    let of = |from: u8| got.iter().filter(move |frame| frame[6..12] == mac(from).0).map(|frame| *frame.last().unwrap());
    assert!(of(1).eq(0..count), "in order");
    assert!(of(2).eq((0..count).flat_map(|number| [number; 3])));
    assert!((0..3).all(|port| host.drops(port).is_empty()));
}

#[test]
fn nonsense_is_dropped_and_counted_and_the_ring_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::start(directory.path(), &plain(2));
    let [mut sender, mut receiver] = pair(directory.path(), [0, 0]);
    (0..4).for_each(|_| receiver.receive.offer_room(2048));
    let good = ethernet(mac(1), mac(2)).other(0x0806);
    // A checksum behind the frame's end, a segment without one, an unknown kind of segment, no frame, half a header.
    sender.send([1, 0, 0, 0, 0, 0, 58, 0, 2, 0, 0, 0], &good);
    sender.send([0, 1, 54, 0, 1, 0, 0, 0, 0, 0, 0, 0], &good);
    sender.send([1, 9, 54, 0, 1, 0, 14, 0, 2, 0, 0, 0], &good);
    sender.send([0; 12], &[]);
    sender.transmit.send(&[0; 5]);
    sender.send([0; 12], &good);
    assert_eq!(receiver.receive().remove(0).1, good);
    assert_eq!(host.drops(0), [("bad-buffer".to_string(), 4), ("length".to_string(), 1)]);
}

#[test]
fn a_ring_that_cannot_be_followed_stands_still_alone() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::start(directory.path(), &plain(3));
    let [mut hostile, mut sender] = pair(directory.path(), [0, 0]);
    let mut receiver = Vm::new(0);
    receiver.connect(&socket(directory.path(), 2));
    (0..4).for_each(|_| receiver.receive.offer_room(2048));
    hostile.transmit.offer(RINGS);
    hostile.kick.write(1).unwrap();
    let frame = ethernet(mac(1), mac(2)).other(0x0806);
    sender.send([0; 12], &frame);
    assert_eq!(receiver.receive().remove(0).1, frame);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !host.drops(0).contains(&("bad-ring".to_string(), 1)) {
        assert!(std::time::Instant::now() < deadline, "{:?}", host.drops(0));
    }
    // Set up anew, it goes on.
    hostile = Vm::new(0);
    hostile.connect(&socket(directory.path(), 0));
    hostile.send([0; 12], &frame);
    assert_eq!(receiver.receive().remove(0).1, frame);
}

#[test]
fn a_switch_that_comes_back_goes_on_where_the_last_one_ended() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::start(directory.path(), &plain(2));
    let [mut sender, mut receiver] = pair(directory.path(), [0, 0]);
    (0..8).for_each(|_| receiver.receive.offer_room(2048));
    let frame = |number: u8| ethernet(mac(1), mac(2)).other(0x9000 + u16::from(number));
    for number in 0..3 {
        sender.send([0; 12], &frame(number));
        assert_eq!(receiver.receive().remove(0).1, frame(number));
    }
    // It ends, a frame is sent into nothing, another one starts.
    drop(host);
    sender.send([0; 12], &frame(3));
    host = Host::start(directory.path(), &plain(2));
    receiver.connect(&socket(directory.path(), 1));
    sender.connect(&socket(directory.path(), 0));
    sender.kick.write(1).unwrap();
    assert_eq!(receiver.receive().remove(0).1, frame(3), "what waited in the ring is not lost");
    sender.send([0; 12], &frame(4));
    assert_eq!(receiver.receive().remove(0).1, frame(4));
    assert_eq!(host.drops(0), []);
}

#[test]
fn a_front_end_that_talks_nonsense_loses_its_connection_only() {
    use std::io::Write;
    let directory = tempfile::tempdir().unwrap();
    let _host = Host::start(directory.path(), &plain(2));
    for bytes in [&[0xffu8; 64][..], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &[1, 0]] {
        let mut stream = std::os::unix::net::UnixStream::connect(socket(directory.path(), 0)).unwrap();
        stream.write_all(bytes).unwrap();
    }
    let [mut sender, mut receiver] = pair(directory.path(), [0, 0]);
    receiver.receive.offer_room(2048);
    let frame = ethernet(mac(1), mac(2)).other(0x0806);
    sender.send([0; 12], &frame);
    assert_eq!(receiver.receive().remove(0).1, frame);
    // A ring outside of memory is refused; the front end may try again from the start.
    let front = sender.front.as_mut().unwrap();
    let config = VringConfigData {
        queue_max_size: RINGS,
        queue_size: RINGS,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    assert!(front.set_vring_addr(1, &config).is_err());
    sender.connect(&socket(directory.path(), 0));
    receiver.receive.offer_room(2048);
    sender.send([0; 12], &frame);
    assert_eq!(receiver.receive().remove(0).1, frame);
}

proptest! {
    /// Any header and frame are cut into parts that fit, or refused.
    #[test]
    fn cutting_survives_anything(mut frame in prop::collection::vec(any::<u8>(), 14..400), header in any::<[u8; SHORT]>(), tcp in any::<bool>()) {
        let mut header = header;
        if tcp {
            (header[0], header[1], header[8], header[9]) = (1, 1, 16, 0);
            (header[5], header[7]) = (0, 0);
        }
        if let Some(vnet) = Vnet::parse(&header, frame.len()) {
            if vnet.is_segment() {
                let most = usize::from(vnet.segment_bytes) + frame.len();
                let _ = cut(&frame, &vnet, |part| {
                    assert!(part.len() <= most);
                    Ok(())
                });
            } else if vnet.needs_checksum() {
                complete_checksum(&mut frame, &vnet).unwrap();
            }
        }
    }
}
