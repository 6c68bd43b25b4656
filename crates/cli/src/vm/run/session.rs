//! A VM while it runs.
//!
//! ```text
//!            Ctrl-], signal                 again, or after STOP_PATIENCE
//!  running ────────────────> stopping ──────────────────────────────────────> killed
//!     └──────────────────────────┴────────── the monitor ends ──────────────────┴──> exit status
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use vmm::control::{self, Connection, Message, Reply, Request};

use super::error::RunError;
use super::monitor::Start;
use crate::terminal::{Input, Proxy, RawMode, StopSignals, Wake, is_mine};

/// How long a monitor may take to end after it was told to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Starts the monitor and stays with it until it ends. Returns the exit status to pass on.
pub fn run(start: &Start) -> Result<u8, RunError> {
    // Before the monitor starts: a signal that comes meanwhile must find someone to tell it.
    let signals = StopSignals::take().map_err(RunError::host("taking signals"))?;
    let (control, theirs) = control::pair().map_err(RunError::host("making the control connection"))?;
    let monitor = start.spawn(&theirs)?;
    drop(theirs);
    let exited = pidfd(&monitor.process).map_err(RunError::host("watching the monitor"))?;

    let (stdin, stdout) = (io::stdin(), io::stdout());
    let on_terminal = is_mine(stdin.as_fd());
    let raw = if on_terminal {
        eprintln!("Ctrl-] ends the VM");
        Some(RawMode::enter(stdin.as_fd()).map_err(RunError::host("switching the terminal to raw mode"))?)
    } else {
        None
    };
    let input = match &raw {
        Some(_) => Input::Terminal(stdin.as_fd()),
        // A terminal that is not ours now: this runs in a shell's background.
        None if io::IsTerminal::is_terminal(&stdin) => Input::None,
        None => Input::Bytes(stdin.as_fd()),
    };
    let console = RunError::host("using the console");
    let proxy = Proxy::new(input, stdout.as_fd(), monitor.console).map_err(console)?;
    let mut session = Session { proxy, control, process: monitor.process, stop_deadline: None, killed: false };
    let status = session.run(&signals, exited.as_fd())?;
    drop(raw);
    if let Some(signal) = status.signal().filter(|_| !session.killed) {
        eprintln!("maru: the VM's monitor was killed by signal {signal}");
    }
    Ok(exit_status(status))
}

struct Session<'a> {
    proxy: Proxy<'a>,
    control: Connection,
    process: Child,
    /// Set once the VM was told to stop.
    stop_deadline: Option<Instant>,
    killed: bool,
}

impl Session<'_> {
    fn run(&mut self, signals: &StopSignals, exited: BorrowedFd<'_>) -> Result<ExitStatus, RunError> {
        let mut control_open = true;
        loop {
            // A copy, since the proxy is not to borrow the session.
            // SAFETY: the connection lives as long as the session and is not closed in between.
            let control = unsafe { BorrowedFd::borrow_raw(self.control.as_raw_fd()) };
            let others = [exited, signals.as_fd(), control];
            let others = if control_open { &others[..] } else { &others[..2] };
            match self.proxy.wait(others, self.stop_deadline).map_err(RunError::host("using the console"))? {
                Wake::Other(0) => break,
                Wake::Other(1) => {
                    while signals.next().is_some() {
                        self.stop("");
                    }
                }
                Wake::Other(_) => control_open = self.take_reply(),
                Wake::Escape => self.stop("\nCtrl-]: the VM ends\n"),
                Wake::Deadline => {
                    eprintln!("maru: the VM's monitor did not end within {} s, killing it", STOP_PATIENCE.as_secs());
                    self.kill();
                }
                Wake::ConsoleClosed => {}
            }
        }
        // What the guest said last may still be on its way to someone who reads slowly; a signal or Ctrl-] ends the wait.
        while !self.proxy.is_closed() {
            match self.proxy.wait(&[signals.as_fd()], None).map_err(RunError::host("using the console"))? {
                Wake::ConsoleClosed | Wake::Escape | Wake::Other(_) => break,
                Wake::Deadline => {}
            }
        }
        self.process.wait().map_err(RunError::host("waiting for the monitor"))
    }

    /// Tells the monitor to end the VM; the second time does not ask any more.
    fn stop(&mut self, message: &str) {
        if self.stop_deadline.is_some() || self.killed {
            self.kill();
            return;
        }
        eprint!("{message}");
        self.stop_deadline = Some(Instant::now() + STOP_PATIENCE);
        // A monitor that cannot be told is about to end, or is killed at the deadline.
        let _ = self.control.send(&Request::Stop, &[]);
    }

    fn kill(&mut self) {
        self.stop_deadline = None;
        self.killed = true;
        // It can only have ended meanwhile.
        let _ = self.process.kill();
    }

    /// Takes one packet from the monitor; returns whether there may be more.
    fn take_reply(&mut self) -> bool {
        match self.control.receive::<Message>() {
            Ok(Some((Message::Reply(Reply::Error(failure)), _))) => {
                eprintln!("maru: the VM's monitor does not stop the VM: {failure}; killing it");
                self.kill();
                true
            }
            Ok(Some(_)) => true,
            Err(error) => error.kind() == io::ErrorKind::InvalidData,
            Ok(None) => false,
        }
    }
}

/// A descriptor that becomes readable when the process has ended.
fn pidfd(process: &Child) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers; the process is our child and was not waited for, so its id is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id() as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// The monitor's exit status in the form of shells: a signal is 128 and its number.
fn exit_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
