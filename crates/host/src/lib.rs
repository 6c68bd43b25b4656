//! The daemon of a host, `marud`: it owns the host's VMs and answers the API.
//!
//! ```text
//!  clients ──HTTPS──▶ web ──▶ state (store) ──watch──▶ host ──▶ vm::Actor, one for each VM
//!                      ▲                                             │ control socket, process
//!                      └─────────── what the VM does (Live) ◀────────┴──▶ maru-vmm, one for each VM
//! ```
//!
//! VMs' network cards are attached to virtual switches, which are one more process: [`net`].
//!
//! # Life cycle
//! At start, `marud` opens the store (which checks it), makes its certificate, and finds the monitors that run. Then it serves until it is
//! told to end, or killed: that makes no difference, to no VM. VMs are processes of their own, with files and a control group of their
//! own, and everything that `marud` must remember is in the store before it is done.
//!
//! # I/O model
//! Tokio for what waits: clients, monitors, time. The store, which waits for the disk, is used on threads for that
//! ([`state::State::run`]).
//!
//! # Errors
//! Requests are refused with a [`records::Cause`]: a word for programs, the cause, the way out. A task that fails keeps one. A store that
//! cannot be written stops what would change it, and no VM.

pub mod anew;
pub mod audit;
pub mod auth;
pub mod autostart;
pub mod cluster;
pub mod copies;
pub mod host;
pub mod images;
pub mod net;
pub mod options;
pub mod peers;
pub mod records;
pub mod state;
pub mod tls;
pub mod vm;
pub mod volumes;
pub mod web;
