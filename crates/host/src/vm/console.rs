//! The console of a VM, for all who look at it.
//!
//! ```text
//!  monitor ──socket──▶ kept bytes ──▶ View, one for each viewer: each at its own place
//!     ▲                                  │
//!     └──────────── one queue ◀──────────┘ what is typed
//! ```
//!
//! There is one connection to a monitor, made when its VM starts or is found, and what comes is kept for as long as this `marud` knows the
//! VM, over its starts. Nobody waits for a viewer: one that is too slow loses the oldest bytes, and is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// Bytes of output that are kept for a VM.
const KEPT_BYTES: usize = 256 * 1024;
/// Bytes that a viewer gets at once.
const PIECE_BYTES: usize = 16 * 1024;
/// What is typed and waits for the guest: pieces of one message each.
const TYPED_PIECES: usize = 16;

/// A VM's console.
pub struct Console {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

struct Inner {
    bytes: VecDeque<u8>,
    /// Bytes that ever came: the position behind the last of `bytes`.
    end: u64,
    /// Counts monitors.
    run: u64,
    /// Where the output of this run begins.
    run_start: u64,
    /// To the monitor of now.
    input: Option<mpsc::Sender<Vec<u8>>>,
    closed: bool,
}

/// What a viewer sees next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// What the guest printed.
    Bytes(Vec<u8>),
    /// So many bytes were printed faster than the viewer took them.
    Lost(u64),
    /// The VM runs: its console can be typed into.
    On,
    /// It does not.
    Off,
}

/// Where a viewer starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the oldest byte that is kept.
    Oldest,
    /// With what is printed from now on.
    Now,
}

impl Default for Console {
    fn default() -> Console {
        let inner = Inner { bytes: VecDeque::new(), end: 0, run: 0, run_start: 0, input: None, closed: false };
        Console { inner: Mutex::new(inner), changed: watch::Sender::new(()) }
    }
}

impl Console {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, edit: impl FnOnce(&mut Inner)) {
        edit(&mut self.inner());
        self.changed.send_replace(());
    }

    /// Takes the console of a VM's new monitor, or of one that was found, until its other end is closed.
    pub fn attach(self: &Arc<Self>, monitor: UnixStream) {
        let (mut output, mut input) = monitor.into_split();
        let (typed, mut to_type) = mpsc::channel::<Vec<u8>>(TYPED_PIECES);
        let mut run = 0;
        self.change(|inner| {
            inner.run += 1;
            inner.run_start = inner.end;
            run = inner.run;
            inner.input = Some(typed);
        });
        // A guest that does not take what is typed holds up nobody but those who type.
        tokio::spawn(async move {
            while let Some(bytes) = to_type.recv().await {
                if input.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let console = self.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; PIECE_BYTES];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                console.change(|inner| inner.put(&buffer[..count]));
            }
            console.change(|inner| {
                if inner.run == run {
                    inner.input = None;
                }
            });
        });
    }

    /// The VM was deleted: viewers go.
    pub fn close(&self) {
        self.change(|inner| {
            inner.closed = true;
            inner.input = None;
        });
    }

    /// All that is kept.
    pub fn log(&self) -> Vec<u8> {
        self.inner().bytes.iter().copied().collect()
    }

    /// Types; waits until there is room. What is typed while the VM is off is lost, as on a machine without power.
    pub async fn type_in(&self, bytes: Vec<u8>) {
        let input = self.inner().input.clone();
        if let Some(input) = input {
            // It can only have ended meanwhile.
            let _ = input.send(bytes).await;
        }
    }

    /// A new viewer.
    pub fn view(self: &Arc<Self>, from: From) -> View {
        let changed = self.changed.subscribe();
        let inner = self.inner();
        let position = if from == From::Now { inner.end } else { inner.start() };
        View { console: self.clone(), changed, position, told: None }
    }
}

impl Inner {
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(KEPT_BYTES);
        self.bytes.drain(..excess);
        self.end += bytes.len() as u64;
    }
}

/// One viewer.
pub struct View {
    console: Arc<Console>,
    changed: watch::Receiver<()>,
    /// Bytes before this were seen, or lost.
    position: u64,
    /// Which run, and whether it goes on, was told last.
    told: Option<(u64, bool)>,
}

impl View {
    /// What comes next; nothing when the VM was deleted. Nothing is lost when the waiting is given up.
    pub async fn next(&mut self) -> Option<Seen> {
        loop {
            self.changed.mark_unchanged();
            if let Some(next) = self.look() {
                return next;
            }
            self.changed.changed().await.ok()?;
        }
    }

    fn look(&mut self) -> Option<Option<Seen>> {
        let inner = self.console.inner();
        let is_on = (inner.run, inner.input.is_some());
        if inner.closed {
            return Some(None);
        }
        // First whether it runs at all. Then the start of a run comes before its first bytes, and its end behind the last.
        let told_run = self.told.map(|(run, _)| run);
        let is_due = self.position == inner.end || (told_run != Some(inner.run) && self.position >= inner.run_start);
        if told_run.is_none() || (self.told != Some(is_on) && is_due) {
            self.told = Some(is_on);
            return Some(Some(if is_on.1 { Seen::On } else { Seen::Off }));
        }
        let missed = inner.start().saturating_sub(self.position);
        if missed > 0 {
            self.position += missed;
            return Some(Some(Seen::Lost(missed)));
        }
        let skip = (self.position - inner.start()) as usize;
        let limit = match inner.run_start.checked_sub(self.position) {
            Some(left @ 1..) => PIECE_BYTES.min(left as usize),
            _ => PIECE_BYTES,
        };
        let piece: Vec<u8> = inner.bytes.iter().skip(skip).take(limit).copied().collect();
        self.position += piece.len() as u64;
        (!piece.is_empty()).then_some(Some(Seen::Bytes(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bytes(view: &mut View, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            match view.next().await {
                Some(Seen::Bytes(piece)) => all.extend(piece),
                other => panic!("{other:?} after {} bytes", all.len()),
            }
        }
        all
    }

    #[tokio::test]
    async fn several_see_the_same_each_may_type_and_the_log_goes_on_over_a_restart() {
        let console = Arc::new(Console::default());
        let mut early = console.view(From::Oldest);
        assert_eq!(early.next().await, Some(Seen::Off));
        let (mut monitor, ours) = UnixStream::pair().unwrap();
        console.attach(ours);
        monitor.write_all(b"login: ").await.unwrap();
        assert_eq!(early.next().await, Some(Seen::On));
        assert_eq!(bytes(&mut early, 7).await, b"login: ");
        let mut late = console.view(From::Oldest);
        assert_eq!(late.next().await, Some(Seen::On));
        assert_eq!(bytes(&mut late, 7).await, b"login: ");
        console.type_in(b"root\r".to_vec()).await;
        let mut typed = [0; 5];
        monitor.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\r");
        drop(monitor);
        assert_eq!(early.next().await, Some(Seen::Off));
        console.type_in(b"lost".to_vec()).await;
        let (mut monitor, ours) = UnixStream::pair().unwrap();
        console.attach(ours);
        assert_eq!(early.next().await, Some(Seen::On));
        monitor.write_all(b"again").await.unwrap();
        assert_eq!(bytes(&mut early, 5).await, b"again");
        assert_eq!(console.log(), b"login: again");
        // One that saw nothing of the restart is told before what came after it.
        assert_eq!(late.next().await, Some(Seen::On));
        assert_eq!(bytes(&mut late, 5).await, b"again");
        let mut new = console.view(From::Now);
        console.close();
        assert_eq!((new.next().await, early.next().await), (None, None));
    }

    #[tokio::test]
    async fn who_does_not_look_holds_up_nobody_and_is_told_what_is_missing() {
        let console = Arc::new(Console::default());
        let mut slow = console.view(From::Oldest);
        let (mut monitor, ours) = UnixStream::pair().unwrap();
        console.attach(ours);
        let mut quick = console.view(From::Oldest);
        assert_eq!(quick.next().await, Some(Seen::On));
        let printed: Vec<u8> = (0..KEPT_BYTES + 1000).map(|number| (number % 251) as u8).collect();
        let all = printed.clone();
        tokio::spawn(async move {
            monitor.write_all(&all).await.unwrap();
            std::future::pending::<()>().await;
        });
        assert!(bytes(&mut quick, printed.len()).await == printed);
        assert_eq!(slow.next().await, Some(Seen::On));
        assert_eq!(slow.next().await, Some(Seen::Lost(1000)));
        assert!(bytes(&mut slow, KEPT_BYTES).await == printed[1000..]);
    }

    #[tokio::test]
    async fn a_guest_that_takes_nothing_makes_only_those_wait_who_type() {
        let console = Arc::new(Console::default());
        let (mut monitor, ours) = UnixStream::pair().unwrap();
        console.attach(ours);
        let mut view = console.view(From::Oldest);
        assert_eq!(view.next().await, Some(Seen::On));
        let typing = console.clone();
        let typist = tokio::spawn(async move {
            for _ in 0..100 {
                typing.type_in(vec![b'x'; 65536]).await;
            }
        });
        monitor.write_all(b"output").await.unwrap();
        assert_eq!(bytes(&mut view, 6).await, b"output");
        assert!(!typist.is_finished());
        drop(monitor);
        typist.await.unwrap();
    }
}
