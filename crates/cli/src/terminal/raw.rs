//! Raw mode: each key goes to the guest as it is pressed, `Ctrl-C` included. And lines that are not shown, for secrets.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, Once, PoisonError};

/// What to put back: the terminal and its settings from before. There is one terminal, so one place is enough; it is not
/// inside [`RawMode`] because a panic's message must find the terminal put back before it is printed.
static BEFORE: Mutex<Option<(RawFd, libc::termios)>> = Mutex::new(None);

/// A terminal in raw mode, or without its echo; it is put back when this is dropped, and on a panic.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal into raw mode. The descriptor must stay open while this lives, as standard input does.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<RawMode> {
        RawMode::change(terminal, |settings| {
            let output = settings.c_oflag & libc::OPOST;
            // SAFETY: changes the structure only.
            unsafe { libc::cfmakeraw(settings) };
            // What the monitor itself writes to standard error has plain line ends.
            settings.c_oflag |= output;
        })
    }

    /// Has the terminal not show what is typed, but the end of the line. All else is as it was. The descriptor must stay open, too.
    pub fn without_echo(terminal: BorrowedFd<'_>) -> io::Result<RawMode> {
        RawMode::change(terminal, |settings| {
            settings.c_lflag &= !libc::ECHO;
            settings.c_lflag |= libc::ECHONL;
        })
    }

    /// Puts the terminal back, for a process that ends without dropping this.
    pub fn leave() {
        restore();
    }

    fn change(terminal: BorrowedFd<'_>, change: impl FnOnce(&mut libc::termios)) -> io::Result<RawMode> {
        let fd = terminal.as_raw_fd();
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr writes one termios, for which there is room.
        check(unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) })?;
        // SAFETY: tcgetattr succeeded and has filled it in.
        let before = unsafe { settings.assume_init() };
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some((fd, before));
        let guard = RawMode(());
        restore_before_panics();

        let mut changed = before;
        change(&mut changed);
        // SAFETY: reads one termios.
        check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, &changed) })?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((fd, settings)) = before {
        // Draining would wait for a terminal that may be gone; there is nobody to tell about a failure.
        // SAFETY: reads one termios.
        unsafe { libc::tcsetattr(fd, libc::TCSANOW, &settings) };
    }
}

fn restore_before_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
    });
}

/// Whether `fd` is a terminal that this process may use: in a shell's background, reading it would stop the process.
pub fn is_mine(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: neither call takes a pointer.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 && libc::tcgetpgrp(fd.as_raw_fd()) == libc::getpgrp() }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
