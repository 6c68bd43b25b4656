//! Tokens that `maru` reads from a terminal, a pipe or a file.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Terminal, maru, wait};

/// A command that reads a token, and then finds that the certificate authority is none.
fn adds_a_context(directory: &Path) -> Command {
    std::fs::write(directory.join("ca.pem"), "none").unwrap();
    let mut command = maru();
    command.args(["context", "add", "h1", "--server", "https://127.0.0.1:1", "--ca"]).arg(directory.join("ca.pem"));
    command.env("XDG_CONFIG_HOME", directory);
    command
}

#[test]
fn a_token_that_is_typed_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(adds_a_context(directory.path()));
    terminal.expect("token: ");
    assert!(!terminal.is_cooked());
    terminal.outside.write_all(b"sesame\n").unwrap();
    terminal.expect("error: the certificate authority cannot be used");
    assert_eq!(wait(&mut terminal.maru).code(), Some(1));
    assert!(terminal.is_cooked() && !terminal.has_shown("sesame"));
}

#[test]
fn ctrl_c_puts_the_terminal_back_while_a_token_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(adds_a_context(directory.path()));
    terminal.expect("token: ");
    terminal.outside.write_all(b"ses\x03").unwrap();
    assert_eq!(wait(&mut terminal.maru).code(), Some(130));
    assert!(terminal.is_cooked());
}

#[test]
fn a_token_comes_from_a_pipe_and_one_that_is_missing_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let says = |token: &[u8]| {
        let mut command = adds_a_context(directory.path());
        let mut maru = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        maru.stdin.take().unwrap().write_all(token).unwrap();
        String::from_utf8(maru.wait_with_output().unwrap().stderr).unwrap()
    };
    assert!(says(b"sesame\n").starts_with("error: the certificate authority cannot be used"));
    assert_eq!(says(b""), "error: the token is missing: standard input has nothing in its first line\n");
    let long = says(&[b'a'; 5000]);
    assert!(long.starts_with("error: standard input has more than 4000 bytes"), "{long}");
}
