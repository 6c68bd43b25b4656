//! The thread that serves the balloon's queues.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, Reader};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;

use super::device::Shared;
use super::discard::discard;
use super::pages::BALLOON_PAGE;
use crate::devices::ring::{Chain, Ring};
use crate::virtio::GuestMemory;
use crate::virtio::worker::{Handler, Sources};

/// Page numbers in one request; Linux sends 256. What is beyond is ignored and counted.
pub(super) const REQUEST_PAGES: usize = 16 * 1024;

/// Ranges in one report; Linux sends 32.
const REPORT_RANGES: usize = 1024;

/// A request may take some milliseconds: only a few in a row keep the device easy to stop.
const BATCH: usize = 4;

const INFLATE: u64 = 0;
const DEFLATE: u64 = 1;
const STATS: u64 = 2;
const REPORTING: u64 = 3;
const STATS_WANTED: u64 = 4;

pub(super) struct BalloonQueues {
    pub inflate: Ring,
    pub deflate: Ring,
    pub stats: Option<Ring>,
    pub reporting: Option<Ring>,
    /// The driver told the pattern of its free pages, if it has one.
    pub poison_negotiated: bool,
    /// The buffer of statistics that the device keeps until it wants new ones.
    pub held_stats: Option<u16>,
    pub shared: Arc<Shared>,
}

impl BalloonQueues {
    pub fn into_queues(mut self) -> Vec<(u16, Queue)> {
        if let (Some(stats), Some(_)) = (&mut self.stats, self.held_stats) {
            // The buffer in hand is always the last one taken.
            stats.undo_pop();
        }
        let rings = [Some(self.inflate), Some(self.deflate), self.stats, self.reporting];
        rings.into_iter().flatten().map(Ring::into_queue).collect()
    }

    fn serve(&mut self, token: u64) {
        match token {
            INFLATE => self.inflate.serve(&mut self.shared, |_| true, |shared, chain| inflate(shared, &chain)),
            DEFLATE => self.deflate.serve(&mut self.shared, |_| true, |shared, chain| deflate(shared, &chain)),
            STATS => self.take_stats(),
            REPORTING => self.take_reports(),
            _ => self.return_stats(),
        }
    }

    fn take_stats(&mut self) {
        let Some(ring) = &mut self.stats else { return };
        for _ in 0..BATCH {
            let Some(chain) = ring.pop() else { break };
            // A driver has one buffer only. If it has more, the newest counts.
            if let Some(head) = self.held_stats.replace(chain.head_index()) {
                ring.complete(head, 0);
                ring.notify();
            }
            if let Ok(reader) = Reader::new(chain.memory(), chain.clone()) {
                self.shared.stats().update(reader);
            }
        }
        if ring.rearm() {
            ring.kick_again();
        }
    }

    /// Gives the buffer of statistics back: that asks the driver for new ones (§5.5.6.3).
    fn return_stats(&mut self) {
        if let (Some(ring), Some(head)) = (&mut self.stats, self.held_stats.take()) {
            ring.complete(head, 0);
            ring.notify();
        }
    }

    fn take_reports(&mut self) {
        let Some(ring) = &mut self.reporting else { return };
        let poison_negotiated = self.poison_negotiated;
        ring.serve(
            &mut self.shared,
            |_| true,
            |shared, chain| {
                // A page that is filled with a pattern must keep it (§5.5.6.5): discarded it would read as zero.
                if !poison_negotiated || shared.poison.load(Ordering::Relaxed) == 0 {
                    report(shared, &chain);
                }
                0
            },
        );
    }
}

/// Reads the page numbers of a request.
fn page_numbers(shared: &Shared, chain: &Chain) -> Vec<u64> {
    let Ok(mut reader) = Reader::new(chain.memory(), chain.clone()) else { return Vec::new() };
    let pages = (reader.available_bytes() / 4).min(REQUEST_PAGES);
    let mut bytes = vec![0; pages * 4];
    if reader.read_exact(&mut bytes).is_err() {
        return Vec::new();
    }
    shared.ignored.fetch_add(reader.available_bytes() as u64 / 4, Ordering::Relaxed);
    bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number).into()).collect()
}

/// Whether a guest may give a range away.
fn is_discardable(shared: &Shared, memory: &GuestMemory, address: u64, length: u64) -> bool {
    let Some(last) = address.checked_add(length).and_then(|end| end.checked_sub(1)) else { return false };
    let protected = shared.config.protected.iter().any(|range| address < range.end && range.start <= last);
    !protected && GuestMemoryBackend::check_range(memory, GuestAddress(address), length as usize)
}

fn inflate(shared: &Shared, chain: &Chain) -> u32 {
    let memory = chain.memory();
    let page_size = shared.config.page_size;
    let mut ignored = 0;
    let mut host_pages = BTreeSet::new();
    let mut pages = shared.pages();
    for page in page_numbers(shared, chain) {
        let address = page * BALLOON_PAGE;
        if !is_discardable(shared, memory, address, BALLOON_PAGE) || !pages.insert(page) {
            ignored += 1;
        } else if page_size <= BALLOON_PAGE || pages.contains_host_page(page, page_size) {
            host_pages.insert(address / page_size.max(BALLOON_PAGE));
        }
    }
    drop(pages);
    shared.ignored.fetch_add(ignored, Ordering::Relaxed);

    // Neighbours in one go: a driver mostly gives whole runs.
    let page_size = page_size.max(BALLOON_PAGE);
    let mut run: Option<(u64, u64)> = None;
    for page in host_pages {
        run = match run {
            Some((first, count)) if first + count == page => Some((first, count + 1)),
            other => {
                discard_run(shared, memory, other, page_size);
                Some((page, 1))
            }
        };
    }
    discard_run(shared, memory, run, page_size);
    0
}

fn discard_run(shared: &Shared, memory: &GuestMemory, run: Option<(u64, u64)>, page_size: u64) {
    if let Some((first, count)) = run {
        discard_counted(shared, memory, first * page_size, count * page_size);
    }
}

fn discard_counted(shared: &Shared, memory: &GuestMemory, address: u64, length: u64) {
    match discard(memory, address, length, shared.config.page_size) {
        Ok(bytes) => shared.discarded.fetch_add(bytes, Ordering::Relaxed),
        // The guest sees no difference: its pages merely stay with it.
        Err(_) => shared.failed.fetch_add(1, Ordering::Relaxed),
    };
}

fn deflate(shared: &Shared, chain: &Chain) -> u32 {
    let mut pages = shared.pages();
    // Pages that are not in are no error: what was in the balloon is not known any more after a restore.
    for page in page_numbers(shared, chain) {
        pages.remove(page);
    }
    0
}

fn report(shared: &Shared, chain: &Chain) {
    let memory = chain.memory();
    let mut ranges = chain.clone().writable();
    for range in ranges.by_ref().take(REPORT_RANGES) {
        let (address, length) = (range.addr().raw_value(), u64::from(range.len()));
        if is_discardable(shared, memory, address, length) {
            discard_counted(shared, memory, address, length);
        } else {
            shared.ignored.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Handler for BalloonQueues {
    fn start(&mut self, sources: &Sources) {
        self.inflate.set_batch(BATCH);
        self.reporting.iter_mut().for_each(|ring| ring.set_batch(BATCH));
        self.inflate.listen(sources, INFLATE);
        self.deflate.listen(sources, DEFLATE);
        self.stats.iter_mut().for_each(|ring| ring.listen(sources, STATS));
        self.reporting.iter_mut().for_each(|ring| ring.listen(sources, REPORTING));
        // The descriptor is ours and valid. Without it there would be no new statistics, and nothing else would be missing.
        let _ = sources.add(self.shared.stats_wanted.as_raw_fd(), STATS_WANTED, EventSet::IN);
        for token in [INFLATE, DEFLATE, STATS, REPORTING] {
            self.serve(token);
        }
    }

    fn ready(&mut self, token: u64, _events: EventSet, _sources: &Sources) {
        match (token, &self.stats, &self.reporting) {
            (INFLATE, ..) => self.inflate.clear_kick(),
            (DEFLATE, ..) => self.deflate.clear_kick(),
            (STATS, Some(ring), _) | (REPORTING, _, Some(ring)) => ring.clear_kick(),
            _ => {
                let _ = self.shared.stats_wanted.read();
            }
        }
        self.serve(token);
    }
}
