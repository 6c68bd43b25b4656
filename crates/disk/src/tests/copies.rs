//! Copy-on-read: what is copied, what is not, and that nothing newer is overwritten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::iovec;
use vhdx::testing::Random;

use super::images::{MIB, create, image_options, read, run, write};
use super::*;

const SIZE: usize = 8 * MIB;

fn copying() -> OpenOptions {
    OpenOptions { copy_on_read: true, ..image_options() }
}

/// A byte that is nowhere zero, and not the same in neighbouring sectors.
fn old(offset: usize) -> u8 {
    (offset / 512 % 251) as u8 + 1
}

/// A child without anything of its own, of a parent that is full of `old`.
fn child(directory: &Path) -> PathBuf {
    let (base, child) = (directory.join("base.vhdx"), directory.join("child.vhdx"));
    create(&base, SIZE, None);
    let disk = Disk::open(&base, image_options()).unwrap();
    let content: Vec<u8> = (0..SIZE).map(old).collect();
    write(&mut Engine::new(&disk, 1).unwrap(), 0, &content, Durability::Durable).unwrap();
    drop(disk);
    create(&child, SIZE, Some(&base));
    child
}

/// Which sectors of a range are in the image itself.
fn own_sectors(disk: &Disk, offset: usize, length: usize) -> usize {
    let tables = disk.image().unwrap().tables().unwrap();
    let mut extents = Vec::new();
    let ticket = tables.map_read(offset as u64, length as u64, &mut extents).unwrap();
    tables.finish(ticket);
    let own = extents.iter().filter(|extent| extent.place != vhdx::Place::Parent);
    own.map(|extent| extent.length as usize / 512).sum()
}

#[test]
fn what_was_read_is_in_the_image_from_then_on_and_only_that() {
    let directory = directory();
    let path = child(directory.path());
    for options in [copying(), OpenOptions { cache: Cache::Direct, ..copying() }] {
        let disk = Disk::open(&path, options).unwrap();
        let mut engine = Engine::new(&disk, 2).unwrap();
        let start = if options.cache == Cache::Direct { 4 * MIB } else { 0 };
        // The middle of it is written before, and is read from where it is.
        write(&mut engine, start + 20480, &[0xEE; 1024], Durability::Volatile).unwrap();
        let found = read(&mut engine, start + 512, 100 << 10);
        for (offset, byte) in (start + 512..).zip(found) {
            let is_written = (start + 20480..start + 21504).contains(&offset);
            assert_eq!(byte, if is_written { 0xEE } else { old(offset) }, "at {offset}");
        }
        assert_eq!(engine.in_flight(), 0);
        assert_eq!(own_sectors(&disk, start, 200 << 10), 200);
        // Larger than what is copied.
        assert!(read(&mut engine, start + MIB, 2 * MIB).into_iter().zip(start + MIB..).all(|(byte, offset)| byte == old(offset)));
        assert_eq!(own_sectors(&disk, start + MIB, 2 * MIB), 0);
    }
    // It is there without the parent's help: the tables were written.
    let disk = Disk::open(&path, image_options()).unwrap();
    assert_eq!(own_sectors(&disk, 0, SIZE), 400);
    assert_eq!(read(&mut Engine::new(&disk, 1).unwrap(), 512, 512), [old(512); 512]);
}

#[test]
fn it_is_off_by_default_and_means_nothing_where_nothing_can_be_copied() {
    let directory = directory();
    let path = child(directory.path());
    for options in [image_options(), OpenOptions { access: Access::ReadOnly, ..copying() }] {
        let disk = Disk::open(&path, options).unwrap();
        read(&mut Engine::new(&disk, 1).unwrap(), 0, 65536);
        assert_eq!(own_sectors(&disk, 0, SIZE), 0);
    }
    let disk = Disk::open(directory.path().join("base.vhdx"), copying()).unwrap();
    assert!(disk.image().unwrap().ranges.is_none());
}

#[test]
fn a_read_does_not_write_what_its_memory_became() {
    let directory = directory();
    let disk = Disk::open(child(directory.path()), copying()).unwrap();
    let mut engine = Engine::new(&disk, 1).unwrap();
    let mut memory = vec![0u8; 65536];
    let segment = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory outlives the request, whose end is waited for.
    unsafe { engine.read(0, 0, &[segment]) }.unwrap();
    let event = loop {
        engine.wait();
        if let Some(event) = engine.next() {
            break event;
        }
    };
    assert_eq!(event, Event::Done { tag: 0, result: Ok(()) });
    // The copy is still to be made, and the memory is the caller's again.
    assert_eq!(engine.in_flight(), 1);
    memory.fill(0xEE);
    engine.drain(|_, _| panic!("a copy is not reported"));
    assert_eq!(own_sectors(&disk, 0, 65536), 128);
    let found = read(&mut engine, 0, 65536);
    assert!(found.into_iter().enumerate().all(|(offset, byte)| byte == old(offset)));
}

#[test]
fn a_write_to_what_is_being_copied_waits_and_wins() {
    let directory = directory();
    let disk = Disk::open(child(directory.path()), copying()).unwrap();
    let ranges = disk.image().unwrap().ranges.clone().unwrap();
    let mut engine = Engine::new(&disk, 4).unwrap();
    // A copy in another engine, which takes its time.
    let copy = ranges.begin_copy(0..65536).unwrap();
    let data = [7u8; 512];
    let segment = iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: the memory outlives the request, whose end is waited for.
    unsafe { engine.write(0, 512, &[segment], Durability::Volatile) }.unwrap();
    run_tag(&mut engine, 1, |engine| engine.write_zeroes(1, 1 << 20, 512, Zeroing::Keep, Durability::Volatile).unwrap());
    assert_eq!(engine.in_flight(), 1);
    // A parked write does not keep writes from being held.
    drop(disk.hold_writes());
    assert!(ranges.end(copy));
    disk.gate().wake();
    engine.drain(|tag, result| assert_eq!((tag, result), (0, Ok(()))));
    assert_eq!(read(&mut engine, 512, 512), [7; 512]);
    // And what somebody is writing is not copied.
    let change = ranges.begin_change(2 << 20..3 << 20).unwrap();
    read(&mut engine, 2 * MIB - 4096, 8192);
    assert_eq!(own_sectors(&disk, 2 * MIB - 4096, 8192), 0);
    ranges.end(change);
    read(&mut engine, 2 * MIB - 4096, 8192);
    assert_eq!(own_sectors(&disk, 2 * MIB - 4096, 8192), 16);
}

#[test]
fn what_was_written_after_it_was_read_is_not_copied_over() {
    let directory = directory();
    let disk = Disk::open(child(directory.path()), copying()).unwrap();
    let (mut reader, mut writer) = (Engine::new(&disk, 1).unwrap(), Engine::new(&disk, 1).unwrap());
    let mut memory = vec![0u8; 8192];
    let segment = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory outlives the request, whose end is waited for.
    unsafe { reader.read(0, 0, &[segment]) }.unwrap();
    // The kernel has read, and the engine does not know yet.
    reader.wait();
    write(&mut writer, 512, &[7; 512], Durability::Volatile).unwrap();
    reader.drain(|_, result| result.unwrap());
    assert_eq!(memory[512..1024], [old(512); 512]);
    assert_eq!(read(&mut writer, 512, 512), [7; 512]);
    assert_eq!(own_sectors(&disk, 0, 8192), 1);
}

/// Starts a request and waits for the end of this tag.
fn run_tag(engine: &mut Engine, tag: u16, start: impl FnOnce(&mut Engine)) {
    start(engine);
    loop {
        engine.wait();
        if let Some(event) = engine.next() {
            assert_eq!(event, Event::Done { tag, result: Ok(()) });
            return;
        }
    }
}

#[test]
fn reads_and_writes_of_many_engines_never_bring_old_data_back() {
    const THREADS: usize = 3;
    let directory = directory();
    let path = child(directory.path());
    let disk = Disk::open(&path, copying()).unwrap();
    // Each writer owns every third sector and counts it up; everybody reads all of them. Neighbours share blocks and requests.
    const PART: usize = 256 << 10;
    let newest: Arc<Vec<AtomicU32>> = Arc::new((0..PART / 512).map(|_| AtomicU32::new(0)).collect());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (disk, newest) = (&disk, newest.clone());
            scope.spawn(move || {
                let mut engine = Engine::new(disk, 4).unwrap();
                let mut random = Random::new(thread as u64 + 1);
                for _ in 0..4000 {
                    let sector = random.below((PART / 512) as u64 / THREADS as u64) as usize * THREADS + thread;
                    if random.below(8) == 0 {
                        let number = newest[sector].load(Ordering::SeqCst) + 1;
                        let data: Vec<u8> = number.to_le_bytes().repeat(128);
                        write(&mut engine, sector * 512, &data, Durability::Volatile).unwrap();
                        newest[sector].store(number, Ordering::SeqCst);
                        continue;
                    }
                    let first = random.below((PART / 512 - 16) as u64) as usize;
                    let least: Vec<u32> = newest[first..first + 16].iter().map(|it| it.load(Ordering::SeqCst)).collect();
                    let found = read(&mut engine, first * 512, 16 * 512);
                    for (sector, (least, data)) in (first..).zip(least.into_iter().zip(found.chunks(512))) {
                        let number = u32::from_le_bytes(data[..4].try_into().unwrap());
                        let is_old = data[..4] == [old(sector * 512); 4];
                        assert!(if is_old { least == 0 } else { number >= least && number < 4000 }, "sector {sector}: {data:?}");
                    }
                }
            });
        }
    });
    assert!(own_sectors(&disk, 0, PART) > PART / 512 / 2, "hardly anything was copied");
    drop(disk);
    let disk = Disk::open(&path, image_options()).unwrap();
    let found = read(&mut Engine::new(&disk, 1).unwrap(), 0, PART);
    for (sector, data) in found.chunks(512).enumerate() {
        let newest = newest[sector].load(Ordering::SeqCst);
        let expected = if newest == 0 { [old(sector * 512); 4] } else { newest.to_le_bytes() };
        assert!(data.chunks(4).all(|it| it == expected), "sector {sector}");
    }
}

#[test]
fn an_engine_that_is_dropped_leaves_no_copy_behind() {
    let directory = directory();
    let disk = Disk::open(child(directory.path()), copying()).unwrap();
    let mut memory = vec![0u8; 8 << 16];
    for round in 0..8 {
        let mut engine = Engine::new(&disk, 8).unwrap();
        for (tag, part) in (0..).zip(memory.chunks_mut(1 << 16)) {
            let segment = iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
            // SAFETY: the engine is dropped before the memory.
            unsafe { engine.read(tag, (round << 20) + (u64::from(tag) << 16), &[segment]) }.unwrap();
        }
        engine.wait();
        for _ in 0..round {
            engine.next();
            engine.poll();
        }
    }
    let mut engine = Engine::new(&disk, 1).unwrap();
    run(&mut engine, |engine| engine.write_zeroes(0, 0, SIZE as u64, Zeroing::Unmap, Durability::Volatile)).unwrap();
    assert!(read(&mut engine, 0, SIZE).into_iter().all(|byte| byte == 0));
}
