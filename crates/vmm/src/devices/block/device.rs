//! The device: its configuration, its life cycle, and the way to its queues' threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disk::{Disk, Engine, EngineError, IoError, MAX_DEPTH, ResizeError};
use prost::Message;
use virtio_queue::{Queue, QueueT};

use super::config::{self, feature};
use super::counters::Counters;
use super::state::{BlockState, HeldRequests};
use super::thread::{QueueThread, Setup, WriteMode};
use crate::virtio::{ActivateError, Activation, DeviceType, Interrupt, RestoreError, VirtioDevice};

/// What to do when the storage fails a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorPolicy {
    /// Tell the guest.
    Report,
    /// Keep the request and tell the monitor, which pauses the VM; the request is tried again on resume. Without a
    /// [`Listener`] nobody would, and it is reported.
    Pause,
}

/// A request that failed in the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFailure {
    /// The queue it came from.
    pub queue: u16,
    /// Why.
    pub error: IoError,
    /// What was done about it: with `Pause`, the VM should be paused now.
    pub policy: ErrorPolicy,
}

/// Hears of failures, on a queue's thread: it must only note them for another thread.
pub type Listener = Arc<dyn Fn(IoFailure) + Send + Sync>;

/// What a block device is made of.
pub struct BlockConfig {
    /// The disk.
    pub disk: Disk,
    /// Names the threads: at most 10 bytes are useful.
    pub name: String,
    /// How many queues: usually one for each vCPU.
    pub queues: u16,
    /// The largest size of each, a power of two up to [`MAX_DEPTH`].
    pub queue_size: u16,
    /// The serial number, of which 20 bytes are used (virtio 1.2 §5.2.6).
    pub serial: String,
    /// What to do when the storage is full.
    pub on_no_space: ErrorPolicy,
    /// What to do when it fails in any other way.
    pub on_error: ErrorPolicy,
    /// Who hears of failures.
    pub listener: Option<Listener>,
}

impl BlockConfig {
    /// One queue of 256, paused when the storage is full if there is a listener.
    pub fn new(disk: Disk, name: impl Into<String>) -> BlockConfig {
        BlockConfig {
            disk,
            name: name.into(),
            queues: 1,
            queue_size: 256,
            serial: String::new(),
            on_no_space: ErrorPolicy::Pause,
            on_error: ErrorPolicy::Report,
            listener: None,
        }
    }
}

/// Why a block device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// No queues, or more than make sense.
    #[error("block device {name}: {queues} queues; choose 1 to 256")]
    Queues {
        /// The device.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// Not a size for a queue.
    #[error("block device {name}: queues of {size}; choose a power of two from 2 to {MAX_DEPTH}")]
    QueueSize {
        /// The device.
        name: String,
        /// What was asked for.
        size: u16,
    },
    /// There is no io_uring here.
    #[error("block device {name}: {source}")]
    Engine {
        /// The device.
        name: String,
        /// Why.
        source: EngineError,
    },
}

/// What the device shares with its queues' threads.
pub(super) struct Shared {
    pub disk: Disk,
    pub serial: [u8; 20],
    pub counters: Counters,
    /// The driver's choice, if it may choose (`CONFIG_WCE`): data may stay in a cache until it flushes.
    pub writeback: AtomicBool,
    pub on_no_space: ErrorPolicy,
    pub on_error: ErrorPolicy,
    pub listener: Option<Listener>,
}

/// A virtio block device.
pub struct Block {
    name: String,
    queues: u16,
    queue_size: u16,
    shared: Arc<Shared>,
    threads: Vec<QueueThread>,
    interrupt: Option<Arc<dyn Interrupt>>,
    /// By queue: chains that were taken and wait to be tried again.
    held: Vec<Vec<u16>>,
}

impl Block {
    /// Makes a device, idle.
    pub fn new(config: BlockConfig) -> Result<Block, BlockError> {
        let BlockConfig { disk, name, queues, queue_size, serial, on_no_space, on_error, listener } = config;
        if !(1..=256).contains(&queues) {
            return Err(BlockError::Queues { name, queues });
        }
        if !queue_size.is_power_of_two() || !(2..=MAX_DEPTH).contains(&queue_size) {
            return Err(BlockError::QueueSize { name, size: queue_size });
        }
        if let Err(source) = Engine::probe() {
            return Err(BlockError::Engine { name, source });
        }
        let mut id = [0; 20];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let shared = Shared {
            disk,
            serial: id,
            counters: Counters::new(queues),
            writeback: AtomicBool::new(true),
            on_no_space,
            on_error,
            listener,
        };
        let held = vec![Vec::new(); usize::from(queues)];
        Ok(Block { name, queues, queue_size, shared: Arc::new(shared), threads: Vec::new(), interrupt: None, held })
    }

    /// The disk: for its lock, which moves hand over.
    pub fn disk(&self) -> &Disk {
        &self.shared.disk
    }

    /// Puts a disk that reads the same in the place of the one that there was, which is returned. The device is paused, and the new disk is as
    /// large as the old one.
    pub fn replace_disk(&mut self, disk: Disk) -> Disk {
        let shared = Arc::get_mut(&mut self.shared).expect("only threads of queues share it, and a paused device has none");
        std::mem::replace(&mut shared.disk, disk)
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.shared.counters.clone()
    }

    /// Grows the disk to `bytes` and tells the driver, also while it is in use.
    pub fn set_capacity(&mut self, bytes: u64) -> Result<(), ResizeError> {
        self.shared.disk.resize(bytes)?;
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_changed();
        }
        Ok(())
    }

    fn write_mode(activation: &Activation) -> WriteMode {
        // §5.2.6.2: the driver's choice; otherwise a cache exactly if the driver can flush it.
        if activation.has_feature(feature::CONFIG_WCE) {
            WriteMode::Configured
        } else if activation.has_feature(feature::FLUSH) {
            WriteMode::Back
        } else {
            WriteMode::Through
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; usize::from(self.queues)]
    }

    fn device_features(&self) -> u64 {
        config::features(&self.shared.disk, self.queues)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let writeback = self.shared.writeback.load(Ordering::Relaxed);
        config::Space { disk: &self.shared.disk, queues: self.queues, queue_size: self.queue_size, writeback }.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Some(writeback) = config::written_writeback(offset, data) {
            self.shared.writeback.store(writeback, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.quiesce();
        if activation.queues.is_empty() {
            return Err(ActivateError::MissingQueue(0));
        }
        let write_mode = Block::write_mode(&activation);
        let event_idx = activation.has_feature(virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX);
        for active in activation.queues {
            let index = active.index;
            let mut queue = active.queue;
            if index >= self.queues || queue.size() > MAX_DEPTH || !queue.is_valid(&*activation.memory) {
                self.quiesce();
                return Err(ActivateError::InvalidQueue(index));
            }
            queue.set_event_idx(event_idx);
            let setup = Setup {
                index,
                queue,
                kick: active.kick,
                memory: activation.memory.clone(),
                interrupt: activation.interrupt.clone(),
                shared: self.shared.clone(),
                write_mode,
                held: self.held[usize::from(index)].clone(),
            };
            match QueueThread::spawn(format!("{}-q{index}", self.name), setup) {
                Ok(thread) => {
                    // It has them now, and gives back what is left of them.
                    self.held[usize::from(index)].clear();
                    self.threads.push(thread);
                }
                Err(source) => {
                    self.quiesce();
                    return Err(ActivateError::Host {
                        what: format!("starting queue {index} of block device {}", self.name),
                        source,
                    });
                }
            }
        }
        self.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        self.interrupt = None;
        // All are told first, so that they finish side by side.
        self.threads.iter().for_each(QueueThread::tell_to_stop);
        let mut queues: Vec<(u16, Queue)> = Vec::with_capacity(self.threads.len());
        for thread in self.threads.drain(..) {
            if let Some((index, queue, held)) = thread.join() {
                self.held[usize::from(index)] = held;
                queues.push((index, queue));
            }
        }
        queues.sort_by_key(|(index, _)| *index);
        // A paused VM may be saved, and go on in another process.
        if !queues.is_empty()
            && let Err(error) = self.shared.disk.settle()
            && let Some(listener) = &self.shared.listener
        {
            listener(IoFailure { queue: 0, error, policy: ErrorPolicy::Report });
        }
        queues
    }

    fn reset(&mut self) {
        self.held.iter_mut().for_each(Vec::clear);
        self.shared.writeback.store(true, Ordering::Relaxed);
    }

    fn save(&self) -> Vec<u8> {
        let held = (0u32..).zip(&self.held).filter(|(_, heads)| !heads.is_empty());
        let held = held.map(|(queue, heads)| HeldRequests { queue, heads: heads.iter().map(|head| u32::from(*head)).collect() });
        BlockState {
            capacity_bytes: self.shared.disk.capacity(),
            sector_bytes: self.shared.disk.sector_size().bytes(),
            writeback: self.shared.writeback.load(Ordering::Relaxed),
            held: held.collect(),
        }
        .encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state = BlockState::decode_for(state, &self.shared.disk, self.queues)?;
        self.reset();
        self.shared.writeback.store(state.writeback, Ordering::Relaxed);
        for held in state.held {
            // Both were checked when decoded.
            self.held[held.queue as usize] = held.heads.iter().map(|head| *head as u16).collect();
        }
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.quiesce();
    }
}

/// An engine's error where the device interface wants one of the system.
pub(super) fn as_io_error(error: EngineError) -> io::Error {
    io::Error::other(error)
}
