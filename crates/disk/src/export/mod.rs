//! Disks for other platforms, written: qcow2 and VMDK.
//!
//! A file is filled from front to back: whatever part of the disk comes takes the next free units. Zeros take none. The tables in front
//! of the data have their place from the beginning, or take units as well; what describes them comes last. The file is one that nobody
//! knows yet, so a crash leaves nothing that would have to be whole.

mod qcow2;
mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::import::Format;

/// The unit in which space is taken, in bytes: both formats' usual one.
pub(crate) const UNIT: u64 = 64 << 10;

/// A disk in the making; any thread may write.
pub(crate) enum Writer {
    Qcow2(qcow2::Writer),
    Vmdk(vmdk::Writer),
}

impl Writer {
    /// A disk of `size` bytes, whole sectors of 512, in an empty file that is going to be at `path`.
    ///
    /// # Errors
    /// `InvalidInput` if the format has no disks of this size.
    pub fn new(format: Format, file: Arc<File>, path: &Path, size: u64) -> io::Result<Writer> {
        Ok(match format {
            Format::Qcow2 => Writer::Qcow2(qcow2::Writer::new(file, size)),
            Format::Vmdk => Writer::Vmdk(vmdk::Writer::new(file, path, size)?),
        })
    }

    /// Writes a part of the disk, once. It begins at a whole unit, ends at one or at the disk's end, and lies inside of 2 MiB that
    /// begin at a multiple of that (and so in one table, of whatever format).
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Writer::Qcow2(writer) => writer.write(offset, data),
            Writer::Vmdk(writer) => writer.write(offset, data),
        }
    }

    /// Makes the file an image. Nothing is durable yet.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Writer::Qcow2(writer) => writer.finish(),
            Writer::Vmdk(writer) => writer.finish(),
        }
    }
}

/// The file's units, which are taken in order.
struct Space {
    file: Arc<File>,
    next: Mutex<u64>,
}

impl Space {
    fn new(file: Arc<File>, first: u64) -> Space {
        Space { file, next: Mutex::new(first) }
    }

    /// Takes this many units; answers the offset of the first.
    fn take(&self, units: u64) -> u64 {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *next;
        *next += units;
        first * UNIT
    }

    /// Units taken, and those in front of them.
    fn units(&self) -> u64 {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is not zeros into new units; answers where each unit of the data is, `None` of those that are zeros.
    fn append(&self, data: &[u8]) -> io::Result<Vec<Option<u64>>> {
        let is_data: Vec<bool> = data.chunks(UNIT as usize).map(|unit| unit.iter().any(|byte| *byte != 0)).collect();
        let mut at = self.take(is_data.iter().filter(|it| **it).count() as u64);
        let mut places = Vec::with_capacity(is_data.len());
        let mut done = 0;
        // Units that follow each other in the disk do so in the file.
        for run in is_data.chunk_by(|one, other| one == other) {
            let end = data.len().min(done + run.len() * UNIT as usize);
            if run[0] {
                self.file.write_all_at(&data[done..end], at)?;
                places.extend((0..run.len() as u64).map(|index| Some(at + index * UNIT)));
                at += run.len() as u64 * UNIT;
            } else {
                places.extend(run.iter().map(|_| None));
            }
            done = end;
        }
        Ok(places)
    }
}
