//! The file systems every Linux program expects.

use std::ffi::CString;
use std::time::{Duration, Instant};
use std::{fs, io};

/// Mounts proc, sys, dev, devpts, shared memory, run, tmp and the unified control groups. Gives what failed.
pub fn mount_system() -> Vec<(String, io::Error)> {
    let table = [
        ("proc", "/proc", "proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
        ("sysfs", "/sys", "sysfs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
        ("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=755"),
        ("devpts", "/dev/pts", "devpts", libc::MS_NOSUID | libc::MS_NOEXEC, "mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
        ("tmpfs", "/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755"),
        ("tmpfs", "/tmp", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ];
    let mut failed = Vec::new();
    for (source, target, kind, flags, data) in table {
        if let Err(error) = fs::create_dir_all(target).and_then(|()| mount(source, target, kind, flags, data)) {
            failed.push((target.to_owned(), error));
        }
    }
    for (link, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        if fs::symlink_metadata(link).is_err()
            && let Err(error) = std::os::unix::fs::symlink(target, link)
        {
            failed.push((link.to_owned(), error));
        }
    }
    failed
}

/// Makes the ext4 file system on `device` the root in place of the initramfs, whose files stay in memory. Programs of the new root
/// mount what else they need.
///
/// # Errors
/// When there is no such file system. Past its mounting nothing fails for PID 1.
pub fn enter_root(device: &str) -> io::Result<()> {
    mount(device, "/mnt", "ext4", 0, "")?;
    std::env::set_current_dir("/mnt")?;
    mount(".", "/", "", libc::MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Mounts `source` at `directory`, which it makes. Drivers find their devices in the background: a device may appear a moment later.
///
/// # Errors
/// When it does not appear, or there is no such file system on it.
pub fn mount_when_there(source: &str, directory: &str, kind: &str) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const GONE: [i32; 3] = [libc::ENOENT, libc::ENXIO, libc::EINVAL];
    fs::create_dir_all(directory)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match mount(source, directory, kind, libc::MS_NOATIME, "") {
            // A virtio-fs that nobody knows yet is EINVAL.
            Err(error) if error.raw_os_error().is_some_and(|code| GONE.contains(&code)) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let [source, target, kind, data] = [source, target, kind, data].map(CString::new);
    let (source, target, kind, data) = (source?, target?, kind?, data?);
    // SAFETY: all four strings are zero-terminated and live until the call returns.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        // The kernel may have mounted devtmpfs by itself.
        error if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        error => Err(error),
    }
}
