//! A port that has a name: the control messages that make it known to the driver (virtio 1.2 §5.3.6.2).
//!
//! ```text
//!  driver: DEVICE_READY ─▶ device: PORT_ADD ─▶ driver: PORT_READY ─▶ device: PORT_NAME, PORT_OPEN
//!  driver: PORT_OPEN 1 or 0, whenever a program of the guest opens or closes the port
//! ```
//!
//! What the driver is to be told are flags, not a list: a driver that asks and never takes an answer fills no memory.

use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard};

use virtio_queue::{Reader, Writer};

use crate::devices::ring::Chain;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Messages for the driver, in the order in which they are sent.
const TO_DRIVER: [u16; 3] = [PORT_ADD, PORT_NAME, PORT_OPEN];

/// `struct virtio_console_control`: port, event, value.
const MESSAGE_BYTES: usize = 8;

/// Called when a program of the guest opened the port, or closed it.
pub type OpenListener = Box<dyn Fn() + Send + Sync>;

/// The one port of a device, which has the number 0.
pub(super) struct Port {
    name: &'static str,
    state: Mutex<PortState>,
    listener: OpenListener,
}

/// How far driver and device are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortState {
    /// Bit N: message N of [`TO_DRIVER`] is to be sent.
    pub pending: u32,
    /// Whether a program of the guest has the port open.
    pub is_open: bool,
}

impl PortState {
    /// Takes over what was saved, if it can be.
    pub fn from_saved(pending: u32, is_open: bool) -> Option<PortState> {
        (pending < 1 << TO_DRIVER.len()).then_some(PortState { pending, is_open })
    }
}

impl Port {
    pub fn new(name: &'static str, listener: OpenListener) -> Port {
        Port { name, state: Mutex::default(), listener }
    }

    pub fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().expect("port lock")
    }

    /// Puts a state in place; whoever listens is told if that opens or closes the port.
    pub fn set(&self, state: PortState) {
        let before = std::mem::replace(&mut *self.state(), state);
        if before.is_open != state.is_open {
            (self.listener)();
        }
    }

    /// Takes a message of the driver. What makes no sense is passed over, as §5.3.6.2 has no way to refuse it.
    pub fn take(&self, chain: Chain) -> u32 {
        let memory = chain.memory();
        let mut message = [0; MESSAGE_BYTES];
        let Ok(()) =
            Reader::new(memory, chain.clone()).map_err(drop).and_then(|mut reader| reader.read_exact(&mut message).map_err(drop))
        else {
            return 0;
        };
        let [p0, p1, p2, p3, e0, e1, v0, v1] = message;
        let (port, event, value) =
            (u32::from_le_bytes([p0, p1, p2, p3]), u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
        let mut state = *self.state();
        match (event, value, port) {
            (DEVICE_READY, 1, _) => state.pending = 0b001,
            (PORT_READY, 1, 0) => state.pending |= 0b110,
            (PORT_OPEN, value, 0) => state.is_open = value != 0,
            _ => {}
        }
        self.set(state);
        0
    }

    /// Whether the driver is to be told something.
    pub fn has_messages(&self) -> bool {
        self.state().pending != 0
    }

    /// Writes the next message into a buffer of the driver; a buffer that is too short gets none.
    pub fn tell(&self, chain: Chain) -> u32 {
        let mut state = self.state();
        let index = state.pending.trailing_zeros() as usize;
        let Some(event) = TO_DRIVER.get(index) else { return 0 };
        state.pending &= !(1 << index);
        drop(state);
        let mut message = vec![0; MESSAGE_BYTES];
        message[4..6].copy_from_slice(&event.to_le_bytes());
        // The host's side counts as open for good: a program of the guest waits for bytes, instead of reading an end again and again.
        message[6..8].copy_from_slice(&1u16.to_le_bytes());
        if *event == PORT_NAME {
            message.extend(self.name.as_bytes());
        }
        let memory = chain.memory();
        let written = Writer::new(memory, chain.clone()).map_err(drop).and_then(|mut writer| match writer.available_bytes() {
            room if room < message.len() => Err(()),
            _ => writer.write_all(&message).map_err(drop),
        });
        if written.is_ok() { message.len() as u32 } else { 0 }
    }
}
