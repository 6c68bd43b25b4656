//! Tells where each part of a disk is.

use std::path::{Path, PathBuf};

use super::source::{Segment, Source};
use super::{AnyFormat, ToolError};

/// Mapped at once.
const SPAN: u64 = 1 << 30;

/// Where the parts of a disk are, and the files that they are in, the disk's own first. Segments are given to `each` in order.
///
/// # Errors
/// See [`ToolError`], and whatever `each` answers.
pub fn map<E: From<ToolError>>(
    path: &Path,
    format: AnyFormat,
    mut each: impl FnMut(&Segment, &[PathBuf]) -> Result<(), E>,
) -> Result<(), E> {
    let source = Source::open(path, format)?;
    let files: Vec<PathBuf> = match source.levels.is_empty() {
        true => vec![source.path.clone()],
        false => source.levels.iter().map(|it| it.path.clone()).collect(),
    };
    let mut at = 0;
    while at < source.size {
        let length = SPAN.min(source.size - at);
        let mut found = Vec::new();
        source.find(at, length, &mut found)?;
        found.iter().try_for_each(|segment| each(segment, &files))?;
        at += length;
    }
    Ok(())
}
