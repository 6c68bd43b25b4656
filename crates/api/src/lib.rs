//! What goes over the REST API, `/api/v1`: the types of requests and answers, and nothing else.
//!
//! Whoever talks to `marud` in Rust uses these; `marud` answers with them and makes the OpenAPI document, `openapi.json` beside this crate's
//! `Cargo.toml`, from them. They are apart from what is stored and from what runs: each of the three may change without the others.
//!
//! Times are RFC 3339, sizes are bytes, ids are UUIDs. A request with a field that is not known is refused: a spelling mistake must not pass
//! as a default. An answer may have more fields tomorrow, and a client must not mind.

mod checkpoint;
#[cfg(feature = "client")]
pub mod client;
mod cloud_init;
mod cluster;
mod console;
mod error;
mod event;
#[cfg(feature = "client")]
mod failover;
mod guest;
mod host;
mod image;
mod placement;
mod policy;
#[cfg(feature = "client")]
mod reach;
mod resources;
mod switch;
mod task;
mod team;
#[cfg(all(feature = "client", any(test, feature = "testing")))]
pub mod testing;
mod token;
mod usage;
mod vm;
mod volume;
mod watching;
#[cfg(feature = "client")]
mod websocket;

pub use checkpoint::{
    Checkpoint, CheckpointDisk, CheckpointKind, DiskChain, DiskFile, NewCheckpoint, Otherwise, RenameCheckpoint, WantedCheckpoint,
};
pub use cloud_init::{CloudInit, CloudNet};
pub use cluster::{
    Certificates, Cluster, ClusterHost, ClusterStatus, CreatedJoinToken, JoinAnswer, JoinCluster, JoinRequest, NewCluster,
    NewJoinToken, StoreAddress, StorePart,
};
pub use console::ConsoleEvent;
pub use error::Error;
pub use event::{Event, EventKind};
pub use guest::{Guest, GuestNet};
pub use host::HostInfo;
pub use image::{Image, ImageChange, ImageFormat, NewImage};
pub use placement::{
    Affinity, ClusterPolicy, Explanation, Failback, FailbackWindow, GroupRule, HostVerdict, MoveVm, Placement, Priority, Scope,
    VmFate, WhatIf,
};
pub use policy::{
    Bandwidth, Direction, Effect, ExtendedRule, Mirroring, Permission, PortPolicy, PortRange, PrefixAction, PrefixRule,
    RuleAddress, Stateful, VlanMode, VlanRange,
};
pub use resources::{Burst, DiskLimits, NetLimits, Rate, Resources};
pub use switch::{NewSwitch, Port, PortCounters, PortKind, RuleCounters, Station, Switch, SwitchChange, SwitchKind};
pub use task::{LogLine, Operation, Progress, ProgressUnit, Task, TaskState};
pub use team::{
    Datapath, DatapathKind, LacpMux, LacpRate, LacpReceive, Nic, NicCounters, NicDatapath, NicLacp, NicPartner, Team, TeamChange,
    TeamMode,
};
pub use token::{CreatedToken, NewToken, Role, Token};
pub use usage::Usage;
pub use vm::{
    AutoStart, AutoStartPolicy, Boot, CloneVm, Console, Disk, DiskAction, DiskFormat, Ending, ExportVm, ImportMode, ImportVm,
    Net, SavedVm, Vm, VmSpec, VmState,
};
pub use volume::{NewVolume, Volume, VolumeChange, VolumeKind, VolumeLevel};
pub use watching::{Flow, FrameFilter, NewCapture, NewTrace, NewWatch, Trace, TraceAction, TraceStep, WatchEnd, Watched};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the API is, below the server's address.
pub const BASE: &str = "/api/v1";
/// The port that `marud` listens on if nothing else is said.
pub const DEFAULT_PORT: u16 = 8420;
/// The file, in the directory of `marud`'s state, that says where it listens now: `ADDRESS:PORT` and a newline.
pub const ADDRESS_FILE: &str = "address";

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// What to send as `after` to get the items behind these; absent with the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
