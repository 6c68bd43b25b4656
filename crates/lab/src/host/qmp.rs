//! QEMU's control socket (QMP): one command per connection, and a connection to hear of what happens, are all that the lab needs.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// QEMU answers at once unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs one QMP command and gives what it returns.
///
/// # Errors
/// When QEMU does not answer or refuses.
pub fn execute(socket: &Path, command: &str, arguments: Value) -> io::Result<Value> {
    let stream = UnixStream::connect(socket)?;
    let mut lines = greet(&stream)?;
    call(&stream, &mut lines, &json!({ "execute": command, "arguments": arguments }))
}

fn greet(stream: &UnixStream) -> io::Result<BufReader<UnixStream>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    next_message(&mut lines, |message| message.get("QMP").is_some())?;
    call(stream, &mut lines, &json!({ "execute": "qmp_capabilities" }))?;
    Ok(lines)
}

/// What a QEMU tells.
pub struct Events(BufReader<UnixStream>);

impl Events {
    /// Hears it from now on.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn connect(socket: &Path) -> io::Result<Events> {
        let stream = UnixStream::connect(socket)?;
        let lines = greet(&stream)?;
        stream.set_read_timeout(None)?;
        Ok(Events(lines))
    }

    /// Waits until the machine itself has done this; `false` when QEMU ends before.
    pub fn of_guest(mut self, event: &str) -> bool {
        next_message(&mut self.0, |message| message["event"] == event && message["data"]["guest"] == true).is_ok()
    }
}

/// Runs a command of the human monitor, for the few things that QMP lacks.
///
/// # Errors
/// When QEMU does not answer.
pub fn human(socket: &Path, command: &str) -> io::Result<String> {
    let answer = execute(socket, "human-monitor-command", json!({ "command-line": command }))?;
    Ok(answer.as_str().unwrap_or_default().to_owned())
}

fn call(mut stream: &UnixStream, lines: &mut impl BufRead, request: &Value) -> io::Result<Value> {
    stream.write_all(format!("{request}\n").as_bytes())?;
    let answer = next_message(lines, |message| message.get("return").is_some() || message.get("error").is_some())?;
    match (answer.get("return"), answer.get("error")) {
        (Some(value), _) => Ok(value.clone()),
        (None, error) => Err(io::Error::other(format!("QEMU refuses {request}: {}", error.unwrap_or(&Value::Null)["desc"]))),
    }
}

/// Skips events.
fn next_message(lines: &mut impl BufRead, wanted: impl Fn(&Value) -> bool) -> io::Result<Value> {
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let message: Value = serde_json::from_str(&line)?;
        if wanted(&message) {
            return Ok(message);
        }
    }
}
