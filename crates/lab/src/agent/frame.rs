//! Frames on the port, and finding them again after a cut.
//!
//! ```text
//!   0      1     2       3         4         8        12
//!   | 0x4d | kind | stream | 0 | channel le | length le | payload ... |
//! ```
//!
//! Zero bytes between frames mean nothing.

use serde::{Deserialize, Serialize};

const SYNC: u8 = 0x4d;
const HEADER: usize = 12;
/// Largest payload. A frame then fits one 32 KiB write, the most that Linux's virtio console sends in one buffer.
pub const MAX_PAYLOAD: usize = 32 * 1024 - HEADER;
/// Bytes of a stream that may be under way unacknowledged.
pub const WINDOW: usize = 512 * 1024;
/// Sent before a hello: longer than any frame, so it ends one that was cut off.
pub static PREAMBLE: [u8; MAX_PAYLOAD + 2 * HEADER] = [0; MAX_PAYLOAD + 2 * HEADER];

const MAGIC: &[u8; 8] = b"maru-ag1";
/// Header and first bytes of every hello.
const HELLO_START: [u8; HEADER + 8] = {
    let mut bytes = [0; HEADER + 8];
    bytes[0] = SYNC;
    bytes[1] = Kind::Hello as u8;
    bytes[8] = 24;
    let mut n = 0;
    while n < 8 {
        bytes[HEADER + n] = MAGIC[n];
        n += 1;
    }
    bytes
};

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Starts a session; payload: magic and 16 random bytes.
    Hello = 1,
    /// The agent has just started and knows no session.
    Boot = 2,
    /// Opens a channel; payload: a [`Request`] as JSON.
    Open = 3,
    /// Bytes of a stream.
    Data = 4,
    /// A stream has ended.
    End = 5,
    /// The receiver consumed this many bytes (4 bytes little-endian).
    Credit = 6,
    /// A signal for the channel's program (4 bytes little-endian).
    Signal = 7,
    /// The channel has ended; payload: an [`ExitStatus`] as JSON. The last frame of a channel.
    Exit = 8,
    /// The client gives the channel up: its program is killed.
    Close = 9,
    /// The terminal has a new size (two times 2 bytes little-endian: columns, rows).
    Resize = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Hello, Boot, Open, Data, End, Credit, Signal, Exit, Close, Resize].into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// Which of a channel's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    /// To the program, or a file's content to the host.
    In = 0,
    /// The program's standard output, or a file's content from the host.
    Out = 1,
    /// The program's standard error.
    Err = 2,
}

impl Stream {
    fn from_byte(byte: u8) -> Option<Self> {
        [Stream::In, Stream::Out, Stream::Err].into_iter().find(|&stream| stream as u8 == byte)
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters per line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// The payload of a resize frame.
    pub fn encode(self) -> Vec<u8> {
        [self.columns.to_le_bytes(), self.rows.to_le_bytes()].concat()
    }

    /// The size in a resize frame.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let [a, b, c, d] = *payload else { return None };
        Some(TerminalSize { columns: u16::from_le_bytes([a, b]), rows: u16::from_le_bytes([c, d]) })
    }
}

/// What a channel is opened for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a program.
    Exec {
        /// Program and arguments; the program is looked up in `PATH`.
        argv: Vec<String>,
        /// Variables added to the agent's environment.
        env: Vec<(String, String)>,
        /// Working directory, `/` by default.
        cwd: Option<String>,
        /// Run on a terminal of this size; its output is all on [`Stream::Out`].
        terminal: Option<TerminalSize>,
    },
    /// Write what comes on [`Stream::In`] to a file, which appears complete or not at all.
    Push {
        /// Where to.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Send a file's content on [`Stream::Out`].
    Pull {
        /// Which file.
        path: String,
    },
    /// Load a kernel module with what it needs.
    LoadModule {
        /// Its name.
        name: String,
        /// Its parameters, as on the command line of `insmod`.
        parameters: String,
    },
    /// Write everything that is cached to the disks.
    Sync,
    /// Shut down in order.
    PowerOff,
}

/// How a channel ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// The program ended with this code; 0 for a file that was carried.
    Code(i32),
    /// A signal ended the program.
    Signal(i32),
    /// The request could not be carried out.
    Failed(String),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: Kind,
    /// Whose bytes or credit it carries; [`Stream::In`] where that does not matter.
    pub stream: Stream,
    /// Which channel; 0 for the session itself.
    pub channel: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame that concerns a channel as a whole.
    pub fn new(kind: Kind, channel: u32, payload: Vec<u8>) -> Self {
        Frame { kind, stream: Stream::In, channel, payload }
    }

    /// A hello with the session's random number.
    pub fn hello(nonce: [u8; 16]) -> Self {
        Frame::new(Kind::Hello, 0, [MAGIC.as_slice(), &nonce].concat())
    }

    /// Gives back `count` bytes of a stream's window.
    pub fn credit(channel: u32, stream: Stream, count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Frame { kind: Kind::Credit, stream, channel, payload: count.to_le_bytes().to_vec() }
    }

    /// The payload as one number, if it is one.
    pub fn number(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.as_slice().try_into().ok()?))
    }

    /// The frame as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend([SYNC, self.kind as u8, self.stream as u8, 0]);
        bytes.extend(self.channel.to_le_bytes());
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// Turns received bytes into frames. After bytes that cannot be a frame it looks for the next hello.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    lost: bool,
}

impl Decoder {
    /// A decoder that ignores everything before the next hello.
    pub fn waiting_for_hello() -> Self {
        Decoder { lost: true, ..Decoder::default() }
    }

    /// Ignores everything before the next hello.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Forgets an incomplete frame.
    pub fn reset(&mut self) {
        *self = Decoder::default();
    }

    /// Adds received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend(bytes);
    }

    /// The next complete frame.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if self.lost && !self.find_hello() {
                return None;
            }
            let rest = &self.buffer[self.start..];
            let padding = rest.iter().take_while(|&&byte| byte == 0).count();
            self.start += padding;
            let rest = &rest[padding..];
            let header = rest.get(..HEADER)?;
            let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let length = word(8) as usize;
            let (kind, stream) = (Kind::from_byte(header[1]), Stream::from_byte(header[2]));
            let (Some(kind), Some(stream), SYNC, 0, 0..=MAX_PAYLOAD) = (kind, stream, header[0], header[3], length) else {
                self.lost = true;
                self.start += 1;
                continue;
            };
            let payload = rest.get(HEADER..HEADER + length)?.to_vec();
            let frame = Frame { kind, stream, channel: word(4), payload };
            self.start += HEADER + length;
            return Some(frame);
        }
    }

    fn find_hello(&mut self) -> bool {
        let rest = &self.buffer[self.start..];
        match rest.windows(HELLO_START.len()).position(|window| window == HELLO_START) {
            Some(at) => {
                self.start += at;
                self.lost = false;
                true
            }
            None => {
                self.start += rest.len().saturating_sub(HELLO_START.len() - 1);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame()).collect()
    }

    fn data(channel: u32, payload: &[u8]) -> Frame {
        Frame { kind: Kind::Data, stream: Stream::Out, channel, payload: payload.to_vec() }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..9), size in 1usize..50) {
            let sent: Vec<Frame> = payloads.iter().enumerate().map(|(n, p)| data(n as u32, p)).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
            let mut decoder = Decoder::default();
            let mut received = Vec::new();
            for part in bytes.chunks(size) {
                decoder.feed(part);
                received.extend(frames(&mut decoder));
            }
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn a_hello_is_found_after_a_frame_that_was_cut_anywhere(payload in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..212) {
            let mut decoder = Decoder::default();
            let cut_off = data(7, &payload).encode();
            decoder.feed(&cut_off[..cut.min(cut_off.len())]);
            decoder.feed(&PREAMBLE);
            decoder.feed(&Frame::hello([9; 16]).encode());
            let received = frames(&mut decoder);
            prop_assert_eq!(received.last(), Some(&Frame::hello([9; 16])));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_hide_a_hello(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.feed(&noise);
            frames(&mut decoder);
            decoder.feed(&PREAMBLE);
            decoder.feed(&Frame::hello([1; 16]).encode());
            let received = frames(&mut decoder);
            prop_assert_eq!(received.last(), Some(&Frame::hello([1; 16])));
        }
    }

    #[test]
    fn a_client_sees_nothing_before_a_hello() {
        let mut decoder = Decoder::waiting_for_hello();
        decoder.feed(&data(1, b"stale").encode());
        decoder.feed(&data(1, b"stale").encode()[..15]);
        decoder.feed(&Frame::hello([3; 16]).encode());
        decoder.feed(&data(1, b"fresh").encode());
        assert_eq!(frames(&mut decoder), [Frame::hello([3; 16]), data(1, b"fresh")]);
    }
}
