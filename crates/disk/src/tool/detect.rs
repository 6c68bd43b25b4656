//! What a file of unknown origin is, by what it begins and ends with.

use std::path::Path;

use vhdx::Storage;

use super::{AnyFormat, ToolError};
use crate::disk::{Access, Locking, OpenOptions};
use crate::format::Format;
use crate::import;
use crate::layer::Layer;

/// What is looked at, at either end.
const LOOK: usize = 512;

/// A disk's format, where its signature is, and that.
const DISKS: [(AnyFormat, &[u8]); 5] = [
    (AnyFormat::Foreign(import::Format::Qcow2), b"QFI\xfb"),
    (AnyFormat::Foreign(import::Format::Vmdk), b"KDMV"),
    (AnyFormat::Foreign(import::Format::Vmdk), b"# Disk DescriptorFile"),
    (AnyFormat::Own(Format::Vhdx), b"vhdxfile"),
    (AnyFormat::Own(Format::Vhd), VHD_FOOTER),
];
const VHD_FOOTER: &[u8] = b"conectix";

/// What cannot be read, by its signature and where that is, and what to do.
const OTHERS: [(usize, &[u8], &str); 10] = [
    (0, b"\x1f\x8b", "it is compressed with gzip; decompress it first (gunzip)"),
    (0, b"\xfd7zXZ\0", "it is compressed with xz; decompress it first (unxz)"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstd; decompress it first (unzstd)"),
    (0, b"BZh", "it is compressed with bzip2; decompress it first (bunzip2)"),
    (0, b"PK\x03\x04", "it is a ZIP archive; take the disk out of it first"),
    (257, b"ustar", "it is a tar archive, as an OVA is; take the disk out of it first (tar -xf)"),
    (
        64,
        b"\x7f\x10\xda\xbe",
        "it is a VDI image, VirtualBox's, which cannot be read; convert it first (qemu-img convert -O qcow2)",
    ),
    (0, b"QED\0", "it is a QED image, which cannot be read; convert it first (qemu-img convert -O qcow2)"),
    (0, b"WithoutFreeSpace", "it is an image of Parallels, which cannot be read; convert it first (qemu-img convert -O qcow2)"),
    (0, b"COWD", "it is a sparse extent of an old ESX host, which cannot be read; convert it first (qemu-img convert -O qcow2)"),
];

/// The format of a disk that comes from elsewhere: raw, if it has no signature of another one. A guest that writes a raw disk can make it look like
/// another one, so that this is only for a disk that is then read by itself: [`convert_alone`](super::convert_alone).
///
/// # Errors
/// If the file is empty, is none, or is known to be what cannot be read.
pub fn detect(path: &Path) -> Result<AnyFormat, ToolError> {
    let options = OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..OpenOptions::default() };
    let layer = Layer::open(path, options)?;
    let failed = || ToolError::io(path, "looking at its beginning and its end");
    let length = layer.file.metadata().map_err(failed())?.len();
    if length == 0 {
        return Err(ToolError::options(path, "it is empty, or a device; name the file of a disk"));
    }
    let read = |offset: u64| {
        let mut bytes = vec![0; LOOK.min((length - offset) as usize)];
        Storage::read_at(&*layer.file, offset, &mut bytes).map(|()| bytes)
    };
    let (first, last) = (read(0).map_err(failed())?, read(length.saturating_sub(LOOK as u64)).map_err(failed())?);
    if let Some((format, _)) = DISKS.iter().find(|(_, signature)| first.starts_with(signature)) {
        return Ok(*format);
    }
    if last.starts_with(VHD_FOOTER) {
        return Ok(AnyFormat::Own(Format::Vhd));
    }
    match OTHERS.iter().find(|(at, signature, _)| first.get(*at..).is_some_and(|rest| rest.starts_with(signature))) {
        Some((_, _, what)) => Err(ToolError::options(path, *what)),
        None => Ok(AnyFormat::Own(Format::Raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_what_they_begin_or_end_with_and_what_cannot_be_read_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let detected = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            detect(&path)
        };
        let at = |offset: usize, signature: &[u8]| [vec![0; offset], signature.to_vec(), vec![0; 5000]].concat();
        for (format, signature) in DISKS {
            assert_eq!(detected(&at(0, signature)).unwrap(), format);
        }
        assert_eq!(detected(&[vec![0; 4096], at(0, VHD_FOOTER)[..512].to_vec()].concat()).unwrap(), AnyFormat::Own(Format::Vhd));
        for bytes in [&b"x"[..], b"QFI", &[0; 4096], &at(1, b"vhdxfile"), &at(4096, VHD_FOOTER)] {
            assert_eq!(detected(bytes).unwrap(), AnyFormat::Own(Format::Raw));
        }
        for (offset, signature, what) in OTHERS {
            let said = detected(&at(offset, signature)).unwrap_err().to_string();
            assert!(said.ends_with(what), "{said}");
        }
        assert!(detected(b"").unwrap_err().to_string().contains("it is empty"));
        assert!(detect(directory.path()).is_err() && detect(&directory.path().join("none")).is_err());
    }
}
