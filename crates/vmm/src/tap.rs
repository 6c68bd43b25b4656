//! Opening the queues of a TAP, to hand them to a monitor.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const TUN_PATH: &str = "/dev/net/tun";

/// Why a TAP could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The driver.
    #[error("cannot open {TUN_PATH}: load the kernel module tun, or have its permissions changed")]
    Driver(#[source] io::Error),
    /// A name that no interface can have.
    #[error("{0:?} is no interface name: 1 to 15 bytes without '/' and white space")]
    Name(String),
    /// No such interface.
    #[error("there is no interface {0}: create it with `ip tuntap add dev {0} mode tap user $USER`")]
    NoInterface(String),
    /// The interface belongs to someone else.
    #[error("no permission to use the interface {0}: create it with `user` and your name, or run this command as its owner")]
    Permission(String),
    /// All queues are taken.
    #[error("the interface {0} is in use by another process: stop that one, or use a TAP of its own")]
    Busy(String),
    /// Not a TAP, or not one with several queues.
    #[error("the interface {name} is not a TAP {}", if *.queues > 1 { "with several queues: create it with `multi_queue`" } else { "" })]
    WrongKind {
        /// The interface.
        name: String,
        /// How many queues were wanted.
        queues: u16,
    },
    /// Anything else.
    #[error("cannot attach a queue of the interface {name}")]
    Attach {
        /// The interface.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Opens `queues` queues of the TAP called `name`, in the form in which monitors take them.
pub fn open_tap(name: &str, queues: u16) -> Result<Vec<File>, TapError> {
    let valid = (1..=15).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == '\0' || c.is_whitespace());
    let c_name = CString::new(name).ok().filter(|_| valid).ok_or_else(|| TapError::Name(name.into()))?;
    // TUNSETIFF would create the interface: a misspelt name must not become a new one.
    // SAFETY: `c_name` is a C string.
    if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
        return Err(TapError::NoInterface(name.into()));
    }
    (0..queues).map(|_| open_queue(name, &c_name, queues)).collect()
}

fn open_queue(name: &str, c_name: &CString, queues: u16) -> Result<File, TapError> {
    let base = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let several = base | libc::IFF_MULTI_QUEUE;
    let first = attach(c_name, if queues > 1 { several } else { base })?;
    let result = match first {
        // The flag must be as the interface was created, and one queue of a TAP with several is as good as any.
        Err(error) if queues == 1 && error.raw_os_error() == Some(libc::EINVAL) => attach(c_name, several)?,
        other => other,
    };
    result.map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.into()),
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.into()),
        Some(libc::EINVAL) => TapError::WrongKind { name: name.into(), queues },
        _ => TapError::Attach { name: name.into(), source },
    })
}

fn attach(name: &CString, flags: libc::c_int) -> Result<io::Result<File>, TapError> {
    let file = OpenOptions::new().read(true).write(true).open(TUN_PATH).map_err(TapError::Driver)?;
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    Ok(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_or_are_not_there_create_nothing() {
        for name in ["", "a/b", "a b", "sixteen-bytes-xx"] {
            assert!(matches!(open_tap(name, 1), Err(TapError::Name(_))), "{name:?}");
        }
        let error = open_tap("maru-none", 1).unwrap_err();
        assert!(error.to_string().contains("ip tuntap add dev maru-none"));
    }
}
