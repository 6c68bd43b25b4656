//! A queue of a NIC: its socket, its rings and their memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use libc::xdp_desc;

use super::ring::{Consumer, Place, Producer};
use super::umem::Mapping;
use super::{XdpError, program::Mode};

/// Frames after which the kernel gets back what it needs for new ones.
const GIVEN_BACK: u32 = 32;
/// How long the kernel may take to let go of a queue whose socket was closed: it does that in the background.
const PATIENCE: Duration = Duration::from_secs(2);

const NEEDS: &str = ": the switch needs CAP_NET_RAW, and a kernel with CONFIG_XDP_SOCKETS";
const MEMORY: &str =
    ": the switch needs CAP_IPC_LOCK, or a higher limit of locked memory (ulimit -l, LimitMEMLOCK= of its service)";

/// How large its rings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of memory for each frame: 2048 or 4096.
    pub frame_bytes: u32,
    /// Frames for what comes in: a power of two.
    pub receive: u32,
    /// Frames for what goes out: a power of two.
    pub transmit: u32,
}

/// A socket with its rings.
#[derive(Debug)]
pub(super) struct Queue {
    socket: OwnedFd,
    fill: Producer<u64>,
    completed: Consumer<u64>,
    receive: Consumer<xdp_desc>,
    transmit: Producer<xdp_desc>,
    /// Where frames that can be sent are.
    free: Vec<u64>,
    /// The frame that was taken last: it is in use until the next one is taken.
    at_hand: Option<u64>,
    /// How many were taken since the kernel got some back.
    kept: u32,
    /// Whether there may be something that the kernel has not taken.
    unsent: bool,
    /// Losses that were told already.
    told: u64,
    is_zero_copy: bool,
    memory: Mapping,
    _rings: [Mapping; 4],
}

/// Checks a system call's result.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_option<T>(fd: RawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is of that size, and the kernel only reads it.
    check(unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, ptr::from_ref(value).cast(), size) }).map(drop)
}

/// # Safety
/// All zeroes, and all that the kernel may write, are a valid `T`.
unsafe fn get_option<T>(fd: RawFd, option: libc::c_int) -> io::Result<T> {
    // SAFETY: by what the caller promises.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes as much as there is room for.
    check(unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, (&raw mut value).cast(), &raw mut size) })?;
    Ok(value)
}

/// Maps a ring of the socket.
fn place<T>(fd: RawFd, at: u64, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<(Mapping, Place<T>)> {
    let bytes = offsets.desc as usize + size as usize * size_of::<T>();
    let mapping = Mapping::shared(fd, at as libc::off_t, bytes)?;
    let part = |offset: u64, length| mapping.at(offset, length).ok_or(io::ErrorKind::InvalidData);
    let place = Place {
        producer: part(offsets.producer, 4)?.cast(),
        consumer: part(offsets.consumer, 4)?.cast(),
        flags: part(offsets.flags, 4)?.cast(),
        entries: part(offsets.desc, size as usize * size_of::<T>())?.cast(),
        size,
    };
    Ok((mapping, place))
}

impl Queue {
    /// A socket for a queue of an interface, whose frames come once a program gives them to it.
    pub fn open(interface: u32, number: u32, shape: Shape, mode: Mode) -> Result<Queue, XdpError> {
        let failed = |what, hint| move |source| XdpError::Socket { what, queue: number, hint, source };
        let Shape { frame_bytes, receive, transmit } = shape;
        // SAFETY: numbers only.
        let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) });
        let fd = fd.map_err(failed("open the AF_XDP socket", NEEDS))?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = (receive + transmit) as usize * frame_bytes as usize;
        let memory = Mapping::memory(length).map_err(failed("get the memory", ""))?;
        // SAFETY: all zeroes are a valid registration.
        let mut registration: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
        registration.addr = memory.start().as_ptr() as u64;
        registration.len = memory.bytes() as u64;
        registration.chunk_size = frame_bytes;
        let registered = set_option(fd, libc::XDP_UMEM_REG, &registration);
        registered.map_err(|source| {
            let hint = if source.raw_os_error() == Some(libc::ENOBUFS) { MEMORY } else { "" };
            failed("register the memory", hint)(source)
        })?;
        for (option, size) in [
            (libc::XDP_UMEM_FILL_RING, receive),
            (libc::XDP_UMEM_COMPLETION_RING, transmit),
            (libc::XDP_RX_RING, receive),
            (libc::XDP_TX_RING, transmit),
        ] {
            set_option(fd, option, &size).map_err(failed("size a ring", ""))?;
        }
        // SAFETY: numbers only.
        let offsets = unsafe { get_option::<libc::xdp_mmap_offsets>(fd, libc::XDP_MMAP_OFFSETS) };
        let offsets = offsets.map_err(failed("find the rings", ""))?;
        let mapped = failed("map a ring", "");
        let (map_fill, fill) = place(fd, libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, receive).map_err(mapped)?;
        let (map_completed, completed) =
            place(fd, libc::XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, transmit).map_err(mapped)?;
        let (map_receive, from) = place(fd, libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, receive).map_err(mapped)?;
        let (map_transmit, to) = place(fd, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, transmit).map_err(mapped)?;
        // SAFETY: the mappings go when the queue does, and the other ends are the kernel's.
        let (mut fill, completed, from, to) =
            unsafe { (Producer::new(fill), Consumer::new(completed), Consumer::new(from), Producer::new(to)) };
        let frames = |range: std::ops::Range<u32>| range.map(move |number| u64::from(number) * u64::from(frame_bytes));
        frames(0..receive).for_each(|frame| _ = fill.put(frame));
        fill.publish();
        let free = frames(receive..receive + transmit).rev().collect();
        bind(fd, interface, number, mode).map_err(|source| {
            let hint = if source.raw_os_error() == Some(libc::EBUSY) { ": another AF_XDP socket has it" } else { "" };
            failed("bind the AF_XDP socket", hint)(source)
        })?;
        // SAFETY: numbers only.
        let options = unsafe { get_option::<libc::xdp_options>(fd, libc::XDP_OPTIONS) };
        let is_zero_copy = options.is_ok_and(|options| options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0);
        Ok(Queue {
            socket,
            fill,
            completed,
            receive: from,
            transmit: to,
            free,
            at_hand: None,
            kept: 0,
            unsent: false,
            told: 0,
            is_zero_copy,
            memory,
            _rings: [map_fill, map_completed, map_receive, map_transmit],
        })
    }

    /// Whether the NIC itself reads and writes the frames here.
    pub fn is_zero_copy(&self) -> bool {
        self.is_zero_copy
    }

    /// Whether something came in.
    pub fn is_waiting(&self) -> bool {
        self.receive.is_waiting()
    }

    /// Takes the next frame. It stays as it is until the next call.
    pub fn take(&mut self) -> Option<&[u8]> {
        // There is room for all frames that there are.
        self.at_hand.take().into_iter().for_each(|frame| _ = self.fill.put(frame));
        if self.kept >= GIVEN_BACK {
            self.give_back();
        }
        let Some(descriptor) = self.receive.take() else {
            self.give_back();
            return None;
        };
        self.kept += 1;
        self.at_hand = Some(descriptor.addr);
        let length = descriptor.len as usize;
        let start = self.memory.at(descriptor.addr, length);
        // SAFETY: within the memory, and the kernel's no more until it gets the frame back.
        Some(start.map_or(&[], |start| unsafe { std::slice::from_raw_parts(start.as_ptr(), length) }))
    }

    /// Lets the kernel have what it needs for frames to come.
    pub fn give_back(&mut self) {
        if self.kept == 0 {
            return;
        }
        self.kept = 0;
        self.receive.release();
        self.fill.publish();
        if self.fill.needs_wakeup() {
            // SAFETY: no buffer, which is how a driver is told to look. What it answers is not of interest.
            unsafe {
                libc::recvfrom(self.socket.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut())
            };
        }
    }

    /// Room for a frame of `length` bytes that is to go out: where it is, and its number for [`Queue::send`]. What is not sent then stays
    /// free. `None` if there is none now.
    pub fn room(&mut self, length: usize) -> Option<(u64, &mut [u8])> {
        if self.free.is_empty() {
            self.collect();
            if self.free.is_empty() {
                self.flush();
                self.collect();
            }
        }
        let frame = *self.free.last()?;
        let start = self.memory.at(frame, length)?;
        // SAFETY: within the memory, and nobody else's while it is free.
        Some((frame, unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) }))
    }

    /// Sends what was written to the room that was given last.
    pub fn send(&mut self, frame: u64, length: usize) {
        let descriptor = xdp_desc { addr: frame, len: length as u32, options: 0 };
        // There is room for all frames that there are.
        if self.free.last() == Some(&frame) && self.transmit.put(descriptor) {
            self.free.pop();
            self.unsent = true;
        }
    }

    /// Takes back frames that were sent.
    fn collect(&mut self) {
        while let Some(frame) = self.completed.take() {
            self.free.push(frame);
        }
        self.completed.release();
    }

    /// Has the kernel take what was sent. Returns whether it needs to be told once more, later.
    pub fn flush(&mut self) -> bool {
        if !self.unsent {
            return false;
        }
        self.transmit.publish();
        if !self.transmit.needs_wakeup() {
            // The driver looks by itself, and says so when it no longer does.
            self.unsent = self.transmit.untaken() > 0;
            return self.unsent;
        }
        loop {
            let before = self.transmit.untaken();
            // SAFETY: no bytes, which is how the kernel is told to look.
            let told = unsafe { libc::sendto(self.socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
            let error = if told < 0 { io::Error::last_os_error().raw_os_error() } else { None };
            let after = self.transmit.untaken();
            match error {
                // It takes some at a time.
                None | Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS) if after > 0 && after < before => {}
                None | Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS) => {
                    self.unsent = after > 0;
                    return self.unsent;
                }
                // Without a link, or without the NIC: with the next frame it is tried again.
                Some(_) => {
                    self.unsent = false;
                    return false;
                }
            }
        }
    }

    /// How many frames that came in the kernel had no room for since the last time.
    pub fn take_losses(&mut self) -> u64 {
        // SAFETY: numbers only.
        let statistics = unsafe { get_option::<libc::xdp_statistics>(self.socket.as_raw_fd(), libc::XDP_STATISTICS) };
        let lost = statistics.map_or(self.told, |all| all.rx_dropped + all.rx_ring_full);
        lost - std::mem::replace(&mut self.told, lost).min(lost)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(fd: RawFd, interface: u32, number: u32, mode: Mode) -> io::Result<()> {
    // Without a word about copies, the kernel does what the driver can.
    let copies = if mode == Mode::Generic { libc::XDP_COPY } else { 0 };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP | copies,
        sxdp_ifindex: interface,
        sxdp_queue_id: number,
        sxdp_shared_umem_fd: 0,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is valid and of that size.
        match check(unsafe { libc::bind(fd, (&raw const address).cast(), size) }) {
            // There is nothing to wait on: the kernel tells nobody when it has let go.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            bound => return bound.map(drop),
        }
    }
}
