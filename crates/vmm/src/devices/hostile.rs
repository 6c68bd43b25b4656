//! What hostile drivers do to every device on `ring`: random chains, random ring indices.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Harness, TestInterrupt};

/// One raw descriptor.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (4u64 << 20)..(15 << 20),
        1 => (16u64 << 20) - 64..(16 << 20) + 64,
        1 => Just(u64::MAX - 8),
        1 => any::<u64>(),
    ]
}

/// Descriptors of a table of 256, to be written from its start.
pub(super) fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    let length = prop_oneof![6 => 0u32..600, 1 => 0u32..(9 << 20), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0u16..4, 1 => Just(4u16), 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..40, 1 => any::<u16>()];
    let descriptor =
        (address(), length, flags, next).prop_map(|(address, length, flags, next)| Descriptor { address, length, flags, next });
    prop::collection::vec(descriptor, 1..40)
}

/// Sends random chains into every queue of an active device, again and again with a pause after each. Whatever it makes of them, it can
/// be quiesced, and writes nothing outside 4 MiB..16 MiB, where the buffers are, but its rings.
pub(super) fn attack<D: VirtioDevice>(harness: &mut Harness<D>, features: u64, rounds: &[(Vec<Descriptor>, Vec<u16>)]) {
    let guard = vec![0x5a; 0x8_0000];
    harness.memory.write_slice(&guard, GuestAddress(0x1_0000)).unwrap();
    harness.memory.write_slice(&guard, GuestAddress(0x30_0000)).unwrap();
    if harness.activate(features).is_err() {
        return;
    }
    for (descriptors, heads) in rounds {
        for queue in &mut harness.queues {
            for (index, descriptor) in (0..).zip(descriptors) {
                queue.write_descriptor(index, descriptor.address, descriptor.length, descriptor.flags, descriptor.next);
            }
            for head in heads {
                queue.push_head(*head);
            }
            queue.kick();
        }
        harness.pause_and_resume();
    }
    harness.device.quiesce();
    for start in [0x1_0000, 0x30_0000] {
        let mut now = vec![0; guard.len()];
        harness.memory.read_slice(&mut now, GuestAddress(start)).unwrap();
        assert!(now == guard, "the device wrote outside of the buffers");
    }
}

/// A ring index that claims more chains than the queue has.
pub(super) fn impossible_ring<D: VirtioDevice>(mut harness: Harness<D>, features: u64, queue: usize) {
    harness.activate(features).unwrap();
    harness.queues[queue].set_avail_index(0x8000);
    harness.queues[queue].kick();
    harness.interrupt.wait_failed();
    let queues = harness.device.quiesce();
    assert_eq!(queues.len(), harness.queues.len());
    // After a reset the device works on new rings.
    harness.device.reset();
    harness.interrupt = std::sync::Arc::new(TestInterrupt::default());
    harness.queues[queue].set_avail_index(0);
    harness.activate(features).unwrap();
    assert_eq!(harness.interrupt.failed(), None);
}

/// What `attack` sends: descriptor tables and the heads made available from each.
pub(super) fn rounds() -> impl Strategy<Value = Vec<(Vec<Descriptor>, Vec<u16>)>> {
    let head = prop_oneof![30 => 0u16..40, 1 => any::<u16>()];
    prop::collection::vec((descriptors(), prop::collection::vec(head, 1..30)), 1..6)
}
