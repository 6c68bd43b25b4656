//! The thread that moves bytes between the host's side and the two queues of the port.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Reader, Writer};
use vmm_sys_util::epoll::EventSet;

use super::device::Shared;
use crate::devices::ring::{Chain, Ring};
use crate::virtio::worker::{Handler, Sources};

/// Bytes that one buffer may print; Linux sends at most 32 KiB. What is longer is dropped and counted.
pub(super) const PRINT_BYTES: usize = 1 << 20;

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const INPUT: u64 = 2;
const CONTROL_TO_DRIVER: u64 = 3;
const CONTROL_FROM_DRIVER: u64 = 4;

pub(super) struct ConsoleQueues {
    pub receive: Ring,
    pub transmit: Ring,
    /// To the driver, and from it.
    pub control: Option<(Ring, Ring)>,
    pub shared: Arc<Shared>,
}

impl ConsoleQueues {
    fn receive(&mut self) {
        self.receive.serve(&mut self.shared, |shared| !shared.input().is_empty(), |shared, chain| type_into(shared, chain));
    }

    fn transmit(&mut self) {
        self.transmit.serve(&mut self.shared, |_| true, |shared, chain| print_from(shared, chain));
    }

    /// Takes what the driver says, and answers.
    fn control(&mut self) {
        let (Some((to_driver, from_driver)), Some(port)) = (&mut self.control, &self.shared.port) else { return };
        let mut port = port;
        from_driver.serve(&mut port, |_| true, |port, chain| port.take(chain));
        to_driver.serve(&mut port, |port| port.has_messages(), |port, chain| port.tell(chain));
    }
}

/// Writes pending input into a buffer of the driver.
fn type_into(shared: &Shared, chain: Chain) -> u32 {
    let memory = chain.memory();
    let Ok(mut writer) = Writer::new(memory, chain.clone()) else { return 0 };
    let mut input = shared.input();
    let length = input.len().min(writer.available_bytes());
    let (front, back) = input.as_slices();
    let first = length.min(front.len());
    let result = writer.write_all(&front[..first]).and_then(|()| writer.write_all(&back[..length - first]));
    // The buffer is in guest memory and long enough: the copy cannot fail. If it did, the bytes would come again.
    if result.is_err() {
        return 0;
    }
    input.drain(..length);
    length as u32
}

/// Prints what is in a buffer of the driver.
fn print_from(shared: &Shared, chain: Chain) -> u32 {
    let memory = chain.memory();
    let Ok(mut reader) = Reader::new(memory, chain.clone()) else { return 0 };
    let mut left = PRINT_BYTES;
    let mut piece = [0; 4096];
    while left > 0 {
        let limit = left.min(piece.len());
        match reader.read(&mut piece[..limit]) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                shared.output.put(&piece[..count]);
                left -= count;
            }
        }
    }
    shared.dropped.fetch_add(reader.available_bytes() as u64, Ordering::Relaxed);
    0
}

impl Handler for ConsoleQueues {
    fn start(&mut self, sources: &Sources) {
        self.receive.listen(sources, RECEIVE);
        self.transmit.listen(sources, TRANSMIT);
        // Both descriptors are ours and valid. Without the input's, the next kick of the receive queue would bring it.
        let _ = sources.add(self.shared.wake.as_raw_fd(), INPUT, EventSet::IN);
        if let Some((to_driver, from_driver)) = &mut self.control {
            to_driver.listen(sources, CONTROL_TO_DRIVER);
            from_driver.listen(sources, CONTROL_FROM_DRIVER);
        }
        self.control();
        self.receive();
        self.transmit();
    }

    fn ready(&mut self, token: u64, _events: EventSet, _sources: &Sources) {
        match token {
            RECEIVE => {
                self.receive.clear_kick();
                self.receive();
            }
            TRANSMIT => {
                self.transmit.clear_kick();
                self.transmit();
            }
            CONTROL_TO_DRIVER | CONTROL_FROM_DRIVER => {
                if let Some((to_driver, from_driver)) = &self.control {
                    let ring = if token == CONTROL_TO_DRIVER { to_driver } else { from_driver };
                    ring.clear_kick();
                }
                self.control();
            }
            _ => {
                let _ = self.shared.wake.read();
                self.receive();
            }
        }
    }
}
