//! The coarse regions that were written since the last checkpoint, on stable storage before the first write into each.
//!
//! ```text
//!   bit is stable ──▶ nothing to do
//!   otherwise     ──▶ put it among the wanted ─▶ writer's lock ─▶ stable by now? done : write all wanted, flush, they are stable
//! ```
//! Whoever gets the writer's lock writes for all that wait, so that queues which come together share a flush.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Storage;
use super::format::{JOURNAL_SECTORS, JOURNAL_WORDS, SECTOR, coarse_shift, decode_journal, encode_journal, journal_at, slot_of};

const WORDS: usize = JOURNAL_SECTORS * JOURNAL_WORDS;

pub(super) struct Journal {
    storage: Box<dyn Storage>,
    size: u64,
    shift: u32,
    /// Bits that are on stable storage in every slot that may count.
    stable: Box<[AtomicU64]>,
    wanted: Box<[AtomicU64]>,
    writer: Mutex<Writer>,
}

/// Who holds it may write the file.
pub(super) struct Writer {
    pub generation: u64,
    /// Set when a header was written and could not be flushed: whether this generation or the next one will be found is open, and
    /// both get every bit.
    pub undecided: bool,
    /// What was written to each slot since its generation began. Never less than what is stable there.
    images: [Box<[u64]>; 2],
}

impl Journal {
    /// The journal of a disk at this generation, in which `written` is noted already.
    pub fn new(storage: Box<dyn Storage>, size: u64, generation: u64, written: Box<[u64]>) -> Journal {
        let none = || vec![0; WORDS].into_boxed_slice();
        let stable = written.iter().map(|word| AtomicU64::new(*word)).collect();
        let mut images = [none(), none()];
        images[slot_of(generation)] = written;
        Journal {
            storage,
            size,
            shift: coarse_shift(size),
            stable,
            wanted: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            writer: Mutex::new(Writer { generation, undecided: false, images }),
        }
    }

    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Returns once all regions that the range touches are noted on stable storage.
    pub fn note(&self, range: Range<u64>) -> io::Result<()> {
        if !self.want(&range) {
            return Ok(());
        }
        let mut writer = self.lock();
        if self.is_stable(&range) { Ok(()) } else { self.write_wanted(&mut writer) }
    }

    /// Puts the regions that the range touches among the wanted. `false` if there is no need: all are on stable storage.
    pub fn want(&self, range: &Range<u64>) -> bool {
        // Before this the caller set its bits in the maps; `forget` runs against it. Either it sees those bits, or this sees that
        // nothing is stable any more.
        fence(Ordering::SeqCst);
        if self.is_stable(range) {
            return false;
        }
        for (word, mask) in bits_of(range, self.size, self.shift) {
            self.wanted[word].fetch_or(mask, Ordering::Relaxed);
        }
        true
    }

    /// Returns once all that was wanted before is noted on stable storage.
    pub fn note_wanted(&self) -> io::Result<()> {
        self.write_wanted(&mut self.lock())
    }

    fn is_stable(&self, range: &Range<u64>) -> bool {
        bits_of(range, self.size, self.shift).all(|(word, mask)| self.load(word) & mask == mask)
    }

    pub fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_wanted(&self, writer: &mut Writer) -> io::Result<()> {
        // What fails here stays wanted, and is written again with the next.
        let wanted: Vec<u64> = self.wanted.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let mut generations = vec![writer.generation];
        if writer.undecided {
            generations.push(writer.generation + 1);
        }
        for generation in generations {
            let image = &mut writer.images[slot_of(generation)];
            for sector in 0..JOURNAL_SECTORS {
                let words = sector * JOURNAL_WORDS..(sector + 1) * JOURNAL_WORDS;
                if words.clone().all(|word| wanted[word] & !self.load(word) == 0) {
                    continue;
                }
                words.clone().for_each(|word| image[word] |= wanted[word]);
                let offset = journal_at(slot_of(generation)) + (sector * SECTOR) as u64;
                self.storage.write_at(offset, &encode_journal(generation, &image[words]))?;
            }
        }
        self.storage.flush()?;
        for (word, bits) in wanted.iter().enumerate() {
            self.stable[word].fetch_or(*bits, Ordering::SeqCst);
            self.wanted[word].fetch_and(!*bits, Ordering::Relaxed);
        }
        Ok(())
    }

    /// From here on every write is noted anew: each waits for the writer's lock. Returns what was stable.
    pub fn forget(&self, _writer: &mut Writer) -> Vec<u64> {
        let before = self.stable.iter().map(|word| word.swap(0, Ordering::SeqCst)).collect();
        fence(Ordering::SeqCst);
        before
    }

    /// The opposite, when nothing changed on the storage.
    pub fn remember(&self, _writer: &mut Writer, before: &[u64]) {
        for (word, bits) in self.stable.iter().zip(before) {
            word.fetch_or(*bits, Ordering::SeqCst);
        }
    }

    /// Writes an empty journal for the next generation.
    pub fn begin_next(&self, writer: &mut Writer) -> io::Result<()> {
        let next = writer.generation + 1;
        writer.images[slot_of(next)].fill(0);
        write_empty(&*self.storage, next)
    }

    fn load(&self, word: usize) -> u64 {
        self.stable[word].load(Ordering::SeqCst)
    }
}

/// The words and bits of the coarse regions that a range touches.
fn bits_of(range: &Range<u64>, size: u64, shift: u32) -> impl Iterator<Item = (usize, u64)> + use<> {
    let end = range.end.min(size);
    let regions = if range.start < end { range.start >> shift..((end - 1) >> shift) + 1 } else { 0..0 };
    regions.map(|region| ((region / 64) as usize, 1 << (region % 64)))
}

/// Writes an empty journal for a generation.
pub(super) fn write_empty(storage: &dyn Storage, generation: u64) -> io::Result<()> {
    let sector = encode_journal(generation, &[0; JOURNAL_WORDS]);
    storage.write_at(journal_at(slot_of(generation)), &sector.repeat(JOURNAL_SECTORS))
}

/// The journal that was found for a generation.
pub(super) struct Noted {
    pub words: Box<[u64]>,
}

impl Noted {
    pub fn nothing() -> Noted {
        Noted { words: vec![0; WORDS].into_boxed_slice() }
    }

    /// Reads the journal of a generation. What of it cannot be read counts as written.
    ///
    /// The other slot counts too if it has bits of the next generation: that one was valid once, and its header is lost.
    pub fn read(storage: &dyn Storage, generation: u64) -> io::Result<Noted> {
        let mut words = Noted::nothing().words;
        for (wanted, is_own) in [(generation, true), (generation.wrapping_add(1), false)] {
            for index in 0..JOURNAL_SECTORS {
                let mut sector = [0; SECTOR];
                match storage.read_at(journal_at(slot_of(wanted)) + (index * SECTOR) as u64, &mut sector) {
                    // A file that was cut short: what is missing is not sealed.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    other => other?,
                }
                let bits = match decode_journal(&sector) {
                    Some((found, bits)) if found == wanted => bits,
                    _ if is_own => [u64::MAX; JOURNAL_WORDS],
                    _ => continue,
                };
                let target = &mut words[index * JOURNAL_WORDS..(index + 1) * JOURNAL_WORDS];
                target.iter_mut().zip(bits).for_each(|(word, bits)| *word |= bits);
            }
        }
        Ok(Noted { words })
    }

    /// The parts of a disk that are noted as written.
    pub fn ranges(&self, size: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let shift = coarse_shift(size);
        let regions = size.div_ceil(1 << shift);
        let noted = move |region: &u64| self.words[(*region / 64) as usize] & (1 << (*region % 64)) != 0;
        (0..regions).filter(noted).map(move |region| region << shift..((region + 1) << shift).min(size))
    }
}
