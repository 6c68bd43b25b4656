//! The devices of the PC platform: on I/O ports and in the ACPI tables, not on PCI.

use std::sync::{Arc, Mutex};

use super::MachineError;
use super::events::{EventSender, MachineEvent};
use crate::bus::{Bus, BusDevice};
use crate::devices::console::host::ConsoleOutput;
use crate::devices::pvpanic::{self, Pvpanic};
use crate::devices::rtc::{self, Rtc};
use crate::devices::serial::{self, Serial};
use crate::devices::vmgenid::{VmGenerationId, VmGenerationIdError};
use crate::interrupts::Interrupts;
use crate::memory::layout::{SERIAL_IRQ, VM_GENERATION_ID};
use crate::virtio::{GuestMemory, RestoreError};

/// Ports of a keyboard controller that is not there but for one thing: its line to the processor's reset pin.
const KEYBOARD_PORTS: (u64, u64) = (0x60, 5);
const KEYBOARD_COMMAND: u64 = 4;
const PULSE_RESET: u8 = 0xfe;

/// The reset line: `reboot=k`, and a last resort of several systems. Its status reads as idle.
struct KeyboardReset(EventSender);

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == KEYBOARD_COMMAND && data == [PULSE_RESET] {
            self.0.send(MachineEvent::Reset);
        }
    }
}

/// All of them.
pub struct PlatformDevices {
    /// The first serial port.
    pub serial: Arc<Mutex<Serial>>,
    rtc: Arc<Mutex<Rtc>>,
    pvpanic: Arc<Mutex<Pvpanic>>,
    generation: Mutex<VmGenerationId>,
}

impl PlatformDevices {
    /// Puts them on the bus.
    pub fn new(
        ports: &Bus,
        interrupts: &Interrupts,
        serial_output: ConsoleOutput,
        events: &EventSender,
    ) -> Result<PlatformDevices, MachineError> {
        let serial = Arc::new(Mutex::new(Serial::new(interrupts.line(SERIAL_IRQ)?, Box::new(serial_output))));
        ports.insert(u64::from(serial::PORT), u64::from(serial::PORTS), serial.clone())?;
        let rtc = Arc::new(Mutex::new(Rtc::new()));
        ports.insert(u64::from(rtc::PORT), u64::from(rtc::PORTS), rtc.clone())?;
        ports.insert(KEYBOARD_PORTS.0, KEYBOARD_PORTS.1, Arc::new(Mutex::new(KeyboardReset(events.clone()))))?;
        let events = events.clone();
        let report = move |panic| events.send(MachineEvent::GuestPanic(panic));
        let pvpanic = Arc::new(Mutex::new(Pvpanic::new(Box::new(report))));
        ports.insert(u64::from(pvpanic::PORT), u64::from(pvpanic::PORTS), pvpanic.clone())?;
        Ok(PlatformDevices { serial, rtc, pvpanic, generation: Mutex::new(VmGenerationId::new(VM_GENERATION_ID)?) })
    }

    /// Takes them back to power-on.
    pub fn reset(&self) {
        self.serial.lock().expect("device lock").reset();
        self.rtc.lock().expect("device lock").reset();
        self.pvpanic.lock().expect("device lock").reset();
    }

    /// Writes the generation ID to guest memory: at each start of the machine.
    pub fn write_generation(&self, memory: &GuestMemory) -> Result<(), VmGenerationIdError> {
        self.generation.lock().expect("device lock").write(memory)
    }

    /// Makes the machine another one than the saved one it came from.
    pub fn new_generation(&self, memory: &GuestMemory) -> Result<(), VmGenerationIdError> {
        self.generation.lock().expect("device lock").regenerate(memory)
    }

    /// The saved state of each, by the kind of its section.
    pub fn save(&self) -> [(&'static str, Vec<u8>); 4] {
        [
            ("serial", self.serial.lock().expect("device lock").save()),
            ("rtc", self.rtc.lock().expect("device lock").save()),
            ("pvpanic", self.pvpanic.lock().expect("device lock").save()),
            ("vmgenid", self.generation.lock().expect("device lock").save()),
        ]
    }

    /// Takes a saved state over; `None` if no device has sections of this kind.
    pub fn restore(&self, kind: &str, state: &[u8]) -> Option<Result<(), RestoreError>> {
        Some(match kind {
            "serial" => self.serial.lock().expect("device lock").restore(state),
            "rtc" => self.rtc.lock().expect("device lock").restore(state),
            "pvpanic" => self.pvpanic.lock().expect("device lock").restore(state),
            "vmgenid" => self.generation.lock().expect("device lock").restore(state),
            _ => return None,
        })
    }
}
