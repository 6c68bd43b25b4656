//! Tests of the network devices. A socket pair stands in for the TAP: frame and header in one packet, full and empty like a
//! TAP's queue. The tests that need a real TAP are marked `ignored` and run as root, and in the lab.

mod control;
pub(crate) mod hostile;
mod limits;
mod pause;
mod real_tap;
mod receive;
mod saved;
mod transmit;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use vm_memory::{Bytes, GuestAddress};

use super::features::*;
use super::{Net, NetConfig, TapBackend};
use crate::virtio::testing::{Buffer, Harness, Used};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
pub const BUFFERS: u64 = 4 << 20;
/// VERSION_1 and EVENT_IDX: what every modern driver agrees on.
pub const MODERN: u64 = 1 << 32 | 1 << 29;

/// Connected packet sockets: what the device has, and the other end of the wire.
pub fn packet_pair() -> (OwnedFd, File) {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    let result = unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0, fds.as_mut_ptr())
    };
    assert_eq!(result, 0);
    // SAFETY: socketpair returned two open descriptors that nobody else owns.
    let [ours, theirs] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (ours, File::from(theirs))
}

/// A device with its wires, one for each pair.
pub struct Bench {
    pub harness: Harness<Net>,
    pub wires: Vec<File>,
}

impl Bench {
    /// A device that is not active yet.
    pub fn idle(pairs: u16) -> Bench {
        let (fds, wires) = (0..pairs).map(|_| packet_pair()).unzip();
        let config = NetConfig { mac: MAC, mtu: Some(1500), queue_pairs: pairs, backend: TapBackend::Datagrams(fds) };
        Bench { harness: Harness::new(Net::new(config).unwrap()), wires }
    }

    /// An active device.
    pub fn active(features: u64) -> Bench {
        let mut bench = Bench::idle(1);
        bench.harness.activate(features).unwrap();
        bench
    }

    /// Puts a frame on the wire.
    pub fn arrive(&mut self, body: &[u8]) {
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend_from_slice(body);
        assert_eq!(self.wires[0].write(&frame).unwrap(), frame.len());
    }

    /// Waits for a frame from the wire, without its header.
    pub fn leave(&mut self) -> Vec<u8> {
        let mut frame = vec![0; MAX_FRAME_BYTES + 1];
        let mut length = 0;
        let wire = &mut self.wires[0];
        self.harness.interrupt.wait_until("no frame on the wire", || match wire.read(&mut frame) {
            Ok(count) => {
                length = count;
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                false
            }
        });
        frame[HEADER_BYTES..length].to_vec()
    }

    /// Makes `count` empty buffers of `length` bytes available, `n` at `BUFFERS + n * 0x1_0000` counted from `first`.
    pub fn post(&mut self, first: u64, count: u64, length: u32) {
        for n in first..first + count {
            self.harness.queues[0].push(&[Buffer { address: BUFFERS + n * 0x1_0000, length, device_writes: true }]);
        }
        self.harness.queues[0].kick();
    }

    /// Makes a frame available to send, without a kick.
    pub fn offer(&mut self, at: u64, body: &[u8]) {
        let address = BUFFERS + at;
        self.harness.memory.write_slice(&[0; HEADER_BYTES], GuestAddress(address)).unwrap();
        self.harness.memory.write_slice(body, GuestAddress(address + HEADER_BYTES as u64)).unwrap();
        let length = (HEADER_BYTES + body.len()) as u32;
        self.harness.queues[1].push(&[Buffer { address, length, device_writes: false }]);
    }

    /// The bytes at a used buffer, and `num_buffers` of its header.
    pub fn received(&self, buffer: u64, used: Used) -> (u16, Vec<u8>) {
        let address = BUFFERS + buffer * 0x1_0000;
        let mut data = vec![0; used.length as usize];
        self.harness.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        (u16::from_le_bytes([data[NUM_BUFFERS_OFFSET], data[NUM_BUFFERS_OFFSET + 1]]), data[HEADER_BYTES..].to_vec())
    }
}

/// A frame whose bytes tell which one it is.
pub fn body(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + number * 13) as u8).collect()
}
