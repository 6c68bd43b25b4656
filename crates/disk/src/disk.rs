//! A virtual disk: what it is, how it was opened, how large it is.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::error::{IoError, OpenError, ResizeError};
use crate::format::Format;
use crate::gate::{Gate, Held};
use crate::geometry;
use crate::image::Image;
use crate::layer::{Kind, Layer};
use crate::limits::{Group, Limiter, Limits, Metered};
use crate::lock;
use crate::tracking;

/// Whether a disk may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    ReadOnly,
    /// Read and written.
    #[default]
    ReadWrite,
}

/// Whether the host's page cache lies between the disk and its storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Through the page cache. Data reaches the storage with a flush, as with any disk that has a write cache.
    #[default]
    Host,
    /// Around it (`O_DIRECT`): the guest's own cache is enough, and hosts that share the storage see the same data.
    Direct,
}

/// When the disk's lock is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// On opening.
    #[default]
    Now,
    /// With [`Disk::take_lock`]: the receiving side of a move opens the disk while the sending side still owns it.
    Later,
}

/// The unit in which a disk is addressed by its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorSize {
    /// 512 bytes.
    Bytes512,
    /// 4096 bytes ("4K native").
    Bytes4096,
}

impl SectorSize {
    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            SectorSize::Bytes512 => 512,
            SectorSize::Bytes4096 => 4096,
        }
    }
}

/// How to open a disk. The default is raw, writable, through the host's cache, with the storage's own sector size, locked.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// What its file means.
    pub format: Format,
    /// Whether it may be written.
    pub access: Access,
    /// Whether to use the host's page cache.
    pub cache: Cache,
    /// The sector size; detected when left out: 4096 where the storage can do no less, otherwise 512.
    pub sector_size: Option<SectorSize>,
    /// When to lock it.
    pub locking: Locking,
    /// Whether what is read from a parent is written to the image itself, so that it is there the next time: for parents on slow
    /// storage. It takes space, and writes that meet a copy wait for it. Without parents, or read-only, it means nothing. Reads of more
    /// than 1 MiB are not copied, nor are those beyond 16 at a time in an engine.
    pub copy_on_read: bool,
}

/// An open disk. Clones are the same disk.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("disk.raw");
/// std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
/// let disk = disk::Disk::open(&path, disk::OpenOptions::default()).unwrap();
/// assert_eq!(disk.capacity(), 1 << 20);
/// // A second writer is refused, and told who the first one is.
/// let error = disk::Disk::open(&path, disk::OpenOptions::default()).unwrap_err();
/// assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())));
/// ```
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    image: Option<Image>,
    own: Arc<Layer>,
    gate: Arc<Gate>,
    options: OpenOptions,
    sector: SectorSize,
    physical_sector: u32,
    capacity: AtomicU64,
}

impl Inner {
    /// Writes what only this process knows, as far as that goes.
    fn close(&self) {
        // Another disk with the same gate may have taken this one's place.
        if self.image.as_ref().is_some_and(|image| image.tables().is_none()) {
            return;
        }
        let left_as = self.image.as_ref().and_then(Image::close);
        tracking::finish(&self.gate, &self.own, left_as);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Disk {
    /// Opens the disk at `path`, with all its parents if it is a differencing image.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Disk, OpenError> {
        Disk::from_layer(Layer::open(path.as_ref(), options)?, Vec::new(), options)
    }

    /// Opens the files that the disk at `path` is made of, for a process that may not open any: its own first, then those of its
    /// parents, with what they are called. Nothing is locked, so what they hold may change until [`Disk::from_files`] looks at it.
    pub fn open_files(path: impl AsRef<Path>, options: OpenOptions) -> Result<Vec<(PathBuf, OwnedFd)>, OpenError> {
        let look = OpenOptions { access: Access::ReadOnly, cache: Cache::Host, locking: Locking::Later, ..options };
        let chain: Vec<PathBuf> = Disk::open(path, look)?.chain().map(Path::to_owned).collect();
        let mut access = options.access;
        let open = |path: PathBuf| {
            let access = std::mem::replace(&mut access, Access::ReadOnly);
            let layer = Layer::open(&path, OpenOptions { access, locking: Locking::Later, ..options })?;
            match layer.file.try_clone() {
                Ok(file) => Ok((path, file.into())),
                Err(source) => Err(OpenError::Io { path, action: "handing it over", source }),
            }
        };
        chain.into_iter().map(open).collect()
    }

    /// Takes files that are open already, for example ones that a more privileged process passed: the disk's own, which must allow
    /// what `options` ask for, then those of its parents, the nearest first. Each comes with what error texts call it. Parents that
    /// are not passed are opened where their children say that they are.
    pub fn from_files(files: Vec<(PathBuf, OwnedFd)>, options: OpenOptions) -> Result<Disk, OpenError> {
        let mut files = files.into_iter();
        let (name, own) = files.next().ok_or(OpenError::NoFiles)?;
        let own = Layer::from_fd(own, name, options)?;
        let parent = OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..options };
        let parents = files.map(|(name, fd)| Layer::from_fd(fd, name, parent)).collect::<Result<_, _>>()?;
        Disk::from_layer(own, parents, options)
    }

    /// `parents` are those of an image that are open already, not locked yet.
    fn from_layer(own: Layer, parents: Vec<Layer>, options: OpenOptions) -> Result<Disk, OpenError> {
        let (image, facts) = match options.format {
            Format::Raw => {
                if let Some(stray) = parents.first() {
                    return Err(OpenError::StrayFile { path: own.path.clone(), stray: stray.path.clone() });
                }
                (None, raw_facts(&own, options)?)
            }
            _ => {
                let image = Image::open(&own, parents, options)?;
                let facts = image.facts(&own, options)?;
                (Some(image), facts)
            }
        };
        Ok(Disk::of(image, Arc::new(own), facts, Arc::default(), options))
    }

    fn of(image: Option<Image>, own: Arc<Layer>, facts: Facts, gate: Arc<Gate>, options: OpenOptions) -> Disk {
        let Facts { sector, physical_sector, length } = facts;
        let capacity = AtomicU64::new(length);
        Disk { inner: Arc::new(Inner { image, own, gate, options, sector, physical_sector, capacity }) }
    }

    /// The disk that takes this one's place, with its limits: of other files, which are open, locked and fit.
    pub(crate) fn successor(&self, own: Arc<Layer>, image: Image) -> Result<Disk, OpenError> {
        let (options, gate) = (self.inner.options, self.inner.gate.clone());
        let facts = image.facts(&own, options)?;
        Ok(Disk::of(Some(image), own, facts, gate, options))
    }

    pub(crate) fn options(&self) -> OpenOptions {
        self.inner.options
    }

    /// The disk's size in bytes, a multiple of the sector size.
    pub fn capacity(&self) -> u64 {
        self.inner.capacity.load(Ordering::Acquire)
    }

    /// The unit in which the disk is addressed.
    pub fn sector_size(&self) -> SectorSize {
        self.inner.sector
    }

    /// The size in bytes below which writes cost a read: a power of two, at least the sector size.
    pub fn physical_sector_size(&self) -> u32 {
        self.inner.physical_sector
    }

    /// Whether it may be written.
    pub fn access(&self) -> Access {
        self.inner.options.access
    }

    /// What its file means.
    pub fn format(&self) -> Format {
        self.inner.options.format
    }

    /// Where the disk was opened, or what it was called.
    pub fn path(&self) -> &Path {
        &self.inner.own.path
    }

    /// The files that the disk is made of: its own, and those of its parents, the nearest first.
    pub fn chain(&self) -> impl Iterator<Item = &Path> {
        self.layers().map(|layer| layer.path.as_path())
    }

    /// Grows the disk to `bytes`. A file is extended (with a hole); a block device must have grown already; an image takes no space
    /// for it. The disk may be in use meanwhile; requests see the new capacity at once.
    pub fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let inner = &*self.inner;
        let (path, now) = (inner.own.path.clone(), self.capacity());
        if inner.options.access == Access::ReadOnly {
            return Err(ResizeError::ReadOnly(path));
        }
        if bytes < now {
            return Err(ResizeError::Shrink { path, now, asked: bytes });
        }
        if !bytes.is_multiple_of(u64::from(inner.sector.bytes())) {
            return Err(ResizeError::PartialSector { path, asked: bytes, sector: inner.sector.bytes() });
        }
        // Maps and mirrors are as long as the disk was when they began.
        if !inner.gate.attached().tracked.is_empty() {
            return Err(ResizeError::Tracked(path));
        }
        let io = |source| ResizeError::Io { path: path.clone(), asked: bytes, source };
        match (&inner.image, inner.own.kind) {
            (Some(image), _) => {
                image.grow(bytes).map_err(|source| ResizeError::Image { path: path.clone(), asked: bytes, source })?;
            }
            (None, Kind::File) => {
                if inner.own.file.metadata().map_err(io)?.size() < bytes {
                    inner.own.file.set_len(bytes).map_err(io)?;
                }
            }
            (None, Kind::BlockDevice) => {
                let now = geometry::device_size(&inner.own.file).map_err(io)?;
                if now < bytes {
                    return Err(ResizeError::DeviceTooSmall { path, now, asked: bytes });
                }
            }
        }
        inner.capacity.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Takes the disk's lock: exclusive if the disk may be written, otherwise shared with other readers. Taking it twice is fine.
    /// An image's tables are read again: another machine may have written them.
    pub fn take_lock(&self) -> Result<(), OpenError> {
        let inner = &*self.inner;
        lock::take(&inner.own.file, inner.options.access, &inner.own.path)?;
        if let Some(image) = &inner.image {
            let size = image.reopen(&inner.own).inspect_err(|_| lock::release(&inner.own.file))?;
            inner.capacity.store(size, Ordering::Release);
        }
        Ok(())
    }

    /// Gives the lock up, so that the receiving side of a move can take it. The caller has dropped all engines and flushed. Tables
    /// of an image are written, and it can be used no more until the lock is taken again. Dirty maps are switched off, with those
    /// beside the disk exact: the other side opens them.
    pub fn release_lock(&self) {
        self.inner.close();
        lock::release(&self.inner.own.file);
    }

    /// Writes what is only in this process's memory, an image's changed tables and dirty maps: all that was written is there then, even
    /// if the process ends at once. Waits for a commit under way, whose engine has to be run.
    ///
    /// # Errors
    /// What a flush fails with; it can be tried again.
    pub fn settle(&self) -> Result<(), IoError> {
        self.inner.image.as_ref().map_or(Ok(()), Image::settle)?;
        tracking::checkpoint(&self.inner.gate).map_err(|error| IoError::from(&error.source))
    }

    /// Waits until no write, discard or zeroing is under way in any engine, and holds up new ones as long as what it returns exists:
    /// a point in time, for example for the beginning of a backup. Threads with engines have to run them meanwhile; called by one
    /// of them with writes under way, it waits for ever.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("disk.raw");
    /// # std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    /// use disk::dirty::{Granularity, Tracker};
    /// let disk = disk::Disk::open(&path, disk::OpenOptions::default()).unwrap();
    /// let tracker = Tracker::in_memory(disk.capacity());
    /// disk.track(&tracker)?;
    /// let held = disk.hold_writes();
    /// tracker.add("nightly", Granularity::DEFAULT).unwrap(); // knows each write from here on
    /// drop(held);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn hold_writes(&self) -> Held {
        let held = self.inner.gate.hold();
        self.inner.gate.wait_for_writes(None);
        held
    }

    /// Limits what all engines together may do, from now on; [`Limits::default`] has no limit. Requests that wait by earlier limits
    /// are looked at again at once. A request counts when it starts: a read or write with its bytes, anything else as one operation.
    pub fn set_limits(&self, limits: Limits) {
        let now = Instant::now();
        self.inner.gate.attach(|attached| match &attached.limiter {
            Some(limiter) => limiter.set(limits, now),
            None if limits == Limits::default() => {}
            None => attached.limiter = Some(Arc::new(Limiter::new(limits, now))),
        });
    }

    /// Has the disk share what a group may do, besides its own limits; a disk is in one group at most, the last that it joined. What
    /// waits keeps its place.
    pub fn join_group(&self, group: &Group, weight: u16) {
        let now = Instant::now();
        self.inner.gate.attach(|attached| {
            let limits = attached.limiter.as_ref().map_or(Limits::default(), |limiter| limiter.limits());
            attached.limiter = Some(Arc::new(Limiter::in_group(limits, group, weight, now)));
        });
    }

    /// What passed the limits since there are any, or since the disk joined its group; nothing was counted if there are none.
    pub fn metered(&self) -> Metered {
        self.inner.gate.attached().limiter.map_or(Metered::default(), |limiter| limiter.metered())
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.inner.gate
    }

    pub(crate) fn own(&self) -> &Arc<Layer> {
        &self.inner.own
    }

    pub(crate) fn image(&self) -> Option<&Image> {
        self.inner.image.as_ref()
    }

    /// The disk's own file, then those of its parents.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Layer> {
        let parents = self.inner.image.iter().flat_map(Image::parents);
        std::iter::once(&*self.inner.own).chain(parents.map(|parent| &*parent.layer))
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("path", &self.path()).field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// What a disk's user has to know of it.
pub(crate) struct Facts {
    pub sector: SectorSize,
    pub physical_sector: u32,
    pub length: u64,
}

fn raw_facts(own: &Layer, options: OpenOptions) -> Result<Facts, OpenError> {
    let path = || own.path.clone();
    let io = |action| move |source| OpenError::Io { path: own.path.clone(), action, source };
    let (length, required, physical) = match own.kind {
        Kind::File => {
            let required = own.direct.map_or(512, |alignment| if alignment.offset > 512 { 4096 } else { 512 });
            (own.file.metadata().map_err(io("reading its attributes"))?.len(), required, 4096)
        }
        Kind::BlockDevice => {
            let (logical, physical) = geometry::device_sectors(&own.file).map_err(io("reading its sector size"))?;
            (geometry::device_size(&own.file).map_err(io("reading its size"))?, logical, physical)
        }
    };
    let detected = if required > 512 { SectorSize::Bytes4096 } else { SectorSize::Bytes512 };
    let sector = options.sector_size.unwrap_or(detected);
    if own.kind == Kind::BlockDevice && (sector.bytes() < required || required > 4096) {
        return Err(OpenError::SectorSize { path: path(), asked: sector.bytes(), required });
    }
    if length < u64::from(sector.bytes()) {
        return Err(OpenError::TooSmall { path: path(), length, sector: sector.bytes() });
    }
    if !length.is_multiple_of(u64::from(sector.bytes())) {
        return Err(OpenError::PartialSector { path: path(), length, sector: sector.bytes() });
    }
    Ok(Facts { sector, physical_sector: physical.max(sector.bytes()), length })
}
