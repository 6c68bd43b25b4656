//! The audit log: who asked for what, and with which result. One JSON object a line.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;

/// When a new file is begun.
const MAX_BYTES: u64 = 16 << 20;
/// Old files that are kept: `audit.log.1` is the newest.
const KEPT: u32 = 9;

/// One request.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The name of the token; nothing if there was none, or an unknown one.
    pub token: Option<&'a str>,
    /// Where it came from.
    pub from: SocketAddr,
    /// What was asked for.
    pub method: &'a str,
    /// Of what.
    pub path: &'a str,
    /// The answer.
    pub status: u16,
}

/// The log's file.
pub struct Audit {
    path: PathBuf,
    file: Mutex<File>,
}

impl Audit {
    /// Goes on with the log at this place.
    pub fn open(path: &Path) -> io::Result<Audit> {
        Ok(Audit { path: path.into(), file: Mutex::new(append(path)?) })
    }

    /// Writes a line.
    pub fn write(&self, line: &Line<'_>) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.metadata()?.len() >= MAX_BYTES {
            for number in (1..KEPT).rev() {
                match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, self.numbered(1))?;
            *file = append(&self.path)?;
        }
        file.write_all(&bytes)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}
