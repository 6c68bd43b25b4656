//! VMDK as one sparse file (`monolithicSparse`), by VMware's "Virtual Disk Format 5.0"; numbers are little-endian, positions in sectors.
//!
//! ```text
//!   header │ descriptor │ directory, tables │ the same again │ grains, in the order in which they came
//! ```
//! Directory and tables are there twice, as in VMware's own files. All tables have their place; those that are all zeros are holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::{Space, UNIT};

const SECTOR: u64 = 512;
const GRAIN_SECTORS: u64 = UNIT / SECTOR;
const TABLE_ENTRIES: u64 = 512;
const TABLE_SECTORS: u64 = TABLE_ENTRIES * 4 / SECTOR;
/// Bytes of the disk behind one table.
const TABLE_SPAN: u64 = TABLE_ENTRIES * UNIT;
const DESCRIPTOR_SECTOR: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// What readers take memory for: see `import`.
const MAX_SIZE: u64 = 64 << 40;
/// Line ends can be tested; there is a second directory.
const FLAGS: u32 = 0b11;

pub(crate) struct Writer {
    space: Space,
    size: u64,
    /// Its own name, which the descriptor has.
    name: String,
    /// Where each of the two directories begins, in sectors; its tables are behind it.
    directories: [u64; 2],
    tables: u64,
}

impl Writer {
    pub fn new(file: Arc<File>, path: &Path, size: u64) -> io::Result<Writer> {
        if size > MAX_SIZE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a VMDK has at most 64 TiB"));
        }
        let tables = size.div_ceil(TABLE_SPAN);
        let sectors = directory_sectors(tables) + tables * TABLE_SECTORS;
        let first = DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS;
        let units = (first + 2 * sectors).div_ceil(GRAIN_SECTORS);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.replace(|it: char| it.is_control() || it == '"', "_");
        Ok(Writer { space: Space::new(file, units), size, name, directories: [first, first + sectors], tables })
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let places = self.space.append(data)?;
        if places.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(places.len() * 4);
        for place in places {
            let sector = u32::try_from(place.unwrap_or(0) / SECTOR);
            let sector = sector.map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a VMDK holds at most 2 TiB of data"))?;
            entries.extend(sector.to_le_bytes());
        }
        // Tables follow each other, so that entries do.
        for directory in self.directories {
            let tables = (directory + directory_sectors(self.tables)) * SECTOR;
            self.space.file.write_all_at(&entries, tables + offset / UNIT * 4)?;
        }
        Ok(())
    }

    pub fn finish(self) -> io::Result<()> {
        let file = &self.space.file;
        for directory in self.directories {
            let first = directory + directory_sectors(self.tables);
            let entries: Vec<u8> =
                (0..self.tables).flat_map(|table| ((first + table * TABLE_SECTORS) as u32).to_le_bytes()).collect();
            file.write_all_at(&entries, directory * SECTOR)?;
        }
        file.write_all_at(self.descriptor()?.as_bytes(), DESCRIPTOR_SECTOR * SECTOR)?;

        let overhead =
            (self.directories[1] + directory_sectors(self.tables) + self.tables * TABLE_SECTORS).next_multiple_of(GRAIN_SECTORS);
        let mut header = [0; SECTOR as usize];
        let mut put = |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, b"KDMV");
        put(4, &1u32.to_le_bytes());
        put(8, &FLAGS.to_le_bytes());
        put(12, &(self.size / SECTOR).to_le_bytes());
        put(20, &GRAIN_SECTORS.to_le_bytes());
        put(28, &DESCRIPTOR_SECTOR.to_le_bytes());
        put(36, &DESCRIPTOR_SECTORS.to_le_bytes());
        put(44, &(TABLE_ENTRIES as u32).to_le_bytes());
        put(48, &self.directories[0].to_le_bytes());
        put(56, &self.directories[1].to_le_bytes());
        put(64, &overhead.to_le_bytes());
        put(73, b"\n \r\n");
        file.write_all_at(&header, 0)?;
        file.set_len(self.space.units() * UNIT)
    }

    fn descriptor(&self) -> io::Result<String> {
        let [a, b, c, d, ..] = vhdx::Guid::random()?.to_bytes();
        // All ones would be "no parent" in a child.
        let content = u32::from_le_bytes([a, b, c, d]) & 0x7fff_ffff;
        let sectors = self.size / SECTOR;
        let (heads, per_track) = (255, 63);
        Ok(format!(
            "# Disk DescriptorFile\nversion=1\nCID={content:08x}\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\n\
             # Extent description\nRW {sectors} SPARSE \"{name}\"\n\n\
             # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{per_track}\"\nddb.adapterType = \"lsilogic\"\n",
            name = self.name,
            cylinders = sectors / (heads * per_track),
        ))
    }
}

fn directory_sectors(tables: u64) -> u64 {
    (tables * 4).div_ceil(SECTOR)
}
