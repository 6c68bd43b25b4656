//! Opening disks, and what is said when it cannot be done.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use super::*;

fn refused(path: &Path, options: OpenOptions) -> String {
    let error = Disk::open(path, options).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    error
}

#[test]
fn what_is_no_disk_is_refused_with_the_way_out() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let file = |name: &str, bytes: u64| File::create(at(name)).unwrap().set_len(bytes).unwrap();
    file("empty", 0);
    file("short", 511);
    file("ragged", 1000);
    file("4k", 6144);
    let pipe = std::ffi::CString::new(at("pipe").as_os_str().as_bytes()).unwrap();
    // SAFETY: a valid path.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);

    let all = OpenOptions::default();
    let sectors = OpenOptions { sector_size: Some(SectorSize::Bytes4096), ..all };
    assert!(refused(&at("missing"), all).contains("create the disk first"));
    assert!(refused(&at("empty/disk"), all).contains("no such file"));
    assert!(refused(directory.path(), all).contains("is a directory"));
    assert!(refused(&at("pipe"), all).contains("this is a pipe"));
    assert!(refused(Path::new("/dev/full"), all).contains("a character device"));
    assert!(refused(&at("empty"), all).contains("it has 0 bytes"));
    assert!(refused(&at("short"), all).contains("less than one sector"));
    assert!(refused(&at("ragged"), all).contains("not a multiple of the sector size 512"));
    assert!(refused(&at("4k"), sectors).contains("truncate -s %4096"));
    Disk::open(at("4k"), all).unwrap();
    // A refused disk is left unlocked.
    file("empty", 512);
    Disk::open(at("empty"), all).unwrap();
}

#[test]
fn a_file_without_permission_names_the_user() {
    let directory = directory();
    let path = patterned(directory.path(), 4096);
    let show = |errno| crate::layer::open_error(&path, std::io::Error::from_raw_os_error(errno)).to_string();
    assert!(show(libc::EACCES).contains("permission denied for user id"));
    assert!(show(libc::EROFS).contains("attach it read-only"));
}

#[test]
fn capacity_and_sectors_come_from_the_file() {
    let directory = directory();
    let path = patterned(directory.path(), 1 << 20);
    for options in [OpenOptions::default(), direct(), read_only()] {
        let disk = Disk::open(&path, options).unwrap();
        assert_eq!(disk.capacity(), 1 << 20);
        assert!(disk.physical_sector_size() >= disk.sector_size().bytes());
        assert_eq!(disk.access(), options.access);
        assert_eq!(disk.path(), path);
    }
}

#[test]
fn a_descriptor_from_elsewhere_is_a_disk_too() {
    let directory = directory();
    let path = patterned(directory.path(), 8192);
    let passed = |file: File| vec![("passed".into(), OwnedFd::from(file))];
    for options in [OpenOptions::default(), direct(), read_only()] {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert_eq!(Disk::from_files(passed(file), options).unwrap().capacity(), 8192);
        let files = Disk::open_files(&path, options).unwrap();
        assert_eq!((files.len(), &files[0].0), (1, &path));
        assert_eq!(Disk::from_files(files, options).unwrap().path(), path);
    }
    let error = Disk::from_files(passed(File::open(&path).unwrap()), OpenOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
    assert!(matches!(Disk::from_files(Vec::new(), OpenOptions::default()), Err(OpenError::NoFiles)));
    let two = passed(File::open(&path).unwrap()).into_iter().chain(passed(File::open(&path).unwrap())).collect();
    assert!(matches!(Disk::from_files(two, read_only()), Err(OpenError::StrayFile { .. })));
}

#[test]
fn a_disk_grows_but_never_shrinks() {
    let directory = directory();
    let path = patterned(directory.path(), 8192);
    let disk = Disk::open(&path, OpenOptions::default()).unwrap();
    disk.resize(1 << 20).unwrap();
    assert_eq!((disk.capacity(), std::fs::metadata(&path).unwrap().len()), (1 << 20, 1 << 20));
    assert!(matches!(disk.resize(4096), Err(ResizeError::Shrink { .. })));
    assert!(matches!(disk.resize((1 << 20) + 100), Err(ResizeError::PartialSector { .. })));
    assert!(matches!(disk.resize(1 << 63), Err(ResizeError::Io { .. })));
    assert_eq!(disk.capacity(), 1 << 20);
    drop(disk);
    let disk = Disk::open(&path, read_only()).unwrap();
    assert!(matches!(disk.resize(2 << 20), Err(ResizeError::ReadOnly(_))));
}
