//! Changes of single structures outside the BAT: pages of the file with some bytes changed, to be logged.

use super::error::Damage;
use super::image::Image;
use super::layout::{METADATA, PAGE, REGION_TABLES};
use super::log::Page;
use super::metadata::{Item, encode_table};
use super::regions::{Region, Regions};
use crate::MapError;

const PAGE_U64: u64 = PAGE as u64;

/// Pages by place, each read once.
pub(super) struct Patch<'a> {
    image: &'a Image,
    pages: std::collections::BTreeMap<u64, Vec<u8>>,
}

impl<'a> Patch<'a> {
    pub(super) fn new(image: &'a Image) -> Self {
        Self { image, pages: std::collections::BTreeMap::new() }
    }

    /// Puts bytes somewhere in the file.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), MapError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (start, within) = (at / PAGE_U64 * PAGE_U64, (at % PAGE_U64) as usize);
            let count = (PAGE - within).min(bytes.len() - done);
            if !self.pages.contains_key(&start) {
                let mut page = vec![0; PAGE];
                self.image.read(start, &mut page)?;
                self.pages.insert(start, page);
            }
            if let Some(page) = self.pages.get_mut(&start) {
                page[within..within + count].copy_from_slice(&bytes[done..done + count]);
            }
            done += count;
        }
        Ok(())
    }

    /// Puts a whole table, of which only pages that change count.
    fn put_table(&mut self, offset: u64, old: &[u8], new: &[u8]) -> Result<(), MapError> {
        for (index, (old, new)) in old.chunks(PAGE).zip(new.chunks(PAGE)).enumerate() {
            if old != new {
                self.put(offset + (index * PAGE) as u64, new)?;
            }
        }
        Ok(())
    }

    pub(super) fn put_regions(&mut self, old: &Regions, new: &Regions) -> Result<(), MapError> {
        REGION_TABLES.iter().try_for_each(|offset| self.put_table(*offset, &old.encode(), &new.encode()))
    }

    pub(super) fn put_items(&mut self, region: Region, old: &[Item], new: &[Item]) -> Result<(), MapError> {
        self.put_table(region.offset, &encode_table(old), &encode_table(new))
    }

    pub(super) fn into_pages(self) -> Vec<Page> {
        self.pages.into_iter().map(|(offset, data)| Page { offset, data }).collect()
    }
}

impl Regions {
    /// The metadata region; a table without it was refused at the open.
    pub(super) fn metadata(&self) -> Result<Region, MapError> {
        self.get(METADATA).map_err(|_| Damage::new("region table", REGION_TABLES[0], "the metadata region is missing").into())
    }
}
