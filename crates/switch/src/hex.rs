//! Bytes as hexadecimal digits.

/// Two digits for each byte.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Bytes from pairs of digits; white space and colons between digits do not count.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().filter(|digit| !digit.is_whitespace() && *digit != ':');
    let digits: Vec<u8> = digits.map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_they_are_written() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&all)).unwrap(), all);
        assert_eq!(from_hex("0A:ff 1\n2"), Some(vec![10, 255, 18]));
        assert_eq!((from_hex("1"), from_hex("xy")), (None, None));
    }
}
