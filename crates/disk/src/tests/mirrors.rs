//! Mirrors of disks in use.

use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::iovec;
use vhdx::testing::Random;

use super::images::{MIB, create, image_options, read, write};
use super::*;
use crate::mirror::{HandOverError, Mirror, MirrorEnd, MirrorError, Phase, Progress};

const SIZE: usize = 24 * MIB;
/// Each format as the source and as the target; targets hold something else before.
fn pairs(directory: &Path) -> Vec<(Disk, Disk)> {
    let mut pairs = Vec::new();
    for (number, (from, to)) in [(false, false), (false, true), (true, false), (true, true)].into_iter().enumerate() {
        let open = |name: &str, is_image: bool, size: usize| {
            let path = directory.join(format!("{name}{number}"));
            if is_image {
                create(&path, size, None);
                return Disk::open(path, image_options()).unwrap();
            }
            File::create(&path).unwrap().set_len(size as u64).unwrap();
            Disk::open(path, OpenOptions::default()).unwrap()
        };
        let (source, target) = (open("source", from, SIZE), open("target", to, SIZE + MIB));
        write(&mut Engine::new(&target, 1).unwrap(), 5 * MIB, &[0xAA; MIB], Durability::Volatile).unwrap();
        pairs.push((source, target));
    }
    pairs
}

fn content(disk: &Disk) -> Vec<u8> {
    read(&mut Engine::new(disk, 1).unwrap(), 0, SIZE)
}

/// A queue with a guest behind it: each request has a part of the disk for itself, so that what is there in the end is known.
struct Guest {
    engine: Engine,
    random: Random,
    lanes: Vec<Lane>,
}

struct Lane {
    start: usize,
    model: Vec<u8>,
    memory: Vec<u8>,
    /// What the request under way does with it.
    at: usize,
    is_zeroing: bool,
}

const DEPTH: usize = 8;
const THREADS: usize = 3;
const LANE: usize = SIZE / (DEPTH * THREADS);

impl Guest {
    fn new(disk: &Disk, number: usize) -> Guest {
        let lane = |tag: usize| Lane {
            start: (number * DEPTH + tag) * LANE,
            model: vec![0; LANE],
            memory: vec![0; 16384],
            at: 0,
            is_zeroing: false,
        };
        let engine = Engine::new(disk, DEPTH as u16).unwrap();
        Guest { engine, random: Random::new(number as u64 + 1), lanes: (0..DEPTH).map(lane).collect() }
    }

    fn next(&mut self, tag: u16) {
        let lane = &mut self.lanes[usize::from(tag)];
        lane.at = self.random.below((LANE - 16384) as u64 / 512) as usize * 512;
        lane.is_zeroing = self.random.below(8) == 0;
        lane.memory.fill(self.random.below(255) as u8 + 1);
        self.start(tag);
    }

    fn start(&mut self, tag: u16) {
        let lane = &mut self.lanes[usize::from(tag)];
        let offset = (lane.start + lane.at) as u64;
        let segment = iovec { iov_base: lane.memory.as_mut_ptr().cast(), iov_len: lane.memory.len() };
        let result = if lane.is_zeroing {
            self.engine.write_zeroes(tag, offset, segment.iov_len as u64, Zeroing::Unmap, Durability::Volatile)
        } else {
            // SAFETY: the memory outlives the request, whose end is waited for.
            unsafe { self.engine.write(tag, offset, &[segment], Durability::Volatile) }
        };
        result.unwrap();
    }

    fn ended(&mut self, tag: u16) {
        let lane = &mut self.lanes[usize::from(tag)];
        let part = &mut lane.model[lane.at..lane.at + lane.memory.len()];
        if lane.is_zeroing { part.fill(0) } else { part.copy_from_slice(&lane.memory) }
    }

    /// Writes until it is over, or until the disk has moved: then with what could not be written, which begins anew on `target`.
    fn run(mut self, is_over: &AtomicBool, target: &Disk) -> Vec<Lane> {
        let mut moved = Vec::new();
        (0..DEPTH as u16).for_each(|tag| self.next(tag));
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            while let Some(Event::Done { tag, result }) = self.engine.next() {
                if result == Err(IoError::Moved) {
                    moved.push(tag);
                    continue;
                }
                result.unwrap();
                self.ended(tag);
                if !is_over.load(Ordering::Relaxed) && moved.is_empty() {
                    self.next(tag);
                }
            }
        }
        self.engine = Engine::new(target, DEPTH as u16).unwrap();
        for tag in moved {
            self.start(tag);
            self.engine.drain(|_, result| result.unwrap());
            self.ended(tag);
        }
        self.lanes
    }
}

/// Runs guests on `source` while `act` runs, and returns what the disk has to hold then. What it returns is over for them.
fn with_guests<T>(source: &Disk, target: &Disk, act: impl FnOnce() -> T) -> (T, Vec<u8>) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guests: Vec<_> = (0..THREADS)
            .map(|number| {
                let is_over = &is_over;
                scope.spawn(move || Guest::new(source, number).run(is_over, target))
            })
            .collect();
        let over = Over(&is_over);
        let result = act();
        drop(over);
        let lanes = guests.into_iter().flat_map(|guest| guest.join().unwrap());
        let mut model = vec![0; SIZE];
        lanes.for_each(|lane| model[lane.start..lane.start + LANE].copy_from_slice(&lane.model));
        (result, model)
    })
}

/// Looks until the mirror is as wanted.
fn wait_for(mirror: &Mirror, wanted: impl Fn(Progress) -> bool) {
    wait_until(|| format!("{:?}", mirror.progress()), || wanted(mirror.progress()));
}

#[test]
fn after_a_hand_over_under_load_the_target_has_every_write() {
    let directory = directory();
    for (source, target) in pairs(directory.path()) {
        let ((), model) = with_guests(&source, &target, || {
            let mirror = Mirror::start(&source, target.clone(), None).unwrap();
            let before = content(&source);
            wait_until(|| "guests do not write".into(), || content(&source) != before);
            let hand_over = mirror.hand_over(LONG).unwrap();
            assert_eq!(mirror.progress().phase, Phase::Ready);
            let (here, there) = (content(&source), content(&target));
            assert!(here == there, "both sides hold the same");
            assert!(here != before, "guests wrote meanwhile");
            assert!(matches!(mirror.hand_over(LONG), Err(HandOverError::UnderWay)));
            let disk = hand_over.complete().unwrap();
            assert_eq!(disk.path(), target.path());
            assert_eq!(mirror.wait(), MirrorEnd::HandedOver);
            mirror.abort();
            assert_eq!(mirror.wait(), MirrorEnd::HandedOver);
        });
        // What the guests could not write any more they wrote there.
        assert!(content(&target) == model);
        let error = write(&mut Engine::new(&source, 1).unwrap(), 0, &[1; 512], Durability::Volatile).unwrap_err();
        assert_eq!(error, IoError::Moved);
        // Past the source's end the target keeps what it had.
        assert_eq!(target.capacity(), (SIZE + MIB) as u64);
    }
}

#[test]
fn called_off_in_any_phase_the_source_goes_on_with_every_write() {
    let directory = directory();
    for (source, target) in pairs(directory.path()) {
        let slow = NonZeroU64::new(1 << 20);
        let start = |rate| Mirror::start(&source, target.clone(), rate).unwrap();
        let ((), model) = with_guests(&source, &target, || {
            // While everything is copied, by its end and by dropping it.
            let mirror = start(slow);
            wait_for(&mirror, |it| it.phase == Phase::Copying && it.copied_bytes > 0);
            mirror.abort();
            assert_eq!(mirror.wait(), MirrorEnd::Aborted);
            drop(start(slow));
            // While a hand-over is waited for, which says so.
            let mirror = start(slow);
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| mirror.hand_over(LONG).map(drop));
                wait_for(&mirror, |it| it.copied_bytes > 0);
                mirror.abort();
                assert_eq!(waiting.join().unwrap(), Err(HandOverError::Ended(MirrorEnd::Aborted)));
            });
            // While it follows.
            let mirror = start(None);
            wait_for(&mirror, |it| it.phase == Phase::Following);
            // When both sides are ready: the source's says no, then the time is over, then the target's says no.
            drop(mirror.hand_over(LONG).unwrap());
            assert_ne!(mirror.progress().phase, Phase::Ended);
            let short = loop {
                match mirror.hand_over(Duration::from_secs(1)) {
                    Ok(hand_over) => break hand_over,
                    Err(HandOverError::NotConverging { .. } | HandOverError::TooLate) => {}
                    Err(other) => panic!("{other}"),
                }
            };
            wait_for(&mirror, |it| it.phase == Phase::Following);
            assert_eq!(short.complete().map(drop), Err(HandOverError::TooLate));
            let hand_over = mirror.hand_over(LONG).unwrap();
            mirror.abort();
            assert_eq!(hand_over.complete().map(drop), Err(HandOverError::Ended(MirrorEnd::Aborted)));
        });
        assert!(content(&source) == model);
        // No map is left behind.
        assert!(source.gate().attached().tracked.is_empty());
    }
}

#[test]
fn a_target_that_fails_ends_the_mirror_and_not_the_source() {
    let directory = directory();
    // As if it had been taken away: every write fails.
    for (source, target) in pairs(directory.path()) {
        let ((), model) = with_guests(&source, &target, || {
            let mirror = Mirror::start(&source, target.clone(), NonZeroU64::new(8 << 20)).unwrap();
            wait_for(&mirror, |it| it.copied_bytes > 0);
            target.gate().attach(|attached| attached.has_moved = true);
            mirror.set_rate(None);
            let MirrorEnd::Target { path, error, .. } = mirror.wait() else { panic!("{}", mirror.wait()) };
            assert_eq!((path.as_path(), error), (target.path(), IoError::Moved));
            assert!(matches!(mirror.hand_over(LONG), Err(HandOverError::Ended(MirrorEnd::Target { .. }))));
        });
        assert!(content(&source) == model);
    }
}

#[test]
fn a_source_that_cannot_be_read_ends_the_mirror() {
    let directory = directory();
    let (source, target) = pairs(directory.path()).swap_remove(0);
    File::options().write(true).open(source.path()).unwrap().set_len(10 << 20).unwrap();
    let mirror = Mirror::start(&source, target, None).unwrap();
    let MirrorEnd::Source { offset, error, .. } = mirror.wait() else { panic!("{}", mirror.wait()) };
    assert_eq!((offset, error), (10 << 20, IoError::UnexpectedEnd));
    write(&mut Engine::new(&source, 1).unwrap(), 0, &[1; 512], Durability::Volatile).unwrap();
}

#[test]
fn targets_that_cannot_do_are_refused_before_anything_is_copied() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    create(&at("base.vhdx"), SIZE, None);
    create(&at("child.vhdx"), SIZE, Some(&at("base.vhdx")));
    let source = Disk::open(at("child.vhdx"), image_options()).unwrap();
    let refused = |target: &Disk| Mirror::start(&source, target.clone(), None).map(drop).unwrap_err();
    let raw = |size: usize, options: OpenOptions| {
        File::create(at("raw")).unwrap().set_len(size as u64).unwrap();
        Disk::open(at("raw"), options).unwrap()
    };
    let error = refused(&raw(SIZE - 512, OpenOptions::default()));
    assert!(matches!(error, MirrorError::TooSmall { .. }), "{error}");
    assert!(matches!(refused(&raw(SIZE, read_only())), MirrorError::ReadOnly(_)));
    let sectors = OpenOptions { sector_size: Some(SectorSize::Bytes4096), ..OpenOptions::default() };
    assert!(matches!(refused(&raw(SIZE, sectors)), MirrorError::Sectors { size: 4096, needed: 512, .. }));
    assert!(matches!(refused(&source), MirrorError::SameFile { .. }));
    assert!(source.gate().attached().tracked.is_empty());
}

#[test]
fn a_guest_that_writes_more_than_fits_into_the_pause_is_not_paused_for_it() {
    let directory = directory();
    let (source, target) = pairs(directory.path()).swap_remove(0);
    with_guests(&source, &target, || {
        let mirror = Mirror::start(&source, target.clone(), None).unwrap();
        // Nothing can be copied in no time.
        let error = mirror.hand_over(Duration::ZERO).map(drop).unwrap_err();
        assert!(matches!(error, HandOverError::NotConverging { .. } | HandOverError::TooLate), "{error}");
        assert_eq!(mirror.progress().phase, Phase::Following);
        mirror.hand_over(LONG).unwrap().complete().unwrap();
    });
}

#[test]
fn the_rate_is_kept_and_can_be_changed() {
    let directory = directory();
    let (source, target) = pairs(directory.path()).swap_remove(0);
    let begin = std::time::Instant::now();
    let mirror = Mirror::start(&source, target, NonZeroU64::new(8 << 20)).unwrap();
    wait_for(&mirror, |it| it.copied_bytes >= 12 << 20);
    // 8 MiB in each second, of which one batch of 4 MiB is done when the time begins.
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    mirror.set_rate(None);
    wait_for(&mirror, |it| it.phase == Phase::Following);
    assert_eq!(
        mirror.progress(),
        Progress { phase: Phase::Following, total_bytes: SIZE as u64, copied_bytes: SIZE as u64, remaining_bytes: 0 }
    );
}

#[test]
fn zeros_take_no_space_in_the_target() {
    let directory = directory();
    let (source, target) = pairs(directory.path()).swap_remove(0);
    File::options().write(true).open(source.path()).unwrap().write_all_at(&[1; 512], 7 << 20).unwrap();
    let mirror = Mirror::start(&source, target.clone(), None).unwrap();
    mirror.hand_over(LONG).unwrap().complete().unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(target.path()).unwrap());
    assert!(blocks * 512 <= 1 << 20, "{blocks} blocks");
}
