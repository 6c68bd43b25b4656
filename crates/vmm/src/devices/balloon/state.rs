//! The balloon's saved state.

/// The saved state of a balloon. Which pages are in it is not saved: they are zero, and what is known about them only saves
/// work.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BalloonState {
    /// Pages of 4 KiB that the host wants in the balloon.
    #[prost(uint32, tag = "1")]
    pub target_pages: u32,
    /// Pages of 4 KiB that the driver says are in the balloon.
    #[prost(uint32, tag = "2")]
    pub actual_pages: u32,
    /// The pattern that the driver keeps in free pages.
    #[prost(uint32, tag = "3")]
    pub poison: u32,
}
