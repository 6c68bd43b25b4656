//! Two ports of our own, between which frames of 64 KiB go in one direction: what a VM's kernel does with TCP, without the VM.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench::vswitch::{FrontEnd, HEADER, RING, Way};

use crate::headers;
use crate::pingpong::pin;

/// Ethernet, IPv4 and TCP.
const HEADERS: usize = 54;
/// Bytes of TCP in a segment, and in each packet that it stands for.
const PAYLOAD: usize = 65_160;
const PACKET: u16 = 1448;

/// A large segment of TCP from one port's station to the other's, behind its header. `number` makes one differ from the other.
pub fn segment(number: u8) -> Vec<u8> {
    // A checksum is wanted, and TCP over IPv4 to be cut.
    let mut bytes = vec![1, 1, HEADERS as u8, 0];
    bytes.extend(PACKET.to_le_bytes());
    bytes.extend([34, 0, 16, 0, 0, 0]);
    bytes.extend(headers::of(6, HEADERS + PAYLOAD));
    bytes.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(HEADER + HEADERS + PAYLOAD, number);
    bytes
}

/// Bytes of a buffer to receive into.
const ROOM: usize = 4096;
/// Buffers of one sent segment: its headers, and the rest as a kernel's page fragments.
const FRAGMENT: usize = 32 << 10;
const SENT: usize = 64;
const STRIDE: usize = 96 << 10;

/// Bytes in a second from the first port to the second; one thread on `core` drives both.
pub fn measure(sockets: &[PathBuf], core: usize, time: Duration) -> Result<f64> {
    let mut from = FrontEnd::connect(&sockets[0], Way::Send, SENT * STRIDE)?;
    let mut to = FrontEnd::connect(&sockets[1], Way::Receive, RING * ROOM)?;
    for number in 0..SENT {
        let bytes = segment(number as u8);
        let start = number * STRIDE;
        from.write(start, &bytes);
        let ends = [0, HEADER + HEADERS, HEADER + HEADERS + FRAGMENT, bytes.len()];
        for (piece, ends) in ends.windows(2).enumerate() {
            let index = 4 * number + piece;
            let more = u16::from(piece < 2);
            from.describe(index, start + ends[0], ends[1] - ends[0], more, index + 1);
        }
        from.offer(4 * number);
    }
    for index in 0..RING {
        to.describe(index, index * ROOM, ROOM, 2, 0);
        to.offer(index);
    }
    std::thread::scope(|scope| {
        let driver = scope.spawn(move || {
            let (mut from, mut to) = (from, to);
            pin(core);
            to.publish();
            from.publish();
            let (mut bytes, mut begun) = (0, None::<Instant>);
            let start = Instant::now();
            loop {
                from.take(|from, head, _| from.offer(head));
                from.publish();
                to.take(|to, head, written| {
                    bytes += written;
                    to.offer(head);
                });
                to.publish();
                match begun {
                    None if bytes > 0 => (bytes, begun) = (0, Some(Instant::now())),
                    None => ensure!(start.elapsed() < Duration::from_secs(10), "no segment came through"),
                    Some(begun) if begun.elapsed() >= time => return Ok(bytes as f64 / begun.elapsed().as_secs_f64()),
                    Some(_) => {}
                }
            }
        });
        driver.join().expect("the driver")
    })
}
