//! `console`: a running VM's console in this terminal.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use vmm::control::{Client, Request};

use super::ControlError;
use crate::terminal::{Input, Proxy, RawMode, StopSignals, Wake, is_mine};

/// Joins the console to the terminal until the user leaves it or the VM ends.
pub fn attach(client: &mut Client) -> Result<(), ControlError> {
    let terminal = |what| move |source| ControlError::Terminal { what, source };
    let signals = StopSignals::take().map_err(terminal("taking signals"))?;
    let (ours, theirs) = UnixStream::pair().map_err(terminal("making the console's socket"))?;
    client.call::<Value>(&Request::Console, &[theirs.as_raw_fd()])?;
    drop(theirs);

    let (stdin, stdout) = (io::stdin(), io::stdout());
    let raw = if is_mine(stdin.as_fd()) {
        eprintln!("Ctrl-] leaves the console, the VM goes on");
        Some(RawMode::enter(stdin.as_fd()).map_err(terminal("switching the terminal to raw mode"))?)
    } else {
        None
    };
    let input = match &raw {
        Some(_) => Input::Terminal(stdin.as_fd()),
        None if stdin.is_terminal() => Input::None,
        None => Input::Bytes(stdin.as_fd()),
    };
    let mut proxy = Proxy::new(input, stdout.as_fd(), ours).map_err(terminal("using the console"))?;
    let woken = proxy.wait(&[signals.as_fd()], None).map_err(terminal("using the console"))?;
    drop(raw);
    match woken {
        Wake::Escape => eprintln!("\nleft the console, the VM goes on"),
        Wake::ConsoleClosed => eprintln!("\nthe VM has closed its console"),
        Wake::Other(_) | Wake::Deadline => {}
    }
    Ok(())
}
