//! The programs that PID 1 keeps running, and the signals that end them.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::pid1::{self, CommandLine, PowerAction};

/// How long services get to end by themselves.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether one has.
const LOOK: Duration = Duration::from_millis(10);
/// The daemon that manages VMs.
const MARUD: &str = "/bin/marud";
/// What has VMs leave the host before it ends.
const DRAIN: [&str; 4] = ["/bin/maru", "host", "drain", "--for-shutdown"];
/// A service that ends is started again, but not more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// A program that runs as long as the host does.
#[derive(Debug, Clone)]
struct Service {
    argv: Vec<String>,
}

/// All services that the command line wants, `marud` only where `managing`, in the order in which they are started.
fn services(line: &CommandLine, managing: bool) -> Vec<Service> {
    let service = |argv: &[&str]| Service { argv: argv.iter().map(|&word| word.to_owned()).collect() };
    let mut services = Vec::new();
    if line.get("maru.lab") == Some("1") {
        services.push(service(&["/init", "agent"]));
    }
    for nic in line.all("maru.nic").filter_map(|description| description.strip_suffix(",dhcp")) {
        services.push(service(&["/init", "dhcp", nic.split(',').next().unwrap_or(nic)]));
    }
    if managing {
        let volumes = line.all("maru.volume").flat_map(|volume| ["--volume", volume]);
        // `NAME,MAC,ADDRESS/PREFIX`
        let addresses = line.all("maru.nic").filter_map(|nic| Some(nic.split(',').nth(2)?.split_once('/')?.0));
        let names = addresses.flat_map(|address| ["--name", address]);
        services.push(service(&[MARUD].into_iter().chain(volumes).chain(names).collect::<Vec<_>>()));
    }
    services
}

/// Whether the host is to manage VMs.
pub fn manages(line: &CommandLine) -> bool {
    line.get("maru.marud") == Some("1")
}

/// The running services.
pub struct Table {
    running: HashMap<libc::pid_t, (Service, Instant)>,
    pending: Vec<(Service, Instant)>,
}

/// Signals that PID 1 waits for.
pub struct Signals(libc::sigset_t);

/// Keeps the signals that concern PID 1 from being delivered, so that [`Table::supervise`] can wait for them. Must be
/// called before any thread is started.
pub fn block_signals() -> Signals {
    // SAFETY: the set is initialised by sigemptyset before it is used, and lives through all calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2] {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        Signals(set)
    }
}

/// Sends PID 1 a signal.
pub fn ask_init(signal: i32) -> io::Result<()> {
    // SAFETY: no pointers; PID 1 always exists.
    match unsafe { libc::kill(1, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Table {
    /// Starts the services that the command line wants, `marud` only where `managing`.
    pub fn start(line: &CommandLine, managing: bool) -> Self {
        let mut table = Table { running: HashMap::new(), pending: Vec::new() };
        services(line, managing).into_iter().for_each(|service| table.launch(service));
        table
    }

    fn launch(&mut self, service: Service) {
        let [program, arguments @ ..] = service.argv.as_slice() else { return };
        match command(program, arguments).spawn() {
            Ok(child) => {
                self.running.insert(child.id() as libc::pid_t, (service, Instant::now()));
            }
            Err(error) => {
                println!("maru: cannot start {program}: {error}");
                self.pending.push((service, Instant::now() + PAUSE));
            }
        }
    }

    /// Reaps, and starts again what has ended, until the host is to end.
    pub fn supervise(&mut self, signals: &Signals) -> PowerAction {
        loop {
            let now = Instant::now();
            let (due, later) = std::mem::take(&mut self.pending).into_iter().partition(|entry| entry.1 <= now);
            self.pending = later;
            let due: Vec<(Service, Instant)> = due;
            due.into_iter().for_each(|(service, _)| self.launch(service));
            let wait = self.pending.iter().map(|entry| entry.1.saturating_duration_since(now)).min();
            match wait_signal(signals, wait) {
                libc::SIGCHLD => {
                    let running = &mut self.running;
                    let pending = &mut self.pending;
                    pid1::reap_until(Some(now), |pid, status| {
                        if let Some((service, since)) = running.remove(&pid) {
                            println!("maru: {} ended with status {status:#x}", service.argv.join(" "));
                            pending.push((service, (since + PAUSE).max(now)));
                        }
                    });
                }
                // What busybox's poweroff, reboot and ctrl-alt-del send.
                libc::SIGUSR1 | libc::SIGUSR2 => return PowerAction::Off,
                libc::SIGTERM | libc::SIGINT => return PowerAction::Reboot,
                _ => {}
            }
        }
    }

    /// Has VMs leave the host, if it is one of a cluster, and then ends `marud` before anything else ends: as the services of the Debian package
    /// do it.
    pub fn stop_managing(&mut self) {
        let [program, arguments @ ..] = DRAIN;
        match command(program, &arguments).status() {
            Ok(status) if status.success() => {}
            Ok(status) => println!("maru: VMs do not leave the host: {status}"),
            Err(error) => println!("maru: cannot start {program}: {error}"),
        }
        let Some(marud) = self.running.iter().find(|(_, (service, _))| service.argv[0] == MARUD).map(|(pid, _)| *pid) else {
            return;
        };
        // SAFETY: no pointers; the process was started here, and was not waited for.
        unsafe { libc::kill(marud, libc::SIGTERM) };
        let deadline = Instant::now() + PATIENCE;
        while self.running.contains_key(&marud) && Instant::now() < deadline {
            pid1::reap_until(Some(Instant::now()), |pid, _| drop(self.running.remove(&pid)));
            std::thread::sleep(LOOK);
        }
    }

    /// Ends every program, those that nobody started here included.
    pub fn stop(&mut self) {
        for (signal, patience) in [(libc::SIGTERM, PATIENCE), (libc::SIGKILL, PAUSE)] {
            // SAFETY: no pointers; -1 means every process but this one.
            unsafe { libc::kill(-1, signal) };
            pid1::reap_until(Some(Instant::now() + patience), |_, _| {});
        }
    }
}

/// A program with an environment to work in.
fn command(program: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").env("HOME", "/root").process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made, on memory of the new process. The signals
    // that PID 1 blocks for itself must reach the programs it starts.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        });
    }
    command
}

/// The next signal, or 0 when `limit` has passed.
fn wait_signal(signals: &Signals, limit: Option<Duration>) -> i32 {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
    });
    let pointer = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the set is initialised and the time, if any, lives through the call.
    unsafe { libc::sigtimedwait(&signals.0, std::ptr::null_mut(), pointer).max(0) }
}
