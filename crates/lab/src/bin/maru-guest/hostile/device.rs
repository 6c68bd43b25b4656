//! The virtio devices on the PCI bus, driven by hand: no kernel driver is bound to them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::access::Physical;

/// Where the monitor puts registers, and how much there is of them: 32 slots of 64 KiB.
pub const WINDOW: (u64, u64) = (0xc000_0000, 32 * BAR_BYTES);
/// Length of a device's registers.
pub const BAR_BYTES: u64 = 0x1_0000;
/// Start of the MSI-X table in them.
pub const MSIX_TABLE: u64 = 0x4000;

pub const COMMAND: u64 = 0x04;
pub const BAR0: u64 = 0x10;
const DECODE_AND_MASTER: u16 = 6;

pub const NET: u16 = 1;
pub const BLOCK: u16 = 2;
pub const CONSOLE: u16 = 3;
pub const RNG: u16 = 4;
pub const BALLOON: u16 = 5;
pub const VSOCK: u16 = 19;
pub const MEM: u16 = 24;

pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const VERSION_1: u64 = 1 << 32;

/// A virtio device.
pub struct Device {
    /// Its type (virtio 1.2 §5).
    pub kind: u16,
    /// Its slot.
    pub slot: u8,
    /// Its registers, where the monitor put them.
    pub registers: Physical,
    /// Queues.
    pub queues: u16,
    /// Features that it offers.
    pub offered: u64,
    /// Offset of the MSI-X capability.
    pub msix: u64,
    /// Offset of the capability with the window on the registers.
    pub window: u64,
    bar: u32,
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    /// Offset of the device's own configuration.
    pub specific: u64,
    config: File,
}

/// All virtio devices.
pub fn find(window: &Physical) -> io::Result<Vec<Device>> {
    let mut names: Vec<String> =
        fs::read_dir("/sys/bus/pci/devices")?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let mut devices = Vec::new();
    for name in names {
        let dir = format!("/sys/bus/pci/devices/{name}");
        // The transport's driver may be built into the kernel.
        let _ = fs::write(format!("{dir}/driver/unbind"), &name);
        let config = File::options().read(true).write(true).open(format!("{dir}/config"))?;
        let mut space = [0; 256];
        config.read_exact_at(&mut space, 0)?;
        if u16::from_le_bytes([space[0], space[1]]) == 0x1af4
            && let Some(device) = Device::from_config(&name, config, &space, window)
        {
            device.restore_config()?;
            devices.push(device);
        }
    }
    Ok(devices)
}

impl Device {
    fn from_config(name: &str, config: File, space: &[u8; 256], window: &Physical) -> Option<Device> {
        let word = |at: usize| space.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let kind = u16::from_le_bytes([space[2], space[3]]).checked_sub(0x1040)?;
        let bar = word(BAR0 as usize)? & !0xf;
        let slot = u8::from_str_radix(name.get(8..10)?, 16).ok()?;
        let registers = window.part(u64::from(bar).checked_sub(WINDOW.0)?, BAR_BYTES);
        let mut device = Device {
            kind,
            slot,
            registers,
            queues: 0,
            offered: 0,
            msix: 0,
            window: 0,
            bar,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            specific: 0,
            config,
        };
        let mut at = usize::from(space[0x34]);
        while at != 0 && at + 16 <= space.len() {
            let offset = u64::from(word(at + 8)?);
            match (space[at], space[at + 3]) {
                (0x11, _) => device.msix = at as u64,
                (0x09, 1) => device.common = offset,
                (0x09, 2) => (device.notify, device.notify_multiplier) = (offset, u64::from(word(at + 16)?)),
                (0x09, 4) => device.specific = offset,
                (0x09, 5) => device.window = at as u64,
                _ => {}
            }
            at = usize::from(space[at + 1]);
        }
        Some(device)
    }

    /// What it is, for people.
    pub fn title(&self) -> String {
        let kind = match self.kind {
            NET => "net",
            BLOCK => "block",
            CONSOLE => "console",
            RNG => "rng",
            BALLOON => "balloon",
            VSOCK => "vsock",
            MEM => "mem",
            _ => "unknown",
        };
        format!("{kind} in slot {}", self.slot)
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: u64, width: usize) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.config.read_at(&mut bytes[..width], offset)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes the configuration space.
    pub fn write_config(&self, offset: u64, width: usize, value: u32) -> io::Result<()> {
        self.config.write_at(&value.to_le_bytes()[..width], offset).map(|_| ())
    }

    /// Puts registers, decoding and MSI-X back to how the machine started.
    pub fn restore_config(&self) -> io::Result<()> {
        self.write_config(self.msix + 2, 2, 0)?;
        self.write_config(COMMAND, 2, 0)?;
        self.write_config(BAR0, 4, self.bar)?;
        self.write_config(COMMAND, 2, u32::from(DECODE_AND_MASTER))
    }

    /// Switches MSI-X on or off.
    pub fn set_msix(&self, control: u16) {
        let _ = self.write_config(self.msix + 2, 2, u32::from(control));
    }

    pub fn read_common(&self, offset: u64, width: usize) -> u64 {
        self.registers.read(self.common + offset, width)
    }

    pub fn write_common(&self, offset: u64, width: usize, value: u64) {
        self.registers.write(self.common + offset, width, value);
    }

    pub fn status(&self) -> u8 {
        self.read_common(0x14, 1) as u8
    }

    pub fn set_status(&self, status: u8) {
        self.write_common(0x14, 1, u64::from(status));
    }

    /// Resets it. The write returns when it has.
    pub fn reset(&self) -> Result<(), String> {
        self.set_status(0);
        match self.status() {
            0 => Ok(()),
            status => Err(format!("{}: status {status:#x} after a reset", self.title())),
        }
    }

    /// Looks what it is made of.
    pub fn survey(&mut self) {
        self.queues = self.read_common(0x12, 2) as u16;
        self.offered = (0..2).fold(0, |features, half| {
            self.write_common(0x00, 4, half);
            features | (self.read_common(0x04, 4) << (32 * half))
        });
    }

    pub fn set_features(&self, features: u64) {
        for half in 0..2 {
            self.write_common(0x08, 4, half);
            self.write_common(0x0c, 4, (features >> (32 * half)) & 0xffff_ffff);
        }
    }

    /// Sets a queue up. Nothing is checked: that is the monitor's.
    pub fn set_queue(&self, index: u16, size: u16, [descriptors, available, used]: [u64; 3]) {
        self.write_common(0x16, 2, u64::from(index));
        self.write_common(0x18, 2, u64::from(size));
        for (offset, address) in [(0x20, descriptors), (0x28, available), (0x30, used)] {
            self.write_common(offset, 4, address & 0xffff_ffff);
            self.write_common(offset + 4, 4, address >> 32);
        }
    }

    pub fn queue_max_size(&self, index: u16) -> u16 {
        self.write_common(0x16, 2, u64::from(index));
        self.read_common(0x18, 2) as u16
    }

    pub fn enable_queue(&self, index: u16) {
        self.write_common(0x16, 2, u64::from(index));
        self.write_common(0x1c, 2, 1);
    }

    /// Offset in the registers of a queue's notification, whether there is such a queue or not.
    pub fn notification(&self, index: u16) -> u64 {
        self.notify + u64::from(index) * self.notify_multiplier
    }

    pub fn kick(&self, index: u16) {
        self.registers.write(self.notification(index), 2, u64::from(index));
    }
}
