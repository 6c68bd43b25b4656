//! A port with a name, as a driver with several ports sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::{ProptestConfig, proptest};
use vm_memory::{Bytes, GuestAddress};

use super::host::{ConsoleInput, ConsoleOutput};
use super::*;
use crate::devices::hostile;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, Harness};

const MULTIPORT: u64 = 1 << 1;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const TO_DRIVER: usize = 2;
const FROM_DRIVER: usize = 3;
const DATA: u64 = 4 << 20;

struct Setup {
    harness: Harness<Console>,
    handle: ConsoleHandle,
    output: ConsoleOutput,
    changes: Arc<AtomicU32>,
}

fn idle() -> Setup {
    let (output, changes) = (ConsoleOutput::new(), Arc::new(AtomicU32::new(0)));
    let counted = changes.clone();
    let listener: OpenListener = Box::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let console = Console::with_name("org.example.0", output.clone(), listener).unwrap();
    Setup { handle: console.handle(), harness: Harness::new(console), output, changes }
}

fn active() -> Setup {
    let mut setup = idle();
    setup.harness.activate(MULTIPORT).unwrap();
    setup
}

/// A control message: port 0, event, value.
fn message(event: u16, value: u16) -> Vec<u8> {
    [[0; 4].as_slice(), &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

impl Setup {
    fn send(&mut self, queue: usize, bytes: &[u8]) {
        self.harness.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        self.harness.exchange(queue, &[Buffer { address: DATA, length: bytes.len() as u32, device_writes: false }]);
    }

    fn receive(&mut self, queue: usize, room: u32) -> Vec<u8> {
        let address = DATA + 0x10_0000;
        let used = self.harness.exchange(queue, &[Buffer { address, length: room, device_writes: true }]);
        let mut bytes = vec![0; used.length as usize];
        self.harness.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn greet(&mut self) {
        self.send(FROM_DRIVER, &message(0, 1));
        assert_eq!(self.receive(TO_DRIVER, 100), message(1, 1));
        self.send(FROM_DRIVER, &message(3, 1));
        assert_eq!(self.receive(TO_DRIVER, 100), [message(7, 1), b"org.example.0".to_vec()].concat());
        assert_eq!(self.receive(TO_DRIVER, 100), message(6, 1));
    }
}

#[test]
fn a_driver_learns_the_ports_name_and_bytes_go_both_ways_while_a_program_has_it_open() {
    let mut setup = active();
    assert_eq!((setup.harness.device.device_features(), setup.harness.device.queue_max_sizes().len()), (MULTIPORT, 4));
    setup.greet();
    assert_eq!(setup.handle.enqueue(b"to nobody"), 9);
    setup.send(FROM_DRIVER, &message(6, 1));
    assert!(setup.handle.is_open());
    assert_eq!(setup.handle.enqueue(b"ping"), 4);
    assert_eq!(setup.receive(RECEIVE, 100), b"ping");
    setup.send(TRANSMIT, b"pong");
    assert_eq!(setup.output.scroll_back().1, b"pong");
    setup.send(FROM_DRIVER, &message(6, 0));
    assert!(!setup.handle.is_open());
    assert_eq!(setup.changes.load(Ordering::Relaxed), 2);
}

#[test]
fn messages_wait_for_buffers_also_through_a_save_and_a_reset_forgets_them() {
    let mut setup = active();
    setup.send(FROM_DRIVER, &message(3, 1));
    setup.send(FROM_DRIVER, &message(6, 1));
    let queues = setup.harness.device.quiesce();
    let saved = setup.harness.device.save();
    let restored = idle();
    setup.handle = restored.handle;
    setup.harness.device = restored.harness.device;
    setup.harness.device.restore(&saved).unwrap();
    assert_eq!((setup.harness.device.save(), setup.handle.is_open()), (saved, true));
    setup.harness.activate_with(MULTIPORT, queues).unwrap();
    // One that is too short gets nothing, and its message is lost, not the next one.
    assert_eq!(setup.receive(TO_DRIVER, 12), b"");
    assert_eq!(setup.receive(TO_DRIVER, 12), message(6, 1));
    setup.harness.device.quiesce();
    setup.harness.device.reset();
    assert!(!setup.handle.is_open());
}

#[test]
fn a_driver_that_knows_one_port_only_uses_it_without_control_queues() {
    let mut setup = idle();
    setup.harness.activate(0).unwrap();
    setup.send(TRANSMIT, b"hello");
    assert_eq!(setup.output.scroll_back().1, b"hello");
    assert_eq!(setup.harness.device.quiesce().len(), 4);
}

#[test]
fn senseless_control_messages_change_nothing() {
    let mut setup = active();
    let other_port = [[7, 0, 0, 0].as_slice(), &message(6, 1)[4..]].concat();
    for garbage in [vec![], vec![0; 7], message(99, 1), message(0, 0), other_port] {
        setup.send(FROM_DRIVER, &garbage);
    }
    assert!(!setup.handle.is_open());
    setup.greet();
}

#[test]
fn rings_that_cannot_be_followed_fail_the_device() {
    for queue in [TO_DRIVER, FROM_DRIVER] {
        let mut setup = idle();
        let state = super::state::ConsoleState { pending_control: 7, ..Default::default() };
        setup.harness.device.restore(&prost::Message::encode_to_vec(&state)).unwrap();
        hostile::impossible_ring(setup.harness, MULTIPORT, queue);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn hostile_chains_reach_nothing_but_buffers(rounds in hostile::rounds()) {
        let mut setup = idle();
        hostile::attack(&mut setup.harness, MULTIPORT, &rounds);
    }
}
