//! Files in the making: they get their names when all of them are whole, and what becomes of them is known after a kill.
//!
//! ```text
//!   VOLUME/.maru-ID/0 ──(all are whole)──▶ names is written ──▶ hard links at their places ──▶ the store has them ──▶ .maru-ID is removed
//!          │                                                         │
//!          └── undo: removed ◀── a place that has the same file is removed, too ◀─┘
//! ```
//!
//! `ID` is that of the VM that is made, or of the task that makes the files. Places are one directory below their volume, as `.maru-ID` is,
//! where files name each other by relative paths.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::records::{Cause, FileRef};
use crate::volumes::Volumes;

const PREFIX: &str = ".maru-";
/// The list of places, in the order of the files' numbers.
const NAMES: &str = "names";

/// Files that are being made. Dropped, they are gone.
pub struct Staging<'a> {
    volumes: &'a Volumes,
    id: Uuid,
    places: Vec<FileRef>,
    kept: bool,
}

fn failed(file: impl std::fmt::Display, error: &io::Error) -> Cause {
    Cause::new("file", format!("{file} cannot be made: {error}"), "see what stands in the way on the host, and try again")
}

impl<'a> Staging<'a> {
    /// Begins; removes what an earlier try left.
    pub fn begin(volumes: &'a Volumes, id: Uuid) -> Result<Staging<'a>, Cause> {
        undo(volumes, id).map_err(|error| failed("what an earlier try left", &error))?;
        Ok(Staging { volumes, id, places: Vec::new(), kept: false })
    }

    /// Goes on with files that have their places: what uses them by now must not lose them. Otherwise removes what an earlier try left, and
    /// gives nothing.
    pub fn resume(volumes: &'a Volumes, id: Uuid) -> Result<Option<Staging<'a>>, Cause> {
        let mut found = false;
        for volume in volumes.names() {
            let directory = volumes.root(&volume)?.join(directory_name(id));
            if !directory.exists() {
                continue;
            }
            found = true;
            let names = read_names(&directory);
            let is_there = |(number, path): (usize, &Option<String>)| {
                let Some(path) = path.clone() else { return true };
                volumes.place(&FileRef { volume: volume.clone(), path }).is_ok_and(|place| is_same(&directory, number, &place))
            };
            if names.is_empty() || !names.iter().enumerate().all(is_there) {
                undo(volumes, id).map_err(|error| failed("what an earlier try left", &error))?;
                return Ok(None);
            }
        }
        Ok(found.then(|| Staging { volumes, id, places: Vec::new(), kept: false }))
    }

    /// Where to make a file whose place is this. There must be nothing in its place.
    pub fn place(&mut self, file: &FileRef) -> Result<PathBuf, Cause> {
        let path = self.volumes.place(file)?;
        if fs::symlink_metadata(&path).is_ok() || self.places.contains(file) {
            return Err(Cause::new(
                "file-exists",
                format!("there is a file {file} already"),
                "choose another name, or remove that file",
            ));
        }
        let directory = self.volumes.root(&file.volume)?.join(directory_name(self.id));
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(file, &error)),
            _ => {}
        }
        self.places.push(file.clone());
        // With its own name's end, which says what it means.
        let end = path.extension().map(|end| format!(".{}", end.to_string_lossy())).unwrap_or_default();
        Ok(directory.join(format!("{}{end}", self.places.len() - 1)))
    }

    /// Gives all files their places. They are durable there.
    pub fn publish(&self) -> Result<(), Cause> {
        for volume in self.volumes.names() {
            let own: Vec<&FileRef> = self.places.iter().filter(|place| place.volume == volume).collect();
            if own.is_empty() {
                continue;
            }
            let directory = self.volumes.root(&volume)?.join(directory_name(self.id));
            write_names(&directory, &self.places, &volume).map_err(|error| failed(own[0], &error))?;
            for file in own {
                self.link(&directory, file).map_err(|error| failed(file, &error))?;
            }
        }
        Ok(())
    }

    fn link(&self, directory: &Path, file: &FileRef) -> io::Result<()> {
        let place = self.volumes.place(file).map_err(|cause| io::Error::other(cause.message))?;
        let parent = place.parent().ok_or_else(|| io::Error::other("it has no directory"))?;
        fs::create_dir_all(parent)?;
        let number = self.places.iter().position(|place| place == file).unwrap_or_default();
        fs::hard_link(staged(directory, number)?, &place)?;
        File::open(parent)?.sync_all()?;
        parent.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
    }

    /// They stay where they are; by their id, others find out whose they are, and remove or keep them.
    pub fn leave(mut self) {
        self.kept = true;
    }

    /// They are stored as someone's: they stay.
    pub fn keep(mut self) {
        self.kept = true;
        forget(self.volumes, self.id);
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = undo(self.volumes, self.id)
        {
            tracing::warn!(id = %self.id, "half-made files stay until marud starts again: {error}");
        }
    }
}

/// Makes the directory for files of an id, in a volume, beside those that get places: [`undo`] removes them, and so does the next start of `marud`
/// if no task needs them.
pub fn make_directory(volumes: &Volumes, volume: &str, id: Uuid) -> Result<PathBuf, Cause> {
    let directory = volumes.root(volume)?.join(directory_name(id));
    fs::create_dir(&directory).map_err(|error| failed(format_args!("{volume}:{}", directory_name(id)), &error))?;
    Ok(directory)
}

/// What the directory for files of an id is called.
pub fn directory_name(id: Uuid) -> String {
    format!("{PREFIX}{id}")
}

/// The file with this number.
fn staged(directory: &Path, number: usize) -> io::Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_stem().is_some_and(|stem| stem.to_str() == Some(&number.to_string())) {
            return Ok(path);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The places of this volume, and nothing for those of others.
fn write_names(directory: &Path, places: &[FileRef], volume: &str) -> io::Result<()> {
    let names: Vec<Option<&str>> = places.iter().map(|place| (place.volume == volume).then_some(place.path.as_str())).collect();
    let mut file = File::create(directory.join(NAMES))?;
    file.write_all(&serde_json::to_vec(&names)?)?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// The places that are written down; none of files that are not whole.
fn read_names(directory: &Path) -> Vec<Option<String>> {
    fs::read(directory.join(NAMES)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// Whether a place has the file with this number.
fn is_same(directory: &Path, number: usize, place: &Path) -> bool {
    let own = staged(directory, number).and_then(fs::metadata);
    let there = fs::symlink_metadata(place);
    matches!((own, there), (Ok(own), Ok(there)) if (own.dev(), own.ino()) == (there.dev(), there.ino()))
}

/// The places of files that were made under this id.
pub fn places(volumes: &Volumes, id: Uuid) -> Vec<FileRef> {
    let places = volumes.names().into_iter().filter_map(|volume| Some((volumes.root(&volume).ok()?, volume)));
    let names = places.map(|(root, volume)| (read_names(&root.join(directory_name(id))), volume));
    names
        .flat_map(|(names, volume)| names.into_iter().flatten().map(move |path| FileRef { volume: volume.clone(), path }))
        .collect()
}

/// Removes what was made under this id, also from its places; not what someone needs by now.
pub fn clear(volumes: &Volumes, id: Uuid, needed: &BTreeSet<FileRef>) {
    if places(volumes, id).iter().any(|place| needed.contains(place)) {
        forget(volumes, id);
    } else if let Err(error) = undo(volumes, id) {
        tracing::warn!(%id, "half-made files stay until marud starts again: {error}");
    }
}

/// Removes what was made under this id, also from its places.
pub fn undo(volumes: &Volumes, id: Uuid) -> io::Result<()> {
    for volume in volumes.names() {
        let Ok(root) = volumes.root(&volume) else { continue };
        let directory = root.join(directory_name(id));
        let names = read_names(&directory);
        for (number, path) in names.into_iter().enumerate().filter_map(|(number, path)| Some((number, path?))) {
            let Ok(place) = volumes.place(&FileRef { volume: volume.clone(), path }) else { continue };
            if is_same(&directory, number, &place) {
                fs::remove_file(&place)?;
            }
            // Its directory may have been made without it.
            volumes.remove_if_empty(&place);
        }
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Forgets that files were made under this id; they stay in their places.
pub fn forget(volumes: &Volumes, id: Uuid) {
    for volume in volumes.names() {
        let Ok(root) = volumes.root(&volume) else { continue };
        match fs::remove_dir_all(root.join(directory_name(id))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!(%id, "half-made files stay: {error}"),
            _ => {}
        }
    }
}

/// Ids that files are being made under, or were when `marud` was killed.
pub fn list(volumes: &Volumes) -> Vec<Uuid> {
    let directories = volumes.names().into_iter().filter_map(|volume| volumes.root(&volume).ok());
    let entries = directories.filter_map(|root| fs::read_dir(root).ok()).flatten().flatten();
    let mut ids: Vec<Uuid> =
        entries.filter_map(|entry| Uuid::parse_str(entry.file_name().to_str()?.strip_prefix(PREFIX)?).ok()).collect();
    ids.sort();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(directory: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            found.push(entry.file_name().into_string().unwrap());
            if entry.path().is_dir() {
                found.extend(tree(&entry.path()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn files_are_all_there_or_none_whatever_moment_it_ends_at() {
        let directory = tempfile::tempdir().unwrap();
        let mut volumes = Volumes::default();
        volumes.add(&format!("local={}", directory.path().display())).unwrap();
        fs::create_dir(directory.path().join("web")).unwrap();
        fs::write(directory.path().join("web/taken.raw"), "theirs").unwrap();
        let file = |path: &str| FileRef { volume: "local".into(), path: path.into() };
        let id = Uuid::new_v4();
        let make = |places: &[&str]| {
            let mut staging = Staging::begin(&volumes, id).unwrap();
            for place in places {
                fs::write(staging.place(&file(place)).unwrap(), "ours").unwrap();
            }
            staging
        };
        let before = ["taken.raw", "web"];
        drop(make(&["web/a.raw", "new/b.raw"]));
        assert_eq!(tree(directory.path()), before, "not whole");
        // Killed behind each step: what was there is found by its id.
        std::mem::forget(make(&["web/a.raw", "new/b.raw"]));
        assert_eq!(list(&volumes), [id]);
        undo(&volumes, id).unwrap();
        let staging = make(&["web/a.raw", "new/b.raw"]);
        staging.publish().unwrap();
        std::mem::forget(staging);
        std::mem::forget(Staging::resume(&volumes, id).unwrap().expect("they have their places"));
        assert!(directory.path().join("web/a.raw").exists());
        undo(&volumes, id).unwrap();
        std::mem::forget(make(&["web/a.raw"]));
        assert!(Staging::resume(&volumes, id).unwrap().is_none(), "they have not");
        assert_eq!(tree(directory.path()), before);
        // Someone else was faster at one place: the other file goes, theirs stays.
        let staging = make(&["new/b.raw", "web/a.raw"]);
        fs::write(directory.path().join("web/a.raw"), "theirs").unwrap();
        assert_eq!(staging.publish().unwrap_err().code, "file");
        drop(staging);
        assert_eq!(tree(directory.path()), ["a.raw", "taken.raw", "web"]);
        // What someone has by now stays, whoever asks.
        let staging = make(&["new/b.raw"]);
        staging.publish().unwrap();
        std::mem::forget(staging);
        assert_eq!(places(&volumes, id), [file("new/b.raw")]);
        clear(&volumes, id, &[file("new/b.raw")].into());
        assert_eq!(tree(directory.path()), ["a.raw", "b.raw", "new", "taken.raw", "web"]);
        fs::remove_file(directory.path().join("new/b.raw")).unwrap();
        let staging = make(&["new/b.raw"]);
        staging.publish().unwrap();
        std::mem::forget(staging);
        clear(&volumes, id, &BTreeSet::new());
        assert_eq!(tree(directory.path()), ["a.raw", "taken.raw", "web"]);
        let mut staging = make(&["new/b.raw"]);
        assert_eq!(staging.place(&file("web/taken.raw")).unwrap_err().code, "file-exists");
        staging.publish().unwrap();
        staging.keep();
        assert_eq!(tree(directory.path()), ["a.raw", "b.raw", "new", "taken.raw", "web"]);
        assert!(list(&volumes).is_empty());
    }
}
