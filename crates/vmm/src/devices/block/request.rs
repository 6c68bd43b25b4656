//! What a chain asks for (virtio 1.2 §5.2.6).

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::chain::{Buffer, Chain};
use super::config::{MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, SECTOR};
use crate::virtio::GuestMemory;

/// The answers (virtio 1.2 §5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What to do. Offsets and lengths are in bytes, and not yet checked against the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Fill the data buffers.
    Read {
        offset: u64,
    },
    /// Take the data buffers.
    Write {
        offset: u64,
    },
    Flush,
    /// Put the serial number in the data buffers.
    GetId,
    Discard {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        unmap: bool,
    },
}

/// A request, with its data buffers left in the [`Chain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Where the status byte goes: checked to be in guest memory.
    pub status: GuestAddress,
    pub operation: Operation,
    /// Bytes of data.
    pub length: u64,
}

/// Why a chain is no request that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no place to say so.
    NoStatus,
    /// It is answered with this.
    Answer(GuestAddress, Status),
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER_BYTES: usize = 16;
/// A range of a discard or a write-zeroes: sector, count, flags.
const RANGE_BYTES: usize = 16;
const UNMAP: u32 = 1;

/// A request's data ends here, so that a pause never waits for more than this (per queue). Firmware reads whole kernels and
/// initial RAM disks in one request; nothing asks for a GiB.
const MAX_REQUEST_BYTES: u64 = 1 << 30;

/// Makes out what the chain asks for. Afterwards the chain holds the data buffers only: `readable` without the header, `writable`
/// without the status byte. Where header and data begin and end in descriptors means nothing (virtio 1.2 §2.7.4).
pub(super) fn parse(memory: &GuestMemory, chain: &mut Chain) -> Result<Request, Refusal> {
    let status = take_status(memory, chain).ok_or(Refusal::NoStatus)?;
    let answer = |answer| Refusal::Answer(status, answer);
    if chain.disordered {
        return Err(answer(Status::IoError));
    }
    let header: [u8; HEADER_BYTES] = take_front(memory, &mut chain.readable).ok_or(answer(Status::IoError))?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    let offset = || sector.checked_mul(SECTOR).ok_or(answer(Status::IoError));

    let (operation, length) = match kind {
        IN => (Operation::Read { offset: offset()? }, total(&chain.writable)),
        OUT => (Operation::Write { offset: offset()? }, total(&chain.readable)),
        FLUSH => (Operation::Flush, 0),
        GET_ID => (Operation::GetId, total(&chain.writable)),
        DISCARD | WRITE_ZEROES => {
            if total(&chain.readable) != RANGE_BYTES as u64 {
                return Err(answer(Status::IoError));
            }
            let range = take_front(memory, &mut chain.readable).ok_or(answer(Status::IoError))?;
            (parse_range(kind, range).map_err(answer)?, 0)
        }
        _ => return Err(answer(Status::Unsupported)),
    };
    let whole_sectors = matches!(operation, Operation::Read { .. } | Operation::Write { .. });
    if length > MAX_REQUEST_BYTES || whole_sectors && !length.is_multiple_of(SECTOR) {
        return Err(answer(Status::IoError));
    }
    Ok(Request { status, operation, length })
}

fn parse_range(kind: u32, range: [u8; RANGE_BYTES]) -> Result<Operation, Status> {
    let sector = u64::from_le_bytes(range[0..8].try_into().expect("eight bytes"));
    let count = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
    let flags = u32::from_le_bytes(range[12..16].try_into().expect("four bytes"));
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let length = u64::from(count) * SECTOR;
    // §5.2.6.2: unknown flags, and unmap in a discard, are "unsupported"; more than the limit is an error.
    match kind {
        DISCARD if flags != 0 => Err(Status::Unsupported),
        DISCARD if count > MAX_DISCARD_SECTORS => Err(Status::IoError),
        DISCARD => Ok(Operation::Discard { offset, length }),
        _ if flags & !UNMAP != 0 => Err(Status::Unsupported),
        _ if count > MAX_ZEROES_SECTORS => Err(Status::IoError),
        _ => Ok(Operation::WriteZeroes { offset, length, unmap: flags & UNMAP != 0 }),
    }
}

/// Takes the last writable byte: the status.
fn take_status(memory: &GuestMemory, chain: &mut Chain) -> Option<GuestAddress> {
    let last = chain.writable.last_mut()?;
    let status = GuestAddress(last.address.checked_add(u64::from(last.length) - 1)?);
    last.length -= 1;
    if last.length == 0 {
        chain.writable.pop();
    }
    memory.address_in_range(status).then_some(status)
}

/// Takes the first `N` bytes, from however many buffers they are in.
fn take_front<const N: usize>(memory: &GuestMemory, buffers: &mut Vec<Buffer>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let first = buffers.first_mut()?;
        let step = (N - filled).min(first.length as usize);
        memory.read_slice(&mut bytes[filled..filled + step], GuestAddress(first.address)).ok()?;
        filled += step;
        first.address = first.address.checked_add(step as u64)?;
        first.length -= step as u32;
        if first.length == 0 {
            buffers.remove(0);
        }
    }
    Some(bytes)
}

pub(super) fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

/// The buffers as the kernel takes them; `None` if not all of them are in guest memory.
pub(super) fn host_segments(memory: &GuestMemory, buffers: &[Buffer], segments: &mut Vec<libc::iovec>) -> Option<()> {
    segments.clear();
    for buffer in buffers {
        GuestAddress(buffer.address).checked_add(u64::from(buffer.length))?;
        for slice in GuestMemoryBackend::get_slices(memory, GuestAddress(buffer.address), buffer.length as usize) {
            let slice = slice.ok()?;
            segments.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
    }
    Some(())
}
