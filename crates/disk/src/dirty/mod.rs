//! Which regions of a disk were written since some point in time: what an incremental backup, a replica or a mirror has to copy.
//!
//! ```text
//!   queue, for each write                                    backup "nightly"
//!   Marker::write_begins ─▶ bit in every map                 Tracker::take("nightly") ─▶ Taken: the marks, no longer in the map
//!        │                  region's journal bit stable          │ copies the regions
//!        ▼                                                       ├─ Taken::confirm: done with
//!   the write itself                                             └─ dropped: the marks go back
//!        ▼
//!   Marker::write_ended ──▶ bit in every map                 Tracker::checkpoint: exact bits on stable storage, journal empty
//! ```
//!
//! A [`Tracker`] has several named maps of one disk, each with its own [`Granularity`] and its own past. A [`DirtyMap`] alone is the bits.
//!
//! # Why a write marks twice
//! Before it starts, because after a crash it may have happened. After it ended and before it is reported, because a `take` in between
//! would copy the old data and clear the mark. Marks are atomic operations on bits; queues share no lock.
//!
//! # What is guaranteed
//! After a clean stop ([`Tracker::checkpoint`] with no writes after it), the maps are exact. After a crash at any moment, **a region
//! that was written is never reported clean**: the maps are those of the last checkpoint, plus every coarse region that was written
//! since. Coarse regions are noted in a journal of one block, on stable storage, before the first write into each: that
//! costs one small write and one flush per coarse region between two checkpoints, which queues that come together share, and nothing
//! for all other writes. A coarse region has 16 MiB on disks up to half a terabyte, 4 GiB on one of 64 TiB.
//!
//! Marks that were taken and not confirmed are part of each checkpoint, so that a backup which a crash ends has lost nothing.
//!
//! # Which file belongs to which disk
//! The file carries the disk's [`Identity`]: who it is, its size, and a mark that changes whenever somebody writes it without the map
//! (VHDX: the DataWriteGuid). If one differs, other than a size that has grown, [`OpenError`] says so; the caller then starts new maps, and
//! what depends on them begins with a full copy. The same goes for a file that is damaged: no guess is made about what it said.
//!
//! # The file
//! ```text
//!   0      header, slot 0      magic, version, generation, identity, where the snapshot is, checksum
//!   4096   header, slot 1      the valid one with the larger generation counts
//!   8192   journal, slot 0     eight sectors, each with generation, bits and checksum
//!   12288  journal, slot 1     a header's journal is in the slot of the same number
//!   16384  snapshots           the current one, and while a checkpoint is made, the next one beside it
//! ```
//! A checkpoint writes snapshot and empty journal of the next generation, flushes, and then its header, so that at each moment one
//! generation is whole. A sector of the journal that cannot be read stands for "everything was written".

mod error;
mod file;
mod format;
mod journal;
mod map;
mod noter;
mod snapshot;
mod tracker;

use std::path::{Path, PathBuf};

pub use error::{MapError, OpenError, PersistError};
pub use map::DirtyMap;
pub(crate) use noter::Noter;
pub use tracker::{Marker, Recovery, Taken, Tracker};
pub use vhdx::Storage;

/// The size of a map's regions: a power of two from 4 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granularity {
    shift: u8,
}

impl Granularity {
    /// 64 KiB.
    pub const DEFAULT: Granularity = Granularity { shift: 16 };

    /// Regions of so many bytes; `None` if it is not a power of two from 4 KiB to 64 MiB.
    pub fn new(bytes: u64) -> Option<Granularity> {
        if bytes.is_power_of_two() { Granularity::from_shift(bytes.trailing_zeros() as u8) } else { None }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        1 << self.shift
    }

    fn from_shift(shift: u8) -> Option<Granularity> {
        (12..=26).contains(&shift).then_some(Granularity { shift })
    }
}

impl Default for Granularity {
    fn default() -> Granularity {
        Granularity::DEFAULT
    }
}

/// What tells one disk, in one state, from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who the disk is.
    pub disk: [u8; 16],
    /// Changes when the disk was written by somebody who does not know the map.
    pub data_write: [u8; 16],
    /// Its size in bytes.
    pub size: u64,
}

/// The most maps that a disk has.
pub const MAX_MAPS: usize = 64;
/// The longest name of a map in bytes.
pub const MAX_NAME: usize = 128;

/// Where the maps of a disk are kept: beside it, with `.dirty` added to its name.
///
/// ```
/// assert_eq!(disk::dirty::file_beside("/srv/a.vhdx".as_ref()), std::path::Path::new("/srv/a.vhdx.dirty"));
/// ```
pub fn file_beside(disk: &Path) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(".dirty");
    name.into()
}

#[cfg(test)]
mod tests;
