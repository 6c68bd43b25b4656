//! What goes over the daemon's control socket: one line of JSON each way.
//!
//! After the answer to [`Request::Exec`], the connection carries frames of the agent's kind: data, end, signals and sizes
//! to the program, data and its exit from it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::agent::TerminalSize;
use crate::cable::{Conditions, Counters, Direction};
use crate::host::PowerState;

/// Name of the socket in the lab's runtime directory.
pub const SOCKET: &str = "control";

/// What a daemon is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DaemonSpec {
    pub name: String,
    pub hosts: usize,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disks_mib: Vec<u64>,
    pub shared_disks_mib: Vec<u64>,
    pub state_disk_mib: Option<u64>,
    /// Whether the hosts share a directory.
    pub shared_dir: bool,
    pub programs: Vec<(String, String)>,
    /// Whether the hosts get the test guest's image.
    pub guest: bool,
    /// Whether the hosts run `marud`.
    pub managed: bool,
    /// Whether the hosts become one cluster.
    pub cluster: bool,
    /// Whether the last of them is its witness.
    pub witness: bool,
}

/// What the starting daemon tells `maru lab up`, one line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartEvent {
    Doing(String),
    HostReady { host: String, seconds: f64 },
    Ready,
    Failed(String),
}

/// A use of the power switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Switch on and wait until the host is up
    On,
    /// Take the power away without warning
    Off,
    /// Press the reset button and wait until the host is up
    Reset,
    /// Shut down in order
    Shutdown,
    /// Stand still while time goes on
    Freeze,
    /// Go on
    Thaw,
}

/// What a client asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status,
    Exec { host: String, argv: Vec<String>, env: Vec<(String, String)>, terminal: Option<TerminalSize> },
    Push { host: String, local: PathBuf, path: String },
    Pull { host: String, path: String, local: PathBuf },
    Power { host: String, action: PowerAction },
    Forward { host: String, port: u16 },
    Change { host: String, cable: Option<usize>, direction: Direction, change: Change },
    Restore { host: String, cable: Option<usize> },
    Capture { cable: usize, file: Option<PathBuf> },
    Down,
}

/// What shall change on a link; what is left out stays.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Change {
    pub cut: bool,
    pub loss_percent: Option<f64>,
    pub delay_us: Option<u64>,
    pub bits_per_second: Option<u64>,
}

/// The daemon's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    Status(Status),
    Address(String),
    Refused(String),
}

/// The lab as `status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub accelerator: String,
    pub state_dir: PathBuf,
    pub hosts: Vec<HostStatus>,
}

/// A host as `status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStatus {
    pub name: String,
    pub power: PowerState,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disks: usize,
    pub serial_log: PathBuf,
    pub cables: Vec<CableStatus>,
}

/// A host's end of a cable as `status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CableStatus {
    pub address: Ipv4Addr,
    pub mac: String,
    pub from_host: Conditions,
    pub to_host: Conditions,
    pub counters: Counters,
}
