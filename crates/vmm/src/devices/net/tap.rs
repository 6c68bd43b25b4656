//! TAP interfaces: opening them, and what the kernel is asked for.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::features::{self, HEADER_BYTES};

const TUN_PATH: &str = "/dev/net/tun";

/// Why a TAP could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no TUN driver to talk to.
    #[error("{TUN_PATH} does not exist: load the kernel module tun, or make the device visible to this process")]
    NoTun,
    /// The process may not open the TUN driver.
    #[error("no permission to open {TUN_PATH}: let the monitor's user open it, or hand in an open TAP")]
    TunPermission,
    /// Opening the TUN driver failed in another way.
    #[error("cannot open {TUN_PATH}")]
    Open(#[source] io::Error),
    /// A name that no interface can have.
    #[error("{0:?} is no interface name: 1 to 15 bytes without '/' and white space")]
    Name(String),
    /// No such interface.
    #[error("there is no interface {0}: create it with `ip tuntap add dev {0} mode tap user <user>`")]
    NoInterface(String),
    /// The interface belongs to someone else.
    #[error("no permission to use the interface {0}: make the monitor's user its owner, or hand in an open TAP")]
    Permission(String),
    /// Another process has all queues of the interface open.
    #[error("the interface {0} is in use by another process: stop that one, or give the VM a TAP of its own")]
    Busy(String),
    /// The interface is of another kind.
    #[error("the interface {name} is not a TAP {}", if *.pairs > 1 { "with several queues: create it with `multi_queue`" } else { "" })]
    WrongKind {
        /// The interface.
        name: String,
        /// How many queue pairs were wanted.
        pairs: u16,
    },
    /// A descriptor that was handed in is not what it should be.
    #[error("the descriptor handed in as queue {queue} of the TAP is not one: {reason}")]
    Descriptor {
        /// Which of the descriptors.
        queue: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kernel refused something.
    #[error("cannot {what} on the TAP")]
    Ioctl {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The number of descriptors is not the number of queue pairs.
    #[error("{given} descriptors handed in for {pairs} queue pairs")]
    Count {
        /// How many there are.
        given: usize,
        /// How many there should be.
        pairs: u16,
    },
}

/// One queue of the host's side: an open TAP queue, or another descriptor that passes header and frame in one datagram.
#[derive(Debug)]
pub struct FrameQueue {
    file: File,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tap,
    Datagram,
}

impl AsFd for FrameQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameQueue {
    /// Takes a datagram descriptor.
    pub fn from_datagram(fd: OwnedFd) -> Result<FrameQueue, TapError> {
        set_nonblocking(fd.as_fd())?;
        Ok(FrameQueue { file: File::from(fd), kind: Kind::Datagram })
    }

    /// Takes an open TAP queue and checks that it is one.
    pub fn from_tap(fd: OwnedFd, queue: usize) -> Result<FrameQueue, TapError> {
        let file = File::from(fd);
        let mut request = empty_request();
        ioctl_request(&file, libc::TUNGETIFF, &mut request)
            .map_err(|_| TapError::Descriptor { queue, reason: "the TUN driver does not know it" })?;
        // SAFETY: TUNGETIFF filled in the flags, and every bit pattern is a valid c_short.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(TapError::Descriptor { queue, reason: "it was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR" });
        }
        set_nonblocking(file.as_fd())?;
        set_header_size(&file)?;
        Ok(FrameQueue { file, kind: Kind::Tap })
    }

    /// Another handle on the same queue.
    pub fn try_clone(&self) -> io::Result<FrameQueue> {
        Ok(FrameQueue { file: self.file.try_clone()?, kind: self.kind })
    }

    /// Which host-side offloads there are: all that the guest may send. Only a kernel's view on UFO differs.
    pub fn has_ufo(&self) -> bool {
        match self.kind {
            Kind::Datagram => true,
            Kind::Tap => {
                let had_ufo = self.set_offload_bits(libc::TUN_F_CSUM | libc::TUN_F_UFO).is_ok();
                had_ufo & self.set_offload_bits(0).is_ok()
            }
        }
    }

    /// Tells the kernel which of [`features::GUEST_OFFLOADS`] the guest can take.
    pub fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        if self.kind == Kind::Datagram {
            return Ok(());
        }
        let table = [
            (features::GUEST_TSO4, libc::TUN_F_TSO4),
            (features::GUEST_TSO6, libc::TUN_F_TSO6),
            (features::GUEST_ECN, libc::TUN_F_TSO_ECN),
            (features::GUEST_UFO, libc::TUN_F_UFO),
        ];
        let mut bits = 0;
        // Without checksum offload there is none of the others (virtio 1.2 §5.1.3.1).
        if offloads & (1 << features::GUEST_CSUM) != 0 {
            bits = libc::TUN_F_CSUM;
            bits |= table.iter().filter(|(bit, _)| offloads & (1 << bit) != 0).fold(0, |sum, (_, flag)| sum | flag);
        }
        self.set_offload_bits(bits)
    }

    fn set_offload_bits(&self, bits: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(bits)) })
    }

    /// Lets the kernel use this queue for flows towards the guest, or not.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        if self.kind == Kind::Datagram {
            return Ok(());
        }
        let mut request = empty_request();
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        match ioctl_request(&self.file, libc::TUNSETQUEUE, &mut request) {
            // It already is as wanted, or the interface has a single queue.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }
}

/// Opens `pairs` queues of the TAP called `name`.
pub fn open(name: &str, pairs: u16) -> Result<Vec<FrameQueue>, TapError> {
    let valid = (1..=15).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == '\0' || c.is_whitespace());
    let c_name = CString::new(name).ok().filter(|_| valid).ok_or_else(|| TapError::Name(name.to_owned()))?;
    // Before TUNSETIFF, which would create the interface: a misspelt name must not become a new one.
    // SAFETY: `c_name` is a C string.
    if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
        return Err(TapError::NoInterface(name.to_owned()));
    }
    (0..pairs).map(|_| open_queue(name, &c_name, pairs)).collect()
}

fn open_queue(name: &str, c_name: &CString, pairs: u16) -> Result<FrameQueue, TapError> {
    let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(TUN_PATH);
    let base = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let attach = |flags: libc::c_int| -> Result<io::Result<File>, TapError> {
        let file = open().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TapError::NoTun,
            io::ErrorKind::PermissionDenied => TapError::TunPermission,
            _ => TapError::Open(error),
        })?;
        let mut request = empty_request();
        for (to, from) in request.ifr_name.iter_mut().zip(c_name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        Ok(ioctl_request(&file, libc::TUNSETIFF, &mut request).map(|()| file))
    };
    let several = base | libc::IFF_MULTI_QUEUE;
    let mut result = attach(if pairs > 1 { several } else { base })?;
    // The flag must be as the interface was created, and one queue of a multi-queue TAP is as good as any.
    if pairs == 1 && result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
        result = attach(several)?;
    }
    let file = result.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.to_owned()),
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.to_owned()),
        Some(libc::EINVAL) => TapError::WrongKind { name: name.to_owned(), pairs },
        _ => TapError::Ioctl { what: "attach a queue", source: error },
    })?;
    set_header_size(&file)?;
    Ok(FrameQueue { file, kind: Kind::Tap })
}

fn set_header_size(file: &File) -> Result<(), TapError> {
    let size = HEADER_BYTES as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one c_int, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const size) })
        .map_err(|source| TapError::Ioctl { what: "set the header size", source })
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), TapError> {
    let error = |source| TapError::Ioctl { what: "make reads non-blocking", source };
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags).map_err(error)?;
    // SAFETY: F_SETFL takes a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map_err(error)
}

fn empty_request() -> libc::ifreq {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    unsafe { std::mem::zeroed() }
}

fn ioctl_request(file: &File, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the requests this is called with read and write one `ifreq`, which is borrowed exclusively.
    check(unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_mut(request)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
