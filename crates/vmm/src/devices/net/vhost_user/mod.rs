//! Network devices whose data queues are served by another process over vhost-user: a port of a switch.
//!
//! ```text
//!                          ┌───────────── the back end goes away ─────────────┐
//!                          ▼                                                  │
//!  activate ──▶ [ set up: connect, replay ] ── done ──▶ [ running ] ── quiesce: GET_VRING_BASE ──▶ idle
//!                    │         ▲
//!                    └─ fails ─┘ again after 10 ms, doubling up to 1 s
//! ```
//!
//! One worker owns the connection, serves the control queue and brings a lost back end back. The rings are in guest memory,
//! so a new back end continues where the used ring says: a driver sees lost frames, nothing else.
//!
//! The message bodies are those of the `vhost` crate; the exchange of messages is ours (`protocol.rs`), because the crate's
//! `Frontend` waits for a reply for ever, does not know `SEND_RARP`, and takes one shape only for the reply to `SET_LOG_BASE`.

mod device;
mod log;
mod protocol;
mod session;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{VhostUserConfig, VhostUserHandle, VhostUserNet, VhostUserNetError};
pub use log::LogError;
pub use protocol::ProtocolError;
pub use worker::BackendStatus;
