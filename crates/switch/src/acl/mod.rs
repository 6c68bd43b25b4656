//! Access rules of a port, of two kinds.
//!
//! Both are decided once per flow. "Local" is the station behind the port, "remote" the other side, in both directions.

mod extended;
mod prefix;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use extended::{Effect, ExtendedAcl, ExtendedRule, PortRange, Verdict};
pub use prefix::{Address, PrefixAcl, PrefixAction, PrefixRule, PrefixVerdict};

use crate::frame::{Frame, Ip, Transport};
use crate::mac::MacAddress;
use crate::policy::PolicyError;

/// Where frames go, seen from the station behind the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To it.
    Inbound,
    /// From it.
    Outbound,
}

impl Direction {
    /// The other one.
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Inbound => Direction::Outbound,
            Direction::Outbound => Direction::Inbound,
        }
    }

    /// Local first.
    fn sides<T>(self, source: T, destination: T) -> (T, T) {
        match self {
            Direction::Inbound => (destination, source),
            Direction::Outbound => (source, destination),
        }
    }
}

/// Addresses that begin with the same bits, written `10.0.0.0/8` or `fd00::1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The addresses that share `length` bits with `address`.
    pub fn new(address: IpAddr, length: u8) -> Result<Prefix, PolicyError> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if length > bits {
            return Err(PolicyError::PrefixLength { length, bits });
        }
        Ok(Prefix { address: mask(address, length), length })
    }

    /// The first of the addresses.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The address, if it is one only.
    pub fn host(self) -> Option<IpAddr> {
        (self.length == if self.address.is_ipv4() { 32 } else { 128 }).then_some(self.address)
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.length) == self.address
    }
}

/// The address with all but its first bits zero.
fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into()),
        IpAddr::V6(address) => {
            IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into())
        }
    }
}

/// A text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no IP address or prefix like 10.0.0.0/8")]
pub struct PrefixError(String);

impl std::str::FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let error = || PrefixError(text.into());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        Prefix::new(address, length.unwrap_or(if address.is_ipv4() { 32 } else { 128 })).map_err(|_| error())
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Prefix, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        format!("{}/{}", prefix.address, prefix.length)
    }
}

/// A frame as one port's rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Where it goes.
    pub direction: Direction,
    /// The station behind the port.
    pub local_mac: MacAddress,
    /// The other station.
    pub remote_mac: MacAddress,
    /// Its packet.
    pub packet: Option<PacketSubject>,
}

/// A packet as one port's rules see it.
#[derive(Clone, Copy, Debug)]
pub struct PacketSubject {
    /// The address behind the port.
    pub local: IpAddr,
    /// The other address.
    pub remote: IpAddr,
    /// As in the frame.
    pub ip: Ip,
}

impl PacketSubject {
    /// Local and remote port, or twice the identifier of an echo; zeros if there are none.
    fn ports(&self, direction: Direction) -> (u16, u16) {
        match self.ip.transport {
            Transport::Ports { source, destination } => direction.sides(source, destination),
            Transport::Icmp { id, .. } => (id, id),
            Transport::None | Transport::Unknown => (0, 0),
        }
    }
}

impl Subject {
    /// A frame that a port's station sends or gets.
    pub fn new(frame: &Frame, direction: Direction) -> Subject {
        let (local_mac, remote_mac) = direction.sides(frame.source, frame.destination);
        let packet = frame.ip.map(|ip| {
            let (local, remote) = direction.sides(ip.source, ip.destination);
            PacketSubject { local, remote, ip }
        });
        Subject { direction, local_mac, remote_mac, packet }
    }

    /// The connection that the frame belongs to.
    pub fn connection(&self, port: u16) -> Option<ConnectionKey> {
        let packet = self.packet.filter(|packet| packet.ip.transport != Transport::Unknown)?;
        let (local_port, remote_port) = packet.ports(self.direction);
        Some(ConnectionKey {
            port,
            local: packet.local,
            remote: packet.remote,
            protocol: packet.ip.protocol,
            local_port,
            remote_port,
        })
    }
}

/// What identifies a connection at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The port whose rule remembers it.
    pub port: u16,
    /// The address behind the port.
    pub local: IpAddr,
    /// The other address.
    pub remote: IpAddr,
    /// IANA's number.
    pub protocol: u8,
    /// Port, echo identifier, or zero.
    pub local_port: u16,
    /// Port, echo identifier, or zero.
    pub remote_port: u16,
}
