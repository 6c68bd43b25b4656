//! Fetches distribution packages and unpacks them without installing anything.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::build_dir;

/// Why a package could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A program that we call is missing or failed.
    #[error("`{command}` failed: {reason}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said.
        reason: String,
    },
    /// The package manager does not know the package.
    #[error("apt knows no package for {0}: run `apt-get update`, or put an unpacked kernel package into the build directory")]
    NoPackage(String),
    /// A package came without the file it was fetched for.
    #[error("package {package} has no {file}")]
    NoFile {
        /// The package.
        package: String,
        /// What was looked for.
        file: &'static str,
    },
    /// The build directory cannot be used.
    #[error("cannot use {path}")]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The compressed kernel image.
    pub vmlinuz: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
    /// The kernel's version as in `uname -r`.
    pub version: String,
}

/// The kernel of the appliance and of test guests: the distribution's kernel for virtual machines, fetched on first use.
///
/// # Errors
/// When it is not there yet and cannot be fetched.
pub fn kernel() -> Result<Kernel, FetchError> {
    let meta = if is_ubuntu() { "linux-image-virtual" } else { "linux-image-cloud-amd64" };
    let dir = fetched("kernel", |dir| {
        let image = dependency(meta, "linux-image-")?;
        let mut packages = vec![image.clone()];
        if is_ubuntu() {
            packages.push(image.replacen("linux-image-", "linux-modules-", 1));
            packages.push(image.replacen("linux-image-", "linux-modules-extra-", 1));
        }
        packages.iter().try_for_each(|package| download(package, dir))
    })?;
    let missing = |file| FetchError::NoFile { package: meta.to_owned(), file };
    let vmlinuz = first_entry(&dir.join("boot"), "vmlinuz-").ok_or_else(|| missing("boot/vmlinuz"))?;
    let modules = [dir.join("lib/modules"), dir.join("usr/lib/modules")];
    let modules = modules.iter().find_map(|parent| first_entry(parent, "")).ok_or_else(|| missing("lib/modules"))?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel { vmlinuz, modules, version })
}

/// A static busybox for test guests and for a shell in lab hosts, fetched on first use.
///
/// # Errors
/// When it is not there yet and cannot be fetched.
pub fn busybox() -> Result<PathBuf, FetchError> {
    let dir = fetched("busybox", |dir| download("busybox-static", dir))?;
    let places = [dir.join("bin/busybox"), dir.join("usr/bin/busybox")];
    let missing = FetchError::NoFile { package: "busybox-static".into(), file: "bin/busybox" };
    places.into_iter().find(|path| path.is_file()).ok_or(missing)
}

/// The guest agent of QEMU, fetched on first use, and the libraries of this machine that it needs.
///
/// # Errors
/// When it is not there yet and cannot be fetched, or a library is not there.
pub fn guest_agent() -> Result<(PathBuf, Vec<PathBuf>), FetchError> {
    let package = "qemu-guest-agent";
    let dir = fetched(package, |dir| download(package, dir))?;
    let places = [dir.join("usr/sbin/qemu-ga"), dir.join("usr/bin/qemu-ga")];
    let missing = FetchError::NoFile { package: package.into(), file: "usr/sbin/qemu-ga" };
    let agent = places.into_iter().find(|path| path.is_file()).ok_or(missing)?;
    let libraries = libraries(&agent)?;
    Ok((agent, libraries))
}

/// etcd, unpacked.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// `etcd` and `etcdctl`, by name.
    pub programs: Vec<(&'static str, PathBuf)>,
    /// The libraries of this machine that they need.
    pub libraries: Vec<PathBuf>,
}

/// etcd, fetched on first use.
///
/// # Errors
/// When they are not there yet and cannot be fetched, or a library is not there.
pub fn etcd() -> Result<Etcd, FetchError> {
    let dir = fetched("etcd", |dir| ["etcd-server", "etcd-client"].iter().try_for_each(|package| download(package, dir)))?;
    let mut needed = Vec::new();
    let mut programs = Vec::new();
    for (name, package, file) in [("etcd", "etcd-server", "usr/bin/etcd"), ("etcdctl", "etcd-client", "usr/bin/etcdctl")] {
        let program = dir.join(file);
        if !program.is_file() {
            return Err(FetchError::NoFile { package: package.into(), file });
        }
        needed.extend(libraries(&program)?);
        programs.push((name, program));
    }
    needed.sort();
    needed.dedup();
    Ok(Etcd { programs, libraries: needed })
}

/// The shared libraries of a program, the loader among them; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, FetchError> {
    let command = format!("ldd {}", program.display());
    let listed = match run(Command::new("ldd").arg(program)) {
        Err(FetchError::Tool { reason, .. }) if reason.contains("not a dynamic executable") => return Ok(Vec::new()),
        listed => listed?,
    };
    if let Some(line) = listed.lines().find(|line| line.contains("not found")) {
        return Err(FetchError::Tool { command, reason: format!("{}: install the package with this library", line.trim()) });
    }
    // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)`, and for the loader only its path.
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(listed.lines().filter_map(path).collect())
}

/// `build/NAME`, filled by `fill` if it is not there. It appears in one step, so a fetch that was cut off leaves nothing
/// that looks complete.
fn fetched(name: &str, fill: impl FnOnce(&Path) -> Result<(), FetchError>) -> Result<PathBuf, FetchError> {
    let dir = build_dir().join(name);
    if dir.is_dir() {
        return Ok(dir);
    }
    let _lock = lock_build_dir().map_err(|source| FetchError::Directory { path: build_dir(), source })?;
    if dir.is_dir() {
        return Ok(dir);
    }
    let partial = build_dir().join(format!("{name}.partial"));
    let problem = |source| FetchError::Directory { path: partial.clone(), source };
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(problem)?;
    }
    fs::create_dir_all(&partial).map_err(problem)?;
    fill(&partial)?;
    fs::rename(&partial, &dir).map_err(problem)?;
    Ok(dir)
}

/// Holds the lock on the build directory until the returned file is closed.
pub(super) fn lock_build_dir() -> io::Result<File> {
    let dir = build_dir();
    fs::create_dir_all(&dir)?;
    let file = File::create(dir.join(".lock"))?;
    // SAFETY: the descriptor belongs to `file`, which outlives the call; flock takes no pointers.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn is_ubuntu() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=ubuntu"))
}

/// The real package behind a meta package.
fn dependency(meta: &str, prefix: &str) -> Result<String, FetchError> {
    let text = run(Command::new("apt-cache").args(["depends", "--important", meta]))?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .ok_or_else(|| FetchError::NoPackage(meta.to_owned()))
}

fn download(package: &str, dir: &Path) -> Result<(), FetchError> {
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(dir))?;
    let file = first_entry(dir, &format!("{package}_")).ok_or_else(|| FetchError::NoPackage(package.to_owned()))?;
    run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(dir))?;
    fs::remove_file(&file).map_err(|source| FetchError::Directory { path: file, source })
}

fn run(command: &mut Command) -> Result<String, FetchError> {
    let failed = |reason: String, command: &Command| FetchError::Tool { command: format!("{command:?}"), reason };
    let output = command.output().map_err(|error| failed(error.to_string(), command))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned(), command));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn first_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names.into_iter().find(|name| name.to_string_lossy().starts_with(prefix)).map(|name| dir.join(name))
}
