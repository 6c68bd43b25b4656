//! One end of a virtual network card, as a VM's monitor and its driver have it together.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of virtio's header before a frame.
pub const HEADER: usize = 12;
/// Entries of a ring.
pub const RING: usize = 256;

/// Checksums and TCP of both versions, for both sides; merged buffers; virtio 1.
const FEATURES: u64 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 32;

/// Where a ring's parts and its buffers are in the memory.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x2000;
const USED: usize = 0x4000;
const BUFFERS: usize = 0x10000;
/// The memory of the ring that is used is behind the one that is not.
const RINGS: usize = 1 << 20;

/// What the ring that is used is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What the VM sends.
    Send,
    /// What it gets.
    Receive,
}

/// A port: both its rings, one of which is used.
pub struct FrontEnd {
    memory: *mut u8,
    buffer_bytes: usize,
    _file: File,
    _front: Frontend,
    /// Call and kick.
    events: [EventFd; 2],
    available: u16,
    used: u16,
}

impl FrontEnd {
    /// Connects to a port, with so much memory for buffers. It polls: the switch does not tell it of anything.
    ///
    /// # Errors
    /// When there is no memory, or the switch refuses.
    pub fn connect(path: &Path, way: Way, buffer_bytes: usize) -> Result<FrontEnd> {
        // SAFETY: the name is a C string, and the result is checked.
        let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
        ensure!(fd >= 0, "memory: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let size = RINGS + BUFFERS + buffer_bytes;
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
            let base = start + if (index == 1) == (way == Way::Send) { RINGS as u64 } else { 0 };
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
        let port = FrontEnd { memory, buffer_bytes, _file: file, _front: front, events, available: 0, used: 0 };
        port.word(AVAILABLE).store(1, Ordering::Relaxed);
        Ok(port)
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: all callers stay within the rings, at even places.
        unsafe { AtomicU16::from_ptr(self.memory.add(at).cast()) }
    }

    fn buffer(&self, at: usize, length: usize) -> *mut u8 {
        assert!(at + length <= self.buffer_bytes);
        // SAFETY: within the mapping.
        unsafe { self.memory.add(BUFFERS + at) }
    }

    /// Puts bytes into its buffers.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        // SAFETY: the buffers have room for all of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.buffer(at, bytes.len()), bytes.len()) };
    }

    /// A byte of its buffers.
    pub fn byte(&self, at: usize) -> u8 {
        // SAFETY: within the buffers.
        unsafe { self.buffer(at, 1).read_volatile() }
    }

    /// Describes a buffer: `flags` of virtio 1.2 §2.7.5.
    pub fn describe(&mut self, index: usize, at: usize, length: usize, flags: u16, next: usize) {
        let address = self.buffer(at, length) as u64;
        let rest = length as u64 | u64::from(flags) << 32 | (next as u64) << 48;
        assert!(index < RING);
        // SAFETY: the table has `RING` entries.
        unsafe { self.memory.add(DESCRIPTORS + 16 * index).cast::<[u64; 2]>().write_volatile([address, rest]) };
    }

    /// Makes a chain available, to be seen with the next [`FrontEnd::publish`].
    pub fn offer(&mut self, head: usize) {
        let place = usize::from(self.available) % RING;
        self.word(AVAILABLE + 4 + 2 * place).store(head as u16, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// Lets the switch see what was made available.
    pub fn publish(&self) {
        self.word(AVAILABLE + 2).store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Wakes the switch if it sleeps.
    ///
    /// # Errors
    /// When the eventfd cannot be written.
    pub fn kick(&self) -> Result<()> {
        Ok(self.events[1].write(1)?)
    }

    /// Takes what was used: `each` is told the chain and the bytes written.
    pub fn take(&mut self, mut each: impl FnMut(&mut FrontEnd, usize, usize)) {
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

// SAFETY: the pointer is to a mapping that stays until the program ends; one thread at a time uses it.
unsafe impl Send for FrontEnd {}
