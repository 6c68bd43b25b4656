//! Reading `/proc`, `/sys` and `/dev` below a root that tests can move.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The directory that stands for `/`. A file that cannot be read is the same as none: both say that the machine does not
/// tell.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A text file without the white space around it.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.at(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file that holds one number.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A module parameter: `Y`, `1` or `N`, `0`.
    pub(crate) fn switch(&self, path: &str) -> Option<bool> {
        self.text(path).map(|text| matches!(text.as_str(), "Y" | "y" | "1"))
    }

    /// True when there is something at `path`.
    pub(crate) fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// True when this process may read and write `path`.
    pub(crate) fn writable(&self, path: &str) -> bool {
        let Ok(path) = CString::new(self.at(path).as_os_str().as_bytes()) else {
            return false;
        };
        // SAFETY: the path is nul-terminated and outlives the call.
        unsafe { libc::access(path.as_ptr(), libc::R_OK | libc::W_OK) == 0 }
    }

    /// Names in a directory, sorted; empty when there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.at(path)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
