//! A disk's dirty maps while it is used: switched on and off, kept beside it.
//!
//! ```text
//!   create_maps / open_maps ──▶ the file fits the disk as it is, and as it will be once somebody writes
//!        │                                                        │ engines note each write
//!        ▼                                                        ▼
//!   file beside the disk        clean stop (last clone dropped, lock released): exact, and fits the disk as it was left
//!                               crash: widened by what the journal has
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::dirty::{Identity, Noter, OpenError, PersistError, Recovery, Tracker, file_beside};
use crate::disk::Disk;
use crate::gate::Gate;
use crate::image::Image;
use crate::layer::{Kind, Layer};

/// A tracker that engines mark writes in.
pub(crate) struct Tracked {
    pub tracker: Tracker,
    /// Writes its journal, if it has one.
    pub noter: Option<Noter>,
    /// Its file lies beside the disk, and says which disk it fits.
    is_beside: bool,
}

/// Why the maps beside a disk could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// There is nothing beside a block device that would survive.
    #[error("disk {}: maps are kept beside a file, and this is a block device; keep them elsewhere, with Tracker::create and Disk::track",
        .0.display())]
    BlockDevice(PathBuf),
    /// The disk has maps already.
    #[error("disk {}: its dirty maps are in use already; switch them off first", .0.display())]
    InUse(PathBuf),
    /// An image whose lock is not held: what its tables say is not certain.
    #[error("disk {}: its lock was given up or not yet taken; take it first", .0.display())]
    Unlocked(PathBuf),
    /// The file does not fit, or cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file cannot be written.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// Something else was refused.
    #[error("disk {}: {action} failed: {source}", path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// What the maps of a disk without a mark fit while it may be written: its time of change says nothing then.
const IN_USE: [u8; 16] = [0xFF; 16];

impl Disk {
    /// Has all engines mark in `tracker` what they write, until [`Disk::untrack`]. Waits for the writes under way, so that the maps
    /// know every write that ends after this returns. Engines' threads have to run their engines meanwhile.
    ///
    /// While it is on, a write marks two times, in memory. If the maps are kept in a file, the first write into each coarse region
    /// waits for the journal, which a thread of its own writes; other requests go on. A write that cannot be noted fails with the
    /// error of the file.
    ///
    /// # Errors
    /// If that thread cannot be started.
    pub fn track(&self, tracker: &Tracker) -> io::Result<()> {
        let noter = if tracker.file().is_some() { Some(self.start_noter(tracker)?) } else { None };
        let _held = self.hold_writes();
        self.attach(Tracked { tracker: tracker.clone(), noter, is_beside: false });
        Ok(())
    }

    /// Stops marking in `tracker`, after the writes under way have ended. If its file lies beside the disk it is removed: it would
    /// not know what is written from now on.
    ///
    /// # Errors
    /// If the file cannot be removed; tracking goes on then.
    pub fn untrack(&self, tracker: &Tracker) -> io::Result<()> {
        let _held = self.hold_writes();
        if self.gate().attached().tracked.iter().any(|it| it.is_beside && it.tracker.is(tracker)) {
            // Stable before writes go on that it does not know.
            let path = file_beside(self.path());
            std::fs::remove_file(&path).and_then(|()| sync_directory(&path))?;
        }
        self.gate().attach(|attached| attached.tracked.retain(|it| !it.tracker.is(tracker)));
        Ok(())
    }

    fn start_noter(&self, tracker: &Tracker) -> io::Result<Noter> {
        let gate = Arc::downgrade(self.gate());
        Noter::start(tracker.clone(), move || gate.upgrade().iter().for_each(|gate| gate.wake()))
    }

    fn attach(&self, tracked: Tracked) {
        self.gate().attach(|attached| attached.tracked.push(Arc::new(tracked)));
    }

    /// Makes new, empty maps in a file beside the disk (see [`file_beside`]) and switches them on; maps from before are gone.
    ///
    /// # Errors
    /// See [`TrackError`].
    pub fn create_maps(&self) -> Result<Tracker, TrackError> {
        self.with_maps(|file, path, identity| Ok((Tracker::create(Box::new(file), path, identity)?, ())), true).map(|(it, ())| it)
    }

    /// Opens the maps beside the disk and switches them on. Call it before the disk is written: what was written since it was opened is
    /// not in them, and they are refused.
    ///
    /// A raw file and a VHD carry no mark of who wrote them. Their maps are known to fit by the file's time of change, after a clean stop;
    /// after a crash they are taken as they are, so whoever writes such a disk without its maps has to remove them.
    ///
    /// # Errors
    /// See [`TrackError`]. Where the maps do not fit, new ones are made with [`Disk::create_maps`].
    pub fn open_maps(&self) -> Result<(Tracker, Recovery), TrackError> {
        self.with_maps(
            |file, path, identity| {
                let again = file.try_clone();
                match (Tracker::open(Box::new(file), path.clone(), identity), again) {
                    (Err(OpenError::Stale(_)), Ok(file)) if !self.has_mark() => {
                        Ok(Tracker::open(Box::new(file), path, Identity { data_write: IN_USE, ..identity })?)
                    }
                    (result, _) => Ok(result?),
                }
            },
            false,
        )
    }

    fn with_maps<T>(
        &self,
        make: impl FnOnce(File, PathBuf, Identity) -> Result<(Tracker, T), TrackError>,
        is_new: bool,
    ) -> Result<(Tracker, T), TrackError> {
        let io = |action| move |source| TrackError::Io { path: self.path().to_owned(), action, source };
        if self.own().kind == Kind::BlockDevice {
            return Err(TrackError::BlockDevice(self.path().to_owned()));
        }
        // From here on no write is under way that the identity does not know.
        let _held = self.hold_writes();
        if self.gate().attached().tracked.iter().any(|it| it.is_beside) {
            return Err(TrackError::InUse(self.path().to_owned()));
        }
        let path = file_beside(self.path());
        let options = File::options().read(true).write(true).create(is_new).truncate(false).open(&path);
        let file = options.map_err(|source| OpenError::Io { path: path.clone(), action: "opening the file", source })?;
        sync_directory(&path).map_err(io("making the file of its maps stable"))?;
        let identity = self.identity()?;
        let (tracker, more) = make(file, path, identity)?;
        let next = match self.image() {
            None => IN_USE,
            Some(image) => {
                let next = image.tables().map(|tables| tables.next_identity());
                let next = next.transpose().map_err(io("getting the image's next identity"))?;
                next.map_or(identity.data_write, |it| it.data_mark().unwrap_or(IN_USE))
            }
        };
        tracker.announce(next)?;
        let noter = Some(self.start_noter(&tracker).map_err(io("starting a thread"))?);
        self.attach(Tracked { tracker: tracker.clone(), noter, is_beside: true });
        Ok((tracker, more))
    }

    /// Whether something in its file tells data from what it was before a change.
    fn has_mark(&self) -> bool {
        self.image().and_then(Image::tables).is_some_and(|tables| tables.identity().data_mark().is_some())
    }

    fn identity(&self) -> Result<Identity, TrackError> {
        let identity = identity(self.own(), self.image(), self.capacity());
        let identity = identity.map_err(|source| TrackError::Io {
            path: self.path().to_owned(),
            action: "reading its attributes",
            source,
        })?;
        identity.ok_or_else(|| TrackError::Unlocked(self.path().to_owned()))
    }
}

/// What tells a disk from others, as it is now; none if its tables are not there.
fn identity(own: &Layer, image: Option<&Image>, size: u64) -> io::Result<Option<Identity>> {
    let tables = image.map(Image::tables);
    if let Some(None) = tables {
        return Ok(None);
    }
    let tables = tables.flatten();
    let metadata = own.file.metadata()?;
    let disk = tables.as_ref().map_or_else(
        || {
            // Where birth is not recorded, the inode has to do.
            let birth = metadata.created().ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
            pair(metadata.ino(), birth.map_or(0, |it| it.as_nanos() as u64))
        },
        |tables| tables.disk_id(),
    );
    let changed = || pair(metadata.mtime() as u64, metadata.mtime_nsec() as u64);
    let data_write = tables.and_then(|tables| tables.identity().data_mark()).unwrap_or_else(changed);
    Ok(Some(Identity { disk, data_write, size }))
}

/// The names in the directory of a file are on stable storage.
fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn pair(first: u64, second: u64) -> [u8; 16] {
    let mut both = [0; 16];
    both[..8].copy_from_slice(&first.to_le_bytes());
    both[8..].copy_from_slice(&second.to_le_bytes());
    both
}

/// What every attached tracker keeps is exact on stable storage. No write is under way.
pub(crate) fn checkpoint(gate: &Gate) -> Result<(), PersistError> {
    gate.attached().tracked.iter().try_for_each(|it| it.tracker.checkpoint())
}

/// Ends tracking for good: nothing writes this disk any more through here. Maps that cannot be written are as after a crash: wider, and
/// complete. `image` is the identity with which an image was left.
pub(crate) fn finish(gate: &Gate, own: &Layer, image: Option<[u8; 16]>) {
    let time_of_change = || {
        own.file.sync_all()?;
        identity(own, None, 0).map(|it| it.map(|it| it.data_write))
    };
    for tracked in gate.attach(|attached| std::mem::take(&mut attached.tracked)) {
        let left_as = if tracked.is_beside { image.or_else(|| time_of_change().ok().flatten()) } else { None };
        let _ = match left_as {
            // Twice: then it fits only the disk as it is now.
            Some(data_write) => tracked.tracker.announce(data_write).and_then(|()| tracked.tracker.announce(data_write)),
            None => tracked.tracker.checkpoint(),
        };
    }
}
