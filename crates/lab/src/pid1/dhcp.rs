//! A DHCP client (RFC 2131), for a host whose management address comes from the network.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::net::{self, Ipv4Net, NetError};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Fixed fields before the options, the cookie included.
const FIXED: usize = 240;
/// Asks the server to broadcast its answer: a NIC without an address cannot receive another.
const BROADCAST_FLAG: u16 = 0x8000;
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// What a server that names no time is taken to mean.
const DEFAULT_LEASE: Duration = Duration::from_secs(3600);

mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const RESOLVER: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const WANTED: u8 = 55;
    pub const END: u8 = 255;
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What a server has lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The host's address.
    pub net: Ipv4Net,
    /// Default route.
    pub router: Option<Ipv4Addr>,
    /// Resolvers.
    pub resolvers: Vec<Ipv4Addr>,
    /// How long.
    pub time: Duration,
    server: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    transaction: u32,
    kind: u8,
    lease: Lease,
}

/// Asks the network of `nic`, which is on, for an address: `wanted` if there was a lease before.
///
/// # Errors
/// When no server answers in time or the kernel refuses.
pub fn ask(nic: &str, mac: [u8; 6], wanted: Option<&Lease>) -> io::Result<Lease> {
    let socket = open(nic)?;
    let transaction = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]) ^ std::process::id() ^ now_bits();
    let offer = match wanted {
        Some(lease) => lease.clone(),
        None => exchange(&socket, &message(transaction, mac, DISCOVER, None), transaction, OFFER)?,
    };
    exchange(&socket, &message(transaction, mac, REQUEST, Some(&offer)), transaction, ACK)
}

/// Gives the NIC its leased address and what came with it.
///
/// # Errors
/// When the kernel refuses.
pub fn apply(nic: &str, lease: &Lease) -> Result<(), NetError> {
    net::set_address(nic, lease.net)?;
    if let Some(router) = lease.router {
        // A renewal finds the route from before.
        if let Err(error) = net::add_default_route(router)
            && !matches!(&error, NetError::Request { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        {
            return Err(error);
        }
    }
    let resolvers: String = lease.resolvers.iter().map(|address| format!("nameserver {address}\n")).collect();
    std::fs::write("/etc/resolv.conf", resolvers).map_err(|source| NetError::Request {
        request: "write the resolvers of",
        nic: nic.to_owned(),
        source,
    })
}

fn now_bits() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos())
}

fn open(nic: &str) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    let name = CString::new(nic)?;
    // SAFETY: the pointer and the length describe the name with its zero, which lives through the call.
    let result = unsafe {
        let length = name.as_bytes_with_nul().len() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast(), length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.set_broadcast(true)?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket, message: &[u8], transaction: u32, kind: u8) -> io::Result<Lease> {
    socket.send_to(message, SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT))?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    let mut buffer = [0; 2048];
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no DHCP server answers"));
        }
        socket.set_read_timeout(Some(rest))?;
        let count = match socket.recv(&mut buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error),
        };
        match parse(&buffer[..count]) {
            Some(reply) if reply.transaction == transaction && reply.kind == kind => return Ok(reply.lease),
            Some(reply) if reply.transaction == transaction && reply.kind == NAK => {
                return Err(io::Error::other("the DHCP server refuses the address"));
            }
            _ => {}
        }
    }
}

fn message(transaction: u32, mac: [u8; 6], kind: u8, offer: Option<&Lease>) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    let (ethernet, address_length) = (1, 6);
    bytes[..3].copy_from_slice(&[BOOTREQUEST, ethernet, address_length]);
    bytes[4..8].copy_from_slice(&transaction.to_be_bytes());
    bytes[10..12].copy_from_slice(&BROADCAST_FLAG.to_be_bytes());
    bytes[28..34].copy_from_slice(&mac);
    bytes[236..240].copy_from_slice(&COOKIE);
    let mut add = |code: u8, value: &[u8]| {
        bytes.extend([code, value.len() as u8]);
        bytes.extend(value);
    };
    add(option::MESSAGE_TYPE, &[kind]);
    if let Some(offer) = offer {
        add(option::REQUESTED_ADDRESS, &offer.net.address.octets());
        add(option::SERVER, &offer.server.octets());
    }
    add(option::WANTED, &[option::MASK, option::ROUTER, option::RESOLVER, option::LEASE_TIME]);
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = &name.trim().as_bytes()[..name.trim().len().min(63)];
    if !name.is_empty() {
        add(option::HOST_NAME, name);
    }
    bytes.push(option::END);
    bytes
}

/// `None` for anything that is no usable reply.
fn parse(bytes: &[u8]) -> Option<Reply> {
    if bytes.len() < FIXED || bytes[0] != BOOTREPLY || bytes[236..240] != COOKIE {
        return None;
    }
    let transaction = u32::from_be_bytes(bytes[4..8].try_into().ok()?);
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).ok()?);
    let addresses = |value: &[u8]| value.as_chunks::<4>().0.iter().map(|&octets| Ipv4Addr::from(octets)).collect::<Vec<_>>();
    let (mut kind, mut prefix, mut time) = (None, 24, DEFAULT_LEASE);
    let (mut router, mut resolvers, mut server) = (None, Vec::new(), Ipv4Addr::UNSPECIFIED);
    let mut rest = &bytes[FIXED..];
    while let [code, tail @ ..] = rest {
        match (*code, tail) {
            (option::END, _) => break,
            (0, _) => rest = tail,
            (code, [length, tail @ ..]) => {
                let value = tail.get(..usize::from(*length))?;
                rest = &tail[usize::from(*length)..];
                match code {
                    option::MESSAGE_TYPE => kind = value.first().copied(),
                    option::MASK => prefix = u32::from_be_bytes(value.try_into().ok()?).leading_ones() as u8,
                    option::ROUTER => router = addresses(value).first().copied(),
                    option::RESOLVER => resolvers = addresses(value),
                    option::LEASE_TIME => time = Duration::from_secs(u32::from_be_bytes(value.try_into().ok()?).into()),
                    option::SERVER => server = addresses(value).first().copied()?,
                    _ => {}
                }
            }
            _ => return None,
        }
    }
    Some(Reply { transaction, kind: kind?, lease: Lease { net: Ipv4Net { address, prefix }, router, resolvers, time, server } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Vec<u8> {
        let mut bytes = message(7, [2, 0, 0, 0, 0, 1], ACK, None);
        bytes[0] = BOOTREPLY;
        bytes[16..20].copy_from_slice(&[10, 0, 2, 15]);
        bytes.pop();
        bytes.extend([
            option::MASK,
            4,
            255,
            255,
            254,
            0,
            option::ROUTER,
            4,
            10,
            0,
            2,
            2,
            0,
            option::RESOLVER,
            8,
            1,
            1,
            1,
            1,
            8,
            8,
            8,
            8,
        ]);
        bytes.extend([option::LEASE_TIME, 4, 0, 1, 0, 0, option::SERVER, 4, 10, 0, 2, 2, option::END]);
        bytes
    }

    #[test]
    fn a_lease_is_read_with_all_its_parts() {
        let reply = parse(&reply()).unwrap();
        assert_eq!((reply.transaction, reply.kind), (7, ACK));
        let lease = reply.lease;
        assert_eq!((lease.net.address, lease.net.prefix), (Ipv4Addr::new(10, 0, 2, 15), 23));
        assert_eq!((lease.router, lease.server), (Some(Ipv4Addr::new(10, 0, 2, 2)), Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(lease.resolvers, [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)]);
        assert_eq!(lease.time, Duration::from_secs(65536));
    }

    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_parser_panic(cut in 0usize..300, at in 0usize..300, byte: u8) {
            let mut bytes = reply();
            bytes.truncate(cut);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
