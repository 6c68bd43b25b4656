//! Sets of names that are compared often.

use std::collections::BTreeMap;

/// Gives each name a number.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<String, usize>);

/// A set of names, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Names {
    /// The set of these names.
    pub fn set<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) -> Bits {
        let mut bits = Bits::default();
        for name in names {
            let next = self.0.len();
            let number = match self.0.get(name) {
                Some(number) => *number,
                None => *self.0.entry(name.clone()).or_insert(next),
            };
            let word = number / 64;
            if bits.0.len() <= word {
                bits.0.resize(word + 1, 0);
            }
            bits.0[word] |= 1 << (number % 64);
        }
        bits
    }

    /// Whether a name is in a set.
    pub fn has(&self, name: &str, set: &Bits) -> bool {
        self.0.get(name).is_some_and(|number| set.has(*number))
    }

    /// The first name of a set that is not in another.
    pub fn first_missing<'a>(&'a self, wanted: &Bits, there: &Bits) -> Option<&'a str> {
        let missing = |number: &usize| wanted.has(*number) && !there.has(*number);
        self.0.iter().find(|(_, number)| missing(number)).map(|(name, _)| name.as_str())
    }
}

impl Bits {
    fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Whether all that is in this set is in another.
    pub fn within(&self, other: &Bits) -> bool {
        self.0.iter().enumerate().all(|(at, word)| word & !other.0.get(at).copied().unwrap_or(0) == 0)
    }
}
