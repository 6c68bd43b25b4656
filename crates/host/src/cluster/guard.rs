//! What ends this host's VMs when its lease is over: `maru-guard`, a process of its own, which goes on when `marud` ends.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::Moment;
use guard::BootTime;
use guard::client::{Client, ClientError};
use guard::page::{Page, Says};
use guard::protocol::{Request, StateName, Status};
use store::LeaseId;

use crate::vm::process::{self, Start};

/// How long a guard may take to answer: it has nothing else to do.
const ANSWER: Duration = Duration::from_millis(300);
/// How long it may take to listen after it was started.
const START: Duration = Duration::from_secs(5);
/// Between two tries to reach one that has just been started.
const AGAIN: Duration = Duration::from_millis(20);
/// How long before the end of the lease the watchdog has fired at the latest: half of the margin that the deadline has (`docs/src/cluster.md`).
const WATCHDOG_MARGIN: &str = "500";
/// The watchdog of the kernel.
const WATCHDOG: &str = "/dev/watchdog";

/// Where the page is that says until when VMs of this host may run. Monitors look at it before each write.
pub fn page(run_directory: &Path) -> PathBuf {
    run_directory.join("guard/page")
}

/// Makes the page, if it is not there: without a cluster, VMs may run for ever.
///
/// # Errors
/// When it cannot be made, or is something else.
pub fn make_page(run_directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(run_directory.join("guard"))?;
    guard::page::make(&page(run_directory)).map(drop)
}

/// This host needs no lease any more, and no guard: it has left its cluster.
///
/// # Errors
/// When the page cannot be written.
pub fn let_go(run_directory: &Path) -> io::Result<()> {
    if !page(run_directory).try_exists()? {
        return Ok(());
    }
    if let Ok(client) = Client::connect(&run_directory.join("guard/socket"), START) {
        let _ = client.call(&Request::Release);
        return Ok(());
    }
    let (page, ..) = Page::open(&page(run_directory))?;
    page.say(Says::Free, 0);
    Ok(())
}

/// The guard of this host.
pub struct Guard {
    program: PathBuf,
    directory: PathBuf,
    vms: PathBuf,
    watchdog: Option<PathBuf>,
    client: Option<Client>,
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The program.
    #[error("{} cannot be started", .0.display())]
    Program(PathBuf, #[source] io::Error),
    /// It ends, or does not answer.
    #[error("the guard does not answer; its log is {}", .log.display())]
    Silent {
        /// What it said.
        log: PathBuf,
        /// Why.
        source: ClientError,
    },
}

impl Guard {
    /// The guard for VMs in this control group.
    pub fn new(program: PathBuf, run_directory: &Path, vms: &Path) -> Guard {
        let watchdog = Path::new(WATCHDOG);
        Guard {
            program,
            directory: run_directory.join("guard"),
            vms: vms.into(),
            watchdog: watchdog.exists().then(|| watchdog.into()),
            client: None,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// How things are, with a guard that is started if none runs.
    pub fn status(&mut self) -> Result<Status, GuardError> {
        self.call(&Request::Status)
    }

    /// VMs may run until then.
    pub fn extend(&mut self, lease: LeaseId, deadline: Moment) -> Result<(), GuardError> {
        let deadline = BootTime(u64::try_from(deadline.0.as_nanos()).unwrap_or(u64::MAX));
        self.call(&Request::Extend { lease: lease.0.cast_unsigned(), deadline }).map(drop)
    }

    fn call(&mut self, request: &Request) -> Result<Status, GuardError> {
        if let Some(client) = &self.client {
            match client.call(request) {
                Ok(status) => return Ok(status),
                Err(error @ ClientError::Refused(_)) => return Err(self.silent(error)),
                // After an answer that did not come, a connection is of no use.
                Err(_) => self.client = None,
            }
        }
        self.start()?;
        let begun = Instant::now();
        loop {
            let asked =
                Client::connect(&self.socket(), ANSWER).and_then(|client| client.call(request).map(|told| (client, told)));
            match asked {
                Ok((client, status)) => {
                    self.client = Some(client);
                    return Ok(status);
                }
                Err(ClientError::Connect { .. }) if begun.elapsed() < START => std::thread::sleep(AGAIN),
                Err(error) => return Err(self.silent(error)),
            }
        }
    }

    fn silent(&self, source: ClientError) -> GuardError {
        GuardError::Silent { log: self.log(), source }
    }

    /// Starts it if none runs.
    fn start(&self) -> Result<(), GuardError> {
        let failed = |error| GuardError::Program(self.program.clone(), error);
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        let Some(start) = Start::begin(&self.directory.join("lock")).map_err(failed)? else { return Ok(()) };
        let mut command = Command::new(&self.program);
        command.env_clear().current_dir("/").arg("--socket").arg(self.socket()).arg("--vms").arg(&self.vms);
        command.arg("--page").arg(self.directory.join("page")).args(["--margin-ms", WATCHDOG_MARGIN]);
        if let Some(watchdog) = &self.watchdog {
            command.arg("--watchdog").arg(watchdog);
        }
        let log = process::open(&self.log(), true).map_err(failed)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: it does nothing.
        let mut started = unsafe { start.spawn(command, None, || Ok(())) }.map_err(failed)?;
        if let Some(mut child) = started.child.take() {
            // Nobody else asks how it ended.
            std::thread::spawn(move || child.wait());
        }
        Ok(())
    }
}

/// The lease that a guard holds for the `marud` before this one.
pub fn held(status: &Status) -> Option<cluster::Guarded> {
    let (StateName::Held, Some(lease), Some(deadline)) = (status.state, status.lease, status.deadline) else { return None };
    Some(cluster::Guarded { lease: LeaseId(lease.cast_signed()), deadline: Moment(Duration::from_nanos(deadline.0)) })
}

/// This moment.
pub fn now() -> Moment {
    Moment(Duration::from_nanos(BootTime::now().0))
}
