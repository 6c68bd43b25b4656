//! MSI-X (PCI 3.0 §6.8.2): the table of messages of a function.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::state::MsixState;
use crate::interrupts::{InterruptError, Interrupts, Message};

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The bits of the control register that the guest may write.
pub const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;
const ENTRY_MASKED: u32 = 1;
/// Capability id.
pub const CAPABILITY_ID: u8 = 0x11;

/// One entry of the table: address (low, high), data, control.
type Entry = [u32; 4];

/// The table and its messages.
pub struct Msix {
    table: Vec<Entry>,
    messages: Vec<Message>,
    control: u16,
}

impl Msix {
    /// A table of `vectors` masked entries.
    pub fn new(vectors: u16, interrupts: &Arc<Interrupts>) -> Result<Msix, InterruptError> {
        let messages = (0..vectors).map(|_| interrupts.message()).collect::<Result<Vec<Message>, InterruptError>>()?;
        Ok(Msix { table: vec![[0, 0, 0, ENTRY_MASKED]; usize::from(vectors)], messages, control: 0 })
    }

    /// The events that raise each vector.
    pub fn events(&self) -> std::io::Result<Vec<EventFd>> {
        self.messages.iter().map(|m| m.event.try_clone()).collect()
    }

    /// The guest wrote the control register.
    pub fn set_control(&mut self, control: u16) -> Result<(), InterruptError> {
        if control & CONTROL_WRITABLE != self.control {
            self.control = control & CONTROL_WRITABLE;
            for vector in 0..self.table.len() {
                self.update(vector)?;
            }
        }
        Ok(())
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let bytes: Option<Vec<u8>> =
            self.table.get(offset as usize / 16).map(|entry| entry.iter().flat_map(|word| word.to_le_bytes()).collect());
        if let Some(source) = bytes.as_ref().and_then(|b| b.get(offset as usize % 16..)?.get(..data.len())) {
            data.copy_from_slice(source);
        }
    }

    /// The guest writes the table: 4 or 8 bytes at a time (§6.8.2.2); anything else is ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Result<(), InterruptError> {
        let vector = offset as usize / 16;
        let Some(entry) = self.table.get_mut(vector) else { return Ok(()) };
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return Ok(());
        }
        for (word, value) in entry[offset as usize % 16 / 4..].iter_mut().zip(data.chunks_exact(4)) {
            *word = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        }
        self.update(vector)
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + i) * 8;
            *byte =
                (0..8).filter(|bit| self.messages.get(first + bit).is_some_and(Message::is_pending)).map(|bit| 1 << bit).sum();
        }
    }

    fn update(&mut self, vector: usize) -> Result<(), InterruptError> {
        let entry = self.table[vector];
        let message = &mut self.messages[vector];
        if self.control & CONTROL_WRITABLE == ENABLE && entry[3] & ENTRY_MASKED == 0 {
            message.attach(u64::from(entry[0]) | (u64::from(entry[1]) << 32), entry[2])
        } else {
            message.detach();
            Ok(())
        }
    }

    /// Back to how it was made; what is pending is forgotten.
    pub fn reset(&mut self) {
        self.control = 0;
        self.table.fill([0, 0, 0, ENTRY_MASKED]);
        for message in &mut self.messages {
            message.detach();
            let _ = message.event.read();
        }
    }

    /// The saved state.
    pub fn save(&self) -> MsixState {
        MsixState {
            control: u32::from(self.control),
            table: self.table.iter().flatten().copied().collect(),
            pending: (0u32..).zip(&self.messages).filter(|(_, m)| m.is_pending()).map(|(i, _)| i).collect(),
        }
    }

    /// Takes a saved state over. `false` if it has another number of vectors.
    pub fn restore(&mut self, state: &MsixState) -> Result<bool, InterruptError> {
        if state.table.len() != self.table.len() * 4 {
            return Ok(false);
        }
        for (entry, saved) in self.table.iter_mut().zip(state.table.chunks_exact(4)) {
            entry.copy_from_slice(saved);
        }
        for &vector in &state.pending {
            if let Some(message) = self.messages.get(vector as usize) {
                let _ = message.event.write(1);
            }
        }
        self.control = state.control as u16 & CONTROL_WRITABLE;
        for vector in 0..self.table.len() {
            self.update(vector)?;
        }
        Ok(true)
    }
}
