//! The log (MS-VHDX 2.3): a ring in which changes of tables are written before they are made in place.
//!
//! ```text
//!  commit    (flush) ▶ entry into the ring ▶ flush ▶ pages in place
//! ```
//!
//! The first flush makes stable what must be so before tables name it: data that hides a parent's, holes in space that is used again.
//! It also makes the pages of the commit before stable in their places, so that the new entry replays alone. Where tables only name
//! fresh space, which reads as zeros until the data arrives, there is no first flush; the entry asks for a replay of the one before it
//! as well, and its own flush serves both.
//!
//! An entry takes a third of the ring at most and stands behind the one before it. So the two entries that a replay may need are whole
//! while a third is written: in a log that is in use there is a valid sequence at every moment.

mod entry;
mod find;
mod replay;

pub(crate) use entry::{FileSizes, LogWriter, Page, Tail};
pub(crate) use replay::{Target, replay};
