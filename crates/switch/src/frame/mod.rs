//! What a frame says about itself.
//!
//! Only the first [`HEADER_BYTES`] bytes of a frame are looked at, in a copy that its sender cannot change any more; the same copy is
//! what goes on to the receivers. A length inside the frame that contradicts its real length makes the frame [`FrameError`], never a
//! reason to read further. What lies behind the copied bytes or behind too many headers is [`Transport::Unknown`]: present, but not to
//! be decided by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mac::MacAddress;

#[cfg(any(test, feature = "testing"))]
pub mod build;
#[cfg(test)]
mod tests;

/// How much of a frame is copied and looked at: Ethernet with two VLAN tags, IPv6 with some extension headers, TCP.
pub const HEADER_BYTES: usize = 128;
/// The shortest frame that is one: addresses and type. Virtual links do not pad to 60 bytes.
pub const MIN_FRAME_BYTES: usize = 14;
/// The longest: Ethernet, two VLAN tags, the largest IP packet (a segment before it is cut).
pub const MAX_FRAME_BYTES: usize = 14 + 8 + 65_535;

pub(crate) const TYPE_IPV4: u16 = 0x0800;
pub(crate) const TYPE_ARP: u16 = 0x0806;
pub(crate) const TYPE_RARP: u16 = 0x8035;
pub(crate) const TYPE_IPV6: u16 = 0x86dd;
pub(crate) const TYPE_VLAN: u16 = 0x8100;
pub(crate) const TYPE_SERVICE_VLAN: u16 = 0x88a8;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// More extension headers than any real packet has.
const MAX_EXTENSIONS: usize = 8;

/// A frame that cannot be what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No place for addresses and type, or longer than any frame.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// More than two VLAN tags, or one that is cut off.
    #[error("a VLAN stack that is cut off or has more than two tags")]
    VlanStack,
    /// An IP header that is cut off or whose version, lengths or offsets contradict the frame.
    #[error("an IP header that contradicts the frame")]
    Ip,
    /// A TCP, UDP or ICMP header that is cut off or split over fragments (RFC 1858, RFC 7112).
    #[error("a transport header that is cut off or split over fragments")]
    Transport,
}

/// The outer VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0 to 4095; 0 is a priority without a VLAN.
    pub vlan: u16,
    /// 0 to 7.
    pub priority: u8,
}

/// A packet's place in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    Whole,
    /// The first part: it has the transport header.
    First,
    /// A later part.
    Later,
}

/// The header behind IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP or UDP.
    Ports {
        /// Port of the sender.
        source: u16,
        /// Port of the receiver.
        destination: u16,
    },
    /// ICMP for IPv4 or IPv6.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The identifier of an echo request or reply, zero for others.
        id: u16,
    },
    /// Another protocol, or a later fragment.
    None,
    /// There is one, but not within what is looked at.
    Unknown,
}

/// An IP header and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// The protocol behind all IP headers (IANA's number); of an unknown transport the last that was seen.
    pub protocol: u8,
    /// What it says.
    pub transport: Transport,
    /// Whether it is whole.
    pub fragment: Fragment,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Receiver.
    pub destination: MacAddress,
    /// Sender.
    pub source: MacAddress,
    /// The outer VLAN tag.
    pub tag: Option<Tag>,
    /// Whether there is another tag behind it.
    pub stacked: bool,
    /// The type behind all tags, or a length below 1536.
    pub ether_type: u16,
    /// Whether it tells others where its sender is: a gratuitous ARP packet (its sender asks for itself), or one of RARP.
    pub is_announcement: bool,
    /// The packet, if it is one of IP.
    pub ip: Option<Ip>,
}

/// Bytes of a frame from its start, with its whole length.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    head: &'a [u8],
    length: usize,
}

/// Why some bytes cannot be had.
enum Missing {
    /// The frame ends before.
    CutOff,
    /// The copied part ends before.
    Unseen,
}

impl Bytes<'_> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], Missing> {
        if at + N > self.length {
            return Err(Missing::CutOff);
        }
        self.head.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).ok_or(Missing::Unseen)
    }

    fn u16(&self, at: usize) -> Result<u16, Missing> {
        self.get(at).map(u16::from_be_bytes)
    }
}

impl Frame {
    /// Reads a frame of `length` bytes that begins with `head`: its first [`HEADER_BYTES`] bytes, or all if it is shorter.
    pub fn parse(head: &[u8], length: usize) -> Result<Frame, FrameError> {
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&length) || head.len() < length.min(HEADER_BYTES) {
            return Err(FrameError::Length(length));
        }
        let bytes = Bytes { head, length };
        let stack = |_| FrameError::VlanStack;
        let mac = |at| bytes.get(at).map(MacAddress).map_err(stack);
        let (destination, source) = (mac(0)?, mac(6)?);
        let is_tag = |kind| kind == TYPE_VLAN || kind == TYPE_SERVICE_VLAN;
        let mut ether_type = bytes.u16(12).map_err(stack)?;
        let (mut at, mut tag, mut stacked) = (14, None, false);
        while is_tag(ether_type) {
            if stacked {
                return Err(FrameError::VlanStack);
            }
            let control = bytes.u16(at).map_err(stack)?;
            ether_type = bytes.u16(at + 2).map_err(stack)?;
            at += 4;
            match tag {
                None => tag = Some(Tag { vlan: control & 0xfff, priority: (control >> 13) as u8 }),
                Some(_) => stacked = true,
            }
        }
        let ip = match ether_type {
            TYPE_IPV4 => Some(ipv4(bytes, at)?),
            TYPE_IPV6 => Some(ipv6(bytes, at)?),
            _ => None,
        };
        let is_announcement = match ether_type {
            TYPE_RARP => true,
            // The addresses of sender and target (RFC 826, IPv4 over Ethernet). One that is cut off says nothing.
            TYPE_ARP => matches!((bytes.get::<4>(at + 14), bytes.get::<4>(at + 24)), (Ok(a), Ok(b)) if a == b && a != [0; 4]),
            _ => false,
        };
        Ok(Frame { destination, source, tag, stacked, ether_type, is_announcement, ip })
    }
}

fn cut_off(_: Missing) -> FrameError {
    // The fixed headers always lie in the copied part.
    FrameError::Ip
}

fn ipv4(bytes: Bytes<'_>, at: usize) -> Result<Ip, FrameError> {
    let [first] = bytes.get(at).map_err(cut_off)?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(bytes.u16(at + 2).map_err(cut_off)?);
    let packet = bytes.length - at;
    if first >> 4 != 4 || header < 20 || total < header || total > packet {
        return Err(FrameError::Ip);
    }
    let fragmented = bytes.u16(at + 6).map_err(cut_off)?;
    let (offset, more) = (usize::from(fragmented & 0x1fff) * 8, fragmented & 0x2000 != 0);
    let [protocol] = bytes.get(at + 9).map_err(cut_off)?;
    let address = |at| bytes.get(at).map(|bytes: [u8; 4]| IpAddr::V4(Ipv4Addr::from(bytes))).map_err(cut_off);
    let (source, destination) = (address(at + 12)?, address(at + 16)?);
    let payload = total - header;
    let fragment = fragment(offset, more, payload)?;
    // What lies behind the packet is padding.
    let bytes = Bytes { length: at + total, ..bytes };
    let transport = transport(bytes, at + header, protocol, fragment, offset)?;
    Ok(Ip { source, destination, protocol, transport, fragment })
}

fn fragment(offset: usize, more: bool, payload: usize) -> Result<Fragment, FrameError> {
    match (offset, more) {
        (0, false) => Ok(Fragment::Whole),
        // Parts but the last are multiples of eight; none reaches beyond the largest packet (the "ping of death").
        (_, true) if payload == 0 || !payload.is_multiple_of(8) => Err(FrameError::Ip),
        _ if offset + payload > 65_535 => Err(FrameError::Ip),
        (0, true) => Ok(Fragment::First),
        _ => Ok(Fragment::Later),
    }
}

fn ipv6(bytes: Bytes<'_>, at: usize) -> Result<Ip, FrameError> {
    let [first] = bytes.get(at).map_err(cut_off)?;
    let payload = usize::from(bytes.u16(at + 4).map_err(cut_off)?);
    let [mut next] = bytes.get(at + 6).map_err(cut_off)?;
    let address = |at| bytes.get(at).map(|bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes))).map_err(cut_off);
    let (source, destination) = (address(at + 8)?, address(at + 24)?);
    // A length of zero before options would be a jumbogram, which no link here carries.
    if first >> 4 != 6 || 40 + payload > bytes.length - at || (payload == 0 && next == HOP_BY_HOP) {
        return Err(FrameError::Ip);
    }
    let end = at + 40 + payload;
    let bytes = Bytes { length: end, ..bytes };
    let mut at = at + 40;
    let mut place = (Fragment::Whole, 0);
    let unknown = |protocol, fragment| Ok(Ip { source, destination, protocol, transport: Transport::Unknown, fragment });
    for _ in 0..MAX_EXTENSIONS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => match bytes.get::<2>(at) {
                Ok([_, words]) if next == AUTHENTICATION => (usize::from(words) + 2) * 4,
                Ok(_) if next == FRAGMENT => 8,
                Ok([_, words]) => (usize::from(words) + 1) * 8,
                Err(Missing::CutOff) => return Err(FrameError::Ip),
                Err(Missing::Unseen) => return unknown(next, place.0),
            },
            _ => {
                let transport = transport(bytes, at, next, place.0, place.1)?;
                return Ok(Ip { source, destination, protocol: next, transport, fragment: place.0 });
            }
        };
        if at + length > end {
            // RFC 7112: the first fragment has all headers; others have none behind their own.
            return Err(FrameError::Ip);
        }
        let extension = next;
        let Ok([following]) = bytes.get(at) else { return unknown(next, place.0) };
        if extension == FRAGMENT {
            let Ok(word) = bytes.u16(at + 2) else { return unknown(next, place.0) };
            let offset = usize::from(word & !7);
            if place.0 != Fragment::Whole {
                return Err(FrameError::Ip);
            }
            place = (fragment(offset, word & 1 != 0, end - at - length)?, offset);
        }
        next = following;
        at += length;
        if place.0 == Fragment::Later {
            // What follows is a part of something.
            return Ok(Ip { source, destination, protocol: next, transport: Transport::None, fragment: place.0 });
        }
    }
    unknown(next, place.0)
}

/// The header at `at` in a packet that ends with `bytes`.
fn transport(bytes: Bytes<'_>, at: usize, protocol: u8, fragment: Fragment, offset: usize) -> Result<Transport, FrameError> {
    if fragment == Fragment::Later {
        // A later part that could replace the flags or ports of the first one (RFC 3128).
        let overwrites = protocol == TCP && offset < 20;
        return if overwrites { Err(FrameError::Transport) } else { Ok(Transport::None) };
    }
    let needed = match protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        _ => return Ok(Transport::None),
    };
    if at + needed > bytes.length {
        return Err(FrameError::Transport);
    }
    let Ok([a, b, c, d, e, f]) = bytes.get::<6>(at) else { return Ok(Transport::Unknown) };
    Ok(match protocol {
        TCP | UDP => Transport::Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) },
        _ => {
            let is_echo = if protocol == ICMP { matches!(a, 0 | 8) } else { matches!(a, 128 | 129) };
            Transport::Icmp { kind: a, code: b, id: if is_echo { u16::from_be_bytes([e, f]) } else { 0 } }
        }
    })
}
