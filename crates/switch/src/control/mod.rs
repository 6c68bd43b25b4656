//! The control socket: how a running switch is told what to do.
//!
//! As the monitor's: a `SOCK_SEQPACKET` Unix socket, each packet a JSON object; long ones go in
//! memory files. A client sends [`Request`]s and gets a [`Reply`] for each,
//! in order; after some, more follow ([`Streamed`]).

mod client;
mod protocol;
mod server;
mod stream;

pub use client::{Client, ClientError, Stopper};
pub use protocol::{
    Backend, CapturedFrame, DEFAULT_SWITCH, Failure, FlowStatus, PortConfig, PortRules, PortStatus, Reply, Request, RuleStatus,
    StationStatus, Status, Streamed, SwitchConfig, SwitchKind, SwitchStatus, Work,
};
pub use server::serve;
pub(crate) use stream::{Stream, send, stream};

pub use crate::pipeline::{ConnectionState, Imported, PortState, StationState};
