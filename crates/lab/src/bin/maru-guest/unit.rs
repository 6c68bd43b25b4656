//! What is read and written at once around the cache.

/// Its bytes.
pub const UNIT: usize = 4096;

/// Memory as `O_DIRECT` wants it.
#[derive(PartialEq, Eq)]
#[repr(align(4096))]
pub struct Unit(pub [u8; UNIT]);

impl Unit {
    /// Nothing but zeros.
    pub fn zeroed() -> Box<Unit> {
        Box::new(Unit([0; UNIT]))
    }
}
