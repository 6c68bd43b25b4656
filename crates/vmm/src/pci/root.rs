//! The host bridge and its bus: 32 slots, reached through ECAM and through the ports 0xcf8/0xcfc.

use std::sync::{Arc, Mutex};

use super::PciDevice;
use super::config::{ConfigSpace, Identity};
use crate::bus::BusDevice;

/// Slots of a bus. Slot 0 is the host bridge.
pub const SLOTS: usize = 32;

/// Why a slot cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// All are taken.
    #[error("all {} slots of the PCI bus are taken; remove a device first", SLOTS - 1)]
    Full,
    /// This one is taken or does not exist.
    #[error("PCI slot {0} is taken or does not exist")]
    Unusable(u8),
}

/// The bus.
pub struct PciRoot {
    slots: [Option<Arc<Mutex<dyn PciDevice>>>; SLOTS],
    /// The address register of the port mechanism (PCI 3.0 §3.2.2.3.2).
    address: u32,
}

impl Default for PciRoot {
    fn default() -> PciRoot {
        let mut slots = [const { None }; SLOTS];
        slots[0] = Some(Arc::new(Mutex::new(HostBridge::new())) as Arc<Mutex<dyn PciDevice>>);
        PciRoot { slots, address: 0 }
    }
}

impl PciRoot {
    /// The lowest free slot.
    pub fn free_slot(&self) -> Result<u8, SlotError> {
        self.slots.iter().position(Option::is_none).map(|slot| slot as u8).ok_or(SlotError::Full)
    }

    /// Puts a device into a free slot.
    pub fn plug(&mut self, slot: u8, device: Arc<Mutex<dyn PciDevice>>) -> Result<(), SlotError> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(place @ None) => {
                *place = Some(device);
                Ok(())
            }
            _ => Err(SlotError::Unusable(slot)),
        }
    }

    /// Takes a device out of its slot.
    pub fn unplug(&mut self, slot: u8) -> Option<Arc<Mutex<dyn PciDevice>>> {
        let device = self.slots.get_mut(usize::from(slot)).filter(|_| slot != 0)?.take()?;
        device.lock().expect("device lock").unplug();
        Some(device)
    }

    fn read(&self, slot: usize, function: u64, offset: u64, data: &mut [u8]) {
        let device = if function == 0 { self.slots[slot].as_ref() } else { None };
        let Some(device) = device else { return data.fill(0xff) };
        if offset < 256 {
            let register = device.lock().expect("device lock").read_config((offset & !3) as u16).to_le_bytes();
            if let Some(source) = register.get((offset & 3) as usize..).and_then(|r| r.get(..data.len())) {
                data.copy_from_slice(source);
            }
        }
    }

    fn write(&self, slot: usize, function: u64, offset: u64, data: &[u8]) {
        if function == 0
            && offset < 256
            && (offset & 3) as usize + data.len() <= 4
            && let Some(device) = &self.slots[slot]
        {
            device.lock().expect("device lock").write_config(offset as u16, data);
        }
    }
}

/// Bus, slot, function and offset of an ECAM address, on the one bus.
fn decode(offset: u64) -> (usize, u64, u64) {
    ((offset >> 15) as usize & 31, (offset >> 12) & 7, offset & 0xfff)
}

/// ECAM (PCI Express 5.0 §7.2.2): a page of configuration space for each function.
impl BusDevice for PciRoot {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (slot, function, register) = decode(offset);
        PciRoot::read(self, slot, function, register, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (slot, function, register) = decode(offset);
        PciRoot::write(self, slot, function, register, data);
    }
}

/// The ports 0xcf8 to 0xcff.
pub struct ConfigPorts(pub Arc<Mutex<PciRoot>>);

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let root = self.0.lock().expect("PCI lock");
        match (offset, root.address) {
            (0..=3, address) => {
                let bytes = address.to_le_bytes();
                if let Some(source) = bytes.get(offset as usize..).and_then(|b| b.get(..data.len())) {
                    data.copy_from_slice(source);
                }
            }
            (_, address) if address >> 31 == 1 && (address >> 16) & 0xff == 0 => {
                let register = u64::from(address & 0xfc) + (offset - 4);
                root.read((address >> 11) as usize & 31, u64::from(address >> 8) & 7, register, data);
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut root = self.0.lock().expect("PCI lock");
        match (offset, data) {
            (0, &[a, b, c, d]) => root.address = u32::from_le_bytes([a, b, c, d]),
            (0..=3, _) => {}
            _ if root.address >> 31 == 1 && (root.address >> 16) & 0xff == 0 => {
                let address = root.address;
                let register = u64::from(address & 0xfc) + (offset - 4);
                root.write((address >> 11) as usize & 31, u64::from(address >> 8) & 7, register, data);
            }
            _ => {}
        }
    }
}

/// Slot 0: nothing but an identity.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> HostBridge {
        // Vendor 0x1b36 ("Red Hat, Inc."), device 0x0008: a generic PCIe host bridge.
        let identity = Identity { vendor: 0x1b36, device: 8, class: [6, 0, 0], revision: 0, subsystem: (0x1af4, 0x1100) };
        HostBridge(ConfigSpace::new(&identity))
    }
}

impl PciDevice for HostBridge {
    fn read_config(&mut self, offset: u16) -> u32 {
        self.0.get32(usize::from(offset))
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.0.write(usize::from(offset), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_slot_reads_as_all_ones_and_any_access_is_survived() {
        let root = Arc::new(Mutex::new(PciRoot::default()));
        let mut data = [0; 4];
        BusDevice::read(&mut *root.lock().unwrap(), 5 << 15, &mut data);
        assert_eq!(data, [0xff; 4]);
        BusDevice::read(&mut *root.lock().unwrap(), 0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x0008_1b36);
        let mut ports = ConfigPorts(root.clone());
        ports.write(0, &0x8000_0000u32.to_le_bytes());
        ports.read(4, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x0008_1b36);
        let mut seed = 1u64;
        for _ in 0..200_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let bytes = seed.to_le_bytes();
            let length = 1 << (seed >> 60 & 3).min(3);
            let offset = (seed >> 20) % (1 << 20);
            let mut buffer = [0; 8];
            if seed >> 40 & 1 == 0 {
                BusDevice::write(&mut *root.lock().unwrap(), offset, &bytes[..length]);
                ports.write(offset % 8, &bytes[..length.min(4)]);
            }
            BusDevice::read(&mut *root.lock().unwrap(), offset, &mut buffer[..length]);
            ports.read(offset % 8, &mut buffer[..length.min(4)]);
        }
    }
}
