//! The kernel's messages about interfaces (rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::mac::MacAddress;

const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;
/// More than one datagram of the kernel (NLMSG_GOODSIZE is below 32 KiB).
const BUFFER: usize = 64 << 10;
/// The bit of RTNLGRP_LINK in an address.
const GROUP_LINK: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which no other one gets.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address; zeros if it has none of six bytes.
    pub mac: MacAddress,
    /// The longest packet in bytes.
    pub mtu: u32,
    /// Switched on, and somebody at the other end.
    pub is_up: bool,
}

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An interface is there, or has changed.
    Link(Link),
    /// An interface is no longer there.
    Gone(u32),
    /// The host has an address on an interface, by which others than its neighbours reach it.
    Address(u32),
    /// All has been said that was asked for.
    Done,
    /// What was asked for is refused.
    Refused(i32),
}

/// Reads the messages of a datagram; what is none of them, or cut off, is left out.
pub fn parse(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = word(bytes, 0).map(|length| length as usize)
        && let Some(message) = bytes.get(..length).filter(|_| length >= HEADER_BYTES)
    {
        let kind = i32::from(u16::from_ne_bytes([message[4], message[5]]));
        let body = &message[HEADER_BYTES..];
        messages.extend(match kind {
            _ if kind == i32::from(libc::RTM_NEWLINK) => link(body).map(Message::Link),
            _ if kind == i32::from(libc::RTM_DELLINK) => word(body, 4).map(Message::Gone),
            // What IPv6 gives every interface is not what makes it the host's.
            _ if kind == i32::from(libc::RTM_NEWADDR) => {
                word(body, 4).filter(|_| body[3] < libc::RT_SCOPE_LINK).map(Message::Address)
            }
            libc::NLMSG_DONE => Some(Message::Done),
            libc::NLMSG_ERROR => word(body, 0).map(|error| Message::Refused((error as i32).wrapping_neg())),
            _ => None,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn link(body: &[u8]) -> Option<Link> {
    let (index, flags) = (word(body, 4)?, word(body, 8)?);
    // With a carrier, but not yet running, its queue still drops everything.
    let wanted = (libc::IFF_UP | libc::IFF_RUNNING) as u32 | IFF_LOWER_UP;
    let is_up = flags & wanted == wanted;
    let mut link = Link { index, name: String::new(), mac: MacAddress([0; 6]), mtu: 0, is_up };
    let mut rest = body.get(LINK_BYTES..)?;
    while let Some(&[a, b, c, d]) = rest.first_chunk() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let Some(value) = rest.get(4..length) else { break };
        match kind {
            libc::IFLA_IFNAME => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            libc::IFLA_ADDRESS => link.mac = value.try_into().map_or(link.mac, MacAddress),
            libc::IFLA_MTU => link.mtu = word(value, 0)?,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(link)
}

/// A way to ask the kernel and to be told.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// One that is told of every change.
    pub fn listen() -> io::Result<Socket> {
        Socket::open(GROUP_LINK)
    }

    fn open(groups: u32) -> io::Result<Socket> {
        // SAFETY: numbers only.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        let size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the address is valid and of that size.
        match unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) } {
            0 => Ok(Socket { fd, buffer: vec![0; BUFFER] }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for the kernel's next datagram. An error `ENOBUFS` says that some were lost.
    pub fn receive(&mut self) -> io::Result<Vec<Message>> {
        // SAFETY: all zeroes are a valid address.
        let mut sender: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        let (buffer, length) = (self.buffer.as_mut_ptr().cast(), self.buffer.len());
        // SAFETY: buffer and address are of the sizes that are given.
        let count = unsafe { libc::recvfrom(self.fd.as_raw_fd(), buffer, length, 0, (&raw mut sender).cast(), &raw mut size) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        // Other programs may send here, too.
        Ok(if sender.nl_pid == 0 { parse(&self.buffer[..count]) } else { Vec::new() })
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// All interfaces.
pub fn list() -> io::Result<Vec<Link>> {
    let messages = dump(libc::RTM_GETLINK)?.into_iter();
    Ok(messages.filter_map(|message| if let Message::Link(link) = message { Some(link) } else { None }).collect())
}

/// Whether the host has an address on an interface, by which others than its neighbours reach it.
pub fn has_address(index: u32) -> io::Result<bool> {
    Ok(dump(libc::RTM_GETADDR)?.contains(&Message::Address(index)))
}

fn dump(what: u16) -> io::Result<Vec<Message>> {
    let mut socket = Socket::open(0)?;
    // All zeroes are no restriction; an address's header is shorter than a link's.
    let mut request = [0u8; HEADER_BYTES + LINK_BYTES];
    request[..4].copy_from_slice(&((HEADER_BYTES + LINK_BYTES) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&what.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // SAFETY: the kernel reads as many bytes as there are.
    if unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = Vec::new();
    loop {
        for message in socket.receive()? {
            match message {
                Message::Link(_) | Message::Address(_) => all.push(message),
                Message::Gone(_) => {}
                Message::Done => return Ok(all),
                Message::Refused(error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_machine_has_a_loopback() {
        let links = list().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(loopback.index > 0 && loopback.mtu > 0 && loopback.mac == MacAddress([0; 6]), "{loopback:?}");
    }

    proptest! {
        #[test]
        fn any_datagram_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), is_link in any::<bool>()) {
            if is_link && bytes.len() >= 6 {
                let length = bytes.len() as u32;
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
                bytes[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
            }
            parse(&bytes);
        }
    }
}
