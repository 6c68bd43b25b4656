//! etcd itself, as a process of ours.
//!
//! ```text
//!   Server::start ──▶ runs ──▶ wait_ready: knows a leader ──▶ stop, or dropped: killed
//! ```
//!
//! etcd loses nothing when it is killed, and so it is killed with whoever has started it, however that ends. It is started with a directory
//! of its own; what that holds decides, not what the configuration says about [`Membership`], once it was filled.
//!
//! What etcd reports (warnings and worse) goes to `tracing`, as target `etcd`.

mod flags;
mod programs;
mod restore;

pub use programs::{Programs, Version};
pub use restore::restore;

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{ClientTls, EtcdConfig, EtcdConfigError, EtcdStore};
use crate::StoreError;

/// How many lines of what etcd said are kept, to say why it ended.
const LAST_WORDS: usize = 5;
/// Between two questions whether it is ready.
const PAUSE: Duration = Duration::from_millis(20);

/// A member that is to run here.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Its name, different from those of all other members.
    pub name: String,
    /// Where its data are; made if it is not there.
    pub directory: PathBuf,
    /// Where it listens for the other members: `https://192.0.2.1:2380`.
    pub peer_url: String,
    /// Where it listens for clients: `https://192.0.2.1:2379`.
    pub client_url: String,
    /// All members with their peer URLs, this one included.
    pub members: Vec<(String, String)>,
    /// How it becomes a member.
    pub membership: Membership,
    /// For URLs with `https`: who is believed, members and clients alike, and who this member is.
    pub tls: Option<ServerTls>,
    /// The largest size of its file in bytes; etcd advises 8 GiB at most.
    pub quota_bytes: u64,
    /// How often the leader compares what the members hold, in whole seconds. All of it is read for that.
    pub corruption_check: Duration,
}

/// How etcd becomes a member of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The members make a cluster together. No two clusters may have the same token.
    Create {
        /// What tells the cluster from others.
        token: String,
    },
    /// It was added to a cluster that is there.
    Join,
    /// The other members are lost for ever: it goes on alone, with the data in its directory. What most members had not agreed on is dropped.
    Alone,
}

/// Files in PEM form. A member's certificate serves for both sides of a connection.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The cluster's authority.
    pub authority: PathBuf,
    /// The member's certificate, for all of its addresses: the others check the one that it comes from.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why etcd does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It is not installed.
    #[error("there is no {program} in {places}: install it (Debian's packages are etcd-server and etcd-client)")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// Where.
        places: String,
    },
    /// It is too old.
    #[error("{} is etcd {found}, and {oldest} is the oldest that can be used", .program.display())]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest that will do.
        oldest: Version,
    },
    /// It does not say which version it is.
    #[error("{} is not etcd: asked for its version, it says '{said}'", .program.display())]
    NotEtcd {
        /// The program.
        program: PathBuf,
        /// What it said.
        said: String,
    },
    /// It cannot be started.
    #[error("{} cannot be run", .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has ended.
    #[error("etcd has ended ({status}), and said at last: {words}")]
    Ended {
        /// How.
        status: String,
        /// Its last words.
        words: String,
    },
    /// It runs, and is not of use yet.
    #[error("etcd knows no leader after {waited:?}")]
    NotReady {
        /// How long it was waited for.
        waited: Duration,
        /// What it says.
        source: Option<StoreError>,
    },
    /// How it is to be reached.
    #[error(transparent)]
    Config(#[from] EtcdConfigError),
    /// A backup that cannot be restored.
    #[error("the backup {} cannot be restored: {reason}", .backup.display())]
    Restore {
        /// The backup.
        backup: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// A running etcd. Killed when it is dropped.
pub struct Server {
    client_url: String,
    process: Arc<Process>,
}

struct Process {
    child: Mutex<Child>,
    report: Mutex<Report>,
    ended: Condvar,
}

#[derive(Default)]
struct Report {
    words: VecDeque<String>,
    status: Option<String>,
}

impl Server {
    /// Starts etcd. It needs a moment, and most of the other members, before it is of use.
    ///
    /// # Errors
    /// When it cannot be run. Why it does not go on running is told by [`Server::wait_ready`] and [`Server::ended`].
    pub fn start(programs: &Programs, config: &ServerConfig) -> Result<Server, ServerError> {
        let failed = |source| ServerError::Run { program: programs.etcd.clone(), source };
        let mut command = Command::new(&programs.etcd);
        // ETCD_... would be options, too.
        command.env_clear().args(flags::of(config, programs.version)).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        end_with_parent(&mut command);
        let (reply, started) = channel();
        // What ends with its parent ends with the thread that has started it. This one stays until etcd has ended.
        thread::Builder::new().name("etcd-server".into()).spawn(move || keep(command, &reply)).map_err(failed)?;
        let process = started.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended"))).map_err(failed)?;
        Ok(Server { client_url: config.client_url.clone(), process })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.child().id()
    }

    /// How it has ended; `None` while it runs.
    pub fn ended(&self) -> Option<ServerError> {
        self.process.report().error()
    }

    /// Waits until it answers and knows a leader.
    ///
    /// # Errors
    /// When it ends instead, or the time is over; then it runs on.
    pub fn wait_ready(&self, tls: Option<&ClientTls>, time: Duration) -> Result<(), ServerError> {
        let end = Instant::now() + time;
        let config = EtcdConfig { endpoints: vec![self.client_url.clone()], tls: tls.cloned(), deadline: Duration::from_secs(1) };
        let client = EtcdStore::new(&config)?;
        loop {
            if let Some(ended) = self.ended() {
                return Err(ended);
            }
            let source = match client.status(&self.client_url) {
                Ok(status) if status.leader.is_some() => return Ok(()),
                Ok(_) => None,
                Err(error) => Some(error),
            };
            if Instant::now() >= end {
                return Err(ServerError::NotReady { waited: time, source });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Asks it to end, and kills it when it has not after some time.
    pub fn stop(self, patience: Duration) {
        let pid = self.id();
        let report = self.process.report();
        if report.status.is_none() {
            // SAFETY: kill takes no pointers. The process was not waited for, or there would be a status, and the report is locked: the number
            // is still its own.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGTERM) };
        }
        drop(self.process.ended.wait_timeout_while(report, patience, |report| report.status.is_none()));
        // Dropped, and killed if it has to be.
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let report = self.process.report();
        if report.status.is_none() {
            // It has ended otherwise.
            let _ = self.process.child().kill();
            drop(self.process.ended.wait_while(report, |report| report.status.is_none()));
        }
    }
}

impl Process {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    fn error(&self) -> Option<ServerError> {
        let words = || self.words.iter().map(String::as_str).collect::<Vec<_>>().join(" | ");
        self.status.clone().map(|status| ServerError::Ended { status, words: words() })
    }
}

/// Starts etcd, passes on what it says, and waits for its end.
fn keep(mut command: Command, reply: &Sender<io::Result<Arc<Process>>>) {
    crate::go_first();
    let (process, said) = match spawn(&mut command) {
        Ok(started) => started,
        Err(error) => {
            // Whoever asked waits for it.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let _ = reply.send(Ok(process.clone()));
    for line in said.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        tracing::warn!(target: "etcd", "{line}");
        let mut report = process.report();
        if report.words.len() == LAST_WORDS {
            report.words.pop_front();
        }
        report.words.push_back(line);
    }
    // It has closed its standard error, so it ends or has ended. The report is locked while its number becomes free.
    let mut report = process.report();
    let status = process.child().wait();
    report.status = Some(status.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string()));
    process.ended.notify_all();
}

fn spawn(command: &mut Command) -> io::Result<(Arc<Process>, BufReader<impl io::Read + use<>>)> {
    let mut child = command.spawn()?;
    let said = child.stderr.take().ok_or_else(|| io::Error::other("no standard error"))?;
    let process = Process { child: Mutex::new(child), report: Mutex::default(), ended: Condvar::new() };
    Ok((Arc::new(process), BufReader::new(said)))
}

/// Has a process killed when the thread that starts it ends.
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe system calls are made, and errors without allocation.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before that.
            if libc::getppid().cast_unsigned() != parent { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
        });
    }
}
