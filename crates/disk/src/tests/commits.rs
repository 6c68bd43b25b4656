//! Flushes of an image: what they promise, whom one commit serves, and what is said when it fails.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vhdx::vhdx::BeyondEnd;
use vhdx::{Commit, Extent, MapError, Mapping, Step, Ticket};

use super::images::*;
use super::*;
use crate::format::{Identity, ImageError, ImageFile, ParentNames};

/// An image whose commits are counted, and can be made to fail.
struct Watched {
    image: Arc<dyn ImageFile>,
    commits: AtomicU32,
    /// Which step of the next commit fails, counted from 1; 0 for none.
    fails_at: AtomicU64,
    /// How often mapping for writing still says that tables have to be written first.
    is_full: AtomicU32,
    results: std::sync::Mutex<Vec<Result<(), io::ErrorKind>>>,
}

impl Mapping for Watched {
    fn size(&self) -> u64 {
        self.image.size()
    }
    fn logical_sector_size(&self) -> u32 {
        self.image.logical_sector_size()
    }
    fn physical_sector_size(&self) -> u32 {
        self.image.physical_sector_size()
    }
    fn block_size(&self) -> u32 {
        self.image.block_size()
    }
    fn has_parent(&self) -> bool {
        self.image.has_parent()
    }
    fn map_read(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.image.map_read(offset, length, extents)
    }
    fn map_write(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        if self.is_full.load(Ordering::Relaxed) > 0 {
            return Err(MapError::CommitFirst);
        }
        self.image.map_write(offset, length, extents)
    }
    fn map_zero(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.image.map_zero(offset, length, extents)
    }
    fn complete(&self, ticket: Ticket) {
        self.image.complete(ticket);
    }
    fn finish(&self, ticket: Ticket) {
        self.image.finish(ticket);
    }
    fn is_clean(&self) -> bool {
        self.image.is_clean()
    }
    fn begin_commit(&self) -> Result<Option<Commit>, MapError> {
        let mut commit = self.image.begin_commit()?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        let fails_at = self.fails_at.swap(0, Ordering::Relaxed) as usize;
        if let Some(commit) = &mut commit
            && fails_at > 0
        {
            // No file is so long.
            let failing = Step::Write { offset: i64::MAX as u64 & !4095, data: vec![0; 8192] };
            commit.steps.insert((fails_at - 1).min(commit.steps.len()), failing);
        }
        Ok(commit)
    }
    fn end_commit(&self, commit: Commit, result: Result<(), io::ErrorKind>) {
        self.results.lock().unwrap().push(result);
        self.is_full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok();
        self.image.end_commit(commit, result);
    }
}

impl ImageFile for Watched {
    fn resize(&self, bytes: u64, beyond_end: BeyondEnd) -> Result<(), ImageError> {
        self.image.resize(bytes, beyond_end)
    }
    fn settle(&self) -> Result<(), MapError> {
        self.image.settle()
    }
    fn close(&self) -> Result<(), MapError> {
        self.image.close()
    }
    fn identity(&self) -> Identity {
        self.image.identity()
    }
    fn disk_id(&self) -> [u8; 16] {
        self.image.disk_id()
    }
    fn next_identity(&self) -> io::Result<Identity> {
        self.image.next_identity()
    }
    fn accepts(&self, parent: Identity) -> bool {
        self.image.accepts(parent)
    }
    fn parent_paths(&self) -> Vec<PathBuf> {
        self.image.parent_paths()
    }

    fn is_empty(&self) -> Result<bool, MapError> {
        self.image.is_empty()
    }

    fn set_parent(&self, parent: &ParentNames) -> Result<(), ImageError> {
        self.image.set_parent(parent)
    }

    fn relink(&self, now: Identity, next: Option<Identity>) -> Result<(), ImageError> {
        self.image.relink(now, next)
    }
}

/// An image of 64 blocks, and the disk that it is.
fn watched(directory: &Path, cache: Cache) -> (Disk, Arc<Watched>) {
    let path = directory.join("a.vhdx");
    create(&path, 64 * MIB, None);
    let disk = Disk::open(&path, OpenOptions { cache, ..image_options() }).unwrap();
    let mut watched = None;
    disk.image().unwrap().with_tables(|image| {
        let (commits, fails_at) = (AtomicU32::new(0), AtomicU64::new(0));
        let is_full = AtomicU32::new(0);
        let new = Arc::new(Watched { image, commits, fails_at, is_full, results: std::sync::Mutex::default() });
        watched = Some(new.clone());
        new
    });
    (disk, watched.unwrap())
}

#[test]
fn what_was_flushed_is_there_after_a_crash() {
    let directory = directory();
    for cache in [Cache::Host, Cache::Direct] {
        let (disk, _) = watched(directory.path(), cache);
        let mut engine = Engine::new(&disk, 4).unwrap();
        write(&mut engine, 5 * MIB, &[5; 8192], Durability::Volatile).unwrap();
        flush(&mut engine).unwrap();
        write(&mut engine, 9 * MIB, &[9; 8192], Durability::Durable).unwrap();
        engine.discard(0, 5 * MIB as u64, MIB as u64, Durability::Durable).unwrap();
        engine.drain(|_, result| result.unwrap());
        // A copy is what a crash would leave: without what is only in memory.
        let copy = directory.path().join("copy.vhdx");
        std::fs::copy(disk.path(), &copy).unwrap();
        let content = content(&copy);
        assert_eq!(content[9 * MIB..][..8192], [9; 8192]);
        assert_eq!(content[5 * MIB..][..8192], [0; 8192]);
    }
}

#[test]
fn what_was_written_outlives_a_process_that_settled_it() {
    let directory = directory();
    let (disk, watched) = watched(directory.path(), Cache::Host);
    write(&mut Engine::new(&disk, 4).unwrap(), 5 * MIB, &[5; 8192], Durability::Volatile).unwrap();
    assert!(!watched.is_clean());
    disk.settle().unwrap();
    let copy = directory.path().join("copy.vhdx");
    std::fs::copy(disk.path(), &copy).unwrap();
    assert_eq!(content(&copy)[5 * MIB..][..8192], [5; 8192]);
}

#[test]
fn a_flush_without_changes_of_tables_is_no_commit() {
    let directory = directory();
    let (disk, watched) = watched(directory.path(), Cache::Host);
    let mut engine = Engine::new(&disk, 4).unwrap();
    write(&mut engine, 0, &[1; 4096], Durability::Durable).unwrap();
    // The commit's last steps are done behind the answer.
    while !watched.is_clean() {
        flush(&mut engine).unwrap();
    }
    let before = watched.commits.load(Ordering::Relaxed);
    for _ in 0..10 {
        write(&mut engine, 0, &[2; 4096], Durability::Durable).unwrap();
        write(&mut engine, 4096, &[3; 4096], Durability::Volatile).unwrap();
        flush(&mut engine).unwrap();
    }
    assert_eq!(watched.commits.load(Ordering::Relaxed), before);
}

#[test]
fn flushes_that_wait_share_the_next_commit() {
    let directory = directory();
    let (disk, watched) = watched(directory.path(), Cache::Host);
    let mut engine = Engine::new(&disk, 32).unwrap();
    write(&mut engine, 0, &[1; 4096], Durability::Volatile).unwrap();
    let before = watched.commits.load(Ordering::Relaxed);
    (0..32).for_each(|tag| engine.flush(tag));
    engine.drain(|_, result| result.unwrap());
    // The first begins one, the others come while it is under way.
    assert_eq!(watched.commits.load(Ordering::Relaxed) - before, 2);
}

#[test]
fn flushes_of_several_engines_are_all_answered_by_few_commits() {
    let directory = directory();
    let (disk, watched) = watched(directory.path(), Cache::Host);
    const FLUSHES: usize = 100;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let disk = &disk;
            scope.spawn(move || {
                let mut engine = Engine::new(disk, 8).unwrap();
                for round in 0..FLUSHES {
                    // Another block, until there are none.
                    write(&mut engine, (thread * 16 + round % 16) * MIB, &[7; 512], Durability::Volatile).unwrap();
                    if round % 3 == 0 {
                        engine
                            .write_zeroes(
                                0,
                                ((thread * 16 + round % 16) * MIB) as u64,
                                MIB as u64,
                                Zeroing::Unmap,
                                Durability::Durable,
                            )
                            .unwrap();
                        engine.drain(|_, result| result.unwrap());
                    }
                    flush(&mut engine).unwrap();
                }
            });
        }
    });
    assert!(watched.results.lock().unwrap().iter().all(Result::is_ok));
}

#[test]
fn a_step_that_fails_fails_the_flush_and_the_next_one_makes_it_good() {
    let directory = directory();
    for step in 1..8 {
        let (disk, watched) = watched(directory.path(), Cache::Host);
        let mut engine = Engine::new(&disk, 8).unwrap();
        write(&mut engine, 3 * MIB, &[step as u8; 4096], Durability::Volatile).unwrap();
        watched.fails_at.store(step, Ordering::Relaxed);
        // The log entry, a flush, and the word that it is durable: tables of an image without a parent need no flush before.
        let steps_to_durable = 3;
        let result = flush(&mut engine);
        // After it was durable, the flush has been answered.
        assert_eq!(result.is_err(), step <= steps_to_durable, "step {step}: {result:?}");
        flush(&mut engine).unwrap();
        assert!(watched.results.lock().unwrap()[0].is_err());
        let copy = directory.path().join("copy.vhdx");
        std::fs::copy(disk.path(), &copy).unwrap();
        assert_eq!(content(&copy)[3 * MIB..][..4096], [step as u8; 4096]);
    }
}

#[test]
fn a_request_for_which_tables_are_full_is_done_after_a_commit() {
    let directory = directory();
    let (disk, watched) = watched(directory.path(), Cache::Host);
    let mut engine = Engine::new(&disk, 8).unwrap();
    watched.is_full.store(3, Ordering::Relaxed);
    write(&mut engine, MIB, &[1; 512], Durability::Volatile).unwrap();
    assert_eq!(watched.commits.load(Ordering::Relaxed), 3);
    assert_eq!(read(&mut engine, MIB, 512), [1; 512]);
    // It is the request that fails if the commit does.
    watched.is_full.store(1, Ordering::Relaxed);
    watched.fails_at.store(1, Ordering::Relaxed);
    assert!(matches!(write(&mut engine, MIB, &[2; 512], Durability::Volatile), Err(IoError::Os(_))));
    // Tables that stay full are an error, not a loop.
    watched.is_full.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(write(&mut engine, MIB, &[2; 512], Durability::Volatile), Err(IoError::Os(libc::EBUSY)));
}

#[test]
fn an_engine_dropped_during_a_commit_ends_it_for_the_others() {
    let directory = directory();
    let (disk, watched) = watched(directory.path(), Cache::Host);
    for round in 0..20 {
        let mut first = Engine::new(&disk, 8).unwrap();
        write(&mut first, round * MIB, &[1; 512], Durability::Volatile).unwrap();
        first.flush(0);
        first.poll();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| flush(&mut Engine::new(&disk, 8).unwrap()));
            drop(first);
            other.join().unwrap().unwrap();
        });
    }
    assert!(watched.results.lock().unwrap().iter().all(Result::is_ok));
}
