//! VMDK, by VMware's "Virtual Disk Format 5.0": a descriptor that names extents, or one sparse extent with the descriptor inside.
//!
//! Numbers are little-endian, positions in files are in sectors of 512 bytes.

mod descriptor;
mod sparse;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use self::descriptor::{Descriptor, Place};
use self::sparse::{MAX_DIRECTORY, Sparse};
use super::Content;
use super::gate::Gate;

pub(super) const SECTOR: u64 = 512;
/// A descriptor as long as this names more extents than there may be.
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// More extents than any tool writes; fewer than a process may have files open.
const MAX_EXTENTS: usize = 512;

/// An open disk.
pub(super) struct Disk {
    /// In the disk's order, without gaps.
    extents: Vec<Extent>,
    size: u64,
}

struct Extent {
    /// Bytes of the virtual disk.
    start: u64,
    end: u64,
    kind: Kind,
}

enum Kind {
    Zero,
    /// The bytes are in the file as they are, from this offset on.
    Flat(File, u64),
    Sparse(Sparse),
}

impl Disk {
    /// Opens the image at a path without symbolic links. What it names has to come through the gate.
    pub fn open(path: &Path, gate: &Gate) -> io::Result<Disk> {
        let mut file = File::open(path)?;
        let mut budget = MAX_DIRECTORY;
        let mut disk = Disk { extents: Vec::new(), size: 0 };
        if let Some(sparse) = Sparse::open(file.try_clone()?, &mut budget)? {
            let (offset, length) = sparse.descriptor();
            if length > 0 {
                let mut text = vec![0; length.min(MAX_DESCRIPTOR) as usize];
                file.read_exact_at(&mut text, offset).map_err(|_| damaged("descriptor", offset, "it is not inside the file"))?;
                Descriptor::parse(&text)?.check_alone()?;
            }
            disk.push(sparse.size() / SECTOR, Kind::Sparse(sparse))?;
            return Ok(disk);
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(MAX_DESCRIPTOR).read_to_end(&mut text)?;
        let descriptor = Descriptor::parse(&text)?;
        descriptor.check_alone()?;
        if descriptor.extents.is_empty() {
            return Err(invalid("it is neither a sparse extent nor a descriptor with extents"));
        }
        if descriptor.extents.len() > MAX_EXTENTS {
            return Err(unsupported(format!("it has more than {MAX_EXTENTS} extents")));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        for extent in descriptor.extents {
            let kind = match extent.place {
                Place::Zero => Kind::Zero,
                Place::Flat { name, first_sector } => flat(&gate.admit(&directory.join(name))?, extent.sectors, first_sector)?,
                Place::Sparse { name } => {
                    let file = File::open(gate.admit(&directory.join(&name))?)?;
                    match Sparse::open(file, &mut budget)? {
                        Some(sparse) if sparse.size() / SECTOR >= extent.sectors => Kind::Sparse(sparse),
                        Some(_) => return Err(invalid(format!("its extent {name} is smaller than the descriptor says"))),
                        None => return Err(invalid(format!("its extent {name} is no sparse extent"))),
                    }
                }
            };
            disk.push(extent.sectors, kind)?;
        }
        Ok(disk)
    }

    fn push(&mut self, sectors: u64, kind: Kind) -> io::Result<()> {
        let end = sectors.checked_mul(SECTOR).and_then(|bytes| self.size.checked_add(bytes)).filter(|end| *end < 1 << 63);
        let end = end.ok_or_else(|| invalid("it is larger than a disk can be"))?;
        if end == self.size {
            return Err(invalid("it has an extent without sectors"));
        }
        self.extents.push(Extent { start: self.size, end, kind });
        self.size = end;
        Ok(())
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills the buffer; the range is inside the disk.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let extent = self.extent(offset + done as u64)?;
            let within = offset + done as u64 - extent.start;
            let count = (extent.end - extent.start - within).min((buffer.len() - done) as u64) as usize;
            let part = &mut buffer[done..done + count];
            match &extent.kind {
                Kind::Zero => part.fill(0),
                Kind::Flat(file, first) => file.read_exact_at(part, first + within)?,
                Kind::Sparse(sparse) => sparse.read(part, within)?,
            }
            done += count;
        }
        Ok(())
    }

    /// What is at an offset inside the disk, and for how many bytes at least.
    pub fn mapping(&self, offset: u64) -> io::Result<(Content, u64)> {
        let extent = self.extent(offset)?;
        let rest = extent.end - offset;
        let (content, length) = match &extent.kind {
            Kind::Zero => (Content::Hole, rest),
            Kind::Flat(..) => (Content::Data, rest),
            Kind::Sparse(sparse) => sparse.mapping(offset - extent.start)?,
        };
        Ok((content, length.min(rest)))
    }

    fn extent(&self, offset: u64) -> io::Result<&Extent> {
        let index = self.extents.partition_point(|extent| extent.end <= offset);
        self.extents.get(index).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn flat(path: &Path, sectors: u64, first_sector: u64) -> io::Result<Kind> {
    let mut file = File::open(path)?;
    // A block device tells its length this way, too.
    let length = file.seek(SeekFrom::End(0))?;
    let end = first_sector.checked_add(sectors).and_then(|end| end.checked_mul(SECTOR));
    if end.is_none_or(|end| end > length) {
        return Err(invalid(format!("its extent {} is shorter than the descriptor says", path.display())));
    }
    Ok(Kind::Flat(file, first_sector * SECTOR))
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

fn damaged(structure: &str, offset: u64, problem: &str) -> io::Error {
    invalid(format!("{structure} at offset {offset}: {problem}"))
}

fn unsupported(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.into())
}
