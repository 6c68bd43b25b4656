//! Writes what a child holds into its parent.
//!
//! ```text
//!   child: second linkage = the identity that the parent is going to have     the child fits before and after the parent's first change
//!   parent: grown, if the child is larger
//!   parent: the child's data and zeros, in no certain order                   the child hides them: what it reads stays the same
//!   parent: durable and closed
//!   child: removed, or linked to the parent's new identity
//! ```
//! Killed at any point and run again, it finishes: everything is written once more, into a parent that accepts the child still.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use vhdx::Mapping;
use vhdx::vhdx::{BeyondEnd, Parent};

use super::open::{OpenImage, only_vhdx};
use super::source::{Level, Segment, Source, Where};
use super::target::Target;
use super::windows::in_parallel;
use super::{Job, ToolError};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::format::Format;

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
    only_vhdx(path, format, "merging")?;
    let parent_path = parent_of(path, into)?;
    let upper = OpenImage::open(path, Access::ReadWrite, Locking::Now)?;
    let lower = OpenImage::open(&parent_path, Access::ReadWrite, Locking::Now)?;
    let Some(mut names) = upper.image.info().parent.filter(|it| it.accepts(lower.image.info().data_write_guid)) else {
        return Err(ToolError::options(path, "its parent was changed meanwhile"));
    };
    let (size, lower_size) = (upper.image.size(), lower.image.size());
    if size > lower_size && lower.image.has_parent() {
        let problem =
            "it is larger than its parent, which has a parent itself; make the parent a whole disk first (maru disk convert)";
        return Err(ToolError::options(path, problem));
    }
    link(&upper, &lower, &mut names)?;
    if size > lower_size {
        resize(&lower, size)?;
    }
    copy(&upper, &lower, job)?;
    if size < lower_size {
        resize(&lower, size)?;
    }
    lower.close()?;
    match child {
        Child::Keep => {
            let names = Parent { linkage: lower.image.info().data_write_guid, linkage2: None, ..names };
            upper.image.set_parent(&names).map_err(ToolError::image(path, "linking it to its parent"))?;
            upper.close()
        }
        Child::Remove => {
            upper.close()?;
            fs::remove_file(path).map_err(ToolError::io(path, "removing it"))
        }
    }
}

/// Where the parent is: found as a VM would find it.
fn parent_of(path: &Path, into: Option<&Path>) -> Result<std::path::PathBuf, ToolError> {
    let options = OpenOptions { format: Format::Vhdx, access: Access::ReadOnly, ..OpenOptions::default() };
    let disk = Disk::open(path, options)?;
    let Some(parent) = disk.chain().nth(1) else {
        return Err(ToolError::options(path, "it has no parent to be merged into"));
    };
    if let Some(into) = into {
        let same = |one: &Path| one.canonicalize().map_err(ToolError::io(one, "looking for it"));
        if same(into)? != same(parent)? {
            let problem = format!("its parent is {}, not {}; merge one image after the other", parent.display(), into.display());
            return Err(ToolError::options(path, problem));
        }
    }
    Ok(parent.to_owned())
}

/// Has the child accept the parent as it is, and as it is going to be (MS-VHDX 2.2.4.2.6, `parent_linkage2`).
fn link(upper: &OpenImage, lower: &OpenImage, names: &mut Parent) -> Result<(), ToolError> {
    let path = &upper.layer.path;
    let next = lower.image.next_data_write_guid().map_err(ToolError::io(path, "getting random numbers"))?;
    names.linkage = lower.image.info().data_write_guid;
    names.linkage2 = Some(next);
    upper.image.set_parent(names).map_err(ToolError::image(path, "preparing it for the merge"))?;
    upper.image.flush().map_err(ToolError::image(path, "preparing it for the merge"))
}

fn resize(lower: &OpenImage, size: u64) -> Result<(), ToolError> {
    lower.image.resize(size, BeyondEnd::Discard).map_err(ToolError::image(&lower.layer.path, "giving it the child's size"))
}

fn copy(upper: &OpenImage, lower: &OpenImage, job: &Job) -> Result<(), ToolError> {
    let level = Level {
        path: upper.layer.path.clone(),
        file: upper.layer.file.clone(),
        tables: Some(Arc::clone(&upper.image) as Arc<dyn Mapping>),
        size: upper.image.size(),
    };
    let source = Source::of_levels(vec![level], true);
    let target = Target { path: lower.layer.path.clone(), file: lower.layer.file.clone(), image: Some(Arc::clone(&lower.image)) };
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
