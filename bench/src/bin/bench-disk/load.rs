//! The loads: those of `qemu-img bench`, so that it can do the same.

/// What is done to each request's place before the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// All of the disk was written.
    Written,
    /// Nothing of it: an image without blocks, a file of holes.
    Fresh,
}

/// Requests of one size, in the same distance from each other.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub name: &'static str,
    pub ground: Ground,
    pub is_write: bool,
    pub bytes: u64,
    /// From one request to the next, around the disk's end.
    pub stride: u64,
    pub depth: u16,
    pub count: u64,
    /// Each write is flushed before the next.
    pub is_flushed: bool,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A stride that visits all blocks once, in no order that a device could guess: by the golden ratio.
fn scattered(disk_bytes: u64, bytes: u64) -> u64 {
    let blocks = disk_bytes / bytes;
    let step = (blocks as f64 * 0.618_033_988_75) as u64 | 1;
    step * bytes
}

/// All loads, for a disk of this size (a power of two).
pub fn loads(disk_bytes: u64) -> Vec<Load> {
    let load = |name, ground, is_write, bytes, stride, depth, count| Load {
        name,
        ground,
        is_write,
        bytes,
        stride,
        depth,
        count,
        is_flushed: false,
    };
    let (r4, r64) = (scattered(disk_bytes, 4 * KIB), scattered(disk_bytes, 64 * KIB));
    let blocks = disk_bytes / (2 * MIB);
    let large = disk_bytes / (64 * KIB);
    use Ground::{Fresh, Written};
    vec![
        load("sequential read 64k, depth 1", Written, false, 64 * KIB, 64 * KIB, 1, 3000),
        load("sequential write 64k, depth 1", Written, true, 64 * KIB, 64 * KIB, 1, 3000),
        load("sequential read 64k, depth 32", Written, false, 64 * KIB, 64 * KIB, 32, 8000),
        load("sequential write 64k, depth 32", Written, true, 64 * KIB, 64 * KIB, 32, 8000),
        load("random read 4k, depth 1", Written, false, 4 * KIB, r4, 1, 5000),
        load("random write 4k, depth 1", Written, true, 4 * KIB, r4, 1, 5000),
        load("random read 4k, depth 32", Written, false, 4 * KIB, r4, 32, 30_000),
        load("random write 4k, depth 32", Written, true, 4 * KIB, r4, 32, 30_000),
        load("random read 64k, depth 32", Written, false, 64 * KIB, r64, 32, 8000),
        load("random write 64k, depth 32", Written, true, 64 * KIB, r64, 32, 8000),
        load("first sequential write 64k, depth 1", Fresh, true, 64 * KIB, 64 * KIB, 1, large.min(4000)),
        load("first sequential write 64k, depth 32", Fresh, true, 64 * KIB, 64 * KIB, 32, large.min(8000)),
        load("first sequential write 1M, depth 8", Fresh, true, MIB, MIB, 8, disk_bytes / MIB),
        load("first random write 4k, depth 1", Fresh, true, 4 * KIB, r4, 1, 5000),
        load("first random write 4k, depth 32", Fresh, true, 4 * KIB, r4, 32, 20_000),
        load("a new block each, depth 1", Fresh, true, 4 * KIB, 2 * MIB, 1, blocks),
        load("a new block each, depth 32", Fresh, true, 4 * KIB, 2 * MIB, 32, blocks),
        Load { is_flushed: true, ..load("a new block each, flushed, depth 1", Fresh, true, 4 * KIB, 2 * MIB, 1, blocks) },
    ]
}
