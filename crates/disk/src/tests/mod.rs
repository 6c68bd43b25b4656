//! Tests on real files.

mod chains;
mod commits;
mod copies;
mod engine;
mod images;
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

use tempfile::TempDir;

use crate::*;

/// A directory beside the test program: `/tmp` may be a file system without direct I/O.
fn directory() -> TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
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
