//! The capture file format that tcpdump and Wireshark read (libpcap's, with nanoseconds).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::SystemTime;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
const LONGEST_FRAME: u32 = 262_144;

/// An open capture file.
#[derive(Debug)]
pub struct Capture(BufWriter<File>);

impl Capture {
    /// Starts a capture file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        let version = [2u16.to_le_bytes(), 4u16.to_le_bytes()].concat();
        out.write_all(&version)?;
        for word in [0, 0, LONGEST_FRAME, LINKTYPE_ETHERNET] {
            out.write_all(&word.to_le_bytes())?;
        }
        Ok(Capture(out))
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, frame: &[u8], time: SystemTime) -> io::Result<()> {
        let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let length = frame.len() as u32;
        for word in [time.as_secs() as u32, time.subsec_nanos(), length, length] {
            self.0.write_all(&word.to_le_bytes())?;
        }
        self.0.write_all(frame)
    }

    /// Makes everything added so far visible in the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
