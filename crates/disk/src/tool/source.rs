//! A disk that is read: one file, a chain of images, or a disk of another platform.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhdx::{Extent, Mapping, Place, Storage};

use super::open::OpenImage;
use super::{AnyFormat, ToolError};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::format::{Format, Identity};
use crate::import::{self, Content};

/// Where a part of the virtual disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In a file of the chain: 0 is the disk's own, 1 its parent's.
    File {
        /// Which file.
        depth: usize,
        /// Where in it.
        offset: u64,
    },
    /// It reads as zeros, because this file of the chain says so.
    Zero {
        /// Which file.
        depth: usize,
    },
    /// In a disk of another platform, which does not tell where.
    Foreign,
    /// In a parent that was not looked at.
    Below,
}

/// A part of the virtual disk in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// In the virtual disk.
    pub offset: u64,
    /// In bytes; never zero.
    pub length: u64,
    /// Where it is.
    pub place: Where,
}

impl Segment {
    /// Whether it has to be read: it is not known to be zeros.
    pub(super) fn is_data(&self) -> bool {
        matches!(self.place, Where::File { .. } | Where::Foreign)
    }

    /// Cuts it in two; `at` is inside it.
    pub(super) fn split(self, at: u64) -> (Segment, Segment) {
        let first = at - self.offset;
        let place = match self.place {
            Where::File { depth, offset } => Where::File { depth, offset: offset + first },
            other => other,
        };
        (Segment { length: first, ..self }, Segment { offset: at, length: self.length - first, place })
    }
}

/// One file of a chain.
pub(super) struct Level {
    pub path: PathBuf,
    pub file: Arc<dyn Storage>,
    /// None of a raw disk.
    pub tables: Option<Arc<dyn Mapping>>,
    pub size: u64,
}

/// A disk open for reading.
pub(super) struct Source {
    pub levels: Vec<Level>,
    foreign: Option<import::Source>,
    pub path: PathBuf,
    pub size: u64,
    /// Whether there is something under the last level.
    pub is_cut: bool,
    /// Keeps the locks.
    disk: Option<Disk>,
}

impl Source {
    /// Opens a disk with all its parents, and locks it against writers. Disks of other platforms cannot be locked.
    pub fn open(path: &Path, format: AnyFormat) -> Result<Source, ToolError> {
        Source::open_with(path, format, import::References::Beside)
    }

    /// Opens a disk that is in one file, and no other file.
    pub fn open_alone(path: &Path, format: AnyFormat) -> Result<Source, ToolError> {
        let deny = import::References::Deny;
        let AnyFormat::Own(own @ (Format::Vhdx | Format::Vhd)) = format else { return Source::open_with(path, format, deny) };
        // Its lock keeps it as it is while it is opened again.
        let alone = OpenImage::open(path, own, Access::ReadOnly, Locking::Now)?;
        if alone.image.has_parent() {
            let problem = "it is a differencing image, which needs another one, its parent; make one disk of them where both are";
            return Err(ToolError::options(path, format!("{problem} (maru disk convert)")));
        }
        Source::open_with(path, format, deny)
    }

    fn open_with(path: &Path, format: AnyFormat, references: import::References) -> Result<Source, ToolError> {
        let (disk, foreign) = match format {
            AnyFormat::Own(format) => {
                let options = OpenOptions { format, access: Access::ReadOnly, ..OpenOptions::default() };
                (Some(Disk::open(path, options)?), None)
            }
            AnyFormat::Foreign(format) => (None, Some(import::open(path, format, references)?)),
        };
        let mut levels = Vec::new();
        if let Some(disk) = &disk {
            let tables = disk.image().and_then(crate::image::Image::tables);
            let own = disk.own();
            levels.push(Level {
                path: own.path.clone(),
                file: own.file.clone(),
                tables: tables.map(|it| it as Arc<dyn Mapping>),
                size: disk.capacity(),
            });
            for parent in disk.image().iter().flat_map(|it| it.parents()) {
                let (path, file) = (parent.layer.path.clone(), parent.layer.file.clone() as Arc<dyn Storage>);
                let (size, tables) = (parent.tables.size(), Arc::clone(&parent.tables) as Arc<dyn Mapping>);
                levels.push(Level { path, file, tables: Some(tables), size });
            }
        }
        let size = foreign.as_ref().map_or_else(|| levels.first().map_or(0, |it| it.size), import::Source::size);
        Ok(Source { levels, foreign, path: path.to_owned(), size, is_cut: false, disk })
    }

    /// Files that the caller has opened and locked.
    pub fn of_levels(levels: Vec<Level>, is_cut: bool) -> Source {
        let (path, size) = levels.first().map_or_else(Default::default, |it| (it.path.clone(), it.size));
        Source { levels, foreign: None, path, size, is_cut, disk: None }
    }

    /// What children know an image by; `None` while it is none, or not locked.
    pub fn identity(&self) -> Option<Identity> {
        Some(self.disk.as_ref()?.image()?.tables()?.identity())
    }

    /// The unit of the disk's addresses.
    pub fn sector_size(&self) -> u32 {
        self.levels.first().and_then(|it| it.tables.as_ref()).map_or(512, |it| it.logical_sector_size())
    }

    /// Appends where a range is. It lies inside the disk and is made of whole sectors, except at the end of a raw disk.
    pub fn find(&self, offset: u64, length: u64, found: &mut Vec<Segment>) -> Result<(), ToolError> {
        match &self.foreign {
            Some(foreign) => find_foreign(foreign, offset, length, found),
            None => self.find_from(0, offset, length, found),
        }
    }

    fn find_from(&self, depth: usize, offset: u64, length: u64, found: &mut Vec<Segment>) -> Result<(), ToolError> {
        let Some(level) = self.levels.get(depth) else {
            let place = if self.is_cut { Where::Below } else { Where::Zero { depth: depth.saturating_sub(1) } };
            push(found, Segment { offset, length, place });
            return Ok(());
        };
        let inside = level.size.saturating_sub(offset).min(length);
        if inside > 0 {
            match &level.tables {
                None => self.split_holes(depth, offset, inside, offset, found)?,
                Some(tables) => self.find_in_image(depth, &**tables, offset, inside, found)?,
            }
        }
        if inside < length {
            push(found, Segment { offset: offset + inside, length: length - inside, place: Where::Zero { depth } });
        }
        Ok(())
    }

    fn find_in_image(
        &self,
        depth: usize,
        tables: &dyn Mapping,
        offset: u64,
        length: u64,
        found: &mut Vec<Segment>,
    ) -> Result<(), ToolError> {
        let mut extents = Vec::new();
        let ticket = tables.map_read(offset, length, &mut extents).map_err(ToolError::map(&self.levels[depth].path))?;
        // Nobody takes what was found away: the image is open for reading only, or this tool is its only user.
        tables.finish(ticket);
        let mut at = offset;
        for Extent { length, place } in extents {
            match place {
                Place::File(start) => self.split_holes(depth, at, length, start, found)?,
                Place::Zero => push(found, Segment { offset: at, length, place: Where::Zero { depth } }),
                Place::Parent => self.find_from(depth + 1, at, length, found)?,
            }
            at += length;
        }
        Ok(())
    }

    /// What is in a file's holes need not be read.
    fn split_holes(&self, depth: usize, offset: u64, length: u64, start: u64, found: &mut Vec<Segment>) -> Result<(), ToolError> {
        let level = &self.levels[depth];
        let end = start + length;
        let mut at = start;
        while at < end {
            let asking = || ToolError::io(&level.path, "looking for its holes");
            let data = level.file.next_data(at).map_err(asking())?.unwrap_or(end).clamp(at, end);
            if data > at {
                push(found, Segment { offset: offset + (at - start), length: data - at, place: Where::Zero { depth } });
                at = data;
            }
            if at < end {
                let hole = level.file.next_hole(at).map_err(asking())?.clamp(at + 1, end);
                let place = Where::File { depth, offset: at };
                push(found, Segment { offset: offset + (at - start), length: hole - at, place });
                at = hole;
            }
        }
        Ok(())
    }

    /// Reads all of a segment.
    pub fn read(&self, segment: &Segment, buffer: &mut [u8]) -> Result<(), ToolError> {
        match segment.place {
            Where::File { depth, offset } => {
                let level = &self.levels[depth];
                level.file.read_at(offset, buffer).map_err(ToolError::io(&level.path, "reading it"))
            }
            Where::Foreign => match &self.foreign {
                Some(foreign) => Ok(foreign.read_at(segment.offset, buffer)?),
                None => unreachable!("only disks of other platforms have such segments"),
            },
            Where::Zero { .. } | Where::Below => {
                buffer.fill(0);
                Ok(())
            }
        }
    }

    /// Reads segments that follow each other, the first of which begins at `offset`.
    pub fn read_all(&self, offset: u64, segments: &[Segment], buffer: &mut [u8]) -> Result<(), ToolError> {
        for segment in segments {
            let at = (segment.offset - offset) as usize;
            self.read(segment, &mut buffer[at..at + segment.length as usize])?;
        }
        Ok(())
    }

    /// Reads a range of the virtual disk; zeros where the disk has ended.
    pub fn read_range(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ToolError> {
        let inside = self.size.saturating_sub(offset).min(buffer.len() as u64);
        let (inside, behind) = buffer.split_at_mut(inside as usize);
        behind.fill(0);
        let mut segments = Vec::new();
        if !inside.is_empty() {
            self.find(offset, inside.len() as u64, &mut segments)?;
        }
        self.read_all(offset, &segments, inside)
    }
}

fn find_foreign(source: &import::Source, offset: u64, length: u64, found: &mut Vec<Segment>) -> Result<(), ToolError> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let Some(extent) = source.next_extent(at, end)? else { break };
        let length = extent.length;
        let place = if extent.content == Content::Data { Where::Foreign } else { Where::Zero { depth: 0 } };
        push(found, Segment { offset: at, length, place });
        at += length;
    }
    Ok(())
}

/// Appends a segment, joined with the last one if it goes on there.
fn push(found: &mut Vec<Segment>, next: Segment) {
    if let Some(last) = found.last_mut().filter(|last| last.offset + last.length == next.offset) {
        let goes_on = match (last.place, next.place) {
            (Where::File { depth, offset }, Where::File { depth: other, offset: start }) => {
                depth == other && offset + last.length == start
            }
            (before, now) => before == now,
        };
        if goes_on {
            last.length += next.length;
            return;
        }
    }
    found.push(next);
}
