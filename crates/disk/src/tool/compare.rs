//! Compares what two disks hold.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::source::{Segment, Source};
use super::windows::{WINDOW, in_parallel};
use super::{AnyFormat, Job, ToolError};
use crate::zeros::is_zero;

/// The offset of the first byte in which the disks differ; `None` if they hold the same. Where one is longer, the rest of it has to be
/// zeros.
///
/// # Errors
/// See [`ToolError`].
pub fn compare(one: (&Path, AnyFormat), other: (&Path, AnyFormat), job: &Job) -> Result<Option<u64>, ToolError> {
    let (one, other) = (Source::open(one.0, one.1)?, Source::open(other.0, other.1)?);
    let first = AtomicU64::new(u64::MAX);
    in_parallel(&one, Segment::is_data, job, |window, buffer| {
        if window.offset < first.load(Relaxed) {
            one.read_all(window.offset, &window.segments, buffer)?;
            let mut theirs = vec![0; buffer.len()];
            other.read_range(window.offset, &mut theirs)?;
            if let Some(at) = first_difference(buffer, &theirs) {
                first.fetch_min(window.offset + at, Relaxed);
            }
        }
        Ok(())
    })?;
    // What only the other has.
    in_parallel(&other, Segment::is_data, job, |window, buffer| {
        if window.offset < first.load(Relaxed) && !has_data(&one, window.offset)? {
            other.read_all(window.offset, &window.segments, buffer)?;
            if !is_zero(buffer) {
                let at = buffer.iter().position(|byte| *byte != 0).unwrap_or(0) as u64;
                first.fetch_min(window.offset + at, Relaxed);
            }
        }
        Ok(())
    })?;
    let first = first.into_inner();
    Ok((first != u64::MAX).then_some(first))
}

/// Whether a piece of this disk was compared already.
fn has_data(source: &Source, offset: u64) -> Result<bool, ToolError> {
    let mut found = Vec::new();
    if offset < source.size {
        source.find(offset, WINDOW.min(source.size - offset), &mut found)?;
    }
    Ok(found.iter().any(Segment::is_data))
}

fn first_difference(one: &[u8], other: &[u8]) -> Option<u64> {
    if one == other {
        return None;
    }
    one.iter().zip(other).position(|(one, other)| one != other).map(|at| at as u64)
}
