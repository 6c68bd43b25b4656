//! Volumes: the directories of the host that files of VMs may be in.

pub mod account;
pub mod alarm;
mod kind;

pub use account::Account;
pub use kind::{Directory, Space, Volume};

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::records::{Cause, FileRef};

/// The volumes of the host. They are the wall between those who may use the API and the host's own files.
///
/// A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Volumes(Arc<RwLock<BTreeMap<String, Arc<dyn Volume>>>>);

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not `NAME=DIRECTORY`.
    #[error("'{0}' is no volume: write NAME=DIRECTORY, the name of letters, digits, '-' and '_'")]
    Form(String),
    /// Two of one name.
    #[error("there are two volumes called '{0}'")]
    Twice(String),
    /// The directory.
    #[error("the volume '{name}' cannot be at {}", .path.display())]
    Directory {
        /// Its name.
        name: String,
        /// Where it is to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Volumes {
    /// Adds one, given as `NAME=DIRECTORY`. The directory is made if it is not there.
    pub fn add(&mut self, text: &str) -> Result<(), VolumeError> {
        let fine = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        let parts = text.split_once('=').filter(|(name, path)| fine(name) && !path.is_empty());
        let (name, path) = parts.ok_or_else(|| VolumeError::Form(text.into()))?;
        if self.all().contains_key(name) {
            return Err(VolumeError::Twice(name.into()));
        }
        let path = Path::new(path);
        let directory = std::fs::create_dir_all(path).and_then(|()| Directory::open(path));
        let directory = directory.map_err(|source| VolumeError::Directory { name: name.into(), path: path.into(), source })?;
        self.insert(name, Arc::new(directory));
        Ok(())
    }

    fn all(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<dyn Volume>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a volume of a directory. It is not one of these yet. The directory must be there: where a file system should be mounted and is not, disks
    /// would fill another one.
    pub fn make(&self, path: &str) -> Result<Arc<dyn Volume>, Cause> {
        let way_out = "name a directory of the host that is there, from / on; mount its file system first";
        let directory = Path::new(path);
        if !directory.is_absolute() || path.contains('\0') {
            return Err(Cause::new("bad-volume", format!("'{path}' is no whole path"), way_out));
        }
        let opened = Directory::open(directory)
            .map_err(|error| Cause::new("bad-volume", format!("{path} cannot be used: {error}"), way_out))?;
        let overlaps = |root: &Path| root.starts_with(opened.root()) || opened.root().starts_with(root);
        if let Some((name, _)) = self.all().iter().find(|(_, volume)| overlaps(volume.root())) {
            let message = format!("{path} and the volume '{name}' have files in common");
            return Err(Cause::new("bad-volume", message, "name a directory that is in no volume and has none in it"));
        }
        Ok(Arc::new(opened))
    }

    /// Adds a volume, or takes another one for this name.
    pub fn insert(&self, name: &str, volume: Arc<dyn Volume>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.into(), volume);
    }

    /// Takes a volume away. Its files stay.
    pub fn give_up(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// How much space a volume has now; nothing if there is no such volume.
    pub fn space(&self, name: &str) -> Option<io::Result<Space>> {
        // Not under the lock: a file server may let us wait.
        let volume = self.all().get(name).cloned();
        volume.map(|volume| volume.space())
    }

    /// The volume that a file of the host is in.
    pub fn volume_of(&self, path: &Path) -> Option<String> {
        let real = path.canonicalize().ok()?;
        self.all().iter().find(|(_, volume)| real.starts_with(volume.root())).map(|(name, _)| name.clone())
    }

    /// Understands `VOLUME:PATH`.
    pub fn parse(&self, text: &str) -> Result<FileRef, Cause> {
        let refuse =
            |message: String| Cause::new("bad-file", message, "name a file in a volume: VOLUME:PATH, like local:web/root.vhdx");
        let Some((volume, path)) = text.split_once(':') else { return Err(refuse(format!("'{text}' names no volume"))) };
        let names = self.names();
        if !names.iter().any(|name| name == volume) {
            return Err(refuse(format!("there is no volume '{volume}'; there are: {}", names.join(", "))));
        }
        let plain = Path::new(path).components().all(|component| matches!(component, Component::Normal(_)));
        if path.is_empty() || !plain || path.contains('\0') {
            return Err(refuse(format!("'{path}' is no path inside of a volume")));
        }
        // One file has one name: whose it is, is decided by names.
        let path = Path::new(path).components().collect::<PathBuf>().display().to_string();
        Ok(FileRef { volume: volume.into(), path })
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.all().keys().cloned().collect()
    }

    /// Where a volume is on the host.
    pub fn root(&self, name: &str) -> Result<PathBuf, Cause> {
        let root = self.all().get(name).map(|volume| volume.root().to_owned());
        root.ok_or_else(|| {
            let known = self.names().join(", ");
            Cause::new("no-volume", format!("there is no volume '{name}'; there are: {known}"), "name one of these")
        })
    }

    /// Where a file is to be on the host that is not there yet; really inside of its volume.
    pub fn place(&self, file: &FileRef) -> Result<PathBuf, Cause> {
        let volume = self.root(&file.volume)?;
        let path = volume.join(&file.path);
        // The nearest directory that is there says where the rest will be.
        let real = path.ancestors().skip(1).find_map(|above| above.canonicalize().ok());
        if real.is_some_and(|real| real.starts_with(&volume) && real.is_dir()) {
            return Ok(path);
        }
        let message = format!("{file} would not be inside of the volume");
        Err(Cause::new("bad-file", message, "name a place whose directories are no links and no files"))
    }

    /// The file in a volume that is at this place on the host, if it is in one.
    pub fn reference(&self, path: &Path) -> Option<FileRef> {
        let real = path.canonicalize().ok()?;
        let all = self.all();
        let (volume, rest) = all.iter().find_map(|(name, volume)| Some((name, real.strip_prefix(volume.root()).ok()?)))?;
        Some(FileRef { volume: volume.clone(), path: rest.to_str()?.into() })
    }

    /// Removes the directory that a file was in, if it is empty and not a volume.
    pub fn remove_if_empty(&self, file: &Path) {
        if let Some(directory) = file.parent().filter(|directory| !self.all().values().any(|volume| volume.root() == *directory))
        {
            // It may have other files.
            let _ = std::fs::remove_dir(directory);
        }
    }

    /// Where a file is on the host. It is there, and really inside of its volume.
    pub fn find(&self, file: &FileRef) -> Result<PathBuf, Cause> {
        let volume = self.root(&file.volume).map_err(|_| missing(file))?;
        let path = volume.join(&file.path);
        let found = path.canonicalize().and_then(|real| Ok((real.metadata()?, real)));
        let (metadata, real) = found.map_err(|error| {
            Cause::new("no-file", format!("{file} ({}) cannot be found: {error}", path.display()), "put the file there")
        })?;
        if !real.starts_with(&volume) {
            let message = format!("{file} is a link to {}, outside of the volume", real.display());
            return Err(Cause::new("bad-file", message, "put the file itself there"));
        }
        if !metadata.is_file() {
            return Err(Cause::new("bad-file", format!("{file} is no file"), "name a file"));
        }
        Ok(real)
    }
}

impl Volumes {
    /// Where a file of `marud`'s own making is to be; its directory is made. The name is ours, so no link of a stranger is in its way.
    pub fn make_place(&self, file: &FileRef) -> Result<PathBuf, Cause> {
        let failed =
            |error: io::Error| Cause::new("volume", format!("{file} cannot be made: {error}"), "mend that, and try again");
        let volume = self.root(&file.volume).map_err(|_| missing(file))?;
        let path = volume.join(&file.path);
        let directory = path.parent().unwrap_or(&volume);
        std::fs::create_dir_all(directory).map_err(failed)?;
        if !directory.canonicalize().map_err(failed)?.starts_with(&volume) {
            let message = format!("the directory of {file} is a link out of the volume");
            return Err(Cause::new("bad-file", message, "put a directory there"));
        }
        Ok(path)
    }

    /// What a file of the host is called: in its volume, if it is in one.
    pub fn name(&self, path: &Path) -> String {
        let inside = self.names().into_iter().find_map(|name| {
            let rest = path.strip_prefix(self.root(&name).ok()?).ok()?.to_owned();
            Some((name, rest))
        });
        inside.map_or_else(|| path.display().to_string(), |(name, rest)| format!("{name}:{}", rest.display()))
    }

    /// Removes a file of `marud`'s own making, and its directory if that is empty then. That it is gone is no error.
    pub fn remove(&self, file: &FileRef) -> Result<(), Cause> {
        let path = self.root(&file.volume).map_err(|_| missing(file))?.join(&file.path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("{file} cannot be removed: {error}");
                Err(Cause::new("volume", message, "mend that, and try again"))
            }
            _ => {
                self.remove_if_empty(&path);
                Ok(())
            }
        }
    }
}

fn missing(file: &FileRef) -> Cause {
    let way_out = "start marud with this volume, or create the VM anew elsewhere";
    Cause::new("no-volume", format!("the volume of {file} is not there"), way_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_volumes_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("volume");
        let mut volumes = Volumes::default();
        volumes.add(&format!("local={}", inside.display())).unwrap();
        std::fs::create_dir(inside.join("web")).unwrap();
        std::fs::write(inside.join("web/root.raw"), "disk").unwrap();
        std::fs::write(directory.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inside.join("up")).unwrap();

        let find = |text: &str| volumes.parse(text).and_then(|file| volumes.find(&file));
        assert_eq!(find("local:web/root.raw").unwrap(), inside.canonicalize().unwrap().join("web/root.raw"));
        let code = |text: &str| find(text).unwrap_err().code;
        for text in ["local:../secret", "local:/etc/passwd", "local:", "local:web/../../secret", "other:a", "web", "local:link"] {
            assert_eq!(code(text), "bad-file", "{text}");
        }
        assert_eq!(
            (code("local:up/secret"), code("local:web"), code("local:no")),
            ("bad-file".into(), "bad-file".into(), "no-file".into())
        );
        for text in ["local:web//root.raw", "local:web/./root.raw", "local:web/root.raw/"] {
            assert_eq!(volumes.parse(text).unwrap().path, "web/root.raw", "{text}");
        }
        let place = |text: &str| volumes.parse(text).and_then(|file| volumes.place(&file));
        assert_eq!(place("local:new/a.raw").unwrap(), inside.canonicalize().unwrap().join("new/a.raw"));
        for text in ["local:up/a.raw", "local:web/root.raw/a", "local:up/new/a"] {
            assert_eq!(place(text).unwrap_err().code, "bad-file", "{text}");
        }
    }
}
