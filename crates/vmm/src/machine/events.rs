//! What happens to a machine, from whatever thread, for its owner.

use std::sync::{Arc, Mutex, mpsc};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::cpu::vcpu::VcpuEvent;
use crate::devices::pvpanic::GuestPanic;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest's system says that it panicked.
    GuestPanic(GuestPanic),
    /// The guest has given back the device in this slot.
    Eject(u8),
    /// A vCPU stopped by itself.
    Vcpu {
        /// Which one.
        index: u32,
        /// Why.
        event: VcpuEvent,
    },
    /// A disk failed a request.
    DiskFailed {
        /// Which one.
        id: String,
        /// Why.
        reason: String,
        /// Whether the request is kept, to be tried again after a pause.
        pause: bool,
    },
    /// A device cannot go on until its driver resets it.
    DeviceFailed {
        /// Which one.
        id: String,
        /// Why.
        reason: String,
    },
}

/// Where events are put. Clones lead to the same queue.
#[derive(Clone)]
pub struct EventSender {
    queue: Arc<Mutex<mpsc::Sender<MachineEvent>>>,
    ready: Arc<EventFd>,
}

/// Where events come out.
pub struct EventQueue {
    queue: mpsc::Receiver<MachineEvent>,
    /// Readable when there are events.
    pub ready: Arc<EventFd>,
}

/// A queue with both its ends.
pub fn event_queue() -> std::io::Result<(EventSender, EventQueue)> {
    let (send, receive) = mpsc::channel();
    let ready = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    Ok((EventSender { queue: Arc::new(Mutex::new(send)), ready: ready.clone() }, EventQueue { queue: receive, ready }))
}

impl EventSender {
    /// Puts an event into the queue. Never blocks.
    pub fn send(&self, event: MachineEvent) {
        // Without a receiver the machine is coming down, and nobody cares any more.
        if self.queue.lock().expect("event lock").send(event).is_ok() {
            let _ = self.ready.write(1);
        }
    }
}

impl EventQueue {
    /// All events there are.
    pub fn take(&self) -> Vec<MachineEvent> {
        let _ = self.ready.read();
        self.queue.try_iter().collect()
    }
}
