//! The balloon device and the handle that the monitor has on it.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use prost::Message;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::BalloonConfig;
use super::pages::Pages;
use super::queue::BalloonQueues;
use super::state::BalloonState;
use super::stats::BalloonStats;
use crate::devices::ring::{ConfigSignal, IdleQueues, read_config, take_rings, write_config};
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, DeviceType, RestoreError, VirtioDevice};

const FEATURE_STATS: u32 = 1;
const FEATURE_DEFLATE_ON_OOM: u32 = 2;
const FEATURE_PAGE_POISON: u32 = 4;
const FEATURE_REPORTING: u32 = 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
/// Queue 3 is that of free page hints, which are not offered.
const REPORTING: u16 = 4;

const QUEUE_SIZE: u16 = 256;

/// What device, worker and handle have in common.
pub(super) struct Shared {
    pub config: BalloonConfig,
    target: AtomicU32,
    actual: AtomicU32,
    pub poison: AtomicU32,
    pages: Mutex<Pages>,
    stats: Mutex<BalloonStats>,
    /// Signalled when new statistics are wanted.
    pub stats_wanted: EventFd,
    pub discarded: AtomicU64,
    pub ignored: AtomicU64,
    pub failed: AtomicU64,
    signal: ConfigSignal,
}

impl Shared {
    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("balloon pages lock")
    }

    pub fn stats(&self) -> MutexGuard<'_, BalloonStats> {
        self.stats.lock().expect("balloon statistics lock")
    }

    /// The configuration space: num_pages, actual, free_page_hint_cmd_id, poison_val.
    fn config_space(&self) -> [u8; 16] {
        let fields =
            [self.target.load(Ordering::Relaxed), self.actual.load(Ordering::Relaxed), 0, self.poison.load(Ordering::Relaxed)];
        let mut space = [0; 16];
        for (bytes, field) in space.chunks_exact_mut(4).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        space
    }
}

/// A memory balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    active: Option<(Worker<BalloonQueues>, IdleQueues)>,
}

/// The monitor's hand on a balloon. Clones are the same balloon.
#[derive(Clone)]
pub struct BalloonHandle {
    shared: Arc<Shared>,
}

/// What a balloon did so far. Pages are of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonInfo {
    /// Pages that the monitor wants in the balloon.
    pub target_pages: u32,
    /// Pages that the driver says are in the balloon.
    pub actual_pages: u32,
    /// Bytes given back to the host, by inflation and reports.
    pub discarded_bytes: u64,
    /// Pages and ranges in requests that were not taken: not in guest memory, protected, in the balloon already, or too many.
    pub ignored: u64,
    /// How often the host could not take memory back.
    pub failed: u64,
}

impl Balloon {
    /// An empty balloon. Fails when the process is out of descriptors.
    pub fn new(config: BalloonConfig) -> io::Result<Balloon> {
        let shared = Shared {
            config,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            pages: Mutex::default(),
            stats: Mutex::default(),
            stats_wanted: EventFd::new(EFD_NONBLOCK)?,
            discarded: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            signal: ConfigSignal::default(),
        };
        Ok(Balloon { shared: Arc::new(shared), active: None })
    }

    /// A handle for target and statistics.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle { shared: self.shared.clone() }
    }
}

impl BalloonHandle {
    /// Asks the guest to have this many pages of 4 KiB in the balloon. It gets there in its own time, if at all.
    pub fn set_target_pages(&self, pages: u32) {
        if self.shared.target.swap(pages, Ordering::Relaxed) != pages {
            self.shared.signal.changed();
        }
    }

    /// Target, actual size and counters.
    pub fn info(&self) -> BalloonInfo {
        BalloonInfo {
            target_pages: self.shared.target.load(Ordering::Relaxed),
            actual_pages: self.shared.actual.load(Ordering::Relaxed),
            discarded_bytes: self.shared.discarded.load(Ordering::Relaxed),
            ignored: self.shared.ignored.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
        }
    }

    /// Asks the driver for new statistics; [`BalloonStats::updates`] tells when they are there. A driver without them never answers.
    pub fn request_stats(&self) {
        // A full eventfd wakes just as well.
        let _ = self.shared.stats_wanted.write(1);
    }

    /// The statistics that the driver sent last, if it sent any.
    pub fn stats(&self) -> Option<BalloonStats> {
        Some(*self.shared.stats()).filter(|stats| stats.updates > 0)
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(REPORTING) + 1]
    }

    fn device_features(&self) -> u64 {
        let config = &self.shared.config;
        1 << FEATURE_STATS
            | u64::from(config.deflate_on_oom) << FEATURE_DEFLATE_ON_OOM
            | u64::from(config.reporting) << FEATURE_REPORTING
            | u64::from(config.reporting) << FEATURE_PAGE_POISON
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut space = self.shared.config_space();
        write_config(&mut space, offset, data);
        let field = |at: usize| u32::from_le_bytes([space[at], space[at + 1], space[at + 2], space[at + 3]]);
        self.shared.actual.store(field(4), Ordering::Relaxed);
        self.shared.poison.store(field(12), Ordering::Relaxed);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = activation.interrupt.clone();
        let has_stats = activation.has_feature(FEATURE_STATS);
        let poison_negotiated = activation.has_feature(FEATURE_PAGE_POISON);
        let enabled = |index: u16| activation.queues.iter().any(|queue| queue.index == index).then_some(index);
        let stats = enabled(STATS).filter(|_| has_stats);
        // Linux numbers queues without gaps: where a feature is missing, the queues behind move up.
        let reporting = if activation.has_feature(FEATURE_REPORTING) {
            enabled(REPORTING).or_else(|| enabled(STATS + u16::from(has_stats)))
        } else {
            None
        };
        let wanted: Vec<u16> = [Some(INFLATE), Some(DEFLATE), stats, reporting].into_iter().flatten().collect();
        let (rings, idle) = take_rings(activation, &wanted)?;
        let mut rings = rings.into_iter();
        let (Some(inflate), Some(deflate)) = (rings.next(), rings.next()) else {
            return Err(ActivateError::MissingQueue(INFLATE));
        };
        let queues = BalloonQueues {
            inflate,
            deflate,
            stats: stats.and_then(|_| rings.next()),
            reporting: reporting.and_then(|_| rings.next()),
            poison_negotiated,
            held_stats: None,
            shared: self.shared.clone(),
        };
        let worker = Worker::spawn(ThreadKind::Misc, "balloon".into(), queues)
            .map_err(|source| ActivateError::Host { what: "the balloon's thread could not be started".into(), source })?;
        self.active = Some((worker, idle));
        self.shared.signal.attach(interrupt);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        self.shared.signal.detach();
        let Some((worker, mut queues)) = self.active.take() else { return Vec::new() };
        queues.extend(worker.stop().into_iter().flat_map(BalloonQueues::into_queues));
        queues.sort_by_key(|(index, _)| *index);
        queues
    }

    fn reset(&mut self) {
        self.shared.actual.store(0, Ordering::Relaxed);
        self.shared.poison.store(0, Ordering::Relaxed);
        self.shared.pages().clear();
        *self.shared.stats() = BalloonStats::default();
    }

    fn save(&self) -> Vec<u8> {
        let load = |field: &AtomicU32| field.load(Ordering::Relaxed);
        let Shared { target, actual, poison, .. } = &*self.shared;
        BalloonState { target_pages: load(target), actual_pages: load(actual), poison: load(poison) }.encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state = BalloonState::decode(state)
            .map_err(|error| RestoreError::Malformed { device: "balloon", reason: error.to_string() })?;
        self.shared.target.store(state.target_pages, Ordering::Relaxed);
        self.shared.actual.store(state.actual_pages, Ordering::Relaxed);
        self.shared.poison.store(state.poison, Ordering::Relaxed);
        Ok(())
    }
}
