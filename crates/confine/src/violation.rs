//! What happens when a thread makes a system call that its filter does not allow: the kernel sends it SIGSYS instead, and the
//! process says what it was and ends.

use std::ffi::{c_int, c_void};
use std::fmt::Write;
use std::io;
use std::sync::OnceLock;

/// The exit status of a process that has made a forbidden call.
pub const EXIT_STATUS: c_int = 4;

/// How a program speaks of itself.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    /// Its name.
    pub program: &'static str,
    /// What follows from a forbidden call, and what may have been the cause.
    pub consequence: &'static str,
}

static VOICE: OnceLock<Voice> = OnceLock::new();

/// `SYS_SECCOMP` of `asm-generic/siginfo.h`: the signal is a filter's.
const SYS_SECCOMP: c_int = 1;

/// `siginfo_t` of a SIGSYS, as the kernel fills it in.
#[repr(C)]
struct SigsysInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: *mut c_void,
    call: c_int,
    architecture: u32,
}

/// Installs the handler for the whole process. The first voice stays.
pub fn install_handler(voice: Voice) -> io::Result<()> {
    VOICE.get_or_init(|| voice);
    // SAFETY: an all-zero sigaction is valid, the handler has the form that SA_SIGINFO asks for and does only what is allowed in one.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_violation as extern "C" fn(c_int, *const SigsysInfo, *const libc::ucontext_t) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())
    };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs in a signal handler: no allocation, no locks, only system calls that all filters allow.
extern "C" fn on_violation(_signal: c_int, info: *const SigsysInfo, context: *const libc::ucontext_t) {
    let mut name = [0u8; 16];
    // SAFETY: the kernel passes a valid siginfo and context to a handler with SA_SIGINFO; a thread's name has 16 bytes with its NUL.
    let (info, registers) = unsafe {
        libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
        (&*info, &(*context).uc_mcontext.gregs)
    };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let name = std::str::from_utf8(&name[..length]).unwrap_or("?");
    let Voice { program, consequence } = VOICE.get().copied().unwrap_or(Voice { program: "?", consequence: "" });
    let mut text = Text { bytes: [0; 320], length: 0 };
    // A full buffer cuts the text, which is not worth a reaction.
    let _ = if info.code == SYS_SECCOMP {
        let argument = |register: c_int| registers[register as usize];
        writeln!(
            text,
            "{program}: thread '{name}' made the forbidden system call {} ({:#x}, {:#x}, {:#x}): {consequence} (--unconfined would run \
             without the check).",
            info.call,
            argument(libc::REG_RDI),
            argument(libc::REG_RSI),
            argument(libc::REG_RDX)
        )
    } else {
        writeln!(text, "{program}: ended by SIGSYS from another process")
    };
    let mut poll = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: valid pointers and lengths; `_exit` may be called in a handler. A reader of standard error that does not read must not keep
    // the process running, hence the poll.
    unsafe {
        if libc::poll(&mut poll, 1, 0) == 1 {
            libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.length);
        }
        libc::_exit(EXIT_STATUS)
    }
}

/// A text of limited length.
struct Text {
    bytes: [u8; 320],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, more: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.length..];
        let count = more.len().min(room.len());
        room[..count].copy_from_slice(&more.as_bytes()[..count]);
        self.length += count;
        if count < more.len() { Err(std::fmt::Error) } else { Ok(()) }
    }
}
