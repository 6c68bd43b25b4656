use proptest::prelude::{ProptestConfig, any, prop, prop_assert_eq, proptest};
use vm_memory::{Bytes, GuestAddress};

use super::host::{ConsoleInput, ConsoleOutput, PENDING_INPUT_BYTES};
use super::queue::PRINT_BYTES;
use super::*;
use crate::devices::hostile;
use crate::virtio::testing::{Buffer, Harness};
use crate::virtio::{RestoreError, VirtioDevice};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const DATA: u64 = 4 << 20;

struct Setup {
    harness: Harness<Console>,
    handle: ConsoleHandle,
    output: ConsoleOutput,
}

fn idle() -> Setup {
    let output = ConsoleOutput::new();
    let console = Console::new(output.clone()).unwrap();
    Setup { handle: console.handle(), harness: Harness::new(console), output }
}

fn active() -> Setup {
    let mut setup = idle();
    setup.harness.activate(0).unwrap();
    setup
}

impl Setup {
    fn print(&mut self, text: &[u8]) {
        self.harness.memory.write_slice(text, GuestAddress(DATA)).unwrap();
        let used = self.harness.exchange(TRANSMIT, &[Buffer { address: DATA, length: text.len() as u32, device_writes: false }]);
        assert_eq!(used.length, 0);
    }
    fn offer(&mut self, length: u32) {
        let address = DATA + 0x10_0000;
        self.harness.queues[RECEIVE].push(&[Buffer { address, length, device_writes: true }]);
        self.harness.queues[RECEIVE].kick();
    }
    fn receive(&mut self) -> Vec<u8> {
        let used = self.harness.wait_used(RECEIVE);
        let mut bytes = vec![0; used.length as usize];
        self.harness.memory.read_slice(&mut bytes, GuestAddress(DATA + 0x10_0000)).unwrap();
        bytes
    }
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        self.harness.device.read_config(0, &mut config);
        config
    }
}

#[test]
fn what_the_driver_sends_is_printed() {
    let mut setup = active();
    setup.print(b"hello ");
    setup.print(b"world");
    assert_eq!(setup.output.scroll_back().1, b"hello world");
}

#[test]
fn a_chain_of_buffers_is_printed_in_order() {
    let mut setup = active();
    setup.harness.memory.write_slice(b"abcdef", GuestAddress(DATA)).unwrap();
    let buffer = |at, length| Buffer { address: DATA + at, length, device_writes: false };
    setup.harness.exchange(TRANSMIT, &[buffer(3, 3), buffer(0, 0), buffer(0, 3)]);
    assert_eq!(setup.output.scroll_back().1, b"defabc");
}

#[test]
fn input_waits_for_buffers_and_buffers_for_input() {
    let mut setup = active();
    assert_eq!(setup.handle.enqueue(b"early"), 5);
    setup.offer(3);
    assert_eq!(setup.receive(), b"ear");
    setup.offer(100);
    assert_eq!(setup.receive(), b"ly");
    setup.offer(100);
    assert_eq!(setup.handle.enqueue(b"late"), 4);
    assert_eq!(setup.receive(), b"late");
}

#[test]
fn input_is_taken_only_up_to_its_bound() {
    let setup = active();
    let typed = vec![1; 2 * PENDING_INPUT_BYTES];
    assert_eq!(setup.handle.enqueue(&typed), PENDING_INPUT_BYTES);
    assert_eq!(setup.handle.enqueue(&typed), 0);
}

#[test]
fn an_absurdly_long_buffer_is_cut_and_counted() {
    let mut setup = active();
    let length = 8 << 20;
    setup.harness.exchange(TRANSMIT, &[Buffer { address: DATA, length, device_writes: false }]);
    assert_eq!(setup.output.total_bytes(), PRINT_BYTES as u64);
    assert_eq!(setup.handle.dropped_bytes(), u64::from(length) - PRINT_BYTES as u64);
}

#[test]
fn a_new_size_reaches_the_driver_also_after_a_pause() {
    let mut setup = active();
    assert_eq!(setup.config()[..8], [80, 0, 25, 0, 1, 0, 0, 0]);
    setup.handle.set_size(80, 25);
    assert_eq!(setup.harness.interrupt.config_changes(), 0);
    setup.handle.set_size(300, 50);
    assert_eq!(setup.harness.interrupt.config_changes(), 1);
    assert_eq!(setup.config()[..4], [44, 1, 50, 0]);
    let queues = setup.harness.device.quiesce();
    setup.handle.set_size(90, 30);
    assert_eq!(setup.harness.interrupt.config_changes(), 1);
    setup.harness.activate_with(0, queues).unwrap();
    assert_eq!(setup.harness.interrupt.config_changes(), 2);
}

#[test]
fn a_driver_without_queues_can_print_bytes() {
    let mut setup = idle();
    setup.harness.device.write_config(8, &[b'!', 0, 0, 0]);
    setup.harness.device.write_config(0, b"ignored");
    setup.harness.device.write_config(u64::MAX, b"?");
    setup.harness.device.write_config(8, &[]);
    assert_eq!(setup.output.scroll_back().1, b"!");
}

#[test]
fn a_saved_console_gives_its_input_to_the_restored_one() {
    let mut setup = active();
    setup.offer(2);
    setup.handle.enqueue(b"pending");
    assert_eq!(setup.receive(), b"pe");
    setup.handle.set_size(120, 40);
    let queues = setup.harness.device.quiesce();
    let saved = setup.harness.device.save();

    let output = ConsoleOutput::new();
    let restored = Console::new(output.clone()).unwrap();
    setup.handle = restored.handle();
    setup.output = output;
    setup.harness.device = restored;
    setup.harness.device.restore(&saved).unwrap();
    assert_eq!(setup.harness.device.save(), saved);
    assert_eq!(setup.config()[..4], [120, 0, 40, 0]);
    setup.harness.activate_with(0, queues).unwrap();
    setup.offer(100);
    assert_eq!(setup.receive(), b"nding");
    setup.print(b"more");
    assert_eq!(setup.output.scroll_back().1, b"more");
}

#[test]
fn garbage_is_no_state() {
    let mut setup = idle();
    let before = setup.harness.device.save();
    let encode = |state: ConsoleState| prost::Message::encode_to_vec(&state);
    let input = encode(ConsoleState { pending_input: vec![0; PENDING_INPUT_BYTES + 1], ..Default::default() });
    let size = encode(ConsoleState { columns: 65536, ..Default::default() });
    let control = encode(ConsoleState { pending_control: 8, ..Default::default() });
    for garbage in [vec![0xff; 9], input, size, control] {
        assert!(matches!(setup.harness.device.restore(&garbage), Err(RestoreError::Malformed { .. })));
        assert_eq!(setup.harness.device.save(), before);
    }
}

#[test]
fn rings_that_cannot_be_followed_fail_the_device() {
    for queue in [RECEIVE, TRANSMIT] {
        let setup = idle();
        setup.handle.enqueue(b"x");
        hostile::impossible_ring(setup.harness, 0, queue);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn hostile_chains_reach_nothing_but_buffers(rounds in hostile::rounds()) {
        let mut setup = idle();
        setup.handle.enqueue(&vec![0xa5; PENDING_INPUT_BYTES]);
        hostile::attack(&mut setup.harness, 0, &rounds);
    }

    /// A console is two byte streams, through any pauses.
    #[test]
    fn bytes_arrive_once_and_in_order(
        steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..300), any::<bool>()), 1..20),
    ) {
        let mut setup = active();
        let (mut printed, mut typed, mut received) = (vec![], vec![], vec![]);
        for (bytes, pause) in steps {
            setup.handle.enqueue(&bytes);
            typed.extend_from_slice(&bytes);
            setup.offer(170);
            if pause { setup.harness.pause_and_resume() }
            received.extend(setup.receive());
            setup.print(&bytes);
            printed.extend_from_slice(&bytes);
        }
        while received.len() < typed.len() {
            setup.offer(170);
            received.extend(setup.receive());
        }
        prop_assert_eq!(received, typed);
        prop_assert_eq!(setup.output.scroll_back().1, printed);
    }
}
