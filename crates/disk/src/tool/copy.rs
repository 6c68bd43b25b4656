//! Copies a disk's file as it is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vhdx::Storage;

use super::newfile::{Existing, NewFile};
use super::{Job, ToolError};
use crate::disk::{Access, OpenOptions};
use crate::layer::{Kind, Layer};

/// Bytes handed to the kernel at once: little enough that a wish to stop is heard soon.
const PIECE: u64 = 64 << 20;

/// How the data came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Both files share it in the file system, until one is written.
    Shared,
    /// The file system or the storage copied it.
    Kernel,
    /// It was read and written.
    ReadAndWritten,
}

/// Copies the file at `from` to `to`; holes stay holes. Nobody may write to the disk meanwhile.
///
/// # Errors
/// See [`ToolError`]; nothing is left at `to` then, or what was there before.
pub fn copy(from: &Path, to: &Path, existing: Existing, job: &Job) -> Result<Method, ToolError> {
    let layer = Layer::open(from, OpenOptions { access: Access::ReadOnly, ..OpenOptions::default() })?;
    if layer.kind == Kind::BlockDevice {
        return Err(ToolError::options(from, "it is a block device; copy what is in it with maru disk convert"));
    }
    let new = NewFile::create(to, existing)?;
    let (source, target) = (&*layer.file, &**new.file());
    let size = source.metadata().map_err(ToolError::io(from, "reading its size"))?.len();
    job.begin(size);
    let method = if reflink(source, target) {
        Method::Shared
    } else {
        target.set_len(size).map_err(ToolError::io(to, "making it as long as the other"))?;
        copy_data(source, target, size, job).map_err(|error| error.unwrap_or_else(|error| ToolError::io(to, "copying")(error)))?
    };
    job.reach(size)?;
    new.publish()?;
    Ok(method)
}

/// Whether the file system could share the data.
fn reflink(source: &File, target: &File) -> bool {
    // SAFETY: FICLONE takes a descriptor.
    unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE as libc::Ioctl, source.as_raw_fd()) == 0 }
}

/// An error of copying: of the system, or already one of ours.
type CopyError = Result<ToolError, io::Error>;

fn copy_data(source: &File, target: &File, size: u64, job: &Job) -> Result<Method, CopyError> {
    let mut method = Method::Kernel;
    let mut at = 0;
    while let Some(start) = source.next_data(at).map_err(Err)?.filter(|it| *it < size) {
        let end = source.next_hole(start).map_err(Err)?.min(size);
        at = start;
        while at < end {
            job.reach(at).map_err(Ok)?;
            let length = (end - at).min(PIECE);
            let copied = match method {
                Method::Kernel => copy_range(source, target, at, length).map_err(Err)?,
                _ => None,
            };
            at += match copied {
                Some(0) => return Err(Err(io::ErrorKind::UnexpectedEof.into())),
                Some(count) => count,
                None => {
                    method = Method::ReadAndWritten;
                    let mut buffer = vec![0; length.min(2 << 20) as usize];
                    source.read_exact_at(&mut buffer, at).and_then(|()| target.write_all_at(&buffer, at)).map_err(Err)?;
                    buffer.len() as u64
                }
            };
        }
    }
    Ok(method)
}

/// How much was copied; `None` if the kernel cannot do it between these files.
fn copy_range(source: &File, target: &File, offset: u64, length: u64) -> io::Result<Option<u64>> {
    let (mut from, mut to) = (offset as libc::off64_t, offset as libc::off64_t);
    // SAFETY: both offsets live through the call.
    let count = unsafe { libc::copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, length as usize, 0) };
    if count >= 0 {
        return Ok(Some(count as u64));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EXDEV | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) => Ok(None),
        _ => Err(error),
    }
}
