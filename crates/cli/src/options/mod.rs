//! Options with parts, like `--disk root.raw,ro,queues=2`: what they are made of, and what is wrong with one.

mod autostart;
mod cpus;
mod disk;
mod limits;
mod managed;
mod memory;
mod net;
mod vsock;

use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use autostart::{AUTO_START_FORM, AutoStartOption};
pub use cpus::{CPUS_FORM, CpuOption};
pub use disk::{DISK_FORM, DiskOption, DiskOverride};
pub use limits::{LIMITS_FORM, LimitsOption, NET_LIMITS_FORM, NetLimitsOption};
pub use managed::{MANAGED_DISK_FORM, MANAGED_NET_FORM, ManagedDisk, ManagedNet};
pub use memory::{MEMORY_FORM, MemoryOption};
pub use net::{NET_FORM, NetOption, NetOverride, default_mac};
pub use vsock::{VSOCK_FORM, VsockOption};

/// What is wrong with an option's text. Each says the right form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// A part that there is not.
    #[error("there is no part '{part}'; the form is {form}")]
    UnknownPart {
        /// The part.
        part: String,
        /// The right form.
        form: &'static str,
    },
    /// The same part twice.
    #[error("'{part}' is given twice; the form is {form}")]
    Twice {
        /// The part.
        part: String,
        /// The right form.
        form: &'static str,
    },
    /// A part that must be there.
    #[error("{what} is missing; the form is {form}")]
    Missing {
        /// The part.
        what: &'static str,
        /// The right form.
        form: &'static str,
    },
    /// A part with the wrong content.
    #[error("{part}: {reason}; the form is {form}")]
    Value {
        /// The part.
        part: String,
        /// What is wrong.
        reason: String,
        /// The right form.
        form: &'static str,
    },
}

/// The parts of an option between its commas. A comma that belongs to a part is written twice.
pub struct Parts {
    parts: Vec<(String, Option<String>)>,
    form: &'static str,
}

impl Parts {
    /// Takes an option apart; a first part that has no name (a file, a number) is returned as it is.
    pub fn with_head(text: &str, what: &'static str, form: &'static str) -> Result<(String, Parts), OptionError> {
        let mut pieces = split(text);
        let head = pieces.remove(0);
        if head.is_empty() {
            return Err(OptionError::Missing { what, form });
        }
        Ok((head, Parts::named(pieces, form)?))
    }

    /// Takes an option apart of which every part has a name.
    pub fn new(text: &str, form: &'static str) -> Result<Parts, OptionError> {
        Parts::named(split(text), form)
    }

    pub fn named(pieces: Vec<String>, form: &'static str) -> Result<Parts, OptionError> {
        let mut parts: Vec<(String, Option<String>)> = Vec::new();
        for piece in pieces {
            let (name, value) = match piece.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (piece, None),
            };
            if parts.iter().any(|(other, _)| *other == name) {
                return Err(OptionError::Twice { part: name, form });
            }
            parts.push((name, value));
        }
        Ok(Parts { parts, form })
    }

    /// Takes the part `name=value` out.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, OptionError> {
        let Some(index) = self.parts.iter().position(|(part, _)| part == name) else { return Ok(None) };
        match self.parts.remove(index).1 {
            Some(value) if !value.is_empty() => Ok(Some(value)),
            _ => Err(self.wrong(name, "it needs a value")),
        }
    }

    /// Takes the part `name=value` out and reads its value.
    pub fn value<T: FromStr<Err: ToString>>(&mut self, name: &str) -> Result<Option<T>, OptionError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error: T::Err| self.wrong(name, error.to_string()))
    }

    /// Takes the part `name=number` out.
    pub fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, OptionError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(name, format!("'{text}' is no number that can be used here")))
    }

    /// Takes the part `name` out, which has no value; whether it was there.
    pub fn flag(&mut self, name: &str) -> Result<bool, OptionError> {
        let Some(index) = self.parts.iter().position(|(part, _)| part == name) else { return Ok(false) };
        match self.parts.remove(index).1 {
            None => Ok(true),
            Some(value) => Err(self.wrong(name, format!("it takes no value, but '{value}' is given"))),
        }
    }

    /// Refuses parts that nobody took.
    pub fn finish(self) -> Result<(), OptionError> {
        match self.parts.into_iter().next() {
            None => Ok(()),
            Some((part, _)) => Err(OptionError::UnknownPart { part, form: self.form }),
        }
    }

    pub fn wrong(&self, part: &str, reason: impl Into<String>) -> OptionError {
        OptionError::Value { part: part.into(), reason: reason.into(), form: self.form }
    }
}

/// Splits at single commas; two commas are one that belongs to the piece.
fn split(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c == ',' && characters.next_if_eq(&',').is_none() {
            pieces.push(String::new());
        } else if let Some(last) = pieces.last_mut() {
            last.push(c);
        }
    }
    pieces
}

/// The path seen from `/`: the monitor may run elsewhere, and a saved VM is restored from anywhere.
pub fn absolute(path: &Path) -> PathBuf {
    // Fails only for the empty path, and where there is no current directory; then it stays what it is.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_commas_are_one_in_the_text() {
        assert_eq!(split("a,,b,c"), ["a,b", "c"]);
        assert_eq!(split("a,"), ["a", ""]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn paths_become_absolute_without_being_looked_up() {
        assert_eq!(absolute(Path::new("/a/../b")), Path::new("/a/../b"));
        assert_eq!(absolute(Path::new("disk.raw")), std::env::current_dir().unwrap().join("disk.raw"));
    }
}
