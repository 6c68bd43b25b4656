//! Tests on real files.

mod chains;
mod commits;
mod copies;
mod engine;
mod images;
mod layers;
mod limited;
mod live;
mod locks;
mod mirrors;
mod opening;
mod tracking;
mod vhd;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::*;

/// A directory beside the test program: `/tmp` may be a file system without direct I/O.
fn directory() -> TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

/// Nothing here takes so long, on any machine.
const LONG: Duration = Duration::from_secs(120);

/// Waits for something that other threads do.
fn wait_until(what: impl Fn() -> String, mut is_there: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_there() {
        assert!(begin.elapsed() < LONG, "{}", what());
        std::thread::yield_now();
    }
}

/// Tells other threads that it is over, also if the test fails: nobody would end them otherwise.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A disk that holds `pattern`.
fn patterned(directory: &Path, bytes: usize) -> PathBuf {
    let path = directory.join("disk.raw");
    let content: Vec<u8> = (0..bytes).map(pattern).collect();
    File::create(&path).unwrap().write_all(&content).unwrap();
    path
}

fn pattern(offset: usize) -> u8 {
    (offset / 512 * 7 + offset % 251) as u8
}

fn direct() -> OpenOptions {
    OpenOptions { cache: Cache::Direct, ..OpenOptions::default() }
}

fn read_only() -> OpenOptions {
    OpenOptions { access: Access::ReadOnly, ..OpenOptions::default() }
}
