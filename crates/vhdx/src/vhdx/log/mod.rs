//! The log (MS-VHDX 2.3): a ring in which changes of tables are written before they are made in place.
//!
//! ```text
//!  commit   flush payload ▶ entry into the ring ▶ flush ▶ pages in place ─┐
//!    ▲                                                                    │ the next commit's first flush makes them stable:
//!    └────────────────────────────────────────────────────────────────────┘ its entry is its own tail, and replays alone
//! ```
//!
//! An entry takes half of the ring at most and stands behind the one before it, so that a torn entry leaves its predecessor whole:
//! in a log that is in use there is a valid entry at every moment.

mod entry;
mod find;
mod replay;

pub(crate) use entry::{LogWriter, Page};
pub(crate) use replay::{Target, replay};
