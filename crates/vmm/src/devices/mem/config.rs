//! How a memory device is configured.

/// The configuration of a memory device. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemConfig {
    /// The start of the region, a guest address that is a multiple of the block size.
    pub address: u64,
    /// The size of the region, a multiple of the block size.
    pub region_size: u64,
    /// The size of a block, a power of two of at least 4096 and not smaller than the host's pages: mostly 2 MiB.
    pub block_size: u64,
    /// What the guest is asked to plug at first.
    pub requested_size: u64,
}

/// Why a memory device cannot be configured this way.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemConfigError {
    /// The block size is none.
    #[error("the block size {0} is not a power of two of at least 4096")]
    BlockSize(u64),
    /// Something is not made of whole blocks.
    #[error("{what} {value:#x} is not a multiple of the block size {block_size:#x}")]
    Unaligned {
        /// What.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The block size.
        block_size: u64,
    },
    /// The region is empty, ends behind all addresses, or has more blocks than can be managed.
    #[error("the region at {address:#x} of {size:#x} bytes is empty or too large")]
    Region {
        /// Start of the region.
        address: u64,
        /// Size of the region.
        size: u64,
    },
    /// More is requested than there is.
    #[error("{requested} bytes are requested of a region of {size}")]
    Requested {
        /// What is requested.
        requested: u64,
        /// The region's size.
        size: u64,
    },
}

/// Blocks in a region at most: 8 TiB in blocks of 2 MiB, half a megabyte of state.
const MAX_BLOCKS: u64 = 4 << 20;

impl MemConfig {
    /// Checks all of the rules above.
    pub(super) fn check(&self) -> Result<(), MemConfigError> {
        let MemConfig { address, region_size: size, block_size, requested_size: requested } = *self;
        if !block_size.is_power_of_two() || block_size < 4096 {
            return Err(MemConfigError::BlockSize(block_size));
        }
        for (what, value) in [("the address", address), ("the region's size", size), ("the requested size", requested)] {
            if value % block_size != 0 {
                return Err(MemConfigError::Unaligned { what, value, block_size });
            }
        }
        if size == 0 || address.checked_add(size).is_none() || size / block_size > MAX_BLOCKS {
            return Err(MemConfigError::Region { address, size });
        }
        if requested > size {
            return Err(MemConfigError::Requested { requested, size });
        }
        Ok(())
    }
}
