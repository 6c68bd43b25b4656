//! The other ends of the cables: threads in network namespaces of their own.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::LOAD_CORE;

/// Frames in a system call.
const BATCH: usize = 64;

type Work = Box<dyn FnOnce() + Send>;

/// Keeps this thread on the core that makes the load.
fn pin() {
    // SAFETY: a set of processors is valid when it is zero; the kernel reads as much as is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(LOAD_CORE, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// A thread in a namespace.
pub struct End {
    work: Sender<Work>,
    thread: libc::pid_t,
}

impl End {
    /// Starts it, on the core that makes the load.
    pub fn start() -> Result<End> {
        let (work, inbox) = channel::<Work>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            pin();
            // SAFETY: numbers only; it is for this thread.
            let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            // SAFETY: no arguments.
            let _ = tell.send(if unshared == 0 { Ok(unsafe { libc::gettid() }) } else { Err(io::Error::last_os_error()) });
            inbox.into_iter().for_each(|work| work());
        });
        Ok(End { work, thread: told.recv()?.context("a network namespace: run this as root")? })
    }

    /// The name of its namespace.
    pub fn thread(&self) -> libc::pid_t {
        self.thread
    }

    /// Has it do something.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        let (tell, told) = channel();
        // Who does not wait any more does not want it.
        let _ = self.work.send(Box::new(move || drop(tell.send(work()))));
        told.recv().context("the other end has ended")?
    }
}

/// `ip ARGUMENTS`.
pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().context("ip, of iproute2")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Has an interface hand over frames as they are on a wire: with their checksums, and none longer than its MTU.
pub fn whole_frames(name: &str) -> Result<()> {
    // ETHTOOL_STXCSUM of linux/ethtool.h, by SIOCETHTOOL. Without it there are no segments, either.
    let mut request = [0x17u32, 0];
    // SAFETY: all zeroes are a valid ifreq.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    interface.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request is as long as its command says, and lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), 0x8946, &raw mut interface) };
    ensure!(done == 0, "{name}: {}", io::Error::last_os_error());
    Ok(())
}

/// Frames that came in at an interface of this thread's namespace.
pub fn received(name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')).context("no such interface")?;
    Ok(line.split_whitespace().nth(1).context("no count")?.parse()?)
}

/// Sends frames from one station to another for some time, one batch at least.
pub fn send(name: &str, bytes: usize, [from, to]: [u8; 2], time: Duration) -> Result<()> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let interface = std::ffi::CString::new(name)?;
    // SAFETY: all zeroes are a valid address, and the name ends with a zero.
    let address = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = libc::if_nametoindex(interface.as_ptr()) as i32;
        address
    };
    // SAFETY: the address is valid and of that size.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) };
    ensure!(bound == 0, "{name}: {}", io::Error::last_os_error());
    let mut frame = [&[0x52, 0x54, 0, 0, 0, to], &[0x52, 0x54, 0, 0, 0, from], &[0x88, 0xb5][..]].concat();
    frame.resize(bytes, 0);
    let mut piece = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: all zeroes are valid messages, which are then given their one piece.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (&raw mut piece, 1);
    }
    let begun = Instant::now();
    loop {
        // SAFETY: the messages and what they refer to live through the call. What is not taken is sent the next time.
        unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        if begun.elapsed() >= time {
            return Ok(());
        }
    }
}

/// Bytes that a TCP stream carries from one end to the other in some time.
pub fn stream(sender: &End, receiver: &End, time: Duration) -> Result<u64> {
    let listener = receiver.run(|| Ok(TcpListener::bind("10.9.0.2:7")?))?;
    let reading = std::thread::spawn(move || -> Result<u64> {
        pin();
        let (mut stream, mut buffer, mut bytes) = (listener.accept()?.0, vec![0; 1 << 20], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(bytes),
                count => bytes += count as u64,
            }
        }
    });
    sender.run(move || {
        let mut stream = TcpStream::connect("10.9.0.2:7")?;
        let (buffer, begun) = (vec![0; 1 << 20], Instant::now());
        while begun.elapsed() < time {
            stream.write_all(&buffer)?;
        }
        Ok(())
    })?;
    reading.join().map_err(|_| anyhow::anyhow!("the receiver has failed"))?
}
