//! Where etcd's programs are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ServerError;

/// Places where programs are, on the `PATH` or not.
const USUAL: [&str; 2] = ["/usr/bin", "/usr/local/bin"];

/// A version of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The oldest that can be used: the first with learners.
const OLDEST: Version = Version(3, 4, 0);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The programs that belong to etcd.
#[derive(Clone, Debug)]
pub struct Programs {
    pub(super) etcd: PathBuf,
    /// Restores backups: `etcdutl`, or `etcdctl` of versions that have no such program.
    pub(super) restore: PathBuf,
    pub(super) version: Version,
}

impl Programs {
    /// Looks for them in these directories, on the `PATH` and in the usual places.
    ///
    /// # Errors
    /// When one of them is not there, or too old.
    pub fn find(directories: &[PathBuf]) -> Result<Programs, ServerError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let places: Vec<PathBuf> =
            directories.iter().cloned().chain(env::split_paths(&path)).chain(USUAL.map(PathBuf::from)).collect();
        let missing = |program| ServerError::Missing {
            program,
            places: places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(":"),
        };
        let etcd = first(&places, "etcd").ok_or_else(|| missing("etcd"))?;
        let restore = first(&places, "etcdutl").or_else(|| first(&places, "etcdctl")).ok_or_else(|| missing("etcdctl"))?;
        let version = version(&etcd)?;
        if version < OLDEST {
            return Err(ServerError::TooOld { program: etcd, found: version, oldest: OLDEST });
        }
        Ok(Programs { etcd, restore, version })
    }

    /// The version of etcd.
    pub fn version(&self) -> Version {
        self.version
    }
}

fn first(places: &[PathBuf], name: &str) -> Option<PathBuf> {
    places.iter().map(|place| place.join(name)).find(|path| path.is_file())
}

fn version(etcd: &Path) -> Result<Version, ServerError> {
    let output = Command::new(etcd).arg("--version").env_clear().output();
    let output = output.map_err(|source| ServerError::Run { program: etcd.into(), source })?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said)
        .ok_or_else(|| ServerError::NotEtcd { program: etcd.into(), said: said.lines().next().unwrap_or_default().into() })
}

/// Reads `etcd Version: 3.4.23`, and what comes before a `-` or `+`.
fn parse(said: &str) -> Option<Version> {
    let version = said.lines().find_map(|line| line.strip_prefix("etcd Version: "))?;
    let mut numbers = version.split(['-', '+']).next()?.trim().split('.').map(|number| number.parse().ok());
    Some(Version(numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_etcd_says_them() {
        assert_eq!(parse("etcd Version: 3.4.23\nGit SHA: x\n"), Some(Version(3, 4, 23)));
        assert_eq!(parse("etcd Version: 3.6.0-rc.1\n"), Some(Version(3, 6, 0)));
        assert_eq!(parse("etcd Version: 3\n"), None);
        assert_eq!(parse("bash"), None);
        assert!(Version(3, 10, 0) > Version(3, 9, 9));
    }

    #[test]
    fn what_is_no_etcd_is_named() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etcd", "etcdctl"] {
            let path = directory.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho something else\n").unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let error = Programs::find(&[directory.path().into()]).unwrap_err().to_string();
        assert!(error.contains("is not etcd: asked for its version, it says 'something else'"), "{error}");
    }
}
