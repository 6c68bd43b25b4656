//! The serial port's registers, on `vm-superio`'s, corrected where drivers other than Linux's look closer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use prost::Message;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState as Registers};
use vmm_sys_util::eventfd::EventFd;

use super::state::SerialState;
use crate::bus::BusDevice;
use crate::devices::console::host::{ConsoleInput, PENDING_INPUT_BYTES};
use crate::virtio::RestoreError;

/// The first I/O port of COM1.
pub const PORT: u16 = 0x3f8;
/// How many I/O ports a serial port has.
pub const PORTS: u16 = 8;
/// The interrupt of COM1 (a GSI).
pub const IRQ: u32 = 4;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Interrupt identification on reads, FIFO control on writes.
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const FCR_CLEAR_RECEIVE: u8 = 0x02;
const LCR_DIVISOR_LATCH: u8 = 0x80;
const LSR_DATA_READY: u8 = 0x01;

/// An edge on the interrupt line.
#[derive(Clone)]
struct Irq(Arc<EventFd>);

impl Trigger for Irq {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        // An eventfd that is full has the same meaning as one more in it.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// A 16550A serial port.
pub struct Serial {
    uart: Uart<Irq, NoEvents, Box<dyn Write + Send>>,
    irq: Irq,
    /// Input behind what is in the receive FIFO.
    pending: VecDeque<u8>,
    /// The driver was not told yet that the transmitter is empty.
    transmitter_empty: bool,
}

impl Serial {
    /// A serial port just powered on. `irq` is signalled for each edge of its interrupt line; `output` gets what the guest sends and must
    /// not block, as a [`ConsoleOutput`](crate::devices::console::host::ConsoleOutput) never does.
    pub fn new(irq: EventFd, output: Box<dyn Write + Send>) -> Serial {
        let irq = Irq(Arc::new(irq));
        Serial { uart: Uart::new(irq.clone(), output), irq, pending: VecDeque::new(), transmitter_empty: false }
    }

    /// Offers input to the guest; returns how many bytes were taken. Up to 64 KiB are kept until the guest reads them.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(PENDING_INPUT_BYTES - self.pending.len());
        self.pending.extend(&bytes[..taken]);
        self.feed();
        taken
    }

    /// Powers the port off and on, as a reset of the VM does. Input that the guest never saw stays for the next system.
    pub fn reset(&mut self) {
        self.rebuild(&Registers::default());
        self.transmitter_empty = false;
    }

    /// The port's state, a [`SerialState`].
    pub fn save(&self) -> Vec<u8> {
        SerialState::new(self.uart.state(), self.pending.iter().copied().collect(), self.transmitter_empty).encode_to_vec()
    }

    /// Takes back what `save` returned.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state = SerialState::decode(state)
            .map_err(|error| RestoreError::Malformed { device: "serial port", reason: error.to_string() })?;
        let registers = state.registers()?;
        self.rebuild(&registers);
        self.pending = state.pending_input.into();
        self.transmitter_empty = state.transmitter_empty_pending;
        // An edge too many makes the driver look and find nothing; an edge too few hangs it.
        let _ = self.irq.trigger();
        Ok(())
    }

    /// Replaces the registers, keeping interrupt and output.
    fn rebuild(&mut self, registers: &Registers) {
        let idle = Uart::new(self.irq.clone(), Box::new(io::sink()) as Box<dyn Write + Send>);
        let output = std::mem::replace(&mut self.uart, idle).into_writer();
        // Fails for a FIFO that is too long, which `SerialState::registers` refuses, or an interrupt, which cannot fail.
        if let Ok(uart) = Uart::from_state(registers, self.irq.clone(), NoEvents, output) {
            self.uart = uart;
        }
    }

    /// Fills an empty receive FIFO. Only an empty one: that makes one interrupt for 64 bytes.
    fn feed(&mut self) {
        if self.pending.is_empty() || self.data_ready() {
            return;
        }
        let batch: Vec<u8> = self.pending.iter().take(self.uart.fifo_capacity()).copied().collect();
        // Takes nothing in loopback mode; a write of any register tries again.
        let taken = self.uart.enqueue_raw_bytes(&batch).unwrap_or(0);
        self.pending.drain(..taken);
    }

    fn data_ready(&mut self) -> bool {
        self.uart.read(LINE_STATUS) & LSR_DATA_READY != 0
    }

    /// Does something with the divisor latch out of the way of the data and interrupt enable registers.
    fn without_latch<T>(&mut self, action: impl FnOnce(&mut Self) -> T) -> T {
        let line_control = self.uart.read(LINE_CONTROL);
        let _ = self.uart.write(LINE_CONTROL, line_control & !LCR_DIVISOR_LATCH);
        let result = action(self);
        let _ = self.uart.write(LINE_CONTROL, line_control);
        result
    }

    /// One cause at a time, the most urgent first; reading clears "transmitter empty" only when it is the one reported, and
    /// "received data" stays until the data is read (PC16550D, table IV). `vm-superio` reports all causes at once, which reads
    /// as a line error, and forgets them.
    fn interrupt_identification(&mut self) -> u8 {
        if self.uart.read(INTERRUPT_IDENTIFICATION) & IIR_TRANSMITTER_EMPTY != 0 {
            self.transmitter_empty = true;
        }
        let enabled = self.without_latch(|serial| serial.uart.read(INTERRUPT_ENABLE));
        let cause = if enabled & IER_RECEIVED != 0 && self.data_ready() {
            IIR_RECEIVED
        } else if enabled & IER_TRANSMITTER_EMPTY != 0 && std::mem::take(&mut self.transmitter_empty) {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        };
        IIR_FIFO_ENABLED | cause
    }

    fn read_register(&mut self, register: u8) -> u8 {
        if register == INTERRUPT_IDENTIFICATION {
            return self.interrupt_identification();
        }
        let value = self.uart.read(register);
        if register == DATA {
            self.feed();
        }
        value
    }

    fn write_register(&mut self, register: u8, value: u8) {
        if register == INTERRUPT_IDENTIFICATION {
            if value & FCR_CLEAR_RECEIVE != 0 {
                self.without_latch(|serial| {
                    while serial.data_ready() {
                        serial.uart.read(DATA);
                    }
                });
            }
        } else {
            // Fails only if the output does, and then the byte is lost as on a real line without a listener.
            let _ = self.uart.write(register, value);
        }
        self.feed();
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..u64::from(PORTS)).zip(data) {
            *byte = self.read_register(register as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..u64::from(PORTS)).zip(data) {
            self.write_register(register as u8, *byte);
        }
    }
}

impl ConsoleInput for Mutex<Serial> {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        self.lock().expect("device lock").enqueue(bytes)
    }
}
