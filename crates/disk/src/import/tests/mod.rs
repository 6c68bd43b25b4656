//! Images made by `qemu-img`, and images made to do harm.

mod hostile;
mod interop;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::*;

/// Runs a program of QEMU's, which these tests cannot do without.
fn qemu(program: &str, directory: &Path, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; install qemu-utils to run these tests"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const SIZE: usize = 8 << 20;

/// A raw disk with data, written zeros and holes; its content.
fn raw_disk(directory: &Path) -> Vec<u8> {
    let mut content = vec![0; SIZE];
    for (start, end) in [(0, 70_000), (1 << 20, 3 << 20), ((5 << 20) + 512, (5 << 20) + 1024), (SIZE - 512, SIZE)] {
        for (index, byte) in content[start..end].iter_mut().enumerate() {
            *byte = ((start + index) / 512 * 7 + index % 251 + 1) as u8;
        }
    }
    fs::write(directory.join("disk.raw"), &content).unwrap();
    content
}

/// Reads all of a disk in pieces of an odd size.
fn read_all(source: &Source) -> Vec<u8> {
    let mut content = vec![0xee; source.size() as usize];
    for (index, piece) in content.chunks_mut(100_003).enumerate() {
        source.read_at(index as u64 * 100_003, piece).unwrap();
    }
    content
}

/// All extents of a disk, with where they begin.
fn extents(source: &Source) -> Vec<(u64, Extent)> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(extent) = source.next_extent(at, u64::MAX).unwrap() {
        assert!(extent.length > 0);
        all.push((at, extent));
        at += extent.length;
    }
    assert_eq!(at, source.size());
    all
}
