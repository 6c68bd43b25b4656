//! The time in which a file is being changed: from the first change after an open to the close.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::header::Header;
use super::image::{Image, State};
use super::log::{FileSizes, LogWriter, Tail};
use super::open::Access;
use crate::{Guid, MapError};

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> MapError {
    move |source| MapError::Io { action, source }
}

/// What is about to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// What the user of the virtual disk sees: children of this image would no longer fit, and are told so by a new identity.
    Data,
    /// Only what the file says about itself.
    Tables,
}

impl Image {
    /// Says in the headers that the file is being changed, unless they do (MS-VHDX 2.2.2): new identities, and a log in use.
    #[cold]
    pub(super) fn start_session(&self, state: &mut State, changes: Changes) -> Result<(), MapError> {
        if self.access == Access::ReadOnly {
            return Err(MapError::ReadOnly);
        }
        state.refuse_if_broken()?;
        let random = || Guid::random().map_err(io("getting random numbers"));
        let mut next = state.headers.current;
        if changes == Changes::Data && !self.started.load(Acquire) {
            next.data_write_guid = state.next_data_write_guid.map_or_else(random, Ok)?;
        }
        if state.log.is_none() {
            next.file_write_guid = random()?;
            next.log_guid = random()?;
            next.log_version = 0;
            let log = self.start_log(state, next.log_guid)?;
            self.replace_headers(state, next)?;
            state.log = Some(log);
        } else if next != state.headers.current {
            self.replace_headers(state, next)?;
        }
        if changes == Changes::Data {
            state.next_data_write_guid = None;
            self.started.store(true, Release);
        }
        Ok(())
    }

    /// If this fails, a header that is not ours may be the one that counts: with it, the next open would look at another log than the
    /// one that commits write to. So there are no more commits then.
    fn replace_headers(&self, state: &mut State, next: Header) -> Result<(), MapError> {
        let result = state.headers.replace(&*self.storage, next);
        state.is_broken |= result.is_err();
        result.map_err(io("writing the image's headers"))
    }

    /// A log in use must hold a valid entry at every moment, so an empty entry is there before the headers name the log.
    fn start_log(&self, state: &mut State, guid: Guid) -> Result<LogWriter, MapError> {
        // What lies behind all tables and blocks is left from a crash: as it is unknown, it goes. The file grows by zeros again.
        let end = state.space.end();
        let starting = || io("starting to change the image");
        if state.file_size != end {
            self.storage.set_size(end).map_err(starting())?;
            state.file_size = end;
        }
        let (offset, length) = state.headers.log();
        let mut log = LogWriter::new(guid, offset, length);
        let sizes = FileSizes { flushed: end, last: end };
        let entry = log.encode(&[], Tail::Itself, sizes);
        self.storage.write_at(offset, &entry).and_then(|()| self.storage.flush()).map_err(starting())?;
        log.advance(entry.len() as u64);
        (state.flushed_size, state.has_new_holes) = (end, false);
        Ok(log)
    }

    /// The identity that the image's data will have when it is changed next. A merge stores it in the child, as its parent's second
    /// linkage, before it changes the parent: the child fits at every moment.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn next_data_write_guid(&self) -> std::io::Result<Guid> {
        let mut state = self.lock();
        if self.started.load(Acquire) {
            return Ok(state.headers.current.data_write_guid);
        }
        match state.next_data_write_guid {
            Some(guid) => Ok(guid),
            None => Ok(*state.next_data_write_guid.insert(Guid::random()?)),
        }
    }

    /// Writes everything, leaves the log empty, and cuts off space that is not used. All tickets must be back: what they complete
    /// later is not in the file. A later change starts anew, as after an open.
    ///
    /// # Errors
    /// If something could not be written; the file is then as after a crash, and nothing that was flushed is lost.
    pub fn close(&self) -> Result<(), MapError> {
        if self.lock().log.is_none() {
            return Ok(());
        }
        loop {
            self.flush()?;
            let mut state = self.lock();
            if state.log.is_none() {
                return Ok(());
            }
            // A commit logs what was freed, the next one punches it; what tickets still use is left to the next open.
            if state.dirty > 0 || state.flying.is_some() || !self.is_space_settled(&mut state) {
                continue;
            }
            let closing = || io("closing the image");
            self.storage.flush().map_err(closing())?;
            let next = Header { log_guid: Guid::ZERO, ..state.headers.current };
            self.replace_headers(&mut state, next)?;
            state.log = None;
            self.started.store(false, Release);
            let end = state.space.end();
            if end < state.file_size {
                self.storage.set_size(end).and_then(|()| self.storage.flush()).map_err(closing())?;
                state.file_size = end;
            }
            return Ok(());
        }
    }

    /// Whether another commit would give no more space back.
    pub(super) fn is_space_settled(&self, state: &mut State) -> bool {
        state.space.is_settled() || self.tickets.count() > 0
    }
}
