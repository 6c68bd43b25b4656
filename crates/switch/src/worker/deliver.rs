//! Copies of the frame at hand, to other ports.

use super::{Device, Watches};
use crate::counters::DropReason;
use crate::pipeline::{PortNumber, Sink, TagEdit};
use crate::ports::packet::Packet;
use crate::ports::segment::{complete_checksum, cut};
use crate::ports::virtio::VirtioPort;
use crate::ports::vnet::Vnet;
use crate::ring::split::Segment;
use crate::team::Origin;

/// Room that is used again for each frame.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pieces: Vec<Segment>,
    linear: Vec<u8>,
    /// Receive queues with something to publish.
    pub touched: Vec<(PortNumber, usize)>,
}

/// The frame at hand and where it may go.
pub(super) struct Delivery<'a> {
    pub devices: &'a mut [Option<Device>],
    pub packet: &'a Packet,
    pub scratch: &'a mut Scratch,
    /// The port that the frame came from.
    pub sender: PortNumber,
    pub watches: &'a mut Watches,
}

impl Sink for Delivery<'_> {
    fn deliver(&mut self, port: PortNumber, edit: TagEdit, hash: u64) -> Result<(), DropReason> {
        let Some(Some(device)) = self.devices.get_mut(usize::from(port)) else { return Err(DropReason::NoBuffer) };
        let mut tag = [0; 4];
        let Scratch { pieces, linear, touched } = &mut *self.scratch;
        pieces.clear();
        let length = self.packet.pieces(edit, &mut tag, pieces);
        let vnet = self.packet.vnet.edited(edit);
        match device {
            Device::Fd(fd) => fd.write(&vnet, pieces)?,
            Device::Team(team) => {
                let origin = Origin { port: self.sender, hash, head: self.packet.head() };
                team.write(&origin, &vnet, pieces, length)?;
            }
            Device::Virtio(device) => {
                let index = device.receiver(hash).ok_or(DropReason::NoBuffer)?;
                if touched.last() != Some(&(port, index)) {
                    touched.push((port, index));
                }
                if vnet.suits(device.format.offloads) {
                    // SAFETY: the frame's buffers stay until it is passed on, which happens in this call.
                    unsafe { device.receive(index, &vnet, pieces, length)? };
                } else {
                    linear.resize(length, 0);
                    let mut done = 0;
                    for piece in pieces.iter() {
                        // SAFETY: as above.
                        done += unsafe { piece.read(&mut linear[done..]) };
                    }
                    finish(device, index, &vnet, linear)?;
                }
            }
        }
        if !self.watches.is_empty() {
            // SAFETY: as above.
            unsafe { self.watches.delivered(port, pieces, length) };
        }
        Ok(())
    }
}

/// Does what the receiver cannot, and passes on what it can take.
fn finish(device: &mut VirtioPort, index: usize, vnet: &Vnet, frame: &mut [u8]) -> Result<(), DropReason> {
    let plain = Vnet::default();
    let mut pass = |frame: &[u8]| {
        // SAFETY: the bytes live until the call returns.
        unsafe { device.receive(index, &plain, &[Segment::of(frame)], frame.len()) }
    };
    if vnet.is_segment() {
        return cut(frame, vnet, |part| pass(part));
    }
    complete_checksum(frame, vnet).ok_or(DropReason::Buffer)?;
    pass(frame)
}
