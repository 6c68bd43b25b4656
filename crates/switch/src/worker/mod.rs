//! A thread that moves frames. It owns its switches and all their ports: nothing on a frame's way is locked.
//!
//! ```text
//!  control, vhost-user threads ──commands──▶ worker: each port a batch, then the next; nothing left? poll a while, then sleep
//! ```

mod announce;
mod capture;
mod deliver;
mod pass;
mod pool;
mod team;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::Work;
use crate::pipeline::{PortNumber, Switch};
use crate::ports::fd::FdPort;
use crate::ports::packet::Packet;
use crate::ports::virtio::VirtioPort;
use crate::ring::split::Chain;
use crate::sandbox::{ThreadKind, confine_thread};
use crate::team::Team;
use announce::Announcements;
use deliver::Scratch;
use pass::BATCH;
use team::Announcement;

pub use capture::{Capture, Captured, Room};
pub use pool::Pool;
pub use watch::{Tracer, Watcher, Watches};

/// A thing that the worker is to do between two batches.
type Command = Box<dyn FnOnce(&mut Worker) + Send>;

/// How often tables are looked through for what is over.
const TICK: Duration = Duration::from_millis(100);

/// How long one sleeps at most while somebody waits for bandwidth, less than any burst lasts, or for the kernel to take frames.
const HELD: Duration = Duration::from_millis(1);
/// What the clock shows when the worker begins, in milliseconds: more than a connection may be idle (2^32 seconds), so that one that comes
/// from another switch has an idle time here.
const CLOCK_BEGIN: u64 = 1 << 43;

/// Passes with work before commands and the kernel's descriptors have their turn.
const PASSES: u32 = 16;

/// What is behind a port.
#[derive(Debug)]
pub enum Device {
    /// A VM.
    Virtio(VirtioPort),
    /// The host itself.
    Fd(FdPort),
    /// The wire.
    Team(Box<Team>),
}

/// The state of the thread.
pub struct Worker {
    /// The core.
    pub switch: Switch,
    /// Who looks at frames.
    pub watches: Watches,
    announcements: Announcements,
    devices: Vec<Option<Device>>,
    epoll: Epoll,
    commands: Receiver<Command>,
    wake: EventFd,
    poll: Duration,
    begun: Instant,
    /// Room for those that are taken from a ring.
    chains: Vec<Chain>,
    packet: Packet,
    scratch: Scratch,
    /// Stations that are to be announced where their uplinks have them now.
    rehomed: VecDeque<Announcement>,
    /// Whether somebody waits for bandwidth, or for the kernel to take frames.
    holding: bool,
    work: Work,
    stopped: bool,
}

/// The way to the worker.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    wake: std::sync::Arc<EventFd>,
}

impl PartialEq for Handle {
    fn eq(&self, other: &Handle) -> bool {
        std::sync::Arc::ptr_eq(&self.wake, &other.wake)
    }
}

/// The worker has ended; with it the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the switch is ending")]
pub struct Ended;

impl Handle {
    /// Has the worker do something, and waits for the result.
    pub fn call<R: Send + 'static>(&self, work: impl FnOnce(&mut Worker) -> R + Send + 'static) -> Result<R, Ended> {
        let (sender, receiver) = sync_channel(1);
        // Who does not wait any more does not want it.
        let command: Command = Box::new(move |worker| drop(sender.send(work(worker))));
        self.commands.send(command).map_err(|_| Ended)?;
        // An eventfd that is full is readable anyway.
        let _ = self.wake.write(1);
        receiver.recv().map_err(|_| Ended)
    }

    /// Ends the worker.
    pub fn stop(&self) {
        let _ = self.call(|worker| worker.stopped = true);
    }
}

/// What a descriptor that woke the worker belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

impl Token {
    const WAKE: Token = Token(u64::MAX);

    fn kick(kick: RawFd) -> Token {
        Token(1 << 63 | kick as u64)
    }

    fn nic(port: PortNumber, nic: usize) -> Token {
        Token((nic as u64) << 32 | u64::from(port))
    }

    /// The port of the kernel, and which of its NICs.
    fn place(self) -> Option<(usize, usize)> {
        (self.0 >> 63 == 0).then_some((self.0 as u32 as usize, (self.0 >> 32) as usize))
    }
}

/// The time stamp counter.
fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl Worker {
    /// Starts the thread. After work it looks for more for `poll` before it sleeps.
    pub fn start(number: usize, switch: Switch, poll: Duration) -> io::Result<(Handle, JoinHandle<()>)> {
        let (sender, commands) = channel();
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let handle = Handle { commands: sender, wake: std::sync::Arc::new(wake.try_clone()?) };
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, Token::WAKE.0))?;
        let mut worker = Worker {
            switch,
            watches: Watches::default(),
            announcements: Announcements::default(),
            devices: Vec::new(),
            epoll,
            commands,
            wake,
            poll,
            begun: Instant::now(),
            chains: std::iter::repeat_with(Chain::default).take(BATCH).collect(),
            packet: Packet::default(),
            scratch: Scratch::default(),
            rehomed: VecDeque::new(),
            holding: false,
            work: Work::default(),
            stopped: false,
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            confine_thread(ThreadKind::Worker);
            worker.run();
        })?;
        Ok((handle, thread))
    }

    /// What it did until now.
    pub fn work(&self) -> Work {
        Work { cycles: cycles() - self.work.cycles, ..self.work }
    }

    /// Milliseconds on the worker's own clock.
    pub fn now(&self) -> u64 {
        self.clock(Instant::now())
    }

    fn clock(&self, time: Instant) -> u64 {
        CLOCK_BEGIN + (time - self.begun).as_millis() as u64
    }

    /// Puts a device behind a port. Of a VM, the kicks are listened to with `listen`.
    pub fn attach(&mut self, port: PortNumber, device: Device) -> io::Result<()> {
        match &device {
            Device::Fd(fd) => self.listen_to_nic(port, 0, &[fd.as_raw_fd()])?,
            Device::Team(team) => {
                for (nic, member) in team.nics().iter().enumerate() {
                    member.socket().map_or(Ok(()), |socket| self.listen_to_nic(port, nic, &socket.descriptors()))?;
                }
            }
            Device::Virtio(_) => {}
        }
        let index = usize::from(port);
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, || None);
        }
        self.devices[index] = Some(device);
        Ok(())
    }

    /// Takes what is behind a port away.
    pub fn detach(&mut self, port: PortNumber) -> Option<Device> {
        let device = self.devices.get_mut(usize::from(port))?.take();
        if let Some(Device::Fd(fd)) = &device {
            // Closing does the same, as for NICs.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
        }
        device
    }

    /// The VM behind a port.
    pub fn virtio(&mut self, port: PortNumber) -> Option<&mut VirtioPort> {
        match self.devices.get_mut(usize::from(port))?.as_mut()? {
            Device::Virtio(port) => Some(port),
            Device::Fd(_) | Device::Team(_) => None,
        }
    }

    /// Wakes up when this eventfd is written to.
    pub fn listen(&self, kick: RawFd) -> io::Result<()> {
        // Edge-triggered: each write wakes once, and nobody has to read it.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, Token::kick(kick).0);
        self.epoll.ctl(ControlOperation::Add, kick, event)
    }

    /// No longer does.
    pub fn ignore(&self, kick: RawFd) {
        // What is not there need not go.
        let _ = self.epoll.ctl(ControlOperation::Delete, kick, EpollEvent::default());
    }

    fn run(&mut self) {
        let mut worked = Instant::now();
        let (mut ticked, mut last) = (worked, worked);
        let mut passes = 0u32;
        // Until it is asked for, when it began.
        self.work.cycles = cycles();
        while !self.stopped {
            let begun = cycles();
            let time = Instant::now();
            self.switch.elapse((time - last).as_nanos() as u64);
            last = time;
            passes = passes.wrapping_add(1);
            let packets = self.pass(self.clock(time));
            if packets > 0 {
                self.work.packets += packets as u64;
                self.work.passes += 1;
                self.work.busy_cycles += cycles() - begun;
                worked = time;
            }
            let is_idle = time - worked >= self.poll;
            // System calls are for every so many batches.
            if !is_idle && !passes.is_multiple_of(PASSES) {
                continue;
            }
            if time - ticked >= TICK {
                ticked = time;
                let now = self.now();
                self.switch.tick(now);
                self.tick_teams(now);
                self.announce_due(now);
                self.flush_teams();
            }
            if is_idle && self.want_kicks(true) {
                // Something came in between.
                worked = time;
                self.want_kicks(false);
                continue;
            }
            let limit = if !is_idle {
                Duration::ZERO
            } else if self.holding {
                HELD
            } else {
                TICK
            };
            if !self.wait(limit) && !is_idle {
                std::hint::spin_loop();
            }
            if is_idle {
                self.want_kicks(false);
            }
        }
    }

    /// Waits for whatever comes first; returns whether anything did.
    fn wait(&mut self, limit: Duration) -> bool {
        let mut events = [EpollEvent::default(); 64];
        // An interrupted call is one that found nothing.
        let count = self.epoll.wait(limit.as_millis() as i32, &mut events).unwrap_or(0);
        for event in &events[..count] {
            let token = Token(event.data());
            if token == Token::WAKE {
                let _ = self.wake.read();
            } else if let Some((port, nic)) = token.place()
                && let Some(Some(device)) = self.devices.get_mut(port)
            {
                match device {
                    Device::Fd(fd) => fd.ready = true,
                    Device::Team(team) => team.set_ready(nic),
                    Device::Virtio(_) => {}
                }
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            command(self);
        }
        count > 0
    }
}
