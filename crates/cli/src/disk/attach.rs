//! `maru disk attach` and `maru disk detach`.
//!
//! ```text
//!   attach ──starts──▶ attach --serve, a session of its own ──▶ /dev/nbdN until it is detached
//!      ▲                     │ the device's name, on standard output, when it can be used
//!      └─────────────────────┘ or its error, and its exit status
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use clap::Args;
use disk::nbd::{self, Attachment};
use disk::{Access, Cache, Disk, OpenOptions};

use super::format::FormatName;
use crate::terminal::StopSignals;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk attach data.vhdx               prints /dev/nbd0
  mount /dev/nbd0 /mnt
  umount /mnt
  maru disk detach /dev/nbd0

Needs root, and the kernel's module nbd. The disk is locked meanwhile, as by a VM. What serves it ends with `maru disk detach`, or by
SIGTERM if the device is not in use; if it is killed, the device fails, and is free again when nobody uses it any more.";

/// Make a disk a block device of this machine
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct AttachArgs {
    /// The disk
    path: PathBuf,
    /// Only read it
    #[arg(long)]
    read_only: bool,
    /// Go around the host's page cache: the device has one of its own
    #[arg(long)]
    direct: bool,
    /// What the file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// Stay until it is detached; Ctrl-C detaches it
    #[arg(long)]
    foreground: bool,
    /// The process in the background
    #[arg(long, hide = true, conflicts_with = "foreground")]
    serve: bool,
}

/// Take the block device of a disk away again
///
/// All that was written to it is made durable first. One that is mounted stays.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The device, such as /dev/nbd0
    device: PathBuf,
}

/// Attaches the disk.
pub fn attach(args: &AttachArgs) -> anyhow::Result<ExitCode> {
    if !args.foreground && !args.serve {
        return start_in_background();
    }
    // Before any thread is there. From here on a signal is something that is waited for.
    let signals = StopSignals::take()?;
    let format = FormatName::or_extension(args.format, &args.path).own(&args.path, "attaching")?;
    let access = if args.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let cache = if args.direct { Cache::Direct } else { Cache::Host };
    let disk = Disk::open(&args.path, OpenOptions { format, access, cache, ..OpenOptions::default() })?;
    let attachment = Attachment::new(disk)?;
    let path = attachment.path().to_owned();
    if args.serve {
        // SAFETY: no arguments. Failing means that this is a session's leader already, which is as good.
        unsafe { libc::setsid() };
        // The directory that it was started in can go.
        std::env::set_current_dir("/")?;
    }
    std::thread::spawn({
        let path = path.clone();
        move || detach_on_signal(&signals, &path)
    });
    let ready = || {
        let mut out = io::stdout().lock();
        // Whoever started this may have gone; the device is there all the same.
        let _ = writeln!(out, "{}", path.display()).and_then(|()| out.flush());
        if args.serve {
            let _ = leave_standard_streams();
        }
    };
    attachment.run(ready)?;
    Ok(ExitCode::SUCCESS)
}

/// Detaches the device.
pub fn detach(args: &DetachArgs) -> anyhow::Result<()> {
    Ok(nbd::detach(&args.device)?)
}

/// Starts this program again with `--serve`, and waits until the device is there.
fn start_in_background() -> anyhow::Result<ExitCode> {
    let own = std::env::current_exe().context("finding out where maru is")?;
    let mut server = Command::new(own);
    server.args(std::env::args_os().skip(1)).arg("--serve").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = server.spawn().context("starting the process that serves the disk")?;
    let mut device = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout).read_line(&mut device)?;
    }
    if device.is_empty() {
        // It has said why.
        let status = server.wait()?;
        return Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).into());
    }
    crate::output::print(&device)?;
    Ok(ExitCode::SUCCESS)
}

fn detach_on_signal(signals: &StopSignals, device: &Path) {
    loop {
        let mut poll = libc::pollfd { fd: signals.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, -1) };
        if signals.next().is_some()
            && let Err(error) = nbd::detach(device)
        {
            eprintln!("maru: {:#}", anyhow::Error::new(error));
        }
    }
}

/// Lets go of the terminal, and of the pipe to whoever waits for the device's name.
fn leave_standard_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in 0..=2 {
        // SAFETY: both are open descriptors; dup2 replaces the second in one step.
        unsafe { libc::dup2(null.as_raw_fd(), stream) };
    }
    Ok(())
}
