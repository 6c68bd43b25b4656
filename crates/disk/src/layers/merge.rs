//! Writes what a disk's newest file holds into the one below, which is the disk's file then.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhdx::vhdx::BeyondEnd;
use vhdx::{Extent, MapError, Mapping, Place, Storage};

use super::{LayerError, Parts};
use crate::chain::Parent;
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::format::{Format, ImageFile};
use crate::image::{Image, open_tables};
use crate::layer::Layer;
use crate::lock;
use crate::put;

/// What is looked at, and read, at a time.
const WINDOW: u64 = 64 << 20;
const BUFFER: usize = 1 << 20;

/// The file below a disk's newest, open and locked for writing.
pub struct LeafMerge {
    disk: Disk,
    // Before the file that they are in.
    tables: Arc<dyn ImageFile>,
    layer: Arc<Layer>,
    /// As it was opened before, and is going to be read if the merge is not done.
    parent: Arc<Parent>,
    is_done: bool,
}

impl Disk {
    /// Takes the open file of the disk's nearest parent, to be written to. Refused if the disk's own file holds more than `most` bytes.
    ///
    /// # Errors
    /// If others use the parent, too; see [`LayerError`].
    pub fn prepare_merge(&self, file: OwnedFd, most: Option<u64>) -> Result<LeafMerge, LayerError> {
        let Parts { image, tables: upper } = self.parts()?;
        let Some(parent) = image.parents().first().cloned() else { return Err(LayerError::NoParent(self.path().to_owned())) };
        let path = &parent.layer.path;
        let unfit = |problem: &str| Err(LayerError::Unfit { path: path.clone(), problem: problem.to_owned() });
        let layer = Layer::from_fd(file, path.clone(), OpenOptions { locking: Locking::Later, ..self.options() })?;
        if layer.identity != parent.layer.identity {
            return unfit("the file that came is another one");
        }
        if parent.tables.has_parent() && parent.tables.size() != upper.size() {
            return unfit(
                "it has another size than the disk, and a parent itself; merge it into that first, while the VM is stopped",
            );
        }
        if let Some(most) = most {
            let mut bytes = 0;
            each_extent(&*upper, &mut |_, extent| {
                bytes += if extent.place == Place::Parent { 0 } else { extent.length };
                Ok(())
            })
            .map_err(LayerError::map(self.path(), "reading its tables"))?;
            if bytes > most {
                return Err(LayerError::TooMuch { path: self.path().to_owned(), bytes, most });
            }
        }
        // From one lock to the other without a moment in which a writer could come.
        lock::take(&layer.file, Access::ReadOnly, path)?;
        lock::release(&parent.layer.file);
        let opened = lock::take(&layer.file, Access::ReadWrite, path).map_err(LayerError::from);
        let opened = opened.and_then(|()| Ok(open_tables(&layer, Format::Vhdx, Access::ReadWrite)?));
        match opened {
            Ok(tables) => Ok(LeafMerge { disk: self.clone(), tables, layer: Arc::new(layer), parent, is_done: false }),
            Err(error) => {
                lock_again(&layer, &parent);
                Err(error)
            }
        }
    }
}

impl LeafMerge {
    /// Does it. Answers how many bytes were written or zeroed, and with that or an error the disk to go on with.
    pub fn merge(mut self) -> (Disk, Result<u64, LayerError>) {
        let disk = self.disk.clone();
        let Parts { image, tables: upper } = match disk.idle_parts() {
            Ok(parts) => parts,
            Err(error) => return (disk, Err(error)),
        };
        let lower_parents = image.parents()[1..].to_vec();
        let merged = self.write(&*upper).and_then(|bytes| {
            let lower = Image::of(self.tables.clone(), lower_parents.clone(), disk.options());
            Ok((disk.successor(self.layer.clone(), lower)?, bytes))
        });
        match merged {
            Ok((new, bytes)) => {
                self.is_done = true;
                if let Some(tables) = image.give_tables() {
                    // It is of no use any more; whoever opens it all the same finds it whole.
                    let _ = tables.close();
                }
                (new, Ok(bytes))
            }
            Err(error) => {
                let _ = self.tables.close();
                // What was read of the parent's tables is right where it can be seen, but they may be elsewhere.
                let again = open_tables(&self.parent.layer, Format::Vhdx, Access::ReadOnly).and_then(|tables| {
                    let parent = Parent { tables, layer: self.parent.layer.clone() };
                    let parents = std::iter::once(Arc::new(parent)).chain(lower_parents).collect();
                    disk.successor(disk.own().clone(), Image::of(upper, parents, disk.options()))
                });
                match again {
                    Ok(same) => {
                        image.give_tables();
                        (same, Err(error))
                    }
                    Err(source) => (disk, Err(LayerError::Lost { error: Box::new(error), source })),
                }
            }
        }
    }

    fn write(&self, upper: &dyn ImageFile) -> Result<u64, LayerError> {
        let (own, path, lower) = (self.disk.own(), &self.layer.path, &*self.tables);
        let now = lower.identity();
        if !upper.accepts(now) {
            return Err(LayerError::Unfit { path: path.clone(), problem: "it was changed by somebody else".to_owned() });
        }
        let random = |source: std::io::Error| MapError::Io { action: "getting random numbers", source };
        let next = lower.next_identity().map_err(random).map_err(LayerError::map(path, "preparing it"))?;
        upper.relink(now, Some(next)).map_err(LayerError::image(&own.path, "preparing it for the merge"))?;
        let resize = |size| lower.resize(size, BeyondEnd::Discard).map_err(LayerError::image(path, "giving it the disk's size"));
        if upper.size() > lower.size() {
            resize(upper.size())?;
        }
        let copied = copy(upper, &*own.file, lower, &*self.layer.file);
        let bytes = copied.map_err(LayerError::map(path, "writing what the disk holds into it"))?;
        if upper.size() < lower.size() {
            resize(upper.size())?;
        }
        lower.close().map_err(LayerError::map(path, "making it durable"))?;
        let durable = self.layer.file.sync_data().map_err(|source| MapError::Io { action: "flushing", source });
        durable.map_err(LayerError::map(path, "making it durable"))?;
        Ok(bytes)
    }
}

impl Drop for LeafMerge {
    fn drop(&mut self) {
        if !self.is_done {
            lock_again(&self.layer, &self.parent);
        }
    }
}

/// Gives a parent, which was locked for writing, the lock of one that is read.
fn lock_again(layer: &Layer, parent: &Parent) {
    // The first cannot fail, and with it the second cannot: nobody else has an exclusive lock.
    let path = &layer.path;
    let _ = lock::take(&layer.file, Access::ReadOnly, path).and_then(|()| lock::take(&parent.layer.file, Access::ReadOnly, path));
    lock::admit_merges(&parent.layer.file, None);
}

fn each_extent(image: &dyn Mapping, visit: &mut dyn FnMut(u64, &Extent) -> Result<(), MapError>) -> Result<(), MapError> {
    let size = image.size();
    let mut extents = Vec::new();
    for start in (0..size).step_by(WINDOW as usize) {
        extents.clear();
        let ticket = image.map_read(start, WINDOW.min(size - start), &mut extents)?;
        let mut at = start;
        let result = extents.iter().try_for_each(|extent| {
            at += extent.length;
            visit(at - extent.length, extent)
        });
        image.finish(ticket);
        result?;
    }
    Ok(())
}

fn copy(upper: &dyn ImageFile, from: &dyn Storage, lower: &dyn ImageFile, to: &dyn Storage) -> Result<u64, MapError> {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    each_extent(upper, &mut |start, extent| {
        match extent.place {
            Place::Parent => return Ok(()),
            Place::Zero => put::zero(lower, to, start, extent.length)?,
            Place::File(at) => {
                for done in (0..extent.length).step_by(BUFFER) {
                    let part = &mut buffer[..(extent.length - done).min(BUFFER as u64) as usize];
                    from.read_at(at + done, part).map_err(|source| MapError::Io { action: "reading the disk's data", source })?;
                    put::write(lower, to, start + done, part)?;
                }
            }
        }
        bytes += extent.length;
        Ok(())
    })?;
    Ok(bytes)
}
