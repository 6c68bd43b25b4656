//! Programs on a pseudo-terminal, for a person at a keyboard.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread;

use super::frame::{ExitStatus, TerminalSize};
use super::server::raw;

/// How the terminal's program is joined to its channel.
pub struct ChannelIo {
    /// Told the program's process and the terminal.
    pub started: Box<dyn FnOnce(libc::pid_t, &File)>,
    /// Types what the client sends into the terminal until the client ends.
    pub feed: Box<dyn FnOnce(File) + Send>,
    /// Sends what the terminal shows until its last user has gone.
    pub send: Box<dyn FnOnce(File)>,
    /// Waits for the program.
    pub wait: Box<dyn FnOnce(&mut Child) -> io::Result<ExitStatus>>,
}

/// Runs `command` on a terminal of its own.
pub fn run(mut command: Command, size: TerminalSize, io: ChannelIo) -> io::Result<ExitStatus> {
    let (outside, inside) = open(size)?;
    let user = |file: &File| file.try_clone();
    command.stdin(user(&inside)?).stdout(user(&inside)?).stderr(inside);
    // SAFETY: between fork and exec only these two async-signal-safe system calls are made, on the new process's own
    // standard input.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    // The command holds the inside ends; while it does, the terminal would never end.
    drop(command);
    (io.started)(child.id() as libc::pid_t, &outside);
    let typed = outside.try_clone()?;
    thread::spawn(move || (io.feed)(typed));
    (io.send)(outside);
    (io.wait)(&mut child)
}

/// Changes a terminal's size; its program is told by the kernel.
pub fn resize(terminal: &File, size: TerminalSize) {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    unsafe { libc::ioctl(raw(terminal), libc::TIOCSWINSZ, &size) };
}

fn open(size: TerminalSize) -> io::Result<(File, File)> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut outside, mut inside) = (-1, -1);
    // SAFETY: openpty fills both numbers and reads `size`; the name and the settings may be null.
    let result =
        unsafe { libc::openpty(&mut outside, &mut inside, std::ptr::null_mut(), std::ptr::null(), &size) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openpty succeeded, so both are open descriptors that nobody else owns.
    let (outside, inside) = unsafe { (OwnedFd::from_raw_fd(outside), OwnedFd::from_raw_fd(inside)) };
    for end in [&outside, &inside] {
        // SAFETY: the descriptor is open; F_SETFD takes no pointer. Other programs must not inherit the terminal.
        unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(end), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok((outside.into(), inside.into()))
}
