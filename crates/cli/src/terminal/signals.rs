//! Signals that ask this process to end, taken as something to wait for.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

const STOP_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// A descriptor that becomes readable when a signal asks the process to end. The signals stay blocked: whoever takes this
/// must act on them until the process ends.
#[derive(Debug)]
pub struct StopSignals(File);

impl StopSignals {
    /// Takes the signals of this thread, and of threads and programs that it starts later. (`Command` unblocks them in programs.)
    pub fn take() -> io::Result<StopSignals> {
        let set = block()?;
        // SAFETY: the set is valid; the result is checked.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(StopSignals(unsafe { File::from_raw_fd(fd) }))
    }

    /// The signal that came, if one did.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut info).ok()?;
        // `ssi_signo` is the first field.
        Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Has a thread call `clean_up` and end the process when a signal asks for it, for work that blocks elsewhere.
pub fn stop_on_thread(clean_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let set = block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signal = 0;
        // SAFETY: the set is valid, and there is room for the number.
        while unsafe { libc::sigwait(&set, &mut signal) } != 0 {}
        clean_up();
        std::process::exit(128 + signal);
    })?;
    Ok(())
}

fn block() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set in; the others work on a valid set. Errors are only possible for wrong numbers.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in STOP_SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    };
    // SAFETY: the set is valid, and the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(set),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
