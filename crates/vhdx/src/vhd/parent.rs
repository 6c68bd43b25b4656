//! Who the parent of a differencing disk is.

use super::bytes::round_up;
use super::error::{Action, OpenError, ParentError};
use super::footer::{Footer, Kind, SECTOR, Timestamp, UniqueId};
use super::header::{ABSOLUTE, HEADER, Header, Locator, MAX_PATH, NAME_UNITS, RELATIVE};
use super::image::{Access, Core};
use crate::{MapError, Storage};

/// What a differencing disk knows of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentName {
    /// The parent's [`Info::id`](super::Info::id). A parent with another one is the wrong disk.
    pub id: UniqueId,
    /// When the parent was last changed.
    pub changed: Timestamp,
    /// Its file's name, for people; up to 256 UTF-16 units.
    pub name: String,
    /// Where it is from the directory of this disk, as Windows writes it: `.\parent.vhd`. Up to 32,768 UTF-16 units.
    pub relative_path: Option<String>,
    /// Where it is from the root, as Windows writes it: `C:\disks\parent.vhd`. Up to 32,768 UTF-16 units.
    pub absolute_path: Option<String>,
}

/// A parent's paths as they go into the file: where, and what.
pub(super) struct StoredPaths {
    pub locators: Vec<Locator>,
    pub data: Vec<u8>,
}

impl ParentName {
    /// # Errors
    /// [`ParentError::Name`] for a name that does not fit.
    pub(super) fn check(&self) -> Result<(), ParentError> {
        let fits = |what, text: &str, most: usize| {
            let units = text.encode_utf16().count();
            let good = (1..=most).contains(&units) && !text.contains('\0');
            if good { Ok(()) } else { Err(ParentError::Name { what, units, most }) }
        };
        let most = MAX_PATH as usize / 2;
        fits("name", &self.name, NAME_UNITS)?;
        self.relative_path.as_ref().map_or(Ok(()), |path| fits("relative path", path, most))?;
        self.absolute_path.as_ref().map_or(Ok(()), |path| fits("absolute path", path, most))
    }

    /// The paths, to be written at `offset`; their size is a multiple of 512.
    pub(super) fn store(&self, offset: u64) -> StoredPaths {
        let (mut locators, mut data) = (Vec::new(), Vec::new());
        for (code, path) in [(RELATIVE, &self.relative_path), (ABSOLUTE, &self.absolute_path)] {
            let Some(path) = path else { continue };
            let text: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            locators.push(Locator { code, length: text.len() as u32, offset: offset + data.len() as u64 });
            data.extend(text);
            data.resize(round_up(data.len() as u64, SECTOR) as usize, 0);
        }
        StoredPaths { locators, data }
    }

    pub(super) fn put_into(&self, header: &mut Header, paths: &StoredPaths) {
        header.set_parent(self.id, self.changed, &self.name, &paths.locators);
    }
}

/// Reads what a header says about the parent. A path that is too long is left out, and one that is no UTF-16 will not be found.
pub(super) fn read_parent(storage: &dyn Storage, header: &Header) -> Result<ParentName, OpenError> {
    let path = |code: [u8; 4]| -> Result<Option<String>, OpenError> {
        let Some(locator) = header.locators().find(|locator| locator.code == code && locator.length <= MAX_PATH) else {
            return Ok(None);
        };
        let mut bytes = vec![0; locator.length as usize];
        storage.read_at(locator.offset, &mut bytes).during::<OpenError>("a path of the parent cannot be read")?;
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        Ok(Some(String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned()))
    };
    Ok(ParentName {
        id: header.parent_id(),
        changed: header.parent_time(),
        name: header.parent_name(),
        relative_path: path(RELATIVE)?,
        absolute_path: path(ABSOLUTE)?,
    })
}

impl Core {
    /// See [`Image::set_parent`](super::Image::set_parent).
    ///
    /// The header has no copy and is larger than a sector, so it is not written over: a new one is written at the end of the file, and
    /// then the footers point to it.
    pub(super) fn set_parent(&mut self, parent: ParentName) -> Result<(), ParentError> {
        if self.access == Access::ReadOnly {
            return Err(ParentError::ReadOnly);
        }
        if self.footer.kind() != Kind::Differencing {
            return Err(ParentError::NoParent(self.footer.kind()));
        }
        parent.check()?;
        self.commit().map_err(|error| match error {
            MapError::Io { action, source } => ParentError::Io { action, source },
            other => ParentError::Io { action: "the tables cannot be written", source: std::io::Error::other(other) },
        })?;
        let Some(tables) = &mut self.tables else { return Err(ParentError::NoParent(Kind::Fixed)) };
        let state = tables.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = state.space.end();
        let paths = parent.store(at + HEADER);
        let mut header = tables.header.clone();
        parent.put_into(&mut header, &paths);
        let mut footer = self.footer.clone();
        footer.set_header_offset(at);
        let end = at + HEADER + paths.data.len() as u64;
        let mut new = header.bytes().to_vec();
        new.extend(&paths.data);
        new.extend(self.footer.bytes());
        // What is at the end from here on is right whether the footers are switched or not.
        self.storage.write_at(at, &new).during::<ParentError>("the new header cannot be written")?;
        self.storage.flush().during::<ParentError>("the file cannot be flushed")?;
        state.space.skip_to(end);
        state.footer_at = end;
        switch_footers(&*self.storage, &footer, end).during::<ParentError>("the footers cannot be written")?;
        (self.footer, self.parent, tables.header) = (footer, Some(parent), header);
        Ok(())
    }
}

/// Writes both footers of a dynamic disk, one after the other, so that one is always good.
pub(super) fn switch_footers(storage: &dyn Storage, footer: &Footer, end: u64) -> std::io::Result<()> {
    debug_assert!(end.is_multiple_of(SECTOR));
    storage.write_at(end, footer.bytes())?;
    storage.flush()?;
    storage.write_at(0, footer.bytes())?;
    storage.flush()
}
