//! The thread that answers the driver's requests.

use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;

use virtio_queue::{Reader, Writer};
use vmm_sys_util::epoll::EventSet;

use super::blocks::BlocksState;
use super::device::{Shared, State};
use crate::devices::balloon::discard::discard;
use crate::devices::ring::{Chain, Ring};
use crate::virtio::GuestMemory;
use crate::virtio::worker::{Handler, Sources};

const REQUEST_BYTES: usize = 24;
const RESPONSE_BYTES: usize = 10;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const QUEUE: u64 = 0;

/// Taking back a large region may take a while: only a few in a row keep the device easy to stop.
const BATCH: usize = 4;

/// An answer (§5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    Ack,
    /// The blocks that the driver asked about.
    State(BlocksState),
    /// Not more than was requested of the driver.
    Nack,
    /// The host could not do it now.
    Busy,
    /// The request makes no sense.
    Error,
}

impl Response {
    fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state) = match self {
            Response::Ack => (0u16, 0),
            Response::State(state) => (0, state as u16),
            Response::Nack => (1, 0),
            Response::Busy => (2, 0),
            Response::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE_BYTES];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}

pub(super) struct MemQueue {
    pub ring: Ring,
    pub shared: Arc<Shared>,
}

/// Answers one request.
pub(super) fn respond(shared: &Shared, memory: &GuestMemory, request: &[u8; REQUEST_BYTES]) -> Response {
    let kind = u16::from_le_bytes([request[0], request[1]]);
    let [a0, a1, a2, a3, a4, a5, a6, a7, n0, n1] = request[8..18] else { return Response::Error };
    let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    let count = u16::from_le_bytes([n0, n1]);

    let mut state = shared.state();
    match kind {
        UNPLUG_ALL => unplug_all(shared, &mut state, memory),
        PLUG | UNPLUG | STATE => match (blocks(shared, address, count), kind) {
            (None, _) => Response::Error,
            (Some(range), PLUG) => plug(shared, &mut state, range),
            (Some(range), UNPLUG) => unplug(shared, &mut state, memory, range),
            (Some(range), _) => Response::State(state.blocks.state(range)),
        },
        _ => Response::Error,
    }
}

/// The blocks that a request is about, if they are whole, there are any, and all are in the region.
fn blocks(shared: &Shared, address: u64, count: u16) -> Option<Range<u64>> {
    let config = &shared.config;
    let offset = address.checked_sub(config.address)?;
    let (first, count) = (offset / config.block_size, u64::from(count));
    let end = first + count;
    let fits = offset % config.block_size == 0 && count > 0 && end <= config.region_size / config.block_size;
    fits.then_some(first..end)
}

fn plug(shared: &Shared, state: &mut State, range: Range<u64>) -> Response {
    if state.blocks.state(range.clone()) != BlocksState::Unplugged {
        return Response::Error;
    }
    let plugged = (state.blocks.plugged() + (range.end - range.start)) * shared.config.block_size;
    if plugged > state.requested_size {
        return Response::Nack;
    }
    state.blocks.set(range, true);
    Response::Ack
}

fn unplug(shared: &Shared, state: &mut State, memory: &GuestMemory, range: Range<u64>) -> Response {
    if state.blocks.state(range.clone()) != BlocksState::Plugged {
        return Response::Error;
    }
    if !take_back(shared, memory, range.clone()) {
        return Response::Busy;
    }
    state.blocks.set(range, false);
    Response::Ack
}

/// Unplugs everything; where the host refuses, the rest stays plugged and the driver may ask again.
pub(super) fn unplug_all(shared: &Shared, state: &mut State, memory: &GuestMemory) -> Response {
    for range in state.blocks.plugged_ranges() {
        if !take_back(shared, memory, range.clone()) {
            return Response::Busy;
        }
        state.blocks.set(range, false);
    }
    Response::Ack
}

/// Gives the memory of blocks back to the host.
fn take_back(shared: &Shared, memory: &GuestMemory, range: Range<u64>) -> bool {
    let bytes = shared.bytes(range);
    let length = bytes.end - bytes.start;
    // All of it: a block of which the host kept a part would have content when it is plugged again.
    discard(memory, bytes.start, length, 4096).is_ok_and(|discarded| discarded == length)
}

fn answer(shared: &Shared, chain: Chain) -> u32 {
    let memory = chain.memory();
    let mut request = [0; REQUEST_BYTES];
    let readable = Reader::new(memory, chain.clone()).is_ok_and(|mut reader| reader.read_exact(&mut request).is_ok());
    let Ok(mut writer) = Writer::new(memory, chain.clone()) else { return 0 };
    // Without room for the answer the driver would not know what happened: then nothing does.
    if writer.available_bytes() < RESPONSE_BYTES {
        return 0;
    }
    let response = if readable { respond(shared, memory, &request) } else { Response::Error };
    writer.write_all(&response.to_bytes()).map_or(0, |()| RESPONSE_BYTES as u32)
}

impl Handler for MemQueue {
    fn start(&mut self, sources: &Sources) {
        self.ring.set_batch(BATCH);
        self.ring.listen(sources, QUEUE);
        self.ring.serve(&mut self.shared, |_| true, |shared, chain| answer(shared, chain));
    }

    fn ready(&mut self, _token: u64, _events: EventSet, _sources: &Sources) {
        self.ring.clear_kick();
        self.ring.serve(&mut self.shared, |_| true, |shared, chain| answer(shared, chain));
    }
}
