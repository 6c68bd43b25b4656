//! From a backup to a member.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::{Membership, Programs, ServerConfig, ServerError, flags};

/// Fills the directory of a member, which must not be there yet, from a backup. Each member that the configuration names is to be filled from
/// the same backup, with the same token; started then, they are a new cluster with the old content.
///
/// The revision goes back to that of the backup. So revisions given since are given once more: nobody may go on who has proved something
/// with one. The token must be a new one, by which clients that were there before see that it is another cluster.
///
/// # Errors
/// When the backup is damaged, or the directory is there. Nothing has changed then.
pub fn restore(programs: &Programs, backup: &Path, config: &ServerConfig) -> Result<(), ServerError> {
    let failed = |reason: String| ServerError::Restore { backup: backup.into(), reason };
    if config.directory.exists() {
        return Err(failed(format!("{} is there already: move it away", config.directory.display())));
    }
    let mut unfinished = config.directory.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    let directory = |error: io::Error| failed(format!("{}: {error}", unfinished.display()));
    let clear = || match fs::remove_dir_all(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(directory(error)),
        _ => Ok(()),
    };
    clear()?;
    let mut command = Command::new(&programs.restore);
    command.env_clear().env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(backup);
    command.arg("--data-dir").arg(unfinished).args(["--name", &config.name]);
    command.args(["--initial-advertise-peer-urls", &config.peer_url]);
    command.args(["--initial-cluster", &flags::initial_cluster(config)]);
    if let Membership::Create { token } = &config.membership {
        command.args(["--initial-cluster-token", token]);
    }
    let run = |source| ServerError::Run { program: programs.restore.clone(), source };
    let output = command.output().map_err(run)?;
    if !output.status.success() {
        clear()?;
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(said.lines().rfind(|line| !line.is_empty()).unwrap_or("no reason was given").to_owned()));
    }
    fs::rename(unfinished, &config.directory).map_err(directory)
}
