//! A NIC of a team: its link, its socket, what it has counted.

use serde::{Deserialize, Serialize};

use super::lacp::LacpStatus;
use crate::counters::DropReason;
use crate::mac::MacAddress;
use crate::ports::nic::{DatapathStatus, NicPort};
use crate::ports::packet::Packet;
use crate::ports::vnet::Vnet;
use crate::ring::split::Segment;

/// What the kernel says of a NIC's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Switched on, and somebody at the other end.
    pub is_up: bool,
    /// In Mb/s, if the driver knows.
    pub speed_mbps: Option<u32>,
    /// The longest packet in bytes.
    pub mtu: u32,
    /// Its own address.
    pub mac: MacAddress,
}

/// A NIC.
#[derive(Debug)]
pub struct Nic {
    name: String,
    link: Option<LinkState>,
    socket: Option<NicPort>,
    /// Why it is there and has no socket.
    refusal: Option<String>,
    counters: NicCounters,
}

/// What a NIC has counted. `rx` is what came in from it, `tx` what went out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub struct NicCounters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// That the kernel had no room for, or that are not taken from this NIC of the team.
    pub rx_drops: u64,
    /// That the kernel could not hand over, or that make no sense.
    pub rx_errors: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// That its queue had no room for.
    pub tx_drops: u64,
    /// That it does not take: longer than its MTU, or no link.
    pub tx_errors: u64,
}

/// A NIC as it is on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NicStatus {
    /// Its interface.
    pub name: String,
    /// Whether there is an interface of that name.
    pub is_present: bool,
    /// Whether it has a link.
    pub has_link: bool,
    /// Whether frames leave through it.
    pub is_active: bool,
    /// Mb/s, if the driver knows.
    pub speed_mbps: Option<u32>,
    /// The longest packet in bytes.
    pub mtu: Option<u32>,
    /// Its own address.
    pub mac: Option<MacAddress>,
    /// What it has counted.
    pub counters: NicCounters,
    /// How frames come and go, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<DatapathStatus>,
    /// Why it is not used although there is such an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How it stands in LACP, if the team speaks that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp: Option<LacpStatus>,
}

impl Nic {
    /// A NIC that is not there yet.
    pub fn new(name: &str) -> Nic {
        Nic { name: name.into(), link: None, socket: None, refusal: None, counters: NicCounters::default() }
    }

    /// Its interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its link, if there is such an interface.
    pub fn link(&self) -> Option<LinkState> {
        self.link
    }

    /// Whether frames can go out.
    pub fn is_up(&self) -> bool {
        self.socket.is_some() && self.link.is_some_and(|link| link.is_up)
    }

    /// What its share is by: its speed. One that nobody knows counts as 1 Gb/s.
    pub fn weight(&self) -> u64 {
        u64::from(self.link.and_then(|link| link.speed_mbps).unwrap_or(1000).max(1))
    }

    /// Its link changed.
    pub fn set_link(&mut self, link: Option<LinkState>) {
        self.link = link;
        self.socket.iter_mut().zip(link).for_each(|(socket, link)| socket.set_mtu(link.mtu));
    }

    /// Goes on from what it has counted before.
    pub(super) fn set_counters(&mut self, counters: NicCounters) {
        self.counters = counters;
    }

    /// Another socket, since it is there again, or none.
    pub(super) fn set_socket(&mut self, socket: Option<NicPort>) {
        self.take_socket();
        self.refusal = None;
        self.socket = socket;
    }

    /// Its socket, which it does not have any more.
    pub(super) fn take_socket(&mut self) -> Option<NicPort> {
        self.count_losses();
        self.socket.take()
    }

    /// It is there, but cannot be used.
    pub(super) fn set_refusal(&mut self, reason: String) {
        self.refusal = Some(reason);
    }

    /// Its socket.
    pub fn socket(&self) -> Option<&NicPort> {
        self.socket.as_ref()
    }

    /// Whether there may be something to read.
    pub fn is_ready(&self) -> bool {
        self.socket.as_ref().is_some_and(NicPort::is_ready)
    }

    /// There is something to read.
    pub fn set_ready(&mut self) {
        self.socket.iter_mut().for_each(NicPort::set_ready);
    }

    /// Reads the next frame. `None` if there is none now.
    pub fn read(&mut self, packet: &mut Packet) -> Option<Result<(), DropReason>> {
        let taken = self.socket.as_mut()?.read(packet)?;
        match taken {
            Ok(()) => {
                self.counters.rx_packets += 1;
                self.counters.rx_bytes += packet.length as u64;
            }
            Err(_) => self.counters.rx_errors += 1,
        }
        Some(taken)
    }

    /// A frame that came in was not for this NIC of the team.
    pub fn count_refused(&mut self) {
        self.counters.rx_drops += 1;
    }

    /// Writes a frame of `length` bytes. Frames with the same hash stay in order.
    pub fn write(&mut self, vnet: &Vnet, pieces: &[Segment], length: usize, hash: u64) -> Result<(), DropReason> {
        let Some(socket) = &mut self.socket else { return Err(DropReason::NoLink) };
        let written = socket.write(vnet, pieces, length, hash);
        match written {
            Ok(()) => {
                self.counters.tx_packets += 1;
                self.counters.tx_bytes += length as u64;
            }
            Err(DropReason::NoBuffer) => self.counters.tx_drops += 1,
            Err(_) => self.counters.tx_errors += 1,
        }
        written
    }

    /// Has the kernel take what was written. Returns whether it has to be told once more, later.
    pub fn flush(&mut self) -> bool {
        self.socket.as_mut().is_some_and(NicPort::flush)
    }

    fn count_losses(&mut self) {
        self.counters.rx_drops += self.socket.as_mut().map_or(0, NicPort::take_losses);
    }

    /// How it is.
    pub fn status(&mut self, is_active: bool, lacp: Option<LacpStatus>) -> NicStatus {
        self.count_losses();
        NicStatus {
            name: self.name.clone(),
            is_present: self.socket.is_some(),
            has_link: self.is_up(),
            is_active,
            speed_mbps: self.link.and_then(|link| link.speed_mbps),
            mtu: self.link.map(|link| link.mtu),
            mac: self.link.map(|link| link.mac),
            counters: self.counters,
            datapath: self.socket.as_ref().map(NicPort::status),
            error: self.refusal.clone(),
            lacp,
        }
    }
}
