//! Ports of the kernel: a TAP for the host itself, and a NIC as the uplink.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;

use super::packet::Packet;
use super::vnet::{LONG, SHORT, Vnet};
use crate::counters::DropReason;
use crate::frame::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::ring::split::Segment;

/// The most pieces that the kernel takes at once.
const MAX_PIECES: usize = 1024;
/// More than any frame with its header: one read takes all of it.
const BUFFER: usize = LONG + HEADER_BYTES + MAX_FRAME_BYTES;
/// What the kernel may keep of a NIC's frames until the switch reads them: some milliseconds at 10 Gb/s.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// Why a port of the kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FdPortError {
    /// A name that no interface can have.
    #[error("'{0}' is no interface name: 1 to 15 bytes without '/' and white space")]
    Name(String),
    /// The kernel refused something.
    #[error("cannot {what} {name}{hint}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// With which interface.
        name: String,
        /// What may help.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tap,
    Packet,
}

/// A descriptor that passes frames.
#[derive(Debug)]
pub struct FdPort {
    file: File,
    kind: Kind,
    buffer: Box<[u8]>,
    spill: [u8; 4],
    iovecs: Vec<libc::iovec>,
    /// Whether there may be something to read.
    pub ready: bool,
    /// Whether it waits for bandwidth.
    pub held: bool,
}

// SAFETY: the iovecs are only filled and used within one call.
unsafe impl Send for FdPort {}

/// Checks a system call's result.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_option<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is of that size, and the kernel only reads it.
    check(unsafe { libc::setsockopt(fd, level, option, ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t) })
        .map(drop)
}

fn request(name: &str) -> Result<libc::ifreq, FdPortError> {
    let is_good =
        (1..libc::IFNAMSIZ).contains(&name.len()) && !name.bytes().any(|b| b == b'/' || b == 0 || b.is_ascii_whitespace());
    if !is_good {
        return Err(FdPortError::Name(name.into()));
    }
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// What to make of the kernel's refusal.
fn failed(name: &str, what: &'static str, hint: &'static str) -> impl FnOnce(io::Error) -> FdPortError {
    let name = name.to_owned();
    move |source| FdPortError::Kernel { what, name, hint, source }
}

/// A packet socket, which receives nothing yet.
fn packet_socket(name: &str) -> Result<File, FdPortError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: numbers only; without a protocol nothing is received yet.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map_err(failed(
        name,
        "open a packet socket for",
        ": the switch needs CAP_NET_RAW",
    ))?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn hear_everything(socket: &File, name: &str, index: u32) -> Result<(), FdPortError> {
    let member = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let added = set_option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member);
    added.map_err(failed(name, "hear everything on", ""))
}

impl FdPort {
    fn new(file: File, kind: Kind) -> FdPort {
        FdPort { file, kind, buffer: vec![0; BUFFER].into(), spill: [0; 4], iovecs: Vec::new(), ready: true, held: false }
    }

    /// Opens a TAP; makes it if there is none. It stays when the switch ends, with the addresses that the host gave it.
    pub fn tap(name: &str) -> Result<FdPort, FdPortError> {
        let mut request = request(name)?;
        let failed = |what, hint| failed(name, what, hint);
        let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = open.map_err(failed(
            "open /dev/net/tun for",
            ": load the kernel module tun before the switch starts, or let the switch's user open it",
        ))?;
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let fd = file.as_raw_fd();
        // SAFETY: the request is valid, and the kernel writes within it.
        let made = check(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) });
        made.map_err(failed("open the TAP", ": is it in use, or has the switch no right to make it (CAP_NET_ADMIN)?"))?;
        let header = LONG as libc::c_int;
        // SAFETY: the kernel reads an int.
        let sized = check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header) });
        sized.map_err(failed("set the header of", ""))?;
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // SAFETY: a number.
        check(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
            .map_err(failed("set the offloads of", ""))?;
        // SAFETY: a number.
        check(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1) }).map_err(failed("keep", ""))?;
        Ok(FdPort::new(file, Kind::Tap))
    }

    /// Listens at a NIC, by its name and index. Everything that it receives comes in, for whomever; what this host's own programs send
    /// through it does not.
    pub fn nic(name: &str, index: u32) -> Result<FdPort, FdPortError> {
        let failed = |what, hint| failed(name, what, hint);
        let file = packet_socket(name)?;
        let fd = file.as_raw_fd();
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
            set_option(fd, libc::SOL_PACKET, option, &1).map_err(failed("set up the packet socket of", ""))?;
        }
        // Beyond the system's limit if the switch may; as far as that goes if not.
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)
            .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER))
            .map_err(failed("size the packet socket of", ""))?;
        hear_everything(&file, name, index)?;
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as libc::c_ushort;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as libc::c_int;
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is valid and of that size.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), size) }).map_err(failed("bind to", ""))?;
        Ok(FdPort::new(file, Kind::Packet))
    }

    /// Has a NIC receive what is for others, too, as long as the file is there. Nothing is read from it.
    pub fn promiscuous(name: &str, index: u32) -> Result<File, FdPortError> {
        let file = packet_socket(name)?;
        hear_everything(&file, name, index)?;
        Ok(file)
    }

    /// How many frames of a NIC the kernel had no room for since the last time.
    pub fn take_losses(&self) -> u64 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let target = (&raw mut statistics).cast();
        // SAFETY: the kernel writes as much as there is room for.
        let got = unsafe { libc::getsockopt(self.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, target, &raw mut size) };
        if got == 0 { statistics.tp_drops.into() } else { 0 }
    }

    fn vnet_bytes(&self) -> usize {
        match self.kind {
            Kind::Tap => LONG,
            Kind::Packet => SHORT,
        }
    }

    /// Reads the next frame into `packet`, which refers to this port's buffer until the next call. `None` if there is none now.
    pub fn read(&mut self, packet: &mut Packet) -> Option<Result<(), DropReason>> {
        let mut iovec = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        // Aligned as control messages must be.
        let mut control = [0u64; 16];
        // SAFETY: all zeroes are a valid msghdr, which is then filled in.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut iovec;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let fd = self.file.as_raw_fd();
        // SAFETY: one buffer of the given length; the message refers to live memory only.
        let mut receive = || unsafe {
            match self.kind {
                Kind::Tap => libc::readv(fd, &raw const iovec, 1),
                Kind::Packet => libc::recvmsg(fd, &raw mut message, 0),
            }
        };
        let count = loop {
            if let Ok(count) = usize::try_from(receive()) {
                break count;
            }
            match (self.kind, io::Error::last_os_error().raw_os_error()) {
                // Said once when a NIC goes down. What it received before, and will when it is up again, comes as ever.
                (Kind::Packet, Some(libc::ENETDOWN)) => {}
                // A frame that was merged in a way that the header has no word for. It is gone.
                (Kind::Packet, Some(libc::EINVAL)) => return Some(Err(DropReason::Buffer)),
                // Empty, or without a link; the latter becomes readable again when there is one.
                _ => {
                    self.ready = false;
                    return None;
                }
            }
        };
        // SAFETY: the buffer stays until the port goes, which is after the packet's last use.
        let taken = unsafe { packet.take(&[Segment::of(&self.buffer[..count])], self.vnet_bytes()) };
        if let (Ok(()), Kind::Packet) = (taken, self.kind)
            && let Some((kind, value)) = tag_of(&message)
        {
            packet.restore_tag(kind, value, &mut self.spill);
        }
        Some(taken)
    }

    /// Writes a frame.
    pub fn write(&mut self, vnet: &Vnet, pieces: &[Segment]) -> Result<(), DropReason> {
        let header = vnet.bytes(0);
        self.iovecs.clear();
        self.iovecs.push(Segment::of(&header[..self.vnet_bytes()]).iovec());
        self.iovecs.extend(pieces.iter().map(Segment::iovec));
        if self.iovecs.len() > MAX_PIECES {
            return Err(DropReason::NotTaken);
        }
        // SAFETY: the header lives, and the pieces do as long as the packet is passed on.
        let count = unsafe { libc::writev(self.file.as_raw_fd(), self.iovecs.as_ptr(), self.iovecs.len() as libc::c_int) };
        if count >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Err(DropReason::NoBuffer),
            _ => Err(DropReason::NotTaken),
        }
    }
}

impl AsRawFd for FdPort {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The VLAN tag that the kernel took out of a frame: type and control word.
fn tag_of(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the message was filled in by recvmsg, and its control buffer lives; CMSG_FIRSTHDR checks that there is one.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(message);
        if first.is_null() || (*first).cmsg_level != libc::SOL_PACKET || (*first).cmsg_type != libc::PACKET_AUXDATA {
            return None;
        }
        let data: libc::tpacket_auxdata = libc::CMSG_DATA(first).cast::<libc::tpacket_auxdata>().read_unaligned();
        if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
            return None;
        }
        let has_type = data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
        Some((if has_type { data.tp_vlan_tpid } else { 0x8100 }, data.tp_vlan_tci))
    }
}
