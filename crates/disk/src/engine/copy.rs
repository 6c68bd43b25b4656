//! Copy-on-read: what was read from a parent is written to the image itself, so that it is there the next time.
//!
//! ```text
//!   read, some of it in a parent ─▶ into a buffer of ours ─▶ to the caller's memory, the read is reported
//!                                                       └──▶ written part by part, under a tag of ours ─▶ the buffer is freed
//! ```
//! The buffer is ours because the caller's memory may change while it is used (a guest's program can write to it): a read must
//! not be a way to change the disk. Copies are best effort. A read that is too large, or that comes while as many as there can be are
//! being copied, is only read; so is what somebody writes at the same time, and what cannot be written.

use std::ops::Range;
use std::sync::Arc;

use super::pieces::Piece;
use super::*;
use crate::ranges::Ranges;

/// How many reads can be copied at a time in one engine, and of which size: at most 16 MiB are in buffers.
const MAX_COPIES: u16 = 16;
const MAX_COPY_BYTES: u64 = 1 << 20;

/// What an engine needs for copies.
pub(super) struct Copies {
    pub ranges: Arc<Ranges>,
    /// By tag, from the first that is ours.
    under_way: Box<[Option<Copy>]>,
    free: Vec<u16>,
}

/// A read that is copied.
pub(super) struct Copy {
    index: u16,
    buffer: AlignedBuffer,
    /// Where the buffer's content is on the disk.
    offset: u64,
    /// The caller's memory.
    segments: Vec<iovec>,
    /// What is to be written, on the disk.
    parts: VecDeque<Range<u64>>,
}

impl Copies {
    pub fn new(ranges: Arc<Ranges>) -> Copies {
        Copies { ranges, under_way: (0..MAX_COPIES).map(|_| None).collect(), free: (0..MAX_COPIES).collect() }
    }

    /// Tags beyond the callers'.
    pub fn tags(&self) -> u16 {
        MAX_COPIES
    }

    /// Has a read go to a buffer of ours, if some of it is in a parent and it can be copied.
    pub fn intercept(&mut self, offset: u64, length: u64, pieces: &[Piece], slot: &mut Slot) -> Option<Copy> {
        let in_parents = pieces.iter().filter(|piece| piece.layer > 0);
        let mut parts: VecDeque<Range<u64>> = VecDeque::new();
        for piece in in_parents {
            let part = offset + piece.start..offset + piece.start + piece.length;
            match parts.back_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push_back(part),
            }
        }
        if parts.is_empty() || length > MAX_COPY_BYTES {
            return None;
        }
        let index = self.free.pop()?;
        let buffer = AlignedBuffer::new(length as usize);
        let ours = vec![iovec { iov_base: buffer.as_ptr().cast(), iov_len: length as usize }];
        let segments = std::mem::replace(&mut slot.segments, ours);
        Some(Copy { index, buffer, offset, segments, parts })
    }
}

impl Copy {
    /// Gives the caller what was read.
    ///
    /// # Safety
    /// The caller's memory may be written.
    pub unsafe fn deliver(&self) {
        let mut from = self.buffer.as_ptr();
        for segment in &self.segments {
            // SAFETY: as promised to us; the segments are as long as the buffer, which is our own.
            unsafe { std::ptr::copy_nonoverlapping(from, segment.iov_base.cast(), segment.iov_len) };
            from = from.wrapping_add(segment.iov_len);
        }
    }
}

impl Engine {
    /// A read that is copied has ended: its copy begins, or its buffer is freed.
    pub(super) fn read_ended(&mut self, copy: Copy, result: Result<(), IoError>) {
        let index = copy.index;
        if result.is_ok() {
            // SAFETY: the caller promised that its memory is writable until the read is reported.
            unsafe { copy.deliver() };
        }
        let is_wanted = result.is_ok() && !self.entrance.has_moved();
        let Some(image) = self.image.as_deref_mut() else { return };
        let Some(copies) = &mut image.copies else { return };
        if is_wanted && !image.is_closing {
            copies.under_way[usize::from(index)] = Some(copy);
            self.copy_next(index);
        } else {
            copies.free.push(index);
        }
    }

    /// A part of a copy was written, or could not be.
    pub(super) fn copy_ended(&mut self, tag: u16, result: Result<(), IoError>) {
        let index = tag - self.depth;
        if let (Err(_), Some(copies)) = (result, self.image.as_deref_mut().and_then(|image| image.copies.as_mut())) {
            // It is still in the parent.
            if let Some(copy) = &mut copies.under_way[usize::from(index)] {
                copy.parts.clear();
            }
        }
        self.copy_next(index);
    }

    /// Begins the next part of a copy that can be written; frees the buffer after the last.
    fn copy_next(&mut self, index: u16) {
        let tag = self.depth + index;
        if let Some((range, segment, number)) = self.next_copy_part(index) {
            let slot = &mut self.slots[usize::from(tag)];
            slot.set_segments(&[segment]);
            (slot.phase, slot.offset, slot.left) = (Phase::Write, range.start, range.end - range.start);
            (slot.durable, slot.route) = (false, Route::Plain);
            slot.range = Some(number);
            self.in_flight += 1;
            if let Err(error) = self.start_image(tag) {
                let event = self.end(tag, Err(error));
                self.ended.push_back(event);
            }
        }
    }

    fn next_copy_part(&mut self, index: u16) -> Option<(Range<u64>, iovec, u64)> {
        let image = self.image.as_deref_mut()?;
        let copies = image.copies.as_mut()?;
        let under_way = &mut copies.under_way[usize::from(index)];
        let copy = under_way.as_mut()?;
        while let Some(range) = copy.parts.pop_front() {
            let Some(number) = copies.ranges.begin_copy(range.clone()) else { continue };
            // Nobody changes it from here on; but somebody may have since it was read.
            if is_in_parent(&*image.mappings[0], &range) {
                let at = (range.start - copy.offset) as usize;
                let iov_base = copy.buffer.as_ptr().wrapping_add(at).cast();
                return Some((range.clone(), iovec { iov_base, iov_len: (range.end - range.start) as usize }, number));
            }
            self.entrance.range_ends(number);
        }
        *under_way = None;
        copies.free.push(index);
        None
    }
}

/// Whether nothing of this part is in the image itself.
fn is_in_parent(mapping: &dyn vhdx::Mapping, range: &Range<u64>) -> bool {
    let mut extents = Vec::new();
    let Ok(ticket) = mapping.map_read(range.start, range.end - range.start, &mut extents) else { return false };
    mapping.finish(ticket);
    extents.iter().all(|extent| extent.place == vhdx::Place::Parent)
}
