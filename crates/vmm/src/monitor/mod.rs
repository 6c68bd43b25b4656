//! The monitor's main thread: it owns the machine, serves the control socket and decides what follows from what happens.
//!
//! ```text
//!  machine events ─┐
//!  control clients ─┼─▶ Monitor::run (one epoll) ─▶ Machine
//!  parent gone ────┘            └─▶ replies, events
//! ```

mod requests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::config::OnReset;
use crate::control::{Connection, Event, EventKind, Failure, Listener, Message, Reply, Request};
use crate::cpu::vcpu::VcpuEvent;
use crate::devices::console::host::{Attachment, ConsoleOutput, InputPump, StartAt};
use crate::devices::pvpanic::GuestPanic;
use crate::error_chain;
use crate::machine::events::{EventQueue, MachineEvent};
use crate::machine::{Machine, RunState};

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PoweredOff,
    /// It was told to.
    Stopped,
    /// The guest reset the machine, and the monitor was to end then.
    Reset,
    /// It could not go on.
    Failed(String),
}

impl Ending {
    /// The monitor's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Ending::PoweredOff | Ending::Stopped => 0,
            Ending::Reset => 3,
            Ending::Failed(_) => 4,
        }
    }
}

/// Text without what a terminal would obey.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|character| *character == '\n' || !character.is_control()).collect()
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::PoweredOff => write!(f, "the guest powered off"),
            Ending::Stopped => write!(f, "stopped on request"),
            Ending::Reset => write!(f, "the guest reset the machine"),
            Ending::Failed(reason) => write!(f, "{reason}"),
        }
    }
}

const TOKEN_EVENTS: u64 = 0;
const TOKEN_LISTENER: u64 = 1;
/// Clients count from here.
const FIRST_CLIENT: u64 = 2;
/// Clients at the same time: more are turned away.
const MAX_CLIENTS: usize = 64;
/// How long the last output may take to reach its readers when the VM has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of the serial port is shown in the end.
const SERIAL_LAST_BYTES: usize = 4096;

struct Peer {
    connection: Connection,
    subscribed: bool,
    /// When it goes, the VM ends.
    is_parent: bool,
}

/// A running VM with its control socket.
pub struct Monitor {
    machine: Machine,
    events: EventQueue,
    listener: Option<Listener>,
    epoll: Epoll,
    clients: BTreeMap<u64, Peer>,
    next_client: u64,
    sequence: u64,
    consoles: Vec<(Attachment, Option<InputPump>)>,
    /// Who talks to the guest agent.
    agent: Option<(Attachment, InputPump)>,
    confined: bool,
    ending: Option<Ending>,
    /// The disk for whose space the VM was paused, until someone resumes or pauses it.
    short_of_space: Option<String>,
    held: bool,
}

impl Monitor {
    /// Takes a machine that is ready to run.
    pub fn new(machine: Machine, events: EventQueue, listener: Option<Listener>, confined: bool) -> io::Result<Monitor> {
        let epoll = Epoll::new()?;
        let watch = |fd: RawFd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        watch(events.ready.as_raw_fd(), TOKEN_EVENTS)?;
        if let Some(listener) = &listener {
            watch(listener.as_raw_fd(), TOKEN_LISTENER)?;
        }
        Ok(Monitor {
            machine,
            events,
            listener,
            epoll,
            clients: BTreeMap::new(),
            next_client: FIRST_CLIENT,
            sequence: 0,
            consoles: Vec::new(),
            agent: None,
            confined,
            ending: None,
            short_of_space: None,
            held: false,
        })
    }

    /// Serves a connection that is there already. If it is the parent's, the VM ends with it.
    pub fn adopt(&mut self, connection: Connection, is_parent: bool) -> io::Result<()> {
        connection.set_nonblocking()?;
        let token = self.next_client;
        self.epoll.ctl(ControlOperation::Add, connection.as_raw_fd(), EpollEvent::new(EventSet::IN, token))?;
        self.next_client += 1;
        self.clients.insert(token, Peer { connection, subscribed: false, is_parent });
        Ok(())
    }

    /// Connects the console to a reader and, if there is one, a writer.
    pub fn attach_console(&mut self, output: OwnedFd, input: Option<OwnedFd>) -> io::Result<()> {
        self.consoles.retain(|(attachment, _)| attachment.is_open());
        let attachment = self.machine.console().attach(output, StartAt::ScrollBack)?;
        let pump = input.map(|fd| InputPump::start(fd, self.machine.console_input())).transpose()?;
        self.consoles.push((attachment, pump));
        Ok(())
    }

    /// Connects the port of the guest agent to a socket, in place of an earlier one. Gives whether the agent has it open; nothing if
    /// the VM has no such port.
    fn attach_agent(&mut self, socket: OwnedFd) -> io::Result<Option<bool>> {
        let Some((port, output)) = self.machine.agent() else { return Ok(None) };
        self.agent = None;
        // What the agent said before was not meant for this one.
        let attachment = output.attach(socket.try_clone()?, StartAt::Now)?;
        let open = port.is_open();
        self.agent = Some((attachment, InputPump::start(socket, Arc::new(port.clone()))?));
        Ok(Some(open))
    }

    /// The guest does not run until a client asks for it.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Lets the guest run until the VM ends.
    pub fn run(mut self) -> io::Result<Ending> {
        if !self.held {
            self.machine.resume();
            self.publish(EventKind::Running);
        }
        let mut ready = [EpollEvent::default(); 16];
        let ending = loop {
            if let Some(ending) = self.ending.take() {
                break ending;
            }
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in &ready[..count] {
                match event.data() {
                    TOKEN_EVENTS => self.machine_events(),
                    TOKEN_LISTENER => self.accept(),
                    token => self.serve(token),
                }
            }
        };
        self.machine.stop();
        let devices = self.status().devices;
        self.publish(EventKind::FinalCounters { devices });
        self.publish(EventKind::Ended { reason: ending.to_string() });
        for (attachment, _) in self.consoles.drain(..) {
            attachment.finish(LAST_WORDS);
        }
        if ending.exit_status() != 0 {
            self.print_serial_output();
        }
        Ok(ending)
    }

    /// A guest with another console that crashes early or for good often says so on its serial port, and only there.
    fn print_serial_output(&self) {
        let Some((_, printed)) = self.machine.serial_output().map(ConsoleOutput::scroll_back) else { return };
        let end = &printed[printed.len().saturating_sub(SERIAL_LAST_BYTES)..];
        if !end.is_empty() {
            eprintln!("maru-vmm: the guest's serial port printed at last:\n{}", printable(end));
        }
    }

    fn machine_events(&mut self) {
        for event in self.events.take() {
            match event {
                MachineEvent::PowerOff => self.end(Ending::PoweredOff),
                MachineEvent::Reset if self.machine.config().on_reset == OnReset::Exit => self.end(Ending::Reset),
                MachineEvent::Reset => self.reset(),
                MachineEvent::Vcpu { event: VcpuEvent::TripleFault, index } => {
                    self.end(Ending::Failed(format!("the guest caused a triple fault on vCPU {index}: it cannot go on")));
                }
                MachineEvent::Vcpu { event: VcpuEvent::Failed(reason), index } => {
                    self.end(Ending::Failed(format!("vCPU {index}: {reason}")));
                }
                MachineEvent::GuestPanic(GuestPanic::Panicked) => self.publish(EventKind::GuestPanicked),
                // It takes care of that itself, with a crash kernel.
                MachineEvent::GuestPanic(GuestPanic::CrashLoaded) => {}
                MachineEvent::GuestAgent => {
                    if let Some(open) = self.machine.agent().map(|(port, _)| port.is_open()) {
                        self.publish(EventKind::GuestAgent { open });
                    }
                }
                MachineEvent::Eject(slot) => {
                    if let Some(id) = self.machine.remove_slot(slot) {
                        self.publish(EventKind::DeviceRemoved { id });
                    }
                }
                MachineEvent::EjectCpu => {
                    if self.machine.take_ejected_vcpus() {
                        self.publish(EventKind::CpusRemoved { count: self.machine.config().cpus.count });
                    }
                }
                MachineEvent::DeviceFailed { id, reason } => self.publish(EventKind::DeviceFailed { id, reason }),
                MachineEvent::DiskFailed { id, reason, pause } => {
                    if pause && self.machine.run_state() == RunState::Running {
                        self.machine.pause();
                        self.short_of_space = Some(id.clone());
                        self.publish(EventKind::Paused);
                    }
                    self.publish(EventKind::DiskFailed { id, reason });
                }
            }
        }
    }

    /// The first reason to end is the one that counts.
    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    fn reset(&mut self) {
        match self.machine.reset() {
            Ok(()) => {
                // A guest writes the reset register until it is gone: it is one reset, not one more for each write.
                self.events.forget(|event| *event == MachineEvent::Reset);
                self.short_of_space = None;
                self.machine.resume();
                self.publish(EventKind::Reset);
            }
            Err(error) => self.end(Ending::Failed(format!("the machine could not be reset: {}", error_chain(&error)))),
        }
    }

    /// Sends an event to all who want to know. A client that does not read misses events, which the sequence tells it; nobody waits for it.
    fn publish(&mut self, kind: EventKind) {
        self.sequence += 1;
        let message = Message::Event(Event { sequence: self.sequence, kind });
        for peer in self.clients.values().filter(|peer| peer.subscribed) {
            let _ = peer.connection.send(&message, &[]);
        }
    }

    fn accept(&mut self) {
        let Some(connection) = self.listener.as_ref().and_then(|listener| listener.accept().ok()) else { return };
        if self.clients.len() < MAX_CLIENTS {
            // A client that cannot be served is closed: it sees that.
            let _ = self.adopt(connection, false);
        } else {
            let message = format!("{MAX_CLIENTS} clients are connected already; close one and try again");
            let _ = connection.send(&Message::Reply(Reply::Error(Failure { message })), &[]);
        }
    }

    fn serve(&mut self, token: u64) {
        let Some(peer) = self.clients.get(&token) else { return };
        match peer.connection.receive::<Request>() {
            Ok(Some((request, fds))) => {
                let reply = match self.handle(token, request, fds) {
                    Ok(value) => Reply::Ok(value),
                    Err(failure) => Reply::Error(failure),
                };
                self.reply(token, reply);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!("the request is not understood: {error}");
                self.reply(token, Reply::Error(Failure { message }));
            }
            Ok(None) | Err(_) => {
                if self.clients.remove(&token).is_some_and(|peer| peer.is_parent) {
                    self.end(Ending::Stopped);
                }
            }
        }
    }

    fn reply(&mut self, token: u64, reply: Reply) {
        let failed = |peer: &Peer| peer.connection.send(&Message::Reply(reply), &[]).is_err();
        if let Some(peer) = self.clients.get(&token)
            && failed(peer)
            && !peer.is_parent
        {
            // It sends requests but does not read answers.
            self.clients.remove(&token);
        }
    }
}
