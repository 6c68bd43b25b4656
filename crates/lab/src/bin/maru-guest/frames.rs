//! Single Ethernet frames, for tests of what is between hosts.
//!
//! Each line `NIC HEX` of standard input is a frame that goes out through a NIC; each line `NIC HEX` of standard output is one that came in,
//! with its tag. All that comes is told in the order in which it came, whichever NIC it came through.

use std::ffi::CString;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

/// How long whoever has the other end of a TAP may take to read a frame.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest frame, a large segment.
const LONGEST: usize = 64 << 10;
/// Where a tag is: behind the addresses.
const TAG: usize = 12;
/// Bytes of frames that wait to be told.
const WAITING: libc::c_int = 8 << 20;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sends and tells until standard input ends.
pub fn run(nics: &[&str]) -> io::Result<()> {
    let nics: Vec<(String, u32)> = nics.iter().map(|nic| Ok((nic.to_string(), index(nic)?))).collect::<io::Result<_>>()?;
    let socket = open()?;
    let (fd, heard) = (socket.as_raw_fd(), nics.clone());
    println!("ready");
    thread::spawn(move || {
        if let Err(error) = tell(fd, &heard) {
            println!("maru-guest: FAIL receiving frames: {error}");
        }
    });
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (nic, bytes) = line.split_once(' ').ok_or_else(|| io::Error::other("a line is NIC HEX"))?;
        let (_, index) = nics.iter().find(|(name, _)| name == nic).ok_or_else(|| io::Error::other("a NIC that was not named"))?;
        send(fd, nic, *index, &parse(bytes)?)?;
    }
    Ok(())
}

fn index(nic: &str) -> io::Result<u32> {
    let name = CString::new(nic)?;
    // SAFETY: a C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// A socket for all frames of all NICs, which says what tags they had.
fn open() -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for (level, option, value) in [(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, WAITING)]
    {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads one number.
        check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) })?;
    }
    Ok(socket)
}

/// Sends a frame, and waits until it was taken: what is sent next comes after it, through whatever NIC.
fn send(fd: RawFd, nic: &str, index: u32, frame: &[u8]) -> io::Result<()> {
    // A TAP counts a frame when it is read.
    let taken = || -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/sys/class/net/{nic}/statistics/tx_packets"))?;
        text.trim().parse().map_err(io::Error::other)
    };
    let before = taken()?;
    // SAFETY: all zeroes are an address.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (to.sll_family, to.sll_ifindex) = (libc::AF_PACKET as u16, index as i32);
    let size = size_of_val(&to) as libc::socklen_t;
    // SAFETY: the frame and the address are valid, with their lengths.
    let sent = unsafe { libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let deadline = Instant::now() + PATIENCE;
    while taken()? == before {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("nobody takes frames from {nic}")));
        }
        thread::yield_now();
    }
    Ok(())
}

/// Prints what comes in.
fn tell(fd: RawFd, nics: &[(String, u32)]) -> io::Result<()> {
    let mut out = io::stdout();
    let mut room = vec![0u8; LONGEST];
    loop {
        let (mut frame, from) = receive(fd, &mut room)?;
        let nic = nics.iter().find(|(_, index)| *index == from.sll_ifindex as u32);
        let Some((nic, _)) = nic.filter(|_| from.sll_pkttype != libc::PACKET_OUTGOING) else { continue };
        frame.splice(TAG..TAG, from.tag.into_iter().flat_map(|(kind, tag)| [kind.to_be_bytes(), tag.to_be_bytes()].concat()));
        let digits: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "{nic} {digits}")?;
        out.flush()?;
    }
}

/// Where a frame comes from, and the tag that the kernel has taken out of it.
struct Origin {
    sll_ifindex: i32,
    sll_pkttype: u8,
    tag: Option<(u16, u16)>,
}

fn receive(fd: RawFd, room: &mut [u8]) -> io::Result<(Vec<u8>, Origin)> {
    // Aligned as a control message's header has to be.
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: all zeroes are an address, and a message without parts.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as libc::socklen_t;
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: what the message points to is valid for the call, with its lengths.
    let count = unsafe { libc::recvmsg(fd, &raw mut message, 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut tag = None;
    // SAFETY: the kernel has filled in the message and its control messages, which are walked with its macros.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
                let is_valid = data.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
                tag = is_valid.then_some((data.tp_vlan_tpid, data.tp_vlan_tci));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((room[..count].to_vec(), Origin { sll_ifindex: from.sll_ifindex, sll_pkttype: from.sll_pkttype, tag }))
}

fn parse(digits: &str) -> io::Result<Vec<u8>> {
    let pairs =
        digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    pairs.collect::<Option<_>>().ok_or_else(|| io::Error::other("a frame is hexadecimal digits"))
}
