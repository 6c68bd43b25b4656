//! Dirty maps of a disk in use.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};

use libc::iovec;
use vhdx::testing::Random;

use super::images::{MIB, create, image_options, read, run, write};
use super::*;
use crate::dirty::{self, Granularity, Recovery, Storage, Tracker, file_beside};
use crate::format::DiskType;

const SIZE: usize = 16 * MIB;
const REGION: u64 = 65536;

/// Each format, with an empty disk of that size in a directory.
fn disks(directory: &Path, size: usize) -> [(PathBuf, OpenOptions); 3] {
    let [raw, image, vhd] = ["a.raw", "a.vhdx", "a.vhd"].map(|name| directory.join(name));
    File::create(&raw).unwrap().set_len(size as u64).unwrap();
    create(&image, size, None);
    vhd::create(&vhd, DiskType::Dynamic, size);
    [(raw, OpenOptions::default()), (image, image_options()), (vhd, vhd::options())]
}

fn marked(tracker: &Tracker, name: &str) -> Vec<Range<u64>> {
    tracker.take(name, 0..u64::MAX).unwrap().iter().collect()
}

fn add(tracker: &Tracker, name: &str) {
    tracker.add(name, Granularity::new(REGION).unwrap()).unwrap();
}

#[test]
fn what_changes_the_disk_is_marked_and_nothing_else() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let disk = Disk::open(path, options).unwrap();
        let mut engine = Engine::new(&disk, 4).unwrap();
        write(&mut engine, 0, &[1; 512], Durability::Volatile).unwrap();
        let tracker = Tracker::in_memory(disk.capacity());
        disk.track(&tracker).unwrap();
        add(&tracker, "one");
        read(&mut engine, MIB, 4096);
        images::flush(&mut engine).unwrap();
        assert_eq!(marked(&tracker, "one"), []);
        write(&mut engine, 2 * MIB, &[1; 512], Durability::Durable).unwrap();
        run(&mut engine, |it| it.discard(0, 3 << 20, REGION, Durability::Volatile)).unwrap();
        run(&mut engine, |it| it.write_zeroes(0, 4 << 20, REGION, Zeroing::Unmap, Durability::Volatile)).unwrap();
        let of = |start: u64| start << 20..(start << 20) + REGION;
        assert_eq!(marked(&tracker, "one"), [of(2), of(3), of(4)]);
        disk.untrack(&tracker).unwrap();
        let taken = tracker.take("one", 0..u64::MAX).unwrap();
        taken.confirm();
        write(&mut engine, 5 * MIB, &[1; 512], Durability::Volatile).unwrap();
        assert_eq!(marked(&tracker, "one"), []);
    }
}

#[test]
fn a_write_that_ends_after_its_mark_was_taken_is_marked_again() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let disk = Disk::open(path, options).unwrap();
        let tracker = Tracker::in_memory(disk.capacity());
        disk.track(&tracker).unwrap();
        add(&tracker, "one");
        let mut engine = Engine::new(&disk, 1).unwrap();
        let data = [7u8; 512];
        let segment = iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: the memory outlives the request, whose end is waited for.
        unsafe { engine.write(0, 0, &[segment], Durability::Volatile) }.unwrap();
        // Whoever copies the region now may miss the write.
        let taken = tracker.take("one", 0..u64::MAX).unwrap();
        assert_eq!(taken.count(), 1);
        taken.confirm();
        engine.drain(|_, result| result.unwrap());
        assert_eq!(tracker.count("one").unwrap(), 1);
    }
}

/// Writes here and there until told to stop, with many requests under way, and counts those that have ended.
fn scribble(disk: &Disk, seed: u64, is_over: &AtomicBool, written: &AtomicU64) {
    const DEPTH: usize = 16;
    let mut engine = Engine::new(disk, DEPTH as u16).unwrap();
    let mut random = Random::new(seed);
    let mut memory = vec![vec![0u8; 8192]; DEPTH];
    let mut start = |engine: &mut Engine, tag: u16, memory: &mut [Vec<u8>]| {
        let memory = &mut memory[usize::from(tag)];
        let offset = random.below((SIZE - 8192) as u64 / 512) * 512;
        memory.fill(random.below(255) as u8 + 1);
        let segment = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
        match random.below(10) {
            // SAFETY: the memory outlives the drain below.
            0..8 => unsafe { engine.write(tag, offset, &[segment], Durability::Volatile) }.unwrap(),
            _ => engine.write_zeroes(tag, offset, 8192, Zeroing::Unmap, Durability::Volatile).unwrap(),
        }
    };
    (0..DEPTH as u16).for_each(|tag| start(&mut engine, tag, &mut memory));
    while engine.in_flight() > 0 {
        engine.wait();
        while let Some(Event::Done { tag, result }) = engine.next() {
            result.unwrap();
            written.fetch_add(1, Ordering::Relaxed);
            if !is_over.load(Ordering::Relaxed) {
                start(&mut engine, tag, &mut memory);
            }
        }
    }
}

#[test]
fn what_differs_from_a_point_in_time_is_marked_while_threads_write() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let disk = Disk::open(path, options).unwrap();
        let (is_over, written) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _over = Over(&is_over);
            for seed in 1..=3 {
                let (disk, is_over, written) = (&disk, &is_over, &written);
                scope.spawn(move || scribble(disk, seed, is_over, written));
            }
            let content = || read(&mut Engine::new(&disk, 1).unwrap(), 0, SIZE);
            for round in 0..10 {
                let tracker = if round % 2 == 0 { Tracker::in_memory(SIZE as u64) } else { disk.create_maps().unwrap() };
                if round % 2 == 0 {
                    disk.track(&tracker).unwrap();
                }
                let held = disk.hold_writes();
                add(&tracker, "point");
                let before = content();
                drop(held);
                content();
                let seen = written.load(Ordering::Relaxed);
                wait_until(|| "writes do not go on".into(), || written.load(Ordering::Relaxed) >= seen + 100);
                let held = disk.hold_writes();
                let (after, taken) = (content(), tracker.take("point", 0..u64::MAX).unwrap());
                drop(held);
                let regions = before.chunks(REGION as usize).zip(after.chunks(REGION as usize));
                let differing: Vec<u64> =
                    (0..).step_by(REGION as usize).zip(regions).filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
                assert!(!differing.is_empty(), "nothing was written");
                let missed = differing.into_iter().find(|at| !taken.is_dirty(&(*at..*at + 1)));
                assert_eq!(missed, None, "round {round}");
                drop(taken);
                disk.untrack(&tracker).unwrap();
            }
        });
    }
}

#[test]
fn a_clean_stop_leaves_maps_that_are_exact() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let disk = Disk::open(&path, options).unwrap();
        add(&disk.create_maps().unwrap(), "nightly");
        write(&mut Engine::new(&disk, 1).unwrap(), MIB, &[1; 512], Durability::Volatile).unwrap();
        drop(disk);
        // A session without writes, too.
        for _ in 0..2 {
            let disk = Disk::open(&path, options).unwrap();
            let (tracker, recovery) = disk.open_maps().unwrap();
            assert_eq!(recovery, Recovery::Exact);
            assert_eq!(marked(&tracker, "nightly"), std::slice::from_ref(&(1 << 20..(1 << 20) + REGION)));
            assert!(matches!(disk.open_maps(), Err(TrackError::InUse(_))));
        }
        // As when a VM moves: what follows is the other side's.
        let disk = Disk::open(&path, options).unwrap();
        disk.open_maps().unwrap();
        write(&mut Engine::new(&disk, 1).unwrap(), 2 * MIB, &[1; 512], Durability::Volatile).unwrap();
        disk.release_lock();
        let (tracker, recovery) = Disk::open(&path, options).unwrap().open_maps().unwrap();
        assert_eq!(recovery, Recovery::Exact);
        assert_eq!(tracker.count("nightly").unwrap(), 2);
    }
}

#[test]
fn a_crash_leaves_maps_that_have_everything() {
    let directory = directory();
    let size = 40 * MIB;
    for (path, options) in disks(directory.path(), size) {
        let maps = file_beside(&path);
        let disk = Disk::open(&path, options).unwrap();
        add(&disk.create_maps().unwrap(), "nightly");
        let mut engine = Engine::new(&disk, 1).unwrap();
        write(&mut engine, 0, &[1; 512], Durability::Durable).unwrap();
        // It may have a commit to end, which settling waits for.
        drop(engine);
        disk.settle().unwrap();
        let mut engine = Engine::new(&disk, 1).unwrap();
        write(&mut engine, 17 * MIB, &[1; 512], Durability::Durable).unwrap();
        // What a crash at this moment leaves.
        let left = (std::fs::read(&path).unwrap(), std::fs::read(&maps).unwrap());
        drop((engine, disk));
        for (path, content) in [(&path, &left.0), (&maps, &left.1)] {
            File::options().write(true).open(path).unwrap().set_len(content.len() as u64).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(path).unwrap(), content, 0).unwrap();
        }
        let disk = Disk::open(&path, options).unwrap();
        let (tracker, recovery) = disk.open_maps().unwrap();
        assert_eq!(recovery, Recovery::Widened { bytes: 16 << 20 });
        assert_eq!(marked(&tracker, "nightly"), [0..REGION, 16 << 20..32 << 20]);
    }
}

#[test]
fn maps_of_a_disk_that_was_written_without_them_are_refused() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let session = |maps: bool, at: usize| {
            let disk = Disk::open(&path, options).unwrap();
            let maps = maps.then(|| disk.open_maps().map(drop));
            write(&mut Engine::new(&disk, 1).unwrap(), at, &[1; 512], Durability::Volatile).unwrap();
            maps
        };
        let disk = Disk::open(&path, options).unwrap();
        add(&disk.create_maps().unwrap(), "nightly");
        drop(disk);
        session(true, 0).unwrap().unwrap();
        session(false, MIB);
        let error = session(true, 0).unwrap().unwrap_err();
        assert!(matches!(error, TrackError::Open(dirty::OpenError::Stale(_))), "{error}");
        // New ones fit again; those that were switched off are gone.
        let disk = Disk::open(&path, options).unwrap();
        let tracker = disk.create_maps().unwrap();
        disk.untrack(&tracker).unwrap();
        let error = disk.open_maps().map(drop).unwrap_err();
        assert!(matches!(error, TrackError::Open(dirty::OpenError::Io { .. })), "{error}");
        assert!(!file_beside(&path).exists());
    }
}

#[test]
fn a_disk_does_not_grow_away_from_its_maps() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let disk = Disk::open(path, options).unwrap();
        let tracker = Tracker::in_memory(SIZE as u64);
        disk.track(&tracker).unwrap();
        assert!(matches!(disk.resize(2 * SIZE as u64), Err(ResizeError::Tracked(_))));
        disk.untrack(&tracker).unwrap();
        disk.resize(2 * SIZE as u64).unwrap();
    }
}

/// A file in memory whose flushes wait while it is shut, or fail.
#[derive(Clone, Default)]
struct Journal(Arc<(Mutex<JournalState>, Condvar)>);

#[derive(Default)]
struct JournalState {
    content: Vec<u8>,
    is_shut: bool,
    is_full: bool,
    waiting: u32,
}

impl Journal {
    fn set(&self, change: impl FnOnce(&mut JournalState)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn wait_for(&self, condition: impl Fn(&JournalState) -> bool) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |state| !condition(state)).unwrap());
    }
}

impl Storage for Journal {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.0.0.lock().unwrap();
        let part = state.content.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let state = &mut *self.0.0.lock().unwrap();
        if state.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (start, end) = (offset as usize, offset as usize + data.len());
        state.content.resize(state.content.len().max(end), 0);
        state.content[start..end].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.set(|state| state.waiting += 1);
        self.wait_for(|state| !state.is_shut);
        self.set(|state| state.waiting -= 1);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().unwrap().content.len() as u64)
    }

    fn set_size(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn journalled(disk: &Disk) -> (Journal, Tracker) {
    let journal = Journal::default();
    let identity = dirty::Identity { disk: [1; 16], data_write: [2; 16], size: disk.capacity() };
    let tracker = Tracker::create(Box::new(journal.clone()), "maps", identity).unwrap();
    add(&tracker, "one");
    disk.track(&tracker).unwrap();
    (journal, tracker)
}

#[test]
fn a_write_waits_for_the_journal_and_nothing_else_does() {
    let directory = directory();
    for (path, options) in disks(directory.path(), 64 * MIB) {
        let disk = Disk::open(path, options).unwrap();
        let (journal, _tracker) = journalled(&disk);
        let mut engine = Engine::new(&disk, 4).unwrap();
        write(&mut engine, 0, &[1; 512], Durability::Volatile).unwrap();
        journal.set(|state| state.is_shut = true);
        let data = [7u8; 512];
        let segment = iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: the memory outlives the request, whose end is waited for.
        unsafe { engine.write(3, 20 << 20, &[segment], Durability::Volatile) }.unwrap();
        journal.wait_for(|state| state.waiting > 0);
        // A write where one was before, and a read, from the same engine.
        for tag in [1, 2] {
            let mut data = [8u8; 512];
            let segment = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            match tag {
                // SAFETY: the memory outlives the request, whose end is waited for.
                1 => unsafe { engine.write(tag, 4096, &[segment], Durability::Volatile) }.unwrap(),
                // SAFETY: as above.
                _ => unsafe { engine.read(tag, 20 << 20, &[segment]) }.unwrap(),
            }
            let event = loop {
                engine.wait();
                if let Some(event) = engine.next() {
                    break event;
                }
            };
            assert_eq!(event, Event::Done { tag, result: Ok(()) });
            assert!(tag == 1 || data == [0; 512], "the write came before its note");
        }
        journal.set(|state| state.is_shut = false);
        let mut ended = Vec::new();
        engine.drain(|tag, result| ended.push((tag, result)));
        assert_eq!(ended, [(3, Ok(()))]);
        assert_eq!(read(&mut engine, 20 * MIB, 512), data);
    }
}

#[test]
fn a_write_that_cannot_be_noted_is_not_made_and_can_be_tried_again() {
    let directory = directory();
    for (path, options) in disks(directory.path(), 64 * MIB) {
        let disk = Disk::open(path, options).unwrap();
        let (journal, tracker) = journalled(&disk);
        let mut engine = Engine::new(&disk, 4).unwrap();
        journal.set(|state| state.is_full = true);
        assert_eq!(write(&mut engine, 20 * MIB, &[7; 512], Durability::Volatile), Err(IoError::NoSpace));
        assert_eq!(read(&mut engine, 20 * MIB, 512), [0; 512]);
        journal.set(|state| state.is_full = false);
        write(&mut engine, 20 * MIB, &[7; 512], Durability::Volatile).unwrap();
        assert_eq!(read(&mut engine, 20 * MIB, 512), [7; 512]);
        // A checkpoint empties the journal: the next write is noted anew.
        tracker.checkpoint().unwrap();
        write(&mut engine, 20 * MIB, &[8; 512], Durability::Volatile).unwrap();
        assert_eq!(read(&mut engine, 20 * MIB, 512), [8; 512]);
    }
}

#[test]
fn a_dropped_engine_takes_its_parked_writes_along() {
    let directory = directory();
    for (path, options) in disks(directory.path(), SIZE) {
        let disk = Disk::open(path, options).unwrap();
        let mut engine = Engine::new(&disk, 4).unwrap();
        let held = disk.hold_writes();
        let data = [7u8; 512];
        let segment = iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: the engine is dropped before the memory.
        unsafe { engine.write(0, 0, &[segment], Durability::Volatile) }.unwrap();
        engine.write_zeroes(1, 0, 512, Zeroing::Keep, Durability::Volatile).unwrap();
        engine.poll();
        assert_eq!(engine.next(), None);
        drop((engine, held));
        drop(disk.hold_writes());
        assert_eq!(read(&mut Engine::new(&disk, 1).unwrap(), 0, 512), [0; 512]);
    }
}
