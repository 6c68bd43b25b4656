//! A disk whose file is an image: its tables, its parents, and its commits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhdx::MapError;
use vhdx::vhdx::BeyondEnd;

use crate::chain::{self, Fit, Parent};
use crate::commits::Commits;
use crate::disk::{Access, Facts, Locking, OpenOptions, SectorSize};
use crate::error::{IoError, OpenError};
use crate::format::{Format, ImageError, ImageFile, open_image};
use crate::layer::{Kind, Layer};
use crate::ranges::Ranges;

/// What all clones of a disk share about its image.
pub(crate) struct Image {
    format: Format,
    access: Access,
    /// The tables; none while the disk's lock is given up, because another machine may change them.
    tables: Mutex<Option<Arc<dyn ImageFile>>>,
    parents: Vec<Arc<Parent>>,
    pub commits: Arc<Commits>,
    /// With copy-on-read.
    pub ranges: Option<Arc<Ranges>>,
}

impl Image {
    /// Understands a file as an image, and opens its parents, as far as they are not `given`. Whose lock is taken later is only read
    /// until then.
    pub fn open(own: &Layer, given: Vec<Layer>, options: OpenOptions) -> Result<Image, OpenError> {
        if own.kind == Kind::BlockDevice {
            return Err(OpenError::ImageOnDevice { path: own.path.clone(), format: options.format });
        }
        let access = match options.locking {
            Locking::Now => options.access,
            Locking::Later => Access::ReadOnly,
        };
        let tables = open_tables(own, options.format, access)?;
        let parents = chain::open_parents(own, &*tables, given, Fit::Checked, options)?;
        if options.access == Access::ReadWrite {
            chain::settle(&parents)?;
        }
        Ok(Image::of(tables, parents, options))
    }

    /// Puts together what is open, locked and fits.
    pub fn of(tables: Arc<dyn ImageFile>, parents: Vec<Arc<Parent>>, options: OpenOptions) -> Image {
        let copies = options.copy_on_read && options.access == Access::ReadWrite && !parents.is_empty();
        Image {
            format: options.format,
            access: options.access,
            tables: Mutex::new(Some(tables)),
            parents,
            commits: Arc::default(),
            ranges: copies.then(Arc::default),
        }
    }

    /// For tests: any tables over a file.
    #[cfg(test)]
    pub fn with_tables(&self, change: impl FnOnce(Arc<dyn ImageFile>) -> Arc<dyn ImageFile>) {
        let mut tables = self.lock();
        *tables = tables.take().map(change);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn ImageFile>>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size and sectors, as the image has them.
    pub fn facts(&self, own: &Layer, options: OpenOptions) -> Result<Facts, OpenError> {
        let Some(tables) = self.tables() else {
            return Ok(Facts { sector: SectorSize::Bytes512, physical_sector: 512, length: 0 });
        };
        let sector = if tables.logical_sector_size() > 512 { SectorSize::Bytes4096 } else { SectorSize::Bytes512 };
        if let Some(asked) = options.sector_size.filter(|asked| *asked != sector) {
            return Err(OpenError::SectorSize { path: own.path.clone(), asked: asked.bytes(), required: sector.bytes() });
        }
        Ok(Facts { sector, physical_sector: tables.physical_sector_size().max(sector.bytes()), length: tables.size() })
    }

    /// The tables, while the disk is locked.
    pub fn tables(&self) -> Option<Arc<dyn ImageFile>> {
        self.lock().clone()
    }

    /// The parents, the nearest first.
    pub fn parents(&self) -> &[Arc<Parent>] {
        &self.parents
    }

    /// Reads the tables again, after the lock was taken. The size.
    pub fn reopen(&self, own: &Layer) -> Result<u64, OpenError> {
        let mut tables = self.lock();
        *tables = None;
        let opened = open_tables(own, self.format, self.access)?;
        if let Some(parent) = self.parents.first() {
            chain::check(&[own, &parent.layer], &*opened, &*parent.tables, Fit::Checked)?;
        }
        Ok(tables.insert(opened).size())
    }

    /// Grows the virtual disk, between two commits.
    pub fn grow(&self, bytes: u64) -> Result<(), ImageError> {
        let Some(tables) = self.tables() else { return Err("its lock is not held".into()) };
        let _quiet = self.commits.quiet();
        tables.resize(bytes, BeyondEnd::Refuse)
    }

    /// Makes all that is complete durable, if tables were changed.
    pub fn settle(&self) -> Result<(), IoError> {
        let Some(tables) = self.tables().filter(|_| self.access == Access::ReadWrite) else { return Ok(()) };
        let _quiet = self.commits.quiet();
        if tables.is_clean() { Ok(()) } else { tables.settle().map_err(|error| IoError::from(&error)) }
    }

    /// Takes the tables away, for another disk; this one can be used no more.
    pub fn give_tables(&self) -> Option<Arc<dyn ImageFile>> {
        self.lock().take()
    }

    /// Writes the tables and takes them away, for the file to be read only. If that fails, they stay.
    pub fn finish(&self) -> Result<Option<Arc<dyn ImageFile>>, MapError> {
        if let Some(tables) = self.tables() {
            let _quiet = self.commits.quiet();
            tables.close()?;
        }
        Ok(self.give_tables())
    }

    /// Writes the tables and forgets them. What cannot be written is as after a crash: nothing that was flushed is lost. The mark of
    /// the data as it was left, if there were tables and they have one.
    pub fn close(&self) -> Option<[u8; 16]> {
        let tables = self.lock().take()?;
        if self.access == Access::ReadWrite {
            let _quiet = self.commits.quiet();
            let _ = tables.close();
        }
        tables.identity().data_mark()
    }
}

/// Understands a file as an image.
pub(crate) fn open_tables(layer: &Layer, format: Format, access: Access) -> Result<Arc<dyn ImageFile>, OpenError> {
    if format == Format::Vhd && layer.direct.is_some() {
        return Err(OpenError::VhdDirect(layer.path.clone()));
    }
    let Some(file) = layer.through_cache() else { return Err(OpenError::ImageDirect(layer.path.clone())) };
    match open_image(format, file, access) {
        Ok(image) => Ok(image),
        Err(source) => Err(OpenError::Image { path: layer.path.clone(), format, source }),
    }
}
