//! Finds the parts of an image in its file and makes sure that each is where nothing else is, before anything is believed.

use std::io;

use super::bytes::round_up;
use super::error::{Action, Damage, OpenError};
use super::footer::{Footer, Kind, SECTOR};
use super::header::{HEADER, Header};
use crate::Storage;

/// The table's entry of a block that is not in the file.
pub(crate) const ABSENT: u32 = u32::MAX;

/// The footers of a file.
pub(crate) struct Footers {
    pub file_size: u64,
    /// Where the last footer is, or should be.
    pub end_offset: u64,
    /// The footer there, or what is wrong with it.
    pub end: Result<Footer, String>,
    /// It has 511 bytes, as old versions of Virtual PC wrote it.
    pub short: bool,
    /// The copy at the beginning, where dynamic and differencing disks have one.
    pub copy: Result<Footer, String>,
}

impl Footers {
    pub fn read(storage: &dyn Storage) -> Result<Footers, OpenError> {
        let file_size = storage.size().during::<OpenError>("the file's size cannot be read")?;
        let read = |offset: u64, length: usize| -> Result<Result<Footer, String>, OpenError> {
            if offset.checked_add(length as u64).is_none_or(|end| end > file_size) {
                return Ok(Err(format!("the file has only {file_size} bytes")));
            }
            let mut bytes = [0; 512];
            storage.read_at(offset, &mut bytes[..length]).during::<OpenError>("a footer cannot be read")?;
            Ok(Footer::parse(&bytes))
        };
        let (mut end_offset, mut short) = (file_size.saturating_sub(SECTOR), false);
        let mut end = read(end_offset, 512)?;
        if end.is_err() && file_size % SECTOR == 511 {
            let offset = file_size - 511;
            let found = read(offset, 511)?;
            if found.is_ok() {
                (end_offset, short, end) = (offset, true, found);
            }
        }
        let mut copy = read(0, 512)?;
        if copy.as_ref().is_ok_and(|footer| footer.kind() == Kind::Fixed) {
            copy = Err("it is that of a fixed disk".into());
        }
        Ok(Footers { file_size, end_offset, end, short, copy })
    }

    /// The footer that counts. The one at the end does, unless it belongs to another disk: then it is data of this one, which a crash
    /// left in the last place.
    pub fn chosen(&self) -> Option<&Footer> {
        match (&self.end, &self.copy) {
            (Ok(end), Ok(copy)) if end.kind() != Kind::Fixed && end.id() != copy.id() => Some(copy),
            (Ok(end), _) => Some(end),
            (Err(_), Ok(copy)) => Some(copy),
            (Err(_), Err(_)) => None,
        }
    }

    /// A footer at the beginning of the file counts only where it cannot be a guest's: not if a fixed disk seems to end before the file
    /// does, as a crash leaves it that became larger. Its first sector may hold anything.
    pub fn doubt(&self, storage: &dyn Storage) -> io::Result<Option<Damage>> {
        if self.end.is_ok() || self.copy.is_err() {
            return Ok(None);
        }
        let damage = |(offset, _)| {
            let problem = format!(
                "a fixed disk seems to end here, but the first sector is that of another kind, which a guest may have written; \
                 if the disk is fixed, cut the file behind this footer (truncate -s {}), otherwise append a copy of the first sector",
                offset + SECTOR
            );
            Damage::new("footer", offset, problem)
        };
        Ok(find_fixed(storage, self.file_size)?.map(damage))
    }

    /// Whether the footer at the end is this disk's.
    pub fn end_is_good(&self) -> bool {
        self.end.as_ref().is_ok_and(|end| self.chosen() == Some(end))
    }

    /// Where the disk's data may not reach: its last footer, or the file's end where there is none.
    pub fn limit(&self) -> u64 {
        if self.end_is_good() { self.end_offset } else { self.file_size }
    }
}

/// All of an image but its data and bitmaps.
pub(crate) struct Layout {
    pub footers: Footers,
    pub footer: Footer,
    /// Of dynamic and differencing disks.
    pub blocks: Option<Blocks>,
}

/// The parts that dynamic and differencing disks have.
pub(crate) struct Blocks {
    pub header: Header,
    /// One entry per block of the table; more than the disk has blocks, perhaps.
    pub table: Vec<u32>,
    /// Sectors of all blocks that are in the file, ascending.
    pub sorted: Vec<u32>,
    /// The end of all that is known in the file, a multiple of 512.
    pub end: u64,
}

impl Layout {
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn read(storage: &dyn Storage) -> Result<Layout, OpenError> {
        let footers = Footers::read(storage)?;
        let Some(footer) = footers.chosen().cloned() else {
            let problem = footers.end.as_ref().err().cloned().unwrap_or_default();
            return Err(OpenError::NotVhd { end: footers.end_offset, problem });
        };
        if let Some(damage) = footers.doubt(storage).during::<OpenError>("the file cannot be read")? {
            return Err(damage.into());
        }
        let blocks = if footer.kind() == Kind::Fixed {
            if footer.size() > footers.end_offset {
                let problem = format!("the disk has {} bytes, more than there are before its footer", footer.size());
                return Err(Damage::new("footer", footers.end_offset, problem).into());
            }
            None
        } else {
            let header = read_header(storage, &footer, footers.limit())?;
            let table = read_table(storage, &header, footers.limit())?;
            let (sorted, mut problems) = check_blocks(&footer, &header, &table, footers.limit(), 1);
            if let Some(problem) = problems.pop() {
                return Err(problem.into());
            }
            let own = own_ranges(&footer, &header).iter().map(|range| range.1).max().unwrap_or(0);
            let end = sorted.last().map_or(0, |sector| u64::from(*sector) * SECTOR + slot_size(header.block_size()));
            Some(Blocks { header, table, sorted, end: round_up(own.max(end), SECTOR) })
        };
        Ok(Layout { footers, footer, blocks })
    }
}

/// The footer of a fixed disk that is not where the file ends: the last data in the file, with nothing but zeros behind it, and a size
/// that ends before it.
pub(crate) fn find_fixed(storage: &dyn Storage, file_size: u64) -> io::Result<Option<(u64, Footer)>> {
    let Some(offset) = last_data(storage, file_size)? else { return Ok(None) };
    let mut bytes = [0; 512];
    storage.read_at(offset, &mut bytes)?;
    let footer = Footer::parse(&bytes).ok();
    Ok(footer.filter(|footer| footer.kind() == Kind::Fixed && footer.size() == offset).map(|footer| (offset, footer)))
}

/// The last whole sector that is not zeros. Holes are skipped where the file system knows them.
fn last_data(storage: &dyn Storage, file_size: u64) -> io::Result<Option<u64>> {
    const PIECE: u64 = 1 << 20;
    let end = file_size - file_size % SECTOR;
    let mut buffer = vec![0; PIECE as usize];
    let mut piece = end.div_ceil(PIECE);
    while piece > 0 {
        piece -= 1;
        let start = piece * PIECE;
        if storage.next_data(start)?.is_none_or(|next| next >= start + PIECE) {
            continue;
        }
        let part = &mut buffer[..(end - start).min(PIECE) as usize];
        storage.read_at(start, part)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(Some(start + last as u64 / SECTOR * SECTOR));
        }
    }
    Ok(None)
}

/// The size of a block's bitmap in the file.
pub(crate) fn bitmap_size(block_size: u32) -> u64 {
    round_up(u64::from(block_size) / SECTOR / 8, SECTOR)
}

/// What a block takes in the file: its bitmap, and its data right behind.
pub(crate) fn slot_size(block_size: u32) -> u64 {
    bitmap_size(block_size) + u64::from(block_size)
}

/// The size of a table in the file.
pub(crate) fn table_size(entries: u32) -> u64 {
    round_up(u64::from(entries) * 4, SECTOR)
}

pub(crate) fn read_header(storage: &dyn Storage, footer: &Footer, limit: u64) -> Result<Header, OpenError> {
    let offset = footer.header_offset();
    if offset.checked_add(HEADER).is_none_or(|end| end > limit) {
        return Err(Damage::new("header", offset, format!("it is past the end of the data at {limit}")).into());
    }
    let mut bytes = [0; 1024];
    storage.read_at(offset, &mut bytes).during::<OpenError>("the header cannot be read")?;
    let header = Header::parse(&bytes).map_err(|problem| Damage::new("header", offset, problem))?;
    let needed = footer.size().div_ceil(u64::from(header.block_size()));
    if u64::from(header.entries()) < needed {
        let problem = format!("its table has {} entries, and the disk {needed} blocks", header.entries());
        return Err(Damage::new("header", offset, problem).into());
    }
    Ok(header)
}

/// The table; its length is bounded by the header's checks, and by the file.
pub(crate) fn read_table(storage: &dyn Storage, header: &Header, limit: u64) -> Result<Vec<u32>, OpenError> {
    let offset = header.table_offset();
    if offset.checked_add(table_size(header.entries())).is_none_or(|end| end > limit) {
        return Err(Damage::new("block table", offset, format!("it is past the end of the data at {limit}")).into());
    }
    let mut bytes = vec![0; header.entries() as usize * 4];
    storage.read_at(offset, &mut bytes).during::<OpenError>("the block table cannot be read")?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|entry| u32::from_be_bytes(*entry)).collect())
}

/// Where the footer's copy, the header, the table, and the parent's names are.
pub(crate) fn own_ranges(footer: &Footer, header: &Header) -> Vec<(u64, u64, &'static str)> {
    let mut ranges = vec![
        (0, SECTOR, "the footer's copy"),
        (footer.header_offset(), footer.header_offset() + HEADER, "the header"),
        (header.table_offset(), header.table_offset() + table_size(header.entries()), "the block table"),
    ];
    if footer.kind() == Kind::Differencing {
        for locator in header.locators() {
            let end = locator.offset.saturating_add(u64::from(locator.length));
            ranges.push((locator.offset, end, "a name of the parent"));
        }
    }
    ranges
}

/// The blocks' sectors, ascending, and up to `most` things that are wrong with the table or the places it shares with others.
pub(crate) fn check_blocks(footer: &Footer, header: &Header, table: &[u32], limit: u64, most: usize) -> (Vec<u32>, Vec<Damage>) {
    let mut problems = Vec::new();
    let own = own_ranges(footer, header);
    for (index, (start, end, what)) in own.iter().enumerate() {
        if *end > limit {
            problems.push(Damage::new("header", footer.header_offset(), format!("{what} ends past the data, at {end}")));
        }
        if let Some((_, _, other)) = own[..index].iter().find(|other| other.0 < *end && *start < other.1) {
            let problem = format!("{what} is in the same place as {other}");
            problems.push(Damage::new("header", footer.header_offset(), problem));
        }
    }
    let slot = slot_size(header.block_size());
    let entry_at = |index: usize| header.table_offset() + 4 * index as u64;
    for (index, entry) in table.iter().enumerate().filter(|(_, entry)| **entry != ABSENT) {
        if problems.len() >= most {
            break;
        }
        let start = u64::from(*entry) * SECTOR;
        let end = start + slot;
        if end > limit {
            let problem = format!("block {index} at {start} ends at {end}, past the data's end at {limit}");
            problems.push(Damage::new("block table", entry_at(index), problem));
        } else if let Some((_, _, what)) = own.iter().find(|other| other.0 < end && start < other.1) {
            let problem = format!("block {index} at {start} is in the same place as {what}");
            problems.push(Damage::new("block table", entry_at(index), problem));
        }
    }
    let mut sorted: Vec<u32> = table.iter().copied().filter(|entry| *entry != ABSENT).collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if problems.len() >= most {
            break;
        }
        if u64::from(pair[1] - pair[0]) * SECTOR < slot {
            let offset = u64::from(pair[1]) * SECTOR;
            let problem = format!("two blocks share the place at {offset}");
            problems.push(Damage::new("block table", header.table_offset(), problem));
        }
    }
    problems.truncate(most);
    (sorted, problems)
}
