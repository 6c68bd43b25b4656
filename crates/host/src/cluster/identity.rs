//! Who this host is in its cluster: `cluster.json`.
//!
//! It is written last when a host becomes a member, and removed first when it leaves. With it, `marud` uses the cluster's store; without, its
//! own file.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::record::{self, Record, RecordError};
use uuid::Uuid;

use crate::auth::write_private;

/// The file, in the directory of the state.
pub const FILE: &str = "cluster.json";

/// A member of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAddress {
    /// The host that it is on.
    pub host: String,
    /// Where clients reach it.
    pub client_url: String,
}

/// `cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: Uuid,
    /// The host's name in it.
    pub host: String,
    /// Its addresses, one for each network; the first is that of the store and the API.
    pub addresses: Vec<IpAddr>,
    /// The port of its API.
    pub api_port: u16,
    /// Where its member of the store is for clients, if it has one.
    pub client_url: String,
    /// Where it is for other members.
    pub peer_url: String,
    /// The members of the store, as they were known last.
    pub members: Vec<MemberAddress>,
    /// It runs no VMs, and is there for the store's majority.
    #[serde(default)]
    pub witness: bool,
}

impl Record for Identity {
    const PREFIX: &'static str = "";
    const KIND: &'static str = "identity";
    const VERSION: u32 = 1;
}

/// Why it is not known who this host is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file.
    #[error("{} cannot be used", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in it.
    #[error("{} says who this host is in its cluster, and cannot be understood: without it, the host would be one of its own again", .path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: RecordError,
    },
}

impl Identity {
    /// Who this host is in a cluster; nothing if it is in none.
    pub fn read(state: &Path) -> Result<Option<Identity>, IdentityError> {
        read_file(&state.join(FILE))
    }

    /// Writes it; a crash leaves what was there, or this.
    pub fn write(&self, state: &Path) -> Result<(), IdentityError> {
        write_file(&state.join(FILE), self)
    }

    /// This host is in no cluster from now on.
    pub fn remove(state: &Path) -> Result<(), IdentityError> {
        remove_file(&state.join(FILE))
    }

    /// The client URLs of the store's members, this host's own first.
    pub fn endpoints(&self) -> Vec<String> {
        let mut members: Vec<&MemberAddress> = self.members.iter().collect();
        members.sort_by_key(|member| member.host != self.host);
        members.into_iter().map(|member| member.client_url.clone()).collect()
    }
}

/// Reads a record that is a file of its own.
pub(super) fn read_file<T: Record>(path: &Path) -> Result<Option<T>, IdentityError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(IdentityError::File { path: path.into(), source }),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let read = record::from_bytes(&name, &bytes);
    read.map(Some).map_err(|source| IdentityError::Malformed { path: path.into(), source })
}

/// Writes one, durably.
pub(super) fn write_file<T: Record>(path: &Path, record: &T) -> Result<(), IdentityError> {
    let file = |source| IdentityError::File { path: path.into(), source };
    // It is JSON, and JSON is UTF-8.
    let text = String::from_utf8_lossy(&record::to_bytes(record)).into_owned();
    write_private(path, &text).map_err(file)?;
    sync_directory_of(path).map_err(file)
}

/// Removes one, durably.
pub(super) fn remove_file(path: &Path) -> Result<(), IdentityError> {
    let file = |source| IdentityError::File { path: path.into(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file(error)),
        Ok(()) => sync_directory_of(path).map_err(file),
    }
}

/// Makes what was renamed or removed in a file's directory durable.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::uuid;

    use super::*;

    fn identity() -> Identity {
        let member = |host: &str, address: &str| MemberAddress { host: host.into(), client_url: format!("https://{address}:2379") };
        Identity {
            cluster: uuid!("7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11"),
            host: "h2".into(),
            addresses: vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
            api_port: 8420,
            client_url: "https://192.0.2.2:2379".into(),
            peer_url: "https://192.0.2.2:2380".into(),
            members: vec![member("h1", "192.0.2.1"), member("h2", "192.0.2.2")],
            witness: false,
        }
    }

    const GOLDEN: &str = r#"{"kind":"identity","version":1,"data":{"cluster":"7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11","host":"h2","addresses":["192.0.2.2","2001:db8::2"],"api_port":8420,"client_url":"https://192.0.2.2:2379","peer_url":"https://192.0.2.2:2380","members":[{"host":"h1","client_url":"https://192.0.2.1:2379"},{"host":"h2","client_url":"https://192.0.2.2:2379"}],"witness":false}}"#;

    #[test]
    fn version_1_is_read_and_written_as_ever_for_this_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(directory.path()).unwrap(), None);
        identity().write(directory.path()).unwrap();
        let file = directory.path().join(FILE);
        assert_eq!(fs::read_to_string(&file).unwrap(), GOLDEN);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::read(directory.path()).unwrap(), Some(identity()));
        assert_eq!(identity().endpoints(), ["https://192.0.2.2:2379", "https://192.0.2.1:2379"], "its own first");
        Identity::remove(directory.path()).unwrap();
        assert_eq!(Identity::read(directory.path()).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_understood_does_not_pass_for_a_host_without_a_cluster() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "{}", &GOLDEN.replace("\"version\":1", "\"version\":2"), &GOLDEN[..GOLDEN.len() / 2]] {
            fs::write(directory.path().join(FILE), text).unwrap();
            let refusal = vmm::error_chain(&Identity::read(directory.path()).unwrap_err());
            assert!(refusal.contains("cluster.json"), "{refusal}");
        }
    }
}
