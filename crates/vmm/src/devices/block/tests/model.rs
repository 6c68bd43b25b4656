//! The device against the simplest disk there is: an array of bytes.

use proptest::prelude::*;

use super::*;

/// Sectors in a lane. The requests of one batch have a lane each, so that their order does not matter.
const LANE: u64 = 64;
const LANES: u64 = 8;

#[derive(Clone, Debug)]
struct Step {
    lane: u64,
    /// The first sector in the lane, and how many.
    first: u64,
    count: u64,
    what: What,
    /// Where the data is cut into two buffers, and how far its memory is off a sector boundary.
    cut: u64,
    shift: u64,
}

#[derive(Clone, Debug)]
enum What {
    Read,
    Write(u8),
    Flush,
    Discard,
    Zero { unmap: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        4 => Just(What::Read),
        4 => any::<u8>().prop_map(What::Write),
        1 => Just(What::Flush),
        1 => Just(What::Discard),
        1 => any::<bool>().prop_map(|unmap| What::Zero { unmap }),
    ];
    let shift = prop_oneof![3 => Just(0), 1 => 1u64..512];
    (0..LANES, 0..LANE - 1, 1..LANE, what, 0..LANE * 512, shift).prop_map(|(lane, first, count, what, cut, shift)| {
        let count = count.min(LANE - first);
        Step { lane, first, count, what, cut: cut % (count * 512), shift }
    })
}

/// Batches, and whether each is interrupted by a pause.
fn batches() -> impl Strategy<Value = Vec<(Vec<Step>, bool)>> {
    proptest::collection::vec((proptest::collection::vec(step(), 1..8), any::<bool>()), 1..12)
}

/// What the disk holds; `None` where a discard left it undefined.
type Model = Vec<Option<u8>>;

fn start(machine: &mut Machine, slot: u64, step: &Step) {
    let sector = step.lane * LANE + step.first;
    let length = step.count * 512;
    let at = DATA + step.lane * (LANE + 2) * 512 + step.shift;
    let cut = |device_writes| {
        let buffer = |from, to| Buffer { address: at + from, length: (to - from) as u32, device_writes };
        vec![buffer(0, step.cut), buffer(step.cut, length)]
    };
    let range = |flags: u32| {
        let memory = &machine.harness.memory;
        memory.write_obj(sector, GuestAddress(at)).unwrap();
        memory.write_obj(step.count as u32, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        vec![readable(at, 16)]
    };
    let (kind, sector, data) = match step.what {
        What::Read => (READ, sector, cut(true)),
        What::Write(seed) => {
            let data: Vec<u8> = (0..length).map(|n| seed.wrapping_add((n % 253) as u8)).collect();
            machine.harness.memory.write_slice(&data, GuestAddress(at)).unwrap();
            (WRITE, sector, cut(false))
        }
        What::Flush => (FLUSH_REQUEST, 0, vec![]),
        What::Discard => (DISCARD, 0, range(0)),
        What::Zero { unmap } => (WRITE_ZEROES, 0, range(u32::from(unmap))),
    };
    let mut chain = vec![machine.header(slot, kind, sector)];
    chain.extend(data);
    chain.push(machine.status(slot));
    let queue = (slot % machine.harness.queues.len() as u64) as usize;
    machine.harness.queues[queue].push(&chain);
}

fn check(machine: &Machine, model: &mut Model, step: &Step) {
    let from = ((step.lane * LANE + step.first) * 512) as usize;
    let range = from..from + (step.count * 512) as usize;
    match step.what {
        What::Read => {
            let mut data = vec![0; range.len()];
            let at = DATA + step.lane * (LANE + 2) * 512 + step.shift;
            machine.harness.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
            let same = model[range].iter().zip(&data).all(|(known, byte)| known.is_none_or(|known| known == *byte));
            assert!(same, "{step:?} read something else");
        }
        What::Write(seed) => {
            model[range].iter_mut().enumerate().for_each(|(n, byte)| *byte = Some(seed.wrapping_add((n % 253) as u8)))
        }
        What::Flush => {}
        What::Discard => model[range].fill(None),
        What::Zero { .. } => model[range].fill(Some(0)),
    }
}

fn run(cache: Cache, features: u64, batches: Vec<(Vec<Step>, bool)>) {
    let mut machine = Machine::new(Options { bytes: LANES * LANE * 512, cache, queues: 2, features, ..Options::default() });
    let mut model: Model = (0..LANES * LANE * 512).map(|offset| Some(pattern(offset))).collect();
    for (mut batch, pause) in batches {
        // One request for each lane.
        batch.sort_by_key(|step| step.lane);
        batch.dedup_by_key(|step| step.lane);
        for (slot, step) in batch.iter().enumerate() {
            start(&mut machine, slot as u64, step);
        }
        machine.harness.queues.iter().for_each(|queue| queue.kick());
        if pause {
            machine.harness.pause_and_resume();
        }
        for slot in 0..batch.len() {
            let queue = slot % machine.harness.queues.len();
            machine.harness.wait_used(queue);
        }
        for (slot, step) in batch.iter().enumerate() {
            assert_eq!(machine.status_of(slot as u64), OK, "{step:?}");
            check(&machine, &mut model, step);
        }
    }
    machine.harness.device.quiesce();
    let same = model.iter().zip(machine.file()).all(|(known, byte)| known.is_none_or(|known| known == byte));
    assert!(same, "the file holds something else");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_an_array_of_bytes(batches in batches(), event_idx in any::<bool>()) {
        run(Cache::Host, VERSION_1 | FLUSH | if event_idx { EVENT_IDX } else { 0 }, batches);
    }

    #[test]
    fn a_disk_with_direct_io_is_an_array_of_bytes(batches in batches(), flush in any::<bool>()) {
        run(Cache::Direct, VERSION_1 | if flush { FLUSH } else { 0 }, batches);
    }
}
