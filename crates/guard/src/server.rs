//! The program's one thread: waits for clients and for the time, and does what the [`Fence`] says.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use packet::{Connection, Listener};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

use crate::page::{Page, Says};
use crate::protocol::{Reply, Request, StateName, Status};
use crate::vms::Vms;
use crate::watchdog::Kennel;
use crate::{BootTime, Fence, Orders, State, Times, Watch};

/// The most clients at a time: `marud`, its successor, and some that ask how things are.
const CLIENTS: usize = 8;

/// What a guard is told when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it listens.
    pub socket: PathBuf,
    /// The file with the page.
    pub page: PathBuf,
    /// The control group with all VMs.
    pub vms: PathBuf,
    /// The watchdog, if there is one.
    pub watchdog: Option<PathBuf>,
    /// Its timeout, in whole seconds.
    pub watchdog_timeout: Duration,
    /// From the deadline to the end of the lease.
    pub margin: Duration,
    /// How far ahead a deadline may be.
    pub horizon: Duration,
}

struct Guard {
    fence: Fence,
    /// What the deadline belongs to.
    lease: u64,
    times: Times,
    page: Page,
    vms: Vms,
    kennel: Option<Kennel>,
    /// The last word on what went wrong: it is said once.
    trouble: Option<String>,
}

/// Guards for ever. `ready` is called when everything that can be refused at the start is there.
pub fn serve(options: &Options, ready: impl FnOnce()) -> io::Result<()> {
    let said = |what: &str, path: &PathBuf| {
        let place = format!("{what} {}", path.display());
        move |error: io::Error| io::Error::new(error.kind(), format!("{place}: {error}"))
    };
    let vms = Vms::open(&options.vms).map_err(said("the control group of VMs", &options.vms))?;
    let (page, says, lease) = Page::open(&options.page).map_err(said("the page", &options.page))?;
    let state = match says {
        Says::Free => State::Free,
        Says::Until(deadline) => State::Held(deadline),
        Says::Over => State::Held(BootTime(0)),
    };
    let (kennel, watchdog) = match &options.watchdog {
        None => (None, None),
        Some(path) => {
            let opened = Kennel::new(path.clone(), options.watchdog_timeout);
            let (kennel, timeout) = opened.map_err(said("the watchdog", path))?;
            (Some(kennel), Some(timeout))
        }
    };
    let times = Times { margin: options.margin, watchdog, horizon: options.horizon };
    let listener = Listener::bind(&options.socket).map_err(said("the socket", &options.socket))?;
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let mut guard = Guard { fence: Fence::new(times, state), lease, times, page, vms, kennel, trouble: None };
    ready();
    guard.run(&listener, &timer)
}

/// A descriptor for a call of poll.
fn borrowed(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as what it belongs to, which is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

impl Guard {
    fn run(&mut self, listener: &Listener, timer: &OwnedFd) -> io::Result<()> {
        let mut clients: Vec<Connection> = Vec::with_capacity(CLIENTS);
        loop {
            let orders = self.look();
            let at =
                Timespec { tv_sec: (orders.again.0 / 1_000_000_000) as i64, tv_nsec: (orders.again.0 % 1_000_000_000) as i64 };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
            timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once)?;
            let fixed = [borrowed(listener), borrowed(timer)];
            let all = fixed.into_iter().chain(clients.iter().map(borrowed));
            let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            // Setting the timer anew clears it.
            let mut answers = ready[2..].iter();
            clients.retain(|client| !answers.next().is_some_and(|ready| *ready) || self.answer(client));
            if ready[0] {
                match listener.accept().and_then(|client| client.set_nonblocking().map(|()| client)) {
                    // Who has waited longest gives way.
                    Ok(client) => {
                        if clients.len() == CLIENTS {
                            clients.remove(0);
                        }
                        clients.push(client);
                    }
                    Err(error) => self.say("a client is turned away", &error),
                }
            }
        }
    }

    /// Looks at the time and at the VMs, and does what is to be done.
    fn look(&mut self) -> Orders {
        let (now, before) = (BootTime::now(), self.fence.state());
        let orders = self.fence.look(now, self.vms.run());
        self.publish();
        if orders.kill {
            if !matches!(before, State::Ending(_)) {
                eprintln!("maru-guard: the lease was not renewed in time: the VMs of this host are ended");
            }
            if let Err(error) = self.vms.kill() {
                self.say("the VMs cannot be ended", &error);
            }
        }
        if before != self.fence.state() && self.fence.state() == State::Ended {
            eprintln!("maru-guard: no VM runs any more");
        }
        let fed = self.kennel.as_mut().map_or(Ok(()), |kennel| match orders.watch {
            Watch::Off => kennel.stop(),
            Watch::Feed => kennel.feed(),
            Watch::Starve => Ok(()),
        });
        if let Err(error) = fed {
            self.say("the watchdog", &error);
        }
        orders
    }

    fn publish(&self) {
        let says = match self.fence.state() {
            State::Free => Says::Free,
            State::Held(deadline) => Says::Until(deadline),
            State::Ending(_) | State::Ended => Says::Over,
        };
        self.page.say(says, self.lease);
    }

    fn say(&mut self, what: &str, error: &io::Error) {
        let words = format!("maru-guard: {what}: {error}");
        if self.trouble.as_ref() != Some(&words) {
            eprintln!("{words}");
            self.trouble = Some(words);
        }
    }

    /// Answers one request; whether the client stays.
    fn answer(&mut self, client: &Connection) -> bool {
        let reply = match client.receive::<Request>() {
            Ok(Some((request, _))) => self.execute(&request),
            Ok(None) => return false,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Reply::Error(format!("no request that is known: {error}"))
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        client.send(&reply, &[]).is_ok()
    }

    fn execute(&mut self, request: &Request) -> Reply {
        let (now, running) = (BootTime::now(), self.vms.run());
        let done = match request {
            Request::Extend { lease, deadline } => self.fence.extend(now, *deadline, running).map(|_| self.lease = *lease),
            Request::Release => self.fence.release(now),
            Request::Status => Ok(()),
        };
        if let Err(refused) = done {
            return Reply::Error(refused.to_string());
        }
        self.publish();
        let (state, deadline) = match self.fence.state() {
            State::Free => (StateName::Free, None),
            State::Held(deadline) => (StateName::Held, Some(deadline)),
            State::Ending(_) => (StateName::Ending, None),
            State::Ended => (StateName::Ended, None),
        };
        let ms = |time: Duration| time.as_millis() as u64;
        let lease = deadline.map(|_| self.lease);
        Reply::Ok(Status {
            state,
            deadline,
            lease,
            running,
            watchdog_ms: self.times.watchdog.map(ms),
            margin_ms: ms(self.times.margin),
        })
    }
}
