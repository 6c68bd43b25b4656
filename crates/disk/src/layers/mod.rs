//! Changes which files an open disk is made of: a new file on top, others below, the top merged into the one below.
//!
//! ```text
//!            prepare_layer ─▶ add        prepare_parents ─▶ replace      prepare_merge ─▶ merge
//!              Y (new, empty)                Y                               Y ┄┄ not used any more
//!   X    ═▶    X                             X   ═▶   Y                      P  ═▶  P
//!   P          P                             P        P
//! ```
//! What takes long or may be refused is done by the first step, while engines use the disk; the second is for a moment without any. It
//! gives a disk that takes the place of the one before, with the same limits.
//!
//! # A crash
//! *A new layer.* X is closed as a file that nobody uses, then Y is told by which identity X goes now, then Y is written. When X is
//! written again instead, it gets another identity. So a Y that fits X is right to be used: it either is the disk's newest file, or
//! holds nothing and X was not changed since. A Y that does not fit was never used.
//!
//! *Other parents.* Y's words about its parent are changed by one entry of its log. Both chains read the same.
//!
//! *A merge.* As in `tool::merge`: Y accepts P by its old identity and the one that P gets, and hides whatever is written. When it is over, P is
//! closed, and has a third identity from the next write on: Y fits P as long as both hold the same, and not any more when P holds more.
//! The same rule says which one is the disk: Y if it fits.
//!
//! Only VHDX has identities that change with the data, and a log, so it is the only format here.

mod error;
mod merge;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::chain::{self, Fit, MAX_IMAGES, Parent};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::error::OpenError;
use crate::format::{Format, ImageFile, ParentNames};
use crate::image::{Image, open_tables};
use crate::layer::Layer;
use crate::lock;

pub use error::LayerError;
pub use merge::LeafMerge;

/// A file that is to be a disk's newest, looked at and locked.
pub struct NewLayer {
    disk: Disk,
    // Before the file that they are in.
    tables: Arc<dyn ImageFile>,
    layer: Arc<Layer>,
}

/// Files that are to be read below a disk's own, open and locked.
pub struct NewParents {
    disk: Disk,
    parents: Vec<Arc<Parent>>,
}

/// What is needed of a disk of which layers can be changed.
struct Parts<'a> {
    image: &'a Image,
    tables: Arc<dyn ImageFile>,
}

impl Disk {
    fn parts(&self) -> Result<Parts<'_>, LayerError> {
        let path = || self.path().to_owned();
        if self.format() != Format::Vhdx {
            return Err(LayerError::Format { path: path(), format: self.format() });
        }
        if self.access() == Access::ReadOnly {
            return Err(LayerError::ReadOnly(path()));
        }
        if !self.gate().attached().tracked.is_empty() {
            return Err(LayerError::Tracked(path()));
        }
        let image = self.image().ok_or_else(|| LayerError::Unlocked(path()))?;
        let tables = image.tables().ok_or_else(|| LayerError::Unlocked(path()))?;
        Ok(Parts { image, tables })
    }

    /// The same, of a disk that no engine uses.
    fn idle_parts(&self) -> Result<Parts<'_>, LayerError> {
        if self.gate().is_idle() { self.parts() } else { Err(LayerError::Busy(self.path().to_owned())) }
    }

    /// Takes the open file of a new, empty child of this disk, which is to take all further writes. `path` is what it is called.
    ///
    /// # Errors
    /// If it is in use, or not such a child; see [`LayerError`].
    pub fn prepare_layer(&self, file: OwnedFd, path: PathBuf) -> Result<NewLayer, LayerError> {
        let own = self.parts()?.tables;
        if self.layers().count() == MAX_IMAGES {
            return Err(OpenError::ChainTooLong { path, limit: MAX_IMAGES }.into());
        }
        let options = OpenOptions { locking: Locking::Later, ..self.options() };
        let layer = Layer::from_fd(file, path, options)?;
        let unfit = |problem: String| Err(LayerError::Unfit { path: layer.path.clone(), problem });
        if let Some(same) = self.layers().find(|it| it.identity == layer.identity) {
            return unfit(format!("it is {}, which the disk is made of already", same.path.display()));
        }
        lock::take(&layer.file, Access::ReadWrite, &layer.path)?;
        let tables = open_tables(&layer, Format::Vhdx, Access::ReadWrite)?;
        if !tables.has_parent() || tables.disk_id() != own.disk_id() {
            return unfit(format!("it is no child of {}", self.path().display()));
        }
        let facts = |tables: &dyn ImageFile| (tables.size(), tables.logical_sector_size(), tables.physical_sector_size());
        if facts(&*tables) != facts(&*own) {
            let ((size, sector, physical), wanted) = (facts(&*tables), facts(&*own));
            let (wanted_size, wanted_sector, wanted_physical) = wanted;
            return unfit(format!(
                "it has {size} bytes in sectors of {sector} ({physical}), the disk {wanted_size} in sectors of {wanted_sector} ({wanted_physical})"
            ));
        }
        if !tables.is_empty().map_err(LayerError::map(&layer.path, "reading its tables"))? {
            return unfit("it holds data already".to_owned());
        }
        Ok(NewLayer { disk: self.clone(), tables, layer: Arc::new(layer) })
    }

    /// Takes the open files that are to be read below this disk's own instead of its parents, the nearest first, with what they are
    /// called. They must read the same. Their data is made durable.
    ///
    /// # Errors
    /// If one is in use by a writer, or does not fit the one before it; see [`LayerError`].
    pub fn prepare_parents(&self, files: Vec<(PathBuf, OwnedFd)>) -> Result<NewParents, LayerError> {
        let Parts { image, tables } = self.parts()?;
        let Some(old) = image.parents().first() else { return Err(LayerError::NoParent(self.path().to_owned())) };
        match files.first() {
            None => return Err(OpenError::NoFiles.into()),
            Some((path, _)) if !path.is_absolute() => {
                let problem = "the disk is going to name it, so an absolute path is needed".to_owned();
                return Err(LayerError::Unfit { path: path.clone(), problem });
            }
            Some(_) => {}
        }
        let options = OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..self.options() };
        let given = files.into_iter().map(|(name, fd)| Layer::from_fd(fd, name, options)).collect::<Result<Vec<_>, _>>()?;
        let parents = chain::open_parents(self.own(), &*tables, given, Fit::Trusted, options)?;
        if let Some(new) = parents.first()
            && new.tables.size() != old.tables.size()
        {
            let problem = format!("it has {} bytes, the parent that it replaces {}", new.tables.size(), old.tables.size());
            return Err(LayerError::Unfit { path: new.layer.path.clone(), problem });
        }
        chain::settle(&parents)?;
        Ok(NewParents { disk: self.clone(), parents })
    }
}

impl NewLayer {
    /// Makes it the disk's newest file: what was that is only read from now on, and others may read it, too.
    ///
    /// # Errors
    /// The disk goes on as it was. If even that cannot be had ([`LayerError::Lost`]), it cannot be used until it is opened again.
    pub fn add(self) -> Result<Disk, LayerError> {
        let old = self.disk.clone();
        let Parts { image, .. } = old.idle_parts()?;
        let closing = LayerError::map(old.path(), "closing it, to be read only");
        let Some(tables) = image.finish().map_err(closing)? else { return Err(LayerError::Unlocked(old.path().to_owned())) };
        self.add_on(image, &*tables).map_err(|error| old.take_back(error))
    }

    fn add_on(self, image: &Image, old_tables: &dyn ImageFile) -> Result<Disk, LayerError> {
        let NewLayer { disk, tables, layer } = self;
        let own = disk.own();
        let identity = old_tables.identity();
        own.file.sync_data().map_err(|source| OpenError::Io { path: own.path.clone(), action: "making it durable", source })?;
        tables.relink(identity, None).map_err(LayerError::image(&layer.path, "naming its parent"))?;
        lock::take(&own.file, Access::ReadOnly, &own.path)?;
        lock::admit_merges(&own.file, None);
        if let Some(parent) = image.parents().first() {
            lock::admit_merges(&parent.layer.file, Some(identity));
        }
        let parent = Parent { tables: open_tables(own, Format::Vhdx, Access::ReadOnly)?, layer: own.clone() };
        let parents = std::iter::once(Arc::new(parent)).chain(image.parents().iter().cloned()).collect();
        Ok(disk.successor(layer, Image::of(tables, parents, disk.options()))?)
    }
}

impl Disk {
    /// Has this disk go on, in whose place [`NewLayer::add`] put another one that was not used yet, and is dropped. `error` is why; it is
    /// answered, with more to it if this failed.
    pub fn take_back(&self, error: LayerError) -> LayerError {
        match self.take_lock() {
            Ok(()) => error,
            Err(source) => LayerError::Lost { error: Box::new(error), source },
        }
    }
}

impl NewParents {
    /// Makes them the disk's parents, by one change of its file that is durable when this returns.
    ///
    /// # Errors
    /// The disk goes on as it was.
    pub fn replace(self) -> Result<Disk, LayerError> {
        let NewParents { disk, parents } = self;
        let Parts { image, tables } = disk.idle_parts()?;
        let Some(first) = parents.first() else { return Err(OpenError::NoFiles.into()) };
        let names = name(disk.path(), &first.layer.path, &*first.tables)?;
        tables.set_parent(&names).map_err(LayerError::image(disk.path(), "naming its new parent"))?;
        let new = disk.successor(disk.own().clone(), Image::of(tables, parents, disk.options()))?;
        // The file has one user.
        image.give_tables();
        Ok(new)
    }
}

/// What a child calls a parent, by paths that cannot be looked at here.
fn name(child: &Path, parent: &Path, tables: &dyn ImageFile) -> Result<ParentNames, LayerError> {
    let unfit = |problem: &str| LayerError::Unfit { path: parent.to_owned(), problem: problem.to_owned() };
    let absolute_path =
        parent.to_str().ok_or_else(|| unfit("its path is not UTF-8, so no image can name it; rename it"))?.to_owned();
    let beside = child.parent().filter(|it| it.is_absolute()).and_then(|it| parent.strip_prefix(it).ok()).and_then(Path::to_str);
    let relative_path = beside.filter(|it| !it.contains('\\')).map(|it| format!(".\\{}", it.replace('/', "\\")));
    Ok(ParentNames { identity: tables.identity(), relative_path, absolute_path, changed: SystemTime::UNIX_EPOCH })
}
