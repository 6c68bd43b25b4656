//! What every virtio device has in common, apart from the transport.
//!
//! A device is a [`VirtioDevice`]: a description (type, features, queue sizes, configuration space) and a life cycle:
//!
//! ```text
//!            activate(queues)                    quiesce() -> queues
//!  idle ───────────────────────────▶ active ───────────────────────────▶ idle
//! ```
//!
//! *Pause*, *save*, *reset* and *remove* are all `quiesce`: the device finishes or stops what is in flight, ends its
//! worker threads and hands its queues back, each with its positions in the rings. *Resume* and *restore* are
//! `activate` with those same queues. There is no other state in between, so there is no other path to get wrong.
//!
//! # I/O model
//! Each active device runs one or more [`worker`] threads that sleep in `epoll` on the queues' kick events. The vCPU threads
//! only reach a device's configuration space; a worker never takes the lock around its own device.
//!
//! # Errors
//! Whatever a guest writes into a ring is data. A ring that cannot be followed ends in [`Interrupt::fail`]: the device
//! sets `DEVICE_NEEDS_RESET` (virtio 1.2 §2.1.2), stops working and waits for the driver to reset it.

pub mod spawner;
pub mod worker;

#[cfg(test)]
pub mod testing;

use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::bitmap::AtomicBitmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as all devices see it: every write that goes through it is noted in a bitmap of dirty pages, from which
/// live moves learn what devices changed (what vCPUs change, KVM notes itself).
pub type GuestMemory = vm_memory::GuestMemoryMmap<AtomicBitmap>;

/// Virtio device types (virtio 1.2 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum DeviceType {
    Net = 1,
    Block = 2,
    Console = 3,
    Entropy = 4,
    Balloon = 5,
    Vsock = 19,
    Mem = 24,
}

/// How a device reaches the driver: the transport behind it turns this into MSI-X messages.
///
/// All calls are cheap, never block and may come from any thread.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that the used ring of `queue` has news. The caller has already asked the queue whether the driver wants
    /// to know (`Queue::needs_notification`).
    fn used(&self, queue: u16);

    /// Tells the driver that the configuration space changed (and raises the configuration generation).
    fn config_changed(&self);

    /// The device cannot go on until the driver resets it: sets `DEVICE_NEEDS_RESET` and tells the driver. `reason` reaches
    /// the monitor's events.
    fn fail(&self, reason: String);

    /// The event that raises the interrupt of `queue` when written, for back ends in another process (vhost-user). It stays
    /// the same while the device is active.
    fn used_event(&self, queue: u16) -> Option<EventFd>;
}

/// One queue, as the driver set it up, handed to a device for the time that it is active.
pub struct ActiveQueue {
    /// The queue's index in the device.
    pub index: u16,
    /// Addresses, size, and positions in the rings.
    pub queue: Queue,
    /// Signalled when the driver made buffers available.
    pub kick: EventFd,
}

/// All that a device needs to start working.
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The features both sides agreed on.
    pub features: u64,
    /// The queues that the driver enabled, in ascending order of index; a queue it did not enable is missing.
    pub queues: Vec<ActiveQueue>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Whether the feature with this bit number was agreed on.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }
}

/// Why a device could not start working.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot do without.
    #[error("the driver did not enable queue {0}")]
    MissingQueue(u16),
    /// A queue's rings are not in guest memory.
    #[error("queue {0} is not valid: its rings are not in guest memory")]
    InvalidQueue(u16),
    /// The host refused something that the device needs.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The back end in another process refused or went away.
    #[error("back end: {0}")]
    Backend(String),
}

/// Why a device's saved state was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are not a state of this device.
    #[error("the saved state of the {device} cannot be read: {reason}")]
    Malformed {
        /// The device.
        device: &'static str,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The state fits a device that is configured in another way.
    #[error("the saved state of the {device} does not fit its configuration: {reason}")]
    Mismatch {
        /// The device.
        device: &'static str,
        /// What differs.
        reason: String,
    },
}

/// A virtio device without its transport. See the [module's page](self) for the life cycle.
pub trait VirtioDevice: Send {
    /// The device's type.
    fn device_type(&self) -> DeviceType;

    /// The largest size of each queue; their number is the number of queues. Powers of two up to 32768.
    fn queue_max_sizes(&self) -> Vec<u16>;

    /// The features offered, without those of the transport and the rings (`VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_EVENT_IDX` and
    /// `VIRTIO_RING_F_INDIRECT_DESC`, which the transport adds for devices on `virtio-queue`).
    fn device_features(&self) -> u64;

    /// Which of the ring features that the transport adds must not be offered; a back end in another process may lack some.
    fn withheld_features(&self) -> u64 {
        0
    }

    /// Reads from the device's configuration space. Bytes past its end are left as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device's configuration space. What is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Starts working on the queues. Buffers that are already available are served without waiting for a kick. On an
    /// error the device is idle again.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops working and gives the queues back, in ascending order of index. When it returns, no thread of the device
    /// touches guest memory, every request taken from a ring is in the used ring, or will be taken again by the next `activate`.
    /// An idle device returns nothing.
    fn quiesce(&mut self) -> Vec<(u16, Queue)>;

    /// Forgets what belongs to the driver, not to the configuration, after the driver reset the (already quiesced) device.
    fn reset(&mut self) {}

    /// The device's own state, as a protobuf message of its `state.rs`. Called while quiesced. Queues and features
    /// are the transport's to save.
    fn save(&self) -> Vec<u8>;

    /// Takes back what `save` returned, before `activate`.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError>;
}
