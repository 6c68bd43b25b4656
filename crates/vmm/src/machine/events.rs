//! What happens to a machine, from whatever thread, for its owner.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

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
    /// The guest agent has opened its port, or closed it: the device knows which.
    GuestAgent,
    /// The guest has given back the device in this slot.
    Eject(u8),
    /// The guest has given a vCPU back.
    EjectCpu,
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

/// Events that wait at most, apart from those that there can only be a few of. Guests cause events, and faster than the machine's
/// owner may get to look at them: what is beyond is dropped.
const MAX_WAITING: usize = 256;

/// Where events are put. Clones lead to the same queue.
#[derive(Clone)]
pub struct EventSender {
    queue: Arc<Mutex<VecDeque<MachineEvent>>>,
    ready: Arc<EventFd>,
}

/// Where events come out.
pub struct EventQueue {
    queue: Arc<Mutex<VecDeque<MachineEvent>>>,
    /// Readable when there are events.
    pub ready: Arc<EventFd>,
}

/// A queue with both its ends.
pub fn event_queue() -> std::io::Result<(EventSender, EventQueue)> {
    let queue = Arc::new(Mutex::default());
    let ready = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    Ok((EventSender { queue: queue.clone(), ready: ready.clone() }, EventQueue { queue, ready }))
}

impl MachineEvent {
    /// Whether it may be dropped when there are too many: a report for people, of which a guest can cause any number of different
    /// ones. Of all others there are a few for each vCPU, slot and disk.
    fn is_report(&self) -> bool {
        matches!(self, MachineEvent::DeviceFailed { .. } | MachineEvent::DiskFailed { pause: false, .. })
    }
}

impl EventSender {
    /// Puts an event into the queue, unless the same one waits there already. Never blocks.
    pub fn send(&self, event: MachineEvent) {
        let mut queue = self.queue.lock().expect("event lock");
        if (queue.len() >= MAX_WAITING && event.is_report()) || queue.contains(&event) {
            return;
        }
        queue.push_back(event);
        drop(queue);
        let _ = self.ready.write(1);
    }
}

impl EventQueue {
    /// All events there are.
    pub fn take(&self) -> Vec<MachineEvent> {
        let _ = self.ready.read();
        self.queue.lock().expect("event lock").drain(..).collect()
    }

    /// Drops events that have lost their meaning.
    pub fn forget(&self, is_stale: impl Fn(&MachineEvent) -> bool) {
        self.queue.lock().expect("event lock").retain(|event| !is_stale(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_causes_events_in_a_loop_fills_no_memory_and_hides_nothing_that_counts() {
        let (send, queue) = event_queue().unwrap();
        for number in 0..100_000u32 {
            send.send(MachineEvent::Eject((number % 32) as u8));
            send.send(MachineEvent::DeviceFailed { id: "disk".into(), reason: number.to_string() });
        }
        send.send(MachineEvent::PowerOff);
        let events = queue.take();
        assert!(events.len() <= MAX_WAITING + 33, "{}", events.len());
        assert_eq!(events.last(), Some(&MachineEvent::PowerOff));
        assert_eq!(events.iter().filter(|event| matches!(event, MachineEvent::Eject(_))).count(), 32);
        assert!(queue.take().is_empty());
    }
}
