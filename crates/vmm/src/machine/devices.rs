//! The machine's virtio devices: made from the configuration, added and removed while it runs.

use std::sync::{Arc, Mutex};

use super::Machine;
use crate::config::{ConsoleConfig, NetBackend, NetConfig};
use crate::devices::console::{Console, ConsoleHandle};
use crate::devices::net::{Net, NetConfig as NetDeviceConfig, NetError, NetHandle, TapBackend};
use crate::devices::rng::Rng;
use crate::memory::layout::PCI_WINDOW_32;
use crate::pci::SlotError;
use crate::pci::virtio::{BAR_SIZE, PlugError, VirtioPci};
use crate::virtio::VirtioDevice;

/// Slots that the monitor's own devices have, so that those of the user keep theirs whatever is switched on.
const RNG_SLOT: u8 = 31;
const CONSOLE_SLOT: u8 = 30;

/// Why a device could not be made, added or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A network card.
    #[error("network card '{id}': {source}")]
    Net {
        /// Which one.
        id: String,
        /// Why.
        source: NetError,
    },
    /// The transport.
    #[error("device '{id}': {source}")]
    Plug {
        /// Which one.
        id: String,
        /// Why.
        source: PlugError,
    },
    /// No place on the bus.
    #[error("device '{id}': {source}")]
    Slot {
        /// Which one.
        id: String,
        /// Why.
        source: SlotError,
    },
    /// A file descriptor.
    #[error("device '{id}': {what}")]
    Host {
        /// Which one.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// No such device.
    #[error("there is no device '{0}'")]
    Unknown(String),
    /// A name that is taken.
    #[error("there is a device '{0}' already")]
    Exists(String),
}

/// What can be asked of a device by its kind.
pub enum DeviceHandle {
    /// A network card.
    Net(NetHandle),
    /// The virtio console.
    Console(ConsoleHandle),
    /// The entropy device.
    Rng,
}

/// A device in its slot.
pub struct DeviceSlot {
    /// The device's name.
    pub id: String,
    /// PCI slot.
    pub slot: u8,
    /// The device behind its transport.
    pub transport: Arc<Mutex<VirtioPci>>,
    /// Its own controls.
    pub handle: DeviceHandle,
}

impl Machine {
    /// Makes all devices of the configuration.
    pub(super) fn create_devices(&mut self) -> Result<(), DeviceError> {
        let mut nets = std::mem::take(&mut self.config.nets);
        for net in &mut nets {
            let (device, handle) = make_net(net)?;
            net.slot = Some(self.plug(&net.id, net.slot, device, handle)?);
        }
        self.config.nets = nets;
        if self.config.console == ConsoleConfig::Virtio {
            let host = |source| DeviceError::Host { id: "console".into(), what: "creating an eventfd", source };
            let device = Console::new(self.console.clone()).map_err(host)?;
            let handle = DeviceHandle::Console(device.handle());
            self.plug("console", Some(CONSOLE_SLOT), Arc::new(Mutex::new(device)), handle)?;
        }
        if self.config.rng {
            self.plug("rng", Some(RNG_SLOT), Arc::new(Mutex::new(Rng::new())), DeviceHandle::Rng)?;
        }
        Ok(())
    }

    /// Puts a device on the bus, in the wanted or the lowest free slot.
    fn plug(
        &mut self,
        id: &str,
        slot: Option<u8>,
        device: Arc<Mutex<dyn VirtioDevice>>,
        handle: DeviceHandle,
    ) -> Result<u8, DeviceError> {
        let mut pci = self.pci.lock().expect("PCI lock");
        let no_place = |source| DeviceError::Slot { id: id.into(), source };
        let slot = match slot {
            Some(slot) => slot,
            None => pci.free_slot().map_err(no_place)?,
        };
        let bar = PCI_WINDOW_32.0 as u32 + u32::from(slot) * BAR_SIZE;
        let transport = VirtioPci::new(id, device, bar, &self.platform)
            .map_err(|source| DeviceError::Plug { id: id.into(), source })?;
        pci.plug(slot, transport.clone()).map_err(no_place)?;
        self.slots.push(DeviceSlot { id: id.into(), slot, transport, handle });
        Ok(slot)
    }

    /// All devices.
    pub fn devices(&self) -> &[DeviceSlot] {
        &self.slots
    }

    /// Adds a network card while the guest runs, and tells it.
    pub fn add_net(&mut self, mut net: NetConfig) -> Result<(), DeviceError> {
        self.check_new(&net.id)?;
        let (device, handle) = make_net(&net)?;
        let slot = self.plug(&net.id, net.slot, device, handle)?;
        net.slot = Some(slot);
        self.config.nets.push(net);
        self.acpi.lock().expect("device lock").slot_added(slot);
        Ok(())
    }

    fn check_new(&self, id: &str) -> Result<(), DeviceError> {
        match self.slots.iter().any(|slot| slot.id == id) || crate::config::BUILT_IN_IDS.contains(&id) {
            true => Err(DeviceError::Exists(id.into())),
            false => Ok(()),
        }
    }

    /// Asks the guest to give a device back. It is gone when the guest has done so (an event says so).
    pub fn request_removal(&mut self, id: &str) -> Result<(), DeviceError> {
        let slot = self.slots.iter().find(|slot| slot.id == id).ok_or_else(|| DeviceError::Unknown(id.into()))?;
        self.acpi.lock().expect("device lock").slot_leaving(slot.slot);
        Ok(())
    }

    /// Takes away the device in a slot, after the guest gave it back or when it does not matter any more. Returns its name.
    pub fn remove_slot(&mut self, slot: u8) -> Option<String> {
        let index = self.slots.iter().position(|device| device.slot == slot)?;
        self.pci.lock().expect("PCI lock").unplug(slot);
        let id = self.slots.remove(index).id;
        self.config.disks.retain(|disk| disk.id != id);
        self.config.nets.retain(|net| net.id != id);
        Some(id)
    }
}

type Made = (Arc<Mutex<dyn VirtioDevice>>, DeviceHandle);

fn make_net(net: &NetConfig) -> Result<Made, DeviceError> {
    let error = |source| DeviceError::Net { id: net.id.clone(), source };
    match &net.backend {
        NetBackend::Tap(name) => {
            let device = Net::new(NetDeviceConfig {
                mac: net.mac.0,
                mtu: net.mtu,
                queue_pairs: net.queue_pairs,
                backend: TapBackend::Name(name.clone()),
            })
            .map_err(error)?;
            let handle = DeviceHandle::Net(device.handle());
            Ok((Arc::new(Mutex::new(device)), handle))
        }
        NetBackend::VhostUser(_) => todo!(),
    }
}
