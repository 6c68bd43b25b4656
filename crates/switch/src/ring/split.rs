//! Split virtqueues (virtio 1.2 §2.7), from the device's side.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::memory::{DirtyLog, Memory};
use crate::ports::vnet::LONG;

/// The most descriptors of a chain, as of QEMU.
const MAX_CHAIN: usize = 1024;
/// The most bytes that a descriptor gives at once; more is no frame.
const MAX_BYTES: u64 = 1 << 20;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Why a ring cannot be followed any further. It stands still until its front end sets it up anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More available than there are places.
    #[error("the available index {available} is more than {size} places before {position}")]
    Available {
        /// As read.
        available: u16,
        /// Where the switch is.
        position: u16,
        /// The ring's size.
        size: u16,
    },
    /// A descriptor that there is not.
    #[error("descriptor {index} of a table with {size}")]
    Index {
        /// As read.
        index: u16,
        /// How many there are.
        size: u16,
    },
    /// A chain that does not end.
    #[error("a chain of more than {MAX_CHAIN} descriptors, or a loop")]
    Endless,
    /// An indirect table within another, or of no whole descriptors.
    #[error("an indirect table of {0} bytes, or in another one")]
    Indirect(u32),
}

/// Why a ring cannot be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetUpError {
    /// Its size is no power of two up to 32768.
    #[error("a ring of {0} places: it must be a power of two up to 32768")]
    Size(u32),
    /// A part of it is not in the VM's memory, or not aligned.
    #[error("the {part} of a ring at {address:#x} is not in the VM's memory, or not aligned")]
    Address {
        /// Which part.
        part: &'static str,
        /// In the guest.
        address: u64,
    },
}

/// Bytes of a VM, or of the switch: the source or the target of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pointer: *mut u8,
    length: usize,
    /// For the log.
    guest: u64,
}

// SAFETY: only numbers. Who reads or writes what they mean promises that it is there.
unsafe impl Send for Segment {}

impl Segment {
    /// Bytes of the switch. They must stay where they are as long as the segment is used, and not be written to by it.
    pub fn of(bytes: &[u8]) -> Segment {
        Segment { pointer: bytes.as_ptr().cast_mut(), length: bytes.len(), guest: 0 }
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// For `writev`.
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.pointer.cast(), iov_len: self.length }
    }

    /// Copies its beginning out; returns how much.
    ///
    /// # Safety
    /// The bytes are still there.
    pub unsafe fn read(&self, target: &mut [u8]) -> usize {
        let count = self.length.min(target.len());
        // SAFETY: both sides have `count` bytes, and memory of the switch does not overlap that of a VM.
        unsafe { copy(self.pointer, target.as_mut_ptr(), count) };
        count
    }

    /// Has the processor fetch its beginning: a short frame with its header.
    pub fn prefetch(&self) {
        fetch(self.pointer);
        fetch(self.pointer.wrapping_add(LINE));
    }

    /// Copies all of it to `target`.
    ///
    /// # Safety
    /// The bytes are still there, and `target` has room for them.
    #[inline]
    pub unsafe fn copy_to(&self, target: *mut u8) {
        // SAFETY: by what the caller promises; memory of the switch does not overlap that of a VM, nor two mappings each other.
        unsafe { copy(self.pointer, target, self.length) };
    }

    /// The same, for 8 to 16 bytes, but writes only if that changes something: a line that is not written to need not come back from the core that read it.
    ///
    /// # Safety
    /// As of [`Segment::copy_to`].
    #[inline]
    pub unsafe fn update(&self, target: *mut u8) {
        // SAFETY: by what the caller promises.
        unsafe {
            let word = |bytes: *const u8, at: usize| bytes.add(at).cast::<u64>().read_unaligned();
            let last = self.length.checked_sub(size_of::<u64>()).filter(|last| *last <= size_of::<u64>());
            let is_same = |at: usize| word(self.pointer, at) == word(target, at);
            if !last.is_some_and(|last| is_same(0) && is_same(last)) {
                self.copy_to(target);
            }
        }
    }

    /// Leaves its beginning out.
    pub fn skip(&mut self, count: usize) {
        let count = count.min(self.length);
        // SAFETY: not beyond the segment's end.
        self.pointer = unsafe { self.pointer.add(count) };
        self.length -= count;
        self.guest = self.guest.wrapping_add(count as u64);
    }
}

/// Bytes of a line of the processor's cache.
const LINE: usize = 64;

/// Has the processor fetch a line that is soon read.
fn fetch(pointer: *const u8) {
    // SAFETY: a hint: the processor ignores addresses where nothing is.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(pointer.cast()) };
}

/// Has the processor fetch a line that is soon written.
fn fetch_to_write(pointer: *const u8) {
    // SAFETY: a hint: the processor ignores addresses where nothing is, and the instruction where it does not know it.
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) pointer, options(nostack, preserves_flags, readonly)) };
}

/// Copies bytes; a few, like a short frame's, without a call.
///
/// # Safety
/// Both sides have `count` bytes, and do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    const STEP: usize = size_of::<u128>();
    const WORD: usize = size_of::<u64>();
    // SAFETY: all places are within the `count` bytes of both sides.
    unsafe {
        if (WORD..STEP).contains(&count) {
            let word = |at: usize| to.add(at).cast::<u64>().write_unaligned(from.add(at).cast::<u64>().read_unaligned());
            word(0);
            return word(count - WORD);
        }
        if !(STEP..=2 * LINE).contains(&count) {
            return std::ptr::copy_nonoverlapping(from, to, count);
        }
        let step = |at: usize| to.add(at).cast::<u128>().write_unaligned(from.add(at).cast::<u128>().read_unaligned());
        let mut at = 0;
        while at + STEP < count {
            step(at);
            at += STEP;
        }
        // The last step may cover a part of the one before.
        step(count - STEP);
    }
}

/// A chain that was taken from a ring. Used again and again: nothing is allocated for a frame.
#[derive(Debug, Default)]
pub struct Chain {
    /// Its name in the used ring.
    pub head: u16,
    /// What the driver gives.
    pub readable: Vec<Segment>,
    /// What it wants filled.
    pub writable: Vec<Segment>,
    /// Whether a part of it is not in the VM's memory.
    pub is_bad: bool,
}

impl Chain {
    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.is_bad = false;
    }
}

/// Where a ring is.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingPlace {
    /// Places.
    pub size: u32,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Position to begin at.
    pub position: u16,
    /// Whether `VIRTIO_RING_F_EVENT_IDX` was agreed on.
    pub event_idx: bool,
    /// Whether the front end wants to know what is written to the used ring, and at which address.
    pub log_used: Option<u64>,
}

/// A ring that is being served.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    size: u16,
    descriptors: *const u8,
    available: *mut u8,
    used: *mut u8,
    event_idx: bool,
    log_used: Option<u64>,
    /// Where pages that are written are noted.
    pub log: Option<Arc<DirtyLog>>,
    next_available: u16,
    /// The available index as it was read last: the driver writes to its line all the time, so it is not read for each chain.
    seen: u16,
    next_used: u16,
    /// The used index as the driver knows it.
    published: u16,
    call: Option<File>,
}

// SAFETY: the pointers are into `memory`, which goes with them.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring in a VM's memory. `call` tells the driver of what was used.
    pub fn new(memory: Arc<Memory>, place: &RingPlace, call: Option<File>) -> Result<Ring, SetUpError> {
        let size = u16::try_from(place.size).ok().filter(|size| size.is_power_of_two()).ok_or(SetUpError::Size(place.size))?;
        let find = |part, address: u64, length: u64, alignment: usize| {
            let pointer = memory.at(address, length).filter(|pointer| (*pointer as usize).is_multiple_of(alignment));
            pointer.ok_or(SetUpError::Address { part, address })
        };
        let places = u64::from(size);
        let descriptors = find("descriptor table", place.descriptors, 16 * places, 16)?;
        let available = find("available ring", place.available, 6 + 2 * places, 2)?;
        let used = find("used ring", place.used, 6 + 8 * places, 4)?;
        let mut ring = Ring {
            memory: memory.clone(),
            size,
            descriptors,
            available,
            used,
            event_idx: place.event_idx,
            log_used: place.log_used,
            log: None,
            next_available: place.position,
            seen: place.position,
            next_used: 0,
            published: 0,
            call,
        };
        // Frames are used in order, so all before the position were.
        ring.next_used = ring.used_u16(2).load(Ordering::Acquire);
        ring.published = ring.next_used;
        Ok(ring)
    }

    /// The position to go on from.
    pub fn position(&self) -> u16 {
        self.next_available
    }

    /// Goes on from another position, of those that were taken and not used.
    pub fn rewind(&mut self, position: u16) {
        self.next_available = position;
    }

    /// A word of the available ring; `at` is within it and even.
    fn available_u16(&self, at: usize) -> &AtomicU16 {
        // SAFETY: within the ring, which is aligned to two bytes and mapped as long as `memory` is.
        unsafe { AtomicU16::from_ptr(self.available.add(at).cast()) }
    }

    /// A word of the used ring; `at` is within it and even.
    fn used_u16(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as above; it is aligned to four bytes.
        unsafe { AtomicU16::from_ptr(self.used.add(at).cast()) }
    }

    /// Whether something is available.
    pub fn has_available(&self) -> bool {
        u16::from_le(self.available_u16(2).load(Ordering::Acquire)) != self.next_available
    }

    /// How many chains are available, `most` at most. Looks again only if fewer were known.
    #[inline]
    pub fn waiting(&mut self, most: u16) -> u16 {
        if self.seen.wrapping_sub(self.next_available) < most {
            self.seen = u16::from_le(self.available_u16(2).load(Ordering::Acquire));
        }
        self.seen.wrapping_sub(self.next_available).min(most)
    }

    /// The first descriptor of the chain so many places ahead.
    fn first_descriptor(&self, ahead: u16) -> Option<*const u8> {
        let place = usize::from(self.next_available.wrapping_add(ahead) & (self.size - 1));
        let head = u16::from_le(self.available_u16(4 + 2 * place).load(Ordering::Relaxed));
        // SAFETY: `head` is within the table.
        (head < self.size).then(|| unsafe { self.descriptors.add(16 * usize::from(head)) })
    }

    /// Has the processor fetch what the next `count` chains give room to write to, and where their names go.
    pub fn prefetch_room(&self, count: u16) {
        for descriptor in (0..count).filter_map(|ahead| self.first_descriptor(ahead)) {
            // SAFETY: it is within the table.
            let address = u64::from_le(unsafe { descriptor.cast::<u64>().read_unaligned() });
            if let Some(start) = self.memory.at(address, 1) {
                // A header in a line of its own is mostly what it was before.
                if start as usize % LINE + LONG < LINE {
                    fetch_to_write(start)
                } else {
                    fetch(start)
                }
                fetch_to_write(start.wrapping_add(LINE));
            }
        }
        for ahead in (0..count).step_by(LINE / 8) {
            let at = 4 + 8 * usize::from(self.next_used.wrapping_add(ahead) & (self.size - 1));
            // SAFETY: within the used ring.
            fetch_to_write(unsafe { self.used.add(at) });
        }
    }

    /// Takes the next chain if it is one buffer to write `needed` bytes to, as most are, and nobody wants to know of it: its name and
    /// place. `None` takes nothing and says nothing: [`Ring::pop`] sees what is there.
    #[inline]
    pub fn pop_buffer(&mut self, needed: usize) -> Option<(u16, *mut u8)> {
        let is_none = self.waiting(1) == 0 || self.seen.wrapping_sub(self.next_available) > self.size;
        if self.log.is_some() || is_none {
            return None;
        }
        let place = usize::from(self.next_available & (self.size - 1));
        let head = u16::from_le(self.available_u16(4 + 2 * place).load(Ordering::Relaxed));
        if head >= self.size {
            return None;
        }
        // SAFETY: `head` is within the table, which is mapped; the driver may change it, so it is read once.
        let [address, rest] = unsafe { self.descriptors.add(16 * usize::from(head)).cast::<[u64; 2]>().read_unaligned() };
        let (address, rest) = (u64::from_le(address), u64::from_le(rest));
        let (length, flags) = (rest as u32, (rest >> 32) as u16);
        if flags & (WRITE | NEXT | INDIRECT) != WRITE || (length as usize) < needed {
            return None;
        }
        let start = self.memory.at(address, u64::from(length))?;
        self.next_available = self.next_available.wrapping_add(1);
        Some((head, start))
    }

    /// Takes the next chain. `false` if there is none.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.waiting(1) == 0 {
            return Ok(false);
        }
        if self.seen.wrapping_sub(self.next_available) > self.size {
            return Err(RingError::Available { available: self.seen, position: self.next_available, size: self.size });
        }
        let place = usize::from(self.next_available & (self.size - 1));
        let head = u16::from_le(self.available_u16(4 + 2 * place).load(Ordering::Relaxed));
        chain.clear();
        chain.head = head;
        self.walk(chain, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    fn walk(&self, chain: &mut Chain, head: u16) -> Result<(), RingError> {
        let (mut table, mut size, mut index) = (self.descriptors, self.size, head);
        let mut is_indirect = false;
        for _ in 0..MAX_CHAIN {
            if index >= size {
                return Err(RingError::Index { index, size });
            }
            // SAFETY: `index` is within the table, which is mapped; the driver may change it, so it is read once.
            let [address, rest] = unsafe { table.add(16 * usize::from(index)).cast::<[u64; 2]>().read_unaligned() };
            let (address, rest) = (u64::from_le(address), u64::from_le(rest));
            let (length, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & INDIRECT != 0 {
                let entries = length / 16;
                if is_indirect || length % 16 != 0 || entries == 0 || entries as usize > MAX_CHAIN {
                    return Err(RingError::Indirect(length));
                }
                let Some(start) = self.memory.at(address, u64::from(length)) else {
                    chain.is_bad = true;
                    return Ok(());
                };
                (table, size, index, is_indirect) = (start, entries as u16, 0, true);
                continue;
            }
            if length > 0 {
                match self.memory.at(address, u64::from(length)).filter(|_| u64::from(length) <= MAX_BYTES) {
                    Some(pointer) => {
                        let list = if flags & WRITE == 0 { &mut chain.readable } else { &mut chain.writable };
                        list.push(Segment { pointer, length: length as usize, guest: address });
                    }
                    None => chain.is_bad = true,
                }
            }
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(RingError::Endless)
    }

    /// Gives a chain back in which `written` bytes were written. The driver learns it with `publish`.
    pub fn complete(&mut self, head: u16, written: u32) {
        let at = 4 + 8 * usize::from(self.next_used & (self.size - 1));
        let element = [u32::from(head).to_le(), written.to_le()];
        // SAFETY: within the used ring.
        unsafe { self.used.add(at).cast::<[u32; 2]>().write_unaligned(element) };
        self.log_used(at, 8);
        self.next_used = self.next_used.wrapping_add(1);
    }

    fn log_used(&self, at: usize, length: u64) {
        if let (Some(log), Some(address)) = (&self.log, self.log_used) {
            log.mark(address.wrapping_add(at as u64), length);
        }
    }

    /// Lets the driver see what was given back, and wakes it if it wants to be.
    pub fn publish(&mut self) {
        if self.published == self.next_used {
            return;
        }
        self.used_u16(2).store(self.next_used.to_le(), Ordering::Release);
        self.log_used(2, 2);
        // The index must be there before it is read how far the driver wants to go without being woken.
        fence(Ordering::SeqCst);
        let wants = if self.event_idx {
            let event = u16::from_le(self.available_u16(4 + 2 * usize::from(self.size)).load(Ordering::Relaxed));
            let (new, old) = (self.next_used, self.published);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u16::from_le(self.available_u16(0).load(Ordering::Relaxed)) & 1 == 0
        };
        self.published = self.next_used;
        if wants {
            self.call();
        }
    }

    /// Wakes the driver.
    pub fn call(&self) {
        if let Some(mut call) = self.call.as_ref() {
            // An eventfd that is full is readable anyway.
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }

    /// Replaces how the driver is woken.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        // What was used in between woke nobody.
        self.call();
    }

    /// Whether the driver is to tell what it makes available. Returns whether there is something already.
    pub fn want_kicks(&mut self, wanted: bool) -> bool {
        if self.event_idx {
            if wanted {
                let at = 4 + 8 * usize::from(self.size);
                self.used_u16(at).store(self.next_available.to_le(), Ordering::Relaxed);
                self.log_used(at, 2);
            }
        } else {
            self.used_u16(0).store(u16::from(!wanted).to_le(), Ordering::Relaxed);
            self.log_used(0, 2);
        }
        fence(Ordering::SeqCst);
        self.has_available()
    }

    /// Copies `source` into `target`, which has room for it, and notes it.
    ///
    /// # Safety
    /// The bytes of both are still there: chains of rings that were not stopped since, or bytes of the switch. `target` is of this ring.
    pub unsafe fn copy_all(&self, source: &[Segment], target: &[Segment]) {
        let mut target = target.iter().copied();
        let mut room = Segment { pointer: std::ptr::null_mut(), length: 0, guest: 0 };
        for piece in source {
            let mut piece = *piece;
            while !piece.is_empty() {
                if room.is_empty() {
                    match target.next() {
                        Some(next) => room = next,
                        None => return,
                    }
                }
                let count = piece.length.min(room.length);
                // SAFETY: both have `count` bytes, by what the caller promises. Two mappings never overlap.
                unsafe { copy(piece.pointer, room.pointer, count) };
                if let Some(log) = &self.log {
                    log.mark(room.guest, count as u64);
                }
                piece.skip(count);
                room.skip(count);
            }
        }
    }
}
