//! The socket device (virtio 1.2 §5.10): byte streams between programs in the guest and programs on the host.
//!
//! On the host, a stream is a unix socket, so that no privileges and no kernel module are needed. The scheme is Firecracker's:
//!
//! - *From the host:* connect to the base path and send `CONNECT <guest port>\n`. When the guest accepts, `OK <host port>\n`
//!   comes back, and the stream begins; when it does not, the socket is closed.
//! - *From the guest:* a connection to context 2, port `P` arrives at the unix socket `<base path>_<P>`.
//!
//! ```text
//!            unix socket accepted        CONNECT line        RESPONSE
//!  (host) ───────────────────▶ handshake ───────────▶ requested ──────┐
//!                                                                     ▼       host's end closed            RST, or too long
//!  (guest) ─── REQUEST, and the unix socket accepts ───────────────▶ open ──────────────────────▶ closing ────────────▶ gone
//!                                                                     │ guest closed                                    ▲
//!                                                                     └───────▶ draining ── all written to the host ────┘
//! ```
//!
//! # Flow
//! What the guest sends and the unix socket does not take is kept, up to the credit that the guest was given. What the host sends
//! stays in the unix socket until the guest has credit and buffers. Connections take turns, a packet each.
//!
//! # Life cycle
//! Connections outlive a pause. A restored device has none: the guest is told so by `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.

mod command;
mod connection;
mod credit;
mod device;
mod packet;
mod queue;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockConfig, VsockError, VsockHandle};
pub use state::VsockState;
pub use table::{Counters, MAX_CONNECTIONS};
