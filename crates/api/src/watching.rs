//! What passes a port: traces, captures, flows.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Direction;

/// A made-up frame that comes from a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTrace {
    /// The frame from its first byte on, in hexadecimal digits; as much of it as is given.
    #[schema(example = "ffffffffffff52540012345688b5")]
    pub frame: String,
    /// The length of all of it in bytes; what is given is all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65557)]
    pub length: Option<u32>,
}

/// What is done to a frame, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// The port that it comes from.
    pub port: String,
    /// What it says about itself.
    pub frame: String,
    /// What each layer said, in order.
    pub steps: Vec<TraceStep>,
    /// What is done, in order.
    pub actions: Vec<TraceAction>,
}

/// What a layer said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceStep {
    /// The layer.
    pub layer: String,
    /// The port whose policy or place it is about.
    pub port: String,
    /// Whether the frame, or the copy for this port, goes on.
    pub passes: bool,
    /// Why.
    pub why: String,
}

/// What is done to frames of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum TraceAction {
    /// They go on while a connection stands, and keep it.
    Track,
    /// They go on within the sender's storm limit.
    Limit,
    /// Their bytes are counted.
    Meter {
        /// The port.
        port: String,
        /// The number of the rule in its `acl`.
        rule: u32,
    },
    /// A copy for a port.
    Deliver {
        /// The port.
        port: String,
        /// What is done to the tag: `keep`, `pop`, `push 10`, `replace 10`.
        tag: String,
    },
    /// No copy for a port, or for nobody.
    Drop {
        /// The port at which it counts.
        port: String,
        /// As in the counters.
        reason: String,
    },
}

/// Which frames are meant: those that have all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FrameFilter {
    /// The sending station.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "52:54:00:12:34:56")]
    pub source_mac: Option<String>,
    /// The receiving station, or a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_mac: Option<String>,
    /// The sender of the packet, or its net.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.0.0.0/8")]
    pub source_ip: Option<String>,
    /// The receiver of the packet, or its net.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_ip: Option<String>,
    /// IANA's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// The sender's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// The receiver's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// The VLAN of its tag; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 4094)]
    pub vlan: Option<u16>,
}

/// Which of the next frames are to be traced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWatch {
    /// How many at most: 1 to 10000.
    #[schema(minimum = 1, maximum = 10000)]
    pub count: u32,
    /// For how long, in seconds: 1 to 3600.
    #[schema(minimum = 1, maximum = 3600)]
    pub seconds: u32,
    /// Which frames; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FrameFilter>,
}

/// A line of the answer to who watches a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Watched {
    /// A frame passed.
    Trace(Trace),
    /// That was all.
    End(WatchEnd),
}

/// How a watch has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchEnd {
    /// Frames that were meant, and for which there was no time or room.
    pub missed: u64,
}

/// What to capture of what passes a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCapture {
    /// For how long, in seconds: 1 to 3600.
    #[schema(minimum = 1, maximum = 3600)]
    pub seconds: u32,
    /// Those that go in this direction; both if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// How many frames at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub count: Option<u64>,
    /// So many bytes of each frame; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snap_bytes: Option<u32>,
    /// It ends when the file has more than so many bytes; 1 GiB if left out, which is also the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1073741824)]
    pub max_bytes: Option<u64>,
}

/// Frames that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// The port that they come from.
    pub port: String,
    /// What they say about themselves.
    pub frame: String,
    /// What is done to them, in order.
    pub actions: Vec<TraceAction>,
    /// How many there were.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Milliseconds since the first.
    pub age_ms: u64,
    /// Milliseconds since the last.
    pub idle_ms: u64,
}
