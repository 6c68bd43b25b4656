//! Numbers that can be drawn again.

/// A sequence that its seed fixes (xorshift64*).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of neighbouring seeds look alike.
        for _ in 0..16 {
            random.next();
        }
        random
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// A number as programs get them wrong: 0, all ones, a power of two, one off, or any.
    pub fn odd(&mut self) -> u64 {
        let power = 1u64 << self.below(64);
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => power,
            3 => power - 1,
            4 => self.below(64),
            _ => self.next(),
        }
    }
}
