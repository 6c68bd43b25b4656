//! How devices raise interrupts: an eventfd each, which KVM turns into an I/O APIC pin or a message without a way through the monitor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::layout::FIRST_MSI_GSI;

/// KVM's table of routes holds this many.
const MAX_GSI: u32 = 4096;

/// Why an interrupt cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// No number is left.
    #[error("all {MAX_GSI} interrupt numbers of the VM are taken; remove a device first")]
    Exhausted,
    /// KVM refused.
    #[error("{what}: {source}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// No eventfd.
    #[error("creating an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// The interrupt routes of a VM.
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

struct Routes {
    /// Messages by number; the pins of the I/O APIC are always there and not in it.
    messages: BTreeMap<u32, Option<(u64, u32)>>,
}

impl Interrupts {
    /// For a VM whose interrupt controllers KVM has made.
    pub fn new(vm: Arc<VmFd>) -> Result<Interrupts, InterruptError> {
        let interrupts = Interrupts { vm, routes: Mutex::new(Routes { messages: BTreeMap::new() }) };
        interrupts.apply(&interrupts.routes.lock().expect("routes lock"))?;
        Ok(interrupts)
    }

    /// An eventfd that pulses a pin of the I/O APIC (edge-triggered).
    pub fn line(&self, pin: u32) -> Result<EventFd, InterruptError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(InterruptError::EventFd)?;
        self.vm
            .register_irqfd(&event, pin)
            .map_err(|source| InterruptError::Kvm { what: "connecting an interrupt line", source })?;
        Ok(event)
    }

    /// Takes a number for a message.
    pub fn message(self: &Arc<Self>) -> Result<Message, InterruptError> {
        let mut routes = self.routes.lock().expect("routes lock");
        let gsi = (FIRST_MSI_GSI..MAX_GSI).find(|gsi| !routes.messages.contains_key(gsi)).ok_or(InterruptError::Exhausted)?;
        let event = EventFd::new(EFD_NONBLOCK).map_err(InterruptError::EventFd)?;
        routes.messages.insert(gsi, None);
        drop(routes);
        Ok(Message { event, gsi, attached: false, interrupts: self.clone() })
    }

    fn set(&self, gsi: u32, message: (u64, u32)) -> Result<(), InterruptError> {
        let mut routes = self.routes.lock().expect("routes lock");
        let before = routes.messages.insert(gsi, Some(message)).flatten();
        if before == Some(message) {
            return Ok(());
        }
        let result = self.apply(&routes);
        if result.is_err() {
            // KVM takes all routes or none: a message that it refuses must not stand in the way of every other device's.
            routes.messages.insert(gsi, before);
        }
        result
    }

    fn apply(&self, routes: &Routes) -> Result<(), InterruptError> {
        let pins = (0..FIRST_MSI_GSI).map(|pin| {
            let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            entry
        });
        let messages = routes.messages.iter().filter_map(|(&gsi, message)| {
            let (address, data) = (*message)?;
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: address as u32,
                address_hi: (address >> 32) as u32,
                data,
                ..Default::default()
            };
            Some(entry)
        });
        let entries: Vec<kvm_irq_routing_entry> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| InterruptError::Exhausted)?;
        self.vm.set_gsi_routing(&table).map_err(|source| InterruptError::Kvm { what: "setting the interrupt routes", source })
    }
}

/// A message-signalled interrupt. While it is detached (masked), what is signalled stays in the eventfd and is
/// delivered when it is attached.
pub struct Message {
    /// Write to raise the interrupt.
    pub event: EventFd,
    gsi: u32,
    attached: bool,
    interrupts: Arc<Interrupts>,
}

impl Message {
    /// Delivers to this address with these data from now on.
    pub fn attach(&mut self, address: u64, data: u32) -> Result<(), InterruptError> {
        self.interrupts.set(self.gsi, (address, data))?;
        if !self.attached {
            self.interrupts
                .vm
                .register_irqfd(&self.event, self.gsi)
                .map_err(|source| InterruptError::Kvm { what: "connecting a message", source })?;
            self.attached = true;
        }
        Ok(())
    }

    /// Keeps what is signalled from now on.
    pub fn detach(&mut self) {
        if self.attached {
            // It can only fail if it is not connected.
            let _ = self.interrupts.vm.unregister_irqfd(&self.event, self.gsi);
            self.attached = false;
        }
    }

    /// Whether something was signalled while detached.
    pub fn is_pending(&self) -> bool {
        use std::os::fd::AsRawFd;
        let mut poll = libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, no wait.
        !self.attached && unsafe { libc::poll(&mut poll, 1, 0) } == 1
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.detach();
        self.interrupts.routes.lock().expect("routes lock").messages.remove(&self.gsi);
    }
}
