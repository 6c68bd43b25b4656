use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::{Bus, BusDevice};
use crate::devices::console::host::{ConsoleInput, ConsoleOutput, PENDING_INPUT_BYTES};
use crate::virtio::RestoreError;

struct Port {
    serial: Serial,
    irq: EventFd,
    output: ConsoleOutput,
}

impl Port {
    fn new() -> Port {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let output = ConsoleOutput::new();
        Port { serial: Serial::new(irq.try_clone().unwrap(), Box::new(output.clone())), irq, output }
    }
    fn read(&mut self, register: u64) -> u8 {
        let mut data = [0];
        self.serial.read(register, &mut data);
        data[0]
    }
    fn write(&mut self, register: u64, value: u8) {
        self.serial.write(register, &[value]);
    }
    fn interrupted(&self) -> bool {
        self.irq.read().is_ok()
    }
    fn printed(&self) -> Vec<u8> {
        self.output.scroll_back().1
    }
}

/// Every access of a session as a person would write it down; see `registers.golden`.
#[test]
fn registers_behave_as_written_down() {
    let mut port = Port::new();
    let mut log = String::new();
    for line in include_str!("registers.golden").lines() {
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        let number = |text: &str| u8::from_str_radix(text, 16).unwrap();
        let result = match words[..] {
            [] => String::new(),
            ["read", register, ..] => format!("read {register} = {:02x}", port.read(number(register).into())),
            ["write", register, value, ..] => {
                port.write(number(register).into(), number(value));
                format!("write {register} {value}")
            }
            ["type", text, ..] => format!("type {text} = {}", port.serial.enqueue(text.as_bytes())),
            ["printed", ..] => format!("printed = {}", String::from_utf8_lossy(&port.printed())),
            ["irq", ..] => format!("irq = {}", if port.interrupted() { "yes" } else { "no" }),
            _ => panic!("{line}"),
        };
        let comment = line.find('#').map_or("", |at| &line[at..]);
        log += &format!("{result}{}{comment}\n", if result.is_empty() || comment.is_empty() { "" } else { "  " });
    }
    assert_eq!(log, include_str!("registers.golden"), "\n{log}");
}

#[test]
fn input_beyond_the_fifo_waits_and_arrives_in_order() {
    let mut port = Port::new();
    port.write(1, 1);
    let typed: Vec<u8> = (0..1000).map(|i| i as u8).collect();
    assert_eq!(port.serial.enqueue(&typed), 1000);
    let mut read = Vec::new();
    while port.read(5) & 1 != 0 {
        read.push(port.read(0));
    }
    assert_eq!(read, typed);
}

#[test]
fn input_is_taken_only_up_to_its_bound() {
    let mut port = Port::new();
    let typed = vec![7; 3 * PENDING_INPUT_BYTES];
    assert_eq!(port.serial.enqueue(&typed), PENDING_INPUT_BYTES);
    assert_eq!(port.serial.enqueue(&typed), 64, "the FIFO made room");
    assert_eq!(port.serial.enqueue(&typed), 0);
    port.read(0);
    assert_eq!(port.serial.enqueue(&typed), 0, "the FIFO is refilled when empty");
    for _ in 0..63 {
        port.read(0);
    }
    assert_eq!(port.serial.enqueue(&typed), 64);
}

#[test]
fn input_typed_during_loopback_arrives_after_it() {
    let mut port = Port::new();
    port.write(4, 0x10);
    assert_eq!(port.serial.enqueue(b"late"), 4);
    assert_eq!(port.read(5) & 1, 0);
    port.write(4, 0);
    assert_eq!([port.read(0), port.read(0), port.read(0), port.read(0)], *b"late");
}

#[test]
fn a_restored_port_goes_on_where_the_saved_one_stopped() {
    let mut port = Port::new();
    port.write(3, 0x83);
    port.write(0, 1);
    port.write(3, 0x03);
    port.write(1, 0x03);
    port.write(7, 0x5a);
    port.serial.enqueue(&[9; 100]);
    let saved = port.serial.save();

    let mut restored = Port::new();
    restored.serial.restore(&saved).unwrap();
    assert_eq!(restored.serial.save(), saved);
    assert!(restored.interrupted());
    assert_eq!((restored.read(2), restored.read(7), restored.read(1)), (0xc4, 0x5a, 0x03));
    for _ in 0..100 {
        assert_eq!((restored.read(5) & 1, restored.read(0)), (1, 9));
    }
    assert_eq!((restored.read(2), restored.read(2)), (0xc2, 0xc1));
    restored.write(0, b'!');
    assert_eq!(restored.printed(), b"!");
}

#[test]
fn reset_clears_the_registers_and_keeps_the_output() {
    let mut port = Port::new();
    port.write(0, b'a');
    port.write(1, 3);
    port.write(7, 1);
    port.serial.enqueue(b"x");
    port.serial.reset();
    assert_eq!((port.read(1), port.read(7), port.read(5), port.read(2)), (0, 0, 0x60, 0xc1));
    port.write(0, b'b');
    assert_eq!(port.printed(), b"ab");
}

#[test]
fn garbage_is_no_state() {
    let mut port = Port::new();
    let before = port.serial.save();
    let too_long = prost::Message::encode_to_vec(&SerialState { receive_fifo: vec![0; 65], ..SerialState::default() });
    let too_wide = prost::Message::encode_to_vec(&SerialState { scratch: 256, ..SerialState::default() });
    for garbage in [vec![0xff; 20], too_long, too_wide] {
        assert!(matches!(port.serial.restore(&garbage), Err(RestoreError::Malformed { .. })));
        assert_eq!(port.serial.save(), before);
    }
}

#[test]
fn it_works_on_a_bus_and_takes_input_from_another_thread() {
    let bus = Bus::default();
    let port = Port::new();
    let serial = Arc::new(Mutex::new(port.serial));
    bus.insert(PORT.into(), PORTS.into(), serial.clone()).unwrap();
    let input: Arc<dyn ConsoleInput> = serial;
    assert_eq!(std::thread::spawn(move || input.enqueue(b"z")).join().unwrap(), 1);
    let mut data = [0];
    assert!(bus.read(u64::from(PORT), &mut data));
    assert_eq!(data, *b"z");
}

#[test]
fn acpi_names_the_ports_and_the_interrupt() {
    let mut aml = Vec::new();
    acpi_tables::Aml::to_aml_bytes(&acpi_device(), &mut aml);
    let contains = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
    assert!(contains(b"_SB_COM1"));
    assert!(contains(&[0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8]));
    assert!(contains(&[0x89, 6, 0, 0x03, 1, 4, 0, 0, 0]));
}

proptest! {
    /// Whatever a guest does, input is neither lost, repeated nor reordered while the port is not in loopback and no FIFO is
    /// cleared, and nothing panics.
    #[test]
    fn hostile_accesses_do_not_disturb_the_input(accesses in prop::collection::vec((any::<bool>(), 0u64..10, any::<u8>()), 1..400)) {
        let mut port = Port::new();
        let mut typed = 0u8;
        let mut next = 0u8;
        for (write, register, value) in accesses {
            if write {
                if !matches!(register, 0 | 2 | 3 | 4) { port.write(register, value) }
            } else if register == 0 {
                let ready = port.read(5) & 1 != 0;
                let byte = port.read(0);
                if ready { prop_assert_eq!(byte, next); next = next.wrapping_add(1); }
            } else {
                port.read(register);
            }
            port.serial.enqueue(&[typed]);
            typed = typed.wrapping_add(1);
        }
    }

    #[test]
    fn nothing_a_guest_writes_panics(accesses in prop::collection::vec((any::<bool>(), any::<u64>(), any::<u8>(), 1usize..9), 1..400)) {
        let mut port = Port::new();
        for (write, register, value, length) in accesses {
            let register = if value & 1 == 0 { register } else { register % 8 };
            let mut data = [value; 8];
            if write { port.serial.write(register, &data[..length]) } else { port.serial.read(register, &mut data[..length]) }
            port.serial.enqueue(&[value]);
        }
        let saved = port.serial.save();
        port.serial.restore(&saved).unwrap();
    }

    #[test]
    fn random_states_are_refused_or_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut port = Port::new();
        let _ = port.serial.restore(&bytes);
        port.read(0);
    }
}
