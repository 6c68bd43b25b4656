//! Requests and replies: the types on the wire.

use std::collections::BTreeMap;
use std::ops::Add;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::acl::{Direction, ExtendedRule, PrefixRule};
use crate::counters::CounterReport;
use crate::explain::{FrameFilter, TraceAction, TraceReport};
use crate::links::Missing;
use crate::mac::MacAddress;
use crate::pipeline::PortState;
use crate::policy::PortPolicy;
use crate::team::TeamStatus;
use crate::team::config::TeamConfig;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the switch is and does; answered with [`Status`].
    Status,
    /// The ports as they are configured; answered with a list of [`PortConfig`].
    Config,
    /// Who is behind which port; answered with a list of [`StationStatus`].
    Stations,
    /// The switches; answered with a list of [`SwitchStatus`].
    Switches,
    /// Add a switch.
    AddSwitch {
        /// Its name, unique in the process.
        name: String,
        /// What it connects.
        kind: SwitchKind,
    },
    /// Remove a switch that has no ports.
    RemoveSwitch {
        /// The switch.
        name: String,
    },
    /// Add a port.
    AddPort {
        /// The port.
        port: PortConfig,
        /// What a NIC means that is not there: of an uplink.
        #[serde(default)]
        missing: Missing,
    },
    /// Give an uplink other NICs, or use them in another way. The port stays, with what is known behind it; NICs that it has before and after
    /// keep their counters. NICs that are not there are waited for.
    SetTeam {
        /// The port.
        name: String,
        /// All of its team.
        team: TeamConfig,
    },
    /// Give a port another policy, from the next frame on.
    SetPolicy {
        /// The port.
        name: String,
        /// All of its policy; what is left out is as of a new port.
        policy: PortPolicy,
    },
    /// All that a port knows, to move with its VM; answered with a [`PortState`].
    ExportPort {
        /// The port.
        name: String,
    },
    /// Give a port the policy of another one, and what that one knew; answered with [`crate::pipeline::Imported`]. What the port has
    /// counted so far is replaced.
    ImportPort {
        /// The port.
        name: String,
        /// What the other one had.
        state: Box<PortState>,
    },
    /// The flows with the most frames; answered with a list of [`FlowStatus`].
    Flows {
        /// The port that they come from; without it, of all.
        #[serde(default)]
        name: Option<String>,
        /// Not more than so many.
        most: u64,
    },
    /// A port's rules and what they have decided; answered with [`PortRules`].
    Rules {
        /// The port.
        name: String,
    },
    /// What would be done to a frame that comes from a port now, and why, without doing it; answered with a [`TraceReport`].
    Trace {
        /// The port.
        name: String,
        /// The frame from its first byte on, in hexadecimal digits; as much of it as is given.
        frame: String,
        /// The length of all of it; without it, what is given is all.
        #[serde(default)]
        length: Option<usize>,
    },
    /// The same for the next frames that come from a port. Answered with null, and then with [`Streamed::Trace`] for each, until there
    /// were so many or the client sends anything or its end; then with [`Streamed::End`].
    TraceLive {
        /// The port.
        name: String,
        /// How many frames.
        count: u64,
        /// Which frames.
        #[serde(default)]
        filter: FrameFilter,
    },
    /// Copies of the next frames of a port, as they are there. Answered with null, and then with [`Streamed::Frames`], until there were
    /// so many or the client sends anything or its end; then with [`Streamed::End`].
    Capture {
        /// The port.
        name: String,
        /// Those that go in this direction, seen from the VM; without it, both.
        #[serde(default)]
        direction: Option<Direction>,
        /// How many; without it, until the client ends it.
        #[serde(default)]
        count: Option<u64>,
        /// So much of each frame.
        snap_bytes: usize,
    },
    /// Remove a port; its VM loses its link's other end.
    RemovePort {
        /// The port.
        name: String,
    },
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortConfig {
    /// Its name, unique among the ports of all switches.
    pub name: String,
    /// The switch that it belongs to; [`DEFAULT_SWITCH`] if it is left out.
    #[serde(default = "default_switch")]
    pub switch: String,
    /// What is behind it.
    pub backend: Backend,
    /// What it may do.
    #[serde(default)]
    pub policy: PortPolicy,
}

/// What a switch connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchKind {
    /// VMs, the host and the wire.
    External,
    /// VMs and the host.
    Internal,
    /// VMs.
    Private,
}

/// A switch, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SwitchConfig {
    /// Its name, unique in the process.
    pub name: String,
    /// What it connects.
    pub kind: SwitchKind,
}

/// A switch, and how much there is of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SwitchStatus {
    /// Its name.
    pub name: String,
    /// What it connects.
    pub kind: SwitchKind,
    /// Its ports.
    pub ports: usize,
    /// Stations that are known in it.
    pub stations: usize,
    /// The thread that moves its frames, as `worker-0` is number 0. One may have several switches.
    pub worker: usize,
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A VM.
    #[serde(rename_all = "kebab-case")]
    VhostUser {
        /// Where the switch listens for it.
        socket: PathBuf,
        /// The socket's rights, like `0o600`: who may connect becomes the port.
        #[serde(default = "default_mode")]
        mode: u32,
        /// Queue pairs that it may use.
        #[serde(default = "default_queues")]
        queues: u16,
    },
    /// The host itself: a TAP of this name, made if there is none.
    Tap(String),
    /// The wire: a NIC of the host.
    Uplink(String),
    /// The wire: some NICs of the host.
    Team(TeamConfig),
}

impl From<TeamConfig> for Backend {
    fn from(team: TeamConfig) -> Backend {
        match team.as_single() {
            Some(nic) => Backend::Uplink(nic.into()),
            None => Backend::Team(team),
        }
    }
}

impl Backend {
    /// The NICs that it takes.
    pub fn nics(&self) -> &[String] {
        match self {
            Backend::VhostUser { .. } | Backend::Tap(_) => &[],
            Backend::Uplink(nic) => std::slice::from_ref(nic),
            Backend::Team(team) => &team.nics,
        }
    }
}

/// The switch that is always there: an external one.
pub const DEFAULT_SWITCH: &str = "default";

fn default_switch() -> String {
    DEFAULT_SWITCH.into()
}

fn default_mode() -> u32 {
    0o600
}

fn default_queues() -> u16 {
    8
}

/// What comes after the answer to a request that asks for more than one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "kebab-case")]
pub enum Streamed {
    /// A frame passed.
    Trace(TraceReport),
    /// Frames passed.
    Frames {
        /// The frames, in order.
        frames: Vec<CapturedFrame>,
    },
    /// That was all.
    End {
        /// Frames that were meant, and for which there was no time or room.
        missed: u64,
    },
}

/// A frame that passed a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CapturedFrame {
    /// Nanoseconds since 1970, UTC.
    pub at_ns: u64,
    /// Seen from the VM.
    pub direction: Direction,
    /// How long it was. A segment that is cut later is still whole, and its checksums may be incomplete.
    pub length: usize,
    /// Its beginning, in hexadecimal digits.
    pub bytes: String,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; what was asked for, or null.
    Ok(serde_json::Value),
    /// Not done, and nothing changed.
    Error(Failure),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The cause and the way out.
    pub message: String,
}

/// What the switch is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The switch's process.
    pub pid: u32,
    /// Whether system calls and files are confined.
    pub confined: bool,
    /// Stations that are known.
    pub stations: usize,
    /// Connections that stateful rules remember.
    pub connections: usize,
    /// Flows that were decided since the switch started.
    pub decisions: u64,
    /// What its workers did, together.
    pub work: Work,
    /// The ports, by name.
    pub ports: Vec<PortStatus>,
}

/// What threads that move frames did since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Work {
    /// Frames that it took from ports.
    pub packets: u64,
    /// Passes over all ports that found some.
    pub passes: u64,
    /// Cycles of the time stamp counter in those.
    pub busy_cycles: u64,
    /// Cycles in all.
    pub cycles: u64,
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            packets: self.packets + other.packets,
            passes: self.passes + other.passes,
            busy_cycles: self.busy_cycles + other.busy_cycles,
            cycles: self.cycles + other.cycles,
        }
    }
}

/// What a port does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// Its switch.
    pub switch: String,
    /// What is behind it.
    pub backend: Backend,
    /// Whether there is somebody: of a VM, whether its monitor is connected; of an uplink, whether a NIC of it can be used.
    pub connected: bool,
    /// Its counters.
    pub counters: CounterReport,
    /// Bytes that its meters counted, by the number of the rule in its ACL.
    pub meters: BTreeMap<u32, u64>,
    /// Of an uplink, its NICs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamStatus>,
}

/// A flow: frames that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowStatus {
    /// The port that it comes from.
    pub port: String,
    /// What its frames say about themselves.
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

/// A port's rules, in the order of its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortRules {
    /// By longest prefix.
    pub acl: Vec<RuleStatus<PrefixRule>>,
    /// By weight.
    pub extended_acl: Vec<RuleStatus<ExtendedRule>>,
}

/// A rule, and what it has decided. Answers count at the stateful rule that lets them through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuleStatus<R> {
    /// The rule.
    pub rule: R,
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A station.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StationStatus {
    /// Its address.
    pub mac: MacAddress,
    /// Its VLAN; of a private VLAN, the primary; 0 for none.
    pub vlan: u16,
    /// The switch.
    pub switch: String,
    /// The port.
    pub port: String,
}
