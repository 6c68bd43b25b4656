//! Requests, one by one and many at once.

use std::sync::atomic::Ordering;

use libc::iovec;

use super::*;

/// Cuts `memory` into segments of these lengths.
fn segments(memory: &mut [u8], lengths: &[usize]) -> Vec<iovec> {
    let mut at = memory.as_mut_ptr();
    let segment = |length: &usize| {
        let iov_base = at.cast();
        at = at.wrapping_add(*length);
        iovec { iov_base, iov_len: *length }
    };
    assert_eq!(lengths.iter().sum::<usize>(), memory.len());
    lengths.iter().map(segment).collect()
}

/// The end of the only request under way.
fn end(engine: &mut Engine) -> Result<(), IoError> {
    let mut end = None;
    engine.drain(|_, result| assert!(end.replace(result).is_none()));
    end.unwrap()
}

fn read(engine: &mut Engine, offset: u64, memory: &mut [u8]) -> Result<(), IoError> {
    let all = [memory.len()];
    let segments = segments(memory, &all);
    // SAFETY: the memory outlives the request, whose end is waited for.
    unsafe { engine.read(0, offset, &segments) }?;
    end(engine)
}

fn write(engine: &mut Engine, offset: u64, memory: &mut [u8], durability: Durability) -> Result<(), IoError> {
    let all = [memory.len()];
    let segments = segments(memory, &all);
    // SAFETY: the memory outlives the request, whose end is waited for.
    unsafe { engine.write(0, offset, &segments, durability) }?;
    end(engine)
}

#[test]
fn a_batch_longer_than_the_ring_completes() {
    let directory = directory();
    let path = patterned(directory.path(), 1 << 20);
    for options in [OpenOptions::default(), direct()] {
        let disk = Disk::open(&path, options).unwrap();
        let mut engine = Engine::new(&disk, 500).unwrap();
        let mut memory = vec![0u8; 500 * 512];
        for (tag, chunk) in (0u16..).zip(memory.chunks_mut(512)) {
            let segments = segments(chunk, &[100, 412]);
            // SAFETY: the memory outlives the drain below.
            unsafe { engine.read(tag, u64::from(tag) * 512, &segments) }.unwrap();
        }
        assert_eq!(engine.in_flight(), 500);
        let mut seen = vec![false; 500];
        engine.drain(|tag, result| assert!(result.is_ok() && !std::mem::replace(&mut seen[usize::from(tag)], true)));
        assert!(seen.iter().all(|seen| *seen));
        assert!(memory.iter().enumerate().all(|(offset, byte)| *byte == pattern(offset)));
    }
}

#[test]
fn more_segments_than_the_kernel_takes_at_once_are_continued() {
    let directory = directory();
    let disk = Disk::open(patterned(directory.path(), 1 << 20), OpenOptions::default()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    // A gap after each byte keeps the segments apart.
    let mut memory = vec![0u8; 2 * 5120];
    let segments: Vec<iovec> =
        memory.chunks_mut(2).map(|pair| iovec { iov_base: pair.as_mut_ptr().cast(), iov_len: 1 }).collect();
    // SAFETY: the memory outlives the request, whose end is waited for.
    unsafe { engine.read(1, 777 * 512, &segments) }.unwrap();
    end(&mut engine).unwrap();
    assert!(memory.chunks(2).enumerate().all(|(n, pair)| pair == [pattern(777 * 512 + n), 0]));
}

#[test]
fn misaligned_memory_bounces_under_direct_io() {
    let directory = directory();
    let path = patterned(directory.path(), 2 << 20);
    let disk = Disk::open(&path, direct()).unwrap();
    let mut engine = Engine::new(&disk, 8).unwrap();
    let mut memory = vec![0u8; (1 << 20) + 1];
    read(&mut engine, 4096, &mut memory[1..]).unwrap();
    assert!(memory[1..].iter().zip(4096..).all(|(byte, offset)| *byte == pattern(offset)));
    write(&mut engine, 8192, &mut memory[1..], Durability::Durable).unwrap();
    assert!(std::fs::read(&path).unwrap()[8192..][..1 << 20] == memory[1..]);
}

#[test]
fn requests_outside_the_disk_never_start() {
    let directory = directory();
    let path = patterned(directory.path(), 8192);
    let disk = Disk::open(&path, OpenOptions::default()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    let mut memory = [0; 1024];
    for offset in [8192, 7680, u64::MAX, u64::MAX - 1023] {
        assert_eq!(read(&mut engine, offset, &mut memory), Err(IoError::OutOfRange));
        assert_eq!(write(&mut engine, offset, &mut memory, Durability::Volatile), Err(IoError::OutOfRange));
        assert_eq!(engine.discard(0, offset, 1024, Durability::Volatile), Err(IoError::OutOfRange));
        assert_eq!(engine.write_zeroes(0, offset, u64::MAX, Zeroing::Keep, Durability::Volatile), Err(IoError::OutOfRange));
    }
    assert_eq!(engine.in_flight(), 0);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
}

#[test]
fn a_read_only_disk_is_never_written() {
    let directory = directory();
    let path = patterned(directory.path(), 8192);
    let disk = Disk::open(&path, read_only()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    assert_eq!(write(&mut engine, 0, &mut [0; 512], Durability::Volatile), Err(IoError::ReadOnly));
    assert_eq!(engine.discard(0, 0, 512, Durability::Volatile), Err(IoError::ReadOnly));
    assert_eq!(engine.write_zeroes(0, 0, 512, Zeroing::Unmap, Durability::Volatile), Err(IoError::ReadOnly));
    engine.flush(0);
    end(&mut engine).unwrap();
}

#[test]
fn zeros_are_written_where_the_storage_cannot_zero() {
    let directory = directory();
    let path = patterned(directory.path(), 1 << 20);
    for options in [OpenOptions::default(), direct()] {
        let disk = Disk::open(&path, options).unwrap();
        disk.own().can_punch.store(false, Ordering::Relaxed);
        disk.own().can_zero.store(false, Ordering::Relaxed);
        let mut engine = Engine::new(&disk, 2).unwrap();
        engine.write_zeroes(0, 512, 300 << 10, Zeroing::Unmap, Durability::Durable).unwrap();
        end(&mut engine).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert!(content[512..][..300 << 10].iter().all(|byte| *byte == 0));
        assert_eq!((content[511], content[512 + (300 << 10)]), (pattern(511), pattern(512 + (300 << 10))));
        assert_eq!(content.len(), 1 << 20);
    }
}

#[test]
fn a_file_that_was_cut_is_an_error_not_zeros() {
    let directory = directory();
    let path = patterned(directory.path(), 1 << 20);
    let disk = Disk::open(&path, OpenOptions::default()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let mut memory = [0; 8192];
    assert_eq!(read(&mut engine, 0, &mut memory), Err(IoError::UnexpectedEnd));
    assert!(memory[..4096].iter().enumerate().all(|(offset, byte)| *byte == pattern(offset)));
}

#[test]
fn full_storage_is_told_from_broken_storage() {
    assert_eq!(IoError::from_errno(libc::ENOSPC), IoError::NoSpace);
    assert_eq!(IoError::from_errno(libc::EDQUOT), IoError::NoSpace);
    assert_eq!(IoError::from_errno(libc::EIO), IoError::Os(libc::EIO));
}

#[test]
fn watched_descriptors_wake_the_engine_each_time_they_are_signalled() {
    let directory = directory();
    let disk = Disk::open(patterned(directory.path(), 8192), OpenOptions::default()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    // SAFETY: a plain eventfd.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    engine.watch(fd, 3);
    for _ in 0..100 {
        // SAFETY: writes eight bytes to a descriptor of ours.
        assert_eq!(unsafe { libc::write(fd, (&raw const ONE).cast(), 8) }, 8);
        engine.wait();
        assert_eq!(engine.next(), Some(Event::Ready { token: 3 }));
        assert_eq!(engine.next(), None);
    }
    drop(engine);
    // SAFETY: ours, closed once.
    unsafe { libc::close(fd) };
}

static ONE: u64 = 1;

#[test]
fn a_dropped_engine_has_let_go_of_the_memory() {
    let directory = directory();
    let path = patterned(directory.path(), 1 << 20);
    let disk = Disk::open(&path, direct()).unwrap();
    for round in 0..50 {
        let mut engine = Engine::new(&disk, 64).unwrap();
        let mut memory = vec![0u8; 64 * 4096];
        for (tag, chunk) in (0u16..).zip(memory.chunks_mut(4096)) {
            let segments = segments(chunk, &[4096]);
            // SAFETY: the engine is dropped before the memory.
            unsafe { engine.read(tag, u64::from(tag) * 4096, &segments) }.unwrap();
        }
        if round % 2 == 0 {
            engine.poll();
        }
        drop(engine);
        memory.fill(0xEE);
        std::thread::yield_now();
        assert!(memory.iter().all(|byte| *byte == 0xEE));
    }
}

/// Run with a block device that may be overwritten, for example `losetup -f --show -b 4096 FILE`:
/// `MARU_TEST_BLOCK_DEVICE=/dev/loop0 cargo test --release -p maru-disk -- --ignored block_device`
#[test]
#[ignore = "overwrites the block device in MARU_TEST_BLOCK_DEVICE"]
fn a_block_device_is_a_disk() {
    let Some(path) = std::env::var_os("MARU_TEST_BLOCK_DEVICE") else { return };
    for options in [OpenOptions::default(), direct()] {
        let disk = Disk::open(&path, options).unwrap();
        let sector = u64::from(disk.sector_size().bytes());
        println!("{disk:?} sectors {sector}, physical {}", disk.physical_sector_size());
        let mut engine = Engine::new(&disk, 8).unwrap();
        let mut data: Vec<u8> = (0..65536).map(pattern).collect();
        write(&mut engine, 0, &mut data, Durability::Durable).unwrap();
        engine.write_zeroes(0, sector, 2 * sector, Zeroing::Keep, Durability::Volatile).unwrap();
        end(&mut engine).unwrap();
        engine.write_zeroes(0, 5 * sector, sector, Zeroing::Unmap, Durability::Durable).unwrap();
        end(&mut engine).unwrap();
        engine.discard(0, 8 * sector, sector, Durability::Durable).unwrap();
        end(&mut engine).unwrap();
        // Smaller than a sector of the device: around the direct path.
        write(&mut engine, 512, &mut [0xCC; 512], Durability::Volatile).unwrap();
        engine.write_zeroes(0, 7 * sector + 512, 1024, Zeroing::Keep, Durability::Volatile).unwrap();
        end(&mut engine).unwrap();
        let mut now = vec![0; 65536];
        read(&mut engine, 0, &mut now).unwrap();
        let sector = sector as usize;
        data[sector..3 * sector].fill(0);
        data[5 * sector..6 * sector].fill(0);
        data[512..1024].fill(0xCC);
        data[7 * sector + 512..7 * sector + 512 + 1024].fill(0);
        data[8 * sector..9 * sector].copy_from_slice(&now[8 * sector..9 * sector]);
        assert!(data == now);
        engine.flush(0);
        end(&mut engine).unwrap();
        assert!(matches!(disk.resize(disk.capacity() + (1 << 20)), Err(ResizeError::DeviceTooSmall { .. })));
    }
}
