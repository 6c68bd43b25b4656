//! Giving up root's rights, but for those that TAPs and NICs need.

use std::io;

/// Who a set of capabilities belongs to, as `capset` takes it: `_LINUX_CAPABILITY_VERSION_3`, the calling thread.
#[repr(C)]
struct Head {
    version: u32,
    pid: libc::c_int,
}

static HEAD: Head = Head { version: 0x2008_0522, pid: 0 };

/// The sets of capabilities of a thread, of which there are two words of 32 bits each.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `CAP_NET_ADMIN`, as a set: making and opening TAPs, attaching programs to NICs.
pub const NET_ADMIN: u64 = 1 << 12;
/// `CAP_NET_RAW`, as a set: hearing NICs.
pub const NET_RAW: u64 = 1 << 13;
/// `CAP_BPF`, as a set: loading the program of AF_XDP.
pub const BPF: u64 = 1 << 39;
/// `CAP_IPC_LOCK`, as a set: as much memory for AF_XDP as there are queues.
pub const IPC_LOCK: u64 = 1 << 14;
/// All that TAPs and NICs need.
pub const NETWORK: u64 = NET_ADMIN | NET_RAW | BPF | IPC_LOCK;

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes another user, with a group of the same number, and keeps the capabilities of [`NETWORK`] alone. Before any thread is started: it is
/// this thread that changes, and those that it starts.
pub fn become_user(user: u32) -> io::Result<()> {
    let no_groups = std::ptr::null::<libc::gid_t>();
    // SAFETY: numbers, and a list of no groups.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::syscall(libc::SYS_setgroups, 0, no_groups))?;
        check(libc::syscall(libc::SYS_setresgid, user, user, user))?;
        check(libc::syscall(libc::SYS_setresuid, user, user, user))?;
    }
    keep_capabilities(NETWORK)?;
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

/// Has the calling thread keep those of its capabilities that are in a set, and no others.
pub fn keep_capabilities(set: u64) -> io::Result<()> {
    let mut sets = [Sets::default(); 2];
    // SAFETY: a head, and room for the sets of its version.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const HEAD, sets.as_mut_ptr()) })?;
    let words = [set as u32, (set >> 32) as u32];
    for (sets, word) in sets.iter_mut().zip(words) {
        let kept = sets.permitted & word;
        *sets = Sets { effective: kept, permitted: kept, inheritable: 0 };
    }
    // SAFETY: a head and sets of its version.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const HEAD, sets.as_ptr()) })
}
