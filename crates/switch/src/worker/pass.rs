//! One look at every port.

use super::deliver::Delivery;
use super::{Device, Worker};
use crate::counters::DropReason;
use crate::pipeline::{PortNumber, Taken};
use crate::ports::virtio::{Mode, Queue};
use crate::ring::split::{Chain, RingError, Segment};

/// Frames of one queue before the next one has its turn.
pub(super) const BATCH: usize = 32;

/// What was taken from a queue and is not yet passed on.
#[derive(Debug)]
pub(super) struct Batch {
    port: usize,
    index: usize,
    is_on: bool,
    vnet_bytes: usize,
    chains: Vec<Chain>,
    taken: usize,
    /// The ring's position before the first of them.
    position: u16,
    /// Why there are no more.
    failed: Option<RingError>,
}

impl Default for Batch {
    fn default() -> Batch {
        let chains = std::iter::repeat_with(Chain::default).take(BATCH).collect();
        Batch { port: 0, index: 0, is_on: false, vnet_bytes: 0, chains, taken: 0, position: 0, failed: None }
    }
}

impl Worker {
    /// Moves a batch of frames from each port; returns how many.
    pub(super) fn pass(&mut self, now: u64) -> usize {
        self.holding = false;
        self.look_ahead();
        let mut moved = 0;
        // While one batch is passed on, the next one's frames come from memory.
        let mut pending = None;
        for port in 0..self.devices.len() {
            let queues = match &self.devices[port] {
                None => continue,
                Some(Device::Virtio(device)) => device.queues.len(),
                Some(Device::Fd(fd)) => {
                    if fd.ready {
                        moved += self.serve_fd(port, now);
                    }
                    continue;
                }
                Some(Device::Team(team)) => {
                    if team.is_ready() {
                        moved += self.serve_team(port, now);
                    }
                    continue;
                }
            };
            for queue in (1..queues).step_by(2) {
                let slot = pending.map_or(0, |slot: usize| 1 - slot);
                if self.fetch(slot, port, queue)
                    && let Some(before) = pending.replace(slot)
                {
                    moved += self.serve_batch(before, now);
                }
            }
        }
        moved + pending.map_or(0, |last| self.serve_batch(last, now))
    }

    /// Has the processor fetch what all rings say, and then what they have, before the first one is waited for.
    fn look_ahead(&mut self) {
        for device in self.devices.iter().flatten() {
            if let Device::Virtio(device) = device {
                device.queues.iter().skip(1).step_by(2).flatten().for_each(|queue| queue.ring.prefetch_index());
            }
        }
        for port in 0..self.devices.len() {
            let queues = match &self.devices[port] {
                Some(Device::Virtio(device)) => device.queues.len(),
                _ => 0,
            };
            for index in (1..queues).step_by(2) {
                let Some(queue) = queue_at(&mut self.devices, port, index) else { continue };
                let (count, target) = (queue.ring.waiting(BATCH as u16), queue.target);
                queue.ring.prefetch_descriptors(count);
                if let Some((port, index)) = target
                    && let Some(queue) = queue_at(&mut self.devices, usize::from(port), index)
                {
                    let count = queue.ring.waiting(count);
                    queue.ring.prefetch_descriptors(count);
                }
            }
        }
    }

    /// Takes a batch from a queue into a slot, if there is something; has the processor fetch its frames, and the room for them where
    /// the last batch went.
    fn fetch(&mut self, slot: usize, port: usize, index: usize) -> bool {
        let may_send = self.switch.may_send(port as PortNumber);
        let batch = &mut self.batches[slot];
        let Some(Some(Device::Virtio(device))) = self.devices.get_mut(port) else { return false };
        batch.vnet_bytes = device.format.vnet_bytes();
        let Some(Some(queue)) = device.queues.get_mut(index) else { return false };
        queue.held = !may_send;
        self.holding |= !may_send;
        let waiting = queue.ring.waiting(BATCH as u16);
        if queue.failed.is_some() || queue.mode == Mode::Waiting || !may_send || waiting == 0 {
            return false;
        }
        (batch.port, batch.index, batch.is_on) = (port, index, queue.mode == Mode::On);
        (batch.position, batch.taken, batch.failed) = (queue.ring.position(), 0, None);
        while batch.taken < usize::from(waiting) {
            let chain = &mut batch.chains[batch.taken];
            match queue.ring.pop(chain) {
                Ok(true) => chain.readable.first().into_iter().for_each(Segment::prefetch),
                Ok(false) => break,
                Err(error) => {
                    batch.failed = Some(error);
                    break;
                }
            }
            batch.taken += 1;
        }
        if let Some((port, index)) = queue.target
            && let Some(queue) = queue_at(&mut self.devices, usize::from(port), index)
        {
            let count = queue.ring.waiting(waiting);
            queue.ring.prefetch_room(count);
        }
        true
    }

    /// Passes a batch on, and gives its buffers back; returns how many frames it had.
    fn serve_batch(&mut self, slot: usize, now: u64) -> usize {
        let Batch { port, index, .. } = self.batches[slot];
        let number = port as PortNumber;
        let (mut done, mut held) = (0, false);
        while done < self.batches[slot].taken && !held {
            let batch = &self.batches[slot];
            if batch.is_on {
                let chain = &batch.chains[done];
                let frame = if chain.is_bad {
                    Err(DropReason::Buffer)
                } else {
                    // SAFETY: the chain was taken in this pass, and its ring is stopped by commands only, which run between passes.
                    unsafe { self.packet.take(&chain.readable, batch.vnet_bytes) }
                };
                match frame {
                    Ok(()) => {
                        let taken = self.pass_on(number, now);
                        held = taken != Taken::Yes;
                        if taken == Taken::Held {
                            break;
                        }
                    }
                    Err(reason) => self.switch.refuse(number, reason),
                }
            }
            done += 1;
        }
        let batch = &mut self.batches[slot];
        if let Some(queue) = queue_at(&mut self.devices, port, index) {
            batch.chains[..done].iter().for_each(|chain| queue.ring.complete(chain.head, 0));
            queue.ring.publish();
            if done < batch.taken {
                queue.ring.rewind(batch.position.wrapping_add(done as u16));
            } else if batch.failed.is_some() {
                // Not a word about it here: who reads them must not be what all ports wait for.
                queue.failed = batch.failed.take();
                self.switch.refuse(number, DropReason::Ring);
            }
            queue.held = held;
            queue.target = self.scratch.touched.last().copied().or(queue.target);
        }
        self.holding |= held;
        self.publish();
        done
    }

    fn serve_fd(&mut self, port: usize, now: u64) -> usize {
        let number = port as PortNumber;
        let mut count = 0;
        let mut held = !self.switch.may_send(number);
        while count < BATCH && !held {
            let Some(Some(Device::Fd(fd))) = self.devices.get_mut(port) else { break };
            let Some(taken) = fd.read(&mut self.packet) else { break };
            count += 1;
            match taken {
                Ok(()) => match self.pass_on(number, now) {
                    Taken::Yes => {}
                    Taken::Last => held = true,
                    // The kernel does not take it back.
                    Taken::Held => self.switch.refuse(number, DropReason::Bandwidth),
                },
                Err(reason) => self.switch.refuse(number, reason),
            }
        }
        if let Some(Some(Device::Fd(fd))) = self.devices.get_mut(port) {
            fd.held = held;
        }
        self.holding |= held;
        if count > 0 {
            self.publish();
        }
        count
    }

    /// Gives the frame at hand to the switch, as one that came from a port.
    pub(super) fn pass_on(&mut self, number: PortNumber, now: u64) -> Taken {
        if !self.watches.is_empty() {
            self.watches.look(&self.switch, number, &self.packet, now);
        }
        let Worker { switch, devices, packet, scratch, watches, .. } = self;
        let mut delivery = Delivery { devices, packet, scratch, sender: number, watches };
        let taken = switch.receive(number, packet.head(), packet.length, now, &mut delivery);
        if !self.watches.is_empty() {
            // SAFETY: the frame's buffers go back after this call.
            unsafe { self.watches.looked(number, &self.packet, taken) };
        }
        taken
    }

    /// Lets the receivers of this batch see it.
    pub(super) fn publish(&mut self) {
        for (port, index) in self.scratch.touched.drain(..) {
            if let Some(queue) = queue_at(&mut self.devices, usize::from(port), index) {
                queue.ring.publish();
            }
        }
    }

    /// Has VMs tell when they send, or not. Returns whether one has done so already.
    pub(super) fn want_kicks(&mut self, wanted: bool) -> bool {
        let mut waiting = false;
        for device in self.devices.iter_mut().flatten() {
            match device {
                Device::Virtio(device) => {
                    for queue in device.queues.iter_mut().skip(1).step_by(2).flatten() {
                        let is_served = queue.failed.is_none() && queue.mode != Mode::Waiting && !queue.held;
                        waiting |= queue.ring.want_kicks(wanted) && is_served;
                    }
                }
                Device::Fd(fd) => waiting |= fd.ready && !fd.held,
                Device::Team(team) => waiting |= team.is_ready() && !team.held,
            }
        }
        waiting
    }
}

fn queue_at(devices: &mut [Option<Device>], port: usize, index: usize) -> Option<&mut Queue> {
    match devices.get_mut(port)?.as_mut()? {
        Device::Virtio(device) => device.queues.get_mut(index)?.as_mut(),
        Device::Fd(_) | Device::Team(_) => None,
    }
}
