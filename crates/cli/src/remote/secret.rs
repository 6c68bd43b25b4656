//! Tokens that users give: by a file or standard input, never as an argument, which all users of the machine can read in `/proc`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::terminal::{RawMode, is_mine, stop_on_thread};

/// The longest token that is read, in bytes. One to join with, which is the longest, has about 200; a terminal gives no line over 4095.
const LONGEST: u64 = 4000;
/// How standard input is named.
const STANDARD_INPUT: &str = "-";

/// Where a token comes from.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// A file whose first line is the token; `-` is standard input, as is nothing. On a terminal it is asked for, and not shown
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read the token from {from}")]
    Read {
        /// Where it was to be.
        from: String,
        /// Why not.
        source: io::Error,
    },
    /// There is none.
    #[error("the token is missing: {0} has nothing in its first line")]
    Empty(String),
    /// It is something else.
    #[error("{0} has more than {LONGEST} bytes in its first line: that is no token")]
    Long(String),
}

impl TokenArgs {
    /// Reads it.
    pub fn read(&self) -> Result<String, SecretError> {
        match self.token_file.as_deref().filter(|file| *file != Path::new(STANDARD_INPUT)) {
            Some(file) => {
                let from = file.display().to_string();
                let file = File::open(file).map_err(|source| SecretError::Read { from: from.clone(), source })?;
                first_line(BufReader::new(file), from)
            }
            None => from_standard_input(),
        }
    }
}

fn from_standard_input() -> Result<String, SecretError> {
    let (stdin, from) = (io::stdin(), "standard input".to_owned());
    let unusable = |source| SecretError::Read { from: from.clone(), source };
    let hidden = if is_mine(stdin.as_fd()) {
        // Whoever ends the command here wants to see again what is typed.
        stop_on_thread(RawMode::leave).map_err(unusable)?;
        let hidden = RawMode::without_echo(stdin.as_fd()).map_err(unusable)?;
        eprint!("token: ");
        Some(hidden)
    } else {
        None
    };
    let line = first_line(stdin.lock(), from);
    drop(hidden);
    line
}

fn first_line(input: impl BufRead, from: String) -> Result<String, SecretError> {
    let mut line = String::new();
    match input.take(LONGEST + 1).read_line(&mut line) {
        Err(source) => Err(SecretError::Read { from, source }),
        Ok(length) if length as u64 > LONGEST => Err(SecretError::Long(from)),
        Ok(_) if line.trim().is_empty() => Err(SecretError::Empty(from)),
        Ok(_) => Ok(line.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, SecretError> {
        first_line(bytes, "standard input".into())
    }

    #[test]
    fn a_token_is_the_first_line_without_what_is_around_it() {
        for text in ["maru-join-1/x\n", "maru-join-1/x", "  maru-join-1/x \r\nmore\n"] {
            assert_eq!(read(text.as_bytes()).unwrap(), "maru-join-1/x");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_read_to_its_end() {
        for text in ["", "\n", "  \nmaru-join-1/x\n"] {
            assert!(matches!(read(text.as_bytes()), Err(SecretError::Empty(_))), "{text:?}");
        }
        assert!(matches!(read(b"\xff\n"), Err(SecretError::Read { .. })));
        assert!(matches!(first_line(BufReader::new(io::repeat(b'a')), "x".into()), Err(SecretError::Long(_))));
    }

    #[test]
    fn a_file_is_read_and_one_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let args = TokenArgs { token_file: Some(file.clone()) };
        let error = args.read().unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
        std::fs::write(&file, "secret\n").unwrap();
        assert_eq!(args.read().unwrap(), "secret");
    }
}
