//! Reaping and power: what only PID 1 does.

use std::io;
use std::time::{Duration, Instant};

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerAction {
    /// Power off through ACPI.
    Off,
    /// Restart.
    Reboot,
}

/// Writes everything out and switches the machine off or restarts it.
///
/// # Errors
/// Returns only when the kernel refuses, which it does for everybody but root.
pub fn power(action: PowerAction) -> io::Error {
    let command = match action {
        PowerAction::Off => libc::RB_POWER_OFF,
        PowerAction::Reboot => libc::RB_AUTOBOOT,
    };
    // SAFETY: neither call touches memory of this process.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    io::Error::last_os_error()
}

/// Reaps children, calling `ended(pid, wait status)` for each, until none is left or the deadline has passed.
/// Without a deadline it waits as long as there are children.
pub fn reap_until(deadline: Option<Instant>, mut ended: impl FnMut(libc::pid_t, i32)) {
    loop {
        let flags = if deadline.is_some() { libc::WNOHANG } else { 0 };
        let mut status = 0;
        // SAFETY: `status` is a valid place for the kernel to write to.
        let pid = unsafe { libc::waitpid(-1, &mut status, flags) };
        match (pid, deadline) {
            (1.., _) => ended(pid, status),
            (0, Some(deadline)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            (0, _) => return,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
