//! Requests on an image.
//!
//! ```text
//!   start ─▶ map ─┬─ one place in a file ──▶ the request's own slot does it, as on a raw disk ─┐
//!                 ├─ several places ───────▶ slots for parts, some at a time ──────────────────┼─▶ tickets back ─▶ done
//!                 ├─ in no file ───────────▶ (memory is zeroed) ───────────────────────────────┘        │ durable:
//!                 └─ tables are full ──▶ wait for a commit ──▶ map again                     flush, or wait for a commit ─▶ done
//! ```

use std::sync::Arc;

use vhdx::{Extent, MapError, Mapping, Place, Ticket};

use super::commit::{MAX_STEPS, Running};
use super::copy::{Copies, Copy};
use super::pieces::{Cursor, Piece, Search, fill_zeros, push};
use super::*;
use crate::commits::{Commits, Goal, Target};
use crate::wake::Wake;

/// Parts of requests that can be under way in one engine, and of one request.
const MAX_PARTS: usize = 64;
const MAX_PARTS_OF_ONE: usize = 16;
/// How many more slots an image needs than a raw disk.
pub(super) const EXTRA_SLOTS: u32 = (MAX_PARTS + MAX_STEPS) as u32;
/// How often a request waits for tables to be written. Others may fill them again meanwhile, but not for ever.
const MAX_TRIES: u16 = 1000;
/// Pieces for which a request keeps room.
const KEPT_PIECES: usize = 64;

/// What an engine needs for an image.
pub(super) struct ImageSide {
    /// By layer: the image, then its parents.
    pub mappings: Box<[Arc<dyn Mapping>]>,
    pub commits: Arc<Commits>,
    pub wake: Arc<Wake>,
    /// By tag.
    requests: Box<[Request]>,
    extents: Vec<Extent>,
    parts: Pool,
    pub steps: Pool,
    /// With copy-on-read.
    pub copies: Option<Copies>,
    /// Requests of which no part is under way, because there was no slot for it.
    starved: VecDeque<u16>,
    pub waiting: Vec<(Target, u16)>,
    pub over: Vec<(u16, Goal, Result<(), IoError>)>,
    /// The commit that this engine does.
    pub running: Option<Running>,
    /// The engine is being dropped: what is under way ends, nothing begins.
    pub is_closing: bool,
}

/// Slots that belong to no tag.
pub(super) struct Pool {
    free: Vec<u32>,
    made: usize,
    limit: usize,
}

impl Pool {
    fn new(limit: usize) -> Pool {
        Pool { free: Vec::new(), made: 0, limit }
    }

    pub fn take(&mut self, slots: &mut Vec<Slot>) -> Option<u32> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        if self.made == self.limit {
            return None;
        }
        self.made += 1;
        slots.push(Slot::idle());
        Some(slots.len() as u32 - 1)
    }

    pub fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }
}

/// A request on an image, beside what its slot knows.
#[derive(Default)]
struct Request {
    phase: Option<Phase>,
    /// In the virtual disk.
    offset: u64,
    length: u64,
    is_durable: bool,
    /// Its data is done, and is being made durable.
    is_syncing: bool,
    tries: u16,
    tickets: Vec<(u16, Ticket)>,
    pieces: Vec<Piece>,
    next: usize,
    in_flight: usize,
    cursor: Cursor,
    error: Option<IoError>,
    /// What is read goes to the image, too.
    copy: Option<Copy>,
}

impl Request {
    fn phase(&self) -> Phase {
        self.phase.unwrap_or(Phase::Sync)
    }

    fn is_transfer(&self) -> bool {
        matches!(self.phase, Some(Phase::Read | Phase::Write))
    }

    fn give_tickets_back(&mut self, mappings: &[Arc<dyn Mapping>], result: Result<(), IoError>) {
        let is_change = self.phase != Some(Phase::Read);
        for (layer, ticket) in self.tickets.drain(..) {
            let mapping = &mappings[usize::from(layer)];
            if is_change && result.is_ok() { mapping.complete(ticket) } else { mapping.finish(ticket) }
        }
    }
}

impl ImageSide {
    pub fn new(disk: &Disk, depth: u16, wake: Arc<Wake>) -> Result<Option<ImageSide>, EngineError> {
        let Some(image) = disk.image() else { return Ok(None) };
        let Some(own) = image.tables() else { return Err(EngineError::Unlocked(disk.path().to_owned())) };
        let parents = image.parents().iter().map(|parent| parent.tables.clone() as Arc<dyn Mapping>);
        image.commits.join(wake.clone());
        let copies = image.ranges.clone().map(Copies::new);
        let tags = depth + copies.as_ref().map_or(0, Copies::tags);
        Ok(Some(ImageSide {
            mappings: std::iter::once(own as Arc<dyn Mapping>).chain(parents).collect(),
            commits: image.commits.clone(),
            wake,
            requests: (0..tags).map(|_| Request::default()).collect(),
            copies,
            extents: Vec::new(),
            parts: Pool::new(MAX_PARTS),
            steps: Pool::new(MAX_STEPS),
            starved: VecDeque::new(),
            waiting: Vec::new(),
            over: Vec::new(),
            running: None,
            is_closing: false,
        }))
    }
}

impl ImageSide {
    /// How many tags there are beyond the callers'.
    pub fn own_tags(&self) -> u16 {
        self.copies.as_ref().map_or(0, Copies::tags)
    }
}

impl Drop for ImageSide {
    fn drop(&mut self) {
        self.commits.leave(&self.wake);
    }
}

impl Engine {
    /// Starts what the slot of a tag was prepared for.
    pub(super) fn start_image(&mut self, tag: u16) -> Result<(), IoError> {
        let Some(image) = self.image.as_deref_mut() else { return Ok(()) };
        let slot = &self.slots[usize::from(tag)];
        let request = &mut image.requests[usize::from(tag)];
        request.phase = Some(slot.phase);
        (request.offset, request.length, request.is_durable) = (slot.offset, slot.left, slot.durable);
        (request.is_syncing, request.tries) = (false, 0);
        self.map(tag)
    }

    /// Asks where a request's data is, and starts to move it.
    pub(super) fn map(&mut self, tag: u16) -> Result<(), IoError> {
        let Some(image) = self.image.as_deref_mut() else { return Ok(()) };
        let slot = &mut self.slots[usize::from(tag)];
        let request = &mut image.requests[usize::from(tag)];
        let mapping = &*image.mappings[0];
        let extents = &mut image.extents;
        extents.clear();
        let phase = request.phase();
        let mapped = match phase {
            Phase::Read => mapping.map_read(request.offset, request.length, extents),
            Phase::Write => mapping.map_write(request.offset, request.length, extents),
            Phase::Punch { fallback: Fallback::Nothing } => mapping.map_discard(request.offset, request.length, extents),
            _ => mapping.map_zero(request.offset, request.length, extents),
        };
        match mapped {
            Ok(ticket) => request.tickets.push((0, ticket)),
            Err(MapError::CommitFirst) if request.tries < MAX_TRIES => {
                request.tries += 1;
                self.wait_for_commit(tag, Goal::Ended);
                return Ok(());
            }
            Err(error) => return Err(IoError::from(&error)),
        }
        let piece = match extents[..] {
            [Extent { length, place: Place::File(at) }] if length == request.length || !request.is_transfer() => {
                Some(Piece { start: 0, length, layer: 0, at })
            }
            _ => None,
        };
        let is_synced = request.is_durable && phase == Phase::Write && mapping.is_clean();
        match piece {
            Some(piece) => {
                slot.durable = is_synced;
                self.move_all(tag, piece);
                Ok(())
            }
            None => self.split(tag),
        }
    }

    /// A request whose data is in one piece.
    fn move_all(&mut self, tag: u16, piece: Piece) {
        let Some(image) = self.image.as_deref_mut() else { return };
        let slot = &mut self.slots[usize::from(tag)];
        let request = &image.requests[usize::from(tag)];
        slot.owner = Owner::Request;
        slot.phase = request.phase();
        (slot.layer, slot.offset, slot.left) = (piece.layer, piece.at, piece.length);
        if request.is_transfer() {
            slot.choose_route(self.files[usize::from(piece.layer)]);
        }
        self.issue(u32::from(tag));
    }

    /// A request whose data is in several pieces, or in none.
    #[cold]
    fn split(&mut self, tag: u16) -> Result<(), IoError> {
        let Some(image) = self.image.as_deref_mut() else { return Ok(()) };
        let slot = &mut self.slots[usize::from(tag)];
        let request = &mut image.requests[usize::from(tag)];
        let length = request.length;
        slot.durable = false;
        (request.next, request.in_flight, request.cursor, request.error) = (0, 0, Cursor::default(), None);
        let mut extents = std::mem::take(&mut image.extents);
        let found = find_pieces(request, &image.mappings, &mut extents);
        image.extents = extents;
        if let Err(error) = found {
            request.give_tickets_back(&image.mappings, Err(error));
            request.pieces.clear();
            return Err(error);
        }
        if request.phase == Some(Phase::Read) {
            if let Some(copies) = &mut image.copies {
                request.copy = copies.intercept(request.offset, length, &request.pieces, slot);
            }
            let (mut cursor, mut end) = (Cursor::default(), 0);
            for (start, length) in request.pieces.iter().map(|piece| (piece.start, piece.length)).chain([(length, 0)]) {
                // SAFETY: the caller promised that the segments are writable until the request is reported; or they are a buffer of ours.
                unsafe { fill_zeros(&slot.segments, &mut cursor, end, start - end) };
                end = start + length;
            }
        }
        match request.pieces[..] {
            [piece] if piece.length == length || !request.is_transfer() => {
                request.pieces.clear();
                self.move_all(tag, piece);
            }
            _ => {
                if let Some(event) = self.start_parts(tag) {
                    self.ended.push_back(event);
                }
            }
        }
        Ok(())
    }

    /// Starts as many parts of a request as there are slots for; an event if all are done.
    fn start_parts(&mut self, tag: u16) -> Option<Event> {
        while let Some(number) = self.next_part(tag) {
            self.issue(number);
        }
        let request = &self.image.as_deref()?.requests[usize::from(tag)];
        let is_done = request.in_flight == 0 && request.next == request.pieces.len();
        let result = request.error.map_or(Ok(()), Err);
        if is_done { self.data_ended(tag, result) } else { None }
    }

    /// The slot of a request's next part, if it may be started now.
    fn next_part(&mut self, tag: u16) -> Option<u32> {
        let image = self.image.as_deref_mut()?;
        let request = &mut image.requests[usize::from(tag)];
        let piece = *request.pieces.get(request.next)?;
        if request.in_flight == MAX_PARTS_OF_ONE || image.is_closing {
            return None;
        }
        let Some(number) = image.parts.take(&mut self.slots) else {
            if request.in_flight == 0 {
                image.starved.push_back(tag);
            }
            return None;
        };
        request.next += 1;
        request.in_flight += 1;
        let mut segments = std::mem::take(&mut self.slots[number as usize].segments);
        if request.is_transfer() {
            let all = &self.slots[usize::from(tag)].segments;
            request.cursor.take(all, piece.start, piece.length, |part| segments.push(part));
        }
        let slot = &mut self.slots[number as usize];
        (slot.segments, slot.first) = (segments, 0);
        (slot.owner, slot.phase, slot.route, slot.durable) = (Owner::Part(tag), request.phase(), Route::Plain, false);
        (slot.layer, slot.offset, slot.left) = (piece.layer, piece.at, piece.length);
        if request.is_transfer() {
            slot.choose_route(self.files[usize::from(piece.layer)]);
        }
        Some(number)
    }

    /// A slot's work is done; an event if a request has ended by it.
    pub(super) fn image_slot_ended(&mut self, number: u32, result: Result<(), IoError>) -> Option<Event> {
        match self.slots[number as usize].owner {
            Owner::Request => self.data_ended(number as u16, result),
            Owner::Commit => {
                self.step_ended(number, result);
                None
            }
            Owner::Part(tag) => {
                self.slots[number as usize].clear();
                let image = self.image.as_deref_mut()?;
                image.parts.give_back(number);
                let request = &mut image.requests[usize::from(tag)];
                request.in_flight -= 1;
                if let Err(error) = result {
                    request.error.get_or_insert(error);
                    request.next = request.pieces.len();
                }
                let event = self.start_parts(tag);
                if let Some(tag) = self.image.as_deref_mut()?.starved.pop_front() {
                    let other = self.start_parts(tag);
                    self.ended.extend(other);
                }
                event
            }
        }
    }

    /// A request's data is where it belongs, or could not be moved.
    fn data_ended(&mut self, tag: u16, result: Result<(), IoError>) -> Option<Event> {
        let image = self.image.as_deref_mut()?;
        let request = &mut image.requests[usize::from(tag)];
        if request.is_syncing {
            return Some(self.end(tag, result));
        }
        request.give_tickets_back(&image.mappings, result);
        request.pieces.clear();
        request.pieces.shrink_to(KEPT_PIECES);
        if let Some(copy) = request.copy.take() {
            self.read_ended(copy, result);
            return Some(self.end(tag, result));
        }
        let slot = &self.slots[usize::from(tag)];
        let is_synced = slot.durable && image.mappings[0].is_clean();
        if result.is_ok() && request.is_durable && !is_synced && !image.is_closing {
            self.flush_image(tag);
            return None;
        }
        Some(self.end(tag, result))
    }

    /// Makes what is complete durable, for this request.
    pub(super) fn flush_image(&mut self, tag: u16) {
        let Some(image) = self.image.as_deref_mut() else { return };
        image.requests[usize::from(tag)].is_syncing = true;
        if image.mappings[0].is_clean() {
            let slot = &mut self.slots[usize::from(tag)];
            (slot.owner, slot.phase, slot.layer) = (Owner::Request, Phase::Sync, 0);
            self.issue(u32::from(tag));
        } else {
            self.wait_for_commit(tag, Goal::Durable);
        }
    }

    /// Ends what this engine does for the image, before it is dropped.
    pub(super) fn close_image(&mut self) {
        let Some(image) = self.image.as_deref_mut() else { return };
        image.is_closing = true;
        image.waiting.clear();
        while self.outstanding > 0 {
            self.ring.wait();
            while let Some(reaped) = self.ring.pop() {
                if reaped.user_data & (WATCH | WAKE | TIMER) == 0 {
                    self.completed(reaped);
                }
            }
        }
        let Some(image) = self.image.as_deref_mut() else { return };
        for request in &mut image.requests {
            request.give_tickets_back(&image.mappings, Err(IoError::Os(libc::ECANCELED)));
        }
    }
}

/// Where a request's data is, by the extents that its own image gave.
fn find_pieces(request: &mut Request, mappings: &[Arc<dyn Mapping>], extents: &mut Vec<Extent>) -> Result<(), IoError> {
    let count = extents.len();
    let mut start = 0;
    for index in 0..count {
        let Extent { length, place } = extents[index];
        match place {
            Place::File(at) => push(&mut request.pieces, Piece { start, length, layer: 0, at }),
            _ if request.phase != Some(Phase::Read) => return Err(IoError::Damaged),
            Place::Zero => {}
            Place::Parent => {
                let Request { pieces, tickets, offset, .. } = request;
                let mut search = Search { mappings, extents, pieces, tickets };
                search.read(1, *offset + start, length, start).map_err(|error| IoError::from(&error))?;
            }
        }
        start += length;
    }
    Ok(())
}
