//! Gives a child another parent.

use std::path::{Path, PathBuf};

use super::locator::name_parent;
use super::open::{OpenImage, only_images};
use super::source::{Segment, Source, Where};
use super::windows::in_parallel;
use super::{AnyFormat, Job, ToolError};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::format::Format;

/// What happens to what the child reads from its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The child reads as before: what differs between the old parent and the new one is written into it.
    Keep,
    /// The new parent is believed to hold the same as the old one, which need not be there any more.
    Trust,
}

/// Bytes that are compared, and copied, at a time.
const GRAIN: usize = 4096;

/// Makes the image at `parent` the parent of the one at `path`.
///
/// # Errors
/// See [`ToolError`]; the child has its old parent then, and reads as before.
pub fn rebase(path: &Path, format: Format, parent: &Path, content: Content, job: &Job) -> Result<(), ToolError> {
    only_images(path, format, "another parent")?;
    let options = OpenOptions { format, access: Access::ReadOnly, ..OpenOptions::default() };
    let own = real(path)?;
    // Without locks: if the child is among them, it is to be written.
    let unlocked = Disk::open(parent, OpenOptions { locking: Locking::Later, ..options })?;
    for other in unlocked.chain() {
        if real(other)? == own {
            return Err(ToolError::options(path, format!("it would be its own ancestor: {} hangs on it", parent.display())));
        }
    }
    drop(unlocked);
    let new = Source::open(parent, AnyFormat::Own(format))?;
    let old = match content {
        Content::Keep => {
            let disk = Disk::open(path, options)?;
            let Some(old) = disk.chain().nth(1).map(Path::to_owned) else { return Err(no_parent(path)) };
            drop(disk);
            Some(Source::open(&old, AnyFormat::Own(format))?)
        }
        Content::Trust => None,
    };
    let child = OpenImage::open(path, format, Access::ReadWrite, Locking::Now)?;
    if !child.image.has_parent() {
        return Err(no_parent(path));
    }
    let (sector, theirs) = (child.image.logical_sector_size(), new.sector_size());
    if theirs > sector {
        let problem = format!("it has sectors of {sector} bytes, the new parent of {theirs}; take one with the same");
        return Err(ToolError::options(path, problem));
    }
    if let Some(old) = &old {
        copy_differences(&child, old, &new, job)?;
    }
    let Some(identity) = new.identity() else { return Err(ToolError::options(parent, "it is no image")) };
    let names = name_parent(path, parent, identity)?;
    child.image.set_parent(&names).map_err(ToolError::boxed(path, "naming its new parent"))?;
    child.close()
}

fn no_parent(path: &Path) -> ToolError {
    ToolError::options(path, "it has no parent, so it can get no other one")
}

fn real(path: &Path) -> Result<PathBuf, ToolError> {
    path.canonicalize().map_err(ToolError::io(path, "looking for it"))
}

/// What the child would read otherwise under the new parent goes into it. It reads the same at every moment.
fn copy_differences(child: &OpenImage, old: &Source, new: &Source, job: &Job) -> Result<(), ToolError> {
    let source = Source::of_levels(vec![child.level()], true);
    let target = child.target();
    let is_parents = |segment: &Segment| segment.place == Where::Below;
    in_parallel(&source, is_parents, job, |window, buffer| {
        for segment in window.segments.iter().filter(|it| is_parents(it)) {
            let before = &mut buffer[..segment.length as usize];
            old.read_range(segment.offset, before)?;
            let mut after = vec![0; before.len()];
            new.read_range(segment.offset, &mut after)?;
            let mut at = segment.offset;
            for (before, after) in before.chunks(GRAIN).zip(after.chunks(GRAIN)) {
                if before != after {
                    target.write(at, before)?;
                }
                at += before.len() as u64;
            }
        }
        Ok(())
    })
}
