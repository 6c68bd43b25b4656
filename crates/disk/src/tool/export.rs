//! Copies a disk into a new one for another platform.

use std::path::Path;

use super::newfile::{Existing, NewFile};
use super::source::{Segment, Source};
use super::windows::in_parallel;
use super::{AnyFormat, Job, ToolError};
use crate::export::Writer;
use crate::import;

/// Makes the disk at `path`, in a format of another platform and with the content and size of the one at `from`. It takes space for what is
/// not zeros.
///
/// # Errors
/// See [`ToolError`]; nothing is left at `path` then, or what was there before.
pub fn export(
    from: (&Path, AnyFormat),
    path: &Path,
    format: import::Format,
    existing: Existing,
    job: &Job,
) -> Result<(), ToolError> {
    let source = Source::open(from.0, from.1)?;
    let new = NewFile::create(path, existing)?;
    let writer = Writer::new(format, new.file().clone(), path, source.size.next_multiple_of(512));
    let writer = writer.map_err(|error| ToolError::options(path, error.to_string()))?;
    in_parallel(&source, Segment::is_data, job, |window, buffer| {
        source.read_all(window.offset, &window.segments, buffer)?;
        writer.write(window.offset, buffer).map_err(ToolError::io(path, "writing it"))
    })?;
    writer.finish().map_err(ToolError::io(path, "writing its tables"))?;
    new.publish()
}
