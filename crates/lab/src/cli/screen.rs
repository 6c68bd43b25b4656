//! The terminal that a person sits at.

use std::io;
use std::thread;
use std::time::Duration;

use crate::agent::TerminalSize;

/// How often the size is looked at. A signal handler would need more code than a look costs.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The size of the terminal on standard output, or the classic one.
pub fn size() -> TerminalSize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    let result = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &mut size) };
    if result == 0 && size.ws_row > 0 {
        TerminalSize { columns: size.ws_col, rows: size.ws_row }
    } else {
        TerminalSize { columns: 80, rows: 24 }
    }
}

/// Tells every change of the size, until `tell` fails.
pub fn watch_size(tell: impl Fn(TerminalSize) -> io::Result<()>) {
    let mut last = size();
    loop {
        thread::sleep(LOOK_EVERY);
        let now = size();
        if now != last {
            last = now;
            if tell(now).is_err() {
                return;
            }
        }
    }
}

/// Passes every key on as it is typed; the terminal is as before when this is dropped.
pub struct RawTerminal(libc::termios);

impl RawTerminal {
    /// Gives nothing when standard input is no terminal.
    pub fn enter() -> Option<Self> {
        // SAFETY: termios is plain data; tcgetattr fills it before it is used, and all calls get valid pointers.
        unsafe {
            let mut before = std::mem::zeroed();
            if libc::tcgetattr(0, &mut before) != 0 {
                return None;
            }
            let mut raw = before;
            libc::cfmakeraw(&mut raw);
            (libc::tcsetattr(0, libc::TCSANOW, &raw) == 0).then_some(RawTerminal(before))
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // SAFETY: the settings were read from the same terminal.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &self.0) };
    }
}
