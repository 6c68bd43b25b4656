//! What frames of our own load begin with.

use crate::testpmd::MACS;

/// Bytes of Ethernet's and IPv4's headers.
pub const LENGTH: usize = 34;

/// Ethernet and IPv4, from the first port's station to the second's, of a frame with so many bytes in all.
pub fn of(protocol: u8, frame: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = [MACS[1], MACS[0]]
        .iter()
        .flat_map(|mac| mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("an address")))
        .collect();
    let mut ip = vec![8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2];
    ip[4..6].copy_from_slice(&((frame - 14) as u16).to_be_bytes());
    let sum: u32 = ip[2..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[12..14].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes.extend(ip);
    bytes
}
