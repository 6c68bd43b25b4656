//! A file on its way: its pieces, and a checksum of all that was sent.
//!
//! ```text
//!   offset (8)  length (4)  data     the pieces, in the order of their offsets; of 1 MiB at most
//!   ...
//!   size (8)    0 (4)                the end: the file's length
//!   SHA-256 (32)                     of all before it
//! ```
//! Numbers are little-endian. What comes is not believed: it must stay within what was promised of the file.

use std::io::{self, Read, Write};
use std::path::Path;

use disk::tool::{Job, PieceReader, PieceWriter, ToolError};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use crate::records::Cause;

/// The longest piece in bytes.
const PIECE: usize = 1 << 20;
/// Offset and length.
const HEAD: usize = 12;

/// Sends a file. The job counts what it takes in its file system.
pub fn send(path: &Path, allocated: u64, out: &mut impl Write, job: &Job) -> Result<(), ToolError> {
    let sending = |source| ToolError::Io { path: path.into(), action: "sending it", source };
    let mut reader = PieceReader::open(path)?;
    let (mut digest, mut piece, mut sent) = (Context::new(&SHA256), Vec::new(), 0);
    job.begin(allocated);
    while let Some(offset) = reader.next(&mut piece, PIECE)? {
        let head = head(offset, piece.len());
        for part in [&head[..], &piece] {
            digest.update(part);
            out.write_all(part).map_err(sending)?;
        }
        sent += piece.len() as u64;
        job.reach(sent.min(allocated))?;
    }
    let end = head(reader.size(), 0);
    digest.update(&end);
    out.write_all(&end).and_then(|()| out.write_all(digest.finish().as_ref())).map_err(sending)
}

fn head(offset: u64, length: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    // No piece is longer than 1 MiB.
    head[8..].copy_from_slice(&(length as u32).to_le_bytes());
    head
}

/// Makes a file of what is sent. It is durable then. `room` is asked before each piece.
pub fn receive(
    input: &mut impl Read,
    path: &Path,
    bytes: u64,
    mode: u32,
    mut room: impl FnMut(u64) -> Result<(), Cause>,
) -> Result<(), Cause> {
    let broken = |error: io::Error| {
        Cause::new("broken-off", format!("the copy broke off: {error}"), "see whether the hosts reach each other, and try again")
    };
    let strange = |what: &str| Cause::new("bad-copy", format!("what was sent is no copy: {what}"), "try again");
    let failed = |error: ToolError| Cause::new("file", vmm::error_chain(&error), "mend what it says, and try again");
    let writer = PieceWriter::create(path, mode).map_err(failed)?;
    let (mut digest, mut piece, mut end) = (Context::new(&SHA256), Vec::new(), 0_u64);
    loop {
        let mut head = [0; HEAD];
        input.read_exact(&mut head).map_err(broken)?;
        digest.update(&head);
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = head;
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length == 0 {
            if offset != bytes {
                return Err(strange("its length is another one"));
            }
            break;
        }
        let behind = offset.checked_add(length as u64).filter(|behind| *behind <= bytes);
        let Some(behind) = behind.filter(|_| length <= PIECE && offset >= end) else {
            return Err(strange("a piece is out of place"));
        };
        room(length as u64)?;
        piece.resize(length, 0);
        input.read_exact(&mut piece).map_err(broken)?;
        digest.update(&piece);
        writer.write(offset, &piece).map_err(failed)?;
        end = behind;
    }
    let mut sum = [0; SHA256_OUTPUT_LEN];
    input.read_exact(&mut sum).map_err(broken)?;
    if digest.finish().as_ref() != sum {
        return Err(strange("its checksum is wrong"));
    }
    writer.finish(bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is sent of a file with holes.
    fn sent(directory: &Path) -> Vec<u8> {
        let path = directory.join("a.raw");
        let mut content = vec![0; 3 << 20];
        content[(2 << 20) + 5..(2 << 20) + 9].copy_from_slice(b"data");
        fs::write(&path, &content).unwrap();
        let (mut stream, job) = (Vec::new(), Job::default());
        send(&path, 3 << 20, &mut stream, &job).unwrap();
        stream
    }

    fn received(stream: &[u8], directory: &Path, bytes: u64) -> Result<Vec<u8>, String> {
        let path = directory.join("b.raw");
        let made = receive(&mut &*stream, &path, bytes, 0o600, |_| Ok(()));
        let content = made.map(|()| fs::read(&path).unwrap()).map_err(|cause| cause.code);
        let _ = fs::remove_file(&path);
        content
    }

    #[test]
    fn what_is_received_is_what_was_sent_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let stream = sent(directory.path());
        let whole = received(&stream, directory.path(), 3 << 20).unwrap();
        assert_eq!(whole, fs::read(directory.path().join("a.raw")).unwrap());
        for length in [0, 5, HEAD, stream.len() / 2, stream.len() - 1] {
            assert_eq!(received(&stream[..length], directory.path(), 3 << 20), Err("broken-off".into()), "{length}");
        }
        // Any bit that is another one is noticed.
        for at in (0..stream.len()).step_by(stream.len() / 50).chain([stream.len() - 1]) {
            let mut wrong = stream.clone();
            wrong[at] ^= 1;
            assert!(received(&wrong, directory.path(), 3 << 20).is_err(), "{at}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sender_that_is_not_to_be_trusted_cannot_leave_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let stream = sent(directory.path());
        assert_eq!(received(&stream, directory.path(), (3 << 20) - 1), Err("bad-copy".into()), "a longer one than promised");
        assert_eq!(received(&stream, directory.path(), 4 << 20), Err("bad-copy".into()));
        let piece = |offset: u64, length: u32| [&offset.to_le_bytes()[..], &length.to_le_bytes()].concat();
        for wrong in [piece(4096, 1), piece(u64::MAX, 2), piece(0, u32::MAX), piece(0, PIECE as u32 + 1), piece(5000, 0)] {
            assert_eq!(received(&wrong, directory.path(), 4096), Err("bad-copy".into()));
        }
        let back = [piece(100, 1), vec![0], piece(100, 1)].concat();
        assert_eq!(received(&back, directory.path(), 4096), Err("bad-copy".into()));
        let full = receive(&mut &*stream, &directory.path().join("c.raw"), 3 << 20, 0o600, |_| {
            Err(Cause::new("no-space", "it is full", "make room"))
        });
        assert_eq!(full.unwrap_err().code, "no-space");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
