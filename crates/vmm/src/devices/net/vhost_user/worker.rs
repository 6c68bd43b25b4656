//! The worker of a network device on vhost-user: it owns the connection and brings it back.

use std::num::Wrapping;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::log::DirtyLog;
use super::protocol::ProtocolError;
use super::session::{DataQueue, Plan, Session};
use crate::devices::net::control::{ControlActions, ControlQueue};
use crate::devices::net::queue::{Common, with_source};
use crate::devices::net::shared::{Announcement, lock};
use crate::virtio::worker::{Handler, Sources};

const WAKE: u64 = 0;
const TIMER: u64 = 1;
const BACKEND: u64 = 2;
const CONTROL: u64 = 3;
/// Plus the position in the list of queues: interrupts of a transport that has no event for them.
const CALLS: u64 = 0x100;

/// A switch that restarts is back within milliseconds; one that is gone must not keep a core busy.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// How it is with the back end.
#[derive(Clone, Debug, Default)]
pub struct BackendStatus {
    /// Whether frames flow.
    pub running: bool,
    /// How often a back end took the rings since the device was made: resumes and recoveries.
    pub set_ups: u64,
    /// Why it is not running, or was not the last time.
    pub last_error: Option<String>,
}

/// Where the answer to "use the log as it is now" goes.
pub(super) type LogRequest = SyncSender<Result<(), String>>;

/// What the device's owner and its worker share.
pub(super) struct Exchange {
    pub status: Mutex<BackendStatus>,
    /// The log to be used.
    pub log: Mutex<Option<Arc<DirtyLog>>>,
    /// Who waits for the log to be switched; `None` while idle.
    pub log_requests: Mutex<Option<Vec<LogRequest>>>,
}

/// See the module's page.
pub(super) struct BackendWorker {
    pub common: Common,
    pub exchange: Arc<Exchange>,
    pub path: PathBuf,
    pub mtu: Option<u16>,
    /// What the driver agreed on, as far as the back end offered it.
    pub features: u64,
    pub queues: Vec<DataQueue>,
    /// Whether a queue's interrupts pass through this worker.
    pub relays: bool,
    pub control: Option<(ControlQueue, EventFd)>,
    pub wake: EventFd,
    pub timer: TimerFd,
    pub session: Option<Session>,
    pub state: State,
}

#[derive(Default)]
pub(super) struct State {
    running: bool,
    running_since: Option<Instant>,
    /// The connection that `epoll` knows.
    registered: Option<RawFd>,
    retry: Option<Duration>,
    enabled: u16,
    control_failed: bool,
}

impl BackendWorker {
    /// The number of data queues that should run: all of the active pairs, none without a link.
    fn wanted_queues(&self) -> u16 {
        let shared = &self.common.shared;
        if shared.is_link_up() { 2 * shared.active_pairs() } else { 0 }
    }

    /// Gets the rings served, by the back end at hand or by a new one.
    fn set_up(&mut self, sources: &Sources) {
        let enabled = self.wanted_queues();
        let result = self.try_set_up(enabled);
        match result {
            Ok(session) => {
                let fd = session.connection.as_raw_fd();
                self.session = Some(session);
                if let Err(error) = sources.add(fd, BACKEND, EventSet::IN | EventSet::READ_HANG_UP) {
                    self.lose(format!("cannot listen to the back end: {error}"), sources);
                    return;
                }
                self.state.registered = Some(fd);
                self.state.running = true;
                self.state.running_since = Some(Instant::now());
                self.state.enabled = enabled;
                let mut status = lock(&self.exchange.status);
                status.running = true;
                status.set_ups += 1;
                drop(status);
                for queue in &self.queues {
                    // What came while nobody served the rings was told to nobody, in both directions. An eventfd can only
                    // refuse when it is full, and then it is readable.
                    let _ = queue.kick.write(1);
                    self.common.interrupt.used(queue.index);
                }
            }
            Err(error) => self.lose(with_source(&error), sources),
        }
    }

    fn try_set_up(&mut self, enabled: u16) -> Result<Session, ProtocolError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.path)?,
        };
        let log = lock(&self.exchange.log).clone();
        session.start(&self.plan(log.as_deref(), enabled))?;
        Ok(session)
    }

    fn plan<'a>(&'a self, log: Option<&'a DirtyLog>, enabled: u16) -> Plan<'a> {
        let Common { memory, .. } = &self.common;
        Plan { memory, features: self.features, queues: &self.queues, mtu: self.mtu, log, enabled }
    }

    /// Lets go of the back end and tries again later.
    fn lose(&mut self, reason: String, sources: &Sources) {
        if let Some(fd) = self.state.registered.take() {
            // It is closed right after; failing here changes nothing.
            let _ = sources.remove(fd);
        }
        self.session = None;
        // Also after a set-up that failed half way: some of the rings may have been served already.
        self.recover_positions();
        self.state.running = false;
        // One that dies as soon as it runs is tried less and less often, too.
        if self.state.running_since.take().is_some_and(|since| since.elapsed() >= LAST_RETRY) {
            self.state.retry = None;
        }
        // By a quarter longer each time: then a wait is about a fifth of the time that the switch was away, and adds as little to it.
        // Doubling was measured to add most of a second to a restart of less than one.
        let delay = self.state.retry.map_or(FIRST_RETRY, |delay| (delay * 5 / 4).min(LAST_RETRY));
        if self.state.retry.is_none() {
            tracing::warn!(path = %self.path.display(), %reason, "the network device lost its back end; trying again");
        }
        self.state.retry = Some(delay);
        let mut status = lock(&self.exchange.status);
        status.running = false;
        status.last_error = Some(reason);
        drop(status);
        if let Err(error) = self.timer.reset(delay, None) {
            self.common.interrupt.fail(format!("cannot set the timer of the network device: {error}"));
        }
    }

    /// Takes the positions from the used rings, which is all that a back end leaves that went away. Network back ends
    /// use buffers in order, so what it took and did not use is taken again: a frame may be sent twice, none is lost
    /// from the ring.
    fn recover_positions(&mut self) {
        for queue in &mut self.queues {
            if let Ok(used) = queue.queue.used_idx(&*self.common.memory, Ordering::Acquire) {
                queue.queue.set_next_avail(used.0);
                queue.queue.set_next_used(used.0);
            }
        }
    }

    /// Runs `work` with the back end if there is one, and loses it if that fails.
    fn with_session(
        &mut self,
        sources: &Sources,
        work: impl FnOnce(&Self, &mut Session) -> Result<(), ProtocolError>,
    ) -> Result<(), String> {
        let Some(mut session) = self.session.take() else { return Ok(()) };
        let result = work(self, &mut session);
        self.session = Some(session);
        result.map_err(|error| {
            let reason = with_source(&error);
            self.lose(reason.clone(), sources);
            reason
        })
    }

    /// Looks again at what the control queue and the device's owner want.
    fn look(&mut self, sources: &Sources) {
        let wanted = self.wanted_queues();
        if self.state.running && wanted != self.state.enabled {
            self.state.enabled = wanted;
            // A back end that fails here is replaced, and its successor told when it is set up.
            let _ = self.with_session(sources, |worker, session| session.enable(&worker.queues, wanted));
        }
        let requests = lock(&self.exchange.log_requests).as_mut().map(std::mem::take).unwrap_or_default();
        for request in requests {
            let log = lock(&self.exchange.log).clone();
            let running = self.state.running;
            let result = if running {
                self.with_session(sources, |worker, session| {
                    session.change_log(&worker.plan(log.as_deref(), worker.state.enabled))
                })
            } else {
                Ok(())
            };
            // Who no longer waits does not want to know.
            let _ = request.try_send(result);
        }
        // Without a back end there is nobody to hear it; the wish is kept.
        if self.state.running && self.common.shared.take_announcement() == Announcement::ByDevice {
            let mac = self.common.shared.mac();
            let _ = self.with_session(sources, |_, session| session.announce(mac));
        }
    }

    fn serve_control(&mut self, sources: &Sources) {
        let Some((control, kick)) = self.control.as_mut().filter(|_| !self.state.control_failed) else { return };
        let Common { memory, interrupt, .. } = &self.common;
        match control.serve(memory, &**interrupt, &mut NoActions) {
            Ok(true) => {
                let _ = kick.write(1);
            }
            Ok(false) => {}
            Err(error) => {
                self.state.control_failed = true;
                let _ = sources.remove(kick.as_raw_fd());
                interrupt.fail(format!("control queue of the network device: {}", with_source(&error)));
            }
        }
    }

    fn listen(&self, sources: &Sources) -> std::io::Result<()> {
        sources.add(self.wake.as_raw_fd(), WAKE, EventSet::IN)?;
        sources.add(self.timer.as_raw_fd(), TIMER, EventSet::IN)?;
        if let Some((_, kick)) = &self.control {
            sources.add(kick.as_raw_fd(), CONTROL, EventSet::IN)?;
        }
        if self.relays {
            for (token, queue) in (CALLS..).zip(&self.queues) {
                sources.add(queue.call.as_raw_fd(), token, EventSet::IN)?;
            }
        }
        Ok(())
    }
}

impl Handler for BackendWorker {
    fn start(&mut self, sources: &Sources) {
        if let Err(error) = self.listen(sources) {
            self.common.interrupt.fail(format!("cannot listen to the queues of the network device: {error}"));
            return;
        }
        let reused = self.session.is_some();
        self.set_up(sources);
        if reused && !self.state.running {
            // The back end went away while nobody looked; its successor may be there already.
            self.set_up(sources);
        }
        self.serve_control(sources);
        self.look(sources);
    }

    fn ready(&mut self, token: u64, _events: EventSet, sources: &Sources) {
        match token {
            WAKE => {
                let _ = self.wake.read();
                self.look(sources);
            }
            TIMER => {
                // Disarming it reads nothing back, so it cannot block when it was already read.
                let _ = self.timer.clear();
                if !self.state.running {
                    self.set_up(sources);
                    self.look(sources);
                }
            }
            CONTROL => {
                if let Some((_, kick)) = &self.control {
                    let _ = kick.read();
                }
                self.serve_control(sources);
            }
            // A back end only talks when it is asked, so this is its end, or it makes no sense. Events left from a
            // connection that is closed already find nobody running.
            BACKEND if self.state.running => self.lose("the back end went away".into(), sources),
            BACKEND => {}
            call => {
                if let Some(queue) = self.queues.get((call - CALLS) as usize) {
                    let _ = queue.call.read();
                    self.common.interrupt.used(queue.index);
                }
            }
        }
    }

    fn stop(&mut self) {
        if !std::mem::take(&mut self.state.running) {
            return;
        }
        let result = self.session.as_mut().map(|session| session.stop(&self.queues));
        // First of all the used rings: they are what the driver sees.
        self.recover_positions();
        match result {
            Some(Ok(positions)) => {
                for (queue, position) in self.queues.iter_mut().zip(positions) {
                    let used = Wrapping(queue.queue.next_used());
                    // A back end that claims more in flight than fits in the ring is not believed.
                    if (Wrapping(position) - used).0 <= queue.queue.size() {
                        queue.queue.set_next_avail(position);
                    } else {
                        tracing::warn!(queue = queue.index, position, used = used.0, "a back end's ring position makes no sense");
                    }
                }
            }
            Some(Err(error)) => {
                tracing::warn!(error = with_source(&error), "the back end did not stop; its positions come from the used rings");
                self.session = None;
            }
            None => {}
        }
        lock(&self.exchange.status).running = false;
        if self.relays {
            // Whatever it still called is told to the driver, who may not get another chance to see it.
            self.queues.iter().for_each(|queue| self.common.interrupt.used(queue.index));
        }
    }
}

/// The rings are switched when the worker looks at what the control queue has left in the shared state.
struct NoActions;

impl ControlActions for NoActions {
    fn set_pairs(&mut self, _pairs: u16) -> bool {
        true
    }

    fn set_offloads(&mut self, _offloads: u64) -> bool {
        false
    }
}
