//! A small switch with one port and a cable that leads back into it: what a pair sends, the same pair receives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub const GET_FEATURES: u32 = 1;
pub const GET_VRING_BASE: u32 = 11;
pub const SEND_RARP: u32 = 19;

/// How the back end is to behave.
#[derive(Clone)]
pub struct Character {
    pub features: u64,
    pub protocol: u64,
    /// It falls silent when asked this.
    pub hangs_at: Option<u32>,
    /// It answers this with other bytes.
    pub garbles: Option<(u32, Vec<u8>)>,
    /// It counts the positions of rings wrongly.
    pub lies_about_positions: bool,
}

impl Default for Character {
    fn default() -> Character {
        // All of virtio-net's data path, EVENT_IDX, INDIRECT_DESC, VERSION_1, LOG_ALL, PROTOCOL_FEATURES.
        let features = 0x1_ffff | 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32;
        // MQ, LOG_SHMFD, RARP, REPLY_ACK, MTU, STATUS and some that the device does not know.
        Character { features, protocol: 0x1_ffff, hangs_at: None, garbles: None, lies_about_positions: false }
    }
}

/// What it saw.
#[derive(Default)]
pub struct Seen {
    pub requests: Mutex<Vec<(u32, Vec<u8>)>>,
    pub forwarded: AtomicU64,
}

/// A running back end; dropping it is its sudden death.
pub struct Backend {
    pub path: PathBuf,
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub fn start(path: &Path, character: Character) -> Backend {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Seen::default());
        let (stopped, seeing) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((socket, _)) => Port::new(socket, character.clone(), seeing.clone()).serve(&stopped),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Backend { path: path.into(), seen, stop, thread: Some(thread) }
    }

    pub fn saw(&self, request: u32) -> usize {
        self.seen.requests.lock().unwrap().iter().filter(|(code, _)| *code == request).count()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Ring {
    queue: Queue,
    base: u16,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
    logged: bool,
}

struct Port {
    socket: UnixStream,
    character: Character,
    seen: Arc<Seen>,
    memory: Option<GuestMemoryMmap>,
    /// Host address of the front end, guest address, length.
    translation: Vec<(u64, u64, u64)>,
    rings: BTreeMap<u32, Ring>,
    log: Option<GuestMemoryMmap>,
    logging: bool,
    silent: bool,
}

fn word(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().unwrap())
}

fn long(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().unwrap())
}

impl Port {
    fn new(socket: UnixStream, character: Character, seen: Arc<Seen>) -> Port {
        Port {
            socket,
            character,
            seen,
            memory: None,
            translation: vec![],
            rings: BTreeMap::new(),
            log: None,
            logging: false,
            silent: false,
        }
    }

    fn serve(mut self, stop: &AtomicBool) {
        self.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let mut header = [0; 12];
            let mut fds = [0 as RawFd; 32];
            let mut vectors = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }];
            // SAFETY: the vector is `header`, which any bytes may be written to.
            match unsafe { self.socket.recv_with_fds(&mut vectors, &mut fds) } {
                Ok((0, _)) => return,
                Ok((count, files)) => {
                    assert_eq!(count, 12, "the front end sends whole messages");
                    // SAFETY: the descriptors were just received, and nobody else owns them.
                    let files = fds[..files].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
                    let mut body = vec![0; word(&header, 8) as usize];
                    self.socket.set_read_timeout(None).unwrap();
                    self.socket.read_exact(&mut body).unwrap();
                    self.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                    if self.message(word(&header, 0), word(&header, 4), &body, files).is_err() {
                        return;
                    }
                }
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(_) => return,
            }
            self.forward();
        }
    }

    fn message(&mut self, code: u32, flags: u32, body: &[u8], mut files: Vec<File>) -> std::io::Result<()> {
        self.seen.requests.lock().unwrap().push((code, body.to_vec()));
        self.silent |= self.character.hangs_at == Some(code);
        if self.silent {
            return Ok(());
        }
        if let Some((_, garbage)) = self.character.garbles.as_ref().filter(|(request, _)| *request == code) {
            return self.socket.write_all(garbage);
        }
        let mut reply = None;
        let ring = (body.len() >= 8).then(|| word(body, 0)).filter(|_| (8..=18).contains(&code)).map(|index| {
            let fresh =
                || Ring { queue: Queue::new(256).unwrap(), base: 0, kick: None, call: None, enabled: false, logged: false };
            self.rings.entry(index).or_insert_with(fresh)
        });
        match (code, ring) {
            (GET_FEATURES, _) => reply = Some(self.character.features.to_le_bytes().to_vec()),
            (2, _) => self.logging = long(body, 0) & (1 << 26) != 0,
            (5, _) => self.map_memory(body, files),
            (6, _) => {
                let size = long(body, 0) as usize;
                let log = Some(FileOffset::new(files.remove(0), 0));
                self.log = Some(GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), size, log)]).unwrap());
                reply = Some(vec![]);
            }
            (8, Some(ring)) => ring.queue.set_size(word(body, 4) as u16),
            (9, Some(ring)) => {
                ring.logged = word(body, 4) & 1 != 0;
                let translate = |host: u64| {
                    let (start, guest, _) =
                        self.translation.iter().find(|(start, _, size)| (*start..start + size).contains(&host)).unwrap();
                    Some(host - start + guest)
                };
                let parts = [8, 24, 16].map(|at| translate(long(body, at)).unwrap());
                ring.queue.try_set_desc_table_address(GuestAddress(parts[0])).unwrap();
                ring.queue.try_set_avail_ring_address(GuestAddress(parts[1])).unwrap();
                ring.queue.try_set_used_ring_address(GuestAddress(parts[2])).unwrap();
            }
            (10, Some(ring)) => ring.base = word(body, 4) as u16,
            (GET_VRING_BASE, Some(ring)) => {
                ring.queue.set_ready(false);
                let lie = if self.character.lies_about_positions { 12345 } else { 0 };
                let position = u32::from(ring.queue.next_avail().wrapping_add(lie));
                reply = Some([&body[..4], &position.to_le_bytes()[..]].concat());
            }
            (12, Some(ring)) => {
                ring.kick = files.pop();
                ring.queue.set_next_avail(ring.base);
                // As real back ends do: the used ring says itself where it is.
                let used = ring.queue.used_idx(self.memory.as_ref().unwrap(), Ordering::Acquire).unwrap();
                ring.queue.set_next_used(used.0);
                ring.queue.set_ready(true);
            }
            (13, Some(ring)) => ring.call = files.pop(),
            (15, _) => reply = Some(self.character.protocol.to_le_bytes().to_vec()),
            (17, _) => reply = Some(8u64.to_le_bytes().to_vec()),
            (18, Some(ring)) => ring.enabled = word(body, 4) != 0,
            _ => {}
        }
        if reply.is_none() && flags & 8 != 0 {
            reply = Some(vec![0; 8]);
        }
        match reply {
            None => Ok(()),
            Some(reply) => {
                let header = [code.to_le_bytes(), 5u32.to_le_bytes(), (reply.len() as u32).to_le_bytes()].concat();
                self.socket.write_all(&[header, reply].concat())
            }
        }
    }

    fn map_memory(&mut self, body: &[u8], files: Vec<File>) {
        let mut ranges = Vec::new();
        self.translation.clear();
        for (n, file) in files.into_iter().enumerate() {
            let at = 8 + 32 * n;
            let (guest, size, host, offset) = (long(body, at), long(body, at + 8), long(body, at + 16), long(body, at + 24));
            ranges.push((GuestAddress(guest), size as usize, Some(FileOffset::new(file, offset))));
            self.translation.push((host, guest, size));
        }
        self.memory = Some(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap());
    }

    /// Moves frames from each transmit queue to the receive queue of its pair while that has buffers.
    fn forward(&mut self) {
        let Some(memory) = &self.memory else { return };
        for pair in 0..8 {
            let Some(mut transmit) = self.rings.remove(&(2 * pair + 1)) else { continue };
            let ready = |ring: &Ring| ring.queue.ready() && ring.enabled;
            if let Some(receive) = self.rings.get_mut(&(2 * pair)).filter(|ring| ready(ring) && ready(&transmit)) {
                while let Some(empty) = receive.queue.iter(memory).unwrap().next() {
                    let Some(full) = transmit.queue.iter(memory).unwrap().next() else {
                        receive.queue.go_to_previous_position();
                        break;
                    };
                    let mut frame = Vec::new();
                    let (to, from) = (empty.head_index(), full.head_index());
                    for descriptor in full {
                        let start = frame.len();
                        frame.resize(start + descriptor.len() as usize, 0);
                        memory.read_slice(&mut frame[start..], descriptor.addr()).unwrap();
                    }
                    let buffer = empty.writable().next().unwrap();
                    memory.write_slice(&frame, buffer.addr()).unwrap();
                    receive.queue.add_used(memory, to, frame.len() as u32).unwrap();
                    transmit.queue.add_used(memory, from, 0).unwrap();
                    if let Some(log) = self.log.as_ref().filter(|_| self.logging && receive.logged) {
                        for address in [buffer.addr().0, receive.queue.used_ring(), transmit.queue.used_ring()] {
                            let page = address / 4096;
                            let region = log.iter().next().unwrap();
                            let pointer = region.as_ptr().wrapping_add(page as usize / 8);
                            // SAFETY: the page is in guest memory, for which the log has a bit; both sides write it by atomics.
                            unsafe { std::sync::atomic::AtomicU8::from_ptr(pointer) }.fetch_or(1 << (page % 8), Ordering::AcqRel);
                        }
                    }
                    self.seen.forwarded.fetch_add(1, Ordering::Relaxed);
                    for ring in [&*receive, &transmit] {
                        if let Some(mut call) = ring.call.as_ref() {
                            call.write_all(&1u64.to_le_bytes()).unwrap();
                        }
                    }
                }
            }
            self.rings.insert(2 * pair + 1, transmit);
        }
    }
}
