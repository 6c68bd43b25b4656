//! What an exported VM says about itself: `manifest.json` in its directory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use disk::tool::{Job, ToolError};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::auth::hex;
use crate::records::Cause;

/// Its name.
pub const NAME: &str = "manifest.json";
/// What `format` says.
pub const FORMAT: &str = "maru-vm";
/// What this version of Maru writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// The longest one that is read, in bytes.
const MAX: u64 = 1 << 20;

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// When it was exported.
    #[serde(with = "time::serde::rfc3339")]
    pub exported_at: OffsetDateTime,
    /// The VM; what names files in volumes names files of the directory here.
    pub spec: api::VmSpec,
    /// All files beside the manifest.
    pub files: Vec<ManifestFile>,
}

/// A file of an exported VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// Only as much as every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Manifest {
    /// Reads one.
    pub fn read(path: &Path) -> Result<Manifest, Cause> {
        let bad = |message: String| {
            let message = format!("{} cannot be used: {message}", path.display());
            Cause::new("bad-import", message, "export the VM again, or name the directory of another one")
        };
        let mut json = Vec::new();
        File::open(path).and_then(|file| file.take(MAX + 1).read_to_end(&mut json)).map_err(|error| bad(error.to_string()))?;
        if json.len() as u64 > MAX {
            return Err(bad(format!("it is longer than {MAX} bytes")));
        }
        let head: Head = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
        if head.format != FORMAT {
            return Err(bad(format!("its format is '{}'", head.format)));
        }
        if head.version != VERSION {
            return Err(bad(format!(
                "it has version {}; this marud reads version {VERSION}, a newer one more, perhaps",
                head.version
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
        for name in manifest.names() {
            if !manifest.files.iter().any(|file| file.name == name) {
                return Err(bad(format!("the VM's file '{name}' is not among its files")));
            }
        }
        let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        match manifest.files.iter().find(|file| !plain(&file.name)) {
            Some(file) => Err(bad(format!("'{}' is no name of a file in its directory", file.name))),
            None => Ok(manifest),
        }
    }

    /// The files that the VM names.
    fn names(&self) -> Vec<&str> {
        let boot = [Some(&self.spec.boot.kernel), self.spec.boot.initrd.as_ref()].into_iter().flatten();
        boot.chain(self.spec.disks.iter().map(|disk| &disk.file)).map(String::as_str).collect()
    }
}

/// SHA-256 of a file's content in hexadecimal.
pub fn sha256(path: &Path, job: &Job) -> Result<String, ToolError> {
    let failed = |source| ToolError::Io { path: path.into(), action: "reading it", source };
    let mut file = File::open(path).map_err(failed)?;
    job.begin(file.metadata().map_err(failed)?.len());
    let (mut digest, mut buffer, mut position) = (Context::new(&SHA256), vec![0; 1 << 20], 0);
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            return Ok(hex(digest.finish().as_ref()));
        }
        digest.update(&buffer[..length]);
        position += length as u64;
        job.reach(position)?;
    }
}
