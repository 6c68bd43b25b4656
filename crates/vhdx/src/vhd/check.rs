//! Looks at images that nobody has open, and brings in order what exists twice or can be worked out.

use super::error::{Action, Damage, OpenError, RepairError};
use super::footer::{Footer, Kind, SECTOR};
use super::header::Header;
use super::image::{FooterState, footer_state, heal};
use super::layout::{ABSENT, Footers, Layout, check_blocks, find_fixed, read_header, read_table, slot_size};
use crate::Storage;

/// The most that is reported at once.
const MOST: usize = 100;

/// What was found in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// All that is not as it must be, up to 100 of it.
    pub damages: Vec<Damage>,
    /// There is something, and [`repair`] mends it or did; otherwise it would say what is lost.
    pub is_repairable: bool,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_good(&self) -> bool {
        self.damages.is_empty()
    }
}

/// Says all that is not as it must be. Nothing is written.
///
/// # Errors
/// [`RepairError::Io`] if the file cannot be read.
pub fn check(storage: &dyn Storage) -> Result<Report, RepairError> {
    let footers = Footers::read(storage).map_err(unread)?;
    let mut damages = footer_damages(&footers);
    let doubt = footers.doubt(storage).during::<RepairError>("the file cannot be read")?;
    let is_mendable = match footers.chosen() {
        _ if doubt.is_some() => false,
        Some(footer) if footer.kind() == Kind::Fixed => {
            let found = fixed_damages(&footers, footer);
            let is_mendable = found.is_empty();
            damages.extend(found);
            is_mendable
        }
        Some(footer) => {
            let (found, table_damages) = tables(storage, &footers, footer)?;
            damages.extend(table_damages);
            found.is_some_and(|(header, table)| plan(&footers, footer, &header, &table).is_ok())
        }
        None => find_fixed(storage, footers.file_size).during::<RepairError>("the file cannot be read")?.is_some(),
    };
    damages.extend(doubt);
    damages.truncate(MOST);
    Ok(Report { is_repairable: is_mendable && !damages.is_empty(), damages })
}

/// Repairs what can be repaired for certain, and says what that was:
///
/// - A footer that is missing, damaged, or a byte short is written again from the other.
/// - The footer of a fixed disk that a crash left inside a longer file is found again.
/// - Blocks past the disk's end, and such as lie past the file's end, leave the table; a block that the file's end cuts through keeps what
///   is there, and reads as zeros from there on.
///
/// # Errors
/// [`RepairError::Lost`] for what exists only once, such as the header, or two blocks in one place; [`RepairError::Doubtful`] if the
/// file may be one of two disks. It is not changed then.
pub fn repair(storage: &dyn Storage) -> Result<Report, RepairError> {
    let footers = Footers::read(storage).map_err(unread)?;
    let mut damages = footer_damages(&footers);
    if let Some(damage) = footers.doubt(storage).during::<RepairError>("the file cannot be read")? {
        return Err(RepairError::Doubtful(damage));
    }
    let Some(footer) = footers.chosen().cloned() else {
        return repair_fixed(storage, &footers, damages);
    };
    if footer.kind() == Kind::Fixed {
        if let Some(damage) = fixed_damages(&footers, &footer).pop() {
            return Err(RepairError::Lost(damage));
        }
        if footers.short {
            write_over(storage, footers.end_offset, &footer)?;
        }
        return Ok(Report { is_repairable: !damages.is_empty(), damages });
    }
    let (found, table_damages) = tables(storage, &footers, &footer)?;
    let Some((header, table)) = found else {
        let lost = table_damages.into_iter().next();
        return Err(lost.map_or(RepairError::NoFooter, RepairError::Lost));
    };
    let plan = plan(&footers, &footer, &header, &table)?;
    damages.extend(table_damages);
    damages.truncate(MOST);
    for (index, entry) in plan.table.iter().enumerate().filter(|(index, entry)| table[*index] != **entry) {
        let offset = header.table_offset() + 4 * index as u64;
        storage.write_at(offset, &entry.to_be_bytes()).during::<RepairError>("the block table cannot be written")?;
    }
    if plan.end > footers.limit() {
        // The footer, if there is one in the way, is in the middle of the last block: zeros, like all that was cut off.
        if footers.end_is_good() {
            storage.write_at(0, footer.bytes()).during::<RepairError>("the footer's copy cannot be written")?;
            storage.flush().during::<RepairError>("the file cannot be flushed")?;
            storage.set_size(footers.end_offset).during::<RepairError>("the file cannot be made shorter")?;
        }
        write_over(storage, plan.end, &footer)?;
    } else if footers.short {
        write_over(storage, footers.end_offset, &footer)?;
    }
    storage.flush().during::<RepairError>("the file cannot be flushed")?;
    let layout = Layout::read(storage).map_err(|error| match error {
        OpenError::Damaged(damage) => RepairError::Lost(damage),
        other => unread(other),
    })?;
    if let Some(blocks) = &layout.blocks
        && footer_state(&layout.footers, &layout.footer) != FooterState::Good
    {
        heal(storage, &layout.footers, &layout.footer, blocks).map_err(unread)?;
    }
    Ok(Report { is_repairable: !damages.is_empty(), damages })
}

fn unread(error: OpenError) -> RepairError {
    match error {
        OpenError::Io { action, source } => RepairError::Io { action, source },
        OpenError::Damaged(damage) => RepairError::Lost(damage),
        OpenError::NotVhd { .. } | OpenError::ShortFooter(_) => RepairError::NoFooter,
    }
}

fn footer_damages(footers: &Footers) -> Vec<Damage> {
    let end = footers.end_offset;
    let mut damages = Vec::new();
    match (&footers.end, footers.chosen()) {
        (Err(problem), _) => damages.push(Damage::new("footer", end, problem.clone())),
        (Ok(_), _) if !footers.end_is_good() => damages.push(Damage::new("footer", end, "it is that of another disk")),
        (Ok(_), Some(footer)) => {
            if footers.short {
                damages.push(Damage::new("footer", end, "it has 511 bytes"));
            }
            match &footers.copy {
                _ if footer.kind() == Kind::Fixed => {}
                Err(problem) => damages.push(Damage::new("footer's copy", 0, problem.clone())),
                Ok(copy) if copy != footer => damages.push(Damage::new("footer's copy", 0, "it is not the same as the footer")),
                Ok(_) => {}
            }
        }
        (Ok(_), None) => {}
    }
    damages
}

fn fixed_damages(footers: &Footers, footer: &Footer) -> Vec<Damage> {
    if footer.size() <= footers.end_offset {
        return Vec::new();
    }
    let problem = format!("the disk has {} bytes, more than there are before its footer", footer.size());
    vec![Damage::new("footer", footers.end_offset, problem)]
}

/// What [`tables`] could read, and what is wrong with it.
type Tables = (Option<(Header, Vec<u32>)>, Vec<Damage>);

/// The header and the table, if they can be read, and what is wrong with them.
fn tables(storage: &dyn Storage, footers: &Footers, footer: &Footer) -> Result<Tables, RepairError> {
    let read = read_header(storage, footer, footers.limit()).and_then(|header| {
        let table = read_table(storage, &header, footers.limit())?;
        Ok((header, table))
    });
    let (header, table) = match read {
        Ok(read) => read,
        Err(OpenError::Damaged(damage)) => return Ok((None, vec![damage])),
        Err(error) => return Err(unread(error)),
    };
    let (_, mut damages) = check_blocks(footer, &header, &table, footers.limit(), MOST);
    let count = footer.size().div_ceil(u64::from(header.block_size())) as usize;
    for block in (count..table.len()).filter(|block| table[*block] != ABSENT).take(MOST) {
        let offset = header.table_offset() + 4 * block as u64;
        damages.push(Damage::new("block table", offset, format!("block {block} is past the disk's end")));
    }
    Ok((Some((header, table)), damages))
}

/// A table that is good, and how far the data must reach for it.
struct Plan {
    table: Vec<u32>,
    end: u64,
}

fn plan(footers: &Footers, footer: &Footer, header: &Header, table: &[u32]) -> Result<Plan, RepairError> {
    let count = footer.size().div_ceil(u64::from(header.block_size())) as usize;
    let (slot, limit) = (slot_size(header.block_size()), footers.limit());
    let mut plan = Plan { table: table.to_vec(), end: limit };
    for (block, entry) in plan.table.iter_mut().enumerate().filter(|(_, entry)| **entry != ABSENT) {
        let start = u64::from(*entry) * SECTOR;
        if block >= count || start >= limit {
            *entry = ABSENT;
        } else {
            plan.end = plan.end.max(start + slot);
        }
    }
    // With these gone and the file long enough, nothing else may be wrong.
    let (_, mut left) = check_blocks(footer, header, &plan.table, plan.end, 1);
    left.pop().map_or(Ok(plan), |damage| Err(RepairError::Lost(damage)))
}

fn write_over(storage: &dyn Storage, offset: u64, footer: &Footer) -> Result<(), RepairError> {
    storage.write_at(offset, footer.bytes()).during::<RepairError>("the footer cannot be written")?;
    storage.flush().during("the file cannot be flushed")
}

/// A fixed disk whose footer is not where the file ends.
fn repair_fixed(storage: &dyn Storage, footers: &Footers, damages: Vec<Damage>) -> Result<Report, RepairError> {
    let found = find_fixed(storage, footers.file_size).during::<RepairError>("the file cannot be read")?;
    let Some((offset, _)) = found else { return Err(RepairError::NoFooter) };
    storage.set_size(offset + SECTOR).during::<RepairError>("the file cannot be cut behind its footer")?;
    storage.flush().during::<RepairError>("the file cannot be flushed")?;
    Ok(Report { damages, is_repairable: true })
}
