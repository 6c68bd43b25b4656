//! What the switches need of the host's interfaces: that NICs are up, and that the host has its interfaces and addresses.

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::records::{Cause, SwitchKindRecord};

/// An address of an interface with the length of its prefix.
pub fn parse_address(text: &str) -> Result<(IpAddr, u8), Cause> {
    let parts =
        text.split_once('/').and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)));
    let parts = parts.filter(|(address, length)| *length > 0 && *length <= if address.is_ipv4() { 32 } else { 128 });
    let parts = parts.filter(|(address, _)| !(address.is_unspecified() || address.is_multicast() || address.is_loopback()));
    parts.ok_or_else(|| {
        Cause::new(
            "bad-switch",
            format!("'{text}' is no address of a host"),
            "write one with the length of its prefix, like 10.20.0.1/24",
        )
    })
}

/// Sees to it that the host's side of a switch is as it is to be; its port is there.
pub fn set_up(kind: &SwitchKindRecord) -> Result<(), Cause> {
    let failed = |what: &str, name: &str, error: io::Error| {
        let message = format!("{what} {name}: {error}");
        Cause::new("interface", message, "see `ip link`; marud must be root for this")
    };
    // One that is not there must not keep the others of its team off.
    let up = kind.interfaces().into_iter().map(|name| bring_up(name).map_err(|error| failed("cannot switch on", name, error)));
    up.fold(Ok(()), Result::and)?;
    if let SwitchKindRecord::Internal { interface, address: Some(address) } = kind {
        let (address, length) = parse_address(address)?;
        set_address(interface, address, length).map_err(|error| failed("cannot set the address of", interface, error))?;
    }
    Ok(())
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn named(interface: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name ends there at the latest.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Makes a request about an interface, which the kernel may fill in.
fn call<T>(fd: RawFd, number: libc::c_ulong, request: &mut T) -> io::Result<()> {
    // SAFETY: all numbers used here take a pointer to the structure that is passed with them, which lives through the call.
    check(unsafe { libc::ioctl(fd, number as _, std::ptr::from_mut(request)) }).map(drop)
}

fn bring_up(interface: &str) -> io::Result<()> {
    let socket = socket(libc::AF_INET)?;
    let mut request = named(interface);
    call(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled it in.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & libc::IFF_UP as libc::c_short != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request)
}

fn set_address(interface: &str, address: IpAddr, length: u8) -> io::Result<()> {
    match address {
        IpAddr::V4(address) => {
            let socket = socket(libc::AF_INET)?;
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            for (number, value) in [(libc::SIOCSIFADDR, address.to_bits()), (libc::SIOCSIFNETMASK, mask)] {
                let mut request = named(interface);
                request.ifr_ifru.ifru_addr = socket_address(value);
                call(socket.as_raw_fd(), number as _, &mut request)?;
            }
            Ok(())
        }
        IpAddr::V6(address) => {
            let socket = socket(libc::AF_INET6)?;
            let mut index = named(interface);
            call(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &mut index)?;
            // SAFETY: SIOCGIFINDEX filled it in.
            let index = unsafe { index.ifr_ifru.ifru_ifindex };
            let address = libc::in6_addr { s6_addr: address.octets() };
            let mut request = libc::in6_ifreq { ifr6_addr: address, ifr6_prefixlen: length.into(), ifr6_ifindex: index };
            match call(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &mut request) {
                // It has it already.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                set => set,
            }
        }
    }
}

/// An IPv4 address as the kernel has it.
fn socket_address(address: u32) -> libc::sockaddr {
    let [a, b, c, d] = address.to_be_bytes().map(|byte| byte as libc::c_char);
    // sockaddr_in: two bytes of port, then the address.
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&[a, b, c, d]);
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// Removes an interface of the host that was made for a switch, when that has let it go.
pub fn remove_interface(interface: &str) -> io::Result<()> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = named(interface);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    call(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request)?;
    // SAFETY: a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hosts_have_prefixes() {
        assert_eq!(parse_address("10.20.0.1/24").unwrap(), ("10.20.0.1".parse().unwrap(), 24));
        assert_eq!(parse_address("fd00::1/64").unwrap(), ("fd00::1".parse().unwrap(), 64));
        for wrong in ["10.20.0.1", "10.20.0.1/33", "10.20.0.1/0", "0.0.0.0/8", "224.0.0.1/4", "::1/128", "x/8", "fd00::1/129"] {
            assert_eq!(parse_address(wrong).unwrap_err().code, "bad-switch", "{wrong}");
        }
    }
}
