//! A file that has no name until it is whole and durable: whatever ends its creation leaves nothing.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ToolError;
use crate::disk::{Access, OpenOptions};
use crate::layer::Layer;

/// What to do about a file that has the new one's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it, and fail.
    Keep,
    /// Replace it, unless somebody uses it.
    Replace,
}

/// A file in the making. Dropped before [`NewFile::publish`], it is gone.
pub(super) struct NewFile {
    file: Arc<File>,
    target: PathBuf,
    /// Its name meanwhile, on file systems that have no files without one (NFS among them).
    named: Option<PathBuf>,
    /// The file to be replaced, locked until it is.
    old: Option<Layer>,
}

impl NewFile {
    pub fn create(target: &Path, existing: Existing) -> Result<NewFile, ToolError> {
        let old = match (fs::symlink_metadata(target), existing) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => None,
            (Err(error), _) => return Err(ToolError::io(target, "looking whether it exists")(error)),
            (Ok(_), Existing::Keep) => return Err(ToolError::Exists(target.to_owned())),
            (Ok(metadata), Existing::Replace) if metadata.is_file() => {
                Some(Layer::open(target, OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() })?)
            }
            (Ok(_), Existing::Replace) => {
                return Err(ToolError::options(target, "only a regular file can be replaced; remove what is there"));
            }
        };
        if target.file_name().is_none() {
            return Err(ToolError::options(target, "this names no file"));
        }
        let (file, named) = match nameless(directory(target)) {
            Ok(file) => (file, None),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                let path = neighbour(target);
                let options = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path);
                (options.map_err(ToolError::io(&path, "creating it"))?, Some(path))
            }
            Err(error) => return Err(ToolError::io(target, "creating it")(error)),
        };
        Ok(NewFile { file: Arc::new(file), target: target.to_owned(), named, old })
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Makes the file durable and gives it its name.
    pub fn publish(mut self) -> Result<(), ToolError> {
        let naming = || ToolError::io(&self.target, "giving it its name");
        self.file.sync_all().map_err(ToolError::io(&self.target, "making it durable"))?;
        let result = match (self.named.take(), &self.old) {
            (None, None) => link(&self.file, &self.target),
            (None, Some(_)) => {
                let between = neighbour(&self.target);
                link(&self.file, &between).and_then(|()| rename(&between, &self.target))
            }
            (Some(named), None) => fs::hard_link(&named, &self.target).and(fs::remove_file(&named)),
            (Some(named), Some(_)) => rename(&named, &self.target),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ToolError::Exists(self.target.clone())),
            other => other.map_err(naming())?,
        }
        File::open(directory(&self.target)).and_then(|it| it.sync_all()).map_err(naming())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = fs::remove_file(path);
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name in the same directory that nobody else uses.
fn neighbour(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}

fn nameless(directory: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o666).open(directory)
}

fn link(file: &File, target: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both are texts that end with zero, and live through the call.
    let result = unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to).inspect_err(|_| {
        let _ = fs::remove_file(from);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_that_is_not_published_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let new = NewFile::create(&directory.path().join("a.raw"), Existing::Keep).unwrap();
        new.file().as_ref().write_all(b"x").unwrap();
        drop(new);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.raw");
        let new = NewFile::create(&path, Existing::Keep).unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(matches!(new.publish(), Err(ToolError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replaced_file_is_the_old_one_until_it_is_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.raw");
        fs::write(&path, "old").unwrap();
        let new = NewFile::create(&path, Existing::Replace).unwrap();
        new.file().as_ref().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        new.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
