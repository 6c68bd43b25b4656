//! The "newc" cpio format that the kernel unpacks as its initramfs
//! (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Only what an initramfs needs is written: regular files, directories, symbolic links and device nodes. Every entry
//! belongs to root and has time 0, so equal content gives an equal archive.

use std::collections::BTreeSet;
use std::io::{self, Write};

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive entry by entry. Parent directories are made as they are needed.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    position: u64,
    next_inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Starts an archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Archive { out, position: 0, next_inode: 1, directories: BTreeSet::new() }
    }

    /// Adds a regular file with the permission bits `mode`.
    ///
    /// # Errors
    /// When `out` fails, or the file is over 4 GiB, which the format cannot express.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = self.parents(path)?;
        self.entry(&path, FILE | mode, (0, 0), content)
    }

    /// Adds a directory. Adding one twice is harmless.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = self.parents(path)?;
        if !path.is_empty() && self.directories.insert(path.clone()) {
            self.entry(&path, DIRECTORY | 0o755, (0, 0), &[])?;
        }
        Ok(())
    }

    /// Adds a symbolic link at `path` that points to `target`.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = self.parents(path)?;
        self.entry(&path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device. The kernel opens `/dev/console` for PID 1 before anything can mount devtmpfs, so an
    /// initramfs must carry that one.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        let path = self.parents(path)?;
        self.entry(&path, CHARACTER_DEVICE | mode, (major, minor), &[])
    }

    /// Ends the archive and gives `out` back.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.next_inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<String> {
        let path = path.trim_matches('/').to_owned();
        for (end, _) in path.match_indices('/') {
            let parent = path[..end].to_owned();
            if self.directories.insert(parent.clone()) {
                self.entry(&parent, DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(path)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: larger than 4 GiB")))?;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let (uid, gid, time, checksum) = (0, 0, 0, 0);
        let fields =
            [self.next_inode, mode, uid, gid, links, time, size, 0, 0, device.0, device.1, name.len() as u32 + 1, checksum];
        self.next_inode = self.next_inode.wrapping_add(1);
        self.write(b"070701")?;
        for field in fields {
            self.write(format!("{field:08x}").as_bytes())?;
        }
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.align()?;
        self.write(content)?;
        self.align()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = self.position.next_multiple_of(4) - self.position;
        self.write(&[0; 4][..padding as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back as (name, mode, content), independently of the writer.
    fn read(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, archive[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn entries_read_back_as_written_with_parents_once_and_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/a", 0o755, b"12345").unwrap();
        archive.file("/bin/b", 0o644, b"").unwrap();
        archive.symlink("/bin/sh", "a").unwrap();
        archive.directory("/bin").unwrap();
        archive.directory("/proc").unwrap();
        let entries = read(&archive.finish().unwrap());
        let names: Vec<_> = entries.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names, ["bin", "bin/a", "bin/b", "bin/sh", "proc"]);
        assert_eq!(entries[1], ("bin/a".into(), 0o100_755, b"12345".to_vec()));
        assert_eq!(entries[3], ("bin/sh".into(), 0o120_777, b"a".to_vec()));
    }

    proptest::proptest! {
        #[test]
        fn any_content_survives(files in proptest::collection::vec(proptest::collection::vec(0u8..=255, 0..300), 0..8)) {
            let mut archive = Archive::new(Vec::new());
            for (n, content) in files.iter().enumerate() {
                archive.file(&format!("{}{n}", "x".repeat(n)), 0o600, content).unwrap();
            }
            let read: Vec<_> = read(&archive.finish().unwrap()).into_iter().map(|e| e.2).collect();
            assert_eq!(read, files);
        }
    }
}
