//! Numbers of virtio 1.2 §5.1: feature bits, status bits and control commands.

#![allow(missing_docs)]

pub const CSUM: u32 = 0;
pub const GUEST_CSUM: u32 = 1;
pub const CTRL_GUEST_OFFLOADS: u32 = 2;
pub const MTU: u32 = 3;
pub const MAC: u32 = 5;
pub const GUEST_TSO4: u32 = 7;
pub const GUEST_TSO6: u32 = 8;
pub const GUEST_ECN: u32 = 9;
pub const GUEST_UFO: u32 = 10;
pub const HOST_TSO4: u32 = 11;
pub const HOST_TSO6: u32 = 12;
pub const HOST_ECN: u32 = 13;
pub const HOST_UFO: u32 = 14;
pub const MRG_RXBUF: u32 = 15;
pub const STATUS: u32 = 16;
pub const CTRL_VQ: u32 = 17;
pub const CTRL_RX: u32 = 18;
pub const CTRL_RX_EXTRA: u32 = 20;
pub const GUEST_ANNOUNCE: u32 = 21;
pub const MQ: u32 = 22;
pub const CTRL_MAC_ADDR: u32 = 23;

/// The offloads of what the guest receives, which the driver may change while it runs.
pub const GUEST_OFFLOADS: u64 = bits(&[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO]);
/// The offloads of what the guest sends.
pub const HOST_OFFLOADS: u64 = bits(&[CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO]);
/// Offloads that make a received frame larger than the MTU.
pub const GUEST_LARGE: u64 = bits(&[GUEST_TSO4, GUEST_TSO6, GUEST_UFO]);

pub const S_LINK_UP: u16 = 1;
pub const S_ANNOUNCE: u16 = 2;

pub const CLASS_RX: u8 = 0;
pub const CLASS_MAC: u8 = 1;
pub const CLASS_ANNOUNCE: u8 = 3;
pub const CLASS_MQ: u8 = 4;
pub const CLASS_GUEST_OFFLOADS: u8 = 5;

pub const MAC_TABLE_SET: u8 = 0;
pub const MAC_ADDR_SET: u8 = 1;
pub const RX_LAST: u8 = 5;

pub const ACK_OK: u8 = 0;
pub const ACK_ERROR: u8 = 1;

/// Bytes of `struct virtio_net_hdr` with `num_buffers`, which is always there for `VIRTIO_F_VERSION_1` drivers.
pub const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is in the header.
pub const NUM_BUFFERS_OFFSET: usize = 10;
/// Header, Ethernet header with two VLAN tags, and the largest IP packet.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + 14 + 8 + 65535;

/// The mask of these bit numbers.
pub const fn bits(numbers: &[u32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}
