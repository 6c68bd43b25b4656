//! What is done when the store does not answer, or does not know this host any more: `maru cluster restore`, `maru cluster leave --force`.
//!
//! `marud` is told by a file, since its store, which says who may do what, is what is lost.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use api::ClusterStatus;
use serde_json::{Value, json};

use crate::output::print;
use crate::remote::{LOCAL_STATE, Local};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum ByFileError {
    /// A file.
    #[error("{} cannot be used: this is to be done as root, on a host of the cluster", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// There is nothing to restore.
    #[error("the store of the cluster '{0}' answers, and takes changes: there is nothing to restore")]
    NotLost(String),
    /// The host is in no cluster.
    #[error("this host is in no cluster")]
    NoCluster,
    /// VMs would run without anybody who knows of them.
    #[error("{0} VM(s) run on this host: stop them first, or drain it")]
    Runs(u32),
    /// It did not work.
    #[error("it was not done, and nothing has changed: {0}")]
    Failed(api::Error),
    /// Nobody does it.
    #[error("marud has not done it within {} s: is it running? It does so at its next start", PATIENCE.as_secs())]
    NotTaken,
}

/// `maru cluster restore`.
pub fn restore(from: &Path) -> Result<(), ByFileError> {
    must_be_in_a_cluster()?;
    if let Some(cluster) = status().and_then(|status| status.cluster).filter(|cluster| cluster.store_failure.is_none()) {
        return Err(ByFileError::NotLost(cluster.name));
    }
    let backup = if from == Path::new("newest") {
        None
    } else {
        // What is not there is better said now.
        Some(File::open(from).and_then(|_| fs::canonicalize(from)).map_err(failed(from))?)
    };
    tell("restore.json", "restore", &json!({"backup": backup}))?;
    let cluster = wait(|status| match (status.cluster, status.failure) {
        (_, Some(failure)) => Some(Err(ByFileError::Failed(failure))),
        (cluster, None) => cluster.filter(|cluster| cluster.store_failure.is_none()).map(Ok),
    })??;
    say(&format!("the cluster '{}' goes on with the host {}\n", cluster.name, cluster.this_host))
}

/// `maru cluster leave --force`.
pub fn leave() -> Result<(), ByFileError> {
    must_be_in_a_cluster()?;
    let host: Option<api::HostInfo> = Local::find().and_then(|local| Ok(local.client()?.get("/host")?)).ok();
    if let Some(running) = host.map(|host| host.vms_running).filter(|running| *running > 0) {
        return Err(ByFileError::Runs(running));
    }
    tell("forming.json", "forming", &json!("leave"))?;
    wait(|status| status.cluster.is_none().then_some(()))?;
    say("this host is in no cluster any more\n")
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ByFileError + use<> {
    let path = path.to_owned();
    move |error| ByFileError::File(path, error)
}

fn must_be_in_a_cluster() -> Result<(), ByFileError> {
    let identity = Path::new(LOCAL_STATE).join("cluster.json");
    if identity.try_exists().map_err(failed(&identity))? { Ok(()) } else { Err(ByFileError::NoCluster) }
}

/// Tells marud, and waits until it has taken it up.
fn tell(file: &str, kind: &str, data: &Value) -> Result<(), ByFileError> {
    let file = Path::new(LOCAL_STATE).join(file);
    let unfinished = file.with_extension("unfinished");
    let text = json!({"kind": kind, "version": 1, "data": data}).to_string();
    let written = || {
        let mut new = File::options().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&unfinished, &file)
    };
    written().map_err(failed(&file))?;
    eprintln!("marud starts itself anew");
    let start = Instant::now();
    while file.exists() {
        if start.elapsed() > PATIENCE {
            return Err(ByFileError::NotTaken);
        }
        sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Waits until marud says what is wanted.
fn wait<T>(mut look: impl FnMut(ClusterStatus) -> Option<T>) -> Result<T, ByFileError> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = status().and_then(&mut look) {
            return Ok(found);
        }
        sleep(LOOK_AGAIN);
    }
    Err(ByFileError::NotTaken)
}

fn status() -> Option<ClusterStatus> {
    Local::find().and_then(|local| Ok(local.client()?.get("/cluster")?)).ok()
}

fn say(text: &str) -> Result<(), ByFileError> {
    print(text).map_err(failed(Path::new("standard output")))
}
