//! What people do with disks that no VM uses: make, look at, convert, resize, merge.
//!
//! ```text
//!   create, convert, export, copy ──▶ a new file that has no name until it is whole and durable
//!   resize, merge, compact, rebase ──▶ the image itself, in steps that a crash may cut at any point; run again, they finish
//!   info, check, map, compare ──▶ only read
//! ```
//!
//! One file for each operation. All work on plain files, on the calling thread or on a few threads of their own; a [`Job`] tells another
//! thread how far they are, and lets it end them.
//!
//! # Locks
//! Whatever is written is locked as a VM's disk is, and so are the files that it is made from; [`info()`] and [`check()`] also look at disks
//! that are in use. [`create_layer`] makes a child of one that is being written, and [`merge_in_use`] goes on below VMs.
//!
//! # Errors
//! All are [`ToolError`]s, whose text names the file, the cause and the way out. After one, or after [`Job::cancel`], what was there before is
//! there still, or what the operation goes on from when it is run again.

mod check;
mod compact;
mod compare;
mod convert;
mod copy;
mod create;
mod detect;
mod error;
mod export;
mod format;
mod info;
mod job;
mod locator;
mod map;
mod merge;
mod newfile;
mod open;
mod pieces;
mod rebase;
mod resize;
mod source;
mod target;
mod windows;
mod zeros;

pub use crate::format::DiskType;
pub use check::{Finding, Remedy, Report, check, repair};
pub use compact::compact;
pub use compare::compare;
pub use convert::{convert, convert_alone};
pub use copy::{Method as CopyMethod, copy};
pub use create::{NewDisk, create, create_layer};
pub use detect::detect;
pub use error::ToolError;
pub use export::export;
pub use format::AnyFormat;
pub use info::{DiskInfo, ImageInfo, ParentInfo, Usage, info};
pub use job::Job;
pub use map::map;
pub use merge::{Child, merge, merge_in_use};
pub use newfile::Existing;
pub use pieces::{PieceReader, PieceWriter};
pub use rebase::{Content as RebaseContent, rebase};
pub use resize::{Smaller, resize};
pub use source::{Segment, Where};

#[cfg(test)]
mod tests;
