//! All queues of a NIC.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::XdpError;
use super::program::{Mode, Program};
use super::queue::{Queue, Shape};
use crate::counters::DropReason;
use crate::frame::{TYPE_SERVICE_VLAN, TYPE_VLAN};
use crate::ports::packet::Packet;
use crate::ports::segment::{complete_checksum, cut};
use crate::ports::vnet::Vnet;
use crate::ring::split::Segment;

/// The most queues that are used.
const MAX_QUEUES: u32 = 64;
/// What the kernel keeps free in front of a frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// An Ethernet header, and one with two tags.
const HEADER: u32 = 14;
const LONGEST_HEADER: u32 = HEADER + 8;
/// How large the memory for a frame may be: the kernel takes no other sizes below a page.
const FRAME_BYTES: [u32; 2] = [2048, 4096];
/// Frames of one queue before the next one has its turn.
const BATCH: u32 = 32;

/// What is to be had of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its own XDP, or nothing.
    Native,
    /// Its own XDP, or the kernel's for all drivers.
    Any,
}

/// How frames come and go, as it turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the kernel's XDP for all drivers.
    Generic,
    /// By the driver's XDP, with copies.
    Copy,
    /// By the driver's XDP, without copies.
    ZeroCopy,
}

/// The NIC's queues, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Those that receive.
    pub receive: u32,
    /// Those that send.
    pub transmit: u32,
}

/// A NIC by AF_XDP.
#[derive(Debug)]
pub struct XdpPort {
    /// First: what no program gives to sockets stays out of rings that go.
    _link: OwnedFd,
    queues: Vec<Queue>,
    channels: Channels,
    kind: Kind,
    /// Why the driver's own XDP is not used.
    refusal: Option<XdpError>,
    frame_bytes: u32,
    mtu: u32,
    /// The queue that is read from, and how often in a row it was.
    turn: usize,
    in_turn: u32,
    linear: Vec<u8>,
}

/// The longest packet that fits into the memory for a frame.
fn longest_packet(frame_bytes: u32) -> u32 {
    frame_bytes - HEADROOM - LONGEST_HEADER
}

fn frame_bytes(mtu: u32) -> Result<u32, XdpError> {
    let fitting = FRAME_BYTES.into_iter().find(|bytes| mtu <= longest_packet(*bytes));
    fitting.ok_or(XdpError::Mtu { mtu, most: longest_packet(FRAME_BYTES[1]) })
}

/// With many queues, each has less.
fn shape(frame_bytes: u32, queues: u32) -> Shape {
    let each = |all: u32, least, most| (all / queues.next_power_of_two()).clamp(least, most);
    Shape { frame_bytes, receive: each(8192, 512, 4096), transmit: each(4096, 256, 2048) }
}

impl XdpPort {
    /// Takes the queues of an interface with this MTU.
    pub fn open(interface: u32, mtu: u32, channels: Channels, wish: Wish) -> Result<XdpPort, XdpError> {
        let frame_bytes = frame_bytes(mtu)?;
        let count = channels.receive.max(1);
        if count > MAX_QUEUES {
            return Err(XdpError::Queues { count, most: MAX_QUEUES });
        }
        let program = Program::load(count)?;
        let (link, mode, refusal) = match (program.attach(interface, Mode::Native), wish) {
            (Ok(link), _) => (link, Mode::Native, None),
            (Err(refusal @ XdpError::Native(_)), Wish::Any) => {
                (program.attach(interface, Mode::Generic)?, Mode::Generic, Some(refusal))
            }
            (Err(refusal), _) => return Err(refusal),
        };
        let mut queues = Vec::new();
        for number in 0..count {
            let queue = Queue::open(interface, number, shape(frame_bytes, count), mode)?;
            program.give(number, queue.as_fd())?;
            queues.push(queue);
        }
        let kind = match mode {
            Mode::Generic => Kind::Generic,
            Mode::Native if queues.iter().all(Queue::is_zero_copy) => Kind::ZeroCopy,
            Mode::Native => Kind::Copy,
        };
        Ok(XdpPort { _link: link, queues, channels, kind, refusal, frame_bytes, mtu, turn: 0, in_turn: 0, linear: Vec::new() })
    }

    /// How frames come and go.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Why the driver's own XDP is not used, if it is not.
    pub fn refusal(&self) -> Option<&XdpError> {
        self.refusal.as_ref()
    }

    /// The NIC's queues.
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// The longest packet for which there is room.
    pub fn longest_packet(&self) -> u32 {
        longest_packet(self.frame_bytes)
    }

    /// The NIC's MTU changed.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
    }

    /// What says that there is something to read, for each queue.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queues.iter().map(Queue::as_fd)
    }

    /// Whether there is something to read.
    pub fn is_waiting(&self) -> bool {
        self.queues.iter().any(Queue::is_waiting)
    }

    /// How many frames that came in the kernel had no room for since the last time.
    pub fn take_losses(&mut self) -> u64 {
        self.queues.iter_mut().map(Queue::take_losses).sum()
    }

    /// Reads the next frame into `packet`, which refers to the NIC's memory until the next call. `None` if there is none now.
    pub fn read(&mut self, packet: &mut Packet) -> Option<Result<(), DropReason>> {
        let count = self.queues.len();
        if self.in_turn == BATCH {
            self.in_turn = 0;
            self.turn = (self.turn + 1) % count;
        }
        for _ in 0..count {
            if let Some(frame) = self.queues[self.turn].take() {
                self.in_turn += 1;
                // SAFETY: it stays until the next frame is taken from its queue.
                return Some(unsafe { packet.take(&[Segment::of(frame)], 0) });
            }
            self.in_turn = 0;
            self.turn = (self.turn + 1) % count;
        }
        None
    }

    /// Writes a frame of `length` bytes, with all that is left to be done to it; frames of one hash stay in order. The kernel sees it once
    /// it is flushed.
    pub fn write(&mut self, vnet: &Vnet, pieces: &[Segment], length: usize, hash: u64) -> Result<(), DropReason> {
        let senders = self.queues.len().min(self.channels.transmit.max(1) as usize);
        let XdpPort { queues, linear, mtu, frame_bytes, .. } = self;
        let queue = &mut queues[(hash % senders as u64) as usize];
        let longest = longest_packet(*frame_bytes).min(*mtu) as usize;
        if vnet.is_segment() {
            linear.resize(length, 0);
            gather(pieces, linear);
            return cut(linear, vnet, |part| {
                if packet_bytes(part, part.len()) > longest {
                    return Err(DropReason::NotTaken);
                }
                let (frame, room) = queue.room(part.len()).ok_or(DropReason::NoBuffer)?;
                room.copy_from_slice(part);
                queue.send(frame, part.len());
                Ok(())
            });
        }
        if length > longest + LONGEST_HEADER as usize {
            return Err(DropReason::NotTaken);
        }
        let (frame, room) = queue.room(length).ok_or(DropReason::NoBuffer)?;
        gather(pieces, room);
        if packet_bytes(room, length) > longest {
            return Err(DropReason::NotTaken);
        }
        if vnet.needs_checksum() {
            complete_checksum(room, vnet).ok_or(DropReason::Buffer)?;
        }
        queue.send(frame, length);
        Ok(())
    }

    /// Has the kernel take what was written, and gives it back what was read. Returns whether it has to be told once more, later.
    pub fn flush(&mut self) -> bool {
        let mut has_more = false;
        for queue in &mut self.queues {
            queue.give_back();
            has_more |= queue.flush();
        }
        has_more
    }
}

/// Copies a frame's pieces, one behind the other.
fn gather(pieces: &[Segment], target: &mut [u8]) {
    let mut done = 0;
    for piece in pieces {
        // SAFETY: the frame's buffers stay until it is passed on, which happens in the caller's call.
        done += unsafe { piece.read(&mut target[done..]) };
    }
}

/// What of a frame counts for the MTU: what is behind its header, of which a first tag is a part.
fn packet_bytes(frame: &[u8], length: usize) -> usize {
    let kind = frame.get(12..14).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
    let header = HEADER as usize + if matches!(kind, Some(TYPE_VLAN | TYPE_SERVICE_VLAN)) { 4 } else { 0 };
    length.saturating_sub(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::build::{ethernet, mac};

    #[test]
    fn frames_have_room_for_their_mtu_and_more_is_refused() {
        for (mtu, expected) in [(68, 2048), (1500, 2048), (1770, 2048), (1771, 4096), (3818, 4096)] {
            assert_eq!(frame_bytes(mtu).unwrap(), expected, "{mtu}");
        }
        let refused = frame_bytes(9000).unwrap_err().to_string();
        assert!(refused.contains("9000") && refused.contains("3818"), "{refused}");
    }

    #[test]
    fn rings_are_powers_of_two_and_get_smaller_the_more_queues_there_are() {
        let mut before = u32::MAX;
        for queues in 1..=MAX_QUEUES {
            let Shape { receive, transmit, frame_bytes } = shape(2048, queues);
            assert!(receive.is_power_of_two() && transmit.is_power_of_two() && frame_bytes == 2048);
            assert!(receive <= before);
            // 96 MiB at most.
            assert!((receive + transmit) * queues <= 48 << 10, "{queues}");
            before = receive;
        }
    }

    #[test]
    fn the_first_tag_is_not_of_the_packet() {
        let plain = ethernet(mac(1), mac(2)).other(0x0800);
        let tagged = ethernet(mac(1), mac(2)).tag(7).other(0x0800);
        let twice = ethernet(mac(1), mac(2)).tag(7).tag(8).other(0x0800);
        assert_eq!([&plain, &tagged, &twice].map(|frame| packet_bytes(frame, frame.len())), [46, 46, 50]);
        assert_eq!(packet_bytes(&[], 0), 0);
    }
}
