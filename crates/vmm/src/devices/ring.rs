//! What the virtio devices with small needs do with a queue: take chains, answer them, and never trust the driver.
//!
//! A [`Ring`] serves a bounded number of chains before it goes back to its worker's `epoll`, so that a driver that never stops
//! making buffers available cannot keep the worker from being stopped.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::worker::Sources;
use crate::virtio::{ActivateError, Activation, ActiveQueue, GuestMemory, Interrupt};

/// A chain of descriptors, as the driver made it available.
pub(super) type Chain = DescriptorChain<Arc<GuestMemory>>;

/// Queues that the driver enabled but the device does not serve.
pub(super) type IdleQueues = Vec<(u16, Queue)>;

/// Chains that are served before the worker looks at its other sources again.
const BATCH: usize = 64;

/// The device's side of one queue.
pub(super) struct Ring {
    index: u16,
    queue: Queue,
    kick: EventFd,
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
    batch: usize,
}

impl Ring {
    /// Takes over a queue, if its rings are in guest memory.
    pub fn new(active: ActiveQueue, memory: &Arc<GuestMemory>, interrupt: &Arc<dyn Interrupt>) -> Result<Ring, ActivateError> {
        let ActiveQueue { index, queue, kick } = active;
        if !queue.is_valid(&**memory) {
            return Err(ActivateError::InvalidQueue(index));
        }
        Ok(Ring { index, queue, kick, memory: memory.clone(), interrupt: interrupt.clone(), broken: false, batch: BATCH })
    }

    /// Serves at most `chains` at once, where one takes long.
    pub fn set_batch(&mut self, chains: usize) {
        self.batch = chains;
    }

    /// Listens to the queue's kick.
    pub fn listen(&mut self, sources: &Sources, token: u64) {
        if let Err(error) = sources.add(self.kick.as_raw_fd(), token, EventSet::IN) {
            self.fail(&format!("its kick cannot be listened to: {error}"));
        }
    }

    /// Takes note of a kick.
    pub fn clear_kick(&self) {
        // Fails only when another thread was faster, which is as good.
        let _ = self.kick.read();
    }

    /// Makes the worker come back to this queue after its other sources.
    pub fn kick_again(&self) {
        // A full eventfd wakes just as well.
        let _ = self.kick.write(1);
    }

    /// The next available chain. A ring that cannot be followed fails the device and is not looked at again.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.broken {
            return None;
        }
        match self.queue.iter(self.memory.clone()).map(|mut chains| chains.next()) {
            Ok(chain) => chain,
            Err(error) => {
                self.fail(&error.to_string());
                None
            }
        }
    }

    /// Takes back the last `pop`: the chain will be popped again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `length` bytes written by the device.
    pub fn complete(&mut self, head: u16, length: u32) {
        if let Err(error) = self.queue.add_used(&*self.memory, head, length) {
            self.fail(&error.to_string());
        }
    }

    /// Tells the driver about completed chains, if it wants to know.
    pub fn notify(&mut self) {
        match self.queue.needs_notification(&*self.memory) {
            Ok(true) => self.interrupt.used(self.index),
            Ok(false) => {}
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Asks the driver for a kick at the next chain; returns whether there is one already.
    pub fn rearm(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match self.queue.enable_notification(&*self.memory) {
            Ok(more) => more,
            Err(error) => {
                self.fail(&error.to_string());
                false
            }
        }
    }

    /// Serves available chains as long as `ready` says so: `answer` gets each one and returns how many bytes it wrote. After
    /// a batch the ring kicks itself and returns.
    pub fn serve<C>(&mut self, context: &mut C, ready: impl Fn(&C) -> bool, mut answer: impl FnMut(&mut C, Chain) -> u32) {
        let mut left = self.batch;
        let mut answered = false;
        while !self.broken {
            let _ = self.queue.disable_notification(&*self.memory);
            while left > 0 && ready(context) {
                let Some(chain) = self.pop() else { break };
                let head = chain.head_index();
                let length = answer(context, chain);
                self.complete(head, length);
                answered = true;
                left -= 1;
            }
            if !self.rearm() || !ready(context) {
                break;
            }
            // A chain came in between. Counting this round too bounds the loop even if nothing could be popped.
            left = left.saturating_sub(1);
            if left == 0 {
                self.kick_again();
                break;
            }
        }
        if answered {
            self.notify();
        }
    }

    /// Gives the queue back.
    pub fn into_queue(self) -> (u16, Queue) {
        (self.index, self.queue)
    }

    fn fail(&mut self, reason: &str) {
        if !self.broken {
            self.broken = true;
            self.interrupt.fail(format!("queue {}: {reason}", self.index));
        }
    }
}

/// Takes over the queues `wanted` of an activation, in this order. What else the driver enabled is
/// returned as it is, for `quiesce` to give back.
pub(super) fn take_rings(activation: Activation, wanted: &[u16]) -> Result<(Vec<Ring>, IdleQueues), ActivateError> {
    let Activation { memory, queues, interrupt, .. } = activation;
    let mut rings = Vec::with_capacity(wanted.len());
    let mut idle = Vec::new();
    for active in queues {
        if wanted.contains(&active.index) {
            rings.push(Ring::new(active, &memory, &interrupt)?);
        } else {
            idle.push((active.index, active.queue));
        }
    }
    for index in wanted {
        if !rings.iter().any(|ring| ring.index == *index) {
            return Err(ActivateError::MissingQueue(*index));
        }
    }
    rings.sort_by_key(|ring| wanted.iter().position(|index| *index == ring.index));
    Ok((rings, idle))
}

/// Tells the driver about changes of the configuration space, also when they came while the device was paused.
#[derive(Default)]
pub(super) struct ConfigSignal {
    state: Mutex<SignalState>,
}

#[derive(Default)]
struct SignalState {
    interrupt: Option<Arc<dyn Interrupt>>,
    pending: bool,
}

impl ConfigSignal {
    /// The device is active: changes go to `interrupt` from now on.
    pub fn attach(&self, interrupt: Arc<dyn Interrupt>) {
        let mut state = self.state.lock().expect("config signal lock");
        if std::mem::take(&mut state.pending) {
            interrupt.config_changed();
        }
        state.interrupt = Some(interrupt);
    }

    /// The device is idle: changes are kept until it is active again.
    pub fn detach(&self) {
        self.state.lock().expect("config signal lock").interrupt = None;
    }

    /// Something changed.
    pub fn changed(&self) {
        let mut state = self.state.lock().expect("config signal lock");
        match &state.interrupt {
            Some(interrupt) => interrupt.config_changed(),
            None => state.pending = true,
        }
    }
}

/// Reads from a configuration space that is `bytes`.
pub(super) fn read_config(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(start) = usize::try_from(offset) else { return };
    if let Some(source) = bytes.get(start..) {
        let length = source.len().min(data.len());
        data[..length].copy_from_slice(&source[..length]);
    }
}

/// Writes to a copy of a configuration space, `bytes`.
pub(super) fn write_config(bytes: &mut [u8], offset: u64, data: &[u8]) {
    let Ok(start) = usize::try_from(offset) else { return };
    if let Some(target) = bytes.get_mut(start..) {
        let length = target.len().min(data.len());
        target[..length].copy_from_slice(&data[..length]);
    }
}
