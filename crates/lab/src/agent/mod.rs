//! The exec agent: runs programs and carries files in a host, through a virtio-serial port.
//!
//! ```text
//!   client (this machine) ── unix socket ── QEMU ── virtio-serial port ── agent (in the host)
//! ```
//!
//! The port is reachable only through the socket, which lies in a directory that only its owner may enter; there is no
//! way to the agent over any network. Many channels share the port: each runs one program or carries one file. Every
//! stream of a channel has a window of [`frame::WINDOW`] bytes that the receiver opens again as it consumes, so a
//! stream that nobody reads stops alone.
//!
//! **Life cycle.** A client sends a preamble of zeros, which ends whatever an earlier client left half sent, then a hello
//! with a random number. The agent drops all channels of the earlier client, killing their programs, and repeats the
//! hello; the client ignores everything before that repetition. An agent that starts (the host was reset) says so, which
//! ends the client's session.

mod client;
mod flow;
pub(crate) mod frame;
mod process;
mod server;
mod terminal;

pub use client::{AgentError, Client};
pub use frame::{ExitStatus, TerminalSize};
pub use process::{Event, Exec, Input, Output, Process};
pub use server::{PORT_NAME, serve};
