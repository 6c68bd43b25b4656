//! Several queues at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

#[test]
fn every_mark_ends_up_in_exactly_one_map() {
    const PER_THREAD: u64 = 50_000;
    let map = DirtyMap::new(4 * PER_THREAD * 4096, granularity(4096));
    let done = AtomicBool::new(false);
    let collected = std::thread::scope(|scope| {
        // Each region is marked once; neighbours, in one word, belong to different threads.
        let markers: Vec<_> = (0..4)
            .map(|thread| {
                let map = &map;
                scope.spawn(move || (0..PER_THREAD).for_each(|n| map.mark((4 * n + thread) * 4096, 4096)))
            })
            .collect();
        let taker = scope.spawn(|| {
            let mut sum = 0;
            while !done.load(Ordering::Acquire) {
                sum += map.take(&(0..u64::MAX)).count();
            }
            sum
        });
        markers.into_iter().for_each(|marker| marker.join().unwrap());
        done.store(true, Ordering::Release);
        taker.join().unwrap()
    });
    assert_eq!(collected + map.count(), 4 * PER_THREAD);
}

#[test]
fn what_queues_wrote_before_the_power_went_is_dirty_whatever_ran_beside() {
    const SIZE: u64 = 2000 * 16 * MIB;
    for seed in 1..=30 {
        let faults = Faults { power_off_at: Some(20 + seed * 7), ..Faults::default() };
        let storage = Faulty::new(seed, faults);
        let Ok(tracker) = Tracker::create(storage.boxed(), "maps", identity(SIZE)) else { panic!("no power yet") };
        tracker.add("one", granularity(MIB)).unwrap();
        let written: Vec<u64> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|thread| {
                    let mut marker = tracker.marker();
                    scope.spawn(move || {
                        let mut random = Random::new(seed * 10 + thread);
                        let mut written = Vec::new();
                        loop {
                            let offset = random.below(SIZE / MIB) * MIB;
                            if marker.write_begins(offset, 4096).is_err() {
                                return written;
                            }
                            written.push(offset);
                            marker.write_ended(offset, 4096);
                        }
                    })
                })
                .collect();
            while tracker.checkpoint().is_ok() {
                drop(tracker.take("one", 0..SIZE / 2).unwrap());
            }
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        let (tracker, _) = Tracker::open(storage.after_power_loss().boxed(), "maps", identity(SIZE)).unwrap();
        let taken = tracker.take("one", 0..SIZE).unwrap();
        let lost = written.iter().find(|offset| !taken.is_dirty(&(**offset..**offset + 1)));
        assert_eq!(lost, None, "seed {seed}");
    }
}

#[test]
fn queues_that_come_together_share_flushes() {
    const SIZE: u64 = 4000 * 16 * MIB;
    let storage = Faulty::new(1, Faults::default());
    let tracker = Tracker::create(storage.boxed(), "maps", identity(SIZE)).unwrap();
    tracker.add("one", Granularity::DEFAULT).unwrap();
    let before = storage.operations();
    let mut marker = tracker.marker();
    for round in 0..10 {
        for region in 0..4000 {
            marker.write_begins(region * 16 * MIB + round * MIB, 4096).unwrap();
        }
    }
    // One write and one flush for the first write into each coarse region, nothing for the other nine.
    assert_eq!(storage.operations() - before, 8000);
    // And a range over all of them costs no more than the sectors of the journal, and a flush.
    tracker.checkpoint().unwrap();
    let before = storage.operations();
    marker.write_begins(0, SIZE).unwrap();
    assert!(storage.operations() - before <= 9);
}

/// Run it by hand, on a quiet machine.
#[test]
#[ignore = "measures time"]
fn both_marks_of_a_write_take_less_than_200_ns() {
    let tracker = Tracker::create(Faulty::new(1, Faults::default()).boxed(), "maps", identity(64 << 40)).unwrap();
    tracker.add("one", Granularity::DEFAULT).unwrap();
    let mut marker = tracker.marker();
    let mut run = |name: &str, next: &mut dyn FnMut(u64) -> u64| {
        let count = 1_000_000;
        (0..count).for_each(|n| marker.write_begins(next(n), 4096).unwrap());
        let begin = Instant::now();
        for n in 0..count {
            let offset = next(n);
            marker.write_begins(offset, 4096).unwrap();
            marker.write_ended(offset, 4096);
        }
        let each = begin.elapsed() / count as u32;
        println!("{name}, both marks: {each:?}");
        assert!(each < Duration::from_nanos(200), "{each:?}");
    };
    run("in order", &mut |n| n * 4096);
    run("scattered over 64 GiB", &mut |n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (64 << 30)) & !4095);
}
