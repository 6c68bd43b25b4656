//! The parents of a differencing image.
//!
//! Each image names its parent; the names are followed until an image has none. All are only read, under locks that they share
//! with other readers: a parent that changed would change every child. Only the child through which it is read may be merged into it
//! meanwhile (see [`lock`](crate::lock)).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Access, Locking, OpenOptions};
use crate::error::{Chain, OpenError};
use crate::format::{Format, ImageFile};
use crate::image::open_tables;
use crate::layer::Layer;
use crate::lock;

/// More images than anybody's backups make; each level costs a read a little more.
pub(crate) const MAX_IMAGES: usize = 256;

/// An image that others hang on.
pub(crate) struct Parent {
    // Before the file that they are in.
    pub tables: Arc<dyn ImageFile>,
    pub layer: Arc<Layer>,
}

/// Whether a child must name a parent that is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It must.
    Checked,
    /// The first one need not: it is going to be named.
    Trusted,
}

/// Makes durable what the parents hold. A flush of the child reaches the child's file alone, and whoever flushes it counts on all that
/// could be read before; a parent was perhaps written by a VM or copied a moment ago, and is in the page cache only.
pub(crate) fn settle(parents: &[Arc<Parent>]) -> Result<(), OpenError> {
    parents.iter().try_for_each(|parent| {
        let io = |source| OpenError::Io { path: parent.layer.path.clone(), action: "making it durable, as a parent", source };
        parent.layer.file.sync_data().map_err(io)
    })
}

/// Opens all parents of an image, the nearest first. The first of them may be `given`, open and not yet locked.
pub(crate) fn open_parents(
    own: &Layer,
    tables: &dyn ImageFile,
    given: Vec<Layer>,
    fit: Fit,
    options: OpenOptions,
) -> Result<Vec<Arc<Parent>>, OpenError> {
    let options = OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..options };
    let mut given = given.into_iter();
    let mut parents: Vec<Arc<Parent>> = Vec::new();
    loop {
        let (child, child_tables) = parents.last().map_or((own, tables), |it| (&*it.layer, &*it.tables));
        if !child_tables.has_parent() {
            return match given.next() {
                None => Ok(parents),
                Some(stray) => Err(OpenError::StrayFile { path: own.path.clone(), stray: stray.path.clone() }),
            };
        }
        if parents.len() + 1 == MAX_IMAGES {
            return Err(OpenError::ChainTooLong { path: own.path.clone(), limit: MAX_IMAGES });
        }
        let above: Vec<&Layer> = std::iter::once(own).chain(parents.iter().map(|it| &*it.layer)).collect();
        let parent = match given.next() {
            Some(layer) => adopt(&above, child_tables, layer, if parents.is_empty() { fit } else { Fit::Checked }, options)?,
            None => open_parent(&above, child, child_tables, options)?,
        };
        parents.push(Arc::new(parent));
    }
}

fn open_parent(above: &[&Layer], child: &Layer, tables: &dyn ImageFile, options: OpenOptions) -> Result<Parent, OpenError> {
    let place = std::fs::canonicalize(&child.path).unwrap_or_else(|_| child.path.clone());
    let directory = place.parent().unwrap_or(Path::new("/"));
    let tried: Vec<PathBuf> = tables.parent_paths().into_iter().map(|path| clean(&directory.join(path))).collect();
    let mut wrong = None;
    for path in &tried {
        let layer = match Layer::open(path, options) {
            Err(OpenError::NotFound(_)) => continue,
            other => other.map_err(|source| OpenError::Parent { chain: chain(above, path), source: Box::new(source) })?,
        };
        match adopt(above, tables, layer, Fit::Checked, options) {
            // Another place may have the right one.
            Err(error @ (OpenError::ParentChanged { .. } | OpenError::ParentSectors { .. })) => wrong = wrong.or(Some(error)),
            other => return other,
        }
    }
    let above = Chain(above.iter().map(|it| it.path.clone()).collect());
    Err(wrong.unwrap_or(OpenError::ParentMissing { chain: above, tried }))
}

/// Locks an open file and takes it as the parent of the last of those `above` it, whose tables these are.
fn adopt(above: &[&Layer], tables: &dyn ImageFile, layer: Layer, fit: Fit, options: OpenOptions) -> Result<Parent, OpenError> {
    let chain = || chain(above, &layer.path);
    let wrap = |source| OpenError::Parent { chain: chain(), source: Box::new(source) };
    // Before it is locked and read: our own file is locked already.
    if above.iter().any(|it| it.identity == layer.identity) {
        return Err(OpenError::ParentCycle { chain: chain() });
    }
    lock::take(&layer.file, Access::ReadOnly, &layer.path).map_err(|error| wrap(error.into()))?;
    let parent = open_tables(&layer, options.format, Access::ReadOnly).map_err(wrap)?;
    let with_parent: Vec<&Layer> = above.iter().copied().chain([&layer]).collect();
    check(&with_parent, tables, &*parent, fit)?;
    if options.format == Format::Vhdx {
        // The disk's own identity changes; what is merged into its parent, it merges itself.
        lock::admit_merges(&layer.file, (above.len() > 1).then(|| tables.identity()));
    }
    Ok(Parent { layer: Arc::new(layer), tables: parent })
}

fn chain(above: &[&Layer], last: &Path) -> Chain {
    Chain(above.iter().map(|it| it.path.clone()).chain([last.to_owned()]).collect())
}

/// Whether the last file's image is the one that its child, the one before, was made from.
pub(crate) fn check(chain: &[&Layer], child: &dyn ImageFile, parent: &dyn ImageFile, fit: Fit) -> Result<(), OpenError> {
    let chain = || Chain(chain.iter().map(|layer| layer.path.clone()).collect());
    if fit == Fit::Checked && !child.accepts(parent.identity()) {
        return Err(OpenError::ParentChanged { chain: chain() });
    }
    let (parent, child) = (parent.logical_sector_size(), child.logical_sector_size());
    if parent > child {
        return Err(OpenError::ParentSectors { chain: chain(), parent, child });
    }
    Ok(())
}

/// Without `.`, which Windows' relative paths begin with.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}
