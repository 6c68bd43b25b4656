//! A NIC that is open: by AF_PACKET, or by AF_XDP.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use serde::{Deserialize, Serialize};

use super::fd::FdPort;
use super::packet::Packet;
use super::vnet::Vnet;
use crate::counters::DropReason;
use crate::ring::split::Segment;
use crate::xdp::port::{Kind, XdpPort};

/// How frames come from a NIC and go to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatapathKind {
    /// Through the host's network stack. Segments and checksums are the NIC's or the kernel's work.
    AfPacket,
    /// By rings that are shared with the kernel, which fills them in front of the host's network stack.
    AfXdpGeneric,
    /// The same, filled by the driver, with a copy of each frame.
    AfXdpCopy,
    /// The same, without copies.
    AfXdpZeroCopy,
}

/// The same, on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DatapathStatus {
    /// How.
    pub kind: DatapathKind,
    /// So many queues of the NIC, each with rings of its own; of AF_PACKET 1.
    pub queues: usize,
    /// Why not in a better way, if there is one that was not asked to be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug)]
enum Way {
    Packet(Box<FdPort>),
    Xdp { port: Box<XdpPort>, _promiscuous: File },
}

/// A NIC that is open.
#[derive(Debug)]
pub struct NicPort {
    way: Way,
    reason: Option<String>,
}

impl NicPort {
    /// By AF_PACKET, and why not by AF_XDP, if that was wanted.
    pub fn packet(port: FdPort, reason: Option<String>) -> NicPort {
        NicPort { way: Way::Packet(port.into()), reason }
    }

    /// By AF_XDP. `promiscuous` has it hear what is for others.
    pub fn xdp(port: XdpPort, promiscuous: File) -> NicPort {
        let reason = match port.kind() {
            Kind::Generic => port.refusal().map(|refusal| crate::error_chain(refusal)),
            Kind::Copy => Some("its driver does not let programs have its memory (zero copy)".into()),
            Kind::ZeroCopy => None,
        };
        NicPort { way: Way::Xdp { port: port.into(), _promiscuous: promiscuous }, reason }
    }

    /// How frames come and go.
    pub fn status(&self) -> DatapathStatus {
        let (kind, queues) = match &self.way {
            Way::Packet(_) => (DatapathKind::AfPacket, 1),
            Way::Xdp { port, .. } => {
                let kind = match port.kind() {
                    Kind::Generic => DatapathKind::AfXdpGeneric,
                    Kind::Copy => DatapathKind::AfXdpCopy,
                    Kind::ZeroCopy => DatapathKind::AfXdpZeroCopy,
                };
                (kind, port.descriptors().count())
            }
        };
        DatapathStatus { kind, queues, reason: self.reason.clone() }
    }

    /// What AF_XDP goes by, if it is open in this way.
    pub fn as_xdp(&self) -> Option<&XdpPort> {
        match &self.way {
            Way::Packet(_) => None,
            Way::Xdp { port, .. } => Some(port),
        }
    }

    /// What becomes readable when a frame has come.
    pub fn descriptors(&self) -> Vec<RawFd> {
        match &self.way {
            Way::Packet(port) => vec![port.as_raw_fd()],
            Way::Xdp { port, .. } => port.descriptors().map(|queue| queue.as_raw_fd()).collect(),
        }
    }

    /// Whether there may be something to read.
    pub fn is_ready(&self) -> bool {
        match &self.way {
            Way::Packet(port) => port.ready,
            Way::Xdp { port, .. } => port.is_waiting(),
        }
    }

    /// A descriptor became readable.
    pub fn set_ready(&mut self) {
        if let Way::Packet(port) = &mut self.way {
            port.ready = true;
        }
    }

    /// The NIC's MTU changed.
    pub fn set_mtu(&mut self, mtu: u32) {
        // By AF_PACKET, the kernel looks after it.
        if let Way::Xdp { port, .. } = &mut self.way {
            port.set_mtu(mtu);
        }
    }

    /// Reads the next frame into `packet`, which refers to this port's memory until the next call. `None` if there is none now.
    pub fn read(&mut self, packet: &mut Packet) -> Option<Result<(), DropReason>> {
        match &mut self.way {
            Way::Packet(port) => port.read(packet),
            Way::Xdp { port, .. } => port.read(packet),
        }
    }

    /// Writes a frame of `length` bytes. Frames with the same hash stay in order.
    pub fn write(&mut self, vnet: &Vnet, pieces: &[Segment], length: usize, hash: u64) -> Result<(), DropReason> {
        match &mut self.way {
            Way::Packet(port) => port.write(vnet, pieces),
            Way::Xdp { port, .. } => port.write(vnet, pieces, length, hash),
        }
    }

    /// Has the kernel take what was written. Returns whether it has to be told once more, later.
    pub fn flush(&mut self) -> bool {
        match &mut self.way {
            Way::Packet(_) => false,
            Way::Xdp { port, .. } => port.flush(),
        }
    }

    /// How many frames the kernel had no room for since the last time.
    pub fn take_losses(&mut self) -> u64 {
        match &mut self.way {
            Way::Packet(port) => port.take_losses(),
            Way::Xdp { port, .. } => port.take_losses(),
        }
    }
}
