//! Heartbeats between hosts: small datagrams over each network, which only hosts of the cluster can make.
//!
//! ```text
//!   "MARU" version 0 leased  length name  HMAC-SHA256 over all before
//!      4      1    1    1       1    ...       32
//! ```
//! They decide nothing (`docs/src/cluster.md`): whoever sends an old one again can hide that a host is silent, and that is all.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use cluster::{Beat, HostId, Network};
use ring::hmac::{HMAC_SHA256, Key, sign, verify};

const MAGIC: &[u8; 4] = b"MARU";
const VERSION: u8 = 1;
const TAG: usize = 32;
/// The longest: names of hosts have 253 bytes at most.
const LONGEST: usize = 320;

/// The sockets of this host, one for each of its addresses.
pub struct Beats {
    host: HostId,
    key: Arc<Key>,
    sockets: Vec<(Network, UdpSocket)>,
}

impl Beats {
    /// Listens at these addresses, and tells of what is heard, for as long as the program runs. `secret` is what the cluster's hosts share.
    ///
    /// # Errors
    /// When this host does not have such an address.
    pub fn begin(
        host: HostId,
        secret: &[u8],
        addresses: &[IpAddr],
        port: u16,
        heard: impl Fn(HostId, Network, Beat) + Clone + Send + 'static,
    ) -> io::Result<Beats> {
        let key = Arc::new(Key::new(HMAC_SHA256, secret));
        let mut sockets = Vec::new();
        for (network, address) in Network::ALL.into_iter().zip(addresses) {
            let socket = UdpSocket::bind(SocketAddr::new(*address, port))?;
            let listening = socket.try_clone()?;
            let (key, heard) = (key.clone(), heard.clone());
            std::thread::spawn(move || {
                let mut datagram = [0; LONGEST];
                loop {
                    // What a host that is not there answers comes as an error here.
                    let Ok((length, _)) = listening.recv_from(&mut datagram) else { continue };
                    if let Some((from, beat)) = read(&key, &datagram[..length]) {
                        heard(from, network, beat);
                    }
                }
            });
            sockets.push((network, socket));
        }
        Ok(Beats { host, key, sockets })
    }

    /// Sends a heartbeat to a host at its addresses.
    pub fn send(&self, addresses: &[String], port: u16, beat: Beat) {
        let datagram = write(&self.key, &self.host, beat);
        for ((_, socket), address) in self.sockets.iter().zip(addresses) {
            let Ok(address) = address.parse::<IpAddr>() else { continue };
            // Nobody is told: that is what silence means.
            let _ = socket.send_to(&datagram, SocketAddr::new(address, port));
        }
    }
}

fn write(key: &Key, host: &HostId, beat: Beat) -> Vec<u8> {
    let name = &host.as_str().as_bytes()[..host.as_str().len().min(253)];
    let mut datagram = MAGIC.to_vec();
    datagram.extend([VERSION, 0, u8::from(beat.leased), name.len() as u8]);
    datagram.extend(name);
    let tag = sign(key, &datagram);
    datagram.extend(tag.as_ref());
    datagram
}

fn read(key: &Key, datagram: &[u8]) -> Option<(HostId, Beat)> {
    let (said, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG)?)?;
    verify(key, said, tag).ok()?;
    let rest = said.strip_prefix(MAGIC)?;
    let (&[VERSION, _, leased, length], rest) = rest.split_first_chunk::<4>()? else { return None };
    if rest.len() != usize::from(length) {
        return None;
    }
    Some((std::str::from_utf8(rest).ok()?.into(), Beat { leased: leased != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_host_of_the_cluster_has_said_is_heard() {
        let key = Key::new(HMAC_SHA256, b"shared");
        let beat = Beat { leased: true };
        let datagram = write(&key, &"h1".into(), beat);
        assert_eq!(read(&key, &datagram).unwrap(), ("h1".into(), beat));
        assert!(read(&Key::new(HMAC_SHA256, b"other"), &datagram).is_none());
        for cut in 0..datagram.len() {
            assert!(read(&key, &datagram[..cut]).is_none(), "{cut}");
            let mut changed = datagram.clone();
            changed[cut] ^= 1;
            assert!(read(&key, &changed).is_none(), "{cut}");
        }
        // Even what is signed may be malformed.
        for said in [&b"MARU"[..], b"MARU\x01\0\0\xffh1", b"MARU\x02\0\0\x02h1", b"MARU\x01\0\0\x01\xff", b""] {
            let signed = [said, sign(&key, said).as_ref()].concat();
            assert!(read(&key, &signed).is_none(), "{said:?}");
        }
    }
}
