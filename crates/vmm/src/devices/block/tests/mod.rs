//! Tests of the device with a driver in guest memory.

mod durability;
mod hostile;
mod model;
mod requests;
mod speed;

use std::fs::File;
use std::io::Write;

use disk::{Access, Cache, Disk, OpenOptions};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, Harness};

pub(super) const FLUSH: u64 = 1 << 9;
pub(super) const CONFIG_WCE: u64 = 1 << 11;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const VERSION_1: u64 = 1 << 32;

pub(super) const READ: u32 = 0;
pub(super) const WRITE: u32 = 1;
pub(super) const FLUSH_REQUEST: u32 = 4;
pub(super) const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;

pub(super) const OK: u8 = 0;
pub(super) const IOERR: u8 = 1;
pub(super) const UNSUPP: u8 = 2;

/// Where tests put their requests and their data in guest memory.
pub(super) const HEADERS: u64 = 4 << 20;
pub(super) const DATA: u64 = 6 << 20;

/// A machine with a block device on a file of its own.
pub(super) struct Machine {
    pub directory: TempDir,
    pub harness: Harness<Block>,
}

pub(super) struct Options {
    pub bytes: u64,
    pub access: Access,
    pub cache: Cache,
    pub queues: u16,
    pub features: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bytes: 1 << 20,
            access: Access::ReadWrite,
            cache: Cache::Host,
            queues: 1,
            features: VERSION_1 | FLUSH | EVENT_IDX,
        }
    }
}

/// The byte that a new disk has at an offset.
pub(super) fn pattern(offset: u64) -> u8 {
    (offset / 512 * 7 + offset % 251) as u8
}

/// Creates a disk that holds the pattern, beside the test program: `/tmp` may be a file system without direct I/O.
pub(super) fn patterned(bytes: u64) -> TempDir {
    let program = std::env::current_exe().unwrap();
    let directory = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let content: Vec<u8> = (0..bytes).map(pattern).collect();
    File::create(directory.path().join("disk.raw")).unwrap().write_all(&content).unwrap();
    directory
}

impl Machine {
    pub fn new(options: Options) -> Machine {
        Machine::with(options, |_| {})
    }

    pub fn with(options: Options, configure: impl FnOnce(&mut BlockConfig)) -> Machine {
        let directory = patterned(options.bytes);
        let open = OpenOptions { access: options.access, cache: options.cache, ..OpenOptions::default() };
        let disk = Disk::open(directory.path().join("disk.raw"), open).unwrap();
        let mut config = BlockConfig::new(disk, "test");
        config.queues = options.queues;
        config.serial = "MARU-0123456789".to_owned();
        configure(&mut config);
        let mut harness = Harness::new(Block::new(config).unwrap());
        harness.activate(options.features).unwrap();
        Machine { directory, harness }
    }

    pub fn file(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("disk.raw")).unwrap()
    }

    /// Writes a header; returns it as a buffer. `slot` keeps requests apart.
    pub fn header(&self, slot: u64, kind: u32, sector: u64) -> Buffer {
        let at = HEADERS + slot * 64;
        self.harness.memory.write_obj(kind, GuestAddress(at)).unwrap();
        self.harness.memory.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.harness.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
        readable(at, 16)
    }

    /// Clears a status byte to something that is no answer; returns it as a buffer.
    pub fn status(&self, slot: u64) -> Buffer {
        let at = HEADERS + slot * 64 + 48;
        self.harness.memory.write_obj(0xEEu8, GuestAddress(at)).unwrap();
        writable(at, 1)
    }

    pub fn status_of(&self, slot: u64) -> u8 {
        self.harness.memory.read_obj(GuestAddress(HEADERS + slot * 64 + 48)).unwrap()
    }

    /// Sends one request and waits for the answer.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        let mut chain = vec![self.header(0, kind, sector)];
        chain.extend_from_slice(data);
        chain.push(self.status(0));
        self.harness.exchange(0, &chain);
        self.status_of(0)
    }

    /// Reads sectors through the device.
    pub fn read(&mut self, sector: u64, length: usize) -> Vec<u8> {
        assert_eq!(self.request(READ, sector, &[writable(DATA, length as u32)]), OK);
        let mut data = vec![0; length];
        self.harness.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }

    /// Writes sectors through the device.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.harness.memory.write_slice(data, GuestAddress(DATA)).unwrap();
        self.request(WRITE, sector, &[readable(DATA, data.len() as u32)])
    }

    /// Discards or zeroes a range.
    pub fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        self.harness.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        self.harness.memory.write_obj(count, GuestAddress(DATA + 8)).unwrap();
        self.harness.memory.write_obj(flags, GuestAddress(DATA + 12)).unwrap();
        self.request(kind, 0, &[readable(DATA, 16)])
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.harness.device.read_config(offset, &mut bytes);
        bytes
    }
}

pub(super) fn readable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, device_writes: false }
}

pub(super) fn writable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, device_writes: true }
}
