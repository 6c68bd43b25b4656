//! Tests with a small guest that speaks the protocol, well or badly.

mod hostile;
mod lifecycle;
mod streams;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_BYTES, HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, Harness, PATIENCE};

const CID: u64 = 42;
const BUFFERS: u64 = 4 << 20;
const RX_BYTES: u32 = 4096;
const RX_BUFFERS: u64 = 64;
/// VERSION_1 and EVENT_IDX.
const MODERN: u64 = 1 << 32 | 1 << 29;

/// The guest's side of one connection.
#[derive(Clone, Copy)]
struct Peer {
    guest_port: u32,
    host_port: u32,
    /// Of the guest: its buffer, and what it read.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Peer {
    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }
}

struct Bench {
    harness: Harness<Vsock>,
    directory: TempDir,
    posted: u64,
    taken: u64,
    sent: u64,
}

impl Bench {
    fn idle() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let config = VsockConfig { guest_cid: CID, socket: directory.path().join("v.sock"), listener: None };
        Bench { harness: Harness::new(Vsock::new(config).unwrap()), directory, posted: 0, taken: 0, sent: 0 }
    }

    fn active() -> Bench {
        let mut bench = Bench::idle();
        // Without EVENT_IDX each packet interrupts, and no test has to wait.
        bench.harness.activate(1 << 32).unwrap();
        bench.post_all();
        bench
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    /// Keeps the receive queue full.
    fn post_all(&mut self) {
        while self.posted < self.taken + RX_BUFFERS {
            let address = BUFFERS + (self.posted % RX_BUFFERS) * u64::from(RX_BYTES);
            self.harness.queues[0].push(&[Buffer { address, length: RX_BYTES, device_writes: true }]);
            self.posted += 1;
        }
        self.harness.queues[0].kick();
    }

    /// The next packet for the guest, if there is one.
    fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let used = self.harness.queues[0].pop_used()?;
        let address = BUFFERS + (self.taken % RX_BUFFERS) * u64::from(RX_BYTES);
        let mut packet = vec![0; used.length as usize];
        self.harness.memory.read_slice(&mut packet, GuestAddress(address)).unwrap();
        let header = Header::decode(packet[..HEADER_BYTES].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, TYPE_STREAM));
        assert_eq!(header.length as usize, packet.len() - HEADER_BYTES);
        self.taken += 1;
        self.post_all();
        Some((header, packet[HEADER_BYTES..].to_vec()))
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let interrupt = self.harness.interrupt.clone();
        let mut packet = None;
        interrupt.wait_until("no packet", || {
            packet = self.poll();
            packet.is_some()
        });
        packet.unwrap()
    }

    /// Waits for a packet with this operation, leaving out credit updates.
    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        loop {
            let (header, data) = self.receive();
            if header.op != op::CREDIT_UPDATE || op == op::CREDIT_UPDATE {
                assert_eq!(header.op, op, "{header:?}");
                return (header, data);
            }
        }
    }

    /// Sends a packet with its data in three pieces, as a guest with zero-copy would, and waits until it is taken.
    fn send(&mut self, header: Header, data: &[u8]) {
        let at = (8 << 20) + (self.sent % 8) * (128 << 10);
        self.sent += 1;
        let header = Header { length: data.len() as u32, ..header };
        self.send_raw(at, &header, data);
    }

    fn send_raw(&mut self, at: u64, header: &Header, data: &[u8]) {
        self.harness.memory.write_slice(&header.encode(), GuestAddress(at)).unwrap();
        self.harness.memory.write_slice(data, GuestAddress(at + 64)).unwrap();
        let middle = data.len() as u32 / 2;
        let piece = |address, length| Buffer { address, length, device_writes: false };
        let pieces = [
            piece(at, HEADER_BYTES as u32),
            piece(at + 64, middle),
            piece(at + 64 + u64::from(middle), data.len() as u32 - middle),
        ];
        self.harness.exchange(1, &pieces);
    }

    /// A connection that a program on the host makes to `port`.
    fn connect_to_guest(&mut self, port: u32) -> (UnixStream, Peer) {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let (request, _) = self.expect(op::REQUEST);
        assert_eq!(request.dst_port, port);
        let peer = Peer { guest_port: port, host_port: request.src_port, buf_alloc: 64 << 10, fwd_cnt: 0 };
        self.send(peer.header(op::RESPONSE), &[]);
        let answer = format!("OK {}\n", peer.host_port);
        let mut line = vec![0; answer.len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, answer.as_bytes());
        (stream, peer)
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path().display())).unwrap()
    }

    /// A connection that the guest makes to `listener` on `port`.
    fn connect_to_host(&mut self, listener: &UnixListener, port: u32, guest_port: u32) -> (UnixStream, Peer) {
        let peer = Peer { guest_port, host_port: port, buf_alloc: 64 << 10, fwd_cnt: 0 };
        self.send(peer.header(op::REQUEST), &[]);
        let (response, _) = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (port, guest_port));
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (stream, peer)
    }
}

/// Bytes that tell where they are.
fn pattern(start: usize, length: usize) -> Vec<u8> {
    (start..start + length).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
