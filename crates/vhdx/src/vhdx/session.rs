//! The time in which a file is being changed: from the first change after an open to the close.

use std::sync::atomic::Ordering::Release;

use super::header::Header;
use super::image::{Image, State};
use super::layout::PAGE;
use super::log::LogWriter;
use crate::{Guid, MapError};

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> MapError {
    move |source| MapError::Io { action, source }
}

impl Image {
    /// Says in the headers that the file is being changed, unless they do (MS-VHDX 2.2.2): new identities, and a log in use.
    ///
    /// A log in use must hold a valid entry at every moment, so an empty entry is there before the headers name the log.
    #[cold]
    pub(super) fn start_session(&self, state: &mut State) -> Result<(), MapError> {
        if state.is_broken {
            return Err(io("writing the image: an earlier failure left its tables unsure; open it again")(
                std::io::ErrorKind::Other.into(),
            ));
        }
        if state.log.is_some() {
            return Ok(());
        }
        let random = || Guid::random().map_err(io("getting random numbers"));
        let (file_write_guid, data_write_guid, log_guid) = (random()?, random()?, random()?);
        let writing = || io("starting to change the image");
        // What lies behind all tables and blocks is left from a crash: as it is unknown, it goes. The file grows by zeros again.
        let end = state.space.end();
        if state.file_size != end {
            self.storage.set_size(end).map_err(writing())?;
            state.file_size = end;
        }
        let (offset, length) = state.headers.log();
        // If this failed half-way before, a header may name the entry that was written then: that one stays.
        let start = if state.headers.current.log_guid.is_zero() { 0 } else { PAGE as u64 };
        let mut log = LogWriter::new(log_guid, offset, length, start);
        let entry = log.encode(&[], state.file_size);
        self.storage.write_at(offset + start, &entry).and_then(|()| self.storage.flush()).map_err(writing())?;
        log.advance(entry.len() as u64);
        let next = Header { file_write_guid, data_write_guid, log_guid, log_version: 0, ..state.headers.current };
        state.headers.replace(&*self.storage, next).map_err(writing())?;
        state.log = Some(log);
        self.started.store(true, Release);
        Ok(())
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
            state.headers.replace(&*self.storage, next).map_err(closing())?;
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
    fn is_space_settled(&self, state: &mut State) -> bool {
        state.space.is_settled() || self.tickets.has_any()
    }
}
