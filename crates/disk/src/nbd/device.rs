//! The kernel's side: devices that are free, that get a disk, and that lose it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::error::{AttachError, DetachError, ServeError};
use super::protocol::transmission_flag as flag;
use super::server::serve;
use crate::disk::{Access, Disk};
use crate::geometry;

/// `linux/nbd.h`: `_IO(0xab, N)`.
const NBD_SET_SOCK: libc::c_ulong = 0xab00;
const NBD_SET_BLKSIZE: libc::c_ulong = 0xab01;
const NBD_DO_IT: libc::c_ulong = 0xab03;
const NBD_CLEAR_SOCK: libc::c_ulong = 0xab04;
const NBD_SET_SIZE_BLOCKS: libc::c_ulong = 0xab07;
const NBD_DISCONNECT: libc::c_ulong = 0xab08;
const NBD_SET_FLAGS: libc::c_ulong = 0xab0a;

/// Memory for this thread is not to be had by writing to disks, which may be the one that it serves.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// How often it is looked whether the device has its size, for which the kernel has no event but one for the whole system.
const READY_TICK: Duration = Duration::from_millis(5);

/// A disk that has a device, which is not there for others before [`Attachment::run`].
pub struct Attachment {
    path: PathBuf,
    device: File,
    disk: Disk,
    /// Our end.
    socket: UnixStream,
    /// That the kernel gets.
    kernel_socket: UnixStream,
}

impl Attachment {
    /// Finds a free device for a disk and takes it. It stays with the calling thread, on which [`Attachment::run`] is to be called.
    pub fn new(disk: Disk) -> Result<Attachment, AttachError> {
        let devices = devices();
        if devices.is_empty() {
            return Err(AttachError::NoModule);
        }
        for name in &devices {
            let path = Path::new("/dev").join(name);
            // The kernel refuses one that is taken; a look before saves opening it.
            if owner(name).is_some() {
                continue;
            }
            let fail = |action| {
                let device = path.clone();
                move |source: io::Error| match source.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => AttachError::NotPermitted(device),
                    _ => AttachError::Io { device, action, source },
                }
            };
            let device = File::options().read(true).write(true).open(&path).map_err(fail("opening it"))?;
            let (socket, kernel_socket) = UnixStream::pair().map_err(fail("making its socket"))?;
            match control(&device, NBD_SET_SOCK, kernel_socket.as_raw_fd() as u64) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
                other => other.map_err(fail("taking it"))?,
            }
            let sector = u64::from(disk.sector_size().bytes());
            control(&device, NBD_SET_BLKSIZE, sector).map_err(fail("setting its sector size"))?;
            control(&device, NBD_SET_SIZE_BLOCKS, disk.capacity() / sector).map_err(fail("setting its size"))?;
            control(&device, NBD_SET_FLAGS, flags(&disk)).map_err(fail("setting what it can do"))?;
            return Ok(Attachment { path, device, disk, socket, kernel_socket });
        }
        Err(AttachError::NoFreeDevice(devices.len()))
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves the device until it is detached; then everything is durable, and the disk is unlocked. `ready` is called, on a thread of
    /// its own, when it can be used. The calling thread should have signals blocked: one that is caught ends the device.
    pub fn run(self, ready: impl FnOnce() + Send) -> Result<(), AttachError> {
        let Attachment { path, device, disk, socket, kernel_socket } = self;
        drop(kernel_socket);
        let is_over = AtomicBool::new(false);
        let (ended, served) = thread::scope(|scope| {
            let server = scope.spawn(|| {
                // SAFETY: numbers only. Without the right to do it, this is one program of many that need memory.
                unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
                let served = serve(&disk, &socket);
                // For the kernel this is the end. What it says to that does not matter.
                let _ = socket.shutdown(std::net::Shutdown::Both);
                served
            });
            scope.spawn(|| {
                let is_there = || geometry::device_size(&device).is_ok_and(|size| size == disk.capacity());
                while !is_over.load(Ordering::Relaxed) {
                    if is_there() {
                        return ready();
                    }
                    thread::sleep(READY_TICK);
                }
            });
            let ended = control(&device, NBD_DO_IT, 0);
            is_over.store(true, Ordering::Relaxed);
            let _ = socket.shutdown(std::net::Shutdown::Both);
            let served = server.join().unwrap_or_else(|_| Err(ServeError::Socket(io::Error::other("its thread failed"))));
            (ended, served)
        });
        // It has no socket that works any more, and forgets it at the latest when it is closed.
        let _ = control(&device, NBD_CLEAR_SOCK, 0);
        served.map_err(|source| AttachError::Serve { device: path.clone(), source })?;
        ended.map_err(|source| AttachError::Io { device: path, action: "serving it", source })
    }
}

/// Makes everything durable that was written to a device, ends it, and waits until its disk is free. From the process that serves it,
/// it does not wait.
///
/// # Errors
/// A device that is mounted, or otherwise claimed, stays.
pub fn detach(path: &Path) -> Result<(), DetachError> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_device(name));
    let name = name.ok_or_else(|| DetachError::NoDevice(path.to_owned()))?;
    if path.parent() != Some(Path::new("/dev")) || !devices().iter().any(|it| it == name) {
        return Err(DetachError::NoDevice(path.to_owned()));
    }
    let not_attached = || DetachError::NotAttached(path.to_owned());
    let fail = |action| {
        let device = path.to_owned();
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => DetachError::NotPermitted(device),
            Some(libc::EBUSY) => DetachError::InUse(device),
            _ => DetachError::Io { device, action, source },
        }
    };
    let pid = owner(name).ok_or_else(not_attached)?;
    let process = (pid != std::process::id()).then(|| open_process(pid)).transpose();
    let process = process.map_err(fail("watching the process that serves it"))?;
    // Whatever had this number before is not what was opened, if the device still has it.
    if owner(name) != Some(pid) {
        return Err(not_attached());
    }
    let (theirs, ours) = (program(pid), program(std::process::id()));
    if theirs != ours {
        return Err(DetachError::Foreign { device: path.to_owned(), pid, name: theirs });
    }
    // Nobody mounts it any more from here on.
    let device = File::options().read(true).custom_flags(libc::O_EXCL).open(path).map_err(fail("opening it"))?;
    device.sync_all().map_err(fail("flushing it"))?;
    control(&device, NBD_DISCONNECT, 0).map_err(fail("ending it"))?;
    drop(device);
    process.map_or(Ok(()), |process| wait_for(&process).map_err(fail("waiting for the process that serves it")))
}

/// The names of all devices, in their order.
fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_device(name)).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

fn is_device(name: &str) -> bool {
    name.strip_prefix("nbd").is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The process that serves a device, while it is there.
fn owner(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/sys/block/{name}/pid")).ok()?.trim().parse().ok()
}

fn program(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn flags(disk: &Disk) -> u64 {
    let writable = flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
    flag::HAS_FLAGS | if disk.access() == Access::ReadOnly { flag::READ_ONLY } else { writable }
}

fn control(device: &File, request: libc::c_ulong, argument: u64) -> io::Result<()> {
    // SAFETY: these requests take a number, or nothing.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that becomes readable when the process has ended.
fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's; descriptors are small numbers.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn wait_for(process: &OwnedFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut poll, 1, -1) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(()),
        }
    }
}
