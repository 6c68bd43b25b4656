//! What a host does whose VM goes to another one with its files.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, Response};
use disk::tool::ToolError;
use hyper::body::Incoming;
use store::{Outcome, Transaction};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::files::{self, Use};
use super::{Asked, Place, Size, called_off, is_to_go, receive, stream};
use crate::cluster::placements;
use crate::peers::{self, PeerError, Peers};
use crate::records::{Cause, CopiedFile, CopyOperation, CopyPhase, CopyRecord, EventRecord, FileRef, TreeRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::manifest::sha256;
use crate::vm::work::{Progress, WorkError};
use crate::vm::{Surroundings, checkpoints, disks};

/// Bytes that are handed to the connection at once, and how many times that may wait in memory.
const PART: usize = 256 << 10;
const PARTS: usize = 8;
/// How long the other host may take nothing of what is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to compare files that it has already with what is asked for: it reads them.
const PLAN: Duration = Duration::from_secs(1800);
/// How often it is looked whether someone wants the work to end.
const LOOK: Duration = Duration::from_millis(500);
/// How long what the other host does not know, or is about to remove, is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_ANSWER: usize = 4 << 20;

/// Everything that is needed to talk to the other host.
struct Sender<'a> {
    state: &'a State,
    peers: &'a Peers,
    runtime: Handle,
    address: SocketAddr,
    to: &'a str,
    progress: &'a Progress,
}

/// What a VM has of files that only this host reaches.
struct Files {
    vm: VmRecord,
    tree: TreeRecord,
    local: Vec<(FileRef, Use, PathBuf)>,
    sizes: Vec<Size>,
}

impl Files {
    fn find(state: &State, surroundings: &Surroundings, vm: Uuid) -> Result<Files, WorkError> {
        let name = vm.to_string();
        let vm = state.read::<VmRecord>(&name)?.ok_or_else(|| StateError::Gone(format!("the VM {name}")))?.record;
        let tree = checkpoints::tree(state, vm.id)?;
        let (mut local, mut sizes) = (Vec::new(), Vec::new());
        for (file, how) in files::local(&vm, &tree, &placements::shared_volumes(state)?) {
            let path = surroundings.volumes.find(&file)?;
            let metadata = path.metadata().map_err(|error| {
                Cause::new("file", format!("{file} cannot be looked at: {error}"), "mend that, and move the VM again")
            })?;
            sizes.push(Size { bytes: metadata.len(), allocated: (metadata.blocks() * 512).min(metadata.len()) });
            local.push((file, how, path));
        }
        if !local.is_empty() {
            files::check(&vm, &tree)?;
        }
        Ok(Files { vm, tree, local, sizes })
    }

    fn asked(&self, more: u64, compare: bool) -> Asked {
        Asked { vm: self.vm.id, sizes: self.sizes.clone(), more, compare }
    }
}

/// Asks the host that a VM is to go to whether it could take its files, before the VM is saved for that. Nothing is done if it has none to be
/// copied.
pub fn ask(state: &State, surroundings: &Surroundings, runtime: &Handle, vm: Uuid, to: &str) -> Result<(), WorkError> {
    let found = Files::find(state, surroundings, vm)?;
    if found.local.is_empty() {
        return Ok(());
    }
    check_chains(state, surroundings, &found)?;
    let progress = Progress::default();
    let sender = Sender::new(state, surroundings, runtime, to, &progress)?;
    sender.plan(&found.asked(found.vm.memory_bytes, false)).map(drop)
}

/// Copies the files of a VM that does not run. They are there, and still nobody's, when this is done; if it fails, nothing of them is left.
pub fn copy(
    state: &State,
    surroundings: &Surroundings,
    runtime: &Handle,
    vm: Uuid,
    wanted: &CopyOperation,
    progress: &Progress,
) -> Result<Option<EventRecord>, WorkError> {
    let done = send(state, surroundings, runtime, vm, wanted, progress);
    if done.is_err()
        && let Err(error) =
            super::open(state, vm).and_then(|open| open.map_or(Ok(()), |open| super::call_off(state, open.record.id)))
    {
        tracing::warn!(%vm, "what was copied of it is removed later: {error}");
    }
    done.map(|()| None)
}

fn send(
    state: &State,
    surroundings: &Surroundings,
    runtime: &Handle,
    vm: Uuid,
    wanted: &CopyOperation,
    progress: &Progress,
) -> Result<(), WorkError> {
    let name = vm.to_string();
    let moving = is_to_go(state, vm, &wanted.to)?.filter(|moving| moving.record.volume == wanted.volume);
    let moving = moving.ok_or_else(called_off)?;
    let found = Files::find(state, surroundings, vm)?;
    if let Some(open) = super::open(state, vm)? {
        let same = open.record.files.iter().map(|file| &file.from).eq(found.local.iter().map(|(file, ..)| file));
        if open.record.phase == CopyPhase::Whole && open.record.to == wanted.to && same && !progress.is_cancelled() {
            // An earlier marud got as far as this.
            return Ok(());
        }
        super::call_off(state, open.record.id)?;
    }
    check_chains(state, surroundings, &found)?;
    let sender = Sender::new(state, surroundings, runtime, &wanted.to, progress)?;
    let places = sender.plan(&found.asked(0, true))?;
    if places.len() != found.local.len() {
        return Err(called_off().into());
    }
    let files = sender.compare(&found, places)?;
    let record = CopyRecord {
        id: Uuid::now_v7(),
        vm,
        from: state.own_host().unwrap_or_default().into(),
        to: wanted.to.clone(),
        files,
        phase: CopyPhase::Copying,
    };
    let id = record.id.to_string();
    let begun = Transaction::new().if_none::<CopyRecord>(&id).if_still(&name, &moving).write(&id, &record);
    if let Outcome::Conflict { .. } = state.commit(&begun)? {
        return Err(called_off().into());
    }
    sender.send(&record, &found)
}

/// What a disk is made of and is not known as one of its files would stay here.
fn check_chains(state: &State, surroundings: &Surroundings, found: &Files) -> Result<(), WorkError> {
    let known = files::all(&found.vm, &found.tree);
    let shared = placements::shared_volumes(state)?;
    let mut disks = disks::all_of(&found.vm, &found.tree);
    let mut seen = BTreeSet::new();
    disks.retain(|disk| seen.insert(disk.file.clone()));
    let knows = |file: &FileRef| known.contains_key(file) || shared.contains(&file.volume);
    Ok(files::check_chains(&disks, &surroundings.volumes, knows)?)
}

impl<'a> Sender<'a> {
    fn new(
        state: &'a State,
        surroundings: &'a Surroundings,
        runtime: &Handle,
        to: &'a str,
        progress: &'a Progress,
    ) -> Result<Sender<'a>, WorkError> {
        let unknown = || Cause::new("no-host", format!("it is not known where {to} is"), "see `maru cluster status`");
        let address = peers::address(state, to)?.ok_or_else(unknown)?;
        let peers = surroundings.peers.as_ref().ok_or_else(unknown)?;
        Ok(Sender { state, peers, runtime: runtime.clone(), address, to, progress })
    }

    fn silent(&self, error: &PeerError) -> WorkError {
        let message = format!("{} cannot be asked: {}", self.to, vmm::error_chain(error));
        Cause::new("host-silent", message, "see whether the hosts reach each other, and move the VM again").into()
    }

    fn stuck(&self) -> WorkError {
        let message = format!("{} takes nothing any more", self.to);
        Cause::new("host-silent", message, "see whether the hosts reach each other, and move the VM again").into()
    }

    /// Asks where the files are to be. What the other host does not know yet, it is asked again.
    fn plan(&self, asked: &Asked) -> Result<Vec<Place>, WorkError> {
        let until = Instant::now() + AGAIN;
        loop {
            let body = serde_json::to_vec(asked).unwrap_or_default();
            let peers = self.peers.clone();
            let address = self.address;
            let request = async move { peers.ask(address, Method::POST, "/copies", body.into()).await };
            // Nothing is read for it if nothing is to be compared.
            let limit = if asked.compare { PLAN } else { PATIENCE };
            match self.wait(self.runtime.spawn(request), limit).and_then(|answer| self.read(answer)) {
                Ok(json) => return serde_json::from_slice(&json).map_err(|error| self.strange(&error)),
                Err(WorkError::Failed(cause)) if may_pass(&cause) && Instant::now() < until => {
                    tracing::debug!(vm = %asked.vm, "asks {} again: {}", self.to, cause.message);
                    sleep(LOOK);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn strange(&self, error: &serde_json::Error) -> WorkError {
        let message = format!("the answer of {} is not understood: {error}", self.to);
        Cause::new("host-strange", message, "have both hosts run the same version of Maru").into()
    }

    /// Waits for an answer, unless someone wants the work to end.
    fn wait(
        &self,
        mut answer: tokio::task::JoinHandle<Result<Response<Incoming>, PeerError>>,
        limit: Duration,
    ) -> Result<Response<Incoming>, WorkError> {
        let until = Instant::now() + limit;
        loop {
            // A timer needs the runtime.
            match self.runtime.block_on(async { timeout(LOOK, &mut answer).await }) {
                Ok(Ok(Ok(answer))) => return Ok(answer),
                Ok(Ok(Err(error))) => return Err(self.silent(&error)),
                Ok(Err(_)) => return Err(StateError::Ending.into()),
                Err(_) if self.progress.is_cancelled() => {
                    answer.abort();
                    return Err(WorkError::Cancelled);
                }
                Err(_) if Instant::now() >= until => {
                    answer.abort();
                    return Err(self.stuck());
                }
                Err(_) => {}
            }
        }
    }

    /// The body of an answer, or why the other host refuses.
    fn read(&self, answer: Response<Incoming>) -> Result<Bytes, WorkError> {
        let status = answer.status();
        let body = Body::new(answer.into_body());
        let read = self.runtime.block_on(async { timeout(PATIENCE, to_bytes(body, MAX_ANSWER)).await });
        let Ok(Ok(bytes)) = read else { return Err(self.stuck()) };
        if status.is_success() {
            return Ok(bytes);
        }
        let error: api::Error = serde_json::from_slice(&bytes).map_err(|error| self.strange(&error))?;
        Err(Cause { code: error.code, message: format!("{}: {}", self.to, error.message), way_out: error.way_out }.into())
    }

    /// What is to be sent, when files that are there already were compared with those here.
    fn compare(&self, found: &Files, places: Vec<Place>) -> Result<Vec<CopiedFile>, WorkError> {
        let compared = places.iter().zip(&found.sizes).map(|(place, size)| if place.sha256.is_some() { size.bytes } else { 0 });
        let sent = found.sizes.iter().map(|size| size.allocated);
        // How much of it need not be sent is not known yet.
        self.progress.begin(compared.sum::<u64>() + sent.sum::<u64>());
        let mut files = Vec::new();
        for (((from, how, path), size), place) in found.local.iter().zip(&found.sizes).zip(places) {
            let there = match &place.sha256 {
                Some(theirs) => self.progress.step(size.bytes, |job| sha256(path, job))? == *theirs,
                None => false,
            };
            let (to, owned) = match (place.sha256.is_some() && !there, place.otherwise) {
                (false, _) => (place.to, place.owned),
                (true, Some(otherwise)) => (otherwise, true),
                (true, None) => return Err(receive::taken(&place.to).into()),
            };
            let mode = path.metadata().map_or(0o600, |metadata| metadata.mode() & 0o777);
            let goes = *how != Use::Reads;
            files.push(CopiedFile {
                from: from.clone(),
                to,
                bytes: size.bytes,
                allocated: size.allocated,
                mode,
                there,
                owned,
                goes,
            });
        }
        Ok(files)
    }

    /// Sends the files, and waits until they are durable there.
    fn send(&self, record: &CopyRecord, found: &Files) -> Result<(), WorkError> {
        let (parts, receiver) = mpsc::channel::<Bytes>(PARTS);
        let body = futures_util::stream::unfold(receiver, |mut receiver| async {
            let part = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(part), receiver))
        });
        let (peers, address, path) = (self.peers.clone(), self.address, format!("/copies/{}", record.id));
        let answer = self.runtime.spawn(async move { peers.ask(address, Method::PUT, &path, Body::from_stream(body)).await });
        let part = Vec::with_capacity(PART);
        let mut out = Outgoing { runtime: &self.runtime, parts, part, is_taken: true, progress: self.progress };
        let mut sent = Ok(());
        for (file, (.., path)) in record.files.iter().zip(&found.local) {
            let send = |job: &_| if file.there { Ok(()) } else { stream::send(path, file.allocated, &mut out, job) };
            sent = self.progress.step(file.allocated, send);
            if sent.is_err() {
                break;
            }
        }
        let sent = sent.and_then(|()| {
            out.flush().map_err(|source| ToolError::Io { path: PathBuf::new(), action: "sending it", source }.into())
        });
        // What was not sent to its end is known by that.
        let is_taken = out.is_taken;
        drop(out);
        match sent {
            Err(error) if is_taken => {
                answer.abort();
                Err(error)
            }
            // The other host knows better why it does not take more.
            Err(error) => Err(self.wait(answer, PATIENCE).and_then(|answer| self.read(answer)).err().unwrap_or(error)),
            Ok(()) => match self.wait(answer, PLAN).and_then(|answer| self.read(answer)) {
                Ok(_) => Ok(()),
                // The connection may have broken off behind the last step.
                Err(error) => match self.state.read::<CopyRecord>(&record.id.to_string())? {
                    Some(stored) if stored.record.phase == CopyPhase::Whole => Ok(()),
                    _ => Err(error),
                },
            },
        }
    }
}

/// Whether it may be another answer in a moment: the other host has not heard of the move, or removes what an earlier copy left.
fn may_pass(cause: &Cause) -> bool {
    matches!(cause.code.as_str(), "called-off" | "file-exists")
}

/// A connection that takes what is written, part by part; a wish that the work end is heard while it takes nothing.
struct Outgoing<'a> {
    runtime: &'a Handle,
    parts: mpsc::Sender<Bytes>,
    part: Vec<u8>,
    /// The other end takes what is written.
    is_taken: bool,
    progress: &'a Progress,
}

impl Outgoing<'_> {
    fn pass(&mut self) -> io::Result<()> {
        let passed = self.pass_part();
        self.is_taken = passed.is_ok();
        passed
    }

    fn pass_part(&mut self) -> io::Result<()> {
        let part = Bytes::from(std::mem::replace(&mut self.part, Vec::with_capacity(PART)));
        let until = Instant::now() + PATIENCE;
        loop {
            let place = self.runtime.block_on(async { timeout(LOOK, self.parts.reserve()).await });
            match place {
                Ok(Ok(place)) => {
                    place.send(part);
                    return Ok(());
                }
                Ok(Err(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) if self.progress.is_cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
                Err(_) if Instant::now() >= until => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => {}
            }
        }
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = buffer.len().min(PART - self.part.len());
        self.part.extend_from_slice(&buffer[..length]);
        if self.part.len() == PART {
            self.pass()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() { Ok(()) } else { self.pass() }
    }
}
