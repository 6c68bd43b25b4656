//! The thread of a vCPU.
//!
//! ```text
//!              Run                    pause()
//!  paused ───────────▶ running ──────────────────▶ paused ── Stop ──▶ ended
//!    ▲ Do(job)            │ shutdown, error, ...
//!    └────────────────────┴── reported as a VcpuEvent; the thread waits, paused
//! ```
//!
//! The thread owns its vCPU's file descriptor: all reads and changes of its state are jobs that run on it while it is paused.
//! Others only queue commands and kick it out of the guest with a signal.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::sandbox::{ThreadKind, confine_thread};

/// Where a vCPU's accesses to ports and memory-mapped devices go.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub memory: Arc<Bus>,
}

/// Why a vCPU stopped by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// A triple fault: on a real machine, a reset.
    TripleFault,
    /// KVM cannot go on; the VM has to stop.
    Failed(String),
}

/// A job for the vCPU's thread.
type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

enum Command {
    Run,
    Pause(mpsc::Sender<()>),
    Do(Job),
    Stop,
}

/// A vCPU, as the rest of the machine sees it.
pub struct Vcpu {
    /// Its APIC id.
    pub apic_id: u32,
    commands: mpsc::Sender<Command>,
    pending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread, paused. `report` is called on it when the vCPU stops by itself.
    pub fn spawn(
        index: u32,
        apic_id: u32,
        fd: VcpuFd,
        buses: Buses,
        report: impl Fn(VcpuEvent) + Send + 'static,
    ) -> std::io::Result<Vcpu> {
        install_signal_handler()?;
        let (commands, queue) = mpsc::channel();
        let pending = Arc::new(AtomicBool::new(false));
        let runner = Runner { fd, buses, queue, pending: pending.clone() };
        let thread =
            std::thread::Builder::new().name(format!("vcpu{index}")).stack_size(256 * 1024).spawn(move || runner.main(report))?;
        Ok(Vcpu { apic_id, commands, pending, thread: Some(thread) })
    }

    /// Lets the guest run.
    pub fn run(&self) {
        self.send(Command::Run);
    }

    /// Asks the vCPU to leave the guest; the receiver gets a message (or hangs up) when it has.
    pub fn pause(&self) -> mpsc::Receiver<()> {
        let (done, paused) = mpsc::channel();
        self.send(Command::Pause(done));
        paused
    }

    /// Runs a job on the vCPU's thread, and hands over its result. The vCPU should be paused: between two runs of a running one is
    /// no moment that means anything.
    pub fn submit<T: Send + 'static>(&self, job: impl FnOnce(&mut VcpuFd) -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (send, receive) = mpsc::channel();
        self.send(Command::Do(Box::new(move |fd| {
            let _ = send.send(job(fd));
        })));
        receive
    }

    fn send(&self, command: Command) {
        // A thread that has ended takes no commands; whoever waits for an answer sees the channel closed.
        if self.commands.send(command).is_ok() {
            self.pending.store(true, Ordering::Release);
            self.kick();
        }
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // SAFETY: the handle is not joined yet, so the thread id is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Runner {
    fd: VcpuFd,
    buses: Buses,
    queue: mpsc::Receiver<Command>,
    pending: Arc<AtomicBool>,
}

impl Runner {
    fn main(mut self, report: impl Fn(VcpuEvent)) {
        KVM_RUN.set(std::ptr::from_mut(self.fd.get_kvm_run()));
        confine_thread(ThreadKind::Vcpu);
        loop {
            // Paused: wait for what to do.
            match self.queue.recv() {
                Ok(Command::Run) => {}
                Ok(Command::Pause(done)) => {
                    let _ = done.send(());
                    continue;
                }
                Ok(Command::Do(job)) => {
                    job(&mut self.fd);
                    continue;
                }
                Ok(Command::Stop) | Err(_) => break,
            }
            match self.run_until_told() {
                Told::Pause(done) => {
                    let _ = done.send(());
                }
                Told::Stop => break,
                Told::Event(event) => report(event),
            }
        }
        // The signal handler must not write to the run page once it is unmapped.
        KVM_RUN.set(std::ptr::null_mut());
    }

    fn run_until_told(&mut self) -> Told {
        loop {
            // The order matters: a kick after this point makes the next KVM_RUN return at once.
            self.fd.set_kvm_immediate_exit(0);
            fence(Ordering::SeqCst);
            if self.pending.swap(false, Ordering::AcqRel) {
                while let Ok(command) = self.queue.try_recv() {
                    match command {
                        Command::Run => {}
                        Command::Do(job) => job(&mut self.fd),
                        Command::Pause(done) => {
                            return match self.finish_access() {
                                None => Told::Pause(done),
                                Some(event) => Told::Event(event),
                            };
                        }
                        Command::Stop => return Told::Stop,
                    }
                }
            }
            if let Err(event) = self.enter() {
                return Told::Event(event);
            }
        }
    }

    /// The access that the guest was last stopped for is only complete after another `KVM_RUN`: state is saved after that.
    fn finish_access(&mut self) -> Option<VcpuEvent> {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            match self.enter() {
                Ok(Entered::Interrupted) => return None,
                Ok(Entered::Handled) => {}
                Err(event) => return Some(event),
            }
        }
    }

    fn enter(&mut self) -> Result<Entered, VcpuEvent> {
        match self.fd.run() {
            Ok(exit) => match exit {
                // A string instruction arrives as one exit with many accesses to the same port.
                VcpuExit::IoIn(port, data) => {
                    for access in data.chunks_mut(port_access_bytes()) {
                        self.buses.ports.read(u64::from(port), access);
                    }
                }
                VcpuExit::IoOut(port, data) => {
                    for access in data.chunks(port_access_bytes()) {
                        self.buses.ports.write(u64::from(port), access);
                    }
                }
                VcpuExit::MmioRead(address, data) => {
                    self.buses.memory.read(address, data);
                }
                VcpuExit::MmioWrite(address, data) => {
                    self.buses.memory.write(address, data);
                }
                VcpuExit::Shutdown => return Err(VcpuEvent::TripleFault),
                VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => {}
                VcpuExit::FailEntry(reason, cpu) => {
                    return Err(VcpuEvent::Failed(format!("the CPU refused to enter the guest (reason {reason:#x}, cpu {cpu})")));
                }
                VcpuExit::InternalError => return Err(VcpuEvent::Failed(self.internal_error())),
                other => return Err(VcpuEvent::Failed(format!("unexpected exit from KVM: {other:?}"))),
            },
            Err(error) => match error.errno() {
                libc::EINTR => return Ok(Entered::Interrupted),
                libc::EAGAIN => {}
                _ => return Err(VcpuEvent::Failed(format!("KVM_RUN: {error}"))),
            },
        }
        Ok(Entered::Handled)
    }

    fn internal_error(&mut self) -> String {
        let rip = self.fd.get_regs().map(|r| r.rip).unwrap_or(0);
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the union.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let meaning = match suberror {
            1 => "an instruction that KVM cannot emulate",
            2 => "simultaneous exceptions",
            3 => "an exit while delivering an event",
            _ => "unknown",
        };
        format!("KVM internal error {suberror} ({meaning}) at {rip:#x}; if stock kernels die like this, see `maru host check`")
    }
}

enum Entered {
    Handled,
    Interrupted,
}

enum Told {
    Pause(mpsc::Sender<()>),
    Stop,
    Event(VcpuEvent),
}

thread_local! {
    /// The run page of the vCPU that this thread runs; null elsewhere.
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Bytes of each access to a port in the exit that this thread's vCPU just made; `kvm-ioctls` only tells their sum.
fn port_access_bytes() -> usize {
    let run = KVM_RUN.get();
    assert!(!run.is_null(), "only a vCPU's thread makes exits");
    // SAFETY: the pointer is this thread's own run page, mapped while it is set, and the exit is KVM_EXIT_IO, for which KVM
    // fills this member of the union. A one-byte load through the raw pointer makes no reference that others could alias.
    let size = unsafe { std::ptr::addr_of!((*run).__bindgen_anon_1.io.size).read_volatile() };
    usize::from(size).max(1)
}

/// The signal that takes a vCPU out of the guest.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: i32) {
    // A kick that arrives between the check for commands and KVM_RUN must not be lost.
    let run = KVM_RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is this thread's own run page, mapped while it is set; a one-byte store is what the kernel expects.
        unsafe { std::ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

fn install_signal_handler() -> std::io::Result<()> {
    // SAFETY: an all-zero sigaction is valid; the handler only does an async-signal-safe store.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as extern "C" fn(i32) as usize;
        if libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
