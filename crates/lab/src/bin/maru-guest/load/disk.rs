//! A disk that must give back what was written to it.
//!
//! The disk is divided into slots of 64 KiB. Write number N goes to a slot and has a length and a content that follow from
//! the seed and N alone, so that whoever knows the seed can say what must be there: during the load from memory, after a
//! crash from the number that was last known to be flushed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::{Progress, Random};

const SLOT: u64 = 64 * 1024;
const UNIT: u64 = 4096;
const MAGIC: u64 = 0x4d61_7275_4c6f_6164;
/// Writes between two flushes.
const FLUSH_EVERY: u64 = 64;
const HEADER_WORDS: usize = 4;

/// The part of a disk that is used.
pub struct Region {
    /// The device.
    pub path: String,
    /// How much of it, from its start.
    pub mib: u64,
    /// Which sequence of writes.
    pub seed: u64,
}

/// What [`verify`] found.
pub struct Found {
    /// Slots with a right block.
    pub blocks: u64,
    /// The highest number.
    pub last: u64,
}

impl Region {
    fn slots(&self) -> u64 {
        (self.mib << 20) / SLOT
    }

    fn slot_of(&self, number: u64) -> u64 {
        Random(self.seed ^ number << 20).next() % self.slots()
    }

    /// Length in bytes.
    fn length_of(&self, number: u64) -> u64 {
        (1 + Random(self.seed ^ number << 20 ^ 1).next() % (SLOT / UNIT)) * UNIT
    }

    fn block(&self, number: u64) -> Aligned {
        let mut block = Aligned::new(self.length_of(number));
        let mut random = Random(self.seed ^ number << 20 ^ 2);
        let header = [MAGIC, self.seed, number, self.slot_of(number)];
        let words = header.into_iter().chain(std::iter::from_fn(|| Some(random.next())));
        for (to, word) in block.bytes_mut().chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        block
    }

    fn open(&self) -> io::Result<File> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&self.path)?;
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        if size < self.mib << 20 {
            return Err(io::Error::other(format!("the disk has {size} bytes, less than {} MiB", self.mib)));
        }
        Ok(file)
    }

    /// The number of the block in a slot whose content is right. `None` for a slot never written.
    fn number_in(&self, file: &File, slot: u64) -> io::Result<Result<Option<u64>, String>> {
        let mut found = Aligned::new(SLOT);
        file.read_exact_at(found.bytes_mut(), slot * SLOT)?;
        let mut header = [0; HEADER_WORDS];
        for (word, bytes) in header.iter_mut().zip(found.bytes().chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        }
        let [magic, seed, number, _] = header;
        if magic == 0 && seed == 0 {
            return Ok(Ok(None));
        }
        let what = |why: String| Ok(Err(format!("slot {slot}: {why}")));
        if magic != MAGIC || seed != self.seed || self.slot_of(number) != slot {
            return what(format!("a foreign block with header {header:x?}"));
        }
        let expected = self.block(number);
        match expected.bytes().iter().zip(found.bytes()).position(|(expected, found)| expected != found) {
            Some(at) => what(format!("block {number} is wrong from byte {at}")),
            None => Ok(Ok(Some(number))),
        }
    }
}

/// Memory aligned as `O_DIRECT` wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: u64) -> Self {
        let length = length as usize;
        let memory = vec![0; length + UNIT as usize];
        let start = memory.as_ptr().align_offset(UNIT as usize).min(UNIT as usize);
        Aligned { memory, start, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Writes and verifies for ever, going on after the last block that an earlier load left.
pub fn run(region: &Region, progress: &Progress, flushed: &AtomicU64, pace: Duration) -> io::Result<()> {
    let file = region.open()?;
    let mut record = Vec::new();
    for slot in 0..region.slots() {
        record.push(region.number_in(&file, slot)?.unwrap_or(None));
    }
    let last = record.iter().flatten().max().copied().unwrap_or(0);
    flushed.store(last, Ordering::SeqCst);
    let mut random = Random(region.seed ^ last ^ 0x5eed);
    for number in last + 1.. {
        let slot = region.slot_of(number);
        file.write_all_at(region.block(number).bytes(), slot * SLOT)?;
        record[slot as usize] = Some(number);
        if number % FLUSH_EVERY == 0 {
            file.sync_data()?;
            flushed.store(number, Ordering::SeqCst);
        }
        for slot in [slot, random.next() % region.slots()] {
            let expected = record[slot as usize];
            match region.number_in(&file, slot)? {
                // A slot that the crash before this load left torn is not known to hold anything.
                _ if expected.is_none() => {}
                Ok(found) if found == expected => {}
                Ok(found) => return Err(io::Error::other(format!("slot {slot} holds {found:?} instead of {expected:?}"))),
                Err(why) => return Err(io::Error::other(why)),
            }
            progress.disk.fetch_add(1, Ordering::SeqCst);
        }
        thread::sleep(pace);
    }
    Ok(())
}

/// Checks that every write up to number `flushed` is there or was overwritten by a later one.
pub fn verify(region: &Region, flushed: u64) -> io::Result<Found> {
    let file = region.open()?;
    let mut due = vec![0; region.slots() as usize];
    (1..=flushed).for_each(|number| due[region.slot_of(number) as usize] = number);
    let mut found = Vec::new();
    for slot in 0..region.slots() {
        found.push(region.number_in(&file, slot)?);
    }
    let blocks = found.iter().flatten().flatten().count() as u64;
    let last = found.iter().flatten().flatten().max().copied().unwrap_or(0);
    // Writes since the last flush, of which `last` is one, or the next, may have been caught half done.
    let around = last.saturating_sub(FLUSH_EVERY)..=last + FLUSH_EVERY;
    let under_way: Vec<u64> = around.map(|number| region.slot_of(number)).collect();
    for (slot, (found, due)) in (0..).zip(found.into_iter().zip(due)) {
        match found {
            Ok(found) if found.unwrap_or(0) >= due => {}
            Ok(found) => return Err(io::Error::other(format!("slot {slot} holds {found:?}, but {due} was flushed"))),
            Err(_) if under_way.contains(&slot) => {}
            Err(why) => return Err(io::Error::other(why)),
        }
    }
    Ok(Found { blocks, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> (tempfile::NamedTempFile, Region) {
        // Not in /tmp, which may be a tmpfs without O_DIRECT.
        let file = tempfile::NamedTempFile::new_in(std::env::current_dir().unwrap()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let region = Region { path: file.path().display().to_string(), mib: 1, seed: 7 };
        (file, region)
    }

    fn write(region: &Region, numbers: std::ops::RangeInclusive<u64>) {
        let file = region.open().unwrap();
        for number in numbers {
            file.write_all_at(region.block(number).bytes(), region.slot_of(number) * SLOT).unwrap();
        }
    }

    #[test]
    fn everything_that_was_flushed_is_found() {
        let (_file, region) = region();
        write(&region, 1..=70);
        let found = verify(&region, 64).unwrap();
        assert_eq!(found.last, 70);
    }

    #[test]
    fn a_lost_flushed_write_is_noticed() {
        let (_file, region) = region();
        write(&region, 1..=70);
        assert!(verify(&region, 200).is_err());
    }

    #[test]
    fn a_torn_block_is_noticed_unless_it_was_under_way() {
        let (file, region) = region();
        write(&region, 1..=300);
        let old =
            (1..=300).rev().find(|&n| !(300 - FLUSH_EVERY..=300 + FLUSH_EVERY).any(|m| region.slot_of(m) == region.slot_of(n)));
        let tear = |slot: u64| file.as_file().write_all_at(&[0xff; 8], slot * SLOT + 2048).unwrap();
        tear(region.slot_of(301));
        verify(&region, 0).unwrap();
        if let Some(old) = old {
            tear(region.slot_of(old));
            assert!(verify(&region, 0).is_err());
        }
    }
}
