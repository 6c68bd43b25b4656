//! What every image format answers: where a range of the virtual disk lives in its file, and what has to be written, in which
//! order, so that what the user was promised survives a crash.
//!
//! ```text
//!   read    map_read ──▶ extents: file, zeros, parent ──▶ caller reads them ──▶ finish(ticket)
//!   write   map_write ─▶ extents: file ─────────────────▶ caller writes them ─▶ complete(ticket), or finish(ticket) on failure
//!   zero    map_zero ──▶ extents: file, to punch ───────▶ caller punches them ▶ complete(ticket), or finish(ticket) on failure
//!   flush   begin_commit ▶ steps ─▶ caller does them in order; at Step::Durable it may answer its user ─▶ end_commit
//! ```
//!
//! A block that a write needs is taken in memory at once and costs no I/O; tables reach the file with the next commit. A crash before
//! it loses what was not flushed, and only that.

use std::io;

/// Where a part of the virtual disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image's file, at this offset.
    File(u64),
    /// Nowhere: it reads as zeros.
    Zero,
    /// In the parent, at the same offset of the virtual disk. Zeros where the parent ends before it.
    Parent,
}

/// A part of the virtual disk in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes; never zero.
    pub length: u64,
    /// Where it is.
    pub place: Place,
}

/// What was mapped and is being read or written: while a ticket is out, its place in the file is given to nobody else. Each ticket
/// goes back exactly once, with [`Mapping::complete`] or [`Mapping::finish`].
#[must_use = "a ticket that does not go back keeps freed space from being used for ever"]
#[derive(Debug)]
pub struct Ticket {
    pub(crate) epoch: u8,
    pub(crate) change: Change,
}

/// What completing a ticket makes true.
#[derive(Debug)]
pub(crate) enum Change {
    Nothing,
    /// These bytes of the virtual disk are in this file, no longer in the parent.
    Present {
        offset: u64,
        length: u64,
    },
}

/// One thing to do on the image's file. Writes and punches between two flushes may be done in any order and at the same time; a
/// flush comes after all before it and before all after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write bytes. Offset and length are multiples of 4096 in VHDX, of 512 in VHD.
    Write {
        /// In the file.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// Make all that was written stable, with the file's size.
    Flush,
    /// All that was complete when the commit began is now safe: flush requests that came before that may be answered.
    Durable,
    /// Give a range back to the file system; it reads as zeros then.
    Punch {
        /// In the file.
        offset: u64,
        /// In bytes.
        length: u64,
    },
}

/// The steps of one commit, to be done in order.
#[must_use = "a commit that does not end keeps all later ones waiting"]
#[derive(Debug)]
pub struct Commit {
    /// What is left to do.
    pub steps: std::collections::VecDeque<Step>,
    pub(crate) id: u64,
}

/// Why a range could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The range is not inside the virtual disk, or not made of whole sectors.
    #[error("bytes {offset} to {end} are not whole sectors inside the disk of {size} bytes")]
    Range {
        /// First byte.
        offset: u64,
        /// First byte after it.
        end: u64,
        /// The virtual disk's size.
        size: u64,
    },
    /// The image was opened for reading only.
    #[error("the image is open for reading only")]
    ReadOnly,
    /// So many tables were changed that they must be written first: do a commit, then ask again.
    #[error("tables have to be written first")]
    CommitFirst,
    /// A table of the image is damaged. Nothing was changed.
    #[error("{structure} at offset {offset} of the file: {problem}; check the image with 'maru disk check'")]
    Damaged {
        /// Which part of the format.
        structure: &'static str,
        /// Where it is in the file.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The file could not be read, or not be made longer.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// An open image. All methods may be called from any thread at any time; none waits for data I/O of others.
pub trait Mapping: Send + Sync {
    /// The virtual disk's size in bytes.
    fn size(&self) -> u64;

    /// The unit in which the virtual disk is addressed: 512 or 4096.
    fn logical_sector_size(&self) -> u32;

    /// The unit below which writes cost a read: 512 or 4096.
    fn physical_sector_size(&self) -> u32;

    /// The unit in which space is taken, in bytes.
    fn block_size(&self) -> u32;

    /// Whether reads may lead to a parent.
    fn has_parent(&self) -> bool;

    /// Appends where `length` bytes from `offset` on are, in order.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is appended then.
    fn map_read(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError>;

    /// Appends where to write `length` bytes from `offset` on: always in the file. Space is taken where there is none.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is appended then, and nothing that a reader could see was changed.
    fn map_write(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError>;

    /// Makes a range read as zeros, and gives its space back as far as that goes. Whole blocks change in the tables; what is left is
    /// appended as places in the file, for the caller to punch (or write zeros to), before it completes the ticket.
    ///
    /// # Errors
    /// See [`MapError`].
    fn map_zero(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError>;

    /// Gives a range's space back as far as that goes; what it reads as afterwards is undefined. As [`Mapping::map_zero`], unless making
    /// zeros would take space.
    ///
    /// # Errors
    /// See [`MapError`].
    fn map_discard(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.map_zero(offset, length, extents)
    }

    /// What was mapped for writing or zeroing was written, and readers see it from now on.
    fn complete(&self, ticket: Ticket);

    /// Reading has ended, or writing has failed.
    fn finish(&self, ticket: Ticket);

    /// Whether a plain flush of the file is all that a commit would do now. An answer for a caller who knows what it completed.
    fn is_clean(&self) -> bool;

    /// The steps that make durable what is complete now; `None` while another commit is under way, which the caller waits for.
    ///
    /// # Errors
    /// See [`MapError`].
    fn begin_commit(&self) -> Result<Option<Commit>, MapError>;

    /// A commit has ended. If a step failed, nothing is lost: what the commit carried is part of the next one.
    fn end_commit(&self, commit: Commit, result: Result<(), io::ErrorKind>);
}
