//! The generation ID.

use std::io;

use prost::Message;
use vm_memory::{Bytes, GuestAddress};

use super::state::VmGenerationIdState;
use crate::virtio::{GuestMemory, RestoreError};

const ID_BYTES: usize = 16;

/// Why a generation ID could not be made or stored.
#[derive(Debug, thiserror::Error)]
pub enum VmGenerationIdError {
    /// The host gave no random bytes.
    #[error("the host gave no random bytes for the VM's generation ID")]
    Random(#[source] io::Error),
    /// The address is not in guest memory.
    #[error("the VM's generation ID cannot be stored at {address:#x}")]
    Memory {
        /// The address.
        address: u64,
        /// Why not.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// A VM's generation ID.
#[derive(Debug)]
pub struct VmGenerationId {
    id: [u8; ID_BYTES],
    address: u64,
}

impl VmGenerationId {
    /// A new ID, to be stored at a page-aligned guest address that the guest does not use as RAM.
    pub fn new(address: u64) -> Result<VmGenerationId, VmGenerationIdError> {
        Ok(VmGenerationId { id: random_id()?, address })
    }

    /// The bytes.
    pub fn id(&self) -> [u8; ID_BYTES] {
        self.id
    }

    /// Where they are in guest memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Stores the ID in guest memory: at the start of the VM and, since firmware clears memory, at each reset.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), VmGenerationIdError> {
        memory
            .write_slice(&self.id, GuestAddress(self.address))
            .map_err(|source| VmGenerationIdError::Memory { address: self.address, source })
    }

    /// Makes a new ID and stores it in guest memory, while no vCPU runs. The VM then has to notify the guest.
    pub fn regenerate(&mut self, memory: &GuestMemory) -> Result<(), VmGenerationIdError> {
        self.id = random_id()?;
        self.write(memory)
    }

    /// The ID's state, a [`VmGenerationIdState`].
    pub fn save(&self) -> Vec<u8> {
        VmGenerationIdState { id: self.id.to_vec(), address: self.address }.encode_to_vec()
    }

    /// Takes back what `save` returned. That is all for a move; to start from a saved state, also [`regenerate`](Self::regenerate).
    pub fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let malformed = |reason: String| RestoreError::Malformed { device: "generation ID", reason };
        let state = VmGenerationIdState::decode(state).map_err(|error| malformed(error.to_string()))?;
        let id = state.id.as_slice().try_into().map_err(|_| malformed("the ID has a wrong length".into()))?;
        if state.address != self.address {
            let reason = format!("the ID is at {:#x}, not at {:#x}", state.address, self.address);
            return Err(RestoreError::Mismatch { device: "generation ID", reason });
        }
        self.id = id;
        Ok(())
    }
}

fn random_id() -> Result<[u8; ID_BYTES], VmGenerationIdError> {
    let mut id = [0; ID_BYTES];
    // May wait, on a host that has just started: an ID that is not random would be worse.
    // SAFETY: the pointer and length are those of a local array.
    match unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) } {
        // Up to 256 bytes come all at once.
        count if count == ID_BYTES as isize => Ok(id),
        _ => Err(VmGenerationIdError::Random(io::Error::last_os_error())),
    }
}
