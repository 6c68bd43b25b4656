//! `maru vm run` on a terminal.

mod support;

use std::io::Write;

use support::{Terminal, run, wait};

fn start(mode: &str) -> Terminal {
    Terminal::start(run(mode))
}

#[test]
fn keys_reach_the_guest_and_ctrl_bracket_ends_the_vm_and_puts_the_terminal_back() {
    let mut terminal = start("echo");
    terminal.expect("Ctrl-] ends the VM");
    terminal.expect("ready");
    assert!(!terminal.is_cooked());
    // Ctrl-C and Enter as they are pressed: no signal, no newline.
    terminal.outside.write_all(b"\x03\r").unwrap();
    terminal.expect("\x03");
    terminal.outside.write_all(b"\x1d").unwrap();
    terminal.expect("Ctrl-]: the VM ends");
    assert_eq!(wait(&mut terminal.maru).code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn the_terminal_is_put_back_however_the_vm_ends() {
    let mut terminal = start("exit 4");
    assert_eq!(wait(&mut terminal.maru).code(), Some(4));
    assert!(terminal.is_cooked());

    let mut terminal = start("echo");
    terminal.expect("ready");
    // SAFETY: no pointers; the child was not waited for.
    unsafe { libc::kill(terminal.maru.id() as libc::pid_t, libc::SIGTERM) };
    assert_eq!(wait(&mut terminal.maru).code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn a_second_ctrl_bracket_does_not_wait_for_a_monitor_that_does_not_end() {
    let mut terminal = start("stubborn");
    terminal.expect("ready");
    terminal.outside.write_all(b"\x1d").unwrap();
    terminal.expect("Ctrl-]: the VM ends");
    terminal.outside.write_all(b"\x1d").unwrap();
    assert_eq!(wait(&mut terminal.maru).code(), Some(137));
    assert!(terminal.is_cooked());
}
