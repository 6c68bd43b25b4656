//! An open image.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, Storage, StorageOpenOptions};

use super::error::{OpenError, ReadError, open_error};
use super::gate::{self, Gate, MAX_DEPTH, Refusal};
use super::{Format, References, header, vmdk};

/// What is in a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Data, which may be zeros too.
    Data,
    /// Zeros that somebody wrote.
    Zero,
    /// Never written: it reads as zeros, and need not be copied to a new disk.
    Hole,
}

/// A part of the disk with one kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes; never zero.
    pub length: u64,
    /// What is there.
    pub content: Content,
}

/// An image that is open for reading. See [`open`](super::open).
pub struct Source {
    image: Image,
    path: PathBuf,
    size: u64,
    /// Set when the reader failed an assertion: what it says afterwards is not to be trusted.
    broken: AtomicBool,
}

enum Image {
    Qcow2(FormatAccess<File>),
    Vmdk(vmdk::Disk),
}

/// How many of the image's mappings are joined at once. Holes come in pieces of one L2 table, and a large disk has many.
const MAX_JOINED: usize = 1024;

pub(super) fn open(path: &Path, format: Format, references: References) -> Result<Source, OpenError> {
    let name = match format {
        Format::Qcow2 => "qcow2",
        Format::Vmdk => "VMDK",
    };
    let fail = |source| open_error(path, name, source);
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let found = path.canonicalize().map_err(io)?;
    if !gate::is_file(&found).map_err(io)? {
        return Err(OpenError::NotAFile { path: path.to_owned(), file: path.to_owned() });
    }
    let gate = Gate::new(&found, references);
    let opened = match format {
        Format::Qcow2 => {
            header::check_qcow2(&found).map_err(fail)?;
            let passed = gate.clone();
            guard(move || {
                let file = File::open(StorageOpenOptions::new().filename(found).write(false))?;
                Ok(Image::Qcow2(FormatAccess::new(Qcow2::<File>::builder(file).open(passed)?)))
            })
        }
        Format::Vmdk => Some(vmdk::Disk::open(&found, &gate).map(Image::Vmdk)),
    };
    let path = path.to_owned();
    match (opened, gate.take_refusal()) {
        (Some(Ok(image)), _) => Ok(Source { size: image.size(), image, path, broken: AtomicBool::new(false) }),
        (_, Some(Refusal::Reference(file))) => Err(OpenError::Reference { path, file }),
        (_, Some(Refusal::NotAFile(file))) => Err(OpenError::NotAFile { path, file }),
        (_, Some(Refusal::TooDeep)) => Err(OpenError::TooDeep { path, max: MAX_DEPTH }),
        (Some(Err(source)), None) => Err(fail(source)),
        (None, None) => Err(OpenError::Damaged { path, format: name, problem: "it contradicts itself".to_owned() }),
    }
}

impl Source {
    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` with the disk's content from `offset` on.
    ///
    /// # Errors
    /// See [`ReadError`]; the buffer's content is undefined then.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.size {
            return Err(ReadError::Range { offset, end, size: self.size });
        }
        self.ask(offset, || match &self.image {
            Image::Qcow2(image) => image.read(buffer, offset),
            Image::Vmdk(disk) => disk.read(buffer, offset),
        })
    }

    /// What is at `offset`, and how far, as far as `end`. The next extent may have the same content. `None` at the end of the disk.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn next_extent(&self, offset: u64, end: u64) -> Result<Option<Extent>, ReadError> {
        let end = end.min(self.size);
        let mut joined: Option<Extent> = None;
        for _ in 0..MAX_JOINED {
            let at = offset.saturating_add(joined.map_or(0, |extent| extent.length));
            if at >= end {
                break;
            }
            let next = self.ask(at, || {
                let (content, length) = self.image.mapping(at, end - at)?;
                match length.min(end - at) {
                    0 => Err(io::Error::new(io::ErrorKind::InvalidData, "a mapping without length")),
                    length => Ok(Extent { length, content }),
                }
            });
            match (&mut joined, next) {
                (None, next) => joined = Some(next?),
                (Some(joined), Ok(next)) if next.content == joined.content => joined.length += next.length,
                // An error there is reported when that is asked for.
                _ => break,
            }
        }
        Ok(joined)
    }

    fn ask<T>(&self, offset: u64, question: impl FnOnce() -> io::Result<T>) -> Result<T, ReadError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(ReadError::Damaged(self.path.clone()));
        }
        match guard(question) {
            Some(answer) => answer.map_err(|source| ReadError::Io { path: self.path.clone(), offset, source }),
            None => {
                self.broken.store(true, Ordering::Relaxed);
                Err(ReadError::Damaged(self.path.clone()))
            }
        }
    }
}

impl Image {
    fn size(&self) -> u64 {
        match self {
            Image::Qcow2(image) => image.size(),
            Image::Vmdk(disk) => disk.size(),
        }
    }

    fn mapping(&self, offset: u64, length: u64) -> io::Result<(Content, u64)> {
        let image = match self {
            Image::Qcow2(image) => image,
            Image::Vmdk(disk) => return disk.mapping(offset),
        };
        let (mapping, length) = image.get_mapping(offset, length)?;
        let content = match mapping {
            Mapping::Zero { explicit: true, .. } => Content::Zero,
            Mapping::Zero { explicit: false, .. } => Content::Hole,
            // Data, compressed, or of a kind not yet known: to be read.
            _ => Content::Data,
        };
        Ok((content, length))
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

/// `None` if the reader failed an assertion, which an image made for that can provoke.
fn guard<T>(action: impl FnOnce() -> io::Result<T>) -> Option<io::Result<T>> {
    // What the action was about to change is not looked at again: opening throws it away, and a source counts as broken.
    catch_unwind(AssertUnwindSafe(action)).ok()
}
