//! The host's side of a console, whichever device the guest sees: what it prints and what is typed.
//!
//! [`ConsoleOutput`] takes the guest's bytes and never waits: it keeps the last 64 KiB, and each attached descriptor gets them
//! from a thread of its own. A reader that is too slow loses the oldest bytes, and their number is counted. [`InputPump`] carries
//! what is typed to a [`ConsoleInput`] as fast as the guest takes it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sandbox::{ThreadKind, confine_thread};

/// Bytes of output that are kept.
pub const SCROLL_BACK_BYTES: usize = 64 * 1024;

/// Bytes of input that a console keeps until the guest takes them.
pub const PENDING_INPUT_BYTES: usize = 64 * 1024;

/// One write to a descriptor: what a pipe takes at once when `poll` says that it is writable.
const CHUNK_BYTES: usize = 4096;

/// The pause after each write to a descriptor. A serial port prints byte by byte: this turns a line into few writes and spares
/// the vCPU from waking a thread for each byte, at a delay that nobody sees.
const COALESCE: Duration = Duration::from_millis(1);

/// How long to wait before offering input again to a guest that did not take all.
const RETRY_MS: i32 = 20;

/// A console that takes input.
pub trait ConsoleInput: Send + Sync {
    /// Offers typed bytes; returns how many were taken. The rest may be offered again later. Never blocks for long.
    fn enqueue(&self, bytes: &[u8]) -> usize;
}

/// Where an attached descriptor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// With the oldest byte that is kept.
    ScrollBack,
    /// With what the guest prints from now on.
    Now,
}

/// What the guest prints. Clones are the same output.
#[derive(Clone)]
pub struct ConsoleOutput {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Mutex<Ring>,
    grown: Condvar,
}

struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes ever written; the position right after the last byte of `bytes`.
    end: u64,
}

impl Ring {
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    fn copy(&self, position: u64, limit: usize) -> Vec<u8> {
        let skip = position.saturating_sub(self.start()) as usize;
        self.bytes.iter().skip(skip).take(limit).copied().collect()
    }
}

impl Default for ConsoleOutput {
    fn default() -> Self {
        ConsoleOutput::new()
    }
}

impl ConsoleOutput {
    /// An output that nobody reads yet.
    pub fn new() -> ConsoleOutput {
        let ring = Ring { bytes: VecDeque::with_capacity(SCROLL_BACK_BYTES), end: 0 };
        ConsoleOutput { shared: Arc::new(Shared { ring: Mutex::new(ring), grown: Condvar::new() }) }
    }

    /// Takes bytes from the guest. Never waits for a reader.
    pub fn put(&self, bytes: &[u8]) {
        let mut ring = self.lock();
        ring.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(SCROLL_BACK_BYTES)..];
        let excess = (ring.bytes.len() + kept.len()).saturating_sub(SCROLL_BACK_BYTES);
        ring.bytes.drain(..excess);
        ring.bytes.extend(kept);
        drop(ring);
        self.shared.grown.notify_all();
    }

    /// The last bytes that the guest printed, and the position of the first of them: bytes ever printed before it.
    pub fn scroll_back(&self) -> (u64, Vec<u8>) {
        let ring = self.lock();
        (ring.start(), ring.copy(0, SCROLL_BACK_BYTES))
    }

    /// Bytes ever printed.
    pub fn total_bytes(&self) -> u64 {
        self.lock().end
    }

    /// Also writes to `fd` (a terminal, pipe, socket or file), on a thread of its own, until the attachment is dropped or the
    /// reader goes away.
    pub fn attach(&self, fd: OwnedFd, start: StartAt) -> io::Result<Attachment> {
        let position = match start {
            StartAt::ScrollBack => self.scroll_back().0,
            StartAt::Now => self.total_bytes(),
        };
        let state = Arc::new(AttachmentState {
            lost: AtomicU64::new(0),
            written: AtomicU64::new(position),
            open: AtomicBool::new(true),
            stop: AtomicBool::new(false),
        });
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let mut writer =
            Writer { output: self.clone(), file: File::from(fd), position, state: state.clone(), stop: stop.try_clone()? };
        std::thread::Builder::new().name("console-out".into()).stack_size(STACK_BYTES).spawn(move || {
            confine_thread(ThreadKind::Misc);
            writer.run();
            writer.state.open.store(false, Ordering::Release);
            drop(writer.output.lock());
            writer.output.shared.grown.notify_all();
        })?;
        Ok(Attachment { output: self.clone(), state, stop })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.shared.ring.lock().expect("console output lock")
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A descriptor that gets the output. Dropping it ends that; a write to a terminal that is just going on may still end later.
pub struct Attachment {
    output: ConsoleOutput,
    state: Arc<AttachmentState>,
    stop: EventFd,
}

struct AttachmentState {
    lost: AtomicU64,
    /// Position up to which everything is written or lost.
    written: AtomicU64,
    open: AtomicBool,
    stop: AtomicBool,
}

impl Attachment {
    /// Bytes that the reader missed because it was too slow.
    pub fn lost_bytes(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// Waits until the reader has everything that was printed up to now, is gone, or `limit` has passed.
    pub fn finish(self, limit: Duration) {
        let ring = self.output.lock();
        let end = ring.end;
        let behind = |_: &mut Ring| self.is_open() && self.state.written.load(Ordering::Acquire) < end;
        drop(self.output.shared.grown.wait_timeout_while(ring, limit, behind).expect("console output lock"));
    }

    /// Whether the reader is still there.
    pub fn is_open(&self) -> bool {
        self.state.open.load(Ordering::Acquire)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Under the ring's lock, so that the writer cannot check and fall asleep in between.
        let ring = self.output.lock();
        self.state.stop.store(true, Ordering::Release);
        drop(ring);
        let _ = self.stop.write(1);
        self.output.shared.grown.notify_all();
    }
}

/// The thread that writes to an attached descriptor.
struct Writer {
    output: ConsoleOutput,
    file: File,
    position: u64,
    state: Arc<AttachmentState>,
    stop: EventFd,
}

impl Writer {
    fn run(&mut self) {
        loop {
            let ring = self.output.lock();
            let stopped = || self.state.stop.load(Ordering::Acquire);
            let idle = |ring: &mut Ring| ring.end == self.position && !stopped();
            drop(self.output.shared.grown.wait_while(ring, idle).expect("console output lock"));
            // What to write is looked up only when the reader is ready: it gets the newest that fits, not the oldest.
            if !wait_ready(self.file.as_raw_fd(), libc::POLLOUT, &self.stop, -1) {
                return;
            }
            let ring = self.output.lock();
            let missed = ring.start().saturating_sub(self.position);
            self.position += missed;
            let chunk = ring.copy(self.position, CHUNK_BYTES);
            drop(ring);
            self.state.lost.fetch_add(missed, Ordering::Relaxed);
            match self.file.write(&chunk) {
                Ok(0) => return,
                Ok(count) => {
                    self.position += count as u64;
                    self.state.written.store(self.position, Ordering::Release);
                    drop(self.output.lock());
                    self.output.shared.grown.notify_all();
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(_) => return,
            }
            std::thread::sleep(COALESCE);
        }
    }
}

/// Waits until `fd` is ready for `events` or, if not -1, `timeout_ms` have passed. False when told to stop.
fn wait_ready(fd: RawFd, events: libc::c_short, stop: &EventFd, timeout_ms: i32) -> bool {
    let mut polled =
        [libc::pollfd { fd, events, revents: 0 }, libc::pollfd { fd: stop.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    loop {
        // SAFETY: `polled` is a valid array of two entries that lives through the call, and nothing else refers to it.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout_ms) };
        if result >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return polled[1].revents == 0;
        }
    }
}

/// Carries what is typed into a descriptor to a console, on a thread of its own, until it is dropped or the descriptor ends.
pub struct InputPump {
    stop: EventFd,
    open: Arc<AtomicBool>,
}

impl InputPump {
    /// Starts to read from `fd` (a terminal, pipe or socket).
    pub fn start(fd: OwnedFd, input: Arc<dyn ConsoleInput>) -> io::Result<InputPump> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let open = Arc::new(AtomicBool::new(true));
        let (thread_stop, thread_open) = (stop.try_clone()?, open.clone());
        std::thread::Builder::new().name("console-in".into()).stack_size(STACK_BYTES).spawn(move || {
            confine_thread(ThreadKind::Misc);
            pump(&mut File::from(fd), &*input, &thread_stop);
            thread_open.store(false, Ordering::Release);
        })?;
        Ok(InputPump { stop, open })
    }

    /// Whether there may be more to come.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

impl Drop for InputPump {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
    }
}

fn pump(file: &mut File, input: &dyn ConsoleInput, stop: &EventFd) {
    let mut buffer = [0; CHUNK_BYTES];
    while wait_ready(file.as_raw_fd(), libc::POLLIN, stop, -1) {
        let count = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => continue,
            Err(_) => return,
        };
        let mut rest = &buffer[..count];
        loop {
            rest = &rest[input.enqueue(rest).min(rest.len())..];
            if rest.is_empty() {
                break;
            }
            // The guest is behind. Not reading on makes whoever types wait; -1 is a descriptor that `poll` ignores.
            if !wait_ready(-1, 0, stop, RETRY_MS) {
                return;
            }
        }
    }
}

/// The threads here keep little on their stacks.
const STACK_BYTES: usize = 128 * 1024;
