//! VHD, the virtual disks of Virtual PC and of the first Hyper-V: up to 2040 GiB, sectors of 512 bytes, no log.
//!
//! ```text
//!   fixed                 data ................................................ footer
//!   dynamic, differencing footer copy, header, table, (parent's paths,) block, block, ... footer
//!   block                 bitmap of its sectors, data
//! ```
//!
//! [`create`] makes an image, [`Image`] is an open one and answers where data is ([`Mapping`](crate::Mapping)); [`check`] and [`repair`]
//! look at a file that nobody has open. How the order of writes keeps a file good is in `commit.rs`. Nothing in a file is believed before
//! all its tables were found to be inside the file and apart from each other; one that is not understood is never written to.
//!
//! # What it does not have
//! - A child knows its parent by an id that stays when the parent is changed: nobody notices that ([`ParentName::id`]).
//! - A block of a differencing disk is in its file or the parent's: zeros there are written, and take a block.
//! - A fixed disk has one footer. A crash while it grows can leave it inside the file; only [`repair`] may cut the file there, since what
//!   stands in the first sector is the guest's.
//!
//! # I/O model
//! As [`vhdx`](crate::vhdx): a block taken makes the file longer, on the thread that asks; bitmaps of sectors are read when first
//! needed; all other writes are steps of commits, but for a resize, another parent, and blocks that move. Look-ups in the table take no
//! lock but one that many readers share.

mod bitmaps;
mod bytes;
mod check;
mod commit;
mod compact;
mod create;
mod error;
mod footer;
mod header;
mod image;
mod layout;
mod map;
mod parent;
mod resize;
mod space;

#[cfg(test)]
mod tests;

pub use check::{Report, check, repair};
pub use create::{BLOCK_SIZE, CreateOptions, NewKind, create};
pub use error::{CreateError, Damage, OpenError, ParentError, RepairError, ResizeError};
pub use footer::{Kind, MAX_SIZE, SECTOR, Timestamp, UniqueId};
pub use image::{Access, FooterState, Image, Info};
pub use parent::ParentName;
