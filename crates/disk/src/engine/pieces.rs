//! What a request on an image comes down to: pieces of files.

use std::sync::Arc;

use libc::iovec;
use vhdx::{Extent, MapError, Mapping, Place, Ticket};

/// A part of a request in one place of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it begins in the request.
    pub start: u64,
    pub length: u64,
    pub layer: u16,
    /// Where it is in the file.
    pub at: u64,
}

/// Looks through an image and its parents.
pub(super) struct Search<'a> {
    /// By layer: the image, then its parents.
    pub mappings: &'a [Arc<dyn Mapping>],
    /// Room for answers.
    pub extents: &'a mut Vec<Extent>,
    /// What is in files, in order. What is in none is zeros.
    pub pieces: &'a mut Vec<Piece>,
    /// What has to be given back when the pieces were read, also after an error.
    pub tickets: &'a mut Vec<(u16, Ticket)>,
}

impl Search<'_> {
    /// Finds where `length` bytes from `offset` on are to be read, as far as this layer and those below have them. `start` is
    /// where they begin in the request.
    pub fn read(&mut self, layer: u16, offset: u64, length: u64, start: u64) -> Result<(), MapError> {
        // A parent may be smaller than its child; zeros follow it.
        let Some(mapping) = self.mappings.get(usize::from(layer)) else { return Ok(()) };
        let length = length.min(mapping.size().saturating_sub(offset));
        if length == 0 {
            return Ok(());
        }
        let first = self.extents.len();
        self.tickets.push((layer, mapping.map_read(offset, length, self.extents)?));
        let mut done = 0;
        for index in first..self.extents.len() {
            let Extent { length, place } = self.extents[index];
            match place {
                Place::Zero => {}
                Place::File(at) => push(self.pieces, Piece { start: start + done, length, layer, at }),
                Place::Parent => self.read(layer + 1, offset + done, length, start + done)?,
            }
            done += length;
        }
        self.extents.truncate(first);
        Ok(())
    }
}

/// Adds a piece, to the last one if it goes on there: blocks that were written one after the other lie so.
pub(super) fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut()
        && last.layer == piece.layer
        && last.at + last.length == piece.at
        && last.start + last.length == piece.start
    {
        last.length += piece.length;
    } else {
        pieces.push(piece);
    }
}

/// Goes through a request's segments once, from the front.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    /// How much of the request is passed.
    position: u64,
    segment: usize,
    /// How much of the segment is passed.
    within: usize,
}

impl Cursor {
    /// Calls `part` for each part of memory from `start` to `start + length`. `start` is not before what was asked for last.
    pub fn take(&mut self, segments: &[iovec], start: u64, length: u64, mut part: impl FnMut(iovec)) {
        self.walk(segments, start - self.position, |_| {});
        self.walk(segments, length, &mut part);
    }

    fn walk(&mut self, segments: &[iovec], mut length: u64, mut part: impl FnMut(iovec)) {
        self.position += length;
        while length > 0 {
            let Some(segment) = segments.get(self.segment) else { return };
            let here = ((segment.iov_len - self.within) as u64).min(length) as usize;
            if here > 0 {
                part(iovec { iov_base: segment.iov_base.wrapping_byte_add(self.within), iov_len: here });
            }
            length -= here as u64;
            self.within += here;
            if self.within == segment.iov_len {
                (self.segment, self.within) = (self.segment + 1, 0);
            }
        }
    }
}

/// Zeroes a part of a request's memory.
///
/// # Safety
/// The segments point to writable memory.
pub(super) unsafe fn fill_zeros(segments: &[iovec], cursor: &mut Cursor, start: u64, length: u64) {
    cursor.take(segments, start, length, |part| {
        // SAFETY: as promised to us; the part is inside a segment.
        unsafe { std::ptr::write_bytes(part.iov_base.cast::<u8>(), 0, part.iov_len) }
    });
}
