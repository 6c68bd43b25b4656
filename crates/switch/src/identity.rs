//! Giving up root's rights, but for those that TAPs and NICs need.

use std::io;

/// The sets of capabilities of a thread, as `capset` takes them: `_LINUX_CAPABILITY_VERSION_3`, two words of 32 bits for each set.
#[repr(C)]
struct Head {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Making and opening TAPs.
const CAP_NET_ADMIN: u32 = 12;
/// Hearing NICs.
const CAP_NET_RAW: u32 = 13;

/// Becomes another user, with a group of the same number, and keeps `CAP_NET_ADMIN` and `CAP_NET_RAW` alone. Before any thread is started:
/// it is this thread that changes, and those that it starts.
pub fn become_user(user: u32) -> io::Result<()> {
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    let kept = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
    let head = Head { version: 0x2008_0522, pid: 0 };
    let sets = [Sets { effective: kept, permitted: kept, inheritable: 0 }, Sets { effective: 0, permitted: 0, inheritable: 0 }];
    let no_groups = std::ptr::null::<libc::gid_t>();
    // SAFETY: numbers, a list of no groups, and two structures that live through the call.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::syscall(libc::SYS_setgroups, 0, no_groups))?;
        check(libc::syscall(libc::SYS_setresgid, user, user, user))?;
        check(libc::syscall(libc::SYS_setresuid, user, user, user))?;
        check(libc::syscall(libc::SYS_capset, &raw const head, sets.as_ptr()))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())
    }
}
