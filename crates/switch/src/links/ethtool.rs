//! What NICs' drivers say and can be told (linux/ethtool.h).

use crate::xdp::port::Channels;

const GSET: u32 = 0x01;
const GDRVINFO: u32 = 0x03;
const GLINK: u32 = 0x0a;
const GFLAGS: u32 = 0x25;
const SFLAGS: u32 = 0x26;
const GRXRINGS: u32 = 0x2d;
const GCHANNELS: u32 = 0x3c;
/// `ETH_FLAG_RXVLAN`: tags are taken out of frames.
const FLAG_TAGS: u32 = 1 << 8;
/// `ETH_FLAG_LRO`: packets are put together.
const FLAG_MERGE: u32 = 1 << 15;
/// Asks a NIC's driver.
pub(crate) const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// Whether somebody is at the other end, if the driver knows.
pub fn link(name: &str) -> Option<bool> {
    Some(ask(name, [GLINK, 0])?[1] != 0)
}

/// In Mb/s, if the driver knows.
pub fn speed(name: &str) -> Option<u32> {
    // struct ethtool_cmd: the speed's lower half is in bytes 12 to 14, the upper one in bytes 28 to 30.
    let mut request = [0; 11];
    request[0] = GSET;
    let answer = ask(name, request)?;
    let speed = answer[3] & 0xffff | answer[7] << 16;
    (1..i32::MAX as u32).contains(&speed).then_some(speed)
}

/// What the driver is called.
pub fn driver(name: &str) -> Option<String> {
    // struct ethtool_drvinfo: 196 bytes, of which 4 to 36 are its name.
    let mut request = [0; 49];
    request[0] = GDRVINFO;
    let answer = ask(name, request)?;
    let bytes = answer[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0);
    Some(String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned())
}

/// How many queues there are. One of each, if the driver has no word for it.
pub fn channels(name: &str) -> Channels {
    // struct ethtool_channels: what there is at most comes first.
    let [_, _, _, _, _, receive, transmit, _, both] = ask(name, [GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_or_default();
    if receive + transmit + both > 0 {
        return Channels { receive: receive + both, transmit: transmit + both };
    }
    // struct ethtool_rxnfc: the number of queues is in bytes 8 to 16.
    let mut request = [0; 48];
    request[0] = GRXRINGS;
    Channels { receive: ask(name, request).map_or(1, |answer| answer[2].max(1)), transmit: 1 }
}

/// Has the NIC hand over frames as they came. Returns whether it does.
pub fn keep_frames_whole(name: &str) -> bool {
    let flags = || ask(name, [GFLAGS, 0]).map(|answer| answer[1]);
    let Some(now) = flags() else { return false };
    if now & (FLAG_TAGS | FLAG_MERGE) != 0 {
        // What came of it is asked for below.
        let _ = ask(name, [SFLAGS, now & !(FLAG_TAGS | FLAG_MERGE)]);
    }
    flags().is_some_and(|now| now & (FLAG_TAGS | FLAG_MERGE) == 0)
}

/// The request is one of `ethtool.h`, as words. `None` if the driver does not answer.
fn ask<const N: usize>(name: &str, mut request: [u32; N]) -> Option<[u32; N]> {
    // SAFETY: all zeroes are a valid ifreq.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name ends there at the latest.
    for (to, from) in interface.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    interface.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: numbers only; the descriptor is closed below.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the request is as large as its first word says, and lives through the call; the descriptor is ours.
    let answered = unsafe {
        let answered = libc::ioctl(fd, SIOCETHTOOL as _, &raw mut interface);
        libc::close(fd);
        answered
    };
    (answered == 0).then_some(request)
}
