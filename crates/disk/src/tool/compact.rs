//! Makes an image's file as small as what it holds.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vhdx::{MapError, Mapping, Storage};

use super::open::{OpenImage, only_vhdx};
use super::source::{Level, Source, Where};
use super::{Job, ToolError};
use crate::disk::{Access, Locking};
use crate::format::Format;
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
    only_vhdx(path, format, "compacting")?;
    let open = OpenImage::open(path, Access::ReadWrite, Locking::Now)?;
    let before = file_size(&open)?;
    if open.image.info().is_fixed {
        return Err(ToolError::options(
            path,
            "a fixed disk keeps all its space; convert it to a dynamic one (maru disk convert)",
        ));
    }
    free_zeros(&open, job)?;
    loop {
        job.reach(0)?;
        let mut copy = |from, to, length| copy_block(&open, from, to, length);
        let moved = open.image.move_to_front(BLOCKS, &mut copy).map_err(ToolError::image(path, "moving its blocks"))?;
        if moved == 0 {
            break;
        }
    }
    open.close()?;
    Ok(before.saturating_sub(file_size(&open)?))
}

fn file_size(open: &OpenImage) -> Result<u64, ToolError> {
    let metadata = open.layer.file.metadata();
    Ok(metadata.map_err(ToolError::io(&open.layer.path, "reading its size"))?.len())
}

fn free_zeros(open: &OpenImage, job: &Job) -> Result<(), ToolError> {
    let path = &open.layer.path;
    let (size, block_size) = (open.image.size(), u64::from(open.image.block_size()));
    let level = Level {
        path: path.clone(),
        file: open.layer.file.clone(),
        tables: Some(Arc::clone(&open.image) as Arc<dyn Mapping>),
        size,
    };
    let source = Source::of_levels(vec![level], true);
    job.begin(size);
    for block in 0..size.div_ceil(block_size) {
        let offset = block * block_size;
        job.reach(offset)?;
        if is_zero_block(&source, offset, block_size.min(size - offset))? {
            loop {
                match open.image.release_zeros(block) {
                    Err(MapError::CommitFirst) => {
                        open.image.flush().map_err(ToolError::image(path, "writing its tables"))?;
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
fn copy_block(open: &OpenImage, from: u64, to: u64, length: u64) -> std::io::Result<()> {
    let file = &open.layer.file;
    let end = from + length;
    let mut at = from;
    while let Some(start) = file.next_data(at)?.filter(|it| *it < end) {
        let stop = super::source::next_hole(file, start)?.min(end).min(start + PIECE);
        let mut buffer = vec![0; (stop - start) as usize];
        file.read_exact_at(&mut buffer, start)?;
        file.write_all_at(&buffer, to + (start - from))?;
        at = stop;
    }
    Ok(())
}
