//! The clock's saved state.

use super::calendar::DateTime;
use crate::virtio::RestoreError;

/// Bytes of CMOS memory, the clock's registers included.
pub(super) const CMOS_BYTES: usize = 128;

/// The saved state of a real-time clock. The time goes on while it is saved: it is that of the host, and an offset.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RtcState {
    /// How many seconds the guest's clock is ahead of UTC.
    #[prost(sint64, tag = "1")]
    pub offset_seconds: i64,
    /// All 128 bytes of memory; those of the time are not used.
    #[prost(bytes = "vec", tag = "2")]
    pub cmos: Vec<u8>,
    /// The selected register.
    #[prost(uint32, tag = "3")]
    pub index: u32,
    /// Whether the guest is setting the clock.
    #[prost(bool, tag = "4")]
    pub setting: bool,
    /// The time that the guest sets, in seconds since 1970, while it does.
    #[prost(sint64, tag = "5")]
    pub set_seconds: i64,
}

impl RtcState {
    pub(super) fn checked(self) -> Result<(Self, [u8; CMOS_BYTES]), RestoreError> {
        let malformed = |reason: &str| RestoreError::Malformed { device: "clock", reason: reason.into() };
        let cmos = self.cmos.as_slice().try_into().map_err(|_| malformed("the CMOS memory has a wrong size"))?;
        if self.index as usize >= CMOS_BYTES {
            return Err(malformed("the selected register does not exist"));
        }
        Ok((self, cmos))
    }

    /// The time that the guest is setting.
    pub(super) fn set_time(&self) -> Option<DateTime> {
        self.setting.then(|| DateTime::from_unix(self.set_seconds))
    }
}
