//! Writes what a child holds into its parent.
//!
//! ```text
//!   child: second linkage = the identity that the parent is going to have     the child fits before and after the parent's first change
//!   (VHD: the parent's identity stays)
//!   parent: grown, if the child is larger
//!   parent: the child's data and zeros, in no certain order                   the child hides them: what it reads stays the same
//!   parent: durable and closed
//!   child: removed, or linked to the parent's new identity
//! ```
//! Killed at any point and run again, it finishes: everything is written once more, into a parent that accepts the child still.
//!
//! # While VMs read both
//! A VM whose disk is Y on X on P reads P only through X, and X hides all that a merge of X into P changes: where X has nothing, P is not
//! written, and reads the same whether the VM sees its tables as they were or as they are, or some of both (`vhdx::vhdx::readers`, and
//! what it cannot have there is refused). X itself is not changed but for its words about its parent, which are only looked at when it is
//! opened. So [`merge_in_use`] goes on beside such VMs. Three things keep others away, all by [locks](crate::lock):
//! * who reads P through another child, for whom P would change, has the byte of X;
//! * who writes P or X, or reads one of them as a disk of its own, has all bytes;
//! * who opens the chain has the byte of merges until all tables that are read at once are read: a log in use is looked at whole.
//!
//! Afterwards Y is linked past X by its VM (`layers::NewParents`), or while nobody uses it by `rebase`. X stays a child of P that equals it,
//! so Y on X on P is right until then, also for a VM that is started anew.

use std::fs;
use std::path::Path;

use vhdx::vhdx::BeyondEnd;

use super::open::{OpenImage, only_images};
use super::source::{Segment, Source, Where};
use super::windows::in_parallel;
use super::{Job, ToolError};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::format::{Format, Identity};

/// What becomes of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// Its file is removed: the parent has everything.
    Remove,
    /// It stays, as a child of the parent that it equals.
    Keep,
}

/// Merges the image at `path` into its parent, which must be the one at `into` if that is given. Both must not be in use. Other images that
/// hang on the parent do not fit any more afterwards.
///
/// # Errors
/// See [`ToolError`]; the child reads as before then, and the merge can be run again.
pub fn merge(path: &Path, format: Format, into: Option<&Path>, child: Child, job: &Job) -> Result<(), ToolError> {
    only_images(path, format, "merging")?;
    let parent_path = parent_of(path, format, into)?;
    let upper = OpenImage::open(path, format, Access::ReadWrite, Locking::Now)?;
    let lower = OpenImage::open(&parent_path, format, Access::ReadWrite, Locking::Now)?;
    merge_into(&upper, &lower, child, job)?;
    match child {
        Child::Keep => Ok(()),
        Child::Remove => fs::remove_file(path).map_err(ToolError::io(path, "removing it")),
    }
}

/// Merges the VHDX image at `path` into its parent, while VMs read both as parents of their disks, the parent only through the image. It
/// stays, as a child of the parent that it equals; nobody can open the chain until the merge ends.
///
/// # Errors
/// See [`ToolError`]; everybody reads as before then, and the merge can be run again.
pub fn merge_in_use(path: &Path, job: &Job) -> Result<(), ToolError> {
    let format = Format::Vhdx;
    let options = OpenOptions { format, access: Access::ReadOnly, locking: Locking::Later, ..OpenOptions::default() };
    let parent_path = Disk::open(path, options)?.chain().nth(1).map(Path::to_owned).ok_or_else(|| no_parent(path))?;
    let upper = OpenImage::open_for_merge(path, format, None)?;
    let lower = OpenImage::open_for_merge(&parent_path, format, Some(upper.image.identity()))?;
    let obstacle = lower.image.obstacle_to_readers(upper.image.size()).map_err(ToolError::map(&parent_path))?;
    if let Some(obstacle) = obstacle {
        let problem =
            format!("{obstacle}, so it cannot be written while it is in use; merge {} while nobody uses it", path.display());
        return Err(ToolError::options(&parent_path, problem));
    }
    merge_into(&upper, &lower, Child::Keep, job)
}

fn no_parent(path: &Path) -> ToolError {
    ToolError::options(path, "it has no parent to be merged into")
}

/// Merges one image into another. A child that is to be removed is closed when this returns, and still hangs on the parent as it was.
pub(super) fn merge_into(upper: &OpenImage, lower: &OpenImage, child: Child, job: &Job) -> Result<(), ToolError> {
    let path = &upper.path;
    let now = lower.image.identity();
    if !upper.image.accepts(now) {
        return Err(ToolError::options(path, "its parent was changed meanwhile"));
    }
    let (size, lower_size) = (upper.image.size(), lower.image.size());
    // What a parent that is itself a child has behind its end is not the zeros that the child reads there; and VHD's keep their size.
    if lower.image.has_parent() && (size > lower_size || size < lower_size && matches!(now, Identity::Vhd(_))) {
        let problem = "it has another size than its parent, which has a parent itself; make the parent a whole disk first \
                       (maru disk convert)";
        return Err(ToolError::options(path, problem));
    }
    // The child accepts the parent as it is, and as it is going to be (MS-VHDX 2.2.4.2.6, `parent_linkage2`).
    let next = lower.image.next_identity().map_err(ToolError::io(path, "getting random numbers"))?;
    upper.image.relink(now, Some(next)).map_err(ToolError::boxed(path, "preparing it for the merge"))?;
    if size > lower_size {
        resize(lower, size)?;
    }
    copy(upper, lower, job)?;
    if size < lower_size {
        resize(lower, size)?;
    }
    lower.close()?;
    if child == Child::Keep {
        upper.image.relink(lower.image.identity(), None).map_err(ToolError::boxed(path, "linking it to its parent"))?;
    }
    upper.close()
}

/// Where the parent is: found as a VM would find it.
fn parent_of(path: &Path, format: Format, into: Option<&Path>) -> Result<std::path::PathBuf, ToolError> {
    let options = OpenOptions { format, access: Access::ReadOnly, ..OpenOptions::default() };
    let disk = Disk::open(path, options)?;
    let parent = disk.chain().nth(1).ok_or_else(|| no_parent(path))?;
    if let Some(into) = into {
        let same = |one: &Path| one.canonicalize().map_err(ToolError::io(one, "looking for it"));
        if same(into)? != same(parent)? {
            let problem = format!("its parent is {}, not {}; merge one image after the other", parent.display(), into.display());
            return Err(ToolError::options(path, problem));
        }
    }
    Ok(parent.to_owned())
}

fn resize(lower: &OpenImage, size: u64) -> Result<(), ToolError> {
    lower.image.resize(size, BeyondEnd::Discard).map_err(ToolError::boxed(&lower.path, "giving it the child's size"))
}

fn copy(upper: &OpenImage, lower: &OpenImage, job: &Job) -> Result<(), ToolError> {
    let source = Source::of_levels(vec![upper.level()], true);
    let target = lower.target();
    let is_childs = |segment: &Segment| segment.place != Where::Below;
    in_parallel(&source, is_childs, job, |window, buffer| {
        for segment in window.segments.iter().filter(|it| is_childs(it)) {
            if segment.is_data() {
                let buffer = &mut buffer[..segment.length as usize];
                source.read(segment, buffer)?;
                target.write(segment.offset, buffer)?;
            } else {
                target.zero(segment.offset, segment.length)?;
            }
        }
        Ok(())
    })
}
