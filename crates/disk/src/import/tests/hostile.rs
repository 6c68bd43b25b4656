//! Images that lie.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use super::*;

fn image(directory: &TempDir, options: &[&str]) -> PathBuf {
    raw_disk(directory.path());
    let arguments = [&["convert", "-f", "raw", "-O", "qcow2"], options, &["disk.raw", "disk.qcow2"]].concat();
    qemu("qemu-img", directory.path(), &arguments);
    directory.path().join("disk.qcow2")
}

/// Opens and reads everything that can be; says whether it opened. What is asked of it is that it comes back.
fn use_it(path: &Path, format: Format) -> bool {
    let Ok(source) = open(path, format, References::Beside) else { return false };
    let mut buffer = vec![0; 65536];
    let mut at = 0;
    for _ in 0..200 {
        let _ = source.read_at(at, &mut buffer);
        let Ok(Some(extent)) = source.next_extent(at, u64::MAX) else { break };
        at += extent.length.min(65536);
    }
    true
}

#[test]
fn damage_anywhere_is_an_error_or_other_data_but_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut below = |end: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % end
    };
    let mut opened = 0;
    for options in [&[][..], &["-c"], &["-o", "cluster_size=4k"], &["-o", "compat=0.10"]] {
        let path = image(&directory, options);
        let content = fs::read(&path).unwrap();
        let hostile = directory.path().join("hostile.qcow2");
        for round in 0..300 {
            let mut damaged = content.clone();
            // Mostly in what has a meaning: the header, and tables, whose entries are not zero.
            for _ in 0..1 + below(4) {
                let at = match round % 3 {
                    0 => below(512),
                    1 => below(damaged.len() as u64 / 8) * 8,
                    _ => [65536, 131_072, 196_608, 262_144, 4096, 8192, 12288][below(7) as usize] + below(64),
                } as usize;
                let Some(byte) = damaged.get_mut(at) else { continue };
                *byte = [0, 1, 0x7f, 0x80, 0xff, below(256) as u8][below(6) as usize];
            }
            if round % 10 == 0 {
                damaged.truncate(below(content.len() as u64) as usize);
            }
            fs::write(&hostile, damaged).unwrap();
            opened += u32::from(use_it(&hostile, Format::Qcow2));
        }
    }
    assert!(opened > 100, "only {opened} got past the header");
}

fn vmdk(directory: &TempDir, kind: &str) -> PathBuf {
    raw_disk(directory.path());
    let subformat = format!("subformat={kind}");
    let arguments = ["convert", "-f", "raw", "-O", "vmdk", "-o", &subformat, "disk.raw", "disk.vmdk"];
    qemu("qemu-img", directory.path(), &arguments);
    directory.path().join("disk.vmdk")
}

#[test]
fn a_vmdk_that_was_written_as_a_stream_has_its_header_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = vmdk(&directory, "streamOptimized");
    let content = fs::read(directory.path().join("disk.raw")).unwrap();
    let mut stream = fs::read(&path).unwrap();
    let footer = stream[..512].to_vec();
    stream[56..64].fill(0xff);
    fs::write(&path, &stream).unwrap();
    let error = open(&path, Format::Vmdk, References::Deny).unwrap_err();
    assert!(error.to_string().contains("footer at offset"), "{error}");
    stream.resize(stream.len().next_multiple_of(512) + 512, 0);
    stream.extend(footer);
    stream.extend([0; 512]);
    fs::write(&path, &stream).unwrap();
    assert!(read_all(&open(&path, Format::Vmdk, References::Deny).unwrap()) == content);
}

#[test]
fn damage_in_a_vmdk_names_its_structure_and_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = vmdk(&directory, "streamOptimized");
    let good = fs::read(&path).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
    let directory_at = u32_at(56) as usize * 512;
    let table_at = u32_at(directory_at) as usize * 512;
    let grain_at = u32_at(table_at) as usize * 512;
    let broken = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, image).unwrap();
        match open(&path, Format::Vmdk, References::Deny) {
            Err(error) => error.to_string(),
            Ok(source) => source.read_at(0, &mut [0; 512]).unwrap_err().to_string(),
        }
    };
    for (at, bytes, wanted) in [
        (4, &[9][..], "version 9".to_owned()),
        (20, &[3], "header at offset 0: its grain size".to_owned()),
        (44, &[0, 0], "header at offset 0: its grain tables".to_owned()),
        (12, &[0xff; 8], "header at offset 0: its capacity".to_owned()),
        (12, &[0, 0, 0, 0, 0, 1], "more grain tables".to_owned()),
        (56, &[0xff, 0xff, 0xff], "grain directory at offset".to_owned()),
        (73, b"\r", "header at offset 0: line ends".to_owned()),
        (77, &[7], "method 7".to_owned()),
        (77, &[0], "header at offset 0: it contradicts itself".to_owned()),
        (36, &[0xff; 4], "descriptor at offset 512".to_owned()),
        (directory_at, &[0xff; 4], format!("grain table at offset {}", u64::from(u32::MAX) * 512)),
        (table_at, &[0xff; 4], format!("compressed grain at offset {}", u64::from(u32::MAX) * 512)),
        (grain_at, &[1], format!("compressed grain at offset {grain_at}: it is one of another place")),
        (grain_at + 8, &[0xff; 4], format!("compressed grain at offset {grain_at}: its length")),
        (grain_at + 12, &[0; 8], format!("compressed grain at offset {grain_at}: it cannot be decompressed")),
    ] {
        let error = broken(at, bytes);
        assert!(error.contains(&wanted) && error.contains("disk.vmdk"), "{wanted}: {error}");
    }
}

#[test]
fn sizes_in_the_header_take_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, &[]);
    let content = fs::read(&path).unwrap();
    // L1 entries, clusters of the refcount table, snapshots, cluster bits.
    for (offset, value) in [(36, u32::MAX), (36, 1 << 28), (56, u32::MAX), (56, 1 << 12), (60, u32::MAX), (20, 63), (20, 0)] {
        let mut hostile = content.clone();
        hostile[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        fs::write(&path, hostile).unwrap();
        let error = open(&path, Format::Qcow2, References::Deny).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
    let mut hostile = content;
    hostile[24..32].copy_from_slice(&u64::MAX.to_be_bytes());
    fs::write(&path, hostile).unwrap();
    assert!(matches!(open(&path, Format::Qcow2, References::Deny), Err(OpenError::Damaged { .. })));
}

#[test]
fn an_image_reads_no_file_that_it_was_not_allowed_to() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("inside");
    fs::create_dir(&inside).unwrap();
    raw_disk(directory.path());
    qemu("qemu-img", &inside, &["create", "-f", "qcow2", "-b", "../disk.raw", "-F", "raw", "up.qcow2"]);
    std::os::unix::fs::symlink("../disk.raw", inside.join("link.raw")).unwrap();
    qemu("qemu-img", &inside, &["create", "-f", "qcow2", "-b", "link.raw", "-F", "raw", "link.qcow2"]);
    let descriptor = "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 16384 FLAT \"../disk.raw\" 0\n";
    fs::write(inside.join("up.vmdk"), descriptor).unwrap();
    for (name, format) in [("up.qcow2", Format::Qcow2), ("link.qcow2", Format::Qcow2), ("up.vmdk", Format::Vmdk)] {
        for references in [References::Deny, References::Beside] {
            let error = open(inside.join(name), format, references).unwrap_err();
            assert!(matches!(error, OpenError::Reference { .. }), "{name}: {error}");
        }
        open(inside.join(name), format, References::Any).unwrap();
    }
}

#[test]
fn a_pipe_is_not_waited_for_and_a_circle_ends() {
    let directory = tempfile::tempdir().unwrap();
    raw_disk(directory.path());
    let pipe = directory.path().join("pipe");
    let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
    // SAFETY: a valid path.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(open(&pipe, Format::Qcow2, References::Deny), Err(OpenError::NotAFile { .. })));
    assert!(matches!(open(directory.path(), Format::Vmdk, References::Deny), Err(OpenError::NotAFile { .. })));

    let run = |arguments: &[&str]| qemu("qemu-img", directory.path(), arguments);
    run(&["create", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "disk.qcow2"]);
    let image = directory.path().join("disk.qcow2");
    run(&["rebase", "-u", "-b", "pipe", "-F", "raw", "disk.qcow2"]);
    let error = open(&image, Format::Qcow2, References::Beside).unwrap_err();
    assert!(matches!(&error, OpenError::NotAFile { file, .. } if file.ends_with("pipe")), "{error}");
    run(&["rebase", "-u", "-b", "disk.qcow2", "-F", "qcow2", "disk.qcow2"]);
    let error = open(&image, Format::Qcow2, References::Beside).unwrap_err();
    assert!(matches!(error, OpenError::TooDeep { .. }), "{error}");
}

#[test]
fn what_is_no_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (content, name) in [(&b""[..], "empty"), (b"QFI\xfb", "short"), (&[0xff; 4096], "noise"), (b"version=9\n", "version")] {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        for format in [Format::Qcow2, Format::Vmdk] {
            let error = open(&path, format, References::Any).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            assert!(
                matches!(error, OpenError::Damaged { .. } | OpenError::Unsupported { .. }),
                "{name} as {format:?}: {error:?}"
            );
        }
    }
    let missing = open(directory.path().join("missing"), Format::Qcow2, References::Deny).unwrap_err();
    assert!(matches!(missing, OpenError::Io { .. }), "{missing}");
}

#[test]
fn a_vmdk_descriptor_of_noise_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("flat"), [7; 4096]).unwrap();
    let path = directory.path().join("hostile.vmdk");
    for lines in [
        "RW 18446744073709551615 FLAT \"flat\" 0",
        "RW 36028797018963967 FLAT \"flat\" 36028797018963967\nRW 36028797018963967 FLAT \"flat\" 0",
        "RW 0 FLAT \"flat\" 0",
        "RW 8 FLAT \"flat\" 99999999",
        "NOACCESS 8 ZERO",
        "NOACCESS 8",
        "RW -1 ZERO",
        "RW 8 FLAT \"",
        "RW 8 FLAT \"\" 0",
        "RW 8 SPARSE \"flat\"",
        "RW 99999999999 ZERO",
        "ddb.geometry.sectors=\"\"",
        "=",
        "parentFileNameHint=\"flat\"",
    ] {
        fs::write(&path, format!("version=1\n{lines}\n")).unwrap();
        use_it(&path, Format::Vmdk);
    }
}

#[test]
fn reading_past_the_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(image(&directory, &[]), Format::Qcow2, References::Deny).unwrap();
    for offset in [SIZE as u64, SIZE as u64 - 511, u64::MAX] {
        assert!(matches!(source.read_at(offset, &mut [0; 512]), Err(ReadError::Range { .. })), "{offset}");
    }
    assert_eq!(source.next_extent(SIZE as u64, u64::MAX).unwrap(), None);
    source.read_at(SIZE as u64, &mut []).unwrap();
}
