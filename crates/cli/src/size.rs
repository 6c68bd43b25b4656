//! Sizes as people write and read them: `512M`, `2G`; units are binary.

use std::fmt;
use std::str::FromStr;

/// Why a text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    /// A number alone: some tools take it for bytes, some for MiB.
    #[error("'{0}' has no unit: write {0}M for MiB, or {0}K, {0}G, {0}T")]
    NoUnit(String),
    /// Neither number nor unit.
    #[error("'{0}' is no size: write a number and K, M, G or T, like 512M")]
    Malformed(String),
    /// More than 2^64 bytes.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<ByteSize, SizeError> {
        let malformed = || SizeError::Malformed(text.into());
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() {
            return Err(malformed());
        }
        let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge(text.into()))?;
        let mut letters = unit.chars();
        let shift = match letters.next().map(|c| c.to_ascii_uppercase()) {
            // Zero is the same in every unit.
            None if number == 0 => 0,
            None => return Err(SizeError::NoUnit(digits.into())),
            Some('B') => 0,
            Some(letter) => UNITS.iter().find(|(name, _)| *name == letter).ok_or_else(malformed)?.1,
        };
        let rest = letters.as_str();
        if !(rest.is_empty() || shift > 0 && matches!(rest, "iB" | "ib" | "i")) {
            return Err(malformed());
        }
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(|| SizeError::TooLarge(text.into()))
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit in which it is at least one, with a decimal where it is not whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS {
            let unit = 1u64 << shift;
            if self.0 >= unit {
                let (whole, rest) = (self.0 / unit, self.0 % unit);
                return match rest {
                    0 => write!(f, "{whole} {letter}iB"),
                    _ => write!(f, "{:.1} {letter}iB", self.0 as f64 / unit as f64),
                };
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_binary_and_its_case_does_not_matter() {
        let cases =
            [("512M", 512 << 20), ("2g", 2 << 30), ("1T", 1 << 40), ("4KiB", 4096), ("0", 0), ("7B", 7), ("3Mi", 3 << 20)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_is_refused_with_its_possible_meanings() {
        assert!("512".parse::<ByteSize>().unwrap_err().to_string().contains("write 512M for MiB"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "M", "-1M", "1.5G", "1X", "1MM", "1BiB", "1 G"] {
            assert_eq!(text.parse::<ByteSize>(), Err(SizeError::Malformed(text.into())), "{text}");
        }
        for text in ["99999999999999999999M", "99999999T"] {
            assert_eq!(text.parse::<ByteSize>(), Err(SizeError::TooLarge(text.into())));
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_reads_best() {
        let shown = [(0, "0 bytes"), (1023, "1023 bytes"), (4096, "4 KiB"), (512 << 20, "512 MiB"), (3 << 29, "1.5 GiB")];
        for (bytes, text) in shown {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
