//! Proof that the monitor is alive and in order: one valid request to a device, and its answer checked.

use std::time::{Duration, Instant};

use super::access::Physical;
use super::arena::Arena;
use super::device::{
    ACKNOWLEDGE, BALLOON, BLOCK, CONSOLE, DRIVER, DRIVER_OK, Device, FEATURES_OK, MEM, NET, RNG, VERSION_1, VSOCK,
};

/// How long an answer may take. The hosts are emulated, and busy.
const PATIENCE: Duration = Duration::from_secs(20);
const QUEUE_BYTES: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x8_0000;
const SIZE: u16 = 8;
const WRITE: u16 = 2;

/// A buffer: offset in the proof's memory, length, and whether the device writes it.
type Buffer = (u64, u32, bool);

/// Resets the device, drives it as its standard says, and resets it again: it must not find what the next one is sent.
pub fn prove(device: &Device, arena: &Arena, count: u64) -> Result<(), String> {
    let session = Session::start(device, arena.proof).map_err(|why| format!("{}: {why}", device.title()))?;
    let result = match device.kind {
        BLOCK => block(&session),
        RNG => rng(&session),
        CONSOLE => console(&session, count),
        NET => net(&session),
        BALLOON => balloon(&session, arena),
        VSOCK => vsock(&session),
        MEM => mem(&session),
        _ => Ok(()),
    };
    result.map_err(|why| format!("{}: {why}; status {:#x}", device.title(), device.status()))?;
    device.reset()
}

struct Session<'d> {
    device: &'d Device,
    memory: Physical,
    data: u64,
}

impl<'d> Session<'d> {
    fn start(device: &'d Device, memory: Physical) -> Result<Session<'d>, String> {
        device.set_msix(0);
        device.reset()?;
        device.set_status(ACKNOWLEDGE | DRIVER);
        device.set_features(VERSION_1);
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if device.status() & FEATURES_OK == 0 {
            return Err("the device does not take VIRTIO_F_VERSION_1".into());
        }
        let queues: u16 = match device.kind {
            NET | CONSOLE | BALLOON => 2,
            VSOCK => 3,
            _ => 1,
        };
        for index in 0..queues {
            let rings = memory.part(u64::from(index) * QUEUE_BYTES, QUEUE_BYTES);
            [0, AVAILABLE, USED].iter().for_each(|offset| rings.part(*offset, 16 * u64::from(SIZE)).fill(0));
            let at = rings.start();
            device.set_queue(index, SIZE, [at, at + AVAILABLE, at + USED]);
            device.enable_queue(index);
        }
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        match device.status() & 0x40 {
            0 => Ok(Session { device, memory, data: DATA }),
            _ => Err("needs a reset right after a valid start".into()),
        }
    }

    /// Makes the first chain of a queue available.
    fn submit(&self, queue: u16, buffers: &[Buffer]) {
        let at = u64::from(queue) * QUEUE_BYTES;
        for (index, (offset, length, writable)) in (0u64..).zip(buffers) {
            let last = index + 1 == buffers.len() as u64;
            let flags = u64::from(!last) | if *writable { u64::from(WRITE) } else { 0 };
            self.memory.write(at + index * 16, 8, self.memory.start() + offset);
            self.memory.write(at + index * 16 + 8, 8, u64::from(*length) | (flags << 32) | ((index + 1) << 48));
        }
        self.memory.write(at + AVAILABLE + 4, 2, 0);
        self.memory.write(at + AVAILABLE + 2, 2, 1);
        self.device.kick(queue);
    }

    /// Waits for the answer to the first chain, and returns how many bytes the device wrote.
    fn answer(&self, queue: u16) -> Result<u64, String> {
        let at = u64::from(queue) * QUEUE_BYTES + USED;
        let start = Instant::now();
        while self.memory.read(at + 2, 2) == 0 {
            if start.elapsed() > PATIENCE {
                return Err(format!("no answer on queue {queue} after {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        match (self.memory.read(at + 2, 2), self.memory.read(at + 4, 4)) {
            (1, 0) => Ok(self.memory.read(at + 8, 4)),
            (index, id) => Err(format!("queue {queue}: used index {index}, id {id} instead of 1, 0")),
        }
    }

    fn expect(&self, what: &str, offset: u64, expected: &[u8]) -> Result<(), String> {
        match self.memory.read_bytes(offset, expected.len() as u64) {
            found if found == expected => Ok(()),
            found => Err(format!("{what} is {found:02x?} instead of {expected:02x?}")),
        }
    }
}

/// Asks for the serial number: `hostile-` and what the host's test made of it.
fn block(session: &Session) -> Result<(), String> {
    let data = session.data;
    session.memory.part(data, 64).fill(0xeeee_eeee_eeee_eeee);
    session.memory.write(data, 8, 8);
    session.memory.write(data + 8, 8, 0);
    session.submit(0, &[(data, 16, false), (data + 16, 20, true), (data + 36, 1, true)]);
    session.answer(0)?;
    session.expect("the status", data + 36, &[0])?;
    session.expect("the serial number", data + 16, b"hostile-")
}

fn rng(session: &Session) -> Result<(), String> {
    let data = session.data;
    session.memory.part(data, 64).fill(0);
    session.submit(0, &[(data, 64, true)]);
    // An empty answer is one too, and all zeros in 64 bytes are none.
    match session.answer(0)? {
        0 => Ok(()),
        64 if session.memory.read_bytes(data, 64).iter().all(|byte| *byte == 0) => Err("64 random zeros".into()),
        1..=64 => Ok(()),
        length => Err(format!("{length} bytes for 64")),
    }
}

fn console(session: &Session, count: u64) -> Result<(), String> {
    let text = format!("maru-guest: hostile console proof {count}\n");
    say(session, &text)
}

/// Prints on the virtio console.
fn say(session: &Session, text: &str) -> Result<(), String> {
    session.memory.write_bytes(session.data, text.as_bytes());
    session.submit(1, &[(session.data, text.len() as u32, false)]);
    session.answer(1).map(|_| ())
}

/// The last words, on a virtio console, when that is where the host listens.
pub fn say_on(device: &Device, arena: &Arena, text: &str) -> Result<(), String> {
    Session::start(device, arena.proof).and_then(|session| say(&session, text))
}

/// Sends a frame to everybody.
fn net(session: &Session) -> Result<(), String> {
    let data = session.data;
    session.memory.part(data, 128).fill(0);
    session.memory.write_bytes(data + 12, &[0xff; 6]);
    session.memory.write_bytes(data + 18, &[0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    session.submit(1, &[(data, 72, false)]);
    session.answer(1).map(|_| ())
}

/// Gives a page to the balloon, which empties it, and takes it back.
fn balloon(session: &Session, arena: &Arena) -> Result<(), String> {
    let (data, page) = (session.data, arena.data.part(0, 4096));
    page.fill(0xaaaa_aaaa_aaaa_aaaa);
    session.memory.write(data, 4, page.start() >> 12);
    session.submit(0, &[(data, 4, false)]);
    session.answer(0)?;
    session.submit(1, &[(data, 4, false)]);
    session.answer(1)?;
    match page.read(2048, 8) {
        0 => Ok(()),
        word => Err(format!("a page that was given away has {word:#x} in it")),
    }
}

/// Asks for a connection that nobody takes: a reset is the answer.
fn vsock(session: &Session) -> Result<(), String> {
    const REQUEST: u16 = 1;
    const RESET: u64 = 3;
    let (data, answer) = (session.data, session.data + 0x1000);
    let mut header = [0; 44];
    let cid = session.device.registers.read(session.device.specific, 8);
    header[0..8].copy_from_slice(&cid.to_le_bytes());
    header[8..16].copy_from_slice(&2u64.to_le_bytes());
    header[16..20].copy_from_slice(&7777u32.to_le_bytes());
    header[20..24].copy_from_slice(&7778u32.to_le_bytes());
    header[28..30].copy_from_slice(&1u16.to_le_bytes());
    header[30..32].copy_from_slice(&REQUEST.to_le_bytes());
    header[36..40].copy_from_slice(&0x1000u32.to_le_bytes());
    session.memory.write_bytes(data, &header);
    session.submit(0, &[(answer, 0x1000, true)]);
    session.submit(1, &[(data, 44, false)]);
    session.answer(1)?;
    session.answer(0)?;
    match (session.memory.read(answer + 30, 2), session.memory.read(answer + 20, 4)) {
        (RESET, 7777) => Ok(()),
        (op, port) => Err(format!("the answer is operation {op} to port {port}")),
    }
}

/// Asks for the state of the first block.
fn mem(session: &Session) -> Result<(), String> {
    const STATE: u64 = 3;
    let data = session.data;
    session.memory.part(data, 64).fill(0);
    session.memory.write(data, 2, STATE);
    session.memory.write(data + 8, 8, session.device.registers.read(session.device.specific + 16, 8));
    session.memory.write(data + 16, 2, 1);
    session.submit(0, &[(data, 24, false), (data + 32, 10, true)]);
    session.answer(0)?;
    // Acknowledged; the block is unplugged.
    session.expect("the answer", data + 32, &[0, 0])?;
    session.expect("the state", data + 40, &[1, 0])
}
