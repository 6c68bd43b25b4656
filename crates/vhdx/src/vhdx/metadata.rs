//! The metadata region (MS-VHDX 2.2.4): a table of items, and the facts of the virtual disk.

use super::error::{Damage, OpenError, reading};
use super::layout::{
    DISK_ID, DISK_SIZE, FILE_PARAMETERS, INCOMPLETE, LOGICAL_SECTOR, MAX_DISK, PARENT_LOCATOR, PHYSICAL_SECTOR, guid_at, put,
    read_vec, u16_at, u32_at, u64_at,
};
use super::locator::Parent;
use super::regions::Region;
use crate::{Guid, Storage};

/// Size of the table; items stand behind it.
pub(crate) const TABLE_SIZE: usize = 64 << 10;
const MAX_ITEMS: u16 = 2047;
const MAX_ITEM: u32 = 1 << 20;
const NAME: &str = "metadata table";

pub(crate) const IS_VIRTUAL_DISK: u32 = 2;
pub(crate) const IS_REQUIRED: u32 = 4;

/// One entry of the table. The offset is relative to the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: Guid,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) flags: u32,
}

impl Item {
    fn is_user(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// The facts of the virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) block_size: u32,
    pub(crate) leave_blocks_allocated: bool,
    pub(crate) has_parent: bool,
    pub(crate) size: u64,
    pub(crate) id: Guid,
    pub(crate) logical: u32,
    pub(crate) physical: u32,
    pub(crate) parent: Option<Parent>,
}

pub(crate) fn encode_table(items: &[Item]) -> Vec<u8> {
    let mut bytes = vec![0; TABLE_SIZE];
    put(&mut bytes, 0, b"metadata");
    put(&mut bytes, 10, &(items.len() as u16).to_le_bytes());
    for (index, item) in items.iter().enumerate() {
        let at = 32 + index * 32;
        put(&mut bytes, at, &item.id.to_bytes());
        put(&mut bytes, at + 16, &item.offset.to_le_bytes());
        put(&mut bytes, at + 20, &item.length.to_le_bytes());
        put(&mut bytes, at + 24, &item.flags.to_le_bytes());
    }
    bytes
}

/// Reads the table and refuses what must not be ignored.
pub(crate) fn read_table(storage: &dyn Storage, region: Region) -> Result<Vec<Item>, OpenError> {
    let at = region.offset;
    let damage = |problem: String| OpenError::from(Damage::new(NAME, at, problem));
    let bytes = read_vec(storage, at, TABLE_SIZE).map_err(reading(NAME, at))?;
    if &bytes[..8] != b"metadata" {
        return Err(damage("its signature is not 'metadata'".to_owned()));
    }
    let count = u16_at(&bytes, 10);
    if count > MAX_ITEMS {
        return Err(damage(format!("{count} items are more than {MAX_ITEMS}")));
    }
    let mut items: Vec<Item> = Vec::with_capacity(usize::from(count));
    let mut keys = std::collections::BTreeSet::new();
    for index in 0..usize::from(count) {
        let entry = 32 + index * 32;
        let item = Item {
            id: guid_at(&bytes, entry),
            offset: u32_at(&bytes, entry + 16),
            length: u32_at(&bytes, entry + 20),
            flags: u32_at(&bytes, entry + 24),
        };
        let id = item.id;
        let inside =
            item.offset as usize >= TABLE_SIZE && u64::from(item.offset) + u64::from(item.length) <= region.length.into();
        if item.length > MAX_ITEM || (item.length == 0 && item.offset != 0) || (item.length > 0 && !inside) {
            return Err(damage(format!("item {id}: {} bytes at {} are not possible", item.length, item.offset)));
        }
        if !keys.insert((id, item.is_user())) {
            return Err(damage(format!("item {id} is there twice")));
        }
        if id == INCOMPLETE {
            return Err(damage("its creation did not end: the image is incomplete".to_owned()));
        }
        let known = [FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR];
        if item.flags & IS_REQUIRED != 0 && (item.is_user() || !known.contains(&id)) {
            let problem = format!("item {id} is required and not known here");
            return Err(OpenError::Unsupported { structure: NAME, offset: at, problem });
        }
        items.push(item);
    }
    if keys.iter().filter(|(_, user)| *user).count() > 1024 {
        return Err(damage("more than 1024 user items".to_owned()));
    }
    Ok(items)
}

pub(crate) fn find(items: &[Item], id: Guid) -> Option<&Item> {
    items.iter().find(|item| item.id == id && !item.is_user())
}

/// What stands where in the metadata region.
type Contents = Vec<(u32, Vec<u8>)>;

impl Facts {
    pub(crate) fn read(storage: &dyn Storage, region: Region, items: &[Item]) -> Result<Self, OpenError> {
        let fetch = |id: Guid, structure: &'static str, length: Option<u32>| -> Result<(Vec<u8>, u64), OpenError> {
            let missing = || Damage::new(NAME, region.offset, format!("the {structure} is missing"));
            let item = find(items, id).ok_or_else(missing)?;
            let offset = region.offset + u64::from(item.offset);
            if length.is_some_and(|length| length != item.length) {
                return Err(Damage::new(structure, offset, format!("{} bytes are not its length", item.length)).into());
            }
            Ok((read_vec(storage, offset, item.length as usize).map_err(reading(structure, offset))?, offset))
        };
        let damage = |structure, offset, problem: String| OpenError::from(Damage::new(structure, offset, problem));

        let (parameters, at) = fetch(FILE_PARAMETERS, "file parameters item", Some(8))?;
        let (block_size, flags) = (u32_at(&parameters, 0), u32_at(&parameters, 4));
        if !block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block_size) {
            return Err(damage("file parameters item", at, format!("a block size of {block_size} bytes is not possible")));
        }
        let sector = |id, structure| {
            let (bytes, at) = fetch(id, structure, Some(4))?;
            match u32_at(&bytes, 0) {
                size @ (512 | 4096) => Ok(size),
                size => Err(damage(structure, at, format!("{size} bytes are neither 512 nor 4096"))),
            }
        };
        let logical = sector(LOGICAL_SECTOR, "logical sector size item")?;
        let physical = sector(PHYSICAL_SECTOR, "physical sector size item")?;
        let (size, at) = fetch(DISK_SIZE, "disk size item", Some(8))?;
        let size = u64_at(&size, 0);
        if size == 0 || size > MAX_DISK || !size.is_multiple_of(logical.into()) {
            return Err(damage("disk size item", at, format!("{size} bytes are not whole sectors up to 64 TiB")));
        }
        let (id, _) = fetch(DISK_ID, "disk id item", Some(16))?;
        let has_parent = flags & 2 != 0;
        let parent = if has_parent {
            let (bytes, at) = fetch(PARENT_LOCATOR, "parent locator", None)?;
            Some(Parent::decode(&bytes, at)?)
        } else {
            None
        };
        let leave_blocks_allocated = flags & 1 != 0;
        Ok(Self { block_size, leave_blocks_allocated, has_parent, size, id: guid_at(&id, 0), logical, physical, parent })
    }

    /// All items with their content, for a new image; offsets are relative to the region.
    pub(crate) fn items(&self) -> Result<(Vec<Item>, Contents), String> {
        let flags = u32::from(self.leave_blocks_allocated) | u32::from(self.has_parent) << 1;
        let parameters = [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        let mut contents = vec![
            (FILE_PARAMETERS, IS_REQUIRED, parameters),
            (DISK_SIZE, IS_REQUIRED | IS_VIRTUAL_DISK, self.size.to_le_bytes().to_vec()),
            (DISK_ID, IS_REQUIRED | IS_VIRTUAL_DISK, self.id.to_bytes().to_vec()),
            (LOGICAL_SECTOR, IS_REQUIRED | IS_VIRTUAL_DISK, self.logical.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR, IS_REQUIRED | IS_VIRTUAL_DISK, self.physical.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            contents.push((PARENT_LOCATOR, IS_REQUIRED, parent.encode()?));
        }
        let mut offset = TABLE_SIZE as u32;
        let (mut items, mut bytes) = (Vec::new(), Vec::new());
        for (id, flags, content) in contents {
            let length = content.len() as u32;
            items.push(Item { id, offset, length, flags });
            bytes.push((offset, content));
            // The locator starts a page of its own: it is the one item that grows.
            offset = if id == PHYSICAL_SECTOR { TABLE_SIZE as u32 + 4096 } else { offset + length };
        }
        Ok((items, bytes))
    }
}
