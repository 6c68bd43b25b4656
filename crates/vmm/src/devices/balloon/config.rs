//! How a balloon is configured.

use std::ops::Range;

/// The configuration of a balloon.
#[derive(Clone, Debug)]
pub struct BalloonConfig {
    /// The size in bytes of the host pages behind guest memory, a power of two: 4096, or that of huge pages. Only whole pages are
    /// given back to the host.
    pub page_size: u64,
    /// Guest addresses that are never discarded whatever the guest says: what is in guest memory but not the guest's to
    /// give, such as ROM.
    pub protected: Vec<Range<u64>>,
    /// The guest may take pages back when it is out of memory instead of killing a process.
    pub deflate_on_oom: bool,
    /// The guest reports pages that it does not use, without being asked (free page reporting).
    pub reporting: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        BalloonConfig { page_size: 4096, protected: Vec::new(), deflate_on_oom: true, reporting: true }
    }
}
