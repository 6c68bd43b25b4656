//! The control queue (virtio 1.2 §5.1.6.5), whatever the back end of the data queues.

use std::io::Read;
use std::sync::Arc;

use super::features::{
    ACK_ERROR, ACK_OK, CLASS_ANNOUNCE, CLASS_GUEST_OFFLOADS, CLASS_MAC, CLASS_MQ, CLASS_RX, CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR,
    CTRL_RX, GUEST_ANNOUNCE, GUEST_OFFLOADS, MAC_ADDR_SET, MAC_TABLE_SET, MQ, RX_LAST,
};
use super::ring::{Chain, Ring, RingError};
use super::shared::Shared;
use crate::virtio::{GuestMemory, Interrupt};
use vm_memory::Bytes;

/// Commands served before other work gets its turn.
const BATCH: usize = 64;
/// Descriptors looked at in one command: a MAC table may be in many buffers, a hostile table has 65535.
const MAX_DESCRIPTORS: usize = 256;

/// What the control queue changes in a back end. `false` tells the driver that it was not done.
pub(super) trait ControlActions {
    /// Uses the first `pairs` queue pairs and no others; the number is in range.
    fn set_pairs(&mut self, pairs: u16) -> bool;
    /// Passes on to the guest what these offloads allow; they are a part of what was agreed on.
    fn set_offloads(&mut self, offloads: u64) -> bool;
}

/// The control queue with the state that it changes.
pub(super) struct ControlQueue {
    pub index: u16,
    pub ring: Ring,
    pub shared: Arc<Shared>,
}

impl ControlQueue {
    /// Serves what is available. `true` when there may be more.
    pub fn serve(
        &mut self,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        actions: &mut dyn ControlActions,
    ) -> Result<bool, RingError> {
        let mut more = true;
        for _ in 0..BATCH {
            let Some(chain) = self.ring.pop(memory)? else {
                more = self.ring.enable_kicks(memory)?;
                if more { continue } else { break }
            };
            let head = chain.head_index();
            let written = self.command(chain, memory, actions);
            self.ring.add_used(memory, head, written)?;
        }
        if self.ring.needs_interrupt(memory)? {
            interrupt.used(self.index);
        }
        Ok(more)
    }

    /// Carries out one command and returns the bytes written: one, or none if there is no place for the answer.
    fn command(&self, chain: Chain<'_>, memory: &GuestMemory, actions: &mut dyn ControlActions) -> u32 {
        let mut answer = None;
        // Class, command, and the largest argument that is looked at: eight bytes of offloads.
        let mut request = [0u8; 10];
        let mut length = 0;
        for descriptor in chain.take(MAX_DESCRIPTORS) {
            if descriptor.is_write_only() {
                if descriptor.len() > 0 {
                    answer = Some(descriptor.addr());
                    break;
                }
                continue;
            }
            let part = (descriptor.len() as usize).min(request.len() - length);
            if memory.read_slice(&mut request[length..length + part], descriptor.addr()).is_err() {
                return 0;
            }
            length += part;
        }
        let Some(answer) = answer else { return 0 };
        let done = self.execute(&request[..length], actions).is_some();
        let ack = if done { ACK_OK } else { ACK_ERROR };
        u32::from(memory.write_obj(ack, answer).is_ok())
    }

    fn execute(&self, mut request: &[u8], actions: &mut dyn ControlActions) -> Option<()> {
        let [class, command] = take(&mut request)?;
        let shared = &self.shared;
        match (class, command) {
            (CLASS_RX, 0..=RX_LAST) if shared.has_feature(CTRL_RX) => {
                let [on] = take(&mut request)?;
                let bit = 1u64 << command;
                let mode = shared.rx_mode();
                shared.set_rx_mode(if on == 0 { mode & !bit } else { mode | bit });
            }
            // All frames pass, which is what a table that is too long means as well.
            (CLASS_MAC, MAC_TABLE_SET) if shared.has_feature(CTRL_RX) => {}
            (CLASS_MAC, MAC_ADDR_SET) if shared.has_feature(CTRL_MAC_ADDR) => {
                let mac: [u8; 6] = take(&mut request)?;
                // A source address is never a group's.
                if mac[0] & 1 != 0 {
                    return None;
                }
                shared.set_mac(mac);
            }
            (CLASS_ANNOUNCE, 0) if shared.has_feature(GUEST_ANNOUNCE) => shared.acknowledge_announcement(),
            (CLASS_MQ, 0) if shared.has_feature(MQ) => {
                let pairs = u16::from_le_bytes(take(&mut request)?);
                if !(1..=shared.max_pairs()).contains(&pairs) || !actions.set_pairs(pairs) {
                    return None;
                }
                shared.set_active_pairs(pairs);
                shared.wake();
            }
            (CLASS_GUEST_OFFLOADS, 0) if shared.has_feature(CTRL_GUEST_OFFLOADS) => {
                let offloads = u64::from_le_bytes(take(&mut request)?);
                let allowed = shared.features() & GUEST_OFFLOADS;
                if offloads & !allowed != 0 || !actions.set_offloads(offloads) {
                    return None;
                }
                shared.set_offloads(offloads);
            }
            _ => return None,
        }
        Some(())
    }
}

fn take<const N: usize>(request: &mut &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    request.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
