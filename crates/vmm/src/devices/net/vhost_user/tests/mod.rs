//! Tests against a small back end, which is killed, replaced, and misbehaves.

mod backend;
mod misbehaviour;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtio_queue::QueueT;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::*;
use crate::devices::net::features::*;
use crate::devices::net::tests::{BUFFERS, MAC, MODERN, body, hostile};
use crate::virtio::testing::{Buffer, DriverQueue, Harness};
use crate::virtio::{GuestMemory, VirtioDevice};
use backend::{Backend, Character, SEND_RARP};

const FEATURES: u64 = MODERN | bits(&[CTRL_VQ, STATUS]);

struct Bench {
    harness: Harness<VhostUserNet>,
    handle: VhostUserHandle,
    backend: Option<Backend>,
    directory: TempDir,
    sent: usize,
    received: usize,
}

/// Guest memory with a file behind it, as a VM's is.
fn shared_memory() -> Arc<GuestMemory> {
    // SAFETY: the name is a C string; the descriptor returned is owned by nobody else.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(17 << 20).unwrap();
    // Two regions at different offsets, so that translation errors show.
    let half = 8 << 20;
    let at = |offset| Some(FileOffset::new(file.try_clone().unwrap(), offset));
    let ranges = [(GuestAddress(0), half, at(1 << 20)), (GuestAddress(half as u64), half, at(9 << 20))];
    Arc::new(GuestMemory::from_ranges_with_files(ranges).unwrap())
}

impl Bench {
    fn idle(pairs: u16, character: Character) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let backend = Backend::start(&path, character);
        let config = VhostUserConfig { mac: MAC, mtu: Some(1500), queue_pairs: pairs, socket: path };
        let device = VhostUserNet::new(config).unwrap();
        let handle = device.handle();
        let mut harness = Harness::new(device);
        harness.memory = shared_memory();
        for n in 0..harness.queues.len() {
            let size = harness.queues[n].size;
            harness.queues[n] = DriverQueue::new(&harness.memory, 0x10_0000 + n as u64 * 0x1_0000, size);
        }
        Bench { harness, handle, backend: Some(backend), directory, sent: 0, received: 0 }
    }

    fn active(features: u64, character: Character) -> Bench {
        let mut bench = Bench::idle(1, character);
        bench.harness.activate(features).unwrap();
        bench.wait_running(true);
        bench
    }

    fn wait_running(&self, running: bool) {
        self.harness
            .interrupt
            .wait_until("the back end's state does not change", || self.handle.backend_status().running == running);
    }

    fn restart(&mut self, character: Character) {
        self.backend = Some(Backend::start(&self.directory.path().join("port"), character));
    }

    /// Offers a frame to send and a buffer to receive into.
    fn send(&mut self) {
        let n = self.sent as u64 % 100;
        let frame = [vec![0; HEADER_BYTES], body(self.sent, 60 + self.sent % 1000)].concat();
        let (from, to) = (BUFFERS + n * 0x1000, BUFFERS + (8 << 20) - (200 << 12) + n * 0x1000);
        self.harness.memory.write_slice(&frame, GuestAddress(from)).unwrap();
        self.harness.queues[0].push(&[Buffer { address: to, length: 4096, device_writes: true }]);
        self.harness.queues[1].push(&[Buffer { address: from, length: frame.len() as u32, device_writes: false }]);
        self.harness.queues[0].kick();
        self.harness.queues[1].kick();
        self.sent += 1;
    }

    /// Waits until all frames came back, each once and in order.
    fn receive_all(&mut self) {
        while self.received < self.sent {
            let used = self.harness.wait_used(0);
            self.harness.wait_used(1);
            let n = self.received as u64 % 100;
            let mut frame = vec![0; used.length as usize];
            let at = BUFFERS + (8 << 20) - (200 << 12) + n * 0x1000;
            self.harness.memory.read_slice(&mut frame, GuestAddress(at)).unwrap();
            assert_eq!(frame[HEADER_BYTES..], body(self.received, 60 + self.received % 1000), "frame {}", self.received);
            self.received += 1;
        }
    }
}

#[test]
fn frames_go_through_the_back_end_and_come_back() {
    for protocol in [0x1_ffff, 0] {
        let mut bench = Bench::active(FEATURES, Character { protocol, ..Character::default() });
        for _ in 0..50 {
            bench.send();
        }
        bench.receive_all();
    }
}

#[test]
fn only_features_of_the_back_end_are_offered_for_data() {
    let character = Character { features: 1 << 30 | 1 << 32 | 1 << CSUM | 1 << 28, ..Character::default() };
    let device = Bench::idle(1, character).harness.device;
    let offered = device.device_features();
    assert_eq!(offered & (GUEST_OFFLOADS | HOST_OFFLOADS | 1 << MRG_RXBUF), 1 << CSUM);
    assert_ne!(offered & (1 << CTRL_VQ), 0, "the control queue is ours");
    assert_eq!(offered & (1 << CTRL_GUEST_OFFLOADS), 0);
    assert_eq!(device.withheld_features(), 1 << 29);
}

#[test]
fn pauses_in_the_middle_of_traffic_lose_nothing() {
    let mut bench = Bench::active(FEATURES, Character::default());
    for round in 0..60 {
        for _ in 0..1 + round % 20 {
            bench.send();
        }
        bench.harness.pause_and_resume();
        if round % 3 == 0 {
            bench.receive_all();
        }
    }
    bench.receive_all();
    let queues = bench.harness.device.quiesce();
    assert_eq!(queues.len(), 3);
    assert_eq!(queues[0].1.next_avail(), bench.sent as u16);
    assert_eq!(queues[0].1.next_used(), bench.sent as u16);
    assert!(bench.harness.device.quiesce().is_empty());
}

#[test]
fn a_back_end_that_is_killed_and_restarted_is_not_noticed() {
    let mut bench = Bench::active(FEATURES, Character::default());
    for _ in 0..5 {
        for _ in 0..20 {
            bench.send();
        }
        bench.backend = None;
        bench.wait_running(false);
        // What is sent meanwhile waits in the rings.
        for _ in 0..20 {
            bench.send();
        }
        bench.restart(Character::default());
        bench.wait_running(true);
        bench.receive_all();
    }
    assert_eq!(bench.handle.backend_status().set_ups, 6);
    assert!(bench.harness.interrupt.failed().is_none());
}

#[test]
fn a_device_is_paused_and_resumed_while_its_back_end_is_away() {
    let mut bench = Bench::active(FEATURES, Character::default());
    bench.send();
    bench.receive_all();
    bench.backend = None;
    bench.wait_running(false);
    bench.send();
    bench.harness.pause_and_resume();
    bench.restart(Character::default());
    bench.wait_running(true);
    bench.receive_all();
    // And the other way: it goes away while the device is idle.
    let queues = bench.harness.device.quiesce();
    bench.backend = None;
    bench.restart(Character::default());
    bench.harness.activate_with(FEATURES, queues).unwrap();
    bench.send();
    bench.receive_all();
}

#[test]
fn all_pairs_work_once_the_driver_asked_for_them() {
    let mut bench = Bench::idle(2, Character::default());
    bench.harness.activate(FEATURES | 1 << MQ).unwrap();
    bench.wait_running(true);
    let memory = bench.harness.memory.clone();
    memory.write_slice(&[CLASS_MQ, 0, 2, 0, 0xaa], GuestAddress(BUFFERS)).unwrap();
    let at = |offset, length, device_writes| Buffer { address: BUFFERS + offset, length, device_writes };
    bench.harness.exchange(4, &[at(0, 4, false), at(4, 1, true)]);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BUFFERS + 4)).unwrap(), ACK_OK);
    bench.harness.queues[2].push(&[at(0x2000, 2000, true)]);
    let sent = bench.harness.queues[3].push(&[at(0x1000, 100, false)]);
    bench.harness.queues[3].kick();
    assert_eq!(bench.harness.wait_used(2).length, 100);
    assert_eq!(bench.harness.wait_used(3).head, u32::from(sent));
}

#[test]
fn a_back_end_logs_the_pages_it_writes_also_after_a_restart() {
    let mut bench = Bench::active(FEATURES, Character::default());
    let memory = bench.harness.memory.clone();
    bench.handle.start_dirty_log(&memory).unwrap();
    let used_ring_page = 0x10_8000 / 4096;
    let is_dirty = |log: &[u64], page: u64| log[page as usize / 64] & (1 << (page % 64)) != 0;
    for round in 0..2 {
        let n = bench.sent as u64 % 100;
        bench.send();
        bench.receive_all();
        let mut log = bench.handle.fetch_dirty_log().unwrap();
        let page = (BUFFERS + (8 << 20) - (200 << 12)) / 4096 + n;
        // The back end marks a page after it made it visible; it is not for a driver to see when.
        let handle = bench.handle.clone();
        bench.harness.interrupt.wait_until("not logged", || {
            log.iter_mut().zip(handle.fetch_dirty_log().unwrap()).for_each(|(sum, word)| *sum |= word);
            is_dirty(&log, page) && is_dirty(&log, used_ring_page)
        });
        assert_eq!(log.len() as u64 * 64, 4096 * 8, "a bit for each page, rounded up to a page of bits");
        if round == 0 {
            bench.backend = None;
            bench.wait_running(false);
            bench.restart(Character::default());
            bench.wait_running(true);
        }
    }
    bench.handle.stop_dirty_log().unwrap();
    bench.send();
    bench.receive_all();
    assert!(bench.handle.fetch_dirty_log().is_none());
    let unable = Bench::idle(1, Character { protocol: 8, ..Character::default() });
    assert!(matches!(unable.handle.start_dirty_log(&memory), Err(LogError::Unsupported)));
}

#[test]
fn a_link_that_is_down_stops_the_rings_until_it_is_up() {
    let mut bench = Bench::active(FEATURES, Character::default());
    bench.handle.net().set_link(false);
    bench.harness.interrupt.wait_until("not disabled", || {
        let requests = bench.backend.as_ref().unwrap().seen.requests.lock().unwrap();
        requests.iter().any(|(code, body)| *code == 18 && body[4] == 0)
    });
    bench.send();
    std::thread::sleep(Duration::from_millis(20));
    assert!(bench.harness.queues[0].pop_used().is_none());
    bench.handle.net().set_link(true);
    bench.receive_all();
}

#[test]
fn the_back_end_announces_a_driver_that_cannot() {
    let bench = Bench::active(MODERN, Character::default());
    bench.handle.net().announce();
    let backend = bench.backend.as_ref().unwrap();
    bench.harness.interrupt.wait_until("no announcement", || backend.saw(SEND_RARP) == 1);
}

#[test]
fn a_scrambled_control_queue_never_hurts() {
    let mut bench = Bench::idle(1, Character::default());
    hostile::survives(&mut bench.harness, FEATURES, 300, &[2], |_| {});
}
