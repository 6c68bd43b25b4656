//! `save`: the file appears whole, or not at all.
//!
//! The monitor writes to `FILE.part`. When it has, the content is brought to the storage, the file gets its name, and the directory
//! is brought to the storage. Whatever fails before that removes `FILE.part` and leaves an older `FILE` alone.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vmm::control::{Client, Request, SavedReport};

use super::ControlError;
use crate::size::ByteSize;
use crate::terminal::stop_on_thread;

/// Shorter saves show no progress.
const QUIET_TIME: Duration = Duration::from_millis(500);

/// Saves the VM to `target` and says so.
pub fn save(client: &mut Client, target: &Path, force: bool) -> Result<(), ControlError> {
    let part = PartFile::create(target, force)?;
    let path = part.path.clone();
    let failed = |source| ControlError::Terminal { what: "taking signals", source };
    stop_on_thread(move || drop(fs::remove_file(path))).map_err(failed)?;

    let mut progress = Progress::new();
    let report: SavedReport = client.call_with_progress(&Request::Save, &[part.file.as_raw_fd()], |done, total| {
        progress.update(done, total);
    })?;
    progress.finish();
    part.publish(force)?;
    let seconds = Duration::from_millis(report.took_ms).as_secs_f64();
    eprintln!(
        "saved {} to {} in {seconds:.1} s; the VM is paused: `resume` lets it go on, `stop` ends it",
        ByteSize(report.bytes),
        target.display()
    );
    Ok(())
}

/// The file while it is written. Dropped before it was published, it is removed.
struct PartFile {
    file: File,
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl PartFile {
    fn create(target: &Path, force: bool) -> Result<PartFile, ControlError> {
        let Some(name) = target.file_name() else { return Err(ControlError::NoFileName(target.into())) };
        if target.is_dir() {
            return Err(ControlError::NoFileName(target.into()));
        }
        if !force && target.symlink_metadata().is_ok() {
            return Err(ControlError::Exists(target.into()));
        }
        let mut part = name.to_owned();
        part.push(".part");
        let path = target.with_file_name(part);
        let fail = |what: &'static str| move |path: &Path, source| ControlError::File { what, path: path.into(), source };
        // A part that a save left behind when it was killed is used again; one that a save is writing is locked. Its content is the
        // guest's memory, for its owner's eyes only.
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(|error| fail("cannot create")(&path, error))?;
        // SAFETY: flock takes no pointer.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 || !is_at(&file, &path) {
            return Err(ControlError::Busy(target.into()));
        }
        let part = PartFile { file, path, target: target.into(), published: false };
        part.file.set_len(0).map_err(|error| fail("cannot empty")(&part.path, error))?;
        Ok(part)
    }

    fn publish(mut self, force: bool) -> Result<(), ControlError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ControlError::File { what, path, source }
        };
        self.file.sync_all().map_err(fail("cannot bring to the storage", &self.path))?;
        match rename(&self.path, &self.target, force) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ControlError::Exists(self.target.clone())),
            other => other.map_err(fail("cannot rename to", &self.target))?,
        }
        self.published = true;
        let directory = self.target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(fail("cannot bring to the storage the directory", directory))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.published {
            // The failure that brought us here is what the user is told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` is this file: whoever wrote it before may have renamed or removed it while we waited for nothing.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (ours, there) = (file.metadata().map(identity), fs::symlink_metadata(path).map(identity));
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

/// Renames; without `force` never over a file that came meanwhile.
fn rename(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    if force {
        return fs::rename(from, to);
    }
    let (old, new) = (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // SAFETY: both are C strings.
    let result = unsafe { libc::renameat2(libc::AT_FDCWD, old.as_ptr(), libc::AT_FDCWD, new.as_ptr(), libc::RENAME_NOREPLACE) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Some network file systems cannot do it.
            error if error.raw_os_error() == Some(libc::EINVAL) && to.symlink_metadata().is_err() => fs::rename(from, to),
            error => Err(error),
        },
    }
}

/// A bar on standard error, if that is a terminal and saving takes long enough to look at one.
struct Progress {
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Progress {
        Progress { start: Instant::now(), bar: None }
    }

    fn update(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.start.elapsed() < QUIET_TIME {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let form = "saving [{bar:40}] {binary_bytes} of {binary_total_bytes}, {eta} left";
            let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style.progress_chars("=> "))
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
#[path = "save_tests.rs"]
mod tests;
