//! Which pages changed: what vCPUs write, KVM notes; what devices write, the bitmaps of the regions note.

use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::layout::PAGE;
use super::{Memory, MemoryError};

/// The changed pages of one region of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyRegion {
    /// Guest address of the region.
    pub start: u64,
    /// One bit a page of 4 KiB, lowest bit first.
    pub bitmap: Vec<u64>,
}

impl DirtyRegion {
    /// Adds pages from a log of all guest memory, one bit a page from address 0.
    pub fn merge(&mut self, log: &[u64]) {
        let first = (self.start / PAGE / 64) as usize;
        for (word, logged) in self.bitmap.iter_mut().zip(log.get(first..).unwrap_or_default()) {
            *word |= logged;
        }
    }

    /// How many pages changed.
    pub fn count(&self) -> u64 {
        self.bitmap.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

impl Memory {
    /// Starts noting changes: from here on [`Memory::take_dirty`] reports what changed since the last call.
    pub fn start_dirty_log(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for region in self.guest.iter() {
            region.get_mmap().bitmap().reset();
        }
        self.register(vm, true)
    }

    /// Stops noting changes of vCPUs; devices go on, at next to no cost.
    pub fn stop_dirty_log(&self, vm: &VmFd) -> Result<(), MemoryError> {
        self.register(vm, false)
    }

    /// The pages that changed since the last call, by vCPUs and devices, and starts anew.
    pub fn take_dirty(&self, vm: &VmFd) -> Result<Vec<DirtyRegion>, MemoryError> {
        let mut regions = Vec::new();
        for (slot, region) in (0u32..).zip(self.guest.iter()) {
            let mut bitmap = vm
                .get_dirty_log(slot, region.len() as usize)
                .map_err(|e| MemoryError::Host { what: "reading KVM's dirty log", source: e.into() })?;
            for (word, by_devices) in bitmap.iter_mut().zip(region.get_mmap().bitmap().get_and_reset()) {
                *word |= by_devices;
            }
            regions.push(DirtyRegion { start: region.start_addr().0, bitmap });
        }
        Ok(regions)
    }
}
