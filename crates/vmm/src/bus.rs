//! Port and memory-mapped I/O: which device answers at which address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

/// A device that answers accesses of vCPUs. `offset` counts from the start of the device's range.
///
/// Accesses are 1, 2, 4 or 8 bytes long. What a device does not know, it reads as zero and ignores on writes.
pub trait BusDevice: Send {
    /// A vCPU reads. `data` is zero on entry.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// A vCPU writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device on a bus.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// An address range that is taken already.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the range {base:#x}, {size:#x} bytes, overlaps the one at {other:#x}, or is empty")]
pub struct Overlap {
    /// Start of the new range.
    pub base: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Start of the range in the way.
    pub other: u64,
}

/// One address space. Look-ups take a read lock; changes happen at start and on hot add and removal.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, (u64, SharedDevice)>>,
}

impl Bus {
    /// Puts a device at `base`.
    pub fn insert(&self, base: u64, size: u64, device: SharedDevice) -> Result<(), Overlap> {
        let end = base.checked_add(size).filter(|_| size > 0).ok_or(Overlap { base, size, other: base })?;
        let mut ranges = self.ranges.write().expect("bus lock");
        if let Some((&other, (other_size, _))) = ranges.range(..end).next_back()
            && other + *other_size > base
        {
            return Err(Overlap { base, size, other });
        }
        ranges.insert(base, (size, device));
        Ok(())
    }

    /// Takes the device away that starts at `base`.
    pub fn remove(&self, base: u64) -> Option<SharedDevice> {
        self.ranges.write().expect("bus lock").remove(&base).map(|(_, device)| device)
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, SharedDevice)> {
        let ranges = self.ranges.read().expect("bus lock");
        let (base, (size, device)) = ranges.range(..=address).next_back()?;
        let offset = address - base;
        (offset + length as u64 <= *size).then(|| (offset, device.clone()))
    }

    /// A vCPU reads; where nothing answers, all bits are one. Returns whether something answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                data.fill(0);
                device.lock().expect("device lock").read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// A vCPU writes. Returns whether something answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.lock().expect("device lock").write(offset, data);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory([u8; 16]);

    impl BusDevice for Memory {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&self.0[offset as usize..][..data.len()]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0[offset as usize..][..data.len()].copy_from_slice(data);
        }
    }

    fn device() -> SharedDevice {
        Arc::new(Mutex::new(Memory([7; 16])))
    }

    #[test]
    fn ranges_never_overlap() {
        let bus = Bus::default();
        bus.insert(0x100, 16, device()).unwrap();
        for (base, size) in [(0x100, 16), (0xff, 2), (0x10f, 1), (0x80, 0x200), (0x104, 4), (0x300, 0), (u64::MAX, 2)] {
            assert!(bus.insert(base, size, device()).is_err(), "{base:#x}+{size}");
        }
        bus.insert(0xf0, 16, device()).unwrap();
        bus.insert(0x110, 16, device()).unwrap();
    }

    #[test]
    fn an_access_across_the_end_of_a_device_reaches_nothing() {
        let bus = Bus::default();
        bus.insert(0x100, 16, device()).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x10c, &mut data));
        assert_eq!(data, [7; 4]);
        assert!(!bus.read(0x10e, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(0xff, &data));
        assert!(!bus.read(0x200, &mut data));
    }
}
