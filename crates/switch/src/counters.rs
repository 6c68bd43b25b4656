//! What is counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::frame::FrameError;

macro_rules! reasons {
    ($($(#[doc = $text:literal])+ $name:ident => $label:literal,)+) => {
        /// Why a frame, or a copy of one, did not go on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $text])+ $name,)+ }

        impl DropReason {
            /// All of them.
            pub const ALL: &[DropReason] = &[$(DropReason::$name),+];

            /// As it is called on the control socket.
            pub fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// Too short, or too long.
    Length => "length",
    /// A VLAN stack that is cut off or too deep.
    VlanStack => "vlan-stack",
    /// An IP header that lies.
    Ip => "ip-header",
    /// A transport header that is cut off.
    Transport => "transport-header",
    /// A buffer, header or offload request of the sender that makes no sense.
    Buffer => "bad-buffer",
    /// A ring that cannot be followed: it stands still until it is set up anew.
    Ring => "bad-ring",
    /// From no station, or to an address that bridges do not pass on.
    Address => "reserved-address",
    /// From another address than the port's.
    Spoofed => "mac-spoofing",
    /// From an address that belongs to another port.
    Taken => "address-of-another-port",
    /// A tag at a port that has none, or a hidden one.
    Tagged => "vlan-tag",
    /// A VLAN that the port is not in.
    Vlan => "vlan",
    /// A rogue DHCP server.
    DhcpGuard => "dhcp-guard",
    /// A rogue router, or headers that hide whether it is one.
    RouterGuard => "router-guard",
    /// Denied by a rule of longest prefix.
    Acl => "acl",
    /// Denied by an extended rule.
    ExtendedAcl => "extended-acl",
    /// More connections than the port may have.
    Connections => "too-many-connections",
    /// Above the storm limit.
    Storm => "storm-limit",
    /// Above the receiver's bandwidth.
    Bandwidth => "bandwidth",
    /// Its receiver is where it comes from.
    SamePort => "same-port",
    /// From the wire, but its sender is behind another port: the switch's own frame, sent through one NIC of a team and back through another.
    Reflected => "reflected",
    /// From a NIC of a team that such frames are not taken from now.
    Inactive => "inactive-nic",
    /// No NIC of the uplink has a link.
    NoLink => "no-link",
    /// The receiver had no buffer for it.
    NoBuffer => "no-buffer",
    /// The receiver takes no frame of this size or form.
    NotTaken => "receiver-cannot",
}

impl From<FrameError> for DropReason {
    fn from(error: FrameError) -> DropReason {
        match error {
            FrameError::Length(_) => DropReason::Length,
            FrameError::VlanStack => DropReason::VlanStack,
            FrameError::Ip => DropReason::Ip,
            FrameError::Transport => DropReason::Transport,
        }
    }
}

const REASONS: usize = DropReason::ALL.len();

/// A port's counters. `rx` is what the switch received from it, `tx` what it sent to it. A drop counts at the port whose policy or
/// buffers were the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Stations that were found behind another port than before, and now are here.
    pub moves: u64,
    /// Stations that were not learned because the port had its share.
    pub not_learned: u64,
    drops: [u64; REASONS],
}

impl Counters {
    /// How many were dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// All that are not zero, by name.
    pub fn report(&self) -> CounterReport {
        let drops = DropReason::ALL.iter().filter(|reason| self.drops(**reason) > 0);
        CounterReport {
            rx_packets: self.rx_packets,
            rx_bytes: self.rx_bytes,
            tx_packets: self.tx_packets,
            tx_bytes: self.tx_bytes,
            moves: self.moves,
            not_learned: self.not_learned,
            drops: drops.map(|reason| (reason.label().to_owned(), self.drops(*reason))).collect(),
        }
    }
}

impl From<&CounterReport> for Counters {
    /// Reasons that are not known here are left out.
    fn from(report: &CounterReport) -> Counters {
        let mut drops = [0; REASONS];
        for (reason, count) in DropReason::ALL.iter().zip(&mut drops) {
            *count = report.drops.get(reason.label()).copied().unwrap_or(0);
        }
        let CounterReport { rx_packets, rx_bytes, tx_packets, tx_bytes, moves, not_learned, .. } = *report;
        Counters { rx_packets, rx_bytes, tx_packets, tx_bytes, moves, not_learned, drops }
    }
}

/// [`Counters`] as they are on the control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub struct CounterReport {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub moves: u64,
    pub not_learned: u64,
    /// By reason; those that are zero are left out.
    pub drops: BTreeMap<String, u64>,
}
