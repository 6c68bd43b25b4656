//! Where the bytes of an image file are: a file, or memory in tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The file below an image, addressed by position; any thread may use it.
///
/// Only metadata goes through here (tables, logs, bitmaps), in small amounts: whoever uses the image moves its data itself.
pub trait Storage: Send + Sync {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before the buffer is full; whatever reading can fail with.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`; extends the file where that is needed.
    ///
    /// # Errors
    /// Whatever writing can fail with; part of the data may then be written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Everything written before is on stable storage, with the file's size.
    ///
    /// # Errors
    /// If that cannot be promised.
    fn flush(&self) -> io::Result<()>;

    /// The file's size in bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    fn size(&self) -> io::Result<u64>;

    /// Makes the file longer (by zeros that take no space) or shorter.
    ///
    /// # Errors
    /// If there is no room, or the file cannot change its size.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Takes space for a range, without changing what is in it.
    ///
    /// # Errors
    /// If there is no room.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }

    /// Makes a range inside the file read as zeros, giving its space back where the file system can.
    ///
    /// # Errors
    /// If the range could not be made zeros.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// The first offset from `offset` on at which there may be something other than zeros; `None` if the rest is known to be zeros.
    ///
    /// # Errors
    /// If the file cannot be asked.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    /// The first offset from `offset` on, which is inside the file, from which on there may be zeros; the file's end at the latest, or
    /// `u64::MAX` where holes are not known.
    ///
    /// # Errors
    /// If the file cannot be asked.
    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let _ = offset;
        Ok(u64::MAX)
    }
}

impl Storage for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::KEEP_SIZE, offset, length) {
            // A file system without this takes space when it is written.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags as Flags;
        match rustix::fs::fallocate(self, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let zeros = vec![0; length.min(1 << 20) as usize];
                let mut done = 0;
                while done < length {
                    let count = (length - done).min(zeros.len() as u64);
                    self.write_all_at(&zeros[..count as usize], offset + done)?;
                    done += count;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A file system that does not know its holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Hole(offset)) {
            Ok(found) => Ok(found),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(u64::MAX),
            Err(error) => Err(error.into()),
        }
    }
}
