//! A file in pieces, without its holes: read on one machine, and made of them on another.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vhdx::Storage;

use super::ToolError;
use super::newfile::{Existing, NewFile};
use crate::disk::{Access, OpenOptions};
use crate::layer::{Kind, Layer};

/// A file that is read piece by piece. Nobody writes it meanwhile.
pub struct PieceReader {
    layer: Layer,
    size: u64,
    at: u64,
}

impl PieceReader {
    /// Opens a file, and locks it against writers.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub fn open(path: &Path) -> Result<PieceReader, ToolError> {
        let layer = Layer::open(path, OpenOptions { access: Access::ReadOnly, ..OpenOptions::default() })?;
        if layer.kind == Kind::BlockDevice {
            return Err(ToolError::options(path, "it is a block device; copy what is in it with maru disk convert"));
        }
        let size = layer.file.metadata().map_err(ToolError::io(path, "reading its size"))?.len();
        Ok(PieceReader { layer, size, at: 0 })
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the next piece, of so many bytes at most, and tells its place. Holes are passed over; nothing is left when there is no place.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next(&mut self, piece: &mut Vec<u8>, longest: usize) -> Result<Option<u64>, ToolError> {
        let (file, reading) = (&*self.layer.file, || ToolError::io(&self.layer.path, "reading it"));
        let Some(start) = file.next_data(self.at).map_err(reading())?.filter(|start| *start < self.size) else { return Ok(None) };
        let end = file.next_hole(start).map_err(reading())?.min(self.size);
        piece.resize((end - start).min(longest as u64) as usize, 0);
        file.read_at(start, piece).map_err(reading())?;
        self.at = start + piece.len() as u64;
        Ok(Some(start))
    }
}

/// A file that is made of pieces. It has no name until it is whole and durable; dropped before, it is gone.
pub struct PieceWriter {
    new: NewFile,
    path: PathBuf,
}

impl PieceWriter {
    /// Begins a file that others may use as `mode` says.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub fn create(path: &Path, mode: u32) -> Result<PieceWriter, ToolError> {
        let new = NewFile::create(path, Existing::Keep)?;
        new.file().set_permissions(Permissions::from_mode(mode & 0o777)).map_err(ToolError::io(path, "creating it"))?;
        Ok(PieceWriter { new, path: path.to_owned() })
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// If there is no room, or the file cannot be written.
    pub fn write(&self, offset: u64, piece: &[u8]) -> Result<(), ToolError> {
        self.new.file().write_at(offset, piece).map_err(ToolError::io(&self.path, "writing it"))
    }

    /// That was all: the file has this length and its name, and is durable.
    ///
    /// # Errors
    /// If that cannot be promised.
    pub fn finish(self, size: u64) -> Result<(), ToolError> {
        self.new.file().set_len(size).map_err(ToolError::io(&self.path, "making it as long as the other"))?;
        self.new.publish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_file_made_of_the_pieces_of_another_is_that_one_with_its_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a.raw"), directory.path().join("b.raw"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 100_000], 5 << 20).unwrap();
        file.write_all_at(&[2; 3], (32 << 20) + 7).unwrap();
        file.sync_all().unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o600)).unwrap();

        let (mut reader, writer) = (PieceReader::open(&from).unwrap(), PieceWriter::create(&to, 0o600).unwrap());
        let (mut piece, mut end) = (Vec::new(), 0);
        while let Some(offset) = reader.next(&mut piece, 10_000).unwrap() {
            assert!(offset >= end && piece.len() <= 10_000);
            end = offset + piece.len() as u64;
            writer.write(offset, &piece).unwrap();
        }
        assert!(!to.exists(), "it is not whole");
        writer.finish(reader.size()).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        let copy = fs::metadata(&to).unwrap();
        assert_eq!((copy.len(), copy.mode() & 0o777), (64 << 20, 0o600));
        assert!(copy.blocks() * 512 < 2 << 20, "{} blocks", copy.blocks());
    }
}
