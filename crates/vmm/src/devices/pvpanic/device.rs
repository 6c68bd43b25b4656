//! The panic notifier's port.

use prost::Message;

use super::state::PvpanicState;
use crate::bus::BusDevice;
use crate::virtio::RestoreError;

/// The I/O port.
pub const PORT: u16 = 0x505;
/// How many I/O ports it has.
pub const PORTS: u16 = 1;

/// What the guest's kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GuestPanic {
    /// It crashed, and nobody in the guest takes care of it.
    Panicked = 1 << 0,
    /// It crashed and starts its crash kernel, which may write a dump: the VM should go on running.
    CrashLoaded = 1 << 1,
}

const EVENTS: [GuestPanic; 2] = [GuestPanic::Panicked, GuestPanic::CrashLoaded];

/// A panic notifier.
pub struct Pvpanic {
    report: Box<dyn FnMut(GuestPanic) + Send>,
    reported: u8,
}

impl Pvpanic {
    /// A panic notifier that calls `report`, on a vCPU's thread, for each event once until it is reset: a guest that writes in a
    /// loop is one event, not thousands.
    pub fn new(report: Box<dyn FnMut(GuestPanic) + Send>) -> Pvpanic {
        Pvpanic { report, reported: 0 }
    }

    /// A new system starts: it may crash anew.
    pub fn reset(&mut self) {
        self.reported = 0;
    }

    /// The notifier's state, a [`PvpanicState`].
    pub fn save(&self) -> Vec<u8> {
        PvpanicState { reported: self.reported.into() }.encode_to_vec()
    }

    /// Takes back what `save` returned.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let malformed = |reason: String| RestoreError::Malformed { device: "panic notifier", reason };
        let state = PvpanicState::decode(state).map_err(|error| malformed(error.to_string()))?;
        self.reported = u8::try_from(state.reported).map_err(|_| malformed("events that do not exist".into()))?;
        Ok(())
    }
}

impl BusDevice for Pvpanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Reading tells which events are understood.
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = EVENTS.iter().fold(0, |bits, event| bits | *event as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (0, Some(bits)) = (offset, data.first()) else { return };
        for event in EVENTS {
            let bit = event as u8;
            if bits & bit != 0 && self.reported & bit == 0 {
                self.reported |= bit;
                (self.report)(event);
            }
        }
    }
}
