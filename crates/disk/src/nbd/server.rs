//! Serves the requests of one connection.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use libc::iovec;

use super::error::ServeError;
use super::protocol::{Command, REQUEST_BYTES, Request, reply};
use crate::buffer::AlignedBuffer;
use crate::disk::Disk;
use crate::engine::{Durability, Engine, Event, Zeroing};
use crate::error::IoError;

/// Requests under way at once: as many as the kernel sends.
const DEPTH: u16 = 128;
/// The most data of one request in bytes, as the protocol has it.
pub const MAX_DATA: u32 = 32 << 20;
/// Data of requests under way, in bytes, beyond which no further request is taken.
const MAX_DATA_UNDER_WAY: usize = 64 << 20;
/// Larger buffers are not kept for the next request.
const KEPT_BUFFER: usize = 256 << 10;

/// Does what is asked for at the other end of `socket`, until that is closed or disconnects; then all that was written is durable. The
/// other end is trusted to go on with what it has begun: a request is waited for to its end, and so is room for a reply.
///
/// # Errors
/// When it cannot go on. What was written by then is as after a crash: what was flushed is durable.
pub fn serve(disk: &Disk, socket: &UnixStream) -> Result<(), ServeError> {
    let mut engine = Engine::new(disk, DEPTH)?;
    engine.watch(socket.as_raw_fd(), 0);
    let slots = (0..DEPTH).map(|_| Slot::default()).collect();
    let mut server = Server { engine, socket, slots, free: (0..DEPTH).collect(), data_under_way: 0, may_have_more: false };
    match server.run() {
        // Whoever has gone takes no replies.
        Err(ServeError::Socket(error)) if has_gone(&error) => {}
        other => other?,
    }
    server.finish()
}

fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
}

struct Server<'a> {
    // Dropped before the slots, in whose buffers the kernel may be.
    engine: Engine,
    socket: &'a UnixStream,
    /// By tag.
    slots: Box<[Slot]>,
    /// Tags that no request has.
    free: Vec<u16>,
    data_under_way: usize,
    /// The socket was signalled and not read until it was empty.
    may_have_more: bool,
}

/// A request under way.
#[derive(Default)]
struct Slot {
    cookie: [u8; 8],
    is_read: bool,
    /// Bytes of data in the buffer.
    length: usize,
    buffer: Option<AlignedBuffer>,
}

impl Slot {
    /// Room for the data of the request.
    fn segment(&mut self) -> iovec {
        if self.buffer.as_ref().is_none_or(|buffer| buffer.len() < self.length) {
            self.buffer = Some(AlignedBuffer::new(self.length));
        }
        let start = self.buffer.as_ref().map_or(std::ptr::null_mut(), AlignedBuffer::as_ptr);
        iovec { iov_base: start.cast(), iov_len: self.length }
    }

    /// The data, while the engine does not use it.
    fn data(&mut self) -> &mut [u8] {
        let segment = self.segment();
        // SAFETY: the buffer is at least this long, initialized, and ours as long as the slot is borrowed; callers have no request
        // under way in it.
        unsafe { std::slice::from_raw_parts_mut(segment.iov_base.cast(), segment.iov_len) }
    }
}

impl Server<'_> {
    fn run(&mut self) -> Result<(), ServeError> {
        while self.take_requests()? {
            self.engine.wait();
            while let Some(event) = self.engine.next() {
                match event {
                    Event::Ready { .. } => self.may_have_more = true,
                    Event::Done { tag, result } => self.answer(tag, result)?,
                }
            }
        }
        Ok(())
    }

    /// Starts what has come, as far as there is room. Answers whether more can come.
    fn take_requests(&mut self) -> Result<bool, ServeError> {
        while self.may_have_more && !self.free.is_empty() && self.data_under_way < MAX_DATA_UNDER_WAY {
            let mut header = [0; REQUEST_BYTES];
            match receive_now(self.socket, &mut header) {
                Ok(0) => return Ok(false),
                Ok(length) => self.socket.read_exact(&mut header[length..])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.may_have_more = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            let request = Request::parse(&header).ok_or(ServeError::NoRequest(header))?;
            if request.command == Command::Disconnect {
                return Ok(false);
            }
            self.start(request)?;
        }
        Ok(true)
    }

    fn start(&mut self, request: Request) -> Result<(), ServeError> {
        let has_data = matches!(request.command, Command::Read | Command::Write);
        if has_data && request.length > MAX_DATA {
            return Err(ServeError::TooLong(request.length));
        }
        let Some(tag) = self.free.pop() else { unreachable!("a request is only taken while a tag is free") };
        let slot = &mut self.slots[usize::from(tag)];
        slot.cookie = request.cookie;
        slot.is_read = request.command == Command::Read;
        slot.length = if has_data { request.length as usize } else { 0 };
        self.data_under_way += slot.length;
        if request.command == Command::Write {
            let mut socket = self.socket;
            socket.read_exact(slot.data())?;
        }
        let durability = if request.is_durable() { Durability::Durable } else { Durability::Volatile };
        let (engine, offset, length) = (&mut self.engine, request.offset, u64::from(request.length));
        let started = match request.command {
            // SAFETY: the slot's buffer stays where it is until the request was reported, or the engine dropped.
            Command::Read => unsafe { engine.read(tag, offset, &[slot.segment()]) },
            // SAFETY: as above.
            Command::Write => unsafe { engine.write(tag, offset, &[slot.segment()], durability) },
            Command::Trim => engine.discard(tag, offset, length, durability),
            Command::WriteZeroes => {
                let zeroing = if request.keeps_space() { Zeroing::Keep } else { Zeroing::Unmap };
                engine.write_zeroes(tag, offset, length, zeroing, durability)
            }
            Command::Flush => {
                engine.flush(tag);
                Ok(())
            }
            Command::Disconnect | Command::Unknown(_) => Err(IoError::OutOfRange),
        };
        // One that was refused is not under way.
        started.or_else(|error| self.answer(tag, Err(error)))
    }

    fn answer(&mut self, tag: u16, result: Result<(), IoError>) -> Result<(), ServeError> {
        let slot = &mut self.slots[usize::from(tag)];
        let header = reply(slot.cookie, result);
        let data: &[u8] = if slot.is_read && result.is_ok() { slot.data() } else { &[] };
        send(self.socket, &header, data)?;
        self.data_under_way -= slot.length;
        if slot.length > KEPT_BUFFER {
            slot.buffer = None;
        }
        self.free.push(tag);
        Ok(())
    }

    /// Waits for what is under way, and makes it durable.
    fn finish(mut self) -> Result<(), ServeError> {
        self.engine.drain(|_, _| {});
        self.engine.flush(0);
        let mut flushed = Ok(());
        self.engine.drain(|_, result| flushed = result);
        flushed.map_err(ServeError::Flush)
    }
}

/// Reads what is there now, at least a byte; none if there never will be.
fn receive_now(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the memory is valid for its length.
    let length = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

fn send(mut socket: &UnixStream, header: &[u8], data: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(header), IoSlice::new(data)];
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match socket.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => IoSlice::advance_slices(&mut slices, length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
