//! One look at every port.

use super::deliver::Delivery;
use super::{Device, Worker};
use crate::counters::DropReason;
use crate::mac::MacAddress;
use crate::pipeline::{PortNumber, Taken};
use crate::ports::virtio::{Mode, Queue};
use crate::ports::vnet::LONG;
use crate::ring::split::Segment;

/// Frames of one queue before the next one has its turn.
const BATCH: usize = 32;

impl Worker {
    /// Moves a batch of frames from each port; returns how many.
    pub(super) fn pass(&mut self) -> usize {
        let now = self.now();
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
            };
            for queue in (1..queues).step_by(2) {
                moved += self.serve_queue(port, queue, now);
            }
        }
        moved
    }

    fn serve_queue(&mut self, port: usize, index: usize, now: u64) -> usize {
        let number = port as PortNumber;
        let mut count = 0;
        let mut held = !self.switch.may_send(number);
        while count < BATCH && !held {
            let Some(Some(Device::Virtio(device))) = self.devices.get_mut(port) else { break };
            let vnet_bytes = device.format.vnet_bytes();
            let Some(Some(queue)) = device.queues.get_mut(index) else { break };
            if queue.failed.is_some() || queue.mode == Mode::Waiting {
                break;
            }
            let position = queue.ring.position();
            match queue.ring.pop(&mut self.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // Not a word about it here: who reads them must not be what all ports wait for.
                    queue.failed = Some(error);
                    self.switch.refuse(number, DropReason::Ring);
                    break;
                }
            }
            if queue.mode == Mode::On {
                let taken = if self.chain.is_bad {
                    Err(DropReason::Buffer)
                } else {
                    // SAFETY: the chain was just taken, and its ring is stopped by commands only, which run between passes.
                    unsafe { self.packet.take(&self.chain.readable, vnet_bytes) }
                };
                match taken {
                    Ok(()) => {
                        let taken = self.pass_on(number, now);
                        held = taken != Taken::Yes;
                        if taken == Taken::Held {
                            if let Some(queue) = queue_at(&mut self.devices, port, index) {
                                queue.ring.rewind(position);
                            }
                            break;
                        }
                    }
                    Err(reason) => self.switch.refuse(number, reason),
                }
            }
            count += 1;
            if let Some(Some(Device::Virtio(device))) = self.devices.get_mut(port)
                && let Some(Some(queue)) = device.queues.get_mut(index)
            {
                queue.ring.complete(self.chain.head, 0);
            }
        }
        if let Some(queue) = queue_at(&mut self.devices, port, index) {
            queue.held = held;
            if count > 0 {
                queue.ring.publish();
            }
        }
        self.holding |= held;
        if count > 0 {
            self.publish();
        }
        count
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
    fn pass_on(&mut self, number: PortNumber, now: u64) -> Taken {
        if !self.watches.is_empty() {
            self.watches.look(&self.switch, number, &self.packet, now);
        }
        let Worker { switch, devices, packet, scratch, watches, .. } = self;
        let mut delivery = Delivery { devices, packet, scratch, watches };
        let taken = switch.receive(number, packet.head(), packet.length, now, &mut delivery);
        if !self.watches.is_empty() {
            // SAFETY: the frame's buffers go back after this call.
            unsafe { self.watches.looked(number, &self.packet, taken) };
        }
        taken
    }

    /// Tells all where a port's station is now, as if it had sent a reverse ARP request: switches elsewhere learn from it.
    pub fn announce(&mut self, number: PortNumber) {
        let Some(mac) = self.switch.policy(number).ok().and_then(|policy| policy.mac) else { return };
        let frame = announcement(mac);
        let now = self.now();
        // SAFETY: the bytes live until the end of this call.
        if unsafe { self.packet.take(&[Segment::of(&frame)], LONG) }.is_ok() {
            self.pass_on(number, now);
            self.publish();
        }
    }

    /// Lets the receivers of this batch see it.
    fn publish(&mut self) {
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
            }
        }
        waiting
    }
}

/// A reverse ARP request for a station's own address (RFC 903), behind an empty header.
fn announcement(mac: MacAddress) -> [u8; LONG + 60] {
    let mut frame = [0; LONG + 60];
    let packet = &mut frame[LONG..];
    packet[..6].fill(0xff);
    packet[6..12].copy_from_slice(&mac.0);
    // Type, Ethernet and IPv4 with the lengths of their addresses, operation 3.
    packet[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    packet[22..28].copy_from_slice(&mac.0);
    packet[32..38].copy_from_slice(&mac.0);
    frame
}

fn queue_at(devices: &mut [Option<Device>], port: usize, index: usize) -> Option<&mut Queue> {
    match devices.get_mut(port)?.as_mut()? {
        Device::Virtio(device) => device.queues.get_mut(index)?.as_mut(),
        Device::Fd(_) => None,
    }
}
