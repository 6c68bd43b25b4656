//! The watchdog, which resets the host when it is fed no more.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `WDIOC_SETTIMEOUT` of linux/watchdog.h: `_IOWR('W', 6, int)`.
const SET_TIMEOUT: libc::Ioctl = 0xC004_5706_u32 as libc::Ioctl;

/// A watchdog that counts. Dropping it does not stop it: that is what it is for.
#[derive(Debug)]
pub struct Watchdog(File);

impl Watchdog {
    /// Opens the one at `path`, which counts from now on, and gives its timeout, which may be longer than what was asked for.
    pub fn open(path: &Path, timeout: Duration) -> io::Result<(Watchdog, Duration)> {
        let file = OpenOptions::new().write(true).open(path)?;
        let mut seconds = i32::try_from(timeout.as_secs().max(1)).map_err(io::Error::other)?;
        // SAFETY: it reads and writes one int, which lives through the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), SET_TIMEOUT, &raw mut seconds) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let given = u64::try_from(seconds).map_err(io::Error::other)?;
        Ok((Watchdog(file), Duration::from_secs(given)))
    }

    /// Feeds it.
    pub fn feed(&self) -> io::Result<()> {
        (&self.0).write_all(&[0])
    }

    /// Stops it, if the kernel lets anybody do that (`nowayout`).
    pub fn stop(self) -> io::Result<()> {
        // linux/watchdog.h: the "magic close" character.
        (&self.0).write_all(b"V")
    }
}

/// A watchdog that is opened when it is needed.
#[derive(Debug)]
pub struct Kennel {
    path: PathBuf,
    timeout: Duration,
    open: Option<Watchdog>,
}

impl Kennel {
    /// The watchdog at `path`. Opened and stopped again, to know its timeout.
    pub fn new(path: PathBuf, timeout: Duration) -> io::Result<(Kennel, Duration)> {
        let (watchdog, given) = Watchdog::open(&path, timeout)?;
        watchdog.stop()?;
        Ok((Kennel { path, timeout, open: None }, given))
    }

    /// Has it count, and feeds it.
    pub fn feed(&mut self) -> io::Result<()> {
        match &self.open {
            Some(watchdog) => watchdog.feed(),
            None => {
                self.open = Some(Watchdog::open(&self.path, self.timeout)?.0);
                Ok(())
            }
        }
    }

    /// Has it count no more.
    pub fn stop(&mut self) -> io::Result<()> {
        self.open.take().map_or(Ok(()), Watchdog::stop)
    }
}
