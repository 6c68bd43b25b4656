//! A Linux bridge with two TAPs, and large segments through it: what a monitor without vhost does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::vswitch::HEADER;

use crate::pingpong::pin;
use crate::segments::segment;

const BRIDGE: &str = "marubench";
const TAPS: [&str; 2] = ["marubench0", "marubench1"];

/// The bridge, for as long as it is needed.
struct Bridge([File; 2]);

impl Bridge {
    fn new() -> Result<Bridge> {
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        let bridge = Bridge([tap(TAPS[0])?, tap(TAPS[1])?]);
        for tap in TAPS {
            ip(&["link", "set", tap, "master", BRIDGE, "up"])?;
        }
        ip(&["link", "set", BRIDGE, "up"])?;
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // The TAPs go with their descriptors.
        let _ = ip(&["link", "delete", BRIDGE]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn tap(name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let header = HEADER as libc::c_int;
    let offloads = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    // SAFETY: the kernel writes within the request, reads an int, and takes a number.
    let results = unsafe {
        [
            libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
            libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header),
            libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads),
        ]
    };
    ensure!(results.iter().all(|result| *result >= 0), "cannot make the TAP {name}: {}", std::io::Error::last_os_error());
    Ok(file)
}

/// Bytes in a second from one TAP to the other; the writer is on one core, the reader on the other.
pub fn measure(writer: usize, reader: usize, time: Duration) -> Result<f64> {
    let bridge = Bridge::new()?;
    let [from, to] = &bridge.0;
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(writer);
            let frame = segment(0);
            while !stop.load(Ordering::Relaxed) {
                // What the bridge does not take is lost, as a frame is.
                let _ = { from }.write(&frame);
            }
        });
        scope.spawn(|| {
            pin(reader);
            let mut buffer = vec![0; 1 << 17];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(count) = { to }.read(&mut buffer)
                    // Others (the kernel's own announcements) are small.
                    && count > 60_000
                {
                    bytes.fetch_add((count - HEADER) as u64, Ordering::Relaxed);
                }
            }
        });
        // A bridge's ports listen for a while before they forward.
        let begun = Instant::now();
        while bytes.load(Ordering::Relaxed) == 0 && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let before = (Instant::now(), bytes.load(Ordering::Relaxed));
        std::thread::sleep(time);
        let rate = (bytes.load(Ordering::Relaxed) - before.1) as f64 / before.0.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        ensure!(rate > 0.0, "nothing passed the bridge");
        Ok(rate)
    })
}
