//! `maru cluster restore`: a cluster of one host, of what is left.
//!
//! `marud` is told by a file, since its store, which says who may do what, is what is lost.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use api::ClusterStatus;
use serde_json::json;

use crate::output::print;
use crate::remote::{LOCAL_STATE, Local};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file.
    #[error("{} cannot be used: this is to be done as root, on a host of the cluster", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// There is nothing to restore.
    #[error("the store of the cluster '{0}' answers, and takes changes: there is nothing to restore")]
    NotLost(String),
    /// The host is in no cluster.
    #[error("this host is in no cluster: do this on a host that was in the one that is lost")]
    NoCluster,
    /// It did not work.
    #[error("the cluster was not restored, and nothing has changed: {0}")]
    Failed(api::Error),
    /// Nobody does it.
    #[error("marud has not taken it up within {} s: is it running? It does so at its next start", PATIENCE.as_secs())]
    NotTaken,
}

/// Has marud do it, and waits for that.
pub fn run(from: &Path) -> Result<(), RestoreError> {
    let file = Path::new(LOCAL_STATE).join("restore.json");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| RestoreError::File(path, error)
    };
    let identity = Path::new(LOCAL_STATE).join("cluster.json");
    if !identity.try_exists().map_err(failed(&identity))? {
        return Err(RestoreError::NoCluster);
    }
    if let Some(cluster) = status().and_then(|status| status.cluster).filter(|cluster| cluster.store_failure.is_none()) {
        return Err(RestoreError::NotLost(cluster.name));
    }
    let backup = if from == Path::new("newest") {
        None
    } else {
        // What is not there is better said now.
        File::open(from).map_err(failed(from))?;
        Some(fs::canonicalize(from).map_err(failed(from))?)
    };
    let unfinished = file.with_extension("unfinished");
    let text = json!({"kind": "restore", "version": 1, "data": {"backup": backup}}).to_string();
    let written = (|| {
        let mut new = File::options().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&unfinished, &file)
    })();
    written.map_err(failed(&file))?;
    eprintln!("marud starts itself anew; VMs of this host go on");
    let start = Instant::now();
    while file.exists() {
        if start.elapsed() > PATIENCE {
            return Err(RestoreError::NotTaken);
        }
        sleep(LOOK_AGAIN);
    }
    while start.elapsed() < PATIENCE {
        match status() {
            Some(ClusterStatus { cluster: Some(cluster), .. }) if cluster.store_failure.is_none() => {
                let text = format!("the cluster '{}' goes on with the host {}\n", cluster.name, cluster.this_host);
                return print(&text).map_err(failed(Path::new("the output")));
            }
            Some(ClusterStatus { failure: Some(failure), .. }) => return Err(RestoreError::Failed(failure)),
            _ => sleep(LOOK_AGAIN),
        }
    }
    Err(RestoreError::NotTaken)
}

fn status() -> Option<ClusterStatus> {
    Local::find().and_then(|local| Ok(local.client()?.get("/cluster")?)).ok()
}
