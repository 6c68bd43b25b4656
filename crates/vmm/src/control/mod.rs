//! The control socket: how a running monitor is told what to do, and tells what happens.
//!
//! A `SOCK_SEQPACKET` Unix socket; each packet is one JSON object, with file descriptors attached where a request brings files. A client
//! sends [`Request`]s and gets a [`Reply`] for each, in order; long requests send `progress` first. After `subscribe`, [`Event`]s come on the
//! same connection, between replies. Any number of clients may come and go: the VM belongs to none of them.

mod client;
mod protocol;

pub use ::packet::{Connection, Listener, MAX_FDS, MAX_PACKET, pair};
pub use client::{Client, ClientError};
pub use protocol::{
    DeviceStatus, Event, EventKind, Failure, LayersReport, MergedReport, Message, NewLayer, ReplacedReport, Reply, Request,
    RunStatus, SavedReport, Status,
};
