//! The 256 bytes of a function's configuration space (PCI 3.0 §6), with a mask of what the guest may write.

/// Offset of the command register.
pub const COMMAND: usize = 0x04;
/// Command bit: memory space enabled.
pub const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status bit: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// Offset of the first base address register.
pub const BAR0: usize = 0x10;

/// A configuration space.
pub struct ConfigSpace {
    /// Current content.
    pub bytes: [u8; 256],
    writable: [u8; 256],
    next_capability: usize,
    last_link: usize,
}

/// What a function is.
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
}

impl ConfigSpace {
    /// A type 0 header.
    pub fn new(identity: &Identity) -> ConfigSpace {
        let mut space =
            ConfigSpace { bytes: [0; 256], writable: [0; 256], next_capability: FIRST_CAPABILITY, last_link: CAPABILITIES };
        space.set16(0x00, identity.vendor);
        space.set16(0x02, identity.device);
        space.bytes[0x08] = identity.revision;
        for (i, byte) in identity.class.iter().enumerate() {
            space.bytes[0x0b - i] = *byte;
        }
        space.set16(0x2c, identity.subsystem.0);
        space.set16(0x2e, identity.subsystem.1);
        space.allow16(COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE);
        space.writable[0x0c] = 0xff; // cache line size: a scratch register
        space.writable[0x3c] = 0xff; // interrupt line: a scratch register
        space
    }

    /// Makes base address register 0 a memory range of `size` bytes (a power of two) at `base`, 32 bits wide.
    pub fn set_memory_bar(&mut self, base: u32, size: u32) {
        self.set32(BAR0, base);
        let mask = (!(size - 1)).to_le_bytes();
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&mask);
    }

    /// Where the guest has put base address register 0.
    pub fn memory_bar(&self) -> u32 {
        self.get32(BAR0) & !0xf
    }

    /// Appends a capability: its id, and what follows id and link. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let offset = self.next_capability;
        self.bytes[offset] = id;
        self.bytes[offset + 2..offset + 2 + body.len()].copy_from_slice(body);
        self.bytes[self.last_link] = offset as u8;
        self.last_link = offset + 1;
        self.next_capability = (offset + 2 + body.len()).next_multiple_of(4);
        let status = self.get16(0x06) | STATUS_CAPABILITIES;
        self.set16(0x06, status);
        offset
    }

    /// Lets the guest write these bits of the 16-bit register at `offset`.
    pub fn allow16(&mut self, offset: usize, mask: u16) {
        self.writable[offset..offset + 2].copy_from_slice(&mask.to_le_bytes());
    }

    /// The guest writes; bits that it may not write stay.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &byte) in (offset..256).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (byte & mask);
        }
    }

    /// The 16-bit register at `offset`.
    pub fn get16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The 32-bit register at `offset`.
    pub fn get32(&self, offset: usize) -> u32 {
        u32::from(self.get16(offset)) | (u32::from(self.get16(offset + 2)) << 16)
    }

    /// Sets the 16-bit register at `offset`.
    pub fn set16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Takes over the guest's writable bits from a saved content, and nothing else of it.
    pub fn restore(&mut self, saved: &[u8; 256]) {
        self.write(0, saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_changes_only_what_it_may() {
        let identity = Identity { vendor: 0x1af4, device: 0x1041, class: [2, 0, 0], revision: 1, subsystem: (0x1af4, 0x1100) };
        let mut space = ConfigSpace::new(&identity);
        space.set_memory_bar(0xc000_0000, 0x1_0000);
        let first = space.add_capability(0x11, &[0; 10]);
        let second = space.add_capability(0x09, &[0; 14]);
        assert_eq!((space.bytes[0x34] as usize, space.bytes[first + 1] as usize, space.bytes[second + 1]), (first, second, 0));
        space.write(0, &[0xff; 256]);
        assert_eq!((space.get16(0), space.get16(2)), (0x1af4, 0x1041));
        // Sizing: all ones read back as the mask of the size.
        assert_eq!(space.get32(BAR0), 0xffff_0000);
        assert_eq!(space.get16(COMMAND), COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE);
        assert_eq!(space.bytes[first], 0x11);
        space.write(250, &[0xff; 16]);
    }
}
