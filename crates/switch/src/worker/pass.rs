//! One look at every port.

use super::deliver::Delivery;
use super::{Device, Worker};
use crate::counters::DropReason;
use crate::pipeline::{PortNumber, Taken};
use crate::ports::virtio::{Mode, Queue};
use crate::ring::split::{RingError, Segment};

/// Frames of one queue before the next one has its turn.
pub(super) const BATCH: usize = 32;

/// What is known of the chains that were taken from a queue.
struct Fetched {
    count: usize,
    is_on: bool,
    vnet_bytes: usize,
    /// The ring's position before the first of them.
    position: u16,
    /// Why there are no more.
    failed: Option<RingError>,
}

impl Worker {
    /// Moves a batch of frames from each port; returns how many.
    pub(super) fn pass(&mut self, now: u64) -> usize {
        self.holding = false;
        let mut moved = 0;
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
                moved += self.serve_queue(port, queue, now);
            }
        }
        self.flush_teams();
        moved
    }

    /// Takes a batch from a queue, if there is something; has the processor fetch its frames, and the room for them where the last batch
    /// went.
    fn fetch(&mut self, port: usize, index: usize) -> Option<Fetched> {
        let may_send = self.switch.may_send(port as PortNumber);
        let Some(Some(Device::Virtio(device))) = self.devices.get_mut(port) else { return None };
        let vnet_bytes = device.format.vnet_bytes();
        let queue = device.queues.get_mut(index)?.as_mut()?;
        queue.held = !may_send;
        self.holding |= !may_send;
        let waiting = queue.ring.waiting(BATCH as u16);
        if queue.failed.is_some() || queue.mode == Mode::Waiting || !may_send || waiting == 0 {
            return None;
        }
        let (is_on, position) = (queue.mode == Mode::On, queue.ring.position());
        let mut fetched = Fetched { count: 0, is_on, vnet_bytes, position, failed: None };
        for chain in &mut self.chains[..usize::from(waiting)] {
            match queue.ring.pop(chain) {
                Ok(true) => chain.readable.first().into_iter().for_each(Segment::prefetch),
                Ok(false) => break,
                Err(error) => {
                    fetched.failed = Some(error);
                    break;
                }
            }
            fetched.count += 1;
        }
        if let Some((port, index)) = queue.target
            && let Some(queue) = queue_at(&mut self.devices, usize::from(port), index)
        {
            let count = queue.ring.waiting(waiting);
            queue.ring.prefetch_room(count);
        }
        Some(fetched)
    }

    /// Passes a batch of a queue on, and gives its buffers back; returns how many frames it had.
    fn serve_queue(&mut self, port: usize, index: usize, now: u64) -> usize {
        let Some(Fetched { count, is_on, vnet_bytes, position, failed }) = self.fetch(port, index) else { return 0 };
        let number = port as PortNumber;
        let (mut done, mut held) = (0, false);
        while done < count && !held {
            if is_on {
                let chain = &self.chains[done];
                let frame = if chain.is_bad {
                    Err(DropReason::Buffer)
                } else {
                    // SAFETY: the chain was just taken, and its ring is stopped by commands only, which run between passes.
                    unsafe { self.packet.take(&chain.readable, vnet_bytes) }
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
        if let Some(queue) = queue_at(&mut self.devices, port, index) {
            self.chains[..done].iter().for_each(|chain| queue.ring.complete(chain.head, 0));
            queue.ring.publish();
            if done < count {
                queue.ring.rewind(position.wrapping_add(done as u16));
            } else if failed.is_some() {
                // Not a word about it here: who reads them must not be what all ports wait for.
                queue.failed = failed;
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
                Ok(()) => held = self.pass_on_for_good(number, now),
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

    /// The same for a frame of the kernel, which does not take it back. Returns whether its port is to wait before it sends more.
    pub(super) fn pass_on_for_good(&mut self, number: PortNumber, now: u64) -> bool {
        let taken = self.pass_on(number, now);
        if taken == Taken::Held {
            self.switch.refuse(number, DropReason::Bandwidth);
        }
        taken == Taken::Last
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
