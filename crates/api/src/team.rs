//! The NICs of the host that are the way out of an external switch.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Some NICs that are one way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Team {
    /// Its NICs, 1 to 8, by the names of their interfaces. One that is not there is waited for.
    #[schema(min_items = 1, max_items = 8, example = json!(["eth1", "eth2"]))]
    pub nics: Vec<String>,
    /// How they are used.
    #[serde(default)]
    pub mode: TeamMode,
    /// The NIC that is used whenever it has a link: of `active-standby`. Without one, the NIC that is used stays until its link is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// How often the switch at the other end is to speak: of `lacp`.
    #[serde(default)]
    pub lacp_rate: LacpRate,
    /// The lower, the more this end has to say: of `lacp`.
    #[serde(default = "default_priority")]
    #[schema(default = 32768)]
    pub lacp_priority: u16,
}

fn default_priority() -> u16 {
    32_768
}

/// How a team uses its NICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TeamMode {
    /// One carries everything, the others wait.
    #[default]
    ActiveStandby,
    /// Each port of the switch has its NIC. Any switches at the other end.
    SourcePort,
    /// Each flow has its NIC. Any switches at the other end.
    AddressHash,
    /// Each flow has its NIC, as agreed with the switch at the other end (802.3ad).
    Lacp,
}

impl std::fmt::Display for TeamMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TeamMode::ActiveStandby => "active-standby",
            TeamMode::SourcePort => "source-port",
            TeamMode::AddressHash => "address-hash",
            TeamMode::Lacp => "lacp",
        })
    }
}

/// How frames come from NICs and go to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// By AF_PACKET: with any NIC, with large segments, and the host keeps what it has on the NIC.
    #[default]
    AfPacket,
    /// By AF_XDP where the NIC's driver has XDP of its own and the host has no address on the NIC, by AF_PACKET otherwise.
    Auto,
    /// By AF_XDP, or not at all.
    AfXdp,
}

impl Datapath {
    /// Whether it is what it is if nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Datapath::default()
    }
}

impl std::fmt::Display for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Datapath::Auto => "auto",
            Datapath::AfPacket => "af-packet",
            Datapath::AfXdp => "af-xdp",
        })
    }
}

/// How frames come from a NIC and go to it, as it turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

impl std::fmt::Display for DatapathKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DatapathKind::AfPacket => "AF_PACKET",
            DatapathKind::AfXdpGeneric => "AF_XDP in front of the driver",
            DatapathKind::AfXdpCopy => "AF_XDP with copies",
            DatapathKind::AfXdpZeroCopy => "AF_XDP without copies",
        })
    }
}

/// How frames come from a NIC and go to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicDatapath {
    /// How.
    pub kind: DatapathKind,
    /// So many queues of the NIC, each with rings of its own; of `af-packet` 1.
    pub queues: u64,
    /// Why not in a better way, if there is one that was not asked to be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How often a partner is asked to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LacpRate {
    /// Every 30 seconds; it is missed after 90.
    #[default]
    Slow,
    /// Every second; it is missed after 3.
    Fast,
}

impl std::fmt::Display for LacpRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LacpRate::Slow => "slow",
            LacpRate::Fast => "fast",
        })
    }
}

/// What to change of the team of a switch, while it runs. What is left out stays. A switch with one NIC has a team with the first that is added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TeamChange {
    /// NICs that come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// NICs that go; a primary that goes is none any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Another mode. In all but `active-standby` there is no primary NIC any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TeamMode>,
    /// Another primary NIC; an empty text for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// How often the switch at the other end is to speak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// The lower, the more this end has to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_priority: Option<u16>,
}

/// A NIC of the way out of a switch, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    /// Its interface.
    pub name: String,
    /// Whether there is an interface of that name.
    pub present: bool,
    /// Whether it has a link.
    pub link: bool,
    /// Whether frames leave through it.
    pub active: bool,
    /// Megabits a second, if its driver knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// The longest packet in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// What it has counted.
    pub counters: NicCounters,
    /// How frames come and go, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<NicDatapath>,
    /// Why it is not used although there is such an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How it stands in LACP, if the team speaks that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp: Option<NicLacp>,
}

/// What a NIC has counted, seen from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicCounters {
    /// Frames that came in.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames for which there was no room, or that are not taken from this NIC of the team.
    pub received_drops: u64,
    /// Frames that could not be read, or make no sense.
    pub received_errors: u64,
    /// Frames that left.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames for which its queue had no room.
    pub sent_drops: u64,
    /// Frames that it does not take: longer than its MTU, or no link.
    pub sent_errors: u64,
}

/// How a NIC stands in LACP (802.1AX).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicLacp {
    /// Whether the partner is heard.
    pub receive: LacpReceive,
    /// Whether frames pass.
    pub mux: LacpMux,
    /// NICs with the same key can be used together: those of one speed.
    pub key: u16,
    /// Who is at the other end, if anybody speaks LACP there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<NicPartner>,
}

/// States of LACP's receive machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LacpReceive {
    /// No link.
    Disabled,
    /// Nothing was heard for too long; there is a short time left.
    Expired,
    /// Nobody speaks LACP there.
    Defaulted,
    /// What is known of the partner is true.
    Current,
}

/// States of LACP's mux machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LacpMux {
    /// Not part of the team.
    Detached,
    /// About to be.
    Waiting,
    /// Part of it; the partner is told.
    Attached,
    /// Takes frames.
    Collecting,
    /// Takes and sends frames.
    Distributing,
}

impl std::fmt::Display for LacpReceive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LacpReceive::Disabled => "disabled",
            LacpReceive::Expired => "expired",
            LacpReceive::Defaulted => "defaulted",
            LacpReceive::Current => "current",
        })
    }
}

impl std::fmt::Display for LacpMux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LacpMux::Detached => "detached",
            LacpMux::Waiting => "waiting",
            LacpMux::Attached => "attached",
            LacpMux::Collecting => "collecting",
            LacpMux::Distributing => "distributing",
        })
    }
}

/// The other end of a cable, as LACP tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicPartner {
    /// The system's address.
    pub system: String,
    /// Its priority.
    pub system_priority: u16,
    /// The key of the port there.
    pub key: u16,
    /// The number of the port there.
    pub port: u16,
}
