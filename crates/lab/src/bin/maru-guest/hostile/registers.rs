//! Garbage in registers: I/O ports, PCI configuration space by all its ways, and the devices' own registers.

use std::io;

use super::access::{Physical, read_port, read_string, write_port, write_string};
use super::arena::Arena;
use super::device::{BAR_BYTES, BAR0, COMMAND, Device, MSIX_TABLE, WINDOW};
use super::random::Random;
use super::rings::{NOWHERE, harmless_message};

const ACPI_SLEEP: u16 = 0x600;
const ACPI_RESET: u16 = 0x602;
const ACPI_EJECT: u16 = 0x618;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const SERIAL: std::ops::Range<u16> = 0x3f8..0x400;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Ports of the monitor's devices, which random numbers would seldom find.
const KNOWN_PORTS: [u16; 10] = [0x60, 0x70, 0x71, 0x505, 0x600, 0x604, 0x608, 0x60c, 0x610, 0xcf8];
/// The PCI configuration space in memory.
pub const ECAM: (u64, u64) = (0xe000_0000, 1 << 20);

/// Whether a write leaves the machine on, and leaves this program its devices and its voice. The interrupt controllers are KVM's, not
/// the monitor's: what a garbled one sends would only kill this guest's kernel.
fn is_survivable(port: u16, width: usize, value: u32) -> bool {
    let touches = |other: u16| port <= other && u32::from(other) < u32::from(port) + width as u32;
    match port {
        _ if SERIAL.clone().any(touches) => false,
        _ if [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1].into_iter().any(touches) => false,
        ACPI_SLEEP if width == 1 => (value >> 2) & 7 != 5,
        ACPI_RESET if width == 1 => value as u8 != 1,
        ACPI_EJECT => width != 4,
        KEYBOARD_COMMAND if width == 1 => value as u8 != KEYBOARD_RESET,
        _ => true,
    }
}

/// Random accesses to all ports, single and in strings.
pub fn garble_ports(random: &mut Random) {
    for _ in 0..300 {
        let port = if random.one_in(2) { random.next() as u16 } else { random.pick(&KNOWN_PORTS) + random.below(4) as u16 };
        let width = random.pick(&[1, 2, 4]);
        let value = random.odd() as u32;
        match random.below(8) {
            0 => {
                let mut buffer = [0; 64];
                let count = 1 + random.below(64 / width as u64) as usize;
                // Typed input is the console's.
                if !SERIAL.contains(&port) {
                    read_string(port, width, &mut buffer[..count * width]);
                }
            }
            1 => {
                let mut buffer = [0; 64];
                buffer.fill_with(|| random.next() as u8);
                let values = buffer.chunks_exact(width).all(|bytes| {
                    let value = bytes.iter().rev().fold(0, |value, byte| (value << 8) | u32::from(*byte));
                    is_survivable(port, width, value)
                });
                if values {
                    write_string(port, width, &buffer);
                }
            }
            2..5 => drop(read_port(port, width)),
            _ if is_survivable(port, width, value) => write_port(port, width, value),
            _ => {}
        }
    }
    garble_serial(random);
}

/// Random writes to the serial port, whose registers are put back: the kernel prints there.
fn garble_serial(random: &mut Random) {
    // What is being printed shall get out before.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let register = |number: u16| SERIAL.start + number;
    let line_control = read_port(register(3), 1) & 0x7f;
    write_port(register(3), 1, line_control);
    let (interrupts, modem_control) = (read_port(register(1), 1), read_port(register(4), 1));
    for _ in 0..40 {
        let port = register(random.below(8) as u16);
        let width = random.pick(&[1, 1, 2, 4]);
        // No garbage is printed: this test's own lines must stay readable.
        match random.below(3) {
            0 => drop(read_port(port, width)),
            _ if port == SERIAL.start => {}
            1 => write_port(port, width, random.odd() as u32),
            _ => write_string(port, 1, &(random.odd() as u32).to_le_bytes()[..3]),
        }
    }
    write_port(register(3), 1, line_control);
    write_port(register(4), 1, modem_control);
    write_port(register(1), 1, interrupts);
    // A line for the garbage that was printed all the same.
    write_port(register(0), 1, u32::from(b'\n'));
}

/// The ways to the PCI configuration space.
pub struct Ways {
    ecam: Physical,
    window: Physical,
    /// Whether this guest may use ports.
    pub ports: bool,
}

impl Ways {
    pub fn new(window: Physical, ports: bool) -> io::Result<Ways> {
        Ok(Ways { ecam: Physical::map(ECAM.0, ECAM.1)?, window, ports })
    }

    /// Writes a register of a slot's configuration space, one way or another.
    fn write(&self, slot: u8, offset: u64, width: usize, value: u32, random: &mut Random) {
        if !self.ports || random.one_in(2) {
            self.ecam.write((u64::from(slot) << 15) | offset, width, u64::from(value));
        } else {
            write_port(CONFIG_ADDRESS, 4, 0x8000_0000 | (u32::from(slot) << 11) | (offset as u32 & 0xfc));
            write_port(CONFIG_DATA + (offset & 3) as u16, width, value);
        }
    }
}

/// Random accesses to the configuration space of all slots. Devices are moved over each other and where none should be; afterwards
/// all is put back.
pub fn garble_config(devices: &[Device], ways: &Ways, arena: &Arena, random: &mut Random) -> Result<(), String> {
    for _ in 0..40 {
        let device = &devices[random.below(devices.len() as u64) as usize];
        match random.below(8) {
            0 => move_registers(device, devices, ways, arena, random),
            1 => {
                ways.write(device.slot, COMMAND, 2, random.next() as u32, random);
            }
            2 => device.set_msix(random.next() as u16),
            3..5 => look_through_window(device, ways, arena, random),
            5 => {
                // Anything anywhere in the configuration space, also in empty slots and functions that are not there.
                let (at, width) = (random.below(ECAM.1 - 8), random.pick(&[1, 2, 4, 8]));
                if random.one_in(2) {
                    ways.ecam.write(at, width, random.odd());
                } else {
                    ways.ecam.read(at, width);
                }
            }
            6 => {
                let (offset, width) = (random.below(256), random.pick(&[1, 2, 4]));
                let _ = device.read_config(offset, width);
                let _ = device.write_config(offset, width, random.odd() as u32);
            }
            _ if !ways.ports => {}
            _ => {
                write_port(CONFIG_ADDRESS, 4, random.next() as u32 | 0x8000_0000);
                read_port(CONFIG_DATA + random.below(4) as u16, random.pick(&[1, 2, 4]));
            }
        }
    }
    // All out of the way first: a device does not get to a place that another still has.
    for device in devices {
        device.write_config(COMMAND, 2, 0).map_err(|error| error.to_string())?;
        device
            .write_config(BAR0, 4, 0xd000_0000 + u32::from(device.slot) * BAR_BYTES as u32)
            .map_err(|error| error.to_string())?;
        device.write_config(COMMAND, 2, 6).map_err(|error| error.to_string())?;
    }
    devices.iter().try_for_each(|device| device.restore_config().map_err(|error| error.to_string()))
}

fn move_registers(device: &Device, devices: &[Device], ways: &Ways, arena: &Arena, random: &mut Random) {
    let other = &devices[random.below(devices.len() as u64) as usize];
    let base = match random.below(8) {
        0 => other.registers.start(),
        1 => ECAM.0 + random.below(ECAM.1),
        2 => random.pick(&[0xfec0_0000, 0xfee0_0000, 0xffff_0000, 0xfffb_0000]),
        3 => arena.data.start(),
        4 => 0,
        5 => WINDOW.0 + random.below(WINDOW.1),
        _ => random.next(),
    };
    let (offset, width) = random.pick(&[(0, 4), (0, 4), (0, 4), (2, 2), (3, 1)]);
    ways.write(device.slot, BAR0 + offset, width, base as u32, random);
    // Who answers now, if anyone?
    let at = WINDOW.0 + random.below(WINDOW.1 - 8);
    ways.window.read(at - WINDOW.0, random.pick(&[1, 2, 4, 8]));
}

/// Reads and writes registers through the window in the configuration space (virtio 1.2 §4.1.4.9).
fn look_through_window(device: &Device, ways: &Ways, arena: &Arena, random: &mut Random) {
    let offset = register(random);
    let width = random.pick(&[1u32, 2, 4, 4]);
    let bar = if random.one_in(10) { random.next() as u32 } else { 0 };
    ways.write(device.slot, device.window + 4, 1, bar, random);
    let [place, length] = [offset as u32, width].map(|right| if random.one_in(10) { random.odd() as u32 } else { right });
    ways.write(device.slot, device.window + 8, 4, place, random);
    ways.write(device.slot, device.window + 12, 4, length, random);
    if random.one_in(2) {
        let _ = device.read_config(device.window + 16, 4);
    } else {
        let value = value(offset, 4, arena, random) as u32;
        ways.write(device.slot, device.window + 16, 4, value, random);
    }
}

/// Random accesses to a device's registers, of every width and at every offset.
pub fn garble_registers(device: &Device, arena: &Arena, random: &mut Random) {
    for _ in 0..200 {
        let (offset, width) = (register(random), random.pick(&[1, 2, 4, 8]));
        let offset = offset.min(BAR_BYTES - width as u64);
        if random.one_in(2) {
            device.registers.read(offset, width);
        } else {
            device.registers.write(offset, width, value(offset, width, arena, random));
        }
    }
    device.set_msix(0);
}

/// An offset in a device's registers, mostly where there is something.
fn register(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.below(BAR_BYTES),
        1..4 => random.below(0x40),
        4 => random.pick(&[0x1000, 0x2000, 0x3000, 0x4000, 0x8000]) + random.below(0x100),
        // Across a page: two accesses, of odd lengths.
        5 => (random.below(15) + 1) * 0x1000 - random.below(8),
        6 => MSIX_TABLE + random.below(0x80),
        _ => 0x3000 + random.below(0x40),
    }
}

/// What to write there: anything, except that rings must not lie in this guest's own memory, and interrupts must be harmless.
fn value(offset: u64, width: usize, arena: &Arena, random: &mut Random) -> u64 {
    let mut value = random.odd();
    for lane in (0..width as u64).step_by(4) {
        let at = offset + lane;
        let nowhere = random.pick(&NOWHERE) & 0xffff_ffff;
        let fixed = match at & !3 {
            // What the device reads: a pattern that makes no sense.
            0x20 | 0x28 => Some(random.pick(&[arena.canary().start(), nowhere])),
            // What it writes.
            0x30 => Some(random.pick(&[arena.data.start(), nowhere])),
            // With a high half, no address is in memory.
            0x24 | 0x2c | 0x34 => Some(if random.one_in(2) { 0 } else { random.next() & 0xffff_ffff }),
            at if at >= MSIX_TABLE && at % 16 == 8 => Some(harmless_message(random)),
            _ => None,
        };
        if let Some(fixed) = fixed {
            value = (value & !(0xffff_ffff << (8 * lane))) | ((fixed & 0xffff_ffff) << (8 * lane));
        }
    }
    value
}

/// Gives all devices back that can be given back, asked or not, and waits until they are gone.
pub fn eject_all(devices: &[Device]) -> Result<(), String> {
    write_port(ACPI_EJECT, 4, u32::MAX);
    let start = std::time::Instant::now();
    let is_gone = |device: &Device| device.read_config(0, 4).is_ok_and(|id| id == u32::MAX);
    // Disks and network cards go, the machine's own devices stay.
    while devices.iter().any(|device| matches!(device.kind, super::device::NET | super::device::BLOCK) && !is_gone(device)) {
        if start.elapsed() > std::time::Duration::from_secs(10) {
            return Err("ejected devices are still there".into());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let stayed = devices.iter().filter(|device| !is_gone(device)).count();
    println!("maru-guest: hostile ejected {} devices, {stayed} stay", devices.len() - stayed);
    // Nobody is at the old places any more.
    match devices.iter().find(|device| is_gone(device) && device.registers.read(0x12, 2) != 0xffff) {
        Some(device) => Err(format!("{} is gone, but its registers answer", device.title())),
        None => Ok(()),
    }
}

/// Two bytes of the clock's memory that survive a reset of the machine.
const MARK: [(u8, u8); 2] = [(0x6e, 0xa5), (0x6f, 0x5a)];

/// Whether [`reset_machine`] was called before.
pub fn was_reset() -> bool {
    MARK.iter().all(|(index, value)| {
        write_port(0x70, 1, u32::from(*index));
        read_port(0x71, 1) == u32::from(*value)
    })
}

/// Leaves no device where it was: a machine that is reset has all of them back in their places.
pub fn hide(devices: &[Device]) {
    for (index, device) in devices.iter().enumerate() {
        let next = &devices[(index + 1) % devices.len()];
        let _ = match index % 3 {
            0 => device.write_config(COMMAND, 2, 0),
            1 => device.write_config(BAR0, 4, 0xd000_0000),
            _ => device.write_config(BAR0, 4, next.registers.start() as u32),
        };
    }
}

/// Resets the machine, as it is.
pub fn reset_machine() -> ! {
    for (index, value) in MARK {
        write_port(0x70, 1, u32::from(index));
        write_port(0x71, 1, u32::from(value));
    }
    loop {
        write_port(ACPI_RESET, 1, 1);
    }
}
