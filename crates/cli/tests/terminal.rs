//! `maru vm run` on a terminal.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Child;

use support::{run, wait};

/// A pseudo-terminal with `maru` on it. The inside stays open here, so that its settings can be looked at when `maru` has gone.
struct Terminal {
    outside: File,
    inside: File,
    maru: Child,
    seen: String,
}

fn start(mode: &str) -> Terminal {
    let (mut outside, mut inside) = (-1, -1);
    // SAFETY: openpty fills both numbers; everything else may be null.
    let result = unsafe { libc::openpty(&mut outside, &mut inside, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both descriptors are new and nobody else's.
    let (outside, inside) = unsafe { (File::from_raw_fd(outside), File::from_raw_fd(inside)) };
    for end in [&outside, &inside] {
        // SAFETY: F_SETFD takes a number.
        unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let user = || inside.try_clone().unwrap();
    let mut command = run(mode);
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

impl Terminal {
    fn expect(&mut self, text: &str) {
        let deadline = std::time::Instant::now() + support::PATIENCE;
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

    fn is_cooked(&self) -> bool {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: there is room for one termios, which tcgetattr fills in.
        let settings = unsafe {
            assert_eq!(libc::tcgetattr(self.inside.as_raw_fd(), settings.as_mut_ptr()), 0);
            settings.assume_init()
        };
        settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == libc::ICANON | libc::ECHO | libc::ISIG
    }
}

#[test]
fn keys_reach_the_guest_and_ctrl_bracket_ends_the_vm_and_puts_the_terminal_back() {
    let mut terminal = start("echo");
    terminal.expect("Ctrl-] ends the VM");
    terminal.expect("ready");
    assert!(!terminal.is_cooked());
    // Ctrl-C and Enter as they are pressed: no signal, no newline.
    terminal.outside.write_all(b"\x03\r").unwrap();
    terminal.expect("\x03");
    terminal.outside.write_all(b"\x1d").unwrap();
    terminal.expect("Ctrl-]: the VM ends");
    assert_eq!(wait(&mut terminal.maru).code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn the_terminal_is_put_back_however_the_vm_ends() {
    let mut terminal = start("exit 4");
    assert_eq!(wait(&mut terminal.maru).code(), Some(4));
    assert!(terminal.is_cooked());

    let mut terminal = start("echo");
    terminal.expect("ready");
    // SAFETY: no pointers; the child was not waited for.
    unsafe { libc::kill(terminal.maru.id() as libc::pid_t, libc::SIGTERM) };
    assert_eq!(wait(&mut terminal.maru).code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn a_second_ctrl_bracket_does_not_wait_for_a_monitor_that_does_not_end() {
    let mut terminal = start("stubborn");
    terminal.expect("ready");
    terminal.outside.write_all(b"\x1d").unwrap();
    terminal.expect("Ctrl-]: the VM ends");
    terminal.outside.write_all(b"\x1d").unwrap();
    assert_eq!(wait(&mut terminal.maru).code(), Some(137));
    assert!(terminal.is_cooked());
}
