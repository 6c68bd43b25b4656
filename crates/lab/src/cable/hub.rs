//! The thread that moves frames between the hosts' sockets.
//!
//! QEMU's stream sockets carry each frame after its length as 4 bytes, big-endian. Nothing here ever waits for one host:
//! what a host does not read stays in a queue of limited size, then is dropped and counted.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Instant, SystemTime};

use super::pcap::Capture;
use super::switch::{Frame, Switch};

/// Largest frame QEMU sends (its NET_BUFSIZE).
const LONGEST_FRAME: usize = 4096 + 65536;
/// Bytes that wait for one host at most.
const QUEUE_BYTES: usize = 2 << 20;
const LENGTH: usize = 4;

/// What the owner asks the thread for.
pub enum Order {
    /// A host's NIC, replacing an earlier one.
    PlugIn(usize, UnixStream),
    /// Anything that concerns the switch alone.
    Switch(Box<dyn FnOnce(&mut Switch) + Send>),
    /// Start or end a capture.
    Capture(Option<Capture>),
}

struct Plug {
    socket: UnixStream,
    received: Vec<u8>,
    /// Frames with their lengths, not yet written.
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    /// Bytes of the first waiting frame that are written.
    written: usize,
}

/// State of the thread.
pub struct Hub {
    switch: Switch,
    plugs: BTreeMap<usize, Plug>,
    capture: Option<Capture>,
    orders: Receiver<Order>,
    wake: UnixStream,
}

impl Hub {
    /// A hub that looks at `orders` whenever a byte arrives at `wake`, and ends with it.
    pub fn new(orders: Receiver<Order>, wake: UnixStream, seed: u64) -> Self {
        Hub { switch: Switch::new(seed), plugs: BTreeMap::new(), capture: None, orders, wake }
    }

    /// Works until the owner is gone.
    pub fn run(mut self) {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let hosts: Vec<usize> = self.plugs.keys().copied().collect();
            let mut polled = vec![poll_entry(self.wake.as_raw_fd(), false)];
            polled.extend(self.plugs.values().map(|plug| poll_entry(plug.socket.as_raw_fd(), !plug.waiting.is_empty())));
            wait(&mut polled, self.switch.next_due());
            if polled[0].revents != 0 && !self.take_orders(&mut buffer) {
                return;
            }
            for (&host, entry) in hosts.iter().zip(&polled[1..]) {
                if entry.revents & !libc::POLLOUT != 0 {
                    self.receive(host, &mut buffer);
                }
            }
            let now = Instant::now();
            while let Some((host, frame)) = self.switch.take_due(now) {
                self.queue(host, frame);
            }
            self.write_out();
            // A capture that cannot be written any more ends; the net goes on.
            if self.capture.as_mut().is_some_and(|capture| capture.flush().is_err()) {
                self.capture = None;
            }
        }
    }

    /// Whether the owner is still there.
    fn take_orders(&mut self, buffer: &mut [u8]) -> bool {
        match self.wake.read(buffer) {
            Ok(0) => return false,
            Err(error) if !is_temporary(&error) => return false,
            _ => {}
        }
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::PlugIn(host, socket) => {
                    self.switch.plug(host, true);
                    let plug = Plug { socket, received: Vec::new(), waiting: VecDeque::new(), waiting_bytes: 0, written: 0 };
                    self.plugs.insert(host, plug);
                }
                Order::Switch(act) => act(&mut self.switch),
                Order::Capture(capture) => self.capture = capture,
            }
        }
        true
    }

    fn receive(&mut self, host: usize, buffer: &mut [u8]) {
        let Some(plug) = self.plugs.get_mut(&host) else { return };
        match plug.socket.read(buffer) {
            Ok(count) if count > 0 => plug.received.extend(&buffer[..count]),
            Err(error) if is_temporary(&error) => return,
            _ => return self.unplug(host),
        }
        let now = Instant::now();
        let mut at = 0;
        while let Some(head) = plug.received.get(at..at + LENGTH) {
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if length > LONGEST_FRAME {
                return self.unplug(host);
            }
            let Some(frame) = plug.received.get(at + LENGTH..at + LENGTH + length) else { break };
            let passed = self.switch.receive(now, host, frame.into());
            if passed && let Some(capture) = &mut self.capture {
                // The flush at the end of the round notices a broken file too.
                let _ = capture.add(frame, SystemTime::now());
            }
            at += LENGTH + length;
        }
        plug.received.drain(..at);
    }

    fn unplug(&mut self, host: usize) {
        self.plugs.remove(&host);
        self.switch.plug(host, false);
    }

    fn queue(&mut self, host: usize, frame: Frame) {
        let Some(plug) = self.plugs.get_mut(&host) else { return };
        if plug.waiting_bytes + frame.len() > QUEUE_BYTES {
            return self.switch.count_full(host);
        }
        plug.waiting_bytes += frame.len();
        plug.waiting.push_back(frame);
    }

    fn write_out(&mut self) {
        let hosts: Vec<usize> = self.plugs.iter().filter(|(_, plug)| !plug.waiting.is_empty()).map(|(&host, _)| host).collect();
        for host in hosts {
            if self.plugs.get_mut(&host).is_some_and(|plug| plug.write_out().is_err()) {
                self.unplug(host);
            }
        }
    }
}

impl Plug {
    /// Writes as much as the host takes now.
    fn write_out(&mut self) -> io::Result<()> {
        while let Some(frame) = self.waiting.front() {
            let length = (frame.len() as u32).to_be_bytes();
            let head = length.get(self.written..).unwrap_or_default();
            let body = &frame[self.written.saturating_sub(LENGTH)..];
            let parts = [io::IoSlice::new(head), io::IoSlice::new(body)];
            match self.socket.write_vectored(&parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if is_temporary(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.written == LENGTH + frame.len() {
                self.waiting_bytes -= frame.len();
                self.written = 0;
                self.waiting.pop_front();
            }
        }
        Ok(())
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn poll_entry(fd: RawFd, writable: bool) -> libc::pollfd {
    libc::pollfd { fd, events: if writable { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN }, revents: 0 }
}

/// Waits until something happens on the descriptors or `until` has come.
fn wait(entries: &mut [libc::pollfd], until: Option<Instant>) {
    let timeout = until.map(|until| {
        let rest = until.saturating_duration_since(Instant::now());
        libc::timespec { tv_sec: rest.as_secs() as libc::time_t, tv_nsec: libc::c_long::from(rest.subsec_nanos() as i32) }
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the entries and the time live through the call; no signal mask is given. An interrupted wait leaves all
    // `revents` at zero, which the caller takes for "nothing happened".
    unsafe { libc::ppoll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout, std::ptr::null()) };
}
