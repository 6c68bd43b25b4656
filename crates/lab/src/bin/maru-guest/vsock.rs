//! A stream over the socket device: the guest connects to a port of its host and checks that all comes back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// The host's context id.
const HOST: u32 = 2;
const BYTES: usize = 1 << 20;

/// Sends 1 MiB to the host's port and compares what comes back.
pub fn check(port: u32) {
    match exchange(port) {
        Ok(()) => println!("maru-guest: vsock ok {BYTES}"),
        Err(error) => println!("maru-guest: FAIL vsock: {error}"),
    }
}

fn exchange(port: u32) -> io::Result<()> {
    let mut reader = connect(port)?;
    let mut writer = reader.try_clone()?;
    let sent: Vec<u8> = (0..BYTES as u32).map(|index| (index ^ (index >> 8)) as u8).collect();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || writer.write_all(&copy));
    let mut received = vec![0; BYTES];
    reader.read_exact(&mut received)?;
    thread.join().map_err(|_| io::Error::other("the writer panicked"))??;
    if received == sent { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

fn connect(port: u32) -> io::Result<File> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    (address.svm_family, address.svm_cid, address.svm_port) = (libc::AF_VSOCK as u16, HOST, port);
    // SAFETY: the address is valid and as long as said.
    let result = unsafe { libc::connect(fd, std::ptr::from_ref(&address).cast(), size_of_val(&address) as u32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// On the host: sends everything back that comes to a Unix socket.
pub fn serve(path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    // Monitors run as users of their own.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    println!("listening on {}", path.display());
    loop {
        let (mut stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            let mut writer = stream.try_clone()?;
            io::copy(&mut stream, &mut writer)
        });
    }
}
