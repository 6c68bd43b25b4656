//! NICs through the classic `ioctl` interface: enough for static IPv4 addresses, without a netlink library.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;

/// Why a NIC could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a request.
    #[error("cannot {request} {nic}")]
    Request {
        /// What was asked of the kernel.
        request: &'static str,
        /// The NIC.
        nic: String,
        /// The cause.
        source: io::Error,
    },
    /// Not `A.B.C.D/PREFIX`.
    #[error("{0:?} is not an IPv4 address with prefix length, such as 10.0.2.15/24")]
    Address(String),
}

/// An IPv4 address with the length of its network prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
}

impl Ipv4Net {
    fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }
}

impl FromStr for Ipv4Net {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self, NetError> {
        let wrong = || NetError::Address(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let net = Ipv4Net { address: address.parse().map_err(|_| wrong())?, prefix: prefix.parse().map_err(|_| wrong())? };
        if net.prefix > 32 { Err(wrong()) } else { Ok(net) }
    }
}

/// A NIC of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The interface name.
    pub name: String,
    /// The MAC address, lower case with colons.
    pub mac: String,
}

/// All Ethernet NICs, in the order of their names.
pub fn nics() -> Vec<Nic> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut nics: Vec<Nic> = entries
        .filter(|entry| fs::read_to_string(entry.path().join("type")).is_ok_and(|kind| kind.trim() == "1"))
        .filter_map(|entry| {
            let mac = fs::read_to_string(entry.path().join("address")).ok()?.trim().to_owned();
            Some(Nic { name: entry.file_name().into_string().ok()?, mac })
        })
        .collect();
    nics.sort_by(|a, b| a.name.cmp(&b.name));
    nics
}

/// Sets the machine's name.
///
/// # Errors
/// When the kernel refuses.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `name`.
    match unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the NIC another name, if asked, and switches it on. A NIC can be renamed only while it is off.
///
/// # Errors
/// When the kernel refuses.
pub fn bring_up(nic: &str, rename_to: Option<&str>) -> Result<(), NetError> {
    let name = match rename_to {
        Some(new) if new != nic => {
            let mut request = named(nic);
            request.ifr_ifru.ifru_newname = named(new).ifr_name;
            call(libc::SIOCSIFNAME, &request, "rename", nic)?;
            new
        }
        _ => nic,
    };
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    call(libc::SIOCSIFFLAGS, &request, "switch on", name)
}

/// Gives a NIC its IPv4 address.
///
/// # Errors
/// When the kernel refuses.
pub fn set_address(nic: &str, net: Ipv4Net) -> Result<(), NetError> {
    let mut request = named(nic);
    request.ifr_ifru.ifru_addr = socket_address(net.address);
    call(libc::SIOCSIFADDR, &request, "set the address of", nic)?;
    request.ifr_ifru.ifru_netmask = socket_address(net.mask());
    call(libc::SIOCSIFNETMASK, &request, "set the netmask of", nic)
}

/// Sends everything without a better route through `gateway`.
///
/// # Errors
/// When the kernel refuses, for example because the gateway is not in any NIC's network.
pub fn add_default_route(gateway: Ipv4Addr) -> Result<(), NetError> {
    // SAFETY: rtentry is plain data for which all zeros is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    call(libc::SIOCADDRT, &route, "route through", &gateway.to_string())
}

fn named(nic: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name ends there at the latest.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(nic.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(|byte| byte as libc::c_char);
    // sockaddr_in: two bytes of port, then the address.
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&[a, b, c, d]);
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

fn call<T>(number: libc::c_ulong, argument: &T, request: &'static str, nic: &str) -> Result<(), NetError> {
    let failed = || NetError::Request { request, nic: nic.to_owned(), source: io::Error::last_os_error() };
    // SAFETY: socket takes no pointers; the descriptor is checked before it is owned.
    let socket = unsafe {
        let raw = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            return Err(failed());
        }
        OwnedFd::from_raw_fd(raw)
    };
    // SAFETY: every request used here reads exactly the structure the caller passes and lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number as _, argument as *const T) } {
        0 => Ok(()),
        _ => Err(failed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_prefix_parse_and_others_are_refused() {
        let net: Ipv4Net = "10.1.0.7/24".parse().unwrap();
        assert_eq!((net.address, net.mask()), (Ipv4Addr::new(10, 1, 0, 7), Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!("0.0.0.0/0".parse::<Ipv4Net>().unwrap().mask(), Ipv4Addr::UNSPECIFIED);
        for wrong in ["10.0.0.1", "10.0.0.1/33", "10.0.0/8", "/8", ""] {
            assert!(wrong.parse::<Ipv4Net>().is_err(), "{wrong:?}");
        }
    }
}
