//! Virtual hosts: a data centre on one machine.

pub mod agent;
pub mod appliance;
pub mod cable;
pub mod cli;
pub mod dirs;
pub mod host;
mod lab;
pub mod pid1;

pub use lab::{CABLES, Lab, LabError, LabSpec, MAX_HOSTS, Progress};
