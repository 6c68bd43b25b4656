//! The header in front of frames that says which work is left to do (virtio 1.2 §5.1.6, `struct virtio_net_hdr`).

use crate::pipeline::TagEdit;

/// Bytes with the number of buffers, as of all VIRTIO 1 drivers and our TAPs.
pub const LONG: usize = 12;
/// Bytes without.
pub const SHORT: usize = 10;

const NEEDS_CSUM: u8 = 1;
const ECN: u8 = 0x80;
const NONE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;

/// What of the work a receiver does itself: `VIRTIO_NET_F_GUEST_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub checksum: bool,
    /// Segments of TCP over IPv4.
    pub tcp4: bool,
    /// Segments of TCP over IPv6.
    pub tcp6: bool,
    /// Segments with congestion marks.
    pub ecn: bool,
}

impl Offloads {
    /// All that there is.
    pub const ALL: Offloads = Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true };
}

/// What is left to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    flags: u8,
    kind: u8,
    header_bytes: u16,
    /// Payload of each segment; zero when it is not to be cut.
    pub segment_bytes: u16,
    /// Where the checksum's sum begins.
    pub checksum_start: u16,
    /// Where it belongs, from there.
    pub checksum_offset: u16,
}

impl Vnet {
    /// Reads the header of a frame with `length` bytes. `None` if it asks for what makes no sense.
    pub fn parse(bytes: &[u8; SHORT], length: usize) -> Option<Vnet> {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut vnet = Vnet {
            // Only what a receiver may say is left out: that the checksum is right.
            flags: bytes[0] & NEEDS_CSUM,
            kind: bytes[1],
            header_bytes: word(2),
            segment_bytes: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        };
        if vnet.flags == 0 {
            (vnet.checksum_start, vnet.checksum_offset) = (0, 0);
        } else if usize::from(vnet.checksum_start) + usize::from(vnet.checksum_offset) + 2 > length {
            return None;
        }
        match vnet.kind & !ECN {
            NONE => {
                (vnet.kind, vnet.segment_bytes, vnet.header_bytes) = (NONE, 0, 0);
                Some(vnet)
            }
            TCP4 | TCP6 => {
                // Ethernet, IP and TCP at least; some receivers insist that it is not beyond the frame's end.
                let least = usize::from(vnet.checksum_start) + 20;
                vnet.header_bytes = usize::from(vnet.header_bytes).clamp(least.min(length), length) as u16;
                (vnet.flags != 0 && vnet.segment_bytes > 0 && least <= length && vnet.checksum_offset == 16).then_some(vnet)
            }
            _ => None,
        }
    }

    /// Whether it is to be cut.
    pub fn is_segment(&self) -> bool {
        self.kind != NONE
    }

    /// Whether its checksum is missing.
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Whether a receiver takes the frame as it is.
    pub fn suits(&self, offloads: Offloads) -> bool {
        (!self.needs_checksum() || offloads.checksum)
            && (self.kind & ECN == 0 || offloads.ecn)
            && match self.kind & !ECN {
                TCP4 => offloads.tcp4,
                TCP6 => offloads.tcp6,
                _ => true,
            }
    }

    /// After a change of the frame's tag.
    pub fn edited(mut self, edit: TagEdit) -> Vnet {
        let moved = |at: u16| match edit {
            TagEdit::Push(_) => at.saturating_add(4),
            TagEdit::Pop => at.saturating_sub(4),
            TagEdit::Keep | TagEdit::Replace(_) => at,
        };
        if self.needs_checksum() {
            self.checksum_start = moved(self.checksum_start);
        }
        if self.is_segment() {
            self.header_bytes = moved(self.header_bytes);
        }
        self
    }

    /// The header for a frame in so many buffers.
    pub fn bytes(&self, buffers: u16) -> [u8; LONG] {
        let mut bytes = [0; LONG];
        (bytes[0], bytes[1]) = (self.flags, self.kind);
        let words = [self.header_bytes, self.segment_bytes, self.checksum_start, self.checksum_offset, buffers];
        for (at, word) in (2..).step_by(2).zip(words) {
            bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}
