// A list of one range is meant.
#![allow(clippy::single_range_in_vec_init)]

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::blocks::{Blocks, BlocksState};
use super::*;
use crate::devices::hostile;
use crate::virtio::testing::{Buffer, Harness};
use crate::virtio::{RestoreError, VirtioDevice};

const BLOCK: u64 = 64 << 10;
const REGION: u64 = 8 << 20;
const BLOCKS: u64 = 100;
const CONFIG: MemConfig =
    MemConfig { address: REGION, region_size: BLOCKS * BLOCK, block_size: BLOCK, requested_size: 50 * BLOCK };
const REQUEST: u64 = 4 << 20;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Response types and, of acknowledged state requests, states.
const ACK: [u16; 2] = [0, 0];
const ACK_UNPLUGGED: [u16; 2] = [0, 1];
const ACK_MIXED: [u16; 2] = [0, 2];
const NACK: [u16; 2] = [1, 0];
const ERROR: [u16; 2] = [3, 0];

fn active() -> (Harness<Mem>, MemHandle) {
    let mem = Mem::new(CONFIG).unwrap();
    let handle = mem.handle();
    let mut harness = Harness::new(mem);
    harness.activate(2).unwrap();
    (harness, handle)
}

fn at(block: u64) -> u64 {
    REGION + block * BLOCK
}

fn request(harness: &mut Harness<Mem>, kind: u16, address: u64, count: u16) -> [u16; 2] {
    let mut bytes = [0xee; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    harness.memory.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
    harness.memory.write_slice(&[0xdd; 16], GuestAddress(REQUEST + 4096)).unwrap();
    let chain = [
        Buffer { address: REQUEST, length: 24, device_writes: false },
        Buffer { address: REQUEST + 4096, length: 16, device_writes: true },
    ];
    assert_eq!(harness.exchange(0, &chain).length, 10);
    let response: [u8; 16] = harness.memory.read_obj(GuestAddress(REQUEST + 4096)).unwrap();
    assert_eq!(response[2..8], [0; 6]);
    assert_eq!(response[10..], [0xdd; 6]);
    [u16::from_le_bytes([response[0], response[1]]), u16::from_le_bytes([response[8], response[9]])]
}

fn config(harness: &Harness<Mem>) -> Vec<u64> {
    let mut space = [0; 56];
    harness.device.read_config(0, &mut space);
    space.chunks_exact(8).map(|field| u64::from_le_bytes(field.try_into().unwrap())).collect()
}

#[test]
fn blocks_are_plugged_and_unplugged_and_their_content_goes() {
    let (mut harness, handle) = active();
    assert_eq!(request(&mut harness, PLUG, at(3), 4), ACK);
    assert_eq!(handle.plugged_size(), 4 * BLOCK);
    assert_eq!(handle.plugged_ranges(), [at(3)..at(7)]);
    harness.memory.write_slice(&vec![7; 6 * BLOCK as usize], GuestAddress(at(2))).unwrap();
    assert_eq!(request(&mut harness, UNPLUG, at(4), 2), ACK);
    assert_eq!(handle.plugged_ranges(), [at(3)..at(4), at(6)..at(7)]);
    for block in 2..8 {
        let expected = if matches!(block, 4 | 5) { 0 } else { 7 };
        let mut content = vec![0; BLOCK as usize];
        harness.memory.read_slice(&mut content, GuestAddress(at(block))).unwrap();
        assert!(content.iter().all(|byte| *byte == expected), "block {block}");
    }
    assert_eq!(request(&mut harness, STATE, at(3), 1), ACK);
    assert_eq!(request(&mut harness, STATE, at(4), 2), ACK_UNPLUGGED);
    assert_eq!(request(&mut harness, STATE, at(3), 2), ACK_MIXED);
    assert_eq!(request(&mut harness, UNPLUG_ALL, u64::MAX, 0), ACK);
    assert_eq!((handle.plugged_size(), handle.plugged_ranges()), (0, vec![]));
}

#[test]
fn requests_that_make_no_sense_are_errors_and_change_nothing() {
    let (mut harness, handle) = active();
    assert_eq!(request(&mut harness, PLUG, at(10), 10), ACK);
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, count) in [
            (at(30), 0),
            (at(30) + 4096, 1),
            (at(0) - BLOCK, 1),
            (at(0) - BLOCK, 2),
            (at(BLOCKS), 1),
            (at(BLOCKS - 1), 2),
            (at(30), u16::MAX),
            (0, 1),
            (!(BLOCK - 1), 2),
        ] {
            assert_eq!(request(&mut harness, kind, address, count), ERROR, "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(request(&mut harness, PLUG, at(9), 2), ERROR);
    assert_eq!(request(&mut harness, PLUG, at(19), 1), ERROR);
    assert_eq!(request(&mut harness, UNPLUG, at(19), 2), ERROR);
    assert_eq!(request(&mut harness, UNPLUG, at(20), 1), ERROR);
    for kind in [4, 255, u16::MAX] {
        assert_eq!(request(&mut harness, kind, at(30), 1), ERROR);
    }
    assert_eq!(handle.plugged_ranges(), [at(10)..at(20)]);
}

#[test]
fn not_more_is_plugged_than_requested() {
    let (mut harness, handle) = active();
    assert_eq!(request(&mut harness, PLUG, at(0), 51), NACK);
    assert_eq!(request(&mut harness, PLUG, at(0), 50), ACK);
    assert_eq!(request(&mut harness, PLUG, at(60), 1), NACK);
    handle.set_requested_size(51 * BLOCK).unwrap();
    assert_eq!(request(&mut harness, PLUG, at(60), 1), ACK);
    handle.set_requested_size(0).unwrap();
    assert_eq!(handle.plugged_size(), 51 * BLOCK, "the driver decides what to unplug");
    assert_eq!(request(&mut harness, PLUG, at(61), 1), NACK);
}

#[test]
fn the_driver_learns_what_is_requested() {
    let (mut harness, handle) = active();
    assert_eq!(config(&harness), [BLOCK, 0, REGION, BLOCKS * BLOCK, BLOCKS * BLOCK, 0, 50 * BLOCK]);
    handle.set_requested_size(60 * BLOCK).unwrap();
    handle.set_requested_size(60 * BLOCK).unwrap();
    assert_eq!((harness.interrupt.config_changes(), config(&harness)[6]), (1, 60 * BLOCK));
    request(&mut harness, PLUG, at(0), 2);
    assert_eq!((harness.interrupt.config_changes(), config(&harness)[5]), (1, 2 * BLOCK));
    assert!(handle.set_requested_size(BLOCK + 1).is_err());
    assert!(handle.set_requested_size((BLOCKS + 1) * BLOCK).is_err());
    assert_eq!(handle.requested_size(), 60 * BLOCK);
}

#[test]
fn requests_without_room_for_an_answer_do_nothing() {
    let (mut harness, handle) = active();
    harness.memory.write_slice(&[0; 24], GuestAddress(REQUEST)).unwrap();
    harness.memory.write_obj(at(0), GuestAddress(REQUEST + 8)).unwrap();
    harness.memory.write_obj(1u16, GuestAddress(REQUEST + 16)).unwrap();
    let readable = Buffer { address: REQUEST, length: 24, device_writes: false };
    let writable = Buffer { address: REQUEST + 4096, length: 9, device_writes: true };
    assert_eq!(harness.exchange(0, &[readable]).length, 0);
    assert_eq!(harness.exchange(0, &[readable, writable]).length, 0);
    assert_eq!(handle.plugged_size(), 0);
    // A request that is too short is answered with an error.
    let (short, room) = (Buffer { length: 23, ..readable }, Buffer { length: 10, ..writable });
    assert_eq!(harness.exchange(0, &[short, room]).length, 10);
    assert_eq!(harness.memory.read_obj::<u16>(GuestAddress(REQUEST + 4096)).unwrap(), 3);
    assert_eq!(harness.exchange(0, &[readable, room]).length, 10);
    assert_eq!(handle.plugged_size(), BLOCK);
}

#[test]
fn a_device_reset_keeps_memory_plugged_and_a_system_reset_does_not() {
    let (mut harness, handle) = active();
    request(&mut harness, PLUG, at(0), 5);
    harness.memory.write_obj(7u8, GuestAddress(at(1))).unwrap();
    harness.device.quiesce();
    harness.device.reset();
    assert_eq!(handle.plugged_size(), 5 * BLOCK);
    assert_eq!(harness.memory.read_obj::<u8>(GuestAddress(at(1))).unwrap(), 7);
    assert!(handle.system_reset(&harness.memory));
    assert_eq!((handle.plugged_size(), handle.requested_size()), (0, 50 * BLOCK));
    assert_eq!(harness.memory.read_obj::<u8>(GuestAddress(at(1))).unwrap(), 0);
}

#[test]
fn plugged_blocks_survive_pause_save_and_restore() {
    let (mut harness, handle) = active();
    request(&mut harness, PLUG, at(0), 5);
    request(&mut harness, PLUG, at(99), 1);
    handle.set_requested_size(70 * BLOCK).unwrap();
    harness.pause_and_resume();
    let queues = harness.device.quiesce();
    let saved = harness.device.save();
    harness.device = Mem::new(CONFIG).unwrap();
    harness.device.restore(&saved).unwrap();
    let handle = harness.device.handle();
    assert_eq!(harness.device.save(), saved);
    assert_eq!(handle.plugged_ranges(), [at(0)..at(5), at(99)..at(100)]);
    harness.activate_with(2, queues).unwrap();
    assert_eq!(request(&mut harness, UNPLUG, at(99), 1), ACK);
    assert_eq!((handle.plugged_size(), handle.requested_size()), (5 * BLOCK, 70 * BLOCK));
}

#[test]
fn states_of_other_devices_and_garbage_are_refused() {
    let mut mem = Mem::new(CONFIG).unwrap();
    let before = mem.save();
    for other in [
        MemConfig { address: REGION + BLOCK, ..CONFIG },
        MemConfig { region_size: CONFIG.region_size - BLOCK, ..CONFIG },
        MemConfig { block_size: BLOCK / 2, ..CONFIG },
    ] {
        let saved = Mem::new(other).unwrap().save();
        assert!(matches!(mem.restore(&saved), Err(RestoreError::Mismatch { .. })));
    }
    let state: MemState = prost::Message::decode(&before[..]).unwrap();
    for bad in [
        MemState { plugged: vec![0; 12], ..state.clone() },
        MemState { plugged: vec![0xff; 13], ..state.clone() },
        MemState { requested_size: 1, ..state.clone() },
    ] {
        assert!(matches!(mem.restore(&prost::Message::encode_to_vec(&bad)), Err(RestoreError::Malformed { .. })));
    }
    assert!(matches!(mem.restore(&[0xff; 11]), Err(RestoreError::Malformed { .. })));
    assert_eq!(mem.save(), before);
}

#[test]
fn impossible_configurations_are_refused() {
    for config in [
        MemConfig { block_size: 0, ..CONFIG },
        MemConfig { block_size: 2048, ..CONFIG },
        MemConfig { block_size: 3 << 16, ..CONFIG },
        MemConfig { address: 4096, ..CONFIG },
        MemConfig { region_size: 0, requested_size: 0, ..CONFIG },
        MemConfig { region_size: BLOCK + 1, ..CONFIG },
        MemConfig { requested_size: (BLOCKS + 1) * BLOCK, ..CONFIG },
        MemConfig { address: u64::MAX - BLOCK + 1, ..CONFIG },
        MemConfig { region_size: 1 << 60, ..CONFIG },
    ] {
        assert!(Mem::new(config).is_err(), "{config:?}");
    }
}

#[test]
fn a_ring_that_cannot_be_followed_fails_the_device() {
    hostile::impossible_ring(Harness::new(Mem::new(CONFIG).unwrap()), 2, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn hostile_chains_reach_nothing_but_buffers(rounds in hostile::rounds()) {
        hostile::attack(&mut Harness::new(Mem::new(CONFIG).unwrap()), 2, &rounds);
    }

    /// The device is an array of booleans.
    #[test]
    fn requests_behave_like_a_model(requests in prop::collection::vec((0u16..5, 0u64..110, 0u16..20, any::<bool>()), 1..60)) {
        let (mut harness, handle) = active();
        let mut model = [false; BLOCKS as usize];
        for (kind, first, count, pause) in requests {
            let range = first as usize..first as usize + usize::from(count);
            let valid = count > 0 && range.end <= model.len();
            let plugged = if valid { model[range.clone()].iter().filter(|block| **block).count() } else { 0 };
            let total = model.iter().filter(|block| **block).count();
            let expected = match kind {
                UNPLUG_ALL => { model.fill(false); ACK }
                PLUG if valid && plugged == 0 && total + range.len() > 50 => NACK,
                PLUG if valid && plugged == 0 => { model[range].fill(true); ACK }
                UNPLUG if valid && plugged == range.len() => { model[range].fill(false); ACK }
                STATE if valid && plugged == range.len() => ACK,
                STATE if valid && plugged == 0 => ACK_UNPLUGGED,
                STATE if valid => ACK_MIXED,
                _ => ERROR,
            };
            prop_assert_eq!(request(&mut harness, kind, at(first), count), expected);
            if pause { harness.pause_and_resume() }
            prop_assert_eq!(handle.plugged_size(), model.iter().filter(|block| **block).count() as u64 * BLOCK);
        }
    }

    #[test]
    fn blocks_make_a_round_trip(count in 1u64..300, plugged in prop::collection::vec(0u64..300, 0..50)) {
        let mut blocks = Blocks::new(count);
        plugged.iter().filter(|block| **block < count).for_each(|block| blocks.set(*block..*block + 1, true));
        prop_assert_eq!(Blocks::from_bytes(count, &blocks.to_bytes()), Some(blocks.clone()));
        let total: u64 = blocks.plugged_ranges().iter().map(|range| range.end - range.start).sum();
        prop_assert_eq!(total, blocks.plugged());
        prop_assert!(blocks.plugged_ranges().into_iter().all(|range| blocks.state(range) == BlocksState::Plugged));
    }
}
