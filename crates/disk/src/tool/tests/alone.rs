//! Disks of strangers: whatever they name, no other file is opened.

use std::fs;
use std::path::Path;

use super::super::{AnyFormat, Existing, Job, NewDisk, convert_alone, create};
use crate::format::Format;
use crate::import;

/// A qcow2 image of a megabyte, version 2, without data, whose backing file this is.
fn qcow2(backing: &str) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 16];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(8, &72_u64.to_be_bytes());
    put(16, &(backing.len() as u32).to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3_u64 << 16).to_be_bytes());
    put(48, &(1_u64 << 16).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(72, backing.as_bytes());
    bytes
}

#[test]
fn a_disk_that_names_another_file_is_refused_and_one_that_does_not_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("secret.raw"), [7; 1 << 20]).unwrap();
    let secret = at("secret.raw");
    let extents = |name: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{name}\" 0\n"
        )
    };
    fs::write(at("absolute.qcow2"), qcow2(secret.to_str().unwrap())).unwrap();
    fs::write(at("beside.qcow2"), qcow2("secret.raw")).unwrap();
    fs::write(at("beside.vmdk"), extents("secret.raw")).unwrap();
    for format in [Format::Vhdx, Format::Vhd] {
        let end = format.to_string().to_lowercase();
        let base = at(&format!("base.{end}"));
        create(&base, &NewDisk { format, size: Some(1 << 20), ..NewDisk::default() }).unwrap();
        let parent = Some((base, format));
        create(&at(&format!("child.{end}")), &NewDisk { format, parent, ..NewDisk::default() }).unwrap();
    }
    let new = NewDisk { format: Format::Vhdx, ..NewDisk::default() };
    let alone = |path: &Path, format| convert_alone((path, format), &at("out.vhdx"), &new, Existing::Keep, &Job::default());
    let (qcow2, vmdk) = (AnyFormat::Foreign(import::Format::Qcow2), AnyFormat::Foreign(import::Format::Vmdk));
    let (vhdx, vhd) = (AnyFormat::Own(Format::Vhdx), AnyFormat::Own(Format::Vhd));
    for (name, format, expected) in [
        ("absolute.qcow2", qcow2, "refers to"),
        ("beside.qcow2", qcow2, "refers to"),
        ("beside.vmdk", vmdk, "refers to"),
        ("child.vhdx", vhdx, "differencing"),
        ("child.vhd", vhd, "differencing"),
    ] {
        let said = alone(&at(name), format).unwrap_err().to_string();
        assert!(said.contains(expected), "{name}: {said}");
        assert!(!at("out.vhdx").exists());
    }
    for (name, format) in [("base.vhdx", vhdx), ("base.vhd", vhd), ("secret.raw", AnyFormat::Own(Format::Raw))] {
        alone(&at(name), format).unwrap();
        fs::remove_file(at("out.vhdx")).unwrap();
    }
}
