//! The entropy device.

use prost::Message;
use virtio_queue::Queue;

use super::queue::RngQueue;
use super::state::RngState;
use crate::devices::ring::{IdleQueues, take_rings};
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, DeviceType, RestoreError, VirtioDevice};

const QUEUE_SIZE: u16 = 256;

/// A source of random bytes.
#[derive(Default)]
pub struct Rng {
    active: Option<(Worker<RngQueue>, IdleQueues)>,
}

impl Rng {
    /// An entropy device.
    pub fn new() -> Rng {
        Rng::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (mut rings, idle) = take_rings(activation, &[0])?;
        let host = |source| ActivateError::Host { what: "the entropy device's thread could not be started".into(), source };
        let queue = RngQueue::new(rings.remove(0)).map_err(host)?;
        let worker = Worker::spawn(ThreadKind::Misc, "rng".into(), queue).map_err(host)?;
        self.active = Some((worker, idle));
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        let Some((worker, mut queues)) = self.active.take() else { return Vec::new() };
        queues.extend(worker.stop().map(|queue| queue.into_ring().into_queue()));
        queues.sort_by_key(|(index, _)| *index);
        queues
    }

    fn save(&self) -> Vec<u8> {
        RngState {}.encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        RngState::decode(state)
            .map(|_| ())
            .map_err(|error| RestoreError::Malformed { device: "entropy device", reason: error.to_string() })
    }
}
