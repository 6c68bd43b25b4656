//! Garbage in queues: random descriptors, impossible indices, queues that change while they are in use.

use super::access::Physical;
use super::arena::{Arena, HEADER_BYTES, HEADERS, INDIRECT_TABLES, PLACE_BYTES, PLACES};
use super::device::{
    ACKNOWLEDGE, BALLOON, BLOCK, DRIVER, DRIVER_OK, Device, FEATURES_OK, MEM, MSIX_TABLE, NET, VERSION_1, VSOCK,
};
use super::random::Random;

pub const AVAILABLE: u64 = 0x5000;
const USED: u64 = 0x8000;
const NEXT: u64 = 1;
const WRITE: u64 = 2;
const INDIRECT: u64 = 4;
/// As long as devices' rings may be here; their places have room for it.
const MAX_SIZE: u64 = 1024;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// No memory is there, whatever the VM's size: registers, the hole above them, beyond everything, and the last bytes of all.
pub const NOWHERE: [u64; 8] = [
    0xc000_0000,
    0xe000_0000,
    0xfee0_0000,
    0xffff_f000,
    0x00ff_ffff_ffff_f000,
    0x7fff_ffff_ffff_fff0,
    0xffff_ffff_ffff_fff0,
    0xffff_ffff_ffff_ffff,
];

/// Drives one device's queues with garbage, for one round. The device may be left in the midst of it.
pub fn attack(device: &Device, arena: &Arena, random: &mut Random) -> Result<(), String> {
    device.reset()?;
    if device.kind == BALLOON {
        // Nothing that another device was to read may be left: to a balloon it is a list of this guest's pages to throw away.
        arena.rings.fill(0);
        arena.indirect.fill(0);
        fill_page_numbers(arena, random);
    }
    fill_headers(device, arena, random);
    fill_indirect_tables(device, arena, random);
    device.set_status(ACKNOWLEDGE | DRIVER);
    device.set_features(match random.below(6) {
        0 => device.offered,
        1 => random.next(),
        2 => device.offered & random.next() & !VERSION_1,
        _ => (device.offered & random.next()) | VERSION_1,
    });
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if random.one_in(3) {
        garble_vectors(device, random);
    }
    for queue in 0..device.queues + u16::from(random.one_in(4)) {
        if !random.one_in(12) {
            set_up(device, arena, queue, random);
        }
    }
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for _ in 0..random.below(80) {
        disturb(device, arena, random);
    }
    // What was started is under way when the reset comes, here or from the proof.
    (0..device.queues).for_each(|queue| device.kick(queue));
    device.set_msix(0);
    if random.one_in(2) { device.reset() } else { Ok(()) }
}

fn place(arena: &Arena, queue: u16) -> Physical {
    arena.rings.part(u64::from(queue) % PLACES * PLACE_BYTES, PLACE_BYTES)
}

/// Fills a queue's rings and enables it.
fn set_up(device: &Device, arena: &Arena, queue: u16, random: &mut Random) {
    let rings = place(arena, queue);
    let max = u64::from(device.queue_max_size(queue)).clamp(1, MAX_SIZE);
    let size = match random.below(12) {
        0 => random.odd() as u16,
        1 => max as u16,
        _ => 1 << random.below(u64::from(max.ilog2()) + 1),
    };
    let used = u64::from(size).clamp(1, MAX_SIZE);
    for index in 0..used {
        write_descriptor(device, arena, &rings.part(index * 16, 16), used, true, random);
    }
    for index in 0..used {
        rings.write(AVAILABLE + 4 + index * 2, 2, if random.one_in(30) { random.next() & 0xffff } else { random.below(used) });
    }
    rings.write(AVAILABLE, 2, random.below(3));
    // Where the driver wants to be told, if both sides use that.
    rings.write(AVAILABLE + 4 + used * 2, 2, random.below(4));
    rings.write(AVAILABLE + 2, 2, if random.one_in(15) { random.next() & 0xffff } else { random.below(used + 1) });
    let at = rings.start();
    let mut addresses = [at, at + AVAILABLE, at + USED];
    if random.one_in(10) {
        // The used ring is written: it never lies over what steers a device.
        let victim = random.below(3) as usize;
        addresses[victim] = match (random.below(5), victim) {
            (0, _) => random.pick(&NOWHERE),
            (1, _) => (random.next() | (1 << 40)) & !0xf,
            (2, 2) => arena.data.start() + random.below(arena.data.length() - 0x2_0000),
            (2, _) => arena.canary().start() + random.below(0x1000),
            (3, 1) => addresses[0],
            (3, 0) => at + 16 * random.below(64),
            _ => addresses[victim] + random.below(64),
        };
    }
    device.set_queue(queue, size, addresses);
    if random.one_in(2) {
        device.write_common(0x1a, 2, random.below(u64::from(device.queues) + 3));
    }
    device.enable_queue(queue);
}

/// One random descriptor. In an indirect table, another level of indirection is only sometimes tried.
fn write_descriptor(device: &Device, arena: &Arena, at: &Physical, size: u64, direct: bool, random: &mut Random) {
    let mut flags = random.below(4);
    if random.one_in(if direct { 5 } else { 30 }) {
        flags = INDIRECT | if random.one_in(20) { random.below(4) } else { 0 };
    } else if random.one_in(40) {
        flags = random.next() & 0xffff;
    }
    let (address, length) = if flags & INDIRECT != 0 {
        let table = arena.indirect.start() + random.below(INDIRECT_TABLES) * 4096;
        match random.below(10) {
            _ if flags & WRITE != 0 => (random.pick(&NOWHERE), random.odd()),
            0 => (random.pick(&NOWHERE), 16 * random.below(64)),
            1 => (table, random.below(4096)),
            _ => (table, 16 * (1 + random.below(32))),
        }
    } else if flags & WRITE != 0 {
        buffer(&arena.data, random)
    } else {
        readable(device, arena, random)
    };
    let next = if random.one_in(30) { random.next() & 0xffff } else { random.below(size) };
    let next = if flags & NEXT == 0 { 0 } else { next };
    at.write(0, 8, address);
    at.write(8, 8, (length & 0xffff_ffff) | ((flags & 0xffff) << 32) | (next << 48));
}

/// A buffer in `part`, or one that is not in memory. One that starts in memory and is longer than all of it starts well before
/// the end of `part`, in case a device fills what it can.
fn buffer(part: &Physical, random: &mut Random) -> (u64, u64) {
    let length = match random.below(8) {
        0 => 0,
        1 => random.below(65536),
        2 => 1 + random.below(16),
        _ => 512 * (1 + random.below(8)),
    };
    let start = random.below(part.length() - 0x1_0000);
    match random.below(16) {
        0 => (random.pick(&NOWHERE), length),
        1 => (random.next() | (1 << 48), random.odd()),
        2 => (part.start() + start / 2, 0xffff_ffff - random.below(4)),
        _ => (part.start() + start, length),
    }
}

/// A buffer for the device to read.
fn readable(device: &Device, arena: &Arena, random: &mut Random) -> (u64, u64) {
    // A balloon takes what it reads for pages to give away: it only gets to read numbers that nobody misses.
    if device.kind == BALLOON {
        return match random.below(8) {
            0 => (random.pick(&NOWHERE), random.odd()),
            1 => (arena.page_numbers.start(), 0xffff_ffff),
            _ => (arena.page_numbers.start() + 4 * random.below(1024), 4 * random.below(2048)),
        };
    }
    match random.below(10) {
        0..6 => {
            let header = arena.headers.start() + random.below(HEADERS) * HEADER_BYTES;
            (header, random.pick(&[16, 16, 16, 24, 44, 44 + 100, 12 + 64, 1, 2000]))
        }
        6 => buffer(arena.canary(), random),
        // Anywhere in memory: reading does no harm.
        7 => (random.below(arena.canary().start() + arena.canary().length()), random.below(4096)),
        _ => buffer(&arena.data, random),
    }
}

/// Requests that begin as the device's kind expects, so that some get past the first check.
fn fill_headers(device: &Device, arena: &Arena, random: &mut Random) {
    for header in 0..HEADERS {
        let at = arena.headers.part(header * HEADER_BYTES, HEADER_BYTES);
        (0..16).for_each(|word| at.write(word * 8, 8, random.odd()));
        match device.kind {
            BLOCK => {
                at.write(0, 4, random.pick(&[0, 0, 1, 1, 4, 8, 11, 13, 14, 0x8000_0000]));
                at.write(8, 8, if random.one_in(4) { random.odd() } else { random.below(9000) });
                // The range of a discard.
                at.write(16, 8, if random.one_in(4) { random.odd() } else { random.below(9000) });
                at.write(24, 4, if random.one_in(4) { random.odd() } else { random.below(64) });
                at.write(28, 4, random.below(3));
            }
            VSOCK => {
                at.write(0, 8, if random.one_in(8) { random.odd() } else { 3 });
                at.write(8, 8, if random.one_in(8) { random.odd() } else { 2 });
                at.write(16, 4, random.below(4));
                at.write(20, 4, random.below(4));
                at.write(24, 4, if random.one_in(3) { random.odd() & 0xffff_ffff } else { random.below(200) });
                at.write(28, 2, if random.one_in(8) { random.below(4) } else { 1 });
                at.write(30, 2, random.below(10));
            }
            MEM => {
                at.write(0, 2, random.below(5));
                let region = device.registers.read(device.specific + 16, 8);
                at.write(8, 8, if random.one_in(4) { random.odd() } else { region + random.below(80) * (2 << 20) });
                at.write(16, 2, if random.one_in(4) { random.odd() } else { random.below(80) });
            }
            NET => {
                at.write(0, 2, random.below(8));
                at.write(2, 8, if random.one_in(2) { random.odd() } else { 0x0022_0036_0040_0040 });
            }
            _ => {}
        }
    }
}

fn fill_page_numbers(arena: &Arena, random: &mut Random) {
    for index in 0..arena.page_numbers.length() / 4 {
        let data = (arena.data.start() >> 12) + random.below(arena.data.length() >> 12);
        arena.page_numbers.write(index * 4, 4, if random.one_in(16) { random.next() | 0x8000_0000 } else { data });
    }
}

fn fill_indirect_tables(device: &Device, arena: &Arena, random: &mut Random) {
    // A few each round: they are many.
    for _ in 0..8 {
        let table = random.below(INDIRECT_TABLES);
        for index in 0..32 {
            let at = arena.indirect.part(table * 4096 + index * 16, 16);
            write_descriptor(device, arena, &at, 32, false, random);
        }
    }
}

/// Something that no driver does while its device works.
fn disturb(device: &Device, arena: &Arena, random: &mut Random) {
    let queue = random.below(u64::from(device.queues.max(1))) as u16;
    let rings = place(arena, queue);
    match random.below(24) {
        0..8 => device.kick(queue),
        8..14 => {
            let index = rings.read(AVAILABLE + 2, 2) + 1 + random.below(4);
            rings.write(AVAILABLE + 2, 2, index);
            device.kick(queue);
        }
        14 => rings.write(AVAILABLE + 2, 2, random.next()),
        15 => {
            let index = random.below(256);
            write_descriptor(device, arena, &rings.part(index * 16, 16), 256, true, random);
        }
        16 => {
            let addresses = [0, AVAILABLE, USED].map(|offset| rings.start() + offset + 16 * random.below(4));
            device.set_queue(queue, 1 << random.below(9), addresses);
        }
        17 => device.enable_queue(random.next() as u16),
        18 => device.write_common(0x16, 2, random.odd()),
        19 => device.set_status(random.next() as u8 | 1),
        20 => {
            let offset = random.below(64);
            device.registers.write(device.specific + offset, random.pick(&[1, 2, 4]), random.odd());
        }
        21 => {
            device.registers.write(device.notification(random.next() as u16 & 0x3ff), random.pick(&[1, 2, 4, 8]), random.next())
        }
        22 => device.set_msix(random.pick(&[0, MSIX_ENABLE, MSIX_MASK, MSIX_ENABLE | MSIX_MASK])),
        _ => std::thread::sleep(std::time::Duration::from_micros(random.below(2000))),
    }
}

/// A message that a random write to the MSI-X table may name. The address can be anything, but the interrupt must be one that a Linux
/// guest survives: an ordinary one (no NMI, no INIT), with a vector that no exception and no call between processors has.
pub fn harmless_message(random: &mut Random) -> u64 {
    (random.next() & 0xffff_3800) | (0x30 + random.below(0xb0))
}

/// Points the vectors anywhere and switches them on.
fn garble_vectors(device: &Device, random: &mut Random) {
    for vector in 0..u64::from(device.queues) + 2 {
        let entry = MSIX_TABLE + vector * 16;
        device.registers.write(entry, 4, if random.one_in(2) { 0xfee0_0000 | (random.below(4) << 12) } else { random.next() });
        device.registers.write(entry + 4, 4, if random.one_in(2) { 0 } else { random.next() });
        device.registers.write(entry + 8, 4, harmless_message(random));
        device.registers.write(entry + 12, 4, random.below(4));
    }
    device.write_common(0x10, 2, random.below(u64::from(device.queues) + 3));
    device.set_msix(random.pick(&[MSIX_ENABLE, MSIX_ENABLE, MSIX_ENABLE | MSIX_MASK]));
}

/// What another processor does meanwhile: changes of rings between a device's looks at them, and notifications, also of queues
/// that there are not.
pub fn interfere(devices: &[Device], arena: &Arena, random: &mut Random) {
    for _ in 0..40 {
        let device = &devices[random.below(devices.len() as u64) as usize];
        let rings = arena.rings.part(random.below(PLACES) * PLACE_BYTES, PLACE_BYTES);
        match random.below(8) {
            0 => rings.write(AVAILABLE + 4 + 2 * random.below(256), 2, random.below(64)),
            // A descriptor's link: loops come and go.
            1 => rings.write(16 * random.below(256) + 14, 2, random.below(300)),
            2 => rings.write(AVAILABLE, 2, random.below(2)),
            3 => drop(device.read_common(random.below(0x38), random.pick(&[1, 2, 4]))),
            4 => device.registers.write(device.notification(random.below(0x3ff) as u16), 2, random.next()),
            _ => device.kick(random.below(u64::from(device.queues.max(1))) as u16),
        }
    }
}
