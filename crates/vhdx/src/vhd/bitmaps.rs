//! The sector bitmaps of a differencing disk: which sectors of a block are in the file. Bit 7 of the first byte is the first sector.
//!
//! Blocks that are in the file as a whole are known by one bit each, without a lock. The bitmaps of others are kept while they are in
//! use or not yet in the file, and as many more as fit.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bitmaps kept although nobody uses them, per shard.
const KEPT: usize = 256;
const SHARDS: usize = 16;

/// One bit per block.
pub(crate) struct BlockSet(Vec<AtomicU64>);

impl BlockSet {
    pub fn new(blocks: usize) -> BlockSet {
        BlockSet((0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub fn contains(&self, block: u32) -> bool {
        self.0[block as usize / 64].load(Ordering::Acquire) & (1 << (block % 64)) != 0
    }

    pub fn insert(&self, block: u32) {
        self.0[block as usize / 64].fetch_or(1 << (block % 64), Ordering::AcqRel);
    }

    pub fn remove(&self, block: u32) {
        self.0[block as usize / 64].fetch_and(!(1 << (block % 64)), Ordering::AcqRel);
    }
}

struct Bitmap {
    bits: Box<[u8]>,
    /// Tickets that will set bits.
    users: u32,
    /// Not yet in the file.
    dirty: bool,
    /// Being written by the commit under way.
    writing: bool,
}

#[derive(Default)]
struct Shard {
    bitmaps: HashMap<u32, Bitmap>,
    dirty: Vec<u32>,
}

pub(crate) struct Bitmaps {
    shards: Vec<Mutex<Shard>>,
    /// Blocks of which all sectors are in the file.
    pub full: BlockSet,
    /// Size of one in bytes.
    size: usize,
    sectors: u64,
}

impl Bitmaps {
    /// `size` is that of one in the file; `sectors` says how many of its bits count.
    pub fn new(blocks: usize, size: usize, sectors: u64) -> Bitmaps {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Bitmaps { shards, full: BlockSet::new(blocks), size, sectors }
    }

    fn shard(&self, block: u32) -> MutexGuard<'_, Shard> {
        self.shards[block as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block is new in the file: none of its sectors is there.
    pub fn create(&self, block: u32) {
        let mut shard = self.shard(block);
        let bits = vec![0; self.size].into_boxed_slice();
        shard.bitmaps.insert(block, Bitmap { bits, users: 0, dirty: true, writing: false });
        shard.dirty.push(block);
    }

    /// Looks at a block's bits; `read` gets them from the file if they are not here.
    pub fn look<T>(
        &self,
        block: u32,
        read: impl FnOnce(&mut [u8]) -> io::Result<()>,
        answer: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<T> {
        let mut shard = self.shard(block);
        Ok(answer(&self.load(&mut shard, block, read)?.bits))
    }

    /// Keeps a block's bits here until [`Bitmaps::set`] or [`Bitmaps::release`].
    pub fn hold(&self, block: u32, read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let mut shard = self.shard(block);
        self.load(&mut shard, block, read)?.users += 1;
        Ok(())
    }

    /// Ends a [`Bitmaps::hold`].
    pub fn release(&self, block: u32) {
        if let Some(bitmap) = self.shard(block).bitmaps.get_mut(&block) {
            bitmap.users -= 1;
        }
    }

    /// Sectors of a block are in the file now. Ends a [`Bitmaps::hold`].
    pub fn set(&self, block: u32, sectors: std::ops::Range<u64>) {
        let mut shard = self.shard(block);
        let Shard { bitmaps, dirty } = &mut *shard;
        let Some(bitmap) = bitmaps.get_mut(&block) else { return };
        bitmap.users -= 1;
        let mut changed = false;
        for sector in sectors {
            let (byte, bit) = place(sector);
            changed |= bitmap.bits[byte] & bit == 0;
            bitmap.bits[byte] |= bit;
        }
        if changed && !bitmap.dirty {
            bitmap.dirty = true;
            dirty.push(block);
        }
        if changed && all_set(&bitmap.bits, self.sectors) {
            self.full.insert(block);
        }
    }

    pub fn is_clean(&self) -> bool {
        (0..SHARDS as u32).all(|shard| self.shard(shard).dirty.is_empty())
    }

    /// The bitmaps that are not in the file, by block; they count as being written from now on.
    pub fn begin_commit(&self) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        for shard in 0..SHARDS as u32 {
            let mut shard = self.shard(shard);
            let Shard { bitmaps, dirty } = &mut *shard;
            for block in dirty.drain(..) {
                if let Some(bitmap) = bitmaps.get_mut(&block) {
                    (bitmap.dirty, bitmap.writing) = (false, true);
                    all.push((block, bitmap.bits.to_vec()));
                }
            }
        }
        all
    }

    /// The commit that wrote these has ended.
    pub fn end_commit(&self, blocks: &[u32], durable: bool) {
        for block in blocks {
            let mut shard = self.shard(*block);
            let Shard { bitmaps, dirty } = &mut *shard;
            let Some(bitmap) = bitmaps.get_mut(block) else { continue };
            bitmap.writing = false;
            if !durable && !bitmap.dirty {
                bitmap.dirty = true;
                dirty.push(*block);
            }
        }
    }

    fn load<'a>(
        &self,
        shard: &'a mut Shard,
        block: u32,
        read: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<&'a mut Bitmap> {
        if !shard.bitmaps.contains_key(&block) {
            let mut bits = vec![0; self.size].into_boxed_slice();
            read(&mut bits)?;
            if all_set(&bits, self.sectors) {
                self.full.insert(block);
            }
            if shard.bitmaps.len() >= KEPT {
                shard.bitmaps.retain(|_, bitmap| bitmap.users > 0 || bitmap.dirty || bitmap.writing);
            }
            shard.bitmaps.insert(block, Bitmap { bits, users: 0, dirty: false, writing: false });
        }
        Ok(shard.bitmaps.get_mut(&block).expect("it was inserted above"))
    }
}

fn place(sector: u64) -> (usize, u8) {
    ((sector / 8) as usize, 0x80 >> (sector % 8))
}

/// Whether a sector's bit is set.
pub(crate) fn is_set(bits: &[u8], sector: u64) -> bool {
    let (byte, bit) = place(sector);
    bits[byte] & bit != 0
}

/// Whether the bits of all `sectors` sectors are set; `sectors` is a multiple of 8.
pub(crate) fn all_set(bits: &[u8], sectors: u64) -> bool {
    bits[..(sectors / 8) as usize].iter().all(|byte| *byte == 0xff)
}

/// The first sector from `from` on, before `to`, whose bit is not as that of `from`.
pub(crate) fn run_end(bits: &[u8], from: u64, to: u64) -> u64 {
    let value = is_set(bits, from);
    let whole = if value { 0xff } else { 0 };
    let mut at = from + 1;
    while at < to {
        if at.is_multiple_of(8) && at + 8 <= to && bits[(at / 8) as usize] == whole {
            at += 8;
        } else if is_set(bits, at) == value {
            at += 1;
        } else {
            break;
        }
    }
    at
}
