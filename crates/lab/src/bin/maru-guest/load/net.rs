//! One TCP connection that must carry a numbered stream to a peer and back without loss, however long it has to wait.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Progress;

/// How long the peer may take to be there at the start.
const PATIENCE: Duration = Duration::from_secs(60);
const PIECE_WORDS: u64 = 512;
/// Bytes under way at most.
const WINDOW: u64 = 128 * 1024;

/// Talks for ever.
pub fn run(peer: &str, progress: &Progress, pace: Duration) -> io::Result<()> {
    let mut stream = connect(peer)?;
    stream.set_nodelay(true)?;
    let returned = Arc::new(AtomicU64::new(0));
    let (mut sending, confirmed) = (stream.try_clone()?, returned.clone());
    let sender = thread::spawn(move || -> io::Result<()> {
        let mut word = 0u64;
        loop {
            thread::sleep(pace);
            if word * 8 - confirmed.load(Ordering::SeqCst) >= WINDOW {
                continue;
            }
            let piece: Vec<u8> = (word..word + PIECE_WORDS).flat_map(u64::to_le_bytes).collect();
            sending.write_all(&piece)?;
            word += PIECE_WORDS;
        }
    });
    let mut bytes = [0; 8];
    let mut last = Instant::now();
    for word in 0u64.. {
        if let Err(error) = stream.read_exact(&mut bytes) {
            let reason = if sender.is_finished() { sender.join().ok().and_then(Result::err) } else { None };
            return Err(reason.unwrap_or(error));
        }
        let found = u64::from_le_bytes(bytes);
        if found != word {
            return Err(io::Error::other(format!("word {found} came back where {word} was due")));
        }
        let now = Instant::now();
        progress.net_gap_ms.fetch_max((now - last).as_millis() as u64, Ordering::SeqCst);
        last = now;
        returned.fetch_add(8, Ordering::SeqCst);
        progress.net.fetch_add(8, Ordering::SeqCst);
    }
    Ok(())
}

fn connect(peer: &str) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(peer) {
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
            Ok(stream) => return Ok(stream),
        }
    }
}
