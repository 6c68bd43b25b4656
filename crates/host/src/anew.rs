//! `marud` that starts itself anew: the same process with the same arguments, and nothing else of before.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use crate::vm::process::pidfd_open;

/// Becomes a new `marud`. Returns only if that cannot be done.
pub fn exec() -> io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("marud"));
    // By this name also when another file is in the place of the program now.
    Command::new("/proc/self/exe").arg0(name).args(arguments).exec()
}

/// Takes in the ends of processes that this process had started before it started itself anew: nobody else can, and nobody knows of them any
/// more. To be called before any other process is started.
pub fn reap_inherited() -> io::Result<()> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may have any letters: the state, and the parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        if parent == Some(std::process::id())
            && let Ok(pidfd) = pidfd_open(pid.unsigned_abs())
        {
            children.push((pid, pidfd));
        }
    }
    if children.is_empty() {
        return Ok(());
    }
    let wait = move || {
        while !children.is_empty() {
            let polled = |child: &(i32, std::os::fd::OwnedFd)| libc::pollfd { fd: child.1.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let mut polls: Vec<libc::pollfd> = children.iter().map(polled).collect();
            // SAFETY: as many structures as said, which live through the call; their descriptors are open.
            if unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) } < 0 {
                continue;
            }
            let mut ended = polls.iter().map(|poll| poll.revents != 0);
            children.retain(|(pid, _)| {
                if ended.next() == Some(true) {
                    // SAFETY: a null pointer stands for a status that nobody wants. It is a child of this process that nobody else waits for.
                    unsafe { libc::waitpid(*pid, std::ptr::null_mut(), 0) };
                    return false;
                }
                true
            });
        }
    };
    thread::Builder::new().name("inherited".into()).spawn(wait).map(drop)
}
