//! VHDX and VHD virtual disks: what their files mean.
//!
//! This crate moves no data of the virtual disk. It answers where a range of it lives ([`Mapping`]), keeps the tables, and says what has
//! to be written in which order; one engine (io_uring under a VM, plain files in tools, memory in tests) does the rest.

#![forbid(unsafe_code)]

mod epochs;
mod guid;
mod mapping;
mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vhd;
pub mod vhdx;

pub use guid::Guid;
pub use mapping::{Commit, Extent, MapError, Mapping, Place, Step, Ticket};
pub use storage::Storage;
