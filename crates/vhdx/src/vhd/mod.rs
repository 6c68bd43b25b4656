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

mod bitmaps;
pub(crate) mod bytes;
mod check;
mod commit;
mod create;
mod epochs;
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
