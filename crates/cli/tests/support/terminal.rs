//! `maru` on a pseudo-terminal.

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// A pseudo-terminal with `maru` on it. The inside stays open here, so that its settings can be looked at when `maru` has gone.
pub struct Terminal {
    pub outside: File,
    inside: File,
    pub maru: Child,
    seen: String,
}

impl Terminal {
    pub fn start(mut command: Command) -> Terminal {
        let (mut outside, mut inside) = (-1, -1);
        // SAFETY: openpty fills both numbers; everything else may be null.
        let result =
            unsafe { libc::openpty(&mut outside, &mut inside, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both descriptors are new and nobody else's.
        let (outside, inside) = unsafe { (File::from_raw_fd(outside), File::from_raw_fd(inside)) };
        for end in [&outside, &inside] {
            // SAFETY: F_SETFD takes a number.
            unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        let user = || inside.try_clone().unwrap();
        command.stdin(user()).stdout(user()).stderr(user());
        // SAFETY: between fork and exec only these two async-signal-safe calls are made.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let maru = command.spawn().unwrap();
        Terminal { outside, inside, maru, seen: String::new() }
    }

    /// Waits until the terminal has shown `text`.
    pub fn expect(&mut self, text: &str) {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while !self.seen.contains(text) {
            let mut poll = libc::pollfd { fd: self.outside.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&mut poll, 1, 100) };
            if poll.revents & libc::POLLIN != 0 {
                let mut buffer = [0; 1024];
                let length = self.outside.read(&mut buffer).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            assert!(std::time::Instant::now() < deadline, "'{text}' did not appear in {:?}", self.seen);
        }
    }

    /// Whether the terminal has shown `text`, as far as it was looked at.
    pub fn has_shown(&self, text: &str) -> bool {
        self.seen.contains(text)
    }

    /// Whether the terminal is as a shell has it.
    pub fn is_cooked(&self) -> bool {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: there is room for one termios, which tcgetattr fills in.
        let settings = unsafe {
            assert_eq!(libc::tcgetattr(self.inside.as_raw_fd(), settings.as_mut_ptr()), 0);
            settings.assume_init()
        };
        settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == libc::ICANON | libc::ECHO | libc::ISIG
    }
}
