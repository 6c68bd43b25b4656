//! One entry of the block allocation table (MS-VHDX 2.5.1).

use super::layout::UNIT;

/// What a block's entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never written: zeros, or the parent.
    NotPresent,
    /// Zeros: undefined, zero, and unmapped, which we read alike.
    Zero,
    /// In the file.
    Full,
    /// In the file where the sector bitmap says so, else in the parent.
    Partial,
}

/// An entry as it stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    pub(crate) const NOT_PRESENT: Self = Self(0);
    /// What a block becomes that is given back. Not "unmapped" (3): readers may answer that with old data, and in some programs with
    /// the parent's.
    pub(crate) const ZERO: Self = Self(2);

    pub(crate) fn full(offset: u64) -> Self {
        Self(offset | 6)
    }

    pub(crate) fn partial(offset: u64) -> Self {
        Self(offset | 7)
    }

    /// `None` for a state that the format reserves.
    pub(crate) fn state(self) -> Option<State> {
        match self.0 & 7 {
            0 => Some(State::NotPresent),
            1..=3 => Some(State::Zero),
            6 => Some(State::Full),
            7 => Some(State::Partial),
            _ => None,
        }
    }

    /// Whether it says where something is.
    pub(crate) fn is_present(self) -> bool {
        self.0 & 6 == 6
    }

    /// In the file; of use only where the block is present.
    pub(crate) fn offset(self) -> u64 {
        self.0 & !(UNIT - 1)
    }

    /// Bits that the format reserves.
    pub(crate) fn has_reserved_bits(self) -> bool {
        self.0 & (UNIT - 8) != 0
    }
}
