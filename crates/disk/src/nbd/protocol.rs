//! The protocol's numbers, and its two messages. All numbers are big-endian.

use crate::error::IoError;

/// Bytes of a request without its data.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a reply without its data.
pub const REPLY_BYTES: usize = 16;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// The data is to be on stable storage before the reply.
const COMMAND_FLAG_FUA: u16 = 1 << 0;
/// Zeros are to take space as data does.
const COMMAND_FLAG_NO_HOLE: u16 = 1 << 1;

/// What a device can do, as the kernel wants to know it.
pub mod transmission_flag {
    pub const HAS_FLAGS: u64 = 1 << 0;
    pub const READ_ONLY: u64 = 1 << 1;
    pub const SEND_FLUSH: u64 = 1 << 2;
    pub const SEND_FUA: u64 = 1 << 3;
    pub const SEND_TRIM: u64 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u64 = 1 << 6;
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    /// One that the flags do not offer.
    Unknown(u16),
}

/// A request, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    flags: u16,
    /// The kernel's name for it.
    pub cookie: [u8; 8],
    pub offset: u64,
    pub length: u32,
}

impl Request {
    /// Understands a request; `None` if it is none.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
        let [m0, m1, m2, m3, f0, f1, t0, t1, cookie @ .., o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = *bytes;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REQUEST_MAGIC {
            return None;
        }
        let command = match u16::from_be_bytes([t0, t1]) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            other => Command::Unknown(other),
        };
        Some(Request {
            command,
            flags: u16::from_be_bytes([f0, f1]),
            cookie,
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Whether it has to reach stable storage.
    pub fn is_durable(&self) -> bool {
        self.flags & COMMAND_FLAG_FUA != 0
    }

    /// Whether zeros are to keep their space.
    pub fn keeps_space(&self) -> bool {
        self.flags & COMMAND_FLAG_NO_HOLE != 0
    }
}

/// A reply, without its data.
pub fn reply(cookie: [u8; 8], result: Result<(), IoError>) -> [u8; REPLY_BYTES] {
    let mut bytes = [0; REPLY_BYTES];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error_number(result).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie);
    bytes
}

/// The protocol has its own few error numbers, the same as Linux's.
fn error_number(result: Result<(), IoError>) -> u32 {
    let number = match result {
        Ok(()) => 0,
        Err(IoError::ReadOnly) => libc::EPERM,
        Err(IoError::OutOfRange) => libc::EINVAL,
        Err(IoError::NoSpace) => libc::ENOSPC,
        Err(_) => libc::EIO,
    };
    number.unsigned_abs()
}
