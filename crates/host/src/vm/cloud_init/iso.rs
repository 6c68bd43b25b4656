//! A small file system that every system reads and nobody can write: ISO 9660 (ECMA-119) with the names of Joliet, as which Linux, the BSDs and Windows
//! show them.
//!
//! ```text
//!  sector 16  primary descriptor      17  Joliet's      18  end
//!  sector 19  path tables: primary little-endian, big-endian; Joliet's, the same
//!  sector 23  the root directory      24  Joliet's
//!  sector 25  the files, each from the start of a sector
//! ```

const SECTOR: usize = 2048;
/// Where the volume descriptors begin: what is before is the system's (§6.2.1).
const DESCRIPTORS: usize = 16;
const PATH_TABLES: u32 = 19;
const ROOTS: [u32; 2] = [23, 24];
const FIRST_FILE: usize = 25;
/// Length of a path table with the root directory alone.
const PATH_TABLE_BYTES: u32 = 10;

/// How names are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Primary,
    /// UCS-2, big-endian.
    Joliet,
}

impl Names {
    fn encode(self, name: &str) -> Vec<u8> {
        match self {
            // What reads no Joliet shows this in lower case.
            Names::Primary => format!("{};1", name.to_uppercase()).into_bytes(),
            Names::Joliet => format!("{name};1").encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

/// An image with this label and these files in its root directory. Names and label are short, and ASCII.
pub fn image(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut sorted: Vec<(&str, &[u8])> = files.to_vec();
    // Directories are in the order of their names (§9.3).
    sorted.sort();
    let mut image = vec![0; FIRST_FILE * SECTOR];
    let mut places = Vec::new();
    for (name, content) in sorted {
        places.push((name, (image.len() / SECTOR) as u32, content.len() as u32));
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    let sectors = (image.len() / SECTOR) as u32;
    for (index, names) in [Names::Primary, Names::Joliet].into_iter().enumerate() {
        let tables = PATH_TABLES + 2 * index as u32;
        put(&mut image, DESCRIPTORS + index, &descriptor(names, label, sectors, tables, ROOTS[index]));
        put(&mut image, tables as usize, &path_table(ROOTS[index].to_le_bytes(), 1u16.to_le_bytes()));
        put(&mut image, tables as usize + 1, &path_table(ROOTS[index].to_be_bytes(), 1u16.to_be_bytes()));
        put(&mut image, ROOTS[index] as usize, &directory(names, ROOTS[index], &places));
    }
    put(&mut image, DESCRIPTORS + 2, b"\xffCD001\x01");
    image
}

fn put(image: &mut [u8], sector: usize, bytes: &[u8]) {
    image[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}

/// A number in both orders (§7.2.3, §7.3.3).
fn both16(value: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d]
}

fn both32(value: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

/// A volume descriptor (§8.4, §8.5).
fn descriptor(names: Names, label: &str, sectors: u32, tables: u32, root: u32) -> Vec<u8> {
    let mut d = vec![0; SECTOR];
    let mut at = |offset: usize, bytes: &[u8]| d[offset..][..bytes.len()].copy_from_slice(bytes);
    at(0, if names == Names::Primary { b"\x01CD001\x01" } else { b"\x02CD001\x01" });
    // Texts are filled up with spaces: system, volume; then set, publisher, preparer, application and three files.
    let text = |text: &str, length: usize| -> Vec<u8> {
        let padded = |width: usize| format!("{text:width$}");
        match names {
            Names::Primary => padded(length).into_bytes(),
            Names::Joliet => padded(length / 2).encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    };
    at(8, &text("", 32));
    at(40, &text(label, 32));
    at(80, &both32(sectors));
    if names == Names::Joliet {
        // UCS-2, level 3.
        at(88, b"%/E");
    }
    at(120, &both16(1));
    at(124, &both16(1));
    at(128, &both16(SECTOR as u16));
    at(132, &both32(PATH_TABLE_BYTES));
    at(140, &tables.to_le_bytes());
    at(148, &(tables + 1).to_be_bytes());
    at(156, &entry(&[0], root, SECTOR as u32, Kind::Directory));
    at(190, &text("", 512));
    at(702, &text("", 110));
    // Four times that are not specified (§8.4.26.1).
    for time in 0..4 {
        at(813 + 17 * time, b"0000000000000000\0");
    }
    at(881, &[1]);
    d
}

/// The root directory, its own parent (§9.4).
fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0], &root[..], &parent, &[0, 0]].concat()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

fn directory(names: Names, own: u32, files: &[(&str, u32, u32)]) -> Vec<u8> {
    let dots = [0, 1].map(|dot| entry(&[dot], own, SECTOR as u32, Kind::Directory));
    let files = files.iter().map(|(name, sector, length)| entry(&names.encode(name), *sector, *length, Kind::File));
    dots.into_iter().chain(files).flatten().collect()
}

/// A directory record (§9.1).
fn entry(name: &[u8], sector: u32, length: u32, kind: Kind) -> Vec<u8> {
    let size = (33 + name.len()).next_multiple_of(2);
    // Times count from 1900; this one is the first of 1970.
    let time = [70, 1, 1, 0, 0, 0, 0];
    let flags = if kind == Kind::Directory { 2 } else { 0 };
    let head = [&[size as u8, 0], &both32(sector)[..], &both32(length), &time, &[flags, 0, 0], &both16(1), &[name.len() as u8]];
    let mut record = [&head.concat(), name].concat();
    record.resize(size, 0);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as a reader of the standard finds them: by a descriptor, its root directory, its records.
    fn read(image: &[u8], kind: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
        let le32 = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let be32 = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let descriptor = (DESCRIPTORS..).map(|sector| sector * SECTOR).find(|at| image[*at] == kind).unwrap();
        assert_eq!(le32(descriptor + 80) * SECTOR, image.len());
        let table = le32(descriptor + 140) * SECTOR;
        let (root, length) = (le32(descriptor + 158) * SECTOR, le32(descriptor + 166));
        assert_eq!((le32(table + 2) * SECTOR, be32(be32(descriptor + 148) * SECTOR + 2) * SECTOR), (root, root));
        let (mut at, mut files) = (root, Vec::new());
        while at < root + length && image[at] > 0 {
            let name = &image[at + 33..][..usize::from(image[at + 32])];
            assert_eq!((le32(at + 2), le32(at + 10)), (be32(at + 6), be32(at + 14)));
            if image[at + 25] & 2 == 0 {
                files.push((name.to_vec(), image[le32(at + 2) * SECTOR..][..le32(at + 10)].to_vec()));
            }
            at += usize::from(image[at]);
        }
        files
    }

    #[test]
    fn both_directories_have_all_files_in_order() {
        let long = vec![b'x'; 3 * SECTOR + 1];
        let image = image("cidata", &[("user-data", &long), ("meta-data", b"id"), ("network-config", b"")]);
        let expected = [("meta-data", b"id".to_vec()), ("network-config", Vec::new()), ("user-data", long)];
        for (kind, names) in [(1, Names::Primary), (2, Names::Joliet)] {
            let expected = expected.iter().map(|(name, content)| (names.encode(name), content.clone()));
            assert_eq!(read(&image, kind), expected.collect::<Vec<_>>());
        }
        assert_eq!(&image[DESCRIPTORS * SECTOR + 40..][..8], b"cidata  ");
    }
}
