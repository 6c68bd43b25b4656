//! What `qemu-img` writes reads as what it was made of.

use super::*;

fn check(image: &Path, format: Format, references: References, content: &[u8]) -> Source {
    let source = open(image, format, references).unwrap();
    assert_eq!(source.size(), content.len() as u64);
    assert!(read_all(&source) == content, "{} reads differently", image.display());
    for (at, extent) in extents(&source) {
        let part = &content[at as usize..(at + extent.length) as usize];
        assert!(extent.content == Content::Data || part.iter().all(|byte| *byte == 0), "{extent:?} at {at}");
    }
    source
}

#[test]
fn qcow2_of_every_kind_reads_as_the_disk_it_was_made_from() {
    let directory = tempfile::tempdir().unwrap();
    let content = raw_disk(directory.path());
    for options in [
        &["-o", "compat=0.10"][..],
        &["-o", "compat=1.1"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "refcount_bits=1"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "preallocation=metadata"],
        &["-c"],
        &["-c", "-o", "cluster_size=4k"],
    ] {
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options);
        arguments.extend(["disk.raw", "disk.qcow2"]);
        qemu("qemu-img", directory.path(), &arguments);
        check(&directory.path().join("disk.qcow2"), Format::Qcow2, References::Deny, &content);
    }
}

#[test]
fn holes_and_zeros_are_told_from_data() {
    let directory = tempfile::tempdir().unwrap();
    qemu("qemu-img", directory.path(), &["create", "-f", "qcow2", "disk.qcow2", "64M"]);
    let commands = ["-c", "write -P 7 1M 1M", "-c", "write -z 4M 2M", "disk.qcow2"];
    qemu("qemu-io", directory.path(), &[&["-f", "qcow2"], &commands[..]].concat());
    let source = open(directory.path().join("disk.qcow2"), Format::Qcow2, References::Deny).unwrap();
    const MIB: u64 = 1 << 20;
    let found: Vec<_> =
        extents(&source).into_iter().map(|(at, extent)| (at / MIB, extent.length / MIB, extent.content)).collect();
    let (data, zero, hole) = (Content::Data, Content::Zero, Content::Hole);
    assert_eq!(found, [(0, 1, hole), (1, 1, data), (2, 2, hole), (4, 2, zero), (6, 58, hole)]);
}

#[test]
fn a_large_empty_disk_is_one_look() {
    let directory = tempfile::tempdir().unwrap();
    qemu("qemu-img", directory.path(), &["create", "-f", "qcow2", "disk.qcow2", "16T"]);
    let source = open(directory.path().join("disk.qcow2"), Format::Qcow2, References::Deny).unwrap();
    assert_eq!(source.size(), 16 << 40);
    let all = extents(&source);
    assert!(all.len() <= 64 && all.iter().all(|(_, extent)| extent.content == Content::Hole), "{} extents", all.len());
}

#[test]
fn backing_files_are_followed_when_that_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let mut content = raw_disk(directory.path());
    let run = |program, arguments: &[&str]| qemu(program, directory.path(), arguments);
    run("qemu-img", &["create", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "middle.qcow2"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 2M 64k", "-c", "write -z 64k 64k", "middle.qcow2"]);
    // The top is larger than what it stands on.
    run("qemu-img", &["create", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", "9M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 2 3M 512", "top.qcow2"]);
    content[2 << 20..(2 << 20) + 65536].fill(1);
    content[65536..131_072].fill(0);
    content[3 << 20..(3 << 20) + 512].fill(2);
    content.resize(9 << 20, 0);
    let top = directory.path().join("top.qcow2");
    for references in [References::Beside, References::Any] {
        check(&top, Format::Qcow2, references, &content);
    }
    let before: Vec<_> = ["disk.raw", "middle.qcow2"].map(|name| fs::read(directory.path().join(name)).unwrap()).into();
    let error = open(&top, Format::Qcow2, References::Deny).unwrap_err();
    assert!(matches!(&error, OpenError::Reference { file, .. } if file.ends_with("middle.qcow2")), "{error}");
    for (name, before) in ["disk.raw", "middle.qcow2"].into_iter().zip(before) {
        assert!(fs::read(directory.path().join(name)).unwrap() == before, "{name} was written");
    }
}

#[test]
fn an_external_data_file_is_read_only_and_follows_the_same_rule() {
    let directory = tempfile::tempdir().unwrap();
    let content = raw_disk(directory.path());
    qemu("qemu-img", directory.path(), &["create", "-f", "qcow2", "-o", "data_file=data.raw", "disk.qcow2", "8M"]);
    qemu("qemu-img", directory.path(), &["convert", "-n", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let image = directory.path().join("disk.qcow2");
    check(&image, Format::Qcow2, References::Beside, &content);
    assert!(matches!(open(&image, Format::Qcow2, References::Deny), Err(OpenError::Reference { .. })));
}

#[test]
fn flat_vmdk_reads_as_the_disk_it_was_made_from() {
    for kind in ["subformat=monolithicFlat", "subformat=twoGbMaxExtentFlat"] {
        let directory = tempfile::tempdir().unwrap();
        let content = raw_disk(directory.path());
        qemu("qemu-img", directory.path(), &["convert", "-f", "raw", "-O", "vmdk", "-o", kind, "disk.raw", "disk.vmdk"]);
        let image = directory.path().join("disk.vmdk");
        check(&image, Format::Vmdk, References::Beside, &content);
        // Its extents are files that it names.
        assert!(matches!(open(&image, Format::Vmdk, References::Deny), Err(OpenError::Reference { .. })), "{kind}");
    }
}

#[test]
fn sparse_vmdk_of_every_kind_reads_as_the_disk_it_was_made_from() {
    for kind in ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse"] {
        let directory = tempfile::tempdir().unwrap();
        let content = raw_disk(directory.path());
        let subformat = format!("subformat={kind}");
        let arguments = ["convert", "-f", "raw", "-O", "vmdk", "-o", &subformat, "disk.raw", "disk.vmdk"];
        qemu("qemu-img", directory.path(), &arguments);
        let is_alone = kind != "twoGbMaxExtentSparse";
        let references = if is_alone { References::Deny } else { References::Beside };
        let source = check(&directory.path().join("disk.vmdk"), Format::Vmdk, references, &content);
        let data: u64 = extents(&source).iter().filter(|it| it.1.content == Content::Data).map(|it| it.1.length).sum();
        assert!(data < 3 << 20, "{kind}: {data} bytes would be copied");
        let denied = open(directory.path().join("disk.vmdk"), Format::Vmdk, References::Deny);
        assert_eq!(denied.is_ok(), is_alone, "{kind}: {denied:?}");
    }
}

#[test]
fn a_vmdk_in_several_sparse_extents_and_with_zeroed_grains_reads_as_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let run = |program, arguments: &[&str]| qemu(program, directory.path(), arguments);
    run("qemu-img", &["create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse,zeroed_grain=on", "disk.vmdk", "5G"]);
    let commands = ["-c", "write -P 1 2047M 2M", "-c", "write -P 2 4500M 64k", "-c", "write -z 2047M 64k", "disk.vmdk"];
    run("qemu-io", &[&["-f", "vmdk"], &commands[..]].concat());
    let source = open(directory.path().join("disk.vmdk"), Format::Vmdk, References::Beside).unwrap();
    assert_eq!(source.size(), 5 << 30);
    let mut found = vec![0xee; 2 << 20];
    source.read_at(2047 << 20, &mut found).unwrap();
    assert!(found[..65536].iter().all(|byte| *byte == 0) && found[65536..].iter().all(|byte| *byte == 1));
    source.read_at(4500 << 20, &mut found[..131_072]).unwrap();
    assert!(found[..65536].iter().all(|byte| *byte == 2) && found[65536..131_072].iter().all(|byte| *byte == 0));
    let all = extents(&source);
    assert_eq!(all.iter().filter(|it| it.1.content == Content::Zero).map(|it| it.1.length).sum::<u64>(), 65536);
    assert_eq!(all.iter().filter(|it| it.1.content == Content::Data).map(|it| it.1.length).sum::<u64>(), 2 << 20);
}

#[test]
fn what_cannot_be_read_says_so_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    raw_disk(directory.path());
    qemu("qemu-img", directory.path(), &["convert", "-f", "raw", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    qemu("qemu-img", directory.path(), &["create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "disk.vmdk"]);
    let error = open(directory.path().join("disk.vmdk"), Format::Vmdk, References::Any).unwrap_err();
    assert!(matches!(error, OpenError::Unsupported { .. }) && error.to_string().contains("snapshot"), "{error:?}");
    assert!(error.to_string().contains("qemu-img convert -O raw"), "{error}");
    for options in ["compression_type=zstd", "extended_l2=on", "encrypt.format=luks,encrypt.key-secret=key"] {
        let secret = ["--object", "secret,id=key,data=secret"];
        let arguments =
            [&["convert"], &secret[..], &["-f", "raw", "-O", "qcow2", "-o", options, "disk.raw", "other.qcow2"]].concat();
        qemu("qemu-img", directory.path(), &arguments);
        let error = open(directory.path().join("other.qcow2"), Format::Qcow2, References::Deny).unwrap_err();
        assert!(matches!(error, OpenError::Unsupported { .. }), "{error:?}");
    }
}

#[test]
fn several_threads_read_one_source() {
    let directory = tempfile::tempdir().unwrap();
    let content = raw_disk(directory.path());
    qemu("qemu-img", directory.path(), &["convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"]);
    let source = open(directory.path().join("disk.qcow2"), Format::Qcow2, References::Deny).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(read_all(&source) == content));
        }
    });
}
