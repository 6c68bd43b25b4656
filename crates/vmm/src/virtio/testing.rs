//! A driver for device tests: queues in real guest memory, kicks, and an interrupt that remembers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation, ActiveQueue, GuestMemory, Interrupt, VirtioDevice};

/// How long a test waits for a device before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An interrupt that counts.
#[derive(Default)]
pub struct TestInterrupt {
    counts: Mutex<Counts>,
    changed: Condvar,
    events: Mutex<Vec<Option<EventFd>>>,
}

#[derive(Default, Clone, Debug)]
struct Counts {
    used: u64,
    config: u64,
    failed: Option<String>,
}

impl Interrupt for TestInterrupt {
    fn used(&self, _queue: u16) {
        self.counts.lock().unwrap().used += 1;
        self.changed.notify_all();
    }
    fn config_changed(&self) {
        self.counts.lock().unwrap().config += 1;
        self.changed.notify_all();
    }
    fn fail(&self, reason: String) {
        self.counts.lock().unwrap().failed.get_or_insert(reason);
        self.changed.notify_all();
    }
    fn used_event(&self, queue: u16) -> Option<EventFd> {
        let mut events = self.events.lock().unwrap();
        let index = usize::from(queue);
        while events.len() <= index {
            events.push(None);
        }
        let event = events[index].get_or_insert_with(|| EventFd::new(EFD_NONBLOCK).unwrap());
        event.try_clone().ok()
    }
}

impl TestInterrupt {
    /// Waits until the device failed, and says why.
    pub fn wait_failed(&self) -> String {
        let guard = self.counts.lock().unwrap();
        let (guard, timeout) = self.changed.wait_timeout_while(guard, PATIENCE, |c| c.failed.is_none()).unwrap();
        assert!(!timeout.timed_out(), "the device did not fail");
        guard.failed.clone().unwrap()
    }
    /// Why the device failed, if it did.
    pub fn failed(&self) -> Option<String> {
        self.counts.lock().unwrap().failed.clone()
    }
    /// How often the configuration changed.
    pub fn config_changes(&self) -> u64 {
        self.counts.lock().unwrap().config
    }
    /// Waits until `done` or fails the test; woken by each interrupt and often enough besides.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "timed out: {what}");
            let guard = self.counts.lock().unwrap();
            let _ = self.changed.wait_timeout(guard, Duration::from_millis(5)).unwrap();
        }
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub device_writes: bool,
}

/// A used ring entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u32,
    /// Bytes that the device wrote.
    pub length: u32,
}

/// The driver's side of one split queue. Layout from `base`: descriptors, avail ring, used ring, each on a page of its own or more.
pub struct DriverQueue {
    /// The memory.
    pub memory: Arc<GuestMemory>,
    /// Entries.
    pub size: u16,
    /// Where the descriptor table is.
    pub descriptors: u64,
    /// Where the avail ring is.
    pub avail: u64,
    /// Where the used ring is.
    pub used: u64,
    /// The kick.
    pub kick: EventFd,
    next_descriptor: u16,
    avail_index: u16,
    used_index: u16,
}

impl DriverQueue {
    /// Lays out a queue at `base` (64 KiB are enough for 1024 entries).
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16) -> DriverQueue {
        DriverQueue {
            memory: memory.clone(),
            size,
            descriptors: base,
            avail: base + 0x5000,
            used: base + 0x8000,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            next_descriptor: 0,
            avail_index: 0,
            used_index: 0,
        }
    }

    /// The device's side.
    pub fn device_queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_ready(true);
        queue
    }

    /// Writes one raw descriptor: hostile tests put anything here.
    pub fn write_descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = self.descriptors + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain available without a kick; returns its head.
    pub fn push(&mut self, chain: &[Buffer]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (i, buffer) in chain.iter().enumerate() {
            let index = (self.next_descriptor + i as u16) % self.size;
            let last = i + 1 == chain.len();
            let flags = u16::from(!last) | if buffer.device_writes { 2 } else { 0 };
            self.write_descriptor(index, buffer.address, buffer.length, flags, (index + 1) % self.size);
        }
        self.next_descriptor = (self.next_descriptor + chain.len() as u16) % self.size;
        self.push_head(head);
        head
    }

    /// Makes the chain that starts at `head` available.
    pub fn push_head(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.avail_index % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail_index = self.avail_index.wrapping_add(1);
        self.set_avail_index(self.avail_index);
    }

    /// Overwrites the avail index.
    pub fn set_avail_index(&self, index: u16) {
        self.memory.store(index, GuestAddress(self.avail + 2), Ordering::Release).unwrap();
    }

    /// Rings the bell.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next entry of the used ring, if there is one.
    pub fn pop_used(&mut self) -> Option<Used> {
        let index: u16 = self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).unwrap();
        if index == self.used_index {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.used_index % self.size);
        self.used_index = self.used_index.wrapping_add(1);
        Some(Used {
            head: self.memory.read_obj(GuestAddress(slot)).unwrap(),
            length: self.memory.read_obj(GuestAddress(slot + 4)).unwrap(),
        })
    }
}

/// A device with its driver.
pub struct Harness<D: VirtioDevice> {
    /// The guest's memory: 16 MiB at 0. Queue `n` lies at `0x10_0000 + n * 0x1_0000`; tests put their buffers at 4 MiB and up.
    pub memory: Arc<GuestMemory>,
    /// The queues.
    pub queues: Vec<DriverQueue>,
    /// What the device told the driver.
    pub interrupt: Arc<TestInterrupt>,
    /// The device.
    pub device: D,
    features: AtomicU64,
}

impl<D: VirtioDevice> Harness<D> {
    /// Puts the device in a machine, not yet activated.
    pub fn new(device: D) -> Harness<D> {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap());
        let sizes = device.queue_max_sizes();
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(n, size)| DriverQueue::new(&memory, 0x10_0000 + n as u64 * 0x1_0000, (*size).min(256)));
        Harness { queues: queues.collect(), interrupt: Arc::default(), device, features: AtomicU64::new(0), memory }
    }

    /// Activates the device with fresh queues.
    pub fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        let queues = (0u16..).zip(&self.queues).map(|(index, queue)| (index, queue.device_queue())).collect();
        self.activate_with(features, queues)
    }

    /// Activates the device with queues that `quiesce` returned.
    pub fn activate_with(&mut self, features: u64, queues: Vec<(u16, Queue)>) -> Result<(), ActivateError> {
        self.features.store(features, Ordering::Relaxed);
        let queues = queues
            .into_iter()
            .map(|(index, queue)| {
                let kick = self.queues[usize::from(index)].kick.try_clone().unwrap();
                ActiveQueue { index, queue, kick }
            })
            .collect();
        self.device.activate(Activation { memory: self.memory.clone(), features, queues, interrupt: self.interrupt.clone() })
    }

    /// Quiesces the device and activates it again, as a pause and resume does.
    pub fn pause_and_resume(&mut self) {
        let queues = self.device.quiesce();
        self.activate_with(self.features.load(Ordering::Relaxed), queues).unwrap();
    }

    /// Sends one chain through `queue` and waits for its used entry.
    pub fn exchange(&mut self, queue: usize, chain: &[Buffer]) -> Used {
        let head = self.queues[queue].push(chain);
        self.queues[queue].kick();
        let used = self.wait_used(queue);
        assert_eq!(used.head, u32::from(head));
        used
    }

    /// Waits for the next used entry of `queue`.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        let mut found = None;
        let driver = &mut self.queues[queue];
        self.interrupt.wait_until("no used entry", || {
            found = driver.pop_used();
            found.is_some()
        });
        found.unwrap()
    }
}
