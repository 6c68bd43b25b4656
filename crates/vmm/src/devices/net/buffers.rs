//! The buffers of a chain as the kernel takes them: `iovec`s that point into guest memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::ring::Chain;
use crate::virtio::GuestMemory;

/// The most segments taken from one chain, and the most for one system call: `IOV_MAX` of Linux without one for our own use.
pub const MAX_SEGMENTS: usize = 1023;

/// A piece of guest memory without a gap, checked to lie in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    address: GuestAddress,
    /// Where it is mapped. Not a pointer, so that segments can wait in a worker; it is one again only for the kernel.
    host: usize,
    /// Bytes, not zero.
    pub length: usize,
}

/// Why a chain's buffers were not taken. The chain is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A buffer for the device to read among those to write, or the other way round.
    #[error("a buffer has the wrong direction")]
    Direction,
    /// A buffer is not in guest memory.
    #[error("a buffer is not in guest memory")]
    OutsideMemory,
    /// More pieces than a system call takes.
    #[error("more than {MAX_SEGMENTS} buffers")]
    TooMany,
}

/// Who fills the buffers of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver filled them.
    DeviceReads,
    /// The device fills them.
    DeviceWrites,
}

/// Appends the segments of `chain` to `segments` and returns how many they are and their bytes. On an error nothing is appended.
pub fn collect(
    chain: Chain<'_>,
    memory: &GuestMemory,
    direction: Direction,
    segments: &mut VecDeque<Segment>,
) -> Result<(usize, usize), ChainError> {
    let before = segments.len();
    let result = append(chain, memory, direction, segments);
    match result {
        Ok(bytes) => Ok((segments.len() - before, bytes)),
        Err(error) => {
            segments.truncate(before);
            Err(error)
        }
    }
}

fn append(
    chain: Chain<'_>,
    memory: &GuestMemory,
    direction: Direction,
    segments: &mut VecDeque<Segment>,
) -> Result<usize, ChainError> {
    let before = segments.len();
    let mut bytes = 0usize;
    // The count of descriptors is limited too: empty ones become no segment, and a table may have 65535 of them.
    for (count, descriptor) in chain.enumerate() {
        if descriptor.is_write_only() != (direction == Direction::DeviceWrites) {
            return Err(ChainError::Direction);
        }
        if count >= MAX_SEGMENTS {
            return Err(ChainError::TooMany);
        }
        let mut address = descriptor.addr();
        for slice in GuestMemoryBackend::get_slices(memory, address, descriptor.len() as usize) {
            let slice = slice.map_err(|_| ChainError::OutsideMemory)?;
            if segments.len() - before >= MAX_SEGMENTS {
                return Err(ChainError::TooMany);
            }
            let host = slice.ptr_guard_mut().as_ptr() as usize;
            segments.push_back(Segment { address, host, length: slice.len() });
            // The slice lies in guest memory, so its end is at most 2^64.
            address = GuestAddress(address.0.wrapping_add(slice.len() as u64));
            bytes += slice.len();
        }
    }
    Ok(bytes)
}

/// Notes that the first `length` bytes of `segments` were written by the kernel, not through [`GuestMemory`].
pub fn mark_dirty<'s>(memory: &GuestMemory, segments: impl Iterator<Item = &'s Segment>, length: usize) {
    let mut left = length;
    for segment in segments {
        if left == 0 {
            return;
        }
        let part = left.min(segment.length);
        if let Ok(slice) = memory.get_slice(segment.address, part) {
            slice.bitmap().mark_dirty(0, part);
        }
        left -= part;
    }
}

/// The `length` bytes of `segments` that start `skip` bytes into them, or as many as there are.
pub fn cut(segments: &VecDeque<Segment>, skip: usize, length: usize) -> VecDeque<Segment> {
    let (mut skip, mut left) = (skip, length);
    let mut result = VecDeque::new();
    for segment in segments {
        let before = skip.min(segment.length);
        skip -= before;
        let length = left.min(segment.length - before);
        if length > 0 {
            // Both lie in the segment, so neither sum wraps.
            let address = GuestAddress(segment.address.0 + before as u64);
            result.push_back(Segment { address, host: segment.host + before, length });
            left -= length;
        }
    }
    result
}

/// Copies the start of `segments` to `data`, and returns how many bytes there were.
pub fn copy_out<'s>(memory: &GuestMemory, segments: impl Iterator<Item = &'s Segment>, data: &mut [u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let part = segment.length.min(data.len() - done);
        if let Ok(slice) = memory.get_slice(segment.address, part) {
            slice.copy_to(&mut data[done..done + part]);
        }
        done += part;
    }
    done
}

/// Copies `data` to `offset` bytes into `segments`; what does not fit is left out.
pub fn copy_into<'s>(memory: &GuestMemory, segments: impl Iterator<Item = &'s Segment>, offset: usize, data: &[u8]) {
    let mut skip = offset;
    let mut data = data;
    for segment in segments {
        if data.is_empty() {
            return;
        }
        if skip >= segment.length {
            skip -= segment.length;
            continue;
        }
        let part = data.len().min(segment.length - skip);
        if let Ok(slice) = memory.get_slice(GuestAddress(segment.address.0 + skip as u64), part) {
            slice.copy_from(&data[..part]);
        }
        data = &data[part..];
        skip = 0;
    }
}

/// A list of `iovec`s that is reused from call to call.
#[derive(Default)]
pub struct IoVectors(Vec<libc::iovec>);

// SAFETY: between two system calls the pointers in the list are never followed; each use clears the list and fills it again.
unsafe impl Send for IoVectors {}

impl IoVectors {
    fn fill<'s>(&mut self, segments: impl Iterator<Item = &'s Segment>) {
        self.0.clear();
        self.0
            .extend(segments.map(|segment| libc::iovec { iov_base: segment.host as *mut libc::c_void, iov_len: segment.length }));
    }

    /// Writes the segments to `fd` as one frame. `memory` is where the segments were collected.
    pub fn write<'s>(
        &mut self,
        memory: &GuestMemory,
        fd: BorrowedFd<'_>,
        segments: impl Iterator<Item = &'s Segment>,
    ) -> io::Result<usize> {
        let _ = memory;
        self.fill(segments);
        // SAFETY: each iovec lies in a mapping of `memory`, which the caller keeps borrowed during the call; the kernel only
        // reads from it, and guest memory may change under a reader at any time.
        let count = unsafe { libc::writev(fd.as_raw_fd(), self.0.as_ptr(), self.0.len() as libc::c_int) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Reads from a stream into the segments.
    pub fn read_stream<'s>(
        &mut self,
        memory: &GuestMemory,
        fd: BorrowedFd<'_>,
        segments: impl Iterator<Item = &'s Segment> + Clone,
    ) -> io::Result<usize> {
        self.read(memory, fd, segments, &mut [])
    }

    /// Reads one frame into the segments, and what does not fit there into `overflow`.
    pub fn read<'s>(
        &mut self,
        memory: &GuestMemory,
        fd: BorrowedFd<'_>,
        segments: impl Iterator<Item = &'s Segment> + Clone,
        overflow: &mut [u8],
    ) -> io::Result<usize> {
        self.fill(segments.clone());
        self.0.push(libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: overflow.len() });
        // SAFETY: each iovec but the last lies in a mapping of `memory`, which the caller keeps borrowed during the call, and no
        // reference to guest memory exists; the last is the exclusively borrowed `overflow`.
        let count = unsafe { libc::readv(fd.as_raw_fd(), self.0.as_ptr(), self.0.len() as libc::c_int) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        mark_dirty(memory, segments, count);
        Ok(count)
    }
}
