//! A file that is being sent: in a directory of its own until an image was made from it.
//!
//! It is `VOLUME/.maru-ID/upload`, as other files in the making are. Whoever starts `marud` finds and removes those that no task needs.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use ring::digest::{Context, SHA256};
use uuid::Uuid;

use super::check_space;
use crate::auth::hex;
use crate::records::{Cause, FileRef};
use crate::vm::staging;
use crate::volumes::Volumes;

const NAME: &str = "upload";

/// A file that is being sent. Dropped, it is gone.
pub struct Upload {
    volumes: Volumes,
    volume: String,
    id: Uuid,
    file: File,
    digest: Context,
    bytes: u64,
    kept: bool,
}

fn failed(volume: &str, error: &io::Error) -> Cause {
    if error.kind() == io::ErrorKind::StorageFull {
        let message = format!("the volume '{volume}' is full");
        return Cause::new("no-space", message, "make room in it, or name another volume");
    }
    Cause::new("file", format!("the upload cannot be written: {error}"), "see what stands in the way on the host, and try again")
}

impl Upload {
    /// One of which nothing was sent yet.
    pub fn begin(volumes: &Volumes, volume: &str) -> Result<Upload, Cause> {
        let id = Uuid::new_v4();
        let directory = staging::make_directory(volumes, volume, id)?;
        let file = File::create_new(directory.join(NAME)).map_err(|error| failed(volume, &error))?;
        let (volumes, volume, digest) = (volumes.clone(), volume.into(), Context::new(&SHA256));
        Ok(Upload { volumes, volume, id, file, digest, bytes: 0, kept: false })
    }

    /// Takes what was sent.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        check_space(&self.volumes, &self.volume, bytes.len() as u64)?;
        self.file.write_all(bytes).map_err(|error| failed(&self.volume, &error))?;
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// That was all: it is durable. Gives its id, and SHA-256 of it in hexadecimal.
    pub fn finish(&self) -> Result<(Uuid, String), Cause> {
        if self.bytes == 0 {
            return Err(Cause::new("bad-image", "the body is empty", "send the file of a disk as the body"));
        }
        let durable = || {
            self.file.sync_all()?;
            let path = path(&self.volumes, &self.volume, self.id).map_err(|cause| io::Error::other(cause.message))?;
            path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
            path.ancestors().nth(2).map_or(Ok(()), |volume| File::open(volume)?.sync_all())
        };
        durable().map_err(|error| failed(&self.volume, &error))?;
        Ok((self.id, hex(self.digest.clone().finish().as_ref())))
    }

    /// A task needs it: that removes it.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (volumes, id) = (self.volumes.clone(), self.id);
        let remove = move || {
            if let Err(error) = staging::undo(&volumes, id) {
                tracing::warn!(%id, "half an upload stays until marud starts again: {error}");
            }
        };
        // Much is freed, perhaps: that must not hold up those who wait for the network.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Where an upload is on the host.
pub fn path(volumes: &Volumes, volume: &str, id: Uuid) -> Result<PathBuf, Cause> {
    volumes.find(&FileRef { volume: volume.into(), path: format!("{}/{NAME}", staging::directory_name(id)) })
}
