//! The trial's process: forked, given a deadline, read from over a pipe, killed if it does not come back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{KvmOutcome, KvmTrial, session};

/// Why the trial's process gave no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    /// A system call on the way failed.
    #[error("the trial could not be started: {call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The result was cut off or nonsense.
    #[error("the trial ended without a result ({0})")]
    NoResult(String),
}

/// Runs `body` in a process of its own, for at most `limit`. `body` may use
/// [`session`]'s alarm; it must open the files it needs itself, for the caller's are closed in its process.
pub(super) fn run(limit: Duration, body: impl FnOnce() -> KvmTrial) -> Result<KvmTrial, ChildError> {
    let (reader, writer) = pipe()?;
    // SAFETY: fork has no memory effects here. The child may be a copy of one thread out of many, so it must not wait for a
    // lock that another thread held: it allocates (glibc keeps malloc usable across fork), makes system calls and leaves
    // with _exit, touching no other library's state. Should it block all the same, the parent's deadline ends it.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(system("fork")),
        0 => child(body, writer),
        _ => {
            drop(writer);
            Ok(parent(pid, reader, limit))
        }
    }
}

fn system(call: &'static str) -> ChildError {
    ChildError::System { call, source: io::Error::last_os_error() }
}

fn pipe() -> Result<(File, OwnedFd), ChildError> {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(system("pipe2"));
    }
    // SAFETY: pipe2 succeeded, so both are open descriptors that nothing else owns.
    Ok(unsafe { (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// The child: never returns into the caller's code.
fn child(body: impl FnOnce() -> KvmTrial, writer: OwnedFd) -> ! {
    let done = catch_unwind(AssertUnwindSafe(|| {
        detach(writer.as_raw_fd());
        let trial = match session::install_alarm() {
            Ok(()) => body(),
            Err(error) => KvmTrial::unavailable(format!("no alarm can be set: {error}")),
        };
        let line = serde_json::to_vec(&trial).unwrap_or_default();
        File::from(writer).write_all(&line).is_ok()
    }));
    let code = if matches!(done, Ok(true)) { 0 } else { 1 };
    // SAFETY: _exit ends the process without running the caller's exit handlers, which is why it is used.
    unsafe { libc::_exit(code) }
}

/// Cuts the child's ties: it goes when its parent goes, and it keeps none of the parent's files (locks, listening sockets)
/// alive. Failing to is harmless: the child is gone within the time limit.
fn detach(keep: RawFd) {
    let keep = libc::c_long::from(keep);
    // SAFETY: plain system calls on integers. The closed descriptors belong to this process only since fork; no code of
    // their owners runs in it any more.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if keep > 3 {
            libc::syscall(libc::SYS_close_range, 3 as libc::c_long, keep - 1, 0 as libc::c_long);
        }
        libc::syscall(libc::SYS_close_range, keep + 1, libc::c_long::from(i32::MAX), 0 as libc::c_long);
    }
}

/// The parent: reads until the child is done or the time is up, then makes sure that the child is gone.
fn parent(pid: libc::pid_t, mut reader: File, limit: Duration) -> KvmTrial {
    let deadline = Instant::now() + limit;
    let mut line = Vec::new();
    let finished = loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            break false;
        };
        let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let wait_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        // SAFETY: one initialised pollfd that outlives the call.
        if unsafe { libc::poll(&mut poll, 1, wait_ms) } <= 0 {
            continue;
        }
        let mut chunk = [0u8; 4096];
        match reader.read(&mut chunk) {
            Ok(0) => break true,
            Ok(count) => line.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break true,
        }
    };
    let end = reap(pid, finished);
    if let Ok(trial) = serde_json::from_slice(&line) {
        return trial;
    }
    let mut trial = KvmTrial::unavailable(ChildError::NoResult(end).to_string());
    if !finished {
        trial.outcome = KvmOutcome::Fails;
        trial.reason = format!("KVM did not come back within {} s and was broken off", limit.as_secs());
    }
    trial
}

/// Ends and collects the child; how it ended. Gives up on one that even SIGKILL does not end: it hangs in the kernel, and
/// init inherits it.
fn reap(pid: libc::pid_t, finished: bool) -> String {
    let patience = Instant::now() + Duration::from_secs(1);
    let mut killed = false;
    loop {
        if !killed && (!finished || Instant::now() >= patience) {
            // SAFETY: our own child, not yet waited for, so the number cannot belong to another process.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            killed = true;
        }
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result; WNOHANG does not block.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 if Instant::now() >= patience + Duration::from_secs(1) => return "it hangs in the kernel".into(),
            0 => std::thread::sleep(Duration::from_millis(1)),
            // A caller that ignores SIGCHLD leaves nothing to collect.
            -1 => return "its end was collected by another".into(),
            _ if libc::WIFSIGNALED(status) => return format!("killed by signal {}", libc::WTERMSIG(status)),
            _ => return format!("exit code {}", libc::WEXITSTATUS(status)),
        }
    }
}
