//! Bytes that are taken apart from front to back.

/// What is left of an input. Behind its end there are zeros.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// A number below `limit`, which is not zero, from the next four bytes.
    pub fn below(&mut self, limit: u64) -> u64 {
        u64::from(u32::from_le_bytes(self.array())) % limit
    }

    /// One of several things, by the next byte.
    pub fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[usize::from(self.byte()) % things.len()]
    }

    /// The next bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.0.split_at(self.0.len().min(N));
        self.0 = later;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// More changes than these leave nothing of a file.
const MAX_CHANGES: usize = 12;
/// Where most fields of most structures are.
const NEAR: u64 = 128;

/// Has `write` change bytes at some of these places (offset and length) until the input ends.
pub fn patch(input: &mut Input, places: &[(u64, u64)], mut write: impl FnMut(u64, &[u8])) {
    for _ in 0..MAX_CHANGES {
        if input.is_empty() {
            return;
        }
        let (offset, length) = input.one_of(places);
        let how = input.byte();
        let count = [1, 2, 4, 8][usize::from(how & 3)];
        let range = if how & 4 == 0 { length.min(NEAR) } else { length };
        // Fields begin at multiples of their size.
        let at = input.below(range.saturating_sub(count).max(1)) / count * count;
        let count = count as usize;
        let value = match how >> 3 & 7 {
            0 => [0; 8],
            1 => [0xff; 8],
            2 => [1, 0, 0, 0, 0, 0, 0, 0],
            3 => [0x80; 8],
            4 => u64::from(input.byte()).to_le_bytes(),
            5 => u64::from(input.byte()).to_be_bytes(),
            _ => input.array(),
        };
        write(offset + at, if how >> 3 & 7 == 5 { &value[8 - count..] } else { &value[..count] });
    }
}
