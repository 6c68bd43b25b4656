//! The workers of a network device on a TAP: one for each queue pair, and one for the control queue.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::control::{ControlActions, ControlQueue};
use super::receive::{Received, Receiver};
use super::ring::RingError;
use super::shared::{Announcement, Shared, rarp_frame};
use super::tap::FrameQueue;
use super::transmit::{Sent, Transmitter};
use crate::virtio::worker::{Handler, Sources};
use crate::virtio::{GuestMemory, Interrupt};

const RX_KICK: u64 = 0;
const TX_KICK: u64 = 1;
const HOST: u64 = 2;
const WAKE: u64 = 3;

/// What every worker of a device has.
pub(super) struct Common {
    pub memory: Arc<GuestMemory>,
    pub interrupt: Arc<dyn Interrupt>,
    pub shared: Arc<Shared>,
}

/// One queue pair and its queue of the TAP.
pub(super) struct PairWorker {
    pub pair: u16,
    pub common: Common,
    pub host: FrameQueue,
    pub receiver: Receiver,
    pub rx_kick: EventFd,
    pub transmitter: Transmitter,
    pub tx_kick: EventFd,
    pub wake: EventFd,
    pub flow: Flow,
}

/// What a pair waits for.
#[derive(Default)]
pub(super) struct Flow {
    /// The guest has buffers for what the host may have.
    listens: bool,
    /// The host's side was full.
    full: bool,
    /// The driver uses this pair.
    attached: bool,
    /// The host's side went away.
    gone: bool,
    /// A ring is broken.
    failed: bool,
    /// What `epoll` knows of the host's side.
    registered: Option<EventSet>,
}

impl PairWorker {
    /// The queues, in the order of their indices.
    pub fn into_queues(self) -> [(u16, Queue); 2] {
        let receive = self.receiver.into_ring(&self.common.shared).into_queue();
        let transmit = self.transmitter.into_ring().into_queue();
        [(2 * self.pair, receive), (2 * self.pair + 1, transmit)]
    }

    fn is_wanted(&self) -> bool {
        self.pair < self.common.shared.active_pairs()
    }

    fn receive(&mut self) -> Result<(), RingError> {
        if !self.flow.attached || self.flow.gone {
            return Ok(());
        }
        let Common { memory, interrupt, shared } = &self.common;
        let received = self.receiver.receive(memory, &self.host, shared)?;
        if self.receiver.needs_interrupt(memory)? {
            interrupt.used(2 * self.pair);
        }
        self.flow.listens = received == Received::Listen;
        if received == Received::Gone {
            self.lose_host();
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), RingError> {
        if self.flow.full {
            return Ok(());
        }
        let Common { memory, interrupt, shared } = &self.common;
        let host = Some(&self.host).filter(|_| self.flow.attached && !self.flow.gone);
        let sent = self.transmitter.send(memory, host, shared)?;
        if self.transmitter.needs_interrupt(memory)? {
            interrupt.used(2 * self.pair + 1);
        }
        match sent {
            // More comes with a kick, or when the limit opens.
            Sent::All | Sent::Limited => {}
            Sent::Full => self.flow.full = true,
            Sent::Batch | Sent::Gone => {
                if sent == Sent::Gone {
                    self.lose_host();
                }
                // Come back after the others had their turn; an eventfd that is too full to write is readable.
                let _ = self.tx_kick.write(1);
            }
        }
        Ok(())
    }

    /// Looks again at what the control queue and the device's owner want.
    fn look(&mut self) -> Result<(), RingError> {
        let wanted = self.is_wanted();
        if wanted != self.flow.attached {
            self.attach(wanted);
        }
        if self.pair == 0 && self.common.shared.take_announcement() == Announcement::ByDevice {
            // One lost broadcast is what Ethernet promises; the owner may ask again.
            let frame = rarp_frame(self.common.shared.mac());
            if let Err(error) = write(&self.host, &frame) {
                tracing::warn!(%error, "the network device could not announce itself");
            }
        }
        self.receive()?;
        self.transmit()
    }

    fn attach(&mut self, attached: bool) {
        if let Err(error) = self.host.set_attached(attached) {
            tracing::warn!(%error, pair = self.pair, attached, "cannot change a queue of the TAP");
        }
        self.flow.attached = attached;
        self.flow.listens = attached;
        self.flow.full = false;
    }

    fn lose_host(&mut self) {
        tracing::warn!(pair = self.pair, "the host's side of the network device is gone; its link is down now");
        self.flow.gone = true;
        self.flow.full = false;
        self.common.shared.set_link(false);
    }

    /// Tells `epoll` what is of interest now: a level that nobody can act on would spin.
    fn listen(&mut self, sources: &Sources) {
        let flow = &mut self.flow;
        let mut events = EventSet::empty();
        if flow.listens {
            events |= EventSet::IN;
        }
        if flow.full {
            events |= EventSet::OUT;
        }
        // Errors and hang-ups are reported whatever is asked for; a detached queue reports them all the time.
        let wanted = Some(events).filter(|_| flow.attached && !flow.gone && !flow.failed);
        if wanted == flow.registered {
            return;
        }
        let fd = self.host.as_fd().as_raw_fd();
        let result = match (flow.registered, wanted) {
            (None, Some(events)) => sources.add(fd, HOST, events),
            (Some(_), Some(events)) => sources.modify(fd, HOST, events),
            _ => sources.remove(fd),
        };
        flow.registered = wanted;
        if let Err(error) = result {
            self.fail(format!("cannot listen to the host's side of the network device: {error}"), sources);
        }
    }

    fn fail(&mut self, reason: String, sources: &Sources) {
        self.flow.failed = true;
        for fd in [self.rx_kick.as_raw_fd(), self.tx_kick.as_raw_fd()] {
            let _ = sources.remove(fd);
        }
        self.common.interrupt.fail(reason);
    }

    fn finish(&mut self, result: Result<(), RingError>, sources: &Sources) {
        if let Err(error) = result {
            self.fail(format!("queue pair {} of the network device: {}", self.pair, with_source(&error)), sources);
        }
        self.listen(sources);
    }
}

impl Handler for PairWorker {
    fn deadline(&self) -> Option<Instant> {
        // Only where frames would pass: nobody else looks whether a limit has opened.
        let Flow { attached, gone, full, failed, .. } = self.flow;
        let receive = self.receiver.opens_at().filter(|_| attached && !gone && !failed);
        let transmit = self.transmitter.opens_at().filter(|_| !full && !failed);
        receive.into_iter().chain(transmit).min()
    }

    fn deadline_passed(&mut self, sources: &Sources) {
        let result = self.unless_failed(|worker| {
            worker.receive()?;
            worker.transmit()
        });
        self.finish(result, sources);
    }

    fn start(&mut self, sources: &Sources) {
        let added = sources
            .add(self.rx_kick.as_raw_fd(), RX_KICK, EventSet::IN)
            .and_then(|()| sources.add(self.tx_kick.as_raw_fd(), TX_KICK, EventSet::IN))
            .and_then(|()| sources.add(self.wake.as_raw_fd(), WAKE, EventSet::IN));
        if let Err(error) = added {
            self.fail(format!("cannot listen to the queues of the network device: {error}"), sources);
            return;
        }
        let wanted = self.is_wanted();
        self.attach(wanted);
        let result = self.look();
        self.finish(result, sources);
    }

    fn ready(&mut self, token: u64, events: EventSet, sources: &Sources) {
        // Whoever wrote it, what counts is that it was written; reading an event that another worker's turn emptied is fine.
        let result = match token {
            RX_KICK => {
                let _ = self.rx_kick.read();
                self.unless_failed(Self::receive)
            }
            TX_KICK => {
                let _ = self.tx_kick.read();
                self.unless_failed(Self::transmit)
            }
            WAKE => {
                let _ = self.wake.read();
                self.unless_failed(Self::look)
            }
            _ => {
                if events.intersects(EventSet::ERROR | EventSet::HANG_UP) && !events.contains(EventSet::IN) {
                    self.lose_host();
                }
                if events.contains(EventSet::OUT) {
                    self.flow.full = false;
                }
                self.unless_failed(|worker| {
                    if events.contains(EventSet::IN) {
                        worker.receive()?;
                    }
                    if events.contains(EventSet::OUT) { worker.transmit() } else { Ok(()) }
                })
            }
        };
        self.finish(result, sources);
    }
}

impl PairWorker {
    fn unless_failed(&mut self, work: impl FnOnce(&mut Self) -> Result<(), RingError>) -> Result<(), RingError> {
        if self.flow.failed { Ok(()) } else { work(self) }
    }
}

/// The control queue of a device on a TAP.
pub(super) struct ControlWorker {
    pub common: Common,
    pub control: ControlQueue,
    pub kick: EventFd,
    pub actions: TapActions,
    pub failed: bool,
}

/// What the control queue changes on a TAP. Which queues are in use, each pair sees for itself.
pub(super) struct TapActions {
    /// Offloads belong to the interface, not to one of its queues.
    pub host: FrameQueue,
}

impl ControlActions for TapActions {
    fn set_pairs(&mut self, _pairs: u16) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: u64) -> bool {
        self.host.set_offloads(offloads).is_ok()
    }
}

impl ControlWorker {
    fn serve(&mut self, sources: &Sources) {
        let Common { memory, interrupt, .. } = &self.common;
        if self.failed {
            return;
        }
        match self.control.serve(memory, &**interrupt, &mut self.actions) {
            Ok(more) => {
                if more {
                    let _ = self.kick.write(1);
                }
            }
            Err(error) => {
                self.failed = true;
                let _ = sources.remove(self.kick.as_raw_fd());
                interrupt.fail(format!("control queue of the network device: {}", with_source(&error)));
            }
        }
    }
}

impl Handler for ControlWorker {
    fn start(&mut self, sources: &Sources) {
        if let Err(error) = sources.add(self.kick.as_raw_fd(), RX_KICK, EventSet::IN) {
            self.failed = true;
            self.common.interrupt.fail(format!("cannot listen to the control queue of the network device: {error}"));
            return;
        }
        self.serve(sources);
    }

    fn ready(&mut self, _token: u64, _events: EventSet, sources: &Sources) {
        let _ = self.kick.read();
        self.serve(sources);
    }
}

fn write(host: &FrameQueue, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: the buffer is borrowed for the call, with its length.
    let count = unsafe { libc::write(host.as_fd().as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
    if count < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// An error's text with its causes, for places that keep only text.
pub(super) fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
