//! The thread that fills the guest's buffers.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use virtio_queue::Writer;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::budget::Budget;
use crate::devices::ring::{Chain, Ring};
use crate::virtio::worker::{Handler, Sources};

/// Bytes for one request at most; a driver that wants more asks again (§5.4.6.1 lets the device give less).
pub(super) const REQUEST_BYTES: usize = 64 * 1024;

/// What a request costs at least, so that empty ones are limited too.
const REQUEST_COST: u64 = 64;

/// How long a guest waits that has used up its budget.
const REFILL: Duration = Duration::from_millis(10);

const QUEUE: u64 = 0;
const TIMER: u64 = 1;

pub(super) struct RngQueue {
    ring: Ring,
    source: Source,
    timer: TimerFd,
}

struct Source {
    budget: Budget,
    /// The host's kernel has gathered enough entropy since it started; from then on it never makes anyone wait.
    seeded: bool,
    buffer: Vec<u8>,
}

impl RngQueue {
    pub fn new(ring: Ring) -> io::Result<RngQueue> {
        let timer = TimerFd::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let source = Source { budget: Budget::new(Instant::now()), seeded: false, buffer: vec![0; REQUEST_BYTES] };
        Ok(RngQueue { ring, source, timer })
    }

    pub fn into_ring(self) -> Ring {
        self.ring
    }

    fn serve(&mut self) {
        self.source.budget.fill(Instant::now());
        self.source.seeded = self.source.seeded || fill_random(&mut [0]).is_ok();
        self.ring.serve(&mut self.source, Source::ready, |source, chain| source.answer(chain));
        if !self.source.ready() {
            // Cannot fail with these arguments; if it did, the next kick would serve the guest.
            let _ = self.timer.reset(REFILL, None);
        }
    }
}

impl Source {
    fn ready(&self) -> bool {
        self.seeded && self.budget.bytes() > 0
    }

    fn answer(&mut self, chain: Chain) -> u32 {
        let memory = chain.memory();
        let written = match Writer::new(memory, chain.clone()) {
            Ok(mut writer) => {
                let length = writer.available_bytes().min(REQUEST_BYTES).min(self.budget.bytes() as usize);
                let buffer = &mut self.buffer[..length];
                match fill_random(buffer) {
                    Ok(()) => writer.write_all(buffer).map_or(0, |()| length),
                    Err(_) => 0,
                }
            }
            // A buffer that is not in guest memory gets nothing.
            Err(_) => 0,
        };
        // What one guest got stays in no one's memory.
        self.buffer[..written].fill(0);
        self.budget.take((written as u64).max(REQUEST_COST));
        written as u32
    }
}

/// Fills `buffer` from the kernel's generator without ever waiting for it.
fn fill_random(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        // SAFETY: the pointer and length are those of a valid, exclusively borrowed buffer.
        let count = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), libc::GRND_NONBLOCK) };
        match usize::try_from(count) {
            Ok(count) => buffer = &mut buffer[count..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Handler for RngQueue {
    fn start(&mut self, sources: &Sources) {
        self.ring.listen(sources, QUEUE);
        // Without its timer the device would still serve each kick.
        let _ = sources.add(self.timer.as_raw_fd(), TIMER, EventSet::IN);
        self.serve();
    }

    fn ready(&mut self, token: u64, _events: EventSet, _sources: &Sources) {
        match token {
            QUEUE => self.ring.clear_kick(),
            _ => {
                // The worker saw it expire: this does not wait.
                let _ = self.timer.wait();
            }
        }
        self.serve();
    }
}
