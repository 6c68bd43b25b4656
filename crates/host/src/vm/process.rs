//! Monitors as processes: starting one, and finding one that is there already.
//!
//! A monitor inherits the open file `vms/ID/lock` with an exclusive lock on it, and nobody else keeps it open. So the lock is held exactly as
//! long as the process lives, from the moment it is forked: whoever finds it free knows that no monitor of this VM runs, and
//! whoever finds it held knows that one does, even if it has not come as far as its control socket. The process writes its id into
//! the file before it becomes the monitor. An id that is read while the lock is held, before and after, is its holder's: it
//! cannot have been given to another process in between. (That is why no start time is stored: the lock proves more.)

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use vmm::config::VmConfig;
use vmm::launch::{config_file, inherit};

use super::Surroundings;

/// How long a lock may be held by a process that cannot be found: one that was just forked, or just killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Held while a process is forked, and while a lock is tried: a process that is forked meanwhile would have the lock that was only tried, too,
/// until it becomes its program.
static FORKING: Mutex<()> = Mutex::new(());

/// A running monitor, or switch.
#[derive(Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
    /// If this `marud` started it: then its exit status can be known, and must be asked for.
    pub child: Option<Child>,
}

impl Process {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        poll(&self.pidfd, 0)
    }
}

/// Waits for the end of a process.
pub fn wait(pidfd: &OwnedFd) {
    while !poll(pidfd, -1) {}
}

fn poll(pidfd: &OwnedFd, timeout_ms: libc::c_int) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which is open, and its structure lives through the call.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
}

/// The files of a VM that runs.
#[derive(Clone, Debug)]
pub struct RunFiles(PathBuf);

impl RunFiles {
    /// Those of this VM.
    pub fn of(surroundings: &Surroundings, vm: Uuid) -> RunFiles {
        RunFiles(surroundings.run_directory.join("vms").join(vm.to_string()))
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// What the monitor says on standard error.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The disk with what cloud-init in the guest finds.
    pub fn cloud_init(&self) -> PathBuf {
        self.0.join("cloud-init.iso")
    }

    /// Makes the directory that they are in.
    pub fn make_directory(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Removes them, when no monitor runs.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Why a monitor cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// One runs already.
    #[error("a monitor of this VM runs already")]
    Running,
    /// The files for it.
    #[error("the files of the running VM cannot be made in {}", .path.display())]
    Files {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its control group.
    #[error("its control group cannot be made")]
    Cgroup(#[source] io::Error),
    /// The program.
    #[error("the monitor {} cannot be started", .program.display())]
    Program {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A lock that no process holds. Nobody else forks as long as this is here.
pub struct Start {
    lock: File,
    forking: MutexGuard<'static, ()>,
}

impl Start {
    /// Takes a lock, whose file is made if it is not there. Nothing if a process holds it.
    pub fn begin(lock: &Path) -> io::Result<Option<Start>> {
        let forking = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = open(lock, false)?;
        match lock.try_lock() {
            Ok(()) => lock.set_len(0)?,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Some(Start { lock, forking }))
    }

    /// Starts a program that holds the lock, in a session and a control group of its own: it belongs to nobody, and goes on when `marud` ends.
    ///
    /// # Safety
    /// `before_exec` runs between fork and exec: it may make only async-signal-safe calls, on descriptors that are open until this returns.
    pub unsafe fn spawn(
        self,
        mut command: Command,
        group: Option<&File>,
        mut before_exec: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Process> {
        let Start { lock, forking } = self;
        let (lock_fd, group_fd) = (lock.as_raw_fd(), group.map(AsRawFd::as_raw_fd));
        // SAFETY: between fork and exec only async-signal-safe calls are made, on descriptors that are open and memory of the new process;
        // the caller promises it of `before_exec`.
        unsafe {
            command.pre_exec(move || {
                // A session of its own: signals to marud's terminal are not for it.
                if libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                inherit(lock_fd)?;
                if let Some(group) = group_fd {
                    write_all(group, b"0")?;
                }
                let mut digits = [0; 10];
                write_all(lock_fd, decimal(libc::getpid() as u32, &mut digits))?;
                before_exec()
            });
        }
        let mut child = command.spawn()?;
        drop(forking);
        match pidfd_open(child.id()) {
            Ok(pidfd) => Ok(Process { pid: child.id(), pidfd, child: Some(child) }),
            Err(error) => {
                // It must not run where nobody can see it. It is a child that was not waited for, so its id is its own.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

/// A file for this user alone.
pub fn open(path: &Path, truncate: bool) -> io::Result<File> {
    File::options().create(true).truncate(truncate).write(true).mode(0o600).open(path)
}

/// Starts the monitor of a VM, in the control group that was [begun](super::cgroup::Cgroups::begin) for it. With a saved state it stays paused.
pub fn spawn(surroundings: &Surroundings, vm: Uuid, config: &VmConfig, restore: Option<&Path>) -> Result<Process, SpawnError> {
    let files = RunFiles::of(surroundings, vm);
    let made = |path: &Path| {
        let path = path.to_owned();
        move |source| SpawnError::Files { path, source }
    };
    files.make_directory().map_err(made(&files.0))?;
    let start = Start::begin(&files.lock()).map_err(made(&files.lock()))?.ok_or(SpawnError::Running)?;
    remove_if_there(&files.control()).map_err(made(&files.control()))?;
    let log = open(&files.log(), true).map_err(made(&files.log()))?;
    let config = config_file(config).map_err(made(&files.0))?;
    let group = surroundings.cgroups.enter(vm).map_err(SpawnError::Cgroup)?;

    let config_fd = config.as_raw_fd();
    let mut command = Command::new(&surroundings.monitor);
    command.env_clear().current_dir("/");
    command.arg("--config").arg(format!("/proc/self/fd/{config_fd}")).arg("--control").arg(files.control());
    if let Some(saved) = restore {
        command.arg("--restore").arg(saved).arg("--paused");
    }
    if !surroundings.cgroups.is_bound(vm) {
        command.arg("--lease").arg(&surroundings.lease);
    }
    if surroundings.unconfined {
        command.arg("--unconfined");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // SAFETY: one call of fcntl, on a descriptor that is open until this returns.
    let spawned = unsafe { start.spawn(command, group.as_ref(), move || inherit(config_fd)) };
    spawned.map_err(|source| SpawnError::Program { program: surroundings.monitor.clone(), source })
}

/// Finds the monitor of a VM, if one runs.
///
/// # Errors
/// When one runs but cannot be found, which nobody but a stranger in its directory could bring about.
pub fn find(surroundings: &Surroundings, vm: Uuid) -> io::Result<Option<Process>> {
    find_holder(&RunFiles::of(surroundings, vm).lock())
}

/// Finds the process that holds a lock, if one does.
pub fn find_holder(path: &Path) -> io::Result<Option<Process>> {
    let start = Instant::now();
    loop {
        if !is_held(path)? {
            return Ok(None);
        }
        if let Some(pid) = fs::read_to_string(path)?.parse::<u32>().ok().filter(|pid| *pid > 0)
            && let Ok(pidfd) = pidfd_open(pid)
            && is_held(path)?
            && fs::read_to_string(path)?.parse() == Ok(pid)
        {
            return Ok(Some(Process { pid, pidfd, child: None }));
        }
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{} is locked by an unknown process", path.display())));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Whether a monitor has the lock.
fn is_held(path: &Path) -> io::Result<bool> {
    let _forking = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// VMs that have files here.
pub fn list(surroundings: &Surroundings) -> Vec<Uuid> {
    let entries = fs::read_dir(surroundings.run_directory.join("vms")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Uuid::parse_str(entry.file_name().to_str()?).ok()).collect()
}

/// A descriptor of a process, which becomes readable when it ends.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Kills a process by its descriptor: never another one that got its id.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null pointer stands for the usual information; the rest are numbers.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, null, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file for this user alone, in place of one that is there.
pub fn private_file(path: &Path) -> io::Result<File> {
    remove_if_there(path)?;
    File::options().create_new(true).write(true).mode(0o600).open(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a few bytes at once; makes no use of memory but the caller's.
fn write_all(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes live through the call.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written == bytes.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A number in decimal, without memory from the heap.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
