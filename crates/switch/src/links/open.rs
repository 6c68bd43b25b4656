//! Opening a NIC in the way that is asked for, or in the best that it has.

use super::netlink::{self, Link};
use super::{LinkError, ethtool};
use crate::ports::fd::FdPort;
use crate::ports::nic::NicPort;
use crate::team::config::Datapath;
use crate::xdp::XdpError;
use crate::xdp::port::{Wish, XdpPort};

/// Drivers of interfaces at whose other end are other programs of this machine. They hand over frames as the kernel has them: the tag beside
/// the frame, the checksum not yet made.
const SOFTWARE: [&str; 3] = ["veth", "tun", "bonding"];

/// Opens a NIC.
pub(super) fn open(link: &Link, wanted: Datapath) -> Result<NicPort, LinkError> {
    let refused = |source| LinkError::Xdp { name: link.name.clone(), source };
    let reason = match wanted {
        Datapath::AfPacket => None,
        Datapath::AfXdp => return by_xdp(link, Wish::Any).map_err(refused)?,
        Datapath::Auto => match is_good_for_xdp(link).and_then(|()| by_xdp(link, Wish::Native)) {
            Ok(port) => return port,
            Err(error) => Some(crate::error_chain(&error)),
        },
    };
    Ok(NicPort::packet(FdPort::nic(&link.name, link.index)?, reason))
}

/// Whether nobody loses anything by AF_XDP.
fn is_good_for_xdp(link: &Link) -> Result<(), XdpError> {
    if let Some(driver) = ethtool::driver(&link.name).filter(|driver| SOFTWARE.contains(&driver.as_str())) {
        return Err(XdpError::Software(driver));
    }
    match netlink::has_address(link.index) {
        Ok(false) => Ok(()),
        Ok(true) => Err(XdpError::HostAddress),
        Err(error) => Err(XdpError::Addresses(error)),
    }
}

/// The inner error is none of AF_XDP's.
fn by_xdp(link: &Link, wish: Wish) -> Result<Result<NicPort, LinkError>, XdpError> {
    let port = XdpPort::open(link.index, link.mtu, ethtool::channels(&link.name), wish)?;
    if !ethtool::keep_frames_whole(&link.name) {
        return Err(XdpError::Tags);
    }
    Ok(FdPort::promiscuous(&link.name, link.index).map(|promiscuous| NicPort::xdp(port, promiscuous)).map_err(LinkError::from))
}
