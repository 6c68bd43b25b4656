//! The server beside an array of bytes, with a client in place of the kernel.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tempfile::TempDir;
use vhdx::testing::Random;

use super::ServeError;
use super::server::serve;
use crate::tool::{self, NewDisk};
use crate::{Access, Disk, Format, OpenOptions};

const SIZE: usize = 8 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

fn image(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("disk.vhdx");
    let new = NewDisk { format: Format::Vhdx, size: Some(SIZE as u64), block_size: Some(1 << 20), ..NewDisk::default() };
    tool::create(&path, &new).unwrap();
    path
}

fn options(access: Access) -> OpenOptions {
    OpenOptions { format: Format::Vhdx, access, ..OpenOptions::default() }
}

/// What the kernel is to the server.
struct Client {
    socket: UnixStream,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Client {
    fn start(path: &Path, access: Access) -> Client {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let disk = Disk::open(path, options(access)).unwrap();
        let server = std::thread::spawn(move || serve(&disk, &theirs));
        Client { socket, server }
    }

    fn send(&self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32, data: &[u8]) {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        (&self.socket).write_all(&bytes).unwrap();
    }

    /// Cookie and error number of the next reply.
    fn reply(&self) -> (u64, u32) {
        let mut bytes = [0; 16];
        (&self.socket).read_exact(&mut bytes).unwrap();
        let number = |range: std::ops::Range<usize>| bytes[range].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        assert_eq!(number(0..4), 0x6744_6698);
        (number(8..16), number(4..8) as u32)
    }

    fn run(&self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> u32 {
        self.send(command, flags, 77, offset, length, data);
        let (cookie, error) = self.reply();
        assert_eq!(cookie, 77);
        error
    }

    fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.run(READ, 0, offset, length, &[]), 0);
        let mut data = vec![0; length as usize];
        (&self.socket).read_exact(&mut data).unwrap();
        data
    }

    fn end(self) -> Result<(), ServeError> {
        drop(self.socket);
        self.server.join().unwrap()
    }

    fn disconnect(self) {
        self.send(DISCONNECT, 0, 0, 0, 0, &[]);
        self.server.join().unwrap().unwrap();
    }
}

#[test]
fn a_disk_reads_as_an_array_of_bytes_and_keeps_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut model = vec![0; SIZE];
    let mut random = Random::new(11);
    for round in 0..4 {
        let client = Client::start(&path, Access::ReadWrite);
        assert!(client.read(0, SIZE as u32) == model, "round {round}");
        for _ in 0..300 {
            let first = random.below(SIZE as u64 / 512) as usize * 512;
            let length = (1 + random.below(2048) as usize) * 512;
            let range = first..(first + length).min(SIZE);
            let (offset, length) = (range.start as u64, range.len() as u32);
            let flags = random.below(4) as u16;
            let error = match random.below(8) {
                0..4 => {
                    model[range.clone()].fill(random.next() as u8);
                    client.run(WRITE, flags & FUA, offset, length, &model[range])
                }
                4 => {
                    model[range].fill(0);
                    client.run(WRITE_ZEROES, flags & (FUA | NO_HOLE), offset, length, &[])
                }
                // What was trimmed may read as anything; in an image that is what was there, or zeros.
                5 => {
                    let error = client.run(TRIM, flags & FUA, offset, length, &[]);
                    let now = client.read(offset, length);
                    assert!(now.iter().zip(&model[range.clone()]).all(|(now, before)| *now == 0 || now == before));
                    model[range].copy_from_slice(&now);
                    error
                }
                6 => client.run(FLUSH, 0, 0, 0, &[]),
                _ => {
                    assert!(client.read(offset, length) == model[range]);
                    0
                }
            };
            assert_eq!(error, 0);
        }
        // Both ways to end, neither after a flush.
        if round % 2 == 0 { client.disconnect() } else { client.end().unwrap() }
    }
    let report = tool::check(&path, tool::AnyFormat::Own(Format::Vhdx)).unwrap();
    assert!(report.is_sound() && !report.log_in_use, "{report:?}");
}

#[test]
fn more_requests_than_are_done_at_once_are_all_answered() {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::start(&image(&directory), Access::ReadWrite);
    let sent = client.socket.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for cookie in 0..2000u64 {
                client.send(WRITE, 0, cookie, cookie % 2048 * 4096, 4096, &[cookie as u8; 4096]);
            }
        });
        let mut seen = vec![false; 2000];
        for _ in 0..2000 {
            let mut bytes = [0; 16];
            (&sent).read_exact(&mut bytes).unwrap();
            assert_eq!(bytes[4..8], [0; 4]);
            let cookie = bytes[8..].iter().fold(0, |value, byte| value << 8 | usize::from(*byte));
            assert!(!std::mem::replace(&mut seen[cookie], true));
        }
    });
    for block in 0..2000u64 {
        assert!(client.read(block * 4096, 4096) == [block as u8; 4096]);
    }
    drop(sent);
    client.end().unwrap();
}

#[test]
fn what_cannot_be_done_is_answered_and_what_follows_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let client = Client::start(&path, Access::ReadWrite);
    let end = SIZE as u64;
    for (command, data) in [(READ, 0), (WRITE, 512), (TRIM, 0), (WRITE_ZEROES, 0)] {
        for offset in [end, u64::MAX - 100] {
            assert_eq!(client.run(command, 0, offset, 512, &vec![1; data]), 22, "command {command}");
        }
    }
    assert_eq!(client.run(5, 0, 0, 0, &[]), 22);
    assert_eq!(client.run(WRITE, 0, end - 512, 512, &[9; 512]), 0);
    assert_eq!(client.read(end - 512, 512), [9; 512]);
    client.disconnect();

    let client = Client::start(&path, Access::ReadOnly);
    for (command, data) in [(WRITE, 512), (TRIM, 0), (WRITE_ZEROES, 0)] {
        assert_eq!(client.run(command, 0, 0, 512, &vec![1; data]), 1, "command {command}");
    }
    assert_eq!(client.run(FLUSH, 0, 0, 0, &[]), 0);
    assert_eq!(client.read(end - 512, 512), [9; 512]);
    client.end().unwrap();
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let client = Client::start(&path, Access::ReadWrite);
    (&client.socket).write_all(&[0x55; 28]).unwrap();
    assert!(matches!(client.server.join().unwrap(), Err(ServeError::NoRequest(bytes)) if bytes == [0x55; 28]));

    let client = Client::start(&path, Access::ReadWrite);
    client.send(READ, 0, 1, 0, u32::MAX, &[]);
    assert!(matches!(client.server.join().unwrap(), Err(ServeError::TooLong(u32::MAX))));

    // Cut off in the middle of a request: its other end has gone.
    let client = Client::start(&path, Access::ReadWrite);
    client.send(WRITE, 0, 1, 0, 1024, &[3; 512]);
    client.end().unwrap();
    let client = Client::start(&path, Access::ReadWrite);
    assert_eq!(client.read(0, 1024), [0; 1024]);
    client.disconnect();
}
