//! Where a lab keeps its sockets, disks and logs, and clearing away what dead labs left.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::appliance::build_dir;

/// Directories of ended labs that are kept for their logs.
const KEPT: usize = 20;
/// Names the process that owns a lab.
const OWNER_FILE: &str = "owner";
const LOCK_FILE: &str = ".lock";
const SHARED: &str = "shared";

/// The directory of all labs' sockets: only its owner may enter, and its name is short, because a socket's path has at
/// most 107 bytes.
///
/// # Errors
/// When it cannot be made or belongs to somebody else.
pub fn runtime_base() -> io::Result<PathBuf> {
    // SAFETY: geteuid takes no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => PathBuf::from(dir).join("maru-lab"),
        _ => PathBuf::from(format!("/tmp/maru-lab-{user}")),
    };
    private_dir(&base)?;
    let metadata = fs::symlink_metadata(&base)?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        let why = format!("{} is not a private directory of this user: remove it", base.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(base)
}

/// The directory of all labs' disks and logs.
pub fn state_base() -> PathBuf {
    build_dir().join("lab")
}

/// A lab's two directories. Dropping it removes everything but the logs.
#[derive(Debug)]
pub struct LabDirs {
    /// Sockets.
    pub runtime: PathBuf,
    /// Disks and logs, one directory per host.
    pub state: PathBuf,
}

impl LabDirs {
    /// Makes the directories for the lab `name`.
    ///
    /// # Errors
    /// When they cannot be made, or a living process owns a lab of this name.
    pub fn create(name: &str) -> io::Result<Self> {
        let base = runtime_base()?;
        let (runtime, state) = (base.join(name), state_base().join(name));
        // A directory without its owner's name in it yet must not look like a dead lab's to another process.
        let lock = File::create(base.join(LOCK_FILE))?;
        // SAFETY: the descriptor belongs to `lock`, which lives until the end of this function; no pointers.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some(owner) = living_owner(&runtime) {
            let why = format!("the lab {name} is already running (process {owner})");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        clear_away_dead();
        for dir in [&runtime, &state] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            private_dir(dir)?;
            fs::write(dir.join(OWNER_FILE), std::process::id().to_string())?;
        }
        Ok(LabDirs { runtime, state })
    }
}

impl LabDirs {
    /// The directory that hosts share.
    pub fn shared(&self) -> PathBuf {
        self.state.join(SHARED)
    }
}

impl Drop for LabDirs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.runtime);
        keep_only_logs(&self.state);
    }
}

/// The process that owns the lab in `dir`, if it lives.
pub fn living_owner(dir: &Path) -> Option<u32> {
    let owner: u32 = fs::read_to_string(dir.join(OWNER_FILE)).ok()?.trim().parse().ok()?;
    Path::new(&format!("/proc/{owner}")).exists().then_some(owner)
}

fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn keep_only_logs(state: &Path) {
    let _ = fs::remove_dir_all(state.join(SHARED));
    for host in entries(state).into_iter().filter(|path| path.is_dir()) {
        for file in entries(&host) {
            if file.extension().is_none_or(|extension| extension != "log") {
                let _ = fs::remove_file(file);
            }
        }
    }
    for file in entries(state) {
        if file.extension().is_some_and(|extension| extension == "raw") {
            let _ = fs::remove_file(file);
        }
    }
}

/// A killed lab cannot remove its disks; the next one does. Failing to is no reason not to start.
fn clear_away_dead() {
    for dir in runtime_base().map(|base| entries(&base)).unwrap_or_default() {
        if living_owner(&dir).is_none() {
            let _ = fs::remove_dir_all(dir);
        }
    }
    let mut dead: Vec<_> = entries(&state_base()).into_iter().filter(|dir| living_owner(dir).is_none()).collect();
    dead.iter().for_each(|dir| keep_only_logs(dir));
    dead.sort_by_key(|dir| std::cmp::Reverse(fs::metadata(dir).and_then(|metadata| metadata.modified()).ok()));
    dead.into_iter().skip(KEPT).for_each(|dir| {
        let _ = fs::remove_dir_all(dir);
    });
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.ends_with(LOCK_FILE))
        .collect()
}
