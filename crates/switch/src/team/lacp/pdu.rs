//! What LACP says on the wire (IEEE 802.1AX-2014 §6.4.2, §6.5.3), behind the Ethernet header.

use crate::mac::MacAddress;

/// Where frames of slow protocols go. No bridge passes them on.
pub const DESTINATION: MacAddress = MacAddress([0x01, 0x80, 0xc2, 0, 0, 2]);
/// The type of slow protocols.
pub const ETHER_TYPE: u16 = 0x8809;
/// Bytes of a packet of LACP or of the marker protocol, without the Ethernet header.
pub const PDU_BYTES: usize = 110;

const LACP: u8 = 1;
const MARKER: u8 = 2;
const ACTOR: u8 = 1;
const PARTNER: u8 = 2;
const COLLECTOR: u8 = 3;
const MARKER_REQUEST: u8 = 1;
const MARKER_RESPONSE: u8 = 2;
const PORT_INFO_BYTES: u8 = 20;
const COLLECTOR_BYTES: u8 = 16;
const MARKER_BYTES: u8 = 16;

/// Bits of a port's state.
#[allow(missing_docs)]
pub mod state {
    pub const ACTIVITY: u8 = 0x01;
    pub const SHORT_TIMEOUT: u8 = 0x02;
    pub const AGGREGATION: u8 = 0x04;
    pub const SYNCHRONIZATION: u8 = 0x08;
    pub const COLLECTING: u8 = 0x10;
    pub const DISTRIBUTING: u8 = 0x20;
    pub const DEFAULTED: u8 = 0x40;
    pub const EXPIRED: u8 = 0x80;
}

/// What a system says of one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// The lower, the more its system has to say.
    pub system_priority: u16,
    /// The system.
    pub system: MacAddress,
    /// Ports of a system with the same key can be aggregated.
    pub key: u16,
    /// The lower, the sooner it is used.
    pub port_priority: u16,
    /// Its number in the system.
    pub port: u16,
    /// Bits of [`state`].
    pub state: u8,
}

impl PortInfo {
    /// Whether all of these bits are set.
    pub fn has(&self, bits: u8) -> bool {
        self.state & bits == bits
    }

    /// Sets or clears bits; returns whether that changed anything.
    pub fn set(&mut self, bits: u8, value: bool) -> bool {
        let old = self.state;
        self.state = if value { old | bits } else { old & !bits };
        self.state != old
    }

    /// Whether it is the same port with the same key: what a selection rests on (§6.4.8, update_Selected).
    pub fn is_same_port(&self, other: &PortInfo) -> bool {
        let aggregation = (self.state ^ other.state) & state::AGGREGATION;
        PortInfo { state: 0, ..*self } == PortInfo { state: 0, ..*other } && aggregation == 0
    }

    fn read(bytes: &[u8]) -> Option<PortInfo> {
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        Some(PortInfo {
            system_priority: word(0)?,
            system: MacAddress(bytes.get(2..8)?.try_into().ok()?),
            key: word(8)?,
            port_priority: word(10)?,
            port: word(12)?,
            state: *bytes.get(14)?,
        })
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[..2].copy_from_slice(&self.system_priority.to_be_bytes());
        bytes[2..8].copy_from_slice(&self.system.0);
        for (at, word) in [(8, self.key), (10, self.port_priority), (12, self.port)] {
            bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        bytes[14] = self.state;
    }
}

/// A packet of LACP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacpdu {
    /// The port that sends it.
    pub actor: PortInfo,
    /// What that port believes of the one that hears it.
    pub partner: PortInfo,
}

/// A packet of a slow protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPdu {
    /// Of LACP.
    Lacp(Lacpdu),
    /// A question whether all that was sent before it has arrived; this is the answer (§6.5).
    Marker([u8; PDU_BYTES]),
}

/// Reads a packet. `None` if it is none, or of another protocol. Any version is read as the first one, as §6.4.2.3 asks for.
pub fn parse(bytes: &[u8]) -> Option<SlowPdu> {
    match *bytes.get(..4)? {
        [LACP, (1..), ACTOR, PORT_INFO_BYTES] => match *bytes.get(22..24)? {
            [PARTNER, PORT_INFO_BYTES] => Some(SlowPdu::Lacp(Lacpdu {
                actor: PortInfo::read(&bytes[4..22])?,
                partner: PortInfo::read(bytes.get(24..42)?)?,
            })),
            _ => None,
        },
        [MARKER, (1..), MARKER_REQUEST, MARKER_BYTES] => {
            let mut answer = [0; PDU_BYTES];
            // Requester's port, system and transaction go back as they came.
            answer[..18].copy_from_slice(bytes.get(..18)?);
            (answer[1], answer[2]) = (1, MARKER_RESPONSE);
            Some(SlowPdu::Marker(answer))
        }
        _ => None,
    }
}

impl Lacpdu {
    /// As bytes.
    pub fn bytes(&self) -> [u8; PDU_BYTES] {
        let mut bytes = [0; PDU_BYTES];
        bytes[..4].copy_from_slice(&[LACP, 1, ACTOR, PORT_INFO_BYTES]);
        self.actor.write(&mut bytes[4..22]);
        bytes[22..24].copy_from_slice(&[PARTNER, PORT_INFO_BYTES]);
        self.partner.write(&mut bytes[24..42]);
        // No delay to be told of; what follows are zeros: the terminator, and room.
        bytes[42..44].copy_from_slice(&[COLLECTOR, COLLECTOR_BYTES]);
        bytes
    }
}
