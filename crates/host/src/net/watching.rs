//! Who looks at what passes a port.
//!
//! ```text
//!   switch ──control socket──▶ a thread: makes lines or a file of it ──▶ a few pieces ──▶ the client's connection
//!                                 ▲
//!            the time is over, or the client is gone: nothing more is asked for; what is on its way still comes
//! ```

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use switch::control::{Client, ClientError, Request, Stopper, Streamed};
use switch::pcapng::Writer;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{sleep, timeout};

use super::Network;

/// Ports that are looked at at the same time.
pub const MAX_WATCHES: usize = 16;
static PLACES: Semaphore = Semaphore::const_new(MAX_WATCHES);
/// Pieces that wait for a client.
const PIECES: usize = 16;
/// A client that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the switch may take to send the rest.
const REST: Duration = Duration::from_secs(20);

/// Why nothing is seen.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Too many look already.
    #[error("{MAX_WATCHES} ports of this host are looked at already")]
    Full,
    /// The switch.
    #[error(transparent)]
    Switch(#[from] ClientError),
    /// The connection to it.
    #[error("the virtual switch cannot be watched")]
    Io(#[from] io::Error),
}

/// What is seen, in pieces. An error among them: the switch has ended.
pub type Seen = Receiver<io::Result<Vec<u8>>>;

/// A look that has begun.
pub struct Watch {
    client: Client,
    stopper: Stopper,
    place: SemaphorePermit<'static>,
    limit: Duration,
}

impl Network {
    /// Begins to look at a port, for `limit` at most. Blocks.
    pub fn watch(&self, request: &Request, limit: Duration) -> Result<Watch, WatchError> {
        let place = PLACES.try_acquire().map_err(|_| WatchError::Full)?;
        let mut client = self.connect()?;
        client.call::<Value>(request)?;
        // Between two frames there may be all of the time.
        client.set_patience(limit + REST)?;
        let stopper = client.stopper()?;
        Ok(Watch { client, stopper, place, limit })
    }
}

impl Watch {
    /// Has `make` take what the switch sends, until there is no more, the time is over, or nobody takes what it makes.
    pub fn follow(self, make: impl FnOnce(&mut Client, &mut Pieces) -> io::Result<()> + Send + 'static) -> Seen {
        let Watch { mut client, stopper, place, limit } = self;
        let (sender, seen) = channel(PIECES);
        let gone = sender.clone();
        let (running, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            tokio::select! {
                () = sleep(limit) => {}
                () = gone.closed() => {}
                // The thread drops its end of this.
                _ = ended => {}
            }
            stopper.stop();
        });
        let runtime = Handle::current();
        thread::spawn(move || {
            let mut pieces = Pieces { sender, runtime, piece: Vec::new() };
            if let Err(error) = make(&mut client, &mut pieces) {
                // If that cannot be said either, nobody listens.
                let _ = pieces.send(Err(error));
            }
            drop((place, running));
        });
        seen
    }
}

/// Where the thread puts what it makes. What was written goes with the next flush.
pub struct Pieces {
    sender: Sender<io::Result<Vec<u8>>>,
    runtime: Handle,
    piece: Vec<u8>,
}

impl Pieces {
    fn send(&self, piece: io::Result<Vec<u8>>) -> io::Result<()> {
        let sent = self.runtime.block_on(async { timeout(PATIENCE, self.sender.send(piece)).await });
        if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() { Ok(()) } else { self.send(Ok(piece)) }
    }
}

fn lost(error: ClientError) -> io::Error {
    io::Error::other(error)
}

/// A line of JSON for each of what the switch sends, as `line` makes it.
pub fn lines(client: &mut Client, pieces: &mut Pieces, line: impl Fn(Streamed) -> Option<api::Watched>) -> io::Result<()> {
    loop {
        let streamed = client.receive::<Streamed>().map_err(lost)?;
        let is_last = matches!(streamed, Streamed::End { .. });
        if let Some(line) = line(streamed) {
            serde_json::to_writer(&mut *pieces, &line)?;
            pieces.write_all(b"\n")?;
            pieces.flush()?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// A pcapng file of the frames of a port, of `max_bytes` or a little more.
pub fn file(client: &mut Client, pieces: &mut Pieces, port: &str, snap_bytes: u32, max_bytes: u64) -> io::Result<()> {
    let stopper = client.stopper()?;
    let mut writer = Writer::new(&mut *pieces, port, snap_bytes)?;
    writer.flush()?;
    let (mut received, mut last, mut bytes, mut left_out) = (0, 0, 0_u64, 0);
    loop {
        match client.receive().map_err(lost)? {
            Streamed::Frames { frames } => {
                for frame in frames {
                    if bytes > max_bytes {
                        left_out += 1;
                        stopper.stop();
                        continue;
                    }
                    let odd = || io::Error::new(io::ErrorKind::InvalidData, "the switch sent something that is no frame");
                    writer.captured(&frame)?.ok_or_else(odd)?;
                    bytes += frame.bytes.len() as u64 / 2;
                    received += 1;
                    last = frame.at_ns;
                }
                writer.flush()?;
            }
            Streamed::End { missed } => return writer.finish(last, received, missed + left_out),
            Streamed::Trace(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use packet::Listener;
    use switch::acl::Direction;
    use switch::control::{CapturedFrame, Reply};

    use super::*;

    /// Begins to look at a switch that has seen these frames, missed three, and says so when nothing more is asked for.
    fn watch(directory: &Path, frames: Vec<CapturedFrame>, limit: Duration) -> Watch {
        let path = directory.join("control");
        let listener = Listener::bind(&path).unwrap();
        thread::spawn(move || {
            let connection = listener.accept().unwrap();
            let ask = || connection.receive_message::<Request>().unwrap();
            assert!(ask().is_some());
            let say = |value: Value| connection.send_message(&Reply::Ok(value)).unwrap();
            say(Value::Null);
            say(serde_json::to_value(Streamed::Frames { frames }).unwrap());
            assert_eq!(ask(), None);
            say(serde_json::to_value(Streamed::End { missed: 3 }).unwrap());
        });
        let mut client = Client::connect(&path).unwrap();
        let request = Request::Capture { name: "a".into(), direction: None, count: None, snap_bytes: 100 };
        client.call::<Value>(&request).unwrap();
        let stopper = client.stopper().unwrap();
        Watch { client, stopper, place: PLACES.try_acquire().unwrap(), limit }
    }

    async fn all(mut seen: Seen) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = seen.recv().await {
            all.extend(piece.unwrap());
        }
        all
    }

    fn frame(bytes: &str) -> CapturedFrame {
        CapturedFrame { at_ns: 1, direction: Direction::Inbound, length: bytes.len() / 2, bytes: bytes.into() }
    }

    #[tokio::test]
    async fn a_file_ends_when_it_is_as_long_as_it_may_be_and_says_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let frames = ["a1a1a1a1", "b2b2b2b2", "c3c3c3c3"].map(frame).to_vec();
        let watch = watch(directory.path(), frames, Duration::from_secs(3600));
        let file = all(watch.follow(|client, pieces| file(client, pieces, "web/net0", 100, 5))).await;
        let has = |bytes: &[u8]| file.windows(bytes.len()).any(|window| window == bytes);
        assert_eq!([has(&[0xa1; 4]), has(&[0xb2; 4]), has(&[0xc3; 4])], [true, true, false]);
        // isb_ifdrop: the three of the switch, and the one that was left out.
        let mut drops = [5, 0, 8, 0].to_vec();
        drops.extend(4_u64.to_le_bytes());
        assert!(has(&drops) && has(b"web/net0"));
    }

    #[tokio::test]
    async fn who_looks_is_told_of_the_end_when_the_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let watch = watch(directory.path(), Vec::new(), Duration::from_millis(20));
        let end = |streamed| match streamed {
            Streamed::End { missed } => Some(api::Watched::End(api::WatchEnd { missed })),
            _ => None,
        };
        let lines = all(watch.follow(move |client, pieces| lines(client, pieces, end))).await;
        assert_eq!(String::from_utf8(lines).unwrap(), "{\"end\":{\"missed\":3}}\n");
    }
}
