//! Programs on a pseudo-terminal, for a person at a keyboard.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::frame::TerminalSize;

/// Starts `command` on a terminal of its own. Gives the program and the terminal's outside.
pub fn spawn(mut command: Command, size: TerminalSize) -> io::Result<(Child, File)> {
    let (outside, inside) = open(size)?;
    // The command ends with this function and closes its inside ends; otherwise the terminal would never end.
    command.stdin(inside.try_clone()?).stdout(inside.try_clone()?).stderr(inside);
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
    Ok((command.spawn()?, outside))
}

/// Changes a terminal's size; its program is told by the kernel.
pub fn resize(terminal: &File, size: TerminalSize) {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
}

fn open(size: TerminalSize) -> io::Result<(File, File)> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut outside, mut inside) = (-1, -1);
    // SAFETY: openpty fills both numbers and reads `size`; the name and the settings may be null.
    let result = unsafe { libc::openpty(&mut outside, &mut inside, std::ptr::null_mut(), std::ptr::null(), &size) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openpty succeeded, so both are open descriptors that nobody else owns.
    let (outside, inside) = unsafe { (OwnedFd::from_raw_fd(outside), OwnedFd::from_raw_fd(inside)) };
    for end in [&outside, &inside] {
        // SAFETY: the descriptor is open; F_SETFD takes no pointer. Other programs must not inherit the terminal.
        unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok((outside.into(), inside.into()))
}
