//! Makes an image's file as small as what it holds.

use std::path::Path;

use vhdx::{MapError, Storage};

use super::open::{OpenImage, only_images};
use super::source::{Source, Where};

use super::{Job, ToolError};
use crate::disk::{Access, Locking};
use crate::format::{DiskType, Format};
use crate::zeros::is_zero;

/// Blocks that move with one commit.
const BLOCKS: usize = 64;
/// Bytes read and written at once.
const PIECE: u64 = 2 << 20;

/// Frees the blocks that hold only zeros, moves the others to the front of the file, and cuts it off. Its children still fit. Answers how
/// many bytes shorter the file is.
///
/// # Errors
/// See [`ToolError`]; the disk holds the same then, and this can be run again.
pub fn compact(path: &Path, format: Format, job: &Job) -> Result<u64, ToolError> {
    only_images(path, format, "compacting")?;
    let open = OpenImage::open(path, format, Access::ReadWrite, Locking::Now)?;
    compact_image(&open, job)
}

/// See [`compact`].
pub(super) fn compact_image(open: &OpenImage, job: &Job) -> Result<u64, ToolError> {
    let path = &open.path;
    let size = || open.storage.size().map_err(ToolError::io(path, "reading its size"));
    let before = size()?;
    let facts = open.image.facts().map_err(ToolError::map(path))?;
    if facts.disk_type == DiskType::Fixed {
        return Err(ToolError::options(
            path,
            "a fixed disk keeps all its space; convert it to a dynamic one (maru disk convert)",
        ));
    }
    if facts.can_free_zeros {
        free_zeros(open, job)?;
    }
    loop {
        job.reach(0)?;
        let mut copy = |from, to, length| copy_block(&*open.storage, from, to, length);
        let moved = open.image.move_to_front(BLOCKS, &mut copy).map_err(ToolError::image(path, "moving its blocks"))?;
        if moved == 0 {
            break;
        }
    }
    open.close()?;
    Ok(before.saturating_sub(size()?))
}

fn free_zeros(open: &OpenImage, job: &Job) -> Result<(), ToolError> {
    let path = &open.path;
    let (size, block_size) = (open.image.size(), u64::from(open.image.block_size()));
    let source = Source::of_levels(vec![open.level()], true);
    job.begin(size);
    for block in 0..size.div_ceil(block_size) {
        let offset = block * block_size;
        job.reach(offset)?;
        if is_zero_block(&source, offset, block_size.min(size - offset))? {
            loop {
                match open.image.free_zeros(block) {
                    Err(MapError::CommitFirst) => {
                        open.image.settle().map_err(ToolError::image(path, "writing its tables"))?;
                    }
                    other => break other.map_err(ToolError::image(path, "freeing a block"))?,
                }
            }
        }
    }
    Ok(())
}

/// Whether a block is all this file's, and zeros.
fn is_zero_block(source: &Source, offset: u64, length: u64) -> Result<bool, ToolError> {
    let mut found = Vec::new();
    source.find(offset, length, &mut found)?;
    if found.iter().any(|it| it.place == Where::Below) {
        return Ok(false);
    }
    let mut buffer = Vec::new();
    for segment in found.into_iter().filter(|it| it.is_data()) {
        let mut rest = Some(segment);
        while let Some(part) = rest.take() {
            let (now, later) = if part.length > PIECE {
                let (now, later) = part.split(part.offset + PIECE);
                (now, Some(later))
            } else {
                (part, None)
            };
            buffer.resize(now.length as usize, 0);
            source.read(&now, &mut buffer)?;
            if !is_zero(&buffer) {
                return Ok(false);
            }
            rest = later;
        }
    }
    Ok(true)
}

/// Copies what is data; the new place reads as zeros.
fn copy_block(file: &dyn Storage, from: u64, to: u64, length: u64) -> std::io::Result<()> {
    let end = from + length;
    let mut at = from;
    while let Some(start) = file.next_data(at)?.filter(|it| *it < end) {
        let stop = file.next_hole(start)?.min(end).min(start + PIECE);
        let mut buffer = vec![0; (stop - start) as usize];
        file.read_at(start, &mut buffer)?;
        file.write_at(to + (start - from), &buffer)?;
        at = stop;
    }
    Ok(())
}
