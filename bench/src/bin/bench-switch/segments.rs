//! Two ports of our own, between which frames of 64 KiB go in one direction: what a VM's kernel does with TCP, without the VM.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::pingpong::pin;
use crate::testpmd::MACS;

/// Bytes of virtio's header before a frame.
pub const HEADER: usize = 12;
/// Ethernet, IPv4 and TCP.
const HEADERS: usize = 54;
/// Bytes of TCP in a segment, and in each packet that it stands for.
const PAYLOAD: usize = 65_160;
const PACKET: u16 = 1448;

/// Checksums and TCP of both versions, for both sides; merged buffers; virtio 1.
const FEATURES: u64 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 32;

/// A large segment of TCP from one port's station to the other's, behind its header. `number` makes one differ from the other.
pub fn segment(number: u8) -> Vec<u8> {
    // A checksum is wanted, and TCP over IPv4 to be cut.
    let mut bytes = vec![1, 1, HEADERS as u8, 0];
    bytes.extend(PACKET.to_le_bytes());
    bytes.extend([34, 0, 16, 0, 0, 0]);
    for mac in [MACS[1], MACS[0]] {
        bytes.extend(mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("an address")));
    }
    let length = (HEADERS - 14 + PAYLOAD) as u16;
    let mut ip = vec![8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2];
    ip[4..6].copy_from_slice(&length.to_be_bytes());
    let sum: u32 = ip[2..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[12..14].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes.extend(ip);
    bytes.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(HEADER + HEADERS + PAYLOAD, number);
    bytes
}

const RING: usize = 256;
/// Where a ring's parts and its buffers are in the memory.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x2000;
const USED: usize = 0x4000;
const BUFFERS: usize = 0x10000;
/// Bytes of a buffer to receive into.
const ROOM: usize = 4096;
/// Buffers of one sent segment: its headers, and the rest as a kernel's page fragments.
const FRAGMENT: usize = 32 << 10;
const SENT: usize = 64;
const STRIDE: usize = 96 << 10;
const MEMORY: usize = BUFFERS + SENT * STRIDE;
const RINGS: usize = 1 << 20;

/// A port: both its rings, one of which is used.
struct Port {
    memory: *mut u8,
    _file: File,
    _front: Frontend,
    _events: [EventFd; 2],
    available: u16,
    used: u16,
}

impl Port {
    /// Connects, with `transmit` as the ring that is used.
    fn connect(path: &Path, transmit: bool) -> Result<Port> {
        // SAFETY: the name is a C string, and the result is checked.
        let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
        ensure!(fd >= 0, "memory: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let size = RINGS + MEMORY;
        file.set_len(size as u64)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping, anywhere; the result is checked.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, file.as_raw_fd(), 0) };
        ensure!(memory != libc::MAP_FAILED, "memory: {}", std::io::Error::last_os_error());
        let mut front = Frontend::connect(path, 4).with_context(|| format!("{}", path.display()))?;
        front.set_owner()?;
        front.get_features()?;
        front.set_features(FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())?;
        front.get_protocol_features()?;
        front.set_protocol_features(VhostUserProtocolFeatures::MQ)?;
        let start = memory as u64;
        front.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: start,
            memory_size: size as u64,
            userspace_addr: start,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        }])?;
        let events = [EventFd::new(0)?, EventFd::new(0)?];
        for index in 0..2 {
            // The ring that is used is behind the one that is not.
            let base = start + if (index == 1) == transmit { RINGS as u64 } else { 0 };
            front.set_vring_num(index, RING as u16)?;
            front.set_vring_base(index, 0)?;
            let config = VringConfigData {
                queue_max_size: RING as u16,
                queue_size: RING as u16,
                flags: 0,
                desc_table_addr: base + DESCRIPTORS as u64,
                used_ring_addr: base + USED as u64,
                avail_ring_addr: base + AVAILABLE as u64,
                log_addr: None,
            };
            front.set_vring_addr(index, &config)?;
            front.set_vring_call(index, &events[0])?;
            front.set_vring_kick(index, &events[1])?;
            front.set_vring_enable(index, true)?;
        }
        // SAFETY: within the mapping.
        let memory = unsafe { memory.cast::<u8>().add(RINGS) };
        let port = Port { memory, _file: file, _front: front, _events: events, available: 0, used: 0 };
        // It polls: nobody is to wake it.
        port.word(AVAILABLE).store(1, Ordering::Relaxed);
        Ok(port)
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: all callers stay within the rings, at even places.
        unsafe { AtomicU16::from_ptr(self.memory.add(at).cast()) }
    }

    fn descriptor(&self, index: usize, at: usize, length: usize, flags: u16, next: usize) {
        let address = self.memory as u64 + at as u64;
        let rest = length as u64 | u64::from(flags) << 32 | (next as u64) << 48;
        // SAFETY: the table has `RING` entries.
        unsafe { self.memory.add(DESCRIPTORS + 16 * index).cast::<[u64; 2]>().write_volatile([address, rest]) };
    }

    fn offer(&mut self, head: usize) {
        let place = usize::from(self.available) % RING;
        self.word(AVAILABLE + 4 + 2 * place).store(head as u16, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    fn publish(&self) {
        self.word(AVAILABLE + 2).store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Takes what was used: `each` is told the chain and the bytes written.
    fn take(&mut self, mut each: impl FnMut(&mut Port, usize, usize)) {
        let end = self.word(USED + 2).load(Ordering::Acquire);
        while self.used != end {
            let at = USED + 4 + 8 * (usize::from(self.used) % RING);
            // SAFETY: within the used ring.
            let [head, written] = unsafe { self.memory.add(at).cast::<[u32; 2]>().read_volatile() };
            each(self, head as usize, written as usize);
            self.used = self.used.wrapping_add(1);
        }
    }
}

/// Bytes in a second from the first port to the second; one thread on `core` drives both.
pub fn measure(sockets: &[PathBuf; 2], core: usize, time: Duration) -> Result<f64> {
    let mut from = Port::connect(&sockets[0], true)?;
    let mut to = Port::connect(&sockets[1], false)?;
    for number in 0..SENT {
        let bytes = segment(number as u8);
        let start = BUFFERS + number * STRIDE;
        // SAFETY: a stride is longer than a segment.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), from.memory.add(start), bytes.len()) };
        let ends = [0, HEADER + HEADERS, HEADER + HEADERS + FRAGMENT, bytes.len()];
        for (piece, ends) in ends.windows(2).enumerate() {
            let index = 4 * number + piece;
            let more = u16::from(piece < 2);
            from.descriptor(index, start + ends[0], ends[1] - ends[0], more, index + 1);
        }
        from.offer(4 * number);
    }
    for index in 0..RING {
        to.descriptor(index, BUFFERS + index * ROOM, ROOM, 2, 0);
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

// SAFETY: the pointer is to a mapping that stays until the program ends; one thread at a time uses it.
unsafe impl Send for Port {}
