//! What the storage below a disk is and needs.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// `BLKSSZGET`, `BLKPBSZGET`, `BLKGETSIZE64`, `BLKDISCARD` of `linux/fs.h`.
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKDISCARD: libc::c_ulong = 0x1277;

/// What direct I/O on a file has to be aligned to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Addresses of buffers, and their lengths.
    pub memory: u32,
    /// Offsets in the file, and lengths of transfers.
    pub offset: u32,
}

/// The alignment that direct I/O needs; `None` when the file cannot do it. Kernels and file systems that do not tell
/// (`STATX_DIOALIGN` came with Linux 6.1) get the page size, which suits all of them.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<Alignment>> {
    let mut statx = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a valid empty string, the buffer is as large as a statx.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, statx.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid statx, and the kernel filled it.
    let statx = unsafe { statx.assume_init() };
    if statx.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(Some(Alignment { memory: 4096, offset: 4096 }));
    }
    if statx.stx_dio_offset_align == 0 || statx.stx_dio_mem_align == 0 {
        return Ok(None);
    }
    // A buffer's length has to fit the offset alignment in any case, so the memory alignment need not go below 4.
    Ok(Some(Alignment { memory: statx.stx_dio_mem_align, offset: statx.stx_dio_offset_align }))
}

/// A block device's size in bytes.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut size) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
}

/// A block device's logical and physical sector size in bytes.
pub(crate) fn device_sectors(file: &File) -> io::Result<(u32, u32)> {
    let (mut logical, mut physical) = (0u32, 0u32);
    // SAFETY: BLKSSZGET writes one int.
    let mut result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut logical) };
    if result == 0 {
        // SAFETY: BLKPBSZGET writes one unsigned int.
        result = unsafe { libc::ioctl(file.as_raw_fd(), BLKPBSZGET, &mut physical) };
    }
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok((logical, physical.max(logical))) }
}

/// Discards a range of a block device, waiting for it.
pub(crate) fn device_discard(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKDISCARD reads two u64.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, &range) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
