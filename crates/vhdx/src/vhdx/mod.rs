//! VHDX (MS-VHDX version 8): dynamic, fixed and differencing images of up to 64 TiB, with their log.
//!
//! ```text
//!  create ─▶ file ─▶ Image::open ─┬─ read only: a log in use is replayed in memory
//!                                 └─ read-write: it is replayed into the file
//!        Image: Mapping (map, complete, commit) ─▶ close: log empty, spare space cut off
//!        check / repair: what is wrong with a file, and what can be mended
//! ```
//!
//! # How it stays right
//! Tables live in memory, in pages that are loaded when they are looked at ([`table`]); look-ups take no lock. What changes them takes
//! the image's lock, and marks pages as dirty; nothing reaches the file before a commit, which puts all dirty pages into one entry of
//! the [`log`]: a crash finds all of a commit or nothing of it. Space that is given back is used again when no table in the file names
//! it, nobody reads it any more, and it was punched ([`space`]): whatever is taken reads as zeros.
//!
//! # I/O model
//! A block taken costs no I/O, but for the file's size, which grows in large steps. Tables are read when first needed, through
//! [`Storage`](crate::Storage), on the thread that asks. All writes are steps of commits, with three exceptions, which happen on the
//! calling thread: the first change after an open (three small writes, each with a flush), a resize, and a close.
//!
//! # Errors
//! [`OpenError`], [`CreateError`] and [`ChangeError`] name the structure and its offset in the file. No content of a file can make
//! this code panic, loop, or take memory without a bound.

mod bits;
mod check;
mod commit;
mod compact;
mod create;
mod entry;
mod error;
mod geometry;
mod header;
mod image;
pub(crate) mod layout;
mod locator;
mod log;
mod map;
mod metadata;
mod open;
mod overlay;
mod parent;
mod patch;
mod readers;
mod regions;
mod resize;
mod scan;
mod session;
mod space;
mod table;

pub use check::{Problem, Remedy, Report, check, repair};
pub use create::{CreateOptions, Kind, create};
pub use error::{ChangeError, CreateError, OpenError};
pub use image::{Image, Info};
pub use locator::Parent;
pub use open::{Access, Facts, OpenOptions, peek};
pub use resize::BeyondEnd;

#[cfg(test)]
mod tests;
