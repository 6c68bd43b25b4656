//! What happens when a front end takes memory away that it has shared.
//!
//! A file that is shortened under a mapping makes the kernel send `SIGBUS` to who touches it. That must not end the switch, and with it
//! the network of all other VMs: the handler puts empty memory in its place. The port that did it then finds rings full of zeros.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More mappings than ports may have in memory tables that are in use.
const SLOTS: usize = 16 * 1024;

/// Mappings: first byte (zero: free) and length. Written before a mapping is used, read in the signal handler.
static MAPPINGS: [(AtomicUsize, AtomicUsize); SLOTS] = [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; SLOTS];

/// Marks a slot that is being filled: no mapping begins there.
const FILLING: usize = usize::MAX;

/// A mapping that may be taken away.
#[derive(Debug)]
pub(super) struct Guarded(usize);

impl Guarded {
    /// Guards `length` bytes from `start`. `None` if there are too many.
    pub fn new(start: usize, length: usize) -> Option<Guarded> {
        let slot = (0..SLOTS)
            .find(|slot| MAPPINGS[*slot].0.compare_exchange(0, FILLING, Ordering::Acquire, Ordering::Relaxed).is_ok())?;
        MAPPINGS[slot].1.store(length, Ordering::Relaxed);
        MAPPINGS[slot].0.store(start, Ordering::Release);
        Some(Guarded(slot))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        MAPPINGS[self.0].0.store(0, Ordering::Release);
    }
}

/// Installs the handler; to be called once, before anything is mapped.
pub fn install() -> io::Result<()> {
    // SAFETY: all zeroes are a valid sigaction, which is then filled in; the handler only does what signal handlers may.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo of a SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    for (start, length) in &MAPPINGS {
        let (start, length) = (start.load(Ordering::Acquire), length.load(Ordering::Relaxed));
        if start == 0 || start == FILLING || address < start || address - start >= length {
            continue;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: exactly a mapping that is ours is replaced, which stays mapped all the time. mmap is a plain system call.
        if unsafe { libc::mmap(start as *mut libc::c_void, length, protection, flags, -1, 0) } != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours: back to what the kernel does without a handler, at the same instruction again.
    // SAFETY: plain system call with constants.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}
