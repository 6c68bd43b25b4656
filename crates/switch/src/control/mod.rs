//! The control socket: how a running switch is told what to do.
//!
//! As the monitor's: a `SOCK_SEQPACKET` Unix socket, each packet a JSON object; long ones go in
//! memory files. A client sends [`Request`]s and gets a [`Reply`] for each,
//! in order.

mod client;
mod protocol;
mod server;

pub use client::{Client, ClientError};
pub use protocol::{
    Backend, DEFAULT_SWITCH, Failure, PortConfig, PortStatus, Reply, Request, StationStatus, Status, SwitchConfig, SwitchKind,
    SwitchStatus, Work,
};
pub use server::serve;

pub use crate::pipeline::{ConnectionState, Imported, PortState, StationState};
