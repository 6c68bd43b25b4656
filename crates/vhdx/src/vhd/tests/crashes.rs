//! A crash at any moment keeps all that was flushed; of the rest, each sector is as before or as after one of the later writes.

use super::*;

const SIZE: u64 = 40 * 512 + 5 * BLOCK as u64;
const SECTORS: usize = (SIZE / 512) as usize;

/// What each sector may hold after a crash: one byte for all of it. The first value is what is promised.
struct Promise(Vec<Vec<u8>>);

impl Promise {
    fn now(&self, sector: usize) -> u8 {
        *self.0[sector].last().unwrap()
    }

    fn wrote(&mut self, first: u64, count: u64, value: u8) {
        for sector in first..first + count {
            self.0[sector as usize].push(value);
        }
    }

    /// How many values each sector may have when a commit begins.
    fn mark(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }

    fn durable(&mut self, mark: &[usize]) {
        for (values, mark) in self.0.iter_mut().zip(mark) {
            values.drain(..mark - 1);
        }
    }
}

fn crash_and_look(memory: &Memory, random: &mut Random, promise: &Promise, seed: u64) {
    let left = Arc::new(Memory::of(memory.crash(random)));
    let image = Image::open(left.clone(), Access::ReadWrite).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    for (sector, allowed) in promise.0.iter().enumerate() {
        let data = read(&image, &*left, sector as u64 * 512, 512);
        let whole = data.iter().all(|byte| *byte == data[0]);
        assert!(whole && allowed.contains(&data[0]), "seed {seed}: sector {sector} has {} of {allowed:?}", data[0]);
    }
    // What was put in order stays so, and new blocks are zeros whatever the crash left behind.
    write(&image, &*left, 0, &[1; 512]);
    image.commit().unwrap();
    drop(image);
    assert_eq!(check(&*left).unwrap(), Report::default(), "seed {seed}");
    let image = open(&left);
    for sector in 1..BLOCK as usize / 512 {
        let data = read(&image, &*left, sector as u64 * 512, 512);
        assert!(promise.0[sector].contains(&data[0]), "seed {seed}: sector {sector} has {} afterwards", data[0]);
    }
}

fn run(kind: NewKind, seed: u64) {
    let mut random = Random::new(seed);
    let initial = if matches!(kind, NewKind::Differencing(_)) { PARENT } else { 0 };
    let memory = new(kind, SIZE, BLOCK);
    let mut image = open(&memory);
    let mut promise = Promise(vec![vec![initial]; SECTORS]);
    for _ in 0..12 {
        for _ in 0..random.below(5) {
            let first = random.below(SECTORS as u64);
            let count = 1 + random.below((SECTORS as u64 - first).min(20));
            if random.below(3) == 0 {
                let (first, count) =
                    if random.below(2) == 0 { (first, count) } else { (first & !7, 8.min(SECTORS as u64 - (first & !7))) };
                zero(&image, &*memory, first * 512, count * 512);
                promise.wrote(first, count, 0);
            } else {
                let value = 1 + random.below(250) as u8;
                write(&image, &*memory, first * 512, &vec![value; count as usize * 512]);
                promise.wrote(first, count, value);
            }
        }
        crash_and_look(&memory, &mut random, &promise, seed);
        let mark = promise.mark();
        let mut commit = image.begin_commit().unwrap().unwrap();
        let fails_at = if random.below(4) == 0 { random.below(commit.steps.len() as u64 + 1) as usize } else { usize::MAX };
        let mut result = Ok(());
        for index in 0.. {
            let Some(step) = commit.steps.pop_front() else { break };
            if index == fails_at {
                result = Err(std::io::ErrorKind::Other);
                break;
            }
            match step {
                Step::Write { offset, data } => memory.write_at(offset, &data).unwrap(),
                Step::Flush => memory.flush().unwrap(),
                Step::Durable => promise.durable(&mark),
                Step::Punch { offset, length } => memory.punch(offset, length).unwrap(),
            }
            crash_and_look(&memory, &mut random, &promise, seed);
            // Others go on while a commit is under way.
            if random.below(4) == 0 {
                let (sector, value) = (random.below(SECTORS as u64), 1 + random.below(250) as u8);
                write(&image, &*memory, sector * 512, &[value; 512]);
                promise.wrote(sector, 1, value);
            }
        }
        if fails_at != usize::MAX {
            // Also after all was done, and answered for.
            result = Err(std::io::ErrorKind::Other);
        }
        image.end_commit(commit, result);
        for sector in 0..SECTORS {
            let data = read(&image, &*memory, sector as u64 * 512, 512);
            assert_eq!(data, [promise.now(sector); 512], "seed {seed}: sector {sector}");
        }
        if random.below(6) == 0 {
            image.commit().unwrap();
            let mark = promise.mark();
            promise.durable(&mark);
            drop(image);
            image = open(&memory);
        }
    }
}

fn runs(kind: &NewKind) {
    let start = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = start.map_or(0..400, |seed| seed..seed + 1);
    for seed in seeds {
        run(kind.clone(), seed);
    }
}

#[test]
fn a_dynamic_disk_keeps_what_was_flushed_whatever_a_crash_loses() {
    runs(&NewKind::Dynamic);
}

#[test]
fn a_differencing_disk_keeps_what_was_flushed_whatever_a_crash_loses() {
    runs(&NewKind::Differencing(parent()));
}

#[test]
fn a_crash_while_the_parent_changes_leaves_the_old_or_the_new_one() {
    for seed in 0..2000 {
        let mut random = Random::new(seed);
        let memory = new(NewKind::Differencing(parent()), SIZE, BLOCK);
        let mut other = parent();
        other.relative_path = Some(".\\other.vhd".into());
        let cut = Arc::new(Cut { memory: memory.clone(), left: (1 + random.below(9) as usize).into() });
        let image = Image::open(cut.clone(), Access::ReadWrite).unwrap();
        write(&image, &*memory, 0, &[9; 512]);
        image.commit().ok();
        let _ = image.set_parent(other.clone());
        let left = Arc::new(Memory::of(memory.crash(&mut random)));
        let found =
            Image::open(left, Access::ReadWrite).unwrap_or_else(|error| panic!("seed {seed}: {error}")).info().parent.unwrap();
        assert!(found == parent() || found == other, "seed {seed}: {found:?}");
    }
}

#[test]
fn a_crash_while_the_size_changes_leaves_the_old_or_the_new_one() {
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let memory = new(NewKind::Dynamic, SIZE, BLOCK);
        let image = open(&memory);
        write(&image, &*memory, 0, &vec![9; SIZE as usize]);
        image.commit().unwrap();
        drop(image);
        let size = [2 * SIZE, 300 * u64::from(BLOCK), SIZE - 512, SIZE / 2 / 512 * 512, 512][random.below(5) as usize];
        let cut = Arc::new(Cut { memory: memory.clone(), left: (1 + random.below(14) as usize).into() });
        let _ = Image::open(cut, Access::ReadWrite).unwrap().resize(size);
        let left = Arc::new(Memory::of(memory.crash(&mut random)));
        let image = Image::open(left.clone(), Access::ReadWrite).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let found = image.size();
        assert!(found == SIZE || found == size, "seed {seed}: {found}");
        let kept = read(&image, &*left, 0, SIZE.min(size));
        assert!(kept.iter().all(|byte| *byte == 9), "seed {seed}: data was lost");
        if found > SIZE {
            assert!(read(&image, &*left, SIZE, found - SIZE).iter().all(|byte| *byte == 0), "seed {seed}: not zeros");
        }
        image.close().unwrap();
        assert_eq!(check(&*left).unwrap(), Report::default(), "seed {seed}: blocks past the end are left");
    }
}

/// Moves blocks to the front until none can move.
fn compact(image: &Image, storage: &dyn Storage) -> Result<(), MapError> {
    let mut copy = |from: u64, to: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        storage.read_at(from, &mut bytes)?;
        storage.write_at(to, &bytes)
    };
    while image.move_to_front(2, &mut copy)? > 0 {}
    image.close()
}

#[test]
fn a_crash_while_blocks_move_leaves_the_same_disk_and_compacting_again_finishes() {
    let mut sizes = std::collections::BTreeSet::new();
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let memory = new(NewKind::Dynamic, SIZE, BLOCK);
        let image = open(&memory);
        for sector in 0..SECTORS as u64 {
            write(&image, &*memory, sector * 512, &[1 + (sector % 250) as u8; 512]);
        }
        for block in [1, 2, 3, 6] {
            zero(&image, &*memory, block * u64::from(BLOCK), u64::from(BLOCK));
        }
        let content = read(&image, &*memory, 0, SIZE);
        image.commit().unwrap();
        drop(image);
        let cut = Arc::new(Cut { memory: memory.clone(), left: (1 + random.below(40) as usize).into() });
        let image = Image::open(cut.clone(), Access::ReadWrite);
        let is_done = image.is_ok_and(|image| compact(&image, &*cut).is_ok());
        let left = Arc::new(Memory::of(memory.crash(&mut random)));
        let image = Image::open(left.clone(), Access::ReadWrite).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(read(&image, &*left, 0, SIZE) == content, "seed {seed}: after the crash");
        assert_eq!(check(&*left).unwrap(), Report::default(), "seed {seed}");
        compact(&image, &*left).unwrap();
        drop(image);
        assert!(read(&open(&left), &*left, 0, SIZE) == content, "seed {seed}: afterwards");
        assert_eq!(check(&*left).unwrap(), Report::default(), "seed {seed}");
        sizes.insert((is_done, left.size().unwrap()));
    }
    // It was cut, and it was not; the file is as short in the end, but for what blocks are aligned to.
    let slot = 512 + u64::from(BLOCK);
    assert!(sizes.iter().any(|it| it.0) && sizes.iter().any(|it| !it.0));
    assert!(sizes.iter().all(|it| it.1 <= 2048 + 512 + 6 * (slot + 4096)), "{sizes:?}");
}

/// Fails all changes after some.
struct Cut {
    memory: Arc<Memory>,
    left: std::sync::atomic::AtomicUsize,
}

impl Cut {
    fn change(&self) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let spend = |left: usize| left.checked_sub(1);
        self.left.fetch_update(SeqCst, SeqCst, spend).map(|_| ()).map_err(|_| std::io::ErrorKind::Other.into())
    }
}

impl Storage for Cut {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.memory.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.change()?;
        self.memory.write_at(offset, data)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.change()?;
        self.memory.flush()
    }

    fn size(&self) -> std::io::Result<u64> {
        self.memory.size()
    }

    fn set_size(&self, size: u64) -> std::io::Result<()> {
        self.change()?;
        self.memory.set_size(size)
    }

    fn punch(&self, offset: u64, length: u64) -> std::io::Result<()> {
        self.change()?;
        self.memory.punch(offset, length)
    }
}
