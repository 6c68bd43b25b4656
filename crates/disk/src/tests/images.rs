//! A disk that is an image, against an array of bytes: chains, several engines, many requests at once.

use libc::iovec;
use vhdx::testing::Random;
use vhdx::vhdx as vhdx2;

use super::*;

pub(super) const MIB: usize = 1 << 20;

pub(super) fn image_options() -> OpenOptions {
    OpenOptions { format: Format::Vhdx, ..OpenOptions::default() }
}

/// An empty image with blocks of 1 MiB; a child of `parent` if there is one.
pub(super) fn create(path: &Path, size: usize, parent: Option<&Path>) {
    create_with_log(path, size, parent, 1 << 20);
}

pub(super) fn create_with_log(path: &Path, size: usize, parent: Option<&Path>, log_size: u32) {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let mut options = vhdx2::CreateOptions { block_size: 1 << 20, log_size, ..vhdx2::CreateOptions::new(size as u64) };
    if let Some(parent) = parent {
        let file = File::open(parent).unwrap();
        let access = vhdx2::Access::ReadOnly;
        let image = vhdx2::Image::open(std::sync::Arc::new(file), &vhdx2::OpenOptions { access }).unwrap();
        options.kind = vhdx2::Kind::Differencing(vhdx2::Parent {
            linkage: image.info().data_write_guid,
            relative_path: Some(format!(".\\{}", parent.file_name().unwrap().to_str().unwrap())),
            ..vhdx2::Parent::default()
        });
    }
    vhdx2::create(&file, &options).unwrap();
}

/// One request at a time.
pub(super) fn run(engine: &mut Engine, start: impl FnOnce(&mut Engine) -> Result<(), IoError>) -> Result<(), IoError> {
    start(engine)?;
    let mut end = None;
    engine.drain(|_, result| end = Some(result));
    end.unwrap()
}

pub(super) fn write(engine: &mut Engine, offset: usize, data: &[u8], durability: Durability) -> Result<(), IoError> {
    let segment = iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: the memory outlives the request, whose end is waited for.
    run(engine, |engine| unsafe { engine.write(0, offset as u64, &[segment], durability) })
}

pub(super) fn read(engine: &mut Engine, offset: usize, length: usize) -> Vec<u8> {
    let mut data = vec![0xEE; length];
    let segment = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: length };
    // SAFETY: the memory outlives the request, whose end is waited for.
    run(engine, |engine| unsafe { engine.read(0, offset as u64, &[segment]) }).unwrap();
    data
}

pub(super) fn flush(engine: &mut Engine) -> Result<(), IoError> {
    run(engine, |engine| {
        engine.flush(0);
        Ok(())
    })
}

/// All that a disk holds; its extension says what it is.
pub(super) fn content(path: &Path) -> Vec<u8> {
    let options = OpenOptions { format: Format::from_path(path), access: Access::ReadOnly, ..OpenOptions::default() };
    let disk = Disk::open(path, options).unwrap();
    let mut engine = Engine::new(&disk, 1).unwrap();
    read(&mut engine, 0, disk.capacity() as usize)
}

/// A part of the disk that has one request at a time.
struct Lane {
    start: usize,
    model: Vec<u8>,
    memory: Vec<u8>,
    /// What the read under way has to find.
    reading: Option<std::ops::Range<usize>>,
}

const LANE: usize = 300 << 10;
const LANES: usize = 16;

/// Does random requests, in all lanes at once.
fn churn(disk: &Disk, lanes: &mut [Lane], random: &mut Random, count: usize) {
    let mut engine = Engine::new(disk, lanes.len() as u16).unwrap();
    let mut left = count;
    for (tag, lane) in (0..).zip(&mut *lanes) {
        start(&mut engine, tag, lane, random);
    }
    while engine.in_flight() > 0 {
        engine.wait();
        while let Some(event) = engine.next() {
            let Event::Done { tag, result } = event else { panic!("{event:?}") };
            result.unwrap();
            let lane = &mut lanes[usize::from(tag)];
            if let Some(range) = lane.reading.take() {
                let found = &lane.memory[..range.len()];
                assert!(found == &lane.model[range.clone()], "read of {range:?} in the lane at {}", lane.start);
            }
            if left > 0 {
                left -= 1;
                start(&mut engine, tag, lane, random);
            }
        }
    }
}

fn start(engine: &mut Engine, tag: u16, lane: &mut Lane, random: &mut Random) {
    let first = random.below(LANE as u64 / 512) as usize * 512;
    let most = if random.below(4) == 0 { LANE } else { 16 << 10 };
    let length = ((1 + random.below(most as u64 / 512) as usize) * 512).min(LANE - first);
    let (offset, range) = ((lane.start + first) as u64, first..first + length);
    let durability = if random.below(8) == 0 { Durability::Durable } else { Durability::Volatile };
    let cut = random.below(length as u64 + 1) as usize;
    let memory = &mut lane.memory[..length];
    let what = random.below(20);
    if (8..15).contains(&what) {
        memory.fill(random.next() as u8 | 1);
        memory[0] = 7;
        lane.model[range.clone()].copy_from_slice(memory);
    }
    let (front, back) = memory.split_at_mut(cut);
    let segments = [front, back].map(|part| iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    match what {
        0..8 => {
            lane.reading = Some(range);
            // SAFETY: the lane's memory is not touched before the request is reported, and outlives the engine.
            unsafe { engine.read(tag, offset, &segments) }.unwrap();
        }
        8..15 => {
            // SAFETY: as above.
            unsafe { engine.write(tag, offset, &segments, durability) }.unwrap();
        }
        15..18 => {
            lane.model[range].fill(0);
            let zeroing = if what == 15 { Zeroing::Keep } else { Zeroing::Unmap };
            engine.write_zeroes(tag, offset, length as u64, zeroing, durability).unwrap();
        }
        _ => engine.flush(tag),
    }
}

/// Two threads, each with an engine and lanes of its own: neighbours in blocks, and in sectors' bitmaps.
pub(super) fn work(path: &Path, options: OpenOptions, model: &mut [u8], seed: u64, count: usize) {
    let disk = Disk::open(path, options).unwrap();
    assert_eq!(disk.capacity(), model.len() as u64);
    let lane = |index: usize| {
        let start = index * LANE;
        Lane { start, model: model[start..start + LANE].to_vec(), memory: vec![0; LANE], reading: None }
    };
    let (mut even, mut odd): (Vec<Lane>, Vec<Lane>) =
        ((0..LANES).step_by(2).map(lane).collect(), (1..LANES).step_by(2).map(lane).collect());
    std::thread::scope(|scope| {
        let disk = &disk;
        scope.spawn(|| churn(disk, &mut even, &mut Random::new(seed), count));
        churn(disk, &mut odd, &mut Random::new(seed ^ 0x5555), count);
    });
    for lane in even.into_iter().chain(odd) {
        model[lane.start..lane.start + LANE].copy_from_slice(&lane.model);
    }
    drop(disk);
    assert!(content(path) == model, "the image after it was closed");
}

pub(super) fn seeds() -> std::ops::Range<u64> {
    match std::env::var("MARU_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 1..5,
    }
}

#[test]
fn an_image_and_its_chain_are_an_array_of_bytes_for_two_engines() {
    for seed in seeds() {
        println!("MARU_TEST_SEED={seed}");
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        let cache = if seed % 2 == 0 { Cache::Host } else { Cache::Direct };
        let options = OpenOptions { cache, ..image_options() };
        // Children are larger than their parents.
        let mut model = vec![0; 5 * MIB];
        create(&at("a.vhdx"), model.len(), None);
        work(&at("a.vhdx"), options, &mut model, seed, 150);
        let first = model.clone();
        model.resize(5 * MIB + 4096, 0);
        create(&at("b.vhdx"), model.len(), Some(&at("a.vhdx")));
        work(&at("b.vhdx"), options, &mut model, seed + 100, 150);
        let second = model.clone();
        model.resize(6 * MIB, 0);
        create(&at("c.avhdx"), model.len(), Some(&at("b.vhdx")));
        work(&at("c.avhdx"), options, &mut model, seed + 200, 150);
        work(&at("c.avhdx"), options, &mut model, seed + 300, 150);
        assert!(content(&at("a.vhdx")) == first && content(&at("b.vhdx")) == second, "a parent was changed");
    }
}

#[test]
fn a_small_log_makes_requests_wait_for_commits_not_fail() {
    let directory = directory();
    let path = directory.path().join("many.vhdx");
    // Each block's entry is in another page of the table: 4096 / 8 blocks of 1 MiB lie in one.
    let stride = 512 * MIB;
    create(&path, 300 * stride, None);
    let disk = Disk::open(&path, image_options()).unwrap();
    let mut engine = Engine::new(&disk, 64).unwrap();
    let data = [0x5A; 4096];
    let segment = iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut next = 0;
    while next < 300 || engine.in_flight() > 0 {
        let mut free: Vec<u16> = if next == 0 { (0..64).collect() } else { Vec::new() };
        while let Some(event) = engine.next() {
            let Event::Done { tag, result } = event else { panic!("{event:?}") };
            result.unwrap();
            free.push(tag);
        }
        for tag in free {
            if next < 300 {
                // SAFETY: the memory outlives the engine.
                unsafe { engine.write(tag, (next * stride) as u64, &[segment], Durability::Volatile) }.unwrap();
                next += 1;
            }
        }
        if engine.in_flight() > 0 {
            engine.wait();
        }
    }
    flush(&mut engine).unwrap();
    for block in [0, 150, 299] {
        assert_eq!(read(&mut engine, block * stride, 4096), data);
        assert_eq!(read(&mut engine, block * stride + 4096, 512), [0; 512]);
    }
}

/// Gives a disk of 2 MiB these sizes in turn while another thread writes to it, and uses its new end each time.
pub(super) fn grow_while_written(disk: &Disk, sizes: [usize; 3]) {
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut engine = Engine::new(disk, 4).unwrap();
            for round in 0..200 {
                write(&mut engine, round % 2 * MIB, &[round as u8; 4096], Durability::Volatile).unwrap();
                flush(&mut engine).unwrap();
            }
        });
        for size in sizes {
            disk.resize(size as u64).unwrap();
            assert_eq!(disk.capacity(), size as u64);
            let mut engine = Engine::new(disk, 4).unwrap();
            write(&mut engine, size - 512, &[9; 512], Durability::Durable).unwrap();
            assert_eq!(read(&mut engine, size - 1024, 1024), [[0; 512], [9; 512]].concat());
        }
        writer.join().unwrap();
    });
}

#[test]
fn an_image_grows_while_it_is_used() {
    let directory = directory();
    let path = directory.path().join("a.vhdx");
    create(&path, 2 * MIB, None);
    let disk = Disk::open(&path, image_options()).unwrap();
    // Also where the table has to move: 4096 entries of 8 bytes fit where the first ones are.
    grow_while_written(&disk, [3 * MIB, 5 * MIB + 512, 200_000 * MIB]);
    assert!(matches!(disk.resize(MIB as u64), Err(ResizeError::Shrink { .. })));
    drop(disk);
    let disk = Disk::open(&path, image_options()).unwrap();
    assert_eq!(disk.capacity(), 200_000 << 20);
    let mut engine = Engine::new(&disk, 4).unwrap();
    assert_eq!((read(&mut engine, MIB, 4096), read(&mut engine, 5 * MIB, 512)), (vec![199; 4096], vec![9; 512]));
}

#[test]
fn requests_outside_an_image_are_refused_at_once() {
    let directory = directory();
    let path = directory.path().join("a.vhdx");
    create(&path, MIB, None);
    let disk = Disk::open(&path, image_options()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    let size = MIB as u64;
    assert_eq!(write(&mut engine, MIB, &[1; 512], Durability::Volatile), Err(IoError::OutOfRange));
    assert_eq!(write(&mut engine, 100, &[1; 512], Durability::Volatile), Err(IoError::OutOfRange));
    assert_eq!(engine.discard(0, size, 512, Durability::Volatile), Err(IoError::OutOfRange));
    assert_eq!(engine.in_flight(), 0);
    drop((engine, disk));
    let disk = Disk::open(&path, OpenOptions { access: Access::ReadOnly, ..image_options() }).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    assert_eq!(write(&mut engine, 0, &[1; 512], Durability::Volatile), Err(IoError::ReadOnly));
    flush(&mut engine).unwrap();
    assert_eq!(read(&mut engine, 0, MIB), vec![0; MIB]);
}
