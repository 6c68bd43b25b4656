//! Sizes, times and rates as people write them.

use std::time::Duration;

fn split(text: &str) -> Result<(f64, String), String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| format!("{text:?} does not start with a number"))?;
    Ok((number, text[end..].to_ascii_lowercase()))
}

fn scaled(text: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    let (number, unit) = split(text)?;
    let known = || units.iter().map(|unit| unit.0).filter(|unit| !unit.is_empty()).collect::<Vec<_>>().join(", ");
    let factor =
        units.iter().find(|known| known.0 == unit).ok_or_else(|| format!("unknown unit {unit:?}; known: {}", known()))?.1;
    Ok(number * factor)
}

/// `1024`, `1024M`, `2G`, `1T` in MiB.
pub fn mebibytes(text: &str) -> Result<u64, String> {
    let mib = scaled(text, &[("", 1.0), ("m", 1.0), ("mib", 1.0), ("g", 1024.0), ("gib", 1024.0), ("t", 1_048_576.0)])?;
    if mib < 1.0 { Err("at least 1 MiB".into()) } else { Ok(mib as u64) }
}

/// `20ms`, `1.5s`, `100us`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let seconds = scaled(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)])?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// `500k`, `10M`, `1G` in bits per second.
pub fn bits(text: &str) -> Result<u64, String> {
    let bits = scaled(text, &[("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9)])?;
    if bits < 1.0 { Err("at least 1 bit per second; to stop everything, cut without --rate".into()) } else { Ok(bits as u64) }
}

/// 0 to 100.
pub fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("between 0 and 100".into()) }
}

/// `LOCAL:PATH`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (local, path) = text.split_once(':').ok_or("should be LOCAL:PATH")?;
    Ok((local.to_owned(), path.to_owned()))
}

/// A lab's name becomes part of paths.
pub fn name(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && text.len() <= 32 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if fine { Ok(text.to_owned()) } else { Err("1 to 32 letters, digits, - and _".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        assert_eq!(mebibytes("2G"), Ok(2048));
        assert_eq!(mebibytes("512"), Ok(512));
        assert_eq!(mebibytes("1.5g"), Ok(1536));
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(bits("10M"), Ok(10_000_000));
        assert_eq!(percent("5%"), Ok(5.0));
        for wrong in ["", "x", "2X", "-1G", "0"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
        assert!(duration("20").is_err() && percent("101").is_err() && bits("0").is_err());
        assert!(name("../x").is_err() && name("").is_err() && name("my-lab_2").is_ok());
    }
}
