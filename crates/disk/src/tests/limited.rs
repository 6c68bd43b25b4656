//! Engines of disks with limits. Times are lower bounds that limits promise, on any machine; the shares themselves are tested in
//! simulated time.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use libc::iovec;

use super::images::{MIB, create, image_options, read, write};
use super::*;
use crate::limits::{Burst, Group, GroupLimits, Limits, Rate};

fn per_second(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).unwrap()
}

fn operations(count: u64) -> Limits {
    Limits { operations: Some(Rate::steady(per_second(count))), bandwidth: None }
}

fn bandwidth(bytes: u64) -> Limits {
    Limits { operations: None, bandwidth: Some(Rate::steady(per_second(bytes))) }
}

fn disks(directory: &Path) -> [Disk; 2] {
    let (raw, image) = (directory.join("a.raw"), directory.join("a.vhdx"));
    File::create(&raw).unwrap().set_len(8 * MIB as u64).unwrap();
    create(&image, 8 * MIB, None);
    [Disk::open(raw, OpenOptions::default()).unwrap(), Disk::open(image, image_options()).unwrap()]
}

/// Reads `length` bytes so many times, always with `depth` requests under way.
fn read_many(disk: &Disk, depth: u16, count: usize, length: usize) {
    let mut engine = Engine::new(disk, depth).unwrap();
    let mut memory = vec![vec![0u8; length]; usize::from(depth)];
    let mut left = count;
    let mut start = |engine: &mut Engine, tag: u16| {
        if left > 0 {
            left -= 1;
            let memory = &mut memory[usize::from(tag)];
            let segment = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: length };
            // SAFETY: the memory outlives the request, whose end is waited for.
            unsafe { engine.read(tag, 0, &[segment]) }.unwrap();
        }
    };
    (0..depth).for_each(|tag| start(&mut engine, tag));
    while engine.in_flight() > 0 {
        engine.wait();
        while let Some(event) = engine.next() {
            let Event::Done { tag, result: Ok(()) } = event else { panic!("{event:?}") };
            start(&mut engine, tag);
        }
    }
}

#[test]
fn all_queues_together_keep_to_the_rate() {
    let directory = directory();
    for disk in disks(directory.path()) {
        disk.set_limits(operations(200));
        let begin = Instant::now();
        // 150 reads of 16 KiB in three queues are 300 operations: 2 are free after idleness, and the last one passes early.
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| read_many(&disk, 4, 50, 16 << 10)))));
        assert!(begin.elapsed() >= Duration::from_millis(1480), "{:?}", begin.elapsed());
        let metered = disk.metered();
        assert_eq!((metered.requests, metered.operations, metered.bytes), (150, 300, 150 * (16 << 10)));
        assert!(metered.throttled >= 100, "{metered:?}");
    }
}

#[test]
fn a_burst_passes_at_once_and_what_follows_at_the_rate() {
    let directory = directory();
    for disk in disks(directory.path()) {
        let burst = Burst { per_second: per_second(1 << 30), length: Duration::from_millis(10) };
        let rate = Rate { per_second: per_second(1 << 20), burst: Some(burst) };
        disk.set_limits(Limits { operations: None, bandwidth: Some(rate) });
        let saved = rate.burst_size();
        // All of the burst, and 1 MiB at 1 MiB in each second, of which 10 ms and one request are free.
        let count = (saved + (1 << 20)) / (64 << 10);
        let begin = Instant::now();
        read_many(&disk, 4, count as usize, 64 << 10);
        assert!(begin.elapsed() >= Duration::from_millis(800), "{:?}", begin.elapsed());
        // Far less than the burst would take at the rate.
        assert!(begin.elapsed() < Duration::from_secs(saved >> 20), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_request_that_waits_holds_nothing_else_up_and_goes_on_when_limits_change() {
    let directory = directory();
    for disk in disks(directory.path()) {
        let mut engine = Engine::new(&disk, 8).unwrap();
        write(&mut engine, 0, &[1; 4096], Durability::Durable).unwrap();
        // After the first request the next one's turn is in an hour, and that of the others later.
        disk.set_limits(bandwidth(1));
        let mut memory = [[0u8; 4096]; 4];
        for (tag, memory) in (0..).zip(&mut memory) {
            let segment = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
            match tag {
                // SAFETY: the memory outlives the requests, whose ends are waited for.
                0..3 => unsafe { engine.read(tag, 0, &[segment]) }.unwrap(),
                // SAFETY: as above.
                _ => unsafe { engine.write(tag, 4096, &[segment], Durability::Durable) }.unwrap(),
            }
        }
        engine.flush(4);
        // SAFETY: a plain eventfd, which is closed below.
        let fd = unsafe { libc::eventfd(1, libc::EFD_NONBLOCK) };
        engine.watch(fd, 7);
        let mut events = Vec::new();
        while events.len() < 2 {
            engine.wait();
            events.extend(std::iter::from_fn(|| engine.next()));
        }
        events.sort_by_key(|event| matches!(event, Event::Ready { .. }));
        assert_eq!(events, [Event::Done { tag: 0, result: Ok(()) }, Event::Ready { token: 7 }]);
        assert_eq!(engine.in_flight(), 4);
        // Writes that wait for their turn do not count as under way.
        drop(disk.hold_writes());
        std::thread::scope(|scope| {
            let _ = scope.spawn(|| disk.set_limits(Limits::default()));
            let mut ended = 0;
            engine.drain(|_, result| {
                result.unwrap();
                ended += 1;
            });
            assert_eq!(ended, 4);
        });
        assert!(memory[1..3].iter().flatten().all(|byte| *byte == 1));
        // SAFETY: ours, and closed once, when no engine watches it any more.
        unsafe {
            drop(engine);
            libc::close(fd);
        }
    }
}

#[test]
fn a_dropped_engine_gives_its_places_back() {
    let directory = directory();
    for disk in disks(directory.path()) {
        disk.set_limits(bandwidth(8 << 20));
        let mut engine = Engine::new(&disk, 32).unwrap();
        let mut memory = vec![0u8; 8 * MIB];
        for tag in 0..32 {
            let segment = iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
            // SAFETY: the engine is dropped before the memory.
            unsafe { engine.read(tag, 0, &[segment]) }.unwrap();
        }
        drop(engine);
        // The first read is a second of work, and the others are none any more.
        read_many(&disk, 1, 1, 512);
        assert_eq!(disk.metered().requests, 2);
        assert!(disk.metered().throttled_time < Duration::from_secs(20), "{:?}", disk.metered());
    }
}

#[test]
fn disks_of_a_group_share_its_rate() {
    let directory = directory();
    let [first, second] = disks(directory.path());
    let group = Group::new(GroupLimits { operations: Some(per_second(200)), bandwidth: None }, Instant::now());
    first.join_group(&group, 300);
    second.join_group(&group, 100);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| read_many(&first, 4, 150, 4096));
        scope.spawn(|| read_many(&second, 4, 150, 4096));
    });
    // What is spare for late timers, and what each was owed before, is 2 operations each.
    assert!(begin.elapsed() >= Duration::from_millis(1450), "{:?}", begin.elapsed());
    assert_eq!((first.metered().requests, second.metered().requests), (150, 150));
    // Its own limit holds inside the group, too.
    first.set_limits(operations(50));
    let begin = Instant::now();
    read_many(&first, 4, 52, 4096);
    assert!(begin.elapsed() >= Duration::from_millis(980), "{:?}", begin.elapsed());
}

#[test]
fn writes_that_wait_are_made_in_the_end_and_marked() {
    let directory = directory();
    for disk in disks(directory.path()) {
        disk.set_limits(operations(1000));
        let tracker = crate::dirty::Tracker::in_memory(disk.capacity());
        disk.track(&tracker).unwrap();
        tracker.add("one", crate::dirty::Granularity::DEFAULT).unwrap();
        let mut engine = Engine::new(&disk, 1).unwrap();
        for block in 0..64 {
            write(&mut engine, block << 16, &[block as u8 + 1; 8192], Durability::Volatile).unwrap();
        }
        assert!((0..64).all(|block| read(&mut engine, block << 16, 8192) == [block as u8 + 1; 8192]));
        assert_eq!(tracker.count("one").unwrap(), 64);
        assert!(disk.metered().throttled > 0);
    }
}
