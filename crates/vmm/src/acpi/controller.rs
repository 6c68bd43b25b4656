//! The registers behind the ACPI tables, at I/O port 0x600.
//!
//! | offset | bytes | register |
//! |---|---|---|
//! | 0x00 | 1 | sleep control: bit 5 enters the state in bits 4:2 (ACPI 6.5 §4.8.3.7) |
//! | 0x01 | 1 | sleep status |
//! | 0x02 | 1 | reset: writing 1 resets the machine |
//! | 0x04 | 4 | pending events; reading clears them |
//! | 0x08 | 4 | vCPU selector |
//! | 0x0c | 4 | flags of the selected vCPU: bit 0 present, bit 1 new, bit 2 should go (writing 1 clears these two); writing bit 3 ejects it |
//! | 0x10 | 4 | slots with a new device; reading clears them |
//! | 0x14 | 4 | slots whose device should go; reading clears them |
//! | 0x18 | 4 | writing a slot's bit ejects its device |
//! | 0x1c | 4 | slot selector |
//! | 0x20 | 4 | the number of the network card in the selected slot, from 1 on; 0 if it has no name |
//! | 0x24 | 64 | its name, with zeros behind it |

use std::collections::BTreeMap;

use prost::Message;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0x00;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 0x01;
/// Offset of the reset register.
pub const RESET: u64 = 0x02;
/// What to write to the reset register.
pub const RESET_VALUE: u8 = 1;
/// Offset of the pending events.
pub const EVENTS: u64 = 0x04;
const CPU_SELECT: u64 = 0x08;
const CPU_FLAGS: u64 = 0x0c;
const SLOTS_ADDED: u64 = 0x10;
const SLOTS_LEAVING: u64 = 0x14;
const SLOTS_EJECT: u64 = 0x18;
const NAME_SELECT: u64 = 0x1c;
const NAME_NUMBER: u64 = 0x20;
const NAME: u64 = 0x24;
/// Bytes of the register with a name.
pub const NAME_BYTES: u64 = 64;
/// Length of the register block.
pub const SIZE: u64 = NAME + NAME_BYTES;

/// The highest number of a network card that Linux makes an interface's name of.
const MAX_NUMBER: u32 = 16_383;

/// Event: a vCPU was added, or should go.
pub const EVENT_CPU: u32 = 1;
/// Event: a PCI slot changed.
pub const EVENT_PCI: u32 = 2;
/// Event: the power button was pressed.
pub const EVENT_POWER_BUTTON: u32 = 4;
/// Event: the VM generation ID changed.
pub const EVENT_GENERATION: u32 = 8;
const CPU_PRESENT: u32 = 1;
/// Flag: the vCPU is new.
pub const CPU_NEW: u32 = 2;
/// Flag: the vCPU should go.
pub const CPU_LEAVING: u32 = 4;
/// Written: the guest is done with the vCPU.
pub const CPU_EJECT: u32 = 8;
/// Sleep type of S5, as the tables name it, and the bit that enters it.
pub const SLEEP_TYPE_S5: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;

/// What the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiRequest {
    /// Switch the machine off.
    PowerOff,
    /// Reset it.
    Reset,
    /// The guest is done with the device in this slot.
    Eject(u8),
    /// It is done with a vCPU that it was asked for: fewer are [present](AcpiController::present_cpus) now.
    EjectCpu,
}

/// The controller.
pub struct AcpiController {
    interrupt: EventFd,
    request: Box<dyn Fn(AcpiRequest) + Send>,
    /// Numbers and names of network cards that have some, by slot.
    names: BTreeMap<u32, (u32, String)>,
    state: AcpiState,
}

/// Its saved state.
#[derive(Clone, PartialEq, Message)]
pub struct AcpiState {
    /// Events that the guest has not read.
    #[prost(uint32, tag = "1")]
    pub events: u32,
    /// The selected vCPU.
    #[prost(uint32, tag = "2")]
    pub cpu_select: u32,
    /// Flags of each vCPU.
    #[prost(uint32, repeated, tag = "3")]
    pub cpus: Vec<u32>,
    /// Slots with a new device.
    #[prost(uint32, tag = "4")]
    pub slots_added: u32,
    /// Slots whose device should go.
    #[prost(uint32, tag = "5")]
    pub slots_leaving: u32,
    /// How many vCPUs are to stay; 0 if the guest is asked for none.
    #[prost(uint32, tag = "6")]
    pub cpus_wanted: u32,
    /// The slot whose name is looked at.
    #[prost(uint32, tag = "7")]
    pub name_select: u32,
}

impl AcpiController {
    /// A controller for `max_cpus` vCPUs, `present` of them there. `interrupt` pulses the event device's interrupt.
    pub fn new(
        max_cpus: u32,
        present: u32,
        interrupt: EventFd,
        request: impl Fn(AcpiRequest) + Send + 'static,
    ) -> AcpiController {
        let cpus = (0..max_cpus).map(|index| if index < present { CPU_PRESENT } else { 0 }).collect();
        let state = AcpiState { cpus, ..Default::default() };
        AcpiController { interrupt, request: Box::new(request), names: BTreeMap::new(), state }
    }

    fn notify(&mut self, event: u32) {
        self.state.events |= event;
        // Fails only when the counter is full, and then the interrupt is pending anyway.
        let _ = self.interrupt.write(1);
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.notify(EVENT_POWER_BUTTON);
    }

    /// Tells the guest that the VM generation ID changed.
    pub fn generation_changed(&mut self) {
        self.notify(EVENT_GENERATION);
    }

    /// Tells the guest about a new vCPU.
    pub fn cpu_added(&mut self, index: u32) {
        if let Some(flags) = self.state.cpus.get_mut(index as usize) {
            *flags = CPU_PRESENT | CPU_NEW;
            self.notify(EVENT_CPU);
        }
    }

    /// Asks the guest to give vCPUs back until `count` are left: one after the other, the last first. It answers with
    /// [`AcpiRequest::EjectCpu`]. With as many as there are, an earlier wish is taken back.
    pub fn want_cpus(&mut self, count: u32) {
        self.state.cpus_wanted = if count < self.present_cpus() { count } else { 0 };
        self.state.cpus.iter_mut().for_each(|flags| *flags &= !CPU_LEAVING);
        self.ask_for_cpu();
    }

    fn ask_for_cpu(&mut self) {
        if let Some(leaving) = self.leaving_cpu() {
            self.state.cpus[leaving] |= CPU_LEAVING;
            self.notify(EVENT_CPU);
        }
    }

    /// The vCPU that the guest is to give back next.
    fn leaving_cpu(&self) -> Option<usize> {
        let last = self.state.cpus.iter().rposition(|flags| flags & CPU_PRESENT != 0)?;
        let wanted = self.state.cpus_wanted as usize;
        (wanted != 0 && last >= wanted).then_some(last)
    }

    fn eject_selected_cpu(&mut self) {
        let selected = self.state.cpu_select as usize;
        if self.leaving_cpu() == Some(selected) {
            self.state.cpus[selected] = 0;
            (self.request)(AcpiRequest::EjectCpu);
            self.ask_for_cpu();
        }
    }

    /// How many vCPUs are present.
    pub fn present_cpus(&self) -> u32 {
        self.state.cpus.iter().filter(|&&flags| flags & CPU_PRESENT != 0).count() as u32
    }

    /// Tells the guest about a new device.
    pub fn slot_added(&mut self, slot: u8) {
        self.state.slots_added |= 1 << slot;
        self.notify(EVENT_PCI);
    }

    /// Asks the guest to give a device back; it answers with [`AcpiRequest::Eject`].
    pub fn slot_leaving(&mut self, slot: u8) {
        self.state.slots_leaving |= 1 << slot;
        self.notify(EVENT_PCI);
    }

    /// Gives the network card in a slot a name (PCI Firmware 3.3 §4.6.7). Its number is the one at the end of its id, plus one: the guest knows
    /// it by that, so it stays whatever else comes and goes. If another card has that number, it is the lowest free one.
    pub fn name_slot(&mut self, slot: u8, id: &str, name: &str) {
        let is_free = |number: &u32| !self.names.values().any(|(taken, _)| taken == number);
        let digits = &id[id.trim_end_matches(|c: char| c.is_ascii_digit()).len()..];
        let own = digits.parse::<u32>().ok().filter(|number| *number < MAX_NUMBER).map(|number| number + 1);
        if let Some(number) = own.filter(is_free).or_else(|| (1..=MAX_NUMBER).find(is_free)) {
            self.names.insert(slot.into(), (number, name.into()));
        }
    }

    /// The card in a slot is gone, and its name with it.
    pub fn forget_name(&mut self, slot: u8) {
        self.names.remove(&slot.into());
    }

    /// Forgets what the guest was told: it starts anew and finds everything by itself. vCPUs that it was asked for are gone.
    pub fn reset(&mut self) {
        while let Some(leaving) = self.leaving_cpu() {
            self.state.cpus[leaving] = 0;
        }
        let cpus = self.state.cpus.iter().map(|flags| flags & CPU_PRESENT).collect();
        self.state = AcpiState { cpus, ..Default::default() };
    }

    /// The state to save.
    pub fn save(&self) -> AcpiState {
        self.state.clone()
    }

    /// Takes a saved state over; `false` if it is of a machine with another number of vCPUs.
    pub fn restore(&mut self, state: AcpiState) -> bool {
        let fits = state.cpus.len() == self.state.cpus.len();
        if fits {
            self.state = state;
            if self.state.events != 0 {
                let _ = self.interrupt.write(1);
            }
        }
        fits
    }

    fn read_register(&mut self, register: u64) -> u32 {
        let state = &mut self.state;
        match register {
            EVENTS => std::mem::take(&mut state.events),
            CPU_SELECT => state.cpu_select,
            CPU_FLAGS => state.cpus.get(state.cpu_select as usize).copied().unwrap_or(0),
            SLOTS_ADDED => std::mem::take(&mut state.slots_added),
            SLOTS_LEAVING => std::mem::take(&mut state.slots_leaving),
            NAME_SELECT => state.name_select,
            NAME_NUMBER => self.names.get(&state.name_select).map_or(0, |(number, _)| *number),
            NAME..SIZE => {
                let name = self.names.get(&state.name_select).map_or("", |(_, name)| name).as_bytes();
                let byte = |at: u64| name.get((register - NAME + at) as usize).copied().unwrap_or(0);
                u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
            }
            _ => 0,
        }
    }
}

impl BusDevice for AcpiController {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= EVENTS && offset.is_multiple_of(4) && data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, &[value]) if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == SLEEP_TYPE_S5 => {
                (self.request)(AcpiRequest::PowerOff);
            }
            (RESET, &[RESET_VALUE]) => (self.request)(AcpiRequest::Reset),
            (CPU_SELECT, &[a, b, c, d]) => self.state.cpu_select = u32::from_le_bytes([a, b, c, d]),
            (CPU_FLAGS, &[a, ..]) => {
                let written = u32::from(a);
                if let Some(flags) = self.state.cpus.get_mut(self.state.cpu_select as usize) {
                    *flags &= !(written & (CPU_NEW | CPU_LEAVING));
                }
                if written & CPU_EJECT != 0 {
                    self.eject_selected_cpu();
                }
            }
            (NAME_SELECT, &[a, b, c, d]) => self.state.name_select = u32::from_le_bytes([a, b, c, d]),
            (SLOTS_EJECT, &[a, b, c, d]) => {
                let mask = u32::from_le_bytes([a, b, c, d]);
                (1..32).filter(|slot| mask & (1 << slot) != 0).for_each(|slot| (self.request)(AcpiRequest::Eject(slot)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn controller() -> (AcpiController, mpsc::Receiver<AcpiRequest>) {
        let (send, receive) = mpsc::channel();
        let send = std::sync::Mutex::new(send);
        let controller = AcpiController::new(4, 2, EventFd::new(libc::EFD_NONBLOCK).unwrap(), move |request| {
            send.lock().unwrap().send(request).unwrap();
        });
        (controller, receive)
    }

    fn read(controller: &mut AcpiController, offset: u64) -> u32 {
        let mut data = [0; 4];
        controller.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn requests_of_the_guest_reach_the_machine() {
        let (mut controller, requests) = controller();
        controller.write(SLEEP_CONTROL, &[(3 << 2) | SLEEP_ENABLE]);
        controller.write(SLEEP_CONTROL, &[(SLEEP_TYPE_S5 << 2) | SLEEP_ENABLE]);
        controller.write(RESET, &[1]);
        controller.write(SLOTS_EJECT, &0x0000_0009u32.to_le_bytes());
        let got: Vec<AcpiRequest> = requests.try_iter().collect();
        assert_eq!(got, [AcpiRequest::PowerOff, AcpiRequest::Reset, AcpiRequest::Eject(3)]);
    }

    #[test]
    fn only_a_vcpu_that_was_asked_for_is_given_back_the_last_first() {
        let (mut controller, requests) = controller();
        let flags = |controller: &mut AcpiController, cpu: u32| {
            controller.write(CPU_SELECT, &cpu.to_le_bytes());
            read(controller, CPU_FLAGS)
        };
        let eject = |controller: &mut AcpiController, cpu: u32| {
            controller.write(CPU_SELECT, &cpu.to_le_bytes());
            controller.write(CPU_FLAGS, &CPU_EJECT.to_le_bytes());
            controller.present_cpus()
        };
        controller.cpu_added(2);
        assert_eq!([1, 2, 3, u32::MAX].map(|cpu| eject(&mut controller, cpu)), [3; 4]);

        controller.want_cpus(1);
        assert_eq!(read(&mut controller, EVENTS), EVENT_CPU);
        assert_eq!([0, 1, 2].map(|cpu| flags(&mut controller, cpu) & CPU_LEAVING), [0, 0, CPU_LEAVING]);
        controller.write(CPU_FLAGS, &CPU_LEAVING.to_le_bytes());
        assert_eq!(flags(&mut controller, 2) & CPU_LEAVING, 0, "told once");
        assert_eq!([1, 0, 2].map(|cpu| eject(&mut controller, cpu)), [3, 3, 2]);
        assert_eq!((read(&mut controller, EVENTS), flags(&mut controller, 1)), (EVENT_CPU, CPU_PRESENT | CPU_LEAVING));
        assert_eq!([2, 0].map(|cpu| eject(&mut controller, cpu)), [2, 2]);
        controller.want_cpus(2);
        assert_eq!((eject(&mut controller, 1), flags(&mut controller, 1)), (2, CPU_PRESENT), "the wish was taken back");
        assert_eq!(requests.try_iter().collect::<Vec<_>>(), [AcpiRequest::EjectCpu]);

        controller.want_cpus(1);
        controller.reset();
        assert_eq!((controller.present_cpus(), eject(&mut controller, 0)), (1, 1));
    }

    #[test]
    fn network_cards_have_names_and_numbers_that_stay() {
        let (mut controller, _requests) = controller();
        let look = |controller: &mut AcpiController, slot: u32| {
            controller.write(NAME_SELECT, &slot.to_le_bytes());
            let words = (NAME..SIZE).step_by(4).flat_map(|register| read(controller, register).to_le_bytes());
            let name: Vec<u8> = words.take_while(|byte| *byte != 0).collect();
            (read(controller, NAME_NUMBER), String::from_utf8(name).unwrap())
        };
        let longest = "x".repeat(63);
        for (slot, id, name) in [(3, "net1", "storage"), (4, "lan", "front"), (5, "net0", &longest), (6, "n99999", "far")] {
            controller.name_slot(slot, id, name);
        }
        let expected = [(3, 2, "storage"), (4, 1, "front"), (5, 3, &longest), (6, 4, "far"), (7, 0, ""), (u32::MAX, 0, "")];
        for (slot, number, name) in expected {
            assert_eq!(look(&mut controller, slot), (number, name.to_owned()), "slot {slot}");
        }
        controller.forget_name(4);
        controller.reset();
        assert_eq!((look(&mut controller, 4).0, look(&mut controller, 3).0), (0, 2), "names outlive a reset");
    }

    #[test]
    fn an_event_is_seen_once_and_survives_a_save() {
        let (mut controller, _requests) = controller();
        controller.cpu_added(2);
        controller.slot_added(5);
        let saved = controller.save();
        let (mut other, _requests) = self::controller();
        assert!(other.restore(saved));
        assert_eq!(read(&mut other, EVENTS), EVENT_CPU | EVENT_PCI);
        assert_eq!(read(&mut other, EVENTS), 0);
        assert_eq!(read(&mut other, SLOTS_ADDED), 1 << 5);
        other.write(CPU_SELECT, &2u32.to_le_bytes());
        assert_eq!(read(&mut other, CPU_FLAGS), CPU_PRESENT | CPU_NEW);
        other.write(CPU_FLAGS, &CPU_NEW.to_le_bytes());
        assert_eq!(read(&mut other, CPU_FLAGS), CPU_PRESENT);
        assert_eq!(other.present_cpus(), 3);
        other.write(CPU_SELECT, &u32::MAX.to_le_bytes());
        assert_eq!(read(&mut other, CPU_FLAGS), 0);
        assert!(!other.restore(AcpiState::default()));
    }
}
