//! Backups of the cluster's store: `backups/TIME.etcd`, on each host that has a member of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use store::etcd::EtcdStore;
use time::OffsetDateTime;

/// How often a backup is made.
const EVERY: Duration = Duration::from_secs(3600);
/// After one that failed.
const AGAIN: Duration = Duration::from_secs(60);
/// How many are kept.
const KEPT: usize = 24;
const SUFFIX: &str = "etcd";

/// When the next backup is due.
#[derive(Debug, Default)]
pub struct Schedule {
    next: Option<Instant>,
}

impl Schedule {
    /// Makes one if it is time. `save` gives nothing where there is nothing to save.
    pub fn look(&mut self, state: &Path, save: impl FnOnce() -> Option<Result<PathBuf, String>>) {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let Some(saved) = save() else { return };
        self.next = Some(Instant::now() + if saved.is_ok() { EVERY } else { AGAIN });
        match saved {
            Ok(path) => {
                tracing::debug!("the store was backed up to {}", path.display());
                forget(state);
            }
            Err(error) => tracing::error!("the cluster's store cannot be backed up: {error}"),
        }
    }
}

/// A name for a backup that is made now. Their order is that of the backups.
pub fn path(state: &Path) -> PathBuf {
    let now = OffsetDateTime::now_utc();
    let name = format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}.{SUFFIX}",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    );
    state.join("backups").join(name)
}

/// Saves what the member at this address has.
pub fn save(etcd: &EtcdStore, url: &str, path: &Path) -> Result<(), String> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    etcd.snapshot(url, path).map_err(|error| vmm::error_chain(&error))
}

/// All backups, the newest last.
pub fn list(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("backups")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == SUFFIX)).collect();
    paths.sort();
    paths
}

fn forget(state: &Path) {
    let all = list(state);
    for old in &all[..all.len().saturating_sub(KEPT)] {
        if let Err(error) = fs::remove_file(old) {
            tracing::warn!("the old backup {} cannot be removed: {error}", old.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_backups_are_kept_and_nothing_else_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let backups = directory.path().join("backups");
        fs::create_dir_all(&backups).unwrap();
        for hour in 0..30 {
            fs::write(backups.join(format!("20261128T{hour:02}0000.etcd")), "").unwrap();
        }
        fs::write(backups.join("mine.txt"), "").unwrap();
        forget(directory.path());
        let left = list(directory.path());
        assert_eq!((left.len(), left[0].file_name().unwrap().to_str().unwrap()), (24, "20261128T060000.etcd"));
        assert!(backups.join("mine.txt").exists());
    }
}
