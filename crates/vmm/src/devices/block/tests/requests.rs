//! What each request does.

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;

#[test]
fn reads_return_what_the_disk_holds() {
    for cache in [Cache::Host, Cache::Direct] {
        let mut machine = Machine::new(Options { cache, ..Options::default() });
        let data = machine.read(3, 4096);
        assert_eq!(data, machine.file()[3 * 512..][..4096]);
        let values = machine.harness.device.counters().read();
        assert_eq!((values.reads, values.read_bytes, values.errors), (1, 4096, 0));
    }
}

#[test]
fn writes_land_on_the_disk() {
    for cache in [Cache::Host, Cache::Direct] {
        let mut machine = Machine::new(Options { cache, ..Options::default() });
        assert_eq!(machine.write(5, &[0xAB; 1024]), OK);
        assert_eq!(machine.request(FLUSH_REQUEST, 0, &[]), OK);
        let file = machine.file();
        assert_eq!(file[5 * 512..][..1024], [0xAB; 1024]);
        assert_eq!(file[4 * 512..][..512], (2048..2560).map(pattern).collect::<Vec<u8>>());
        assert_eq!(file[7 * 512], pattern(7 * 512));
    }
}

#[test]
fn data_may_be_cut_into_buffers_of_any_size() {
    for cache in [Cache::Host, Cache::Direct] {
        let mut machine = Machine::new(Options { cache, ..Options::default() });
        // Odd addresses and lengths: direct I/O has to bounce. Out of order in memory, so that nothing can be joined.
        let buffers = [writable(DATA + 9001, 700), writable(DATA + 1, 511), writable(DATA + 3333, 2048 - 700 - 511)];
        assert_eq!(machine.request(READ, 8, &buffers), OK);
        let mut got = Vec::new();
        for buffer in buffers {
            let mut part = vec![0; buffer.length as usize];
            machine.harness.memory.read_slice(&mut part, GuestAddress(buffer.address)).unwrap();
            got.extend(part);
        }
        assert_eq!(got, machine.file()[8 * 512..][..2048]);

        let buffers: Vec<Buffer> = buffers.iter().map(|it| readable(it.address, it.length)).collect();
        assert_eq!(machine.request(WRITE, 100, &buffers), OK);
        assert_eq!(machine.file()[100 * 512..][..2048], got);
    }
}

#[test]
fn header_and_status_need_no_descriptor_of_their_own() {
    let mut machine = Machine::new(Options::default());
    machine.header(0, WRITE, 2);
    machine.harness.memory.write_slice(&[0x77; 512], GuestAddress(HEADERS + 16)).unwrap();
    machine.harness.memory.write_obj(0xEEu8, GuestAddress(DATA)).unwrap();
    let used = machine.harness.exchange(0, &[readable(HEADERS, 5), readable(HEADERS + 5, 16 - 5 + 512), writable(DATA, 1)]);
    assert_eq!(used.length, 1);
    assert_eq!(machine.harness.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), OK);
    assert_eq!(machine.file()[1024..1536], [0x77; 512]);

    machine.header(0, READ, 2);
    let used = machine.harness.exchange(0, &[readable(HEADERS, 16), writable(DATA, 513)]);
    assert_eq!(used.length, 513);
    let mut bytes = [0; 513];
    machine.harness.memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    assert_eq!((&bytes[..512], bytes[512]), (&[0x77; 512][..], OK));
}

#[test]
fn requests_larger_than_a_bounce_buffer_arrive_whole() {
    let mut machine = Machine::new(Options { cache: Cache::Direct, bytes: 4 << 20, ..Options::default() });
    let length = 1 << 20;
    assert_eq!(machine.request(READ, 16, &[writable(DATA + 3, length)]), OK);
    let mut data = vec![0; length as usize];
    machine.harness.memory.read_slice(&mut data, GuestAddress(DATA + 3)).unwrap();
    assert!(data == machine.file()[16 * 512..][..length as usize]);
    assert_eq!(machine.request(WRITE, 4096, &[readable(DATA + 3, length)]), OK);
    assert!(data == machine.file()[4096 * 512..][..length as usize]);
}

#[test]
fn many_misaligned_requests_share_the_bounce_buffers() {
    let mut machine = Machine::new(Options { cache: Cache::Direct, ..Options::default() });
    for slot in 0..60 {
        let chain = [machine.header(slot, READ, slot * 3), writable(DATA + slot * 1024 + 1, 1024), machine.status(slot)];
        machine.harness.queues[0].push(&chain);
    }
    machine.harness.queues[0].kick();
    for _ in 0..60 {
        machine.harness.wait_used(0);
    }
    let file = machine.file();
    for slot in 0..60 {
        let mut data = [0; 1024];
        machine.harness.memory.read_slice(&mut data, GuestAddress(DATA + slot * 1024 + 1)).unwrap();
        assert_eq!(machine.status_of(slot), OK);
        assert_eq!(data, file[slot as usize * 3 * 512..][..1024]);
    }
}

#[test]
fn zeroed_ranges_read_as_zeros_and_others_keep_their_data() {
    for cache in [Cache::Host, Cache::Direct] {
        for flags in [0, 1] {
            let mut machine = Machine::new(Options { cache, ..Options::default() });
            assert_eq!(machine.range(WRITE_ZEROES, 9, 300, flags), OK);
            let file = machine.file();
            assert!(file[9 * 512..309 * 512].iter().all(|byte| *byte == 0));
            assert_eq!(file[9 * 512 - 1], pattern(9 * 512 - 1));
            assert_eq!(file[309 * 512], pattern(309 * 512));
            assert_eq!(file.len(), 1 << 20);
        }
    }
}

#[test]
fn discards_give_space_back() {
    use std::os::unix::fs::MetadataExt;
    let mut machine = Machine::new(Options::default());
    assert_eq!(machine.request(FLUSH_REQUEST, 0, &[]), OK);
    let blocks = || std::fs::metadata(machine.directory.path().join("disk.raw")).unwrap().blocks();
    let before = blocks();
    assert!(before >= 2048);
    assert_eq!(machine.range(DISCARD, 0, 1024, 0), OK);
    let after = std::fs::metadata(machine.directory.path().join("disk.raw")).unwrap().blocks();
    assert!(after <= before - 1024 + 16, "{before} blocks before, {after} after");
    assert_eq!(machine.harness.device.counters().read().discards, 1);
}

#[test]
fn the_serial_number_is_answered_to_its_length() {
    let mut machine = Machine::new(Options::default());
    assert_eq!(machine.request(GET_ID, 0, &[writable(DATA, 20)]), OK);
    let mut id = [0; 20];
    machine.harness.memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
    assert_eq!(&id, b"MARU-0123456789\0\0\0\0\0");
}

#[test]
fn impossible_requests_are_answered_with_an_error() {
    let mut machine = Machine::new(Options::default());
    let sectors = (1 << 20) / 512;
    let data = [writable(DATA, 512)];
    let far = [writable(1 << 40, 512)];
    let edge = [writable((16 << 20) - 256, 512)];
    let cases: &[(&str, u32, u64, &[Buffer], u8)] = &[
        ("past the end", READ, sectors, &data, IOERR),
        ("across the end", READ, sectors - 1, &[writable(DATA, 1024)], IOERR),
        ("offset overflows", READ, u64::MAX, &data, IOERR),
        ("offset and length overflow", READ, u64::MAX / 512, &data, IOERR),
        ("not whole sectors", READ, 0, &[writable(DATA, 513)], IOERR),
        ("memory that is not there", READ, 0, &far, IOERR),
        ("memory that ends", READ, 0, &edge, IOERR),
        ("address overflows", READ, 0, &[writable(u64::MAX - 10, 512)], IOERR),
        ("a read into readable memory", READ, 0, &[readable(DATA, 512), writable(DATA, 1)], IOERR),
        ("unknown", 77, 0, &data, UNSUPP),
        ("SCSI", 2, 0, &data, UNSUPP),
        ("discard without a range", DISCARD, 0, &[], IOERR),
        ("discard with half a range", DISCARD, 0, &[readable(DATA, 8)], IOERR),
        ("a write after the data to be written", WRITE, 0, &[writable(DATA, 1), readable(DATA, 512)], IOERR),
    ];
    for (what, kind, sector, data, wanted) in cases {
        assert_eq!(machine.request(*kind, *sector, data), *wanted, "{what}");
    }
    assert_eq!(machine.range(DISCARD, 0, 8, 1), UNSUPP);
    assert_eq!(machine.range(WRITE_ZEROES, 0, 8, 2), UNSUPP);
    assert_eq!(machine.range(WRITE_ZEROES, 0, u32::MAX, 0), IOERR);
    assert_eq!(machine.range(WRITE_ZEROES, sectors - 1, 2, 0), IOERR);
    assert_eq!(machine.range(DISCARD, u64::MAX, 8, 0), IOERR);
    assert_eq!(machine.read(0, 512), (0..512).map(pattern).collect::<Vec<u8>>());
    assert_eq!(machine.harness.interrupt.failed(), None);
    assert_eq!(machine.file(), (0..1 << 20).map(pattern).collect::<Vec<u8>>());
}

#[test]
fn requests_without_data_succeed() {
    let mut machine = Machine::new(Options::default());
    assert_eq!(machine.request(READ, 0, &[]), OK);
    assert_eq!(machine.request(WRITE, 0, &[]), OK);
    assert_eq!(machine.range(DISCARD, 0, 0, 0), OK);
    assert_eq!(machine.range(WRITE_ZEROES, 0, 0, 1), OK);
    assert_eq!(machine.file(), (0..1 << 20).map(pattern).collect::<Vec<u8>>());
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut machine = Machine::new(Options { access: Access::ReadOnly, ..Options::default() });
    assert_ne!(machine.harness.device.device_features() & 1 << 5, 0);
    assert_eq!(machine.write(0, &[1; 512]), IOERR);
    assert_eq!(machine.range(DISCARD, 0, 8, 0), IOERR);
    assert_eq!(machine.range(WRITE_ZEROES, 0, 8, 0), IOERR);
    assert_eq!(machine.request(FLUSH_REQUEST, 0, &[]), OK);
    assert_eq!(machine.read(0, 512), (0..512).map(pattern).collect::<Vec<u8>>());
    assert_eq!(machine.file()[..512], (0..512).map(pattern).collect::<Vec<u8>>());
}

#[test]
fn queues_work_side_by_side() {
    let mut machine = Machine::new(Options { queues: 4, ..Options::default() });
    assert_eq!(u16::from_le_bytes(machine.config(34)), 4);
    for round in 0..20 {
        for queue in 0..4u64 {
            for request in 0..8u64 {
                let slot = queue * 8 + request;
                let sector = (slot * 13 + round) % 2000;
                let chain = [machine.header(slot, READ, sector), writable(DATA + slot * 4096, 4096), machine.status(slot)];
                machine.harness.queues[queue as usize].push(&chain);
            }
        }
        machine.harness.queues.iter().for_each(|queue| queue.kick());
        for used in 0..32 {
            machine.harness.wait_used(used / 8);
        }
        for slot in 0..32u64 {
            let from = (slot * 13 + round) % 2000 * 512;
            let mut data = vec![0; 4096];
            machine.harness.memory.read_slice(&mut data, GuestAddress(DATA + slot * 4096)).unwrap();
            assert_eq!(machine.status_of(slot), OK);
            assert!(data.iter().zip(from..).all(|(byte, offset)| *byte == pattern(offset)));
        }
    }
}

#[test]
fn a_batch_is_answered_with_few_interrupts() {
    let mut machine = Machine::new(Options { features: VERSION_1 | FLUSH, ..Options::default() });
    for slot in 0..64 {
        let chain = [machine.header(slot, READ, slot), writable(DATA + slot * 512, 512), machine.status(slot)];
        machine.harness.queues[0].push(&chain);
    }
    machine.harness.queues[0].kick();
    for _ in 0..64 {
        machine.harness.wait_used(0);
    }
    machine.harness.device.quiesce();
    let interrupts = machine.harness.device.counters().read().interrupts;
    assert!(interrupts <= 16, "{interrupts} interrupts for one batch of 64 cached reads");
}

#[test]
fn memory_that_a_read_filled_is_marked_dirty_and_no_other() {
    let mut machine = Machine::new(Options::default());
    let region = machine.harness.memory.iter().next().unwrap();
    (**region).bitmap().reset();
    assert_eq!(machine.request(READ, 0, &[writable(DATA + 100, 8192)]), OK);
    let region = machine.harness.memory.iter().next().unwrap();
    for page in 0..(16 << 20) / 4096 {
        let at = page * 4096;
        let filled = (DATA..DATA + 3 * 4096).contains(&at);
        if at >= DATA {
            assert_eq!(region.bitmap().dirty_at(at as usize), filled, "page at {at:#x}");
        }
    }
    // A write only reads from memory.
    (**region).bitmap().reset();
    assert_eq!(machine.request(WRITE, 0, &[readable(DATA + 100, 8192)]), OK);
    let region = machine.harness.memory.iter().next().unwrap();
    assert!(!region.bitmap().dirty_at(DATA as usize));
}

#[test]
fn growing_tells_the_driver_and_opens_the_new_space() {
    let mut machine = Machine::new(Options::default());
    assert_eq!(machine.request(READ, 2048, &[writable(DATA, 512)]), IOERR);
    machine.harness.device.set_capacity(2 << 20).unwrap();
    assert_eq!(machine.harness.interrupt.config_changes(), 1);
    assert_eq!(u64::from_le_bytes(machine.config(0)), 4096);
    assert_eq!(machine.read(2048, 512), [0; 512]);
    assert_eq!(machine.write(4095, &[9; 512]), OK);
    let error = machine.harness.device.set_capacity(1 << 20).unwrap_err();
    assert!(error.to_string().contains("only grows"), "{error}");
}

#[test]
fn the_configuration_space_ends_where_it_ends() {
    let machine = Machine::new(Options::default());
    assert_eq!(u64::from_le_bytes(machine.config(0)), 2048);
    assert_eq!(u32::from_le_bytes(machine.config(12)), 254);
    assert_eq!(u32::from_le_bytes(machine.config(20)), 512);
    assert_eq!(machine.config::<1>(24), [3]);
    assert_eq!(machine.config::<8>(57), [0; 8]);
    assert_eq!(machine.config::<8>(u64::MAX), [0; 8]);
}
