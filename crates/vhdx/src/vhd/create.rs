//! New images.

use super::error::{Action, CreateError};
use super::footer::{Footer, Kind, MAX_SIZE, SECTOR, Timestamp, UniqueId};
use super::header::{BLOCK_SIZES, HEADER, Header, MAX_ENTRIES};
use super::layout::{ABSENT, table_size};
use super::parent::{ParentName, StoredPaths};
use crate::Storage;

/// The usual size of a block: 2 MiB.
pub const BLOCK_SIZE: u32 = 2 << 20;

/// How a new disk takes space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    /// All of it, in a file that begins with the disk's data.
    Fixed,
    /// Block by block.
    Dynamic,
    /// Block by block; what was not written is read from this parent.
    Differencing(ParentName),
}

/// What a new disk is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// The virtual disk's size in bytes: a multiple of 512, up to [`MAX_SIZE`].
    pub size: u64,
    /// How it takes space.
    pub kind: NewKind,
    /// In bytes; [`BLOCK_SIZE`] is what other programs expect.
    pub block_size: u32,
    /// What tells it from other disks: random bytes.
    pub id: UniqueId,
    /// The time now.
    pub created: Timestamp,
}

/// Makes an image of an empty file. The footers are written last: a crash leaves an image, or what nobody takes for one.
///
/// # Errors
/// See [`CreateError`].
pub fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<(), CreateError> {
    let size = options.size;
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
        return Err(CreateError::Size(size));
    }
    let there = storage.size().during::<CreateError>("the file's size cannot be read")?;
    if there != 0 {
        return Err(CreateError::NotEmpty(there));
    }
    let parent = match &options.kind {
        NewKind::Fixed => {
            let footer = Footer::new(Kind::Fixed, size, options.id, options.created, 0);
            storage.set_size(size + SECTOR).during::<CreateError>("the file cannot be made as long as the disk")?;
            storage.write_at(size, footer.bytes()).during::<CreateError>("the footer cannot be written")?;
            return storage.flush().during("the file cannot be flushed");
        }
        NewKind::Dynamic => None,
        NewKind::Differencing(parent) => Some(parent),
    };
    create_blocks(storage, options, parent)
}

fn create_blocks(storage: &dyn Storage, options: &CreateOptions, parent: Option<&ParentName>) -> Result<(), CreateError> {
    let block_size = options.block_size;
    let possible = block_size.is_power_of_two() && BLOCK_SIZES.contains(&block_size);
    let count = options.size.div_ceil(u64::from(block_size).max(1));
    let entries = u32::try_from(count).ok().filter(|entries| possible && *entries <= MAX_ENTRIES);
    let entries = entries.ok_or(CreateError::BlockSize(block_size))?;

    let table_at = SECTOR + HEADER;
    let paths_at = table_at + table_size(entries);
    let mut header = Header::new(table_at, entries, block_size);
    let mut paths = StoredPaths { locators: Vec::new(), data: Vec::new() };
    if let Some(parent) = parent {
        parent.check()?;
        paths = parent.store(paths_at);
        parent.put_into(&mut header, &paths);
    }
    let kind = if parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
    let footer = Footer::new(kind, options.size, options.id, options.created, SECTOR);
    let end = paths_at + paths.data.len() as u64;

    let mut bytes = header.bytes().to_vec();
    bytes.extend(std::iter::repeat_n(ABSENT.to_be_bytes(), (table_size(entries) / 4) as usize).flatten());
    bytes.extend(&paths.data);
    storage.set_size(end + SECTOR).during::<CreateError>("the file cannot be made longer")?;
    storage.write_at(SECTOR, &bytes).during::<CreateError>("the tables cannot be written")?;
    storage.flush().during::<CreateError>("the file cannot be flushed")?;
    for offset in [0, end] {
        storage.write_at(offset, footer.bytes()).during::<CreateError>("a footer cannot be written")?;
    }
    storage.flush().during("the file cannot be flushed")
}
