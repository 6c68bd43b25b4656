//! A driver's side of rings, in memory of its own.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::memory::{Memory, RegionPlace};
use super::split::RingPlace;

pub const SIZE: u64 = 4 << 20;
/// Where it is in the guest; in the front end it is at [`USER`].
pub const GUEST: u64 = 0x10_0000;
pub const USER: u64 = 0x7000_0000_0000;
const BUFFERS: u64 = 0x1_0000;

/// A file of memory.
pub fn memory_file() -> File {
    // SAFETY: the name is a C string, and the result is checked.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(SIZE).unwrap();
    file
}

pub fn place() -> RegionPlace {
    RegionPlace { guest: GUEST, user: USER, length: SIZE, offset: 0 }
}

pub fn map(file: &File) -> Arc<Memory> {
    Arc::new(Memory::new([(place(), file.try_clone().unwrap())]).unwrap())
}

/// A ring that a driver owns: `number` of several in one memory. It reads and writes by the file, never by pointers.
pub struct Driver {
    pub file: File,
    pub number: u64,
    pub size: u16,
    available: u16,
    used: u16,
    next: u16,
}

impl Driver {
    pub fn new(file: &File, number: u64, size: u16) -> Driver {
        Driver { file: file.try_clone().unwrap(), number, size, available: 0, used: 0, next: 0 }
    }

    fn base(&self) -> u64 {
        self.number * 0x4000
    }

    /// Where it is: descriptors, available ring, used ring, from the memory's start.
    pub fn parts(&self) -> [u64; 3] {
        [self.base(), self.base() + 0x2000, self.base() + 0x3000]
    }

    pub fn place(&self) -> RingPlace {
        let [descriptors, available, used] = self.parts().map(|part| GUEST + part);
        RingPlace { size: self.size.into(), descriptors, available, used, ..RingPlace::default() }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub fn read(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    /// Writes a descriptor.
    pub fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(self.base() + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        let [_, available, _] = self.parts();
        self.write(available + 4 + 2 * u64::from(self.available % self.size), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(available + 2, &self.available.to_le_bytes());
    }

    fn buffer(&self, index: u16) -> u64 {
        BUFFERS + self.number * 0x8_0000 + u64::from(index) * 0x1000
    }

    /// Makes a buffer available to be filled.
    pub fn offer_room(&mut self, bytes: u32) {
        let index = self.next % self.size;
        self.next = self.next.wrapping_add(1);
        self.descriptor(index, GUEST + self.buffer(index), bytes, 2, 0);
        self.offer(index);
    }

    /// Sends bytes, at most 4096 in each descriptor.
    pub fn send(&mut self, bytes: &[u8]) {
        let head = self.next % self.size;
        let parts: Vec<&[u8]> = bytes.chunks(0x1000).collect();
        for (number, part) in parts.iter().enumerate() {
            let index = (self.next + number as u16) % self.size;
            self.write(self.buffer(index), part);
            let more = u16::from(number + 1 < parts.len());
            self.descriptor(index, GUEST + self.buffer(index), part.len() as u32, more, (index + 1) % self.size);
        }
        self.next += parts.len() as u16;
        self.offer(head);
    }

    /// What was used since the last time: chain and bytes written.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let [_, _, used] = self.parts();
        let end = self.u16(used + 2);
        let mut all = Vec::new();
        while self.used != end {
            let element = self.read(used + 4 + 8 * u64::from(self.used % self.size), 8);
            let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
            all.push((word(0) as u16, word(4)));
            self.used = self.used.wrapping_add(1);
        }
        all
    }

    /// The used index, as a monitor recovers it.
    pub fn used_index(&self) -> u16 {
        self.u16(self.parts()[2] + 2)
    }

    /// The bytes of what was filled, one frame per entry: header and frame, from as many buffers as the header says.
    pub fn take_frames(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut used = self.take_used().into_iter();
        while let Some((index, written)) = used.next() {
            let mut bytes = self.read(self.buffer(index), written as usize);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                let (index, written) = used.next().expect("as many buffers as the header says");
                bytes.extend(self.read(self.buffer(index), written as usize));
            }
            let frame = bytes.split_off(12);
            frames.push((bytes, frame));
        }
        frames
    }

    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}
