//! Frames for tests and fuzzing.
#![allow(missing_docs)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ICMP, ICMPV6, TCP, TYPE_IPV4, TYPE_IPV6, TYPE_VLAN, UDP};
use crate::mac::MacAddress;

/// A frame in the making.
#[derive(Clone, Debug)]
pub struct Builder(Vec<u8>);

/// The address of station `number`.
pub fn mac(number: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, number])
}

/// From station to station, so far without a type.
pub fn ethernet(source: MacAddress, destination: MacAddress) -> Builder {
    Builder([destination.0, source.0].concat())
}

impl Builder {
    pub fn tag(self, vlan: u16) -> Builder {
        self.words(&[TYPE_VLAN, vlan])
    }

    pub fn words(mut self, words: &[u16]) -> Builder {
        self.0.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        self
    }

    /// A frame of some other protocol.
    pub fn other(self, ether_type: u16) -> Vec<u8> {
        let mut frame = self.words(&[ether_type]).0;
        frame.resize(frame.len() + 46, 0);
        frame
    }

    /// A packet; the addresses are of the same kind.
    pub fn ip(self, source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source, destination, protocol, 0, payload),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source, destination, protocol, payload),
            _ => panic!("addresses of two kinds"),
        }
    }

    /// With the word of flags and fragment offset.
    pub fn ipv4(self, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let total = 20 + payload.len() as u16;
        let mut frame = self.words(&[TYPE_IPV4, 0x4500, total, 1, fragment, 0x4000 | u16::from(protocol), 0]).0;
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(payload);
        frame
    }

    pub fn ipv6(self, source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.words(&[TYPE_IPV6, 0x6000, 0, payload.len() as u16, u16::from(next) << 8 | 64]).0;
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(payload);
        frame
    }

    pub fn tcp(self, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Vec<u8> {
        let mut segment = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        self.ip(source.0, destination.0, TCP, &segment)
    }

    pub fn udp(self, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Vec<u8> {
        let datagram = [source.1.to_be_bytes(), destination.1.to_be_bytes(), [0, 8], [0, 0]].concat();
        self.ip(source.0, destination.0, UDP, &datagram)
    }

    pub fn icmp(self, source: IpAddr, destination: IpAddr, kind: u8) -> Vec<u8> {
        let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
        self.ip(source, destination, protocol, &[kind, 0, 0, 0, 0, 7, 0, 0])
    }
}
