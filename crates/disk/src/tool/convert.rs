//! Copies a disk into a new one of any format and type.

use std::path::Path;

use super::newfile::{Existing, NewFile};
use super::open::OpenImage;
use super::source::{Segment, Source};
use super::target::Target;
use super::windows::in_parallel;
use super::zeros::each_run;
use super::{AnyFormat, Job, NewDisk, ToolError};
use crate::disk::Access;
use crate::format::Format;

/// Makes the disk at `path`, of the kind that `disk` says and with the content of the one at `from`. Its size, if none is given, is that of
/// the other. What is not data in the one takes no space in the other, unless that is fixed.
///
/// # Errors
/// See [`ToolError`]; nothing is left at `path` then, or what was there before.
pub fn convert(from: (&Path, AnyFormat), path: &Path, disk: &NewDisk, existing: Existing, job: &Job) -> Result<(), ToolError> {
    convert_source(&Source::open(from.0, from.1)?, path, disk, existing, job)
}

/// The same for a disk that nobody trusts: its own file is all that is read. One that is made of several files, or based on another one, is refused:
/// whoever made it would decide which files of this host are read.
///
/// # Errors
/// See [`ToolError`]; nothing is left at `path` then, or what was there before.
pub fn convert_alone(
    from: (&Path, AnyFormat),
    path: &Path,
    disk: &NewDisk,
    existing: Existing,
    job: &Job,
) -> Result<(), ToolError> {
    convert_source(&Source::open_alone(from.0, from.1)?, path, disk, existing, job)
}

fn convert_source(source: &Source, path: &Path, disk: &NewDisk, existing: Existing, job: &Job) -> Result<(), ToolError> {
    // Only VHDX has sectors of other sizes.
    let theirs = if disk.format == Format::Vhdx { source.sector_size() } else { 512 };
    let sector = u64::from(disk.sector_size.unwrap_or(theirs));
    let size = disk.size.unwrap_or(source.size).next_multiple_of(sector);
    if size < source.size {
        return Err(ToolError::options(path, "it would be smaller than the disk that it is made from"));
    }
    let mut disk = NewDisk { size: Some(size), ..disk.clone() };
    if disk.format == Format::Vhdx {
        disk.sector_size = Some(sector as u32);
    }
    let parent = disk.open_parent(path)?;
    if parent.is_some() {
        return Err(ToolError::options(
            path,
            "a disk is not converted into a child; make the child and use it (maru disk create)",
        ));
    }
    let new = NewFile::create(path, existing)?;
    disk.write(path, &new, None)?;
    let target = open_target(path, disk.format, &new)?;
    in_parallel(source, Segment::is_data, job, |window, buffer| {
        source.read_all(window.offset, &window.segments, buffer)?;
        each_run(buffer, |run| write(&target, window.offset + run.start as u64, &buffer[run], sector))
    })?;
    target.close()?;
    drop(target);
    new.publish()
}

fn open_target(path: &Path, format: Format, new: &NewFile) -> Result<Target, ToolError> {
    match format {
        Format::Raw => Ok(Target { path: path.to_owned(), file: new.file().clone(), image: None }),
        Format::Vhdx | Format::Vhd => Ok(OpenImage::within(new.file().clone(), path, format, Access::ReadWrite)?.target()),
    }
}

/// The end of a disk that has no whole sectors is filled up with zeros.
fn write(target: &Target, offset: u64, data: &[u8], sector: u64) -> Result<(), ToolError> {
    let whole = data.len().next_multiple_of(sector as usize);
    if whole == data.len() {
        return target.write(offset, data);
    }
    let mut padded = data.to_vec();
    padded.resize(whole, 0);
    target.write(offset, &padded)
}
