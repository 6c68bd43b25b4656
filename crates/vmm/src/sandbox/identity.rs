//! Whom a monitor that was started as root becomes.
//!
//! Each VM shall have a user of its own, so that not even one that is taken over can signal, trace or read another. A daemon that
//! owns a range of user ids says which (`--uid`). Without that, the monitor takes [`OWN_USER_BASE`] plus its process id: no two
//! running processes of a host have the same, and `systemd`'s map of user ids leaves this range to nobody.

use std::io;

use confine::{ConfineError, step};

/// Default user ids start here; process ids are below 2²².
pub const OWN_USER_BASE: u32 = 0x7000_0000;
/// `nobody`, where a user namespace has no room for the above.
const NOBODY: u32 = 65534;

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id, the only group.
    pub gid: u32,
}

/// Why no user can be chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not root, and someone else is asked for.
    #[error("--uid and --gid need root: this is user {0}, and stays that")]
    NotRoot(u32),
    /// Root is asked for.
    #[error("a confined monitor does not run as root: choose another --uid and --gid, or --unconfined")]
    Root,
    /// A group without a user.
    #[error("--gid goes with --uid")]
    OnlyGroup,
    /// A user namespace without room.
    #[error("user {uid} and group {gid} do not exist in this user namespace: choose others with --uid and --gid")]
    Unmapped {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

/// What the choice depends on.
pub struct Circumstances {
    /// Who this process is.
    pub own_uid: u32,
    /// Its process id.
    pub pid: u32,
    /// `/proc/self/uid_map`.
    pub uid_map: String,
    /// `/proc/self/gid_map`.
    pub gid_map: String,
}

impl Circumstances {
    /// Those of this process.
    pub fn here() -> Circumstances {
        // A kernel without user namespaces has no maps: everybody exists.
        let read = |path| std::fs::read_to_string(path).unwrap_or_else(|_| "0 0 4294967295".into());
        Circumstances {
            // SAFETY: asks a number.
            own_uid: unsafe { libc::geteuid() },
            pid: std::process::id(),
            uid_map: read("/proc/self/uid_map"),
            gid_map: read("/proc/self/gid_map"),
        }
    }
}

impl Identity {
    /// Whom to become; `None` to stay what we are. A group that is not given has the number of the user.
    pub fn choose(uid: Option<u32>, gid: Option<u32>, here: &Circumstances) -> Result<Option<Identity>, IdentityError> {
        let exists = |it: Identity| is_mapped(&here.uid_map, it.uid) && is_mapped(&here.gid_map, it.gid);
        let asked = match (uid, gid) {
            (Some(uid), gid) => Some(Identity { uid, gid: gid.unwrap_or(uid) }),
            (None, Some(_)) => return Err(IdentityError::OnlyGroup),
            (None, None) => None,
        };
        match (asked, here.own_uid) {
            (None, 0) => {
                let own = Identity { uid: OWN_USER_BASE + here.pid, gid: OWN_USER_BASE + here.pid };
                let nobody = Identity { uid: NOBODY, gid: NOBODY };
                let Identity { uid, gid } = own;
                [own, nobody].into_iter().find(|it| exists(*it)).ok_or(IdentityError::Unmapped { uid, gid }).map(Some)
            }
            (None, _) => Ok(None),
            (Some(asked), 0) if asked.uid == 0 || asked.gid == 0 => Err(IdentityError::Root),
            (Some(asked), 0) if exists(asked) => Ok(Some(asked)),
            (Some(Identity { uid, gid }), 0) => Err(IdentityError::Unmapped { uid, gid }),
            (Some(_), own_uid) => Err(IdentityError::NotRoot(own_uid)),
        }
    }
}

/// Whether a `uid_map` or `gid_map` (first id inside, first id outside, count) has this id.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), _, Some(Ok(count))) => (first..first.saturating_add(count)).contains(&u64::from(id)),
            _ => false,
        }
    })
}

/// Makes the calling thread, and only it, the given user, without other groups and without capabilities. The C library's functions of
/// these names would change all threads; here each does it for itself, when its time has come.
pub(super) fn drop_privileges(identity: Option<&Identity>) -> Result<(), ConfineError> {
    // SAFETY: asks a number.
    let own_uid = unsafe { libc::geteuid() };
    if let Some(Identity { uid, gid }) = identity.filter(|identity| identity.uid != own_uid) {
        // While that is still allowed. Past the last capability there is: EINVAL.
        for capability in 0..64 {
            // SAFETY: numbers only.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                break;
            }
        }
        // SAFETY: an empty list needs no memory.
        check("giving up groups", unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
        // SAFETY: numbers only.
        check("taking the VM's own group", unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) })?;
        // SAFETY: numbers only. This takes the permitted, effective and ambient capabilities away, too.
        check("taking the VM's own user", unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) })?;
        // SAFETY: numbers only.
        if unsafe { libc::syscall(libc::SYS_setresuid, -1, 0, -1) } == 0 {
            return Err(step("the way back to root is open")(io::ErrorKind::Other.into()));
        }
        return Ok(());
    }
    if identity.is_none() {
        // Someone who is not root may have been given capabilities. Version 3 of the structures, for this thread, all sets empty.
        let header = [0x2008_0522u32, 0];
        let sets = [0u32; 6];
        // SAFETY: header and sets have the sizes of version 3.
        check("giving up capabilities", unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    }
    Ok(())
}

fn check(what: &'static str, result: libc::c_long) -> Result<(), ConfineError> {
    if result < 0 { Err(step(what)(io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(own_uid: u32, map: &str) -> Circumstances {
        Circumstances { own_uid, pid: 77, uid_map: map.into(), gid_map: map.into() }
    }

    const ALL: &str = "         0          0 4294967295\n";

    #[test]
    fn each_vm_of_root_gets_a_user_of_its_own() {
        let own = OWN_USER_BASE + 77;
        assert_eq!(Identity::choose(None, None, &here(0, ALL)), Ok(Some(Identity { uid: own, gid: own })));
        assert_eq!(Identity::choose(Some(5), None, &here(0, ALL)), Ok(Some(Identity { uid: 5, gid: 5 })));
        assert_eq!(Identity::choose(Some(5), Some(6), &here(0, ALL)), Ok(Some(Identity { uid: 5, gid: 6 })));
        assert_eq!(Identity::choose(None, None, &here(1000, ALL)), Ok(None));
    }

    #[test]
    fn a_small_user_namespace_has_nobody_at_least() {
        let nobody = Ok(Some(Identity { uid: 65534, gid: 65534 }));
        assert_eq!(Identity::choose(None, None, &here(0, "0 100000 65536\n")), nobody);
        assert!(matches!(Identity::choose(None, None, &here(0, "0 1000 1\n")), Err(IdentityError::Unmapped { .. })));
        assert_eq!(Identity::choose(Some(9), None, &here(0, "0 1 9\n")), Err(IdentityError::Unmapped { uid: 9, gid: 9 }));
    }

    #[test]
    fn impossible_wishes_are_refused_with_the_reason() {
        assert_eq!(Identity::choose(Some(5), None, &here(1000, ALL)), Err(IdentityError::NotRoot(1000)));
        assert_eq!(Identity::choose(Some(0), None, &here(0, ALL)), Err(IdentityError::Root));
        assert_eq!(Identity::choose(None, Some(5), &here(0, ALL)), Err(IdentityError::OnlyGroup));
    }
}
