//! The virtio transport over PCI (virtio 1.2 §4.1), modern devices only.
//!
//! ```text
//! BAR 0, 64 KiB:  0x0000 common configuration   0x1000 interrupt status   0x2000 notifications (4 bytes a queue)
//!                 0x3000 device configuration   0x4000 MSI-X table        0x8000 MSI-X pending bits
//! ```
//! Notifications are ioeventfds: they never reach this code.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::PciDevice;
use super::config::{BAR0, COMMAND, COMMAND_MEMORY, ConfigSpace, Identity};
use super::msix::{CAPABILITY_ID as MSIX_CAPABILITY, CONTROL_WRITABLE, Msix};
use super::state::{VirtioPciState, VirtioQueueState};
use crate::bus::{Bus, BusDevice};
use crate::error_chain;
use crate::interrupts::{InterruptError, Interrupts};
use crate::virtio::spawner::Spawner;
use crate::virtio::{Activation, ActiveQueue, DeviceType, GuestMemory, Interrupt, RestoreError, VirtioDevice};

/// Length of base address register 0.
pub const BAR_SIZE: u32 = 0x1_0000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const NOTIFY: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x8000;
const NOTIFY_MULTIPLIER: u64 = 4;
const NO_VECTOR: u16 = 0xffff;
const VENDOR_CAPABILITY: u8 = 0x09;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Takes what went wrong with a device: its id, and the reason.
pub type Report = Arc<dyn Fn(&str, String) + Send + Sync>;

/// What all devices of a VM share.
#[derive(Clone)]
pub struct Platform {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Interrupt routes.
    pub interrupts: Arc<Interrupts>,
    /// Where base address registers appear.
    pub mmio: Arc<Bus>,
    /// Starts and stops devices.
    pub spawner: Arc<Spawner>,
    /// Takes what went wrong with a device: its id, and the reason.
    pub report: Report,
}

/// Why a device cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// Interrupts.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// An eventfd.
    #[error("creating an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// The part that the device's threads reach.
struct Shared {
    id: String,
    status: AtomicU8,
    interrupt_status: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    vectors: Vec<EventFd>,
    report: Report,
}

impl Shared {
    fn signal(&self, vector: u16, cause: u8) {
        self.interrupt_status.fetch_or(cause, Ordering::SeqCst);
        if let Some(event) = self.vectors.get(usize::from(vector)) {
            // Fails only when the counter is full, and then the interrupt is pending anyway.
            let _ = event.write(1);
        }
    }
}

impl Interrupt for Shared {
    fn used(&self, queue: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(queue)) {
            self.signal(vector.load(Ordering::Acquire), ISR_QUEUE);
        }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.signal(self.config_vector.load(Ordering::Acquire), ISR_CONFIG);
    }

    fn fail(&self, reason: String) {
        (self.report)(&self.id, reason);
        self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET as u8, Ordering::SeqCst);
        self.config_changed();
    }

    fn used_event(&self, queue: u16) -> Option<EventFd> {
        let vector = self.queue_vectors.get(usize::from(queue))?.load(Ordering::Acquire);
        self.vectors.get(usize::from(vector))?.try_clone().ok()
    }
}

struct QueueSlot {
    max_size: u16,
    queue: Queue,
    kick: EventFd,
}

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    me: Weak<Mutex<VirtioPci>>,
    platform: Platform,
    shared: Arc<Shared>,
    device: Arc<Mutex<dyn VirtioDevice>>,
    device_type: DeviceType,
    device_features: u64,
    driver_features: u64,
    config: ConfigSpace,
    config_at_power_on: [u8; 256],
    msix_capability: usize,
    access_capability: usize,
    msix: Msix,
    queues: Vec<QueueSlot>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    active: bool,
    mapped_at: Option<u32>,
}

impl VirtioPci {
    /// Puts a device behind a transport, with its registers at `bar`.
    pub fn new(
        id: &str,
        device: Arc<Mutex<dyn VirtioDevice>>,
        bar: u32,
        platform: &Platform,
    ) -> Result<Arc<Mutex<VirtioPci>>, PlugError> {
        let (device_type, sizes, features) = {
            let device = device.lock().expect("device lock");
            let ring = (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);
            let features = device.device_features() | (ring & !device.withheld_features());
            (device.device_type(), device.queue_max_sizes(), features)
        };
        let queues = sizes
            .iter()
            .map(|&max_size| {
                let queue = Queue::new(max_size).expect("devices name valid sizes");
                Ok(QueueSlot { max_size, queue, kick: EventFd::new(EFD_NONBLOCK)? })
            })
            .collect::<std::io::Result<Vec<QueueSlot>>>()
            .map_err(PlugError::EventFd)?;
        let msix = Msix::new(sizes.len() as u16 + 1, &platform.interrupts)?;
        let shared = Arc::new(Shared {
            id: id.into(),
            status: AtomicU8::new(0),
            interrupt_status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: sizes.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            vectors: msix.events().map_err(PlugError::EventFd)?,
            report: platform.report.clone(),
        });
        let (config, msix_capability, access_capability) = config_space(device_type, sizes.len() as u16 + 1, bar);
        let transport = Arc::new_cyclic(|me| {
            Mutex::new(VirtioPci {
                me: me.clone(),
                platform: platform.clone(),
                shared,
                device,
                device_type,
                device_features: features,
                driver_features: 0,
                config_at_power_on: config.bytes,
                config,
                msix_capability,
                access_capability,
                msix,
                queues,
                device_feature_select: 0,
                driver_feature_select: 0,
                queue_select: 0,
                active: false,
                mapped_at: None,
            })
        });
        transport.lock().expect("device lock").map_bar();
        Ok(transport)
    }

    /// The device itself.
    pub fn device(&self) -> Arc<Mutex<dyn VirtioDevice>> {
        self.device.clone()
    }

    /// Puts the registers where the guest wants them, if it wants them somewhere. Linux switches memory decoding off while it sizes the
    /// register; the old place is kept until a new one is asked for.
    fn map_bar(&mut self) {
        let base = self.config.memory_bar();
        if self.config.get16(COMMAND) & COMMAND_MEMORY == 0 || self.mapped_at == Some(base) {
            return;
        }
        self.unmap_bar();
        let Some(me) = self.me.upgrade() else { return };
        let registers = Arc::new(Mutex::new(Registers(Arc::downgrade(&me))));
        // A guest that puts one device over another gets neither.
        if let Err(overlap) = self.platform.mmio.insert(u64::from(base), u64::from(BAR_SIZE), registers) {
            return (self.platform.report)(&self.shared.id, format!("base address register: {overlap}"));
        }
        self.mapped_at = Some(base);
        for (address, slot) in (u64::from(base) + NOTIFY..).step_by(NOTIFY_MULTIPLIER as usize).zip(&self.queues) {
            if let Err(error) = self.platform.vm.register_ioevent(&slot.kick, &IoEventAddress::Mmio(address), NoDatamatch) {
                (self.platform.report)(&self.shared.id, format!("registering a notification address: {error}"));
            }
        }
    }

    fn unmap_bar(&mut self) {
        let Some(base) = self.mapped_at.take().map(u64::from) else { return };
        self.platform.mmio.remove(base);
        for (address, slot) in (base + NOTIFY..).step_by(NOTIFY_MULTIPLIER as usize).zip(&self.queues) {
            let _ = self.platform.vm.unregister_ioevent(&slot.kick, &IoEventAddress::Mmio(address), NoDatamatch);
        }
    }

    fn status(&self) -> u8 {
        self.shared.status.load(Ordering::SeqCst)
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            return self.reset_device();
        }
        // Bits are only ever added (virtio 1.2 §2.1.1).
        let old = self.status();
        let mut new = status | old;
        let wants = |new: u8, bit: u32| new & !old & bit as u8 != 0;
        if wants(new, VIRTIO_CONFIG_S_FEATURES_OK) {
            let known = self.driver_features & !self.device_features == 0;
            if !known || self.driver_features & (1 << VIRTIO_F_VERSION_1) == 0 {
                new &= !(VIRTIO_CONFIG_S_FEATURES_OK as u8);
            }
        }
        let start = wants(new, VIRTIO_CONFIG_S_DRIVER_OK) && new & VIRTIO_CONFIG_S_FEATURES_OK as u8 != 0;
        self.shared.status.fetch_or(new, Ordering::SeqCst);
        if start {
            self.activate();
        }
    }

    /// Hands the enabled queues to the device.
    fn activate(&mut self) {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::new();
        for (index, slot) in (0u16..).zip(&mut self.queues).filter(|(_, slot)| slot.queue.ready()) {
            slot.queue.set_event_idx(event_idx);
            let Ok(kick) = slot.kick.try_clone() else {
                return self.shared.fail("no file descriptor left for a queue".into());
            };
            // `Queue` cannot be cloned; its state can.
            match Queue::try_from(slot.queue.state()) {
                Ok(queue) if queue.is_valid(&*self.platform.memory) => queues.push(ActiveQueue { index, queue, kick }),
                _ => return self.shared.fail(format!("the rings of queue {index} are not in guest memory")),
            }
        }
        let activation = Activation {
            memory: self.platform.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: self.shared.clone(),
        };
        let device = self.device.clone();
        match self.platform.spawner.run(move || device.lock().expect("device lock").activate(activation)) {
            Some(Ok(())) => self.active = true,
            Some(Err(error)) => self.shared.fail(error_chain(&error)),
            None => self.shared.fail("the device could not be started".into()),
        }
    }

    /// Stops the device; its queues are where it left them.
    fn deactivate(&mut self) {
        if !std::mem::take(&mut self.active) {
            return;
        }
        let device = self.device.clone();
        let queues = self.platform.spawner.run(move || device.lock().expect("device lock").quiesce());
        for (index, queue) in queues.unwrap_or_default() {
            if let Some(slot) = self.queues.get_mut(usize::from(index)) {
                slot.queue = queue;
            }
        }
    }

    fn reset_device(&mut self) {
        self.deactivate();
        self.device.lock().expect("device lock").reset();
        for slot in &mut self.queues {
            slot.queue = Queue::new(slot.max_size).expect("it was valid before");
            let _ = slot.kick.read();
        }
        self.shared.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
        self.shared.config_vector.store(NO_VECTOR, Ordering::Release);
        self.shared.interrupt_status.store(0, Ordering::SeqCst);
        self.shared.status.store(0, Ordering::SeqCst);
        (self.driver_features, self.device_feature_select, self.driver_feature_select, self.queue_select) = (0, 0, 0, 0);
    }

    /// The whole machine is reset: the device, and all that the guest wrote to the configuration space. The registers are nowhere
    /// until [`VirtioPci::map_registers`]: another device may still be where they belong.
    pub fn reset(&mut self) {
        self.reset_device();
        self.msix.reset();
        self.unmap_bar();
        self.config.bytes = self.config_at_power_on;
    }

    /// Puts the registers where the configuration space says, which a reset left undone.
    pub fn map_registers(&mut self) {
        self.map_bar();
    }

    /// Takes the registers away, so that another device can get to their place.
    pub fn unmap_registers(&mut self) {
        self.unmap_bar();
    }

    /// Stops the device until [`VirtioPci::resume`]. Returns whether it was active.
    pub fn pause(&mut self) -> bool {
        let was_active = self.active;
        self.deactivate();
        was_active
    }

    /// Goes on with what [`VirtioPci::pause`] stopped.
    pub fn resume(&mut self) {
        // A driver that set DRIVER_OK without agreed features has started nothing, and starts nothing by a pause either.
        let started = (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK) as u8;
        let status = self.status();
        if status & started == started && status & VIRTIO_CONFIG_S_NEEDS_RESET as u8 == 0 && !self.active {
            self.activate();
        }
    }

    /// The state to save; the device must be paused.
    pub fn save(&self) -> VirtioPciState {
        debug_assert!(!self.active, "saved while active");
        let queues = self.queues.iter().zip(&self.shared.queue_vectors).map(|(slot, vector)| VirtioQueueState {
            size: u32::from(slot.queue.size()),
            enabled: slot.queue.ready(),
            descriptors: slot.queue.desc_table(),
            available: slot.queue.avail_ring(),
            used: slot.queue.used_ring(),
            next_available: u32::from(slot.queue.next_avail()),
            next_used: u32::from(slot.queue.next_used()),
            vector: u32::from(vector.load(Ordering::Acquire)),
        });
        VirtioPciState {
            device_type: self.device_type as u32,
            config: self.config.bytes.to_vec(),
            msix: Some(self.msix.save()),
            status: u32::from(self.status()),
            driver_features: self.driver_features,
            device_features: self.device_features,
            selectors: vec![self.device_feature_select, self.driver_feature_select, u32::from(self.queue_select)],
            config_vector: u32::from(self.shared.config_vector.load(Ordering::Acquire)),
            interrupt_status: u32::from(self.shared.interrupt_status.load(Ordering::SeqCst)),
            config_generation: u32::from(self.shared.generation.load(Ordering::SeqCst)),
            queues: queues.collect(),
            device: self.device.lock().expect("device lock").save(),
        }
    }

    /// Takes a saved state over; [`VirtioPci::resume`] then goes on with it.
    pub fn restore(&mut self, state: &VirtioPciState) -> Result<(), RestoreError> {
        let mismatch = |reason: String| RestoreError::Mismatch { device: "PCI transport", reason };
        let malformed = |reason: &str| RestoreError::Malformed { device: "PCI transport", reason: reason.into() };
        if state.device_type != self.device_type as u32 {
            return Err(mismatch(format!("type {} was saved, this one is {}", state.device_type, self.device_type as u32)));
        }
        let missing = state.driver_features & !self.device_features;
        if missing != 0 {
            return Err(mismatch(format!("the guest uses features that are missing here: {missing:#x}")));
        }
        if state.queues.len() != self.queues.len() {
            return Err(mismatch(format!("{} queues were saved, this one has {}", state.queues.len(), self.queues.len())));
        }
        let config: &[u8; 256] = state.config.as_slice().try_into().map_err(|_| malformed("configuration space"))?;
        let &[device_select, driver_select, queue_select] = state.selectors.as_slice() else {
            return Err(malformed("selectors"));
        };
        let msix = state.msix.as_ref().ok_or_else(|| malformed("MSI-X is missing"))?;
        for (slot, saved) in self.queues.iter_mut().zip(&state.queues) {
            slot.queue = Queue::try_from(QueueState {
                max_size: slot.max_size,
                next_avail: saved.next_available as u16,
                next_used: saved.next_used as u16,
                event_idx_enabled: state.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
                size: saved.size as u16,
                ready: saved.enabled,
                desc_table: saved.descriptors,
                avail_ring: saved.available,
                used_ring: saved.used,
            })
            .map_err(|_| malformed("a queue's size or addresses"))?;
        }
        for (vector, saved) in self.shared.queue_vectors.iter().zip(&state.queues) {
            vector.store(saved.vector as u16, Ordering::Release);
        }
        self.shared.config_vector.store(state.config_vector as u16, Ordering::Release);
        self.shared.interrupt_status.store(state.interrupt_status as u8, Ordering::SeqCst);
        self.shared.generation.store(state.config_generation as u8, Ordering::SeqCst);
        self.shared.status.store(state.status as u8, Ordering::SeqCst);
        self.driver_features = state.driver_features;
        (self.device_feature_select, self.driver_feature_select, self.queue_select) =
            (device_select, driver_select, queue_select as u16);
        self.config.restore(config);
        self.map_bar();
        match self.msix.restore(msix) {
            Ok(true) => {}
            Ok(false) => return Err(malformed("the MSI-X table")),
            Err(error) => return Err(mismatch(error.to_string())),
        }
        self.device.lock().expect("device lock").restore(&state.device)
    }

    fn selected(&mut self) -> Option<(usize, &mut QueueSlot)> {
        let index = usize::from(self.queue_select);
        self.queues.get_mut(index).map(|slot| (index, slot))
    }

    fn read_common(&mut self, offset: u64) -> u64 {
        let halves = |value: u64, select: u32| match select {
            0 => value & 0xffff_ffff,
            1 => value >> 32,
            _ => 0,
        };
        match offset {
            0x00 => return u64::from(self.device_feature_select),
            0x04 => return halves(self.device_features, self.device_feature_select),
            0x08 => return u64::from(self.driver_feature_select),
            0x0c => return halves(self.driver_features, self.driver_feature_select),
            0x10 => return u64::from(self.shared.config_vector.load(Ordering::Acquire)),
            0x12 => return self.queues.len() as u64,
            0x14 => return u64::from(self.status()),
            0x15 => return u64::from(self.shared.generation.load(Ordering::SeqCst)),
            0x16 => return u64::from(self.queue_select),
            _ => {}
        }
        let vectors = self.shared.clone();
        let Some((index, slot)) = self.selected() else { return if offset == 0x1a { u64::from(NO_VECTOR) } else { 0 } };
        match offset {
            0x18 => u64::from(slot.queue.size()),
            0x1a => u64::from(vectors.queue_vectors[index].load(Ordering::Acquire)),
            0x1c => u64::from(slot.queue.ready()),
            0x1e => index as u64,
            0x20 => slot.queue.desc_table() & 0xffff_ffff,
            0x24 => slot.queue.desc_table() >> 32,
            0x28 => slot.queue.avail_ring() & 0xffff_ffff,
            0x2c => slot.queue.avail_ring() >> 32,
            0x30 => slot.queue.used_ring() & 0xffff_ffff,
            0x34 => slot.queue.used_ring() >> 32,
            _ => 0,
        }
    }

    fn write_common(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => return self.device_feature_select = value,
            0x08 => return self.driver_feature_select = value,
            0x0c if self.status() & VIRTIO_CONFIG_S_FEATURES_OK as u8 == 0 => {
                let value = u64::from(value);
                match self.driver_feature_select {
                    0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
                    1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
                    _ => {}
                }
                return;
            }
            0x10 => return self.shared.config_vector.store(self.checked_vector(value), Ordering::Release),
            0x14 => return self.set_status(value as u8),
            0x16 => return self.queue_select = value as u16,
            0x1a => {
                let vector = self.checked_vector(value);
                if let Some(place) = self.shared.queue_vectors.get(usize::from(self.queue_select)) {
                    place.store(vector, Ordering::Release);
                }
                return;
            }
            _ => {}
        }
        // A queue that the device works on is not changed under it (virtio 1.2 §4.1.4.3.2).
        let active = self.active;
        let Some((_, slot)) = self.selected().filter(|(_, slot)| !(active && slot.queue.ready())) else { return };
        let queue = &mut slot.queue;
        match offset {
            // What is not valid is not taken; the queue as a whole is checked when the device starts.
            0x18 => drop(queue.try_set_size(value as u16)),
            0x1c if value == 1 => queue.set_ready(true),
            0x20 => queue.set_desc_table_address(Some(value), None),
            0x24 => queue.set_desc_table_address(None, Some(value)),
            0x28 => queue.set_avail_ring_address(Some(value), None),
            0x2c => queue.set_avail_ring_address(None, Some(value)),
            0x30 => queue.set_used_ring_address(Some(value), None),
            0x34 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// A vector that does not exist reads back as none, which tells the driver (§4.1.5.1.2.1).
    fn checked_vector(&self, value: u32) -> u16 {
        if (value as usize) < self.shared.vectors.len() { value as u16 } else { NO_VECTOR }
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            COMMON..ISR => {
                let low = self.read_common(offset);
                let value = if data.len() == 8 { low | (self.read_common(offset + 4) << 32) } else { low };
                data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
            }
            ISR..NOTIFY => data[0] = self.shared.interrupt_status.swap(0, Ordering::SeqCst),
            DEVICE..MSIX_TABLE => self.device.lock().expect("device lock").read_config(offset - DEVICE, data),
            MSIX_TABLE..MSIX_PENDING => self.msix.read_table(offset - MSIX_TABLE, data),
            MSIX_PENDING.. => self.msix.read_pending(offset - MSIX_PENDING, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR => {
                for (place, bytes) in (offset..).step_by(4).zip(data.chunks(4)) {
                    let mut value = [0; 4];
                    value[..bytes.len()].copy_from_slice(bytes);
                    self.write_common(place, u32::from_le_bytes(value));
                }
            }
            // Only writes that KVM did not take as an ioeventfd get here: those of a driver that goes through the PCI window.
            NOTIFY..DEVICE => {
                if let Some(slot) = self.queues.get(((offset - NOTIFY) / NOTIFY_MULTIPLIER) as usize) {
                    let _ = slot.kick.write(1);
                }
            }
            DEVICE..MSIX_TABLE => self.device.lock().expect("device lock").write_config(offset - DEVICE, data),
            MSIX_TABLE..MSIX_PENDING => {
                if let Err(error) = self.msix.write_table(offset - MSIX_TABLE, data) {
                    (self.platform.report)(&self.shared.id, error_chain(&error));
                }
            }
            _ => {}
        }
    }

    /// The window of the PCI configuration access capability (§4.1.4.9): offset and length of the access it describes, if valid.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.access_capability;
        let (bar, offset, length) = (self.config.bytes[at + 4], self.config.get32(at + 8), self.config.get32(at + 12));
        (bar == 0 && matches!(length, 1 | 2 | 4) && offset % length == 0 && offset < BAR_SIZE)
            .then_some((u64::from(offset), length as usize))
    }
}

impl PciDevice for VirtioPci {
    fn read_config(&mut self, offset: u16) -> u32 {
        let offset = usize::from(offset);
        if offset == self.access_capability + 16
            && let Some((at, length)) = self.window()
        {
            let mut data = [0; 4];
            self.read_bar(at, &mut data[..length]);
            return u32::from_le_bytes(data);
        }
        self.config.get32(offset)
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        self.config.write(offset, data);
        match offset & !3 {
            COMMAND | BAR0 => self.map_bar(),
            at if at == self.msix_capability => {
                let control = self.config.get16(self.msix_capability + 2);
                if let Err(error) = self.msix.set_control(control) {
                    (self.platform.report)(&self.shared.id, error_chain(&error));
                }
            }
            at if at == self.access_capability + 16 => {
                if let Some((at, length)) = self.window() {
                    let mut value = [0; 4];
                    value[..data.len()].copy_from_slice(data);
                    self.write_bar(at, &value[..length]);
                }
            }
            _ => {}
        }
    }

    fn unplug(&mut self) {
        self.reset_device();
        self.unmap_bar();
        self.msix.reset();
    }
}

/// Base address register 0 on the bus. It does not keep the device alive.
struct Registers(Weak<Mutex<VirtioPci>>);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(device) = self.0.upgrade() {
            device.lock().expect("device lock").read_bar(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(device) = self.0.upgrade() {
            device.lock().expect("device lock").write_bar(offset, data);
        }
    }
}

fn config_space(device_type: DeviceType, vectors: u16, bar: u32) -> (ConfigSpace, usize, usize) {
    let class = match device_type {
        DeviceType::Net => [0x02, 0x00, 0x00],
        DeviceType::Block => [0x01, 0x00, 0x00],
        DeviceType::Console => [0x07, 0x80, 0x00],
        DeviceType::Entropy => [0x10, 0x00, 0x00],
        DeviceType::Balloon | DeviceType::Mem => [0x05, 0x00, 0x00],
        DeviceType::Vsock => [0x02, 0x80, 0x00],
    };
    let number = 0x1040 + device_type as u16;
    let mut config =
        ConfigSpace::new(&Identity { vendor: 0x1af4, device: number, class, revision: 1, subsystem: (0x1af4, number) });
    config.set_memory_bar(bar, BAR_SIZE);
    config.set16(COMMAND, COMMAND_MEMORY);

    let mut msix = [0; 10];
    msix[0..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    msix[2..6].copy_from_slice(&(MSIX_TABLE as u32).to_le_bytes());
    msix[6..10].copy_from_slice(&(MSIX_PENDING as u32).to_le_bytes());
    let msix_capability = config.add_capability(MSIX_CAPABILITY, &msix);
    config.allow16(msix_capability + 2, CONTROL_WRITABLE);

    // Capability: length, type, bar, id, padding, offset, length (§4.1.4).
    let capability = |kind: u8, offset: u64, length: u32, extra: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(extra);
        body
    };
    config.add_capability(VENDOR_CAPABILITY, &capability(1, COMMON, 0x1000, &[]));
    config.add_capability(VENDOR_CAPABILITY, &capability(3, ISR, 0x1000, &[]));
    config.add_capability(VENDOR_CAPABILITY, &capability(4, DEVICE, 0x1000, &[]));
    config.add_capability(VENDOR_CAPABILITY, &capability(2, NOTIFY, 0x1000, &(NOTIFY_MULTIPLIER as u32).to_le_bytes()));
    let access = config.add_capability(VENDOR_CAPABILITY, &capability(5, 0, 0, &[0; 4]));
    for offset in [access + 4, access + 8, access + 10, access + 12, access + 14] {
        config.allow16(offset, if offset == access + 4 { 0xff } else { 0xffff });
    }
    (config, msix_capability, access)
}
