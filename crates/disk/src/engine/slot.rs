//! One request on its way: how much of it is done, and what comes next.

use libc::iovec;

use super::FilePair;
use crate::buffer::AlignedBuffer;
use crate::geometry::Alignment;

/// What a request is doing right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request.
    Idle,
    /// Reading into the caller's memory.
    Read,
    /// Writing from the caller's memory.
    Write,
    /// Giving the range back to the storage; `fallback` says what to do where it cannot.
    Punch { fallback: Fallback },
    /// Having the storage zero the range.
    ZeroRange,
    /// Writing zeros over the range.
    WriteZeros,
    /// Making it durable, as the last step.
    Sync,
}

impl Phase {
    /// Whether a request in this phase changes what the disk holds.
    pub fn is_change(self) -> bool {
        !matches!(self, Phase::Idle | Phase::Read | Phase::Sync)
    }
}

/// What to do where the storage has no holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fallback {
    /// A discard is advice.
    Nothing,
    /// Zeros are a promise.
    Zero,
}

/// How a transfer reaches the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// From the caller's memory, as the disk was opened.
    Plain,
    /// Through a buffer of ours, because direct I/O does not take the caller's.
    Bounce,
    /// Through the page cache, because direct I/O does not take the offset or the length.
    Cached,
}

/// Whose work a slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// All of the request with the slot's number as its tag.
    Request,
    /// A part of the request with this tag.
    Part(u16),
    /// A step of the commit that this engine does.
    Commit,
}

pub(super) struct Slot {
    pub owner: Owner,
    pub phase: Phase,
    /// Which file of the disk's chain: 0 is its own.
    pub layer: u16,
    pub route: Route,
    /// Whether it has to be on stable storage when it completes.
    pub durable: bool,
    /// Of a request: where it is on the virtual disk, and how long.
    pub disk_offset: u64,
    pub length: u64,
    /// It is a change that counts as under way.
    pub is_counted: bool,
    /// Its number among the parts of the disk that change, where these are known.
    pub range: Option<u64>,
    /// Where it goes on, in the file.
    pub offset: u64,
    /// How much is left.
    pub left: u64,
    /// How much the kernel was asked for last.
    pub asked: u64,
    /// How often in a row the kernel wanted it asked again.
    pub retries: u8,
    /// The caller's memory, from `first` on; entries before it are done, and the first one may have begun.
    pub segments: Vec<iovec>,
    pub first: usize,
    pub bounce: Option<AlignedBuffer>,
    /// What a step of a commit writes; `segments` points to it.
    pub data: Vec<u8>,
}

impl Slot {
    pub fn idle() -> Slot {
        Slot {
            owner: Owner::Request,
            phase: Phase::Idle,
            layer: 0,
            route: Route::Plain,
            durable: false,
            disk_offset: 0,
            length: 0,
            is_counted: false,
            range: None,
            offset: 0,
            left: 0,
            asked: 0,
            retries: 0,
            segments: Vec::new(),
            first: 0,
            bounce: None,
            data: Vec::new(),
        }
    }

    /// Takes the caller's segments over, joining what is contiguous in memory: fewer for the kernel to look at, and most
    /// often just one. Returns the number of bytes.
    pub fn set_segments(&mut self, segments: &[iovec]) -> u64 {
        self.segments.clear();
        self.first = 0;
        let mut total = 0u64;
        for segment in segments.iter().filter(|segment| segment.iov_len > 0) {
            total = total.saturating_add(segment.iov_len as u64);
            match self.segments.last_mut() {
                Some(last) if last.iov_base as usize + last.iov_len == segment.iov_base as usize => {
                    last.iov_len += segment.iov_len
                }
                _ => self.segments.push(*segment),
            }
        }
        total
    }

    /// Whether direct I/O takes every segment as it is.
    pub fn segments_aligned(&self, alignment: Alignment) -> bool {
        let (address, length) = (alignment.memory as usize - 1, alignment.offset as usize - 1);
        // A vector's inner lengths only need the memory's alignment in some file systems; the stricter rule holds in all.
        self.segments.iter().all(|it| it.iov_base as usize & address == 0 && it.iov_len & length == 0)
    }

    /// Decides how a transfer reaches the file, once its place and its segments are known.
    pub fn choose_route(&mut self, file: FilePair) {
        let Some(alignment) = file.direct else { return };
        let mask = u64::from(alignment.offset) - 1;
        if (self.offset | self.left) & mask != 0 && file.has_cached {
            self.route = Route::Cached;
        } else if !self.segments_aligned(alignment) {
            self.route = Route::Bounce;
        }
    }

    /// Notes that the next `count` bytes of the segments are done.
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(segment) = self.segments.get_mut(self.first) else { return };
            let step = count.min(segment.iov_len);
            segment.iov_base = segment.iov_base.wrapping_byte_add(step);
            segment.iov_len -= step;
            count -= step;
            if segment.iov_len == 0 {
                self.first += 1;
            }
        }
    }

    /// Copies up to `count` bytes from the segments into the bounce buffer.
    ///
    /// # Safety
    /// The segments point to valid memory.
    pub unsafe fn gather(&self, count: usize) {
        // SAFETY: as promised to us.
        unsafe { self.copy(count, |buffer, segment, length| std::ptr::copy_nonoverlapping(segment, buffer, length)) }
    }

    /// Copies up to `count` bytes from the bounce buffer to the segments.
    ///
    /// # Safety
    /// The segments point to valid, writable memory.
    pub unsafe fn scatter(&self, count: usize) {
        // SAFETY: as promised to us.
        unsafe { self.copy(count, |buffer, segment, length| std::ptr::copy_nonoverlapping(buffer, segment, length)) }
    }

    /// # Safety
    /// The segments point to memory that `step` may access. `step` gets pointers to that many bytes in the buffer and in a segment.
    unsafe fn copy(&self, count: usize, mut step: impl FnMut(*mut u8, *mut u8, usize)) {
        let Some(buffer) = &self.bounce else { return };
        let (mut at, count) = (0, count.min(buffer.len()));
        for segment in &self.segments[self.first..] {
            let length = segment.iov_len.min(count - at);
            // The buffer and the segments never overlap: the buffer is our own allocation, and `at + length` is within it.
            step(buffer.as_ptr().wrapping_add(at), segment.iov_base.cast(), length);
            at += length;
            if at == count {
                return;
            }
        }
    }

    /// Makes the slot free again, keeping a small vector for the next request.
    pub fn clear(&mut self) {
        self.phase = Phase::Idle;
        self.retries = 0;
        self.data = Vec::new();
        if self.segments.capacity() > KEPT_SEGMENTS {
            self.segments = Vec::new();
        } else {
            self.segments.clear();
        }
    }
}

/// What most requests need; the rest allocate, so that hundreds of slots stay small.
const KEPT_SEGMENTS: usize = 32;
