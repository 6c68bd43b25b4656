//! The serial port's saved state.

use vm_superio::serial::SerialState as Registers;

use crate::devices::console::host::PENDING_INPUT_BYTES;
use crate::virtio::RestoreError;

/// Input bytes in the receive FIFO at most.
pub(super) const FIFO_BYTES: usize = 64;

/// The saved state of a serial port.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SerialState {
    /// Divisor latch, low byte.
    #[prost(uint32, tag = "1")]
    pub divisor_low: u32,
    /// Divisor latch, high byte.
    #[prost(uint32, tag = "2")]
    pub divisor_high: u32,
    /// Interrupt enable register.
    #[prost(uint32, tag = "3")]
    pub interrupt_enable: u32,
    /// Interrupt identification register.
    #[prost(uint32, tag = "4")]
    pub interrupt_identification: u32,
    /// Line control register.
    #[prost(uint32, tag = "5")]
    pub line_control: u32,
    /// Line status register.
    #[prost(uint32, tag = "6")]
    pub line_status: u32,
    /// Modem control register.
    #[prost(uint32, tag = "7")]
    pub modem_control: u32,
    /// Modem status register.
    #[prost(uint32, tag = "8")]
    pub modem_status: u32,
    /// Scratch register.
    #[prost(uint32, tag = "9")]
    pub scratch: u32,
    /// The receive FIFO, oldest byte first.
    #[prost(bytes = "vec", tag = "10")]
    pub receive_fifo: Vec<u8>,
    /// Input that did not fit into the FIFO yet.
    #[prost(bytes = "vec", tag = "11")]
    pub pending_input: Vec<u8>,
    /// Whether the driver was not told yet that the transmitter is empty.
    #[prost(bool, tag = "12")]
    pub transmitter_empty_pending: bool,
}

impl SerialState {
    pub(super) fn new(registers: Registers, pending_input: Vec<u8>, transmitter_empty_pending: bool) -> SerialState {
        SerialState {
            divisor_low: registers.baud_divisor_low.into(),
            divisor_high: registers.baud_divisor_high.into(),
            interrupt_enable: registers.interrupt_enable.into(),
            interrupt_identification: registers.interrupt_identification.into(),
            line_control: registers.line_control.into(),
            line_status: registers.line_status.into(),
            modem_control: registers.modem_control.into(),
            modem_status: registers.modem_status.into(),
            scratch: registers.scratch.into(),
            receive_fifo: registers.in_buffer,
            pending_input,
            transmitter_empty_pending,
        }
    }

    /// The registers, if all values can be those of a serial port.
    pub(super) fn registers(&self) -> Result<Registers, RestoreError> {
        let malformed = |reason: &str| RestoreError::Malformed { device: "serial port", reason: reason.into() };
        let byte = |value: u32| u8::try_from(value).map_err(|_| malformed("a register holds more than a byte"));
        if self.receive_fifo.len() > FIFO_BYTES {
            return Err(malformed("more input than the FIFO holds"));
        }
        if self.pending_input.len() > PENDING_INPUT_BYTES {
            return Err(malformed("more pending input than is ever kept"));
        }
        Ok(Registers {
            baud_divisor_low: byte(self.divisor_low)?,
            baud_divisor_high: byte(self.divisor_high)?,
            interrupt_enable: byte(self.interrupt_enable)?,
            interrupt_identification: byte(self.interrupt_identification)?,
            line_control: byte(self.line_control)?,
            line_status: byte(self.line_status)?,
            modem_control: byte(self.modem_control)?,
            modem_status: byte(self.modem_status)?,
            scratch: byte(self.scratch)?,
            in_buffer: self.receive_fifo.clone(),
        })
    }
}
