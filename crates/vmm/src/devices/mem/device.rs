//! The memory device and the handle that the monitor has on it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use prost::Message;
use virtio_queue::Queue;

use super::blocks::Blocks;
use super::config::{MemConfig, MemConfigError};
use super::queue::{MemQueue, Response, unplug_all};
use super::state::MemState;
use crate::devices::ring::{ConfigSignal, IdleQueues, read_config, take_rings};
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, DeviceType, GuestMemory, RestoreError, VirtioDevice};

/// The driver must not touch unplugged memory (`VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`).
const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

const QUEUE_SIZE: u16 = 128;

/// What device, worker and handle have in common.
pub(super) struct Shared {
    pub config: MemConfig,
    state: Mutex<State>,
    signal: ConfigSignal,
}

/// What changes.
pub(super) struct State {
    pub blocks: Blocks,
    pub requested_size: u64,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("memory device lock")
    }

    /// The guest addresses of blocks.
    pub fn bytes(&self, blocks: Range<u64>) -> Range<u64> {
        let at = |block| self.config.address + block * self.config.block_size;
        at(blocks.start)..at(blocks.end)
    }
}

/// A memory device.
pub struct Mem {
    shared: Arc<Shared>,
    active: Option<(Worker<MemQueue>, IdleQueues)>,
}

/// The monitor's hand on a memory device. Clones are the same device.
#[derive(Clone)]
pub struct MemHandle {
    shared: Arc<Shared>,
}

/// Why a size cannot be requested.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(transparent)]
pub struct RequestedSizeError(#[from] MemConfigError);

impl Mem {
    /// A memory device with everything unplugged. Guest memory must have the whole region, in one piece or several.
    pub fn new(config: MemConfig) -> Result<Mem, MemConfigError> {
        config.check()?;
        let blocks = Blocks::new(config.region_size / config.block_size);
        let state = Mutex::new(State { blocks, requested_size: config.requested_size });
        Ok(Mem { shared: Arc::new(Shared { config, state, signal: ConfigSignal::default() }), active: None })
    }

    /// A handle to add and take memory.
    pub fn handle(&self) -> MemHandle {
        MemHandle { shared: self.shared.clone() }
    }
}

impl MemHandle {
    /// Asks the guest to have this many bytes plugged. It plugs and unplugs in its own time, and may keep more than is asked for.
    pub fn set_requested_size(&self, bytes: u64) -> Result<(), RequestedSizeError> {
        MemConfig { requested_size: bytes, ..self.shared.config }.check()?;
        let changed = std::mem::replace(&mut self.shared.state().requested_size, bytes) != bytes;
        if changed {
            self.shared.signal.changed();
        }
        Ok(())
    }

    /// What the guest is asked to have plugged, in bytes.
    pub fn requested_size(&self) -> u64 {
        self.shared.state().requested_size
    }

    /// What the guest has plugged, in bytes.
    pub fn plugged_size(&self) -> u64 {
        self.shared.state().blocks.plugged() * self.shared.config.block_size
    }

    /// The guest addresses of plugged memory, in ascending order: nothing else of the region has content that matters.
    pub fn plugged_ranges(&self) -> Vec<Range<u64>> {
        let ranges = self.shared.state().blocks.plugged_ranges();
        ranges.into_iter().map(|blocks| self.shared.bytes(blocks)).collect()
    }

    /// Unplugs everything, as a reset of the whole VM should while no vCPU runs (§5.15.6.2); a reset of the device alone must not
    /// (§5.15.5.2), since a crash kernel resets it to read what is plugged. Returns whether all memory went back to the host; if not,
    /// the driver finds it plugged and unplugs it itself.
    pub fn system_reset(&self, memory: &GuestMemory) -> bool {
        unplug_all(&self.shared, &mut self.shared.state(), memory) == Response::Ack
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Mem
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn device_features(&self) -> u64 {
        FEATURE_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let MemConfig { address, region_size, block_size, .. } = self.shared.config;
        let (plugged, requested) = {
            let state = self.shared.state();
            (state.blocks.plugged() * block_size, state.requested_size)
        };
        // The second field is the NUMA node, which has no meaning here. All of the region is always usable.
        let fields = [block_size, 0, address, region_size, region_size, plugged, requested];
        let mut space = [0; 56];
        for (bytes, field) in space.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        read_config(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = activation.interrupt.clone();
        let (mut rings, idle) = take_rings(activation, &[0])?;
        let queue = MemQueue { ring: rings.remove(0), shared: self.shared.clone() };
        let worker = Worker::spawn(ThreadKind::Misc, "mem".into(), queue)
            .map_err(|source| ActivateError::Host { what: "the memory device's thread could not be started".into(), source })?;
        self.active = Some((worker, idle));
        self.shared.signal.attach(interrupt);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        self.shared.signal.detach();
        let Some((worker, mut queues)) = self.active.take() else { return Vec::new() };
        queues.extend(worker.stop().map(|queue| queue.ring.into_queue()));
        queues.sort_by_key(|(index, _)| *index);
        queues
    }

    fn save(&self) -> Vec<u8> {
        let state = self.shared.state();
        MemState::new(&self.shared.config, state.requested_size, &state.blocks).encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved = MemState::decode(state)
            .map_err(|error| RestoreError::Malformed { device: "memory device", reason: error.to_string() })?;
        let blocks = saved.blocks(&self.shared.config)?;
        *self.shared.state() = State { blocks, requested_size: saved.requested_size };
        Ok(())
    }
}
