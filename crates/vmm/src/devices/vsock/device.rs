//! The socket device.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use virtio_queue::Queue;
use vmm_sys_util::timerfd::TimerFd;

use super::queue::{EVENT, Engine, RX, RingWithKick, TX, VsockWorker};
use super::state::{self, VsockState};
use super::table::{Counters, Table};
use crate::devices::net::ring::Ring;
use crate::devices::net::unix;
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, DeviceType, RestoreError, VirtioDevice};

const QUEUE_SIZE: u16 = 256;
const EVENT_QUEUE_SIZE: u16 = 16;
/// `_4294967295` behind the base path.
const PORT_SUFFIX_BYTES: usize = 11;

/// How the socket device is to be.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context: 3 or more, and less than 2^32 - 1 (virtio 1.2 §5.10.4).
    pub guest_cid: u64,
    /// The base path. Its directory is all that the device reaches.
    pub socket: PathBuf,
    /// The listening socket of the base path, if another process made it.
    pub listener: Option<UnixListener>,
}

/// Why a socket device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A context that no guest can have.
    #[error("{0} is no guest's context: choose one from 3 to 4294967294")]
    GuestCid(u64),
    /// The path does not leave room for a port.
    #[error("the path {0} is too long: a unix socket's has at most {max} bytes, and a port is added to it", max = unix::MAX_PATH_BYTES)]
    PathTooLong(PathBuf),
    /// Another process listens there.
    #[error("another process listens on {0}: give each VM a path of its own")]
    Busy(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The base path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What the owner of the device does with it while the transport has it.
#[derive(Clone)]
pub struct VsockHandle(Arc<Counters>);

impl VsockHandle {
    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.0
    }
}

/// The socket device.
pub struct Vsock {
    guest_cid: u64,
    /// The base path, if we made its socket.
    bound: Option<PathBuf>,
    counters: Arc<Counters>,
    /// While idle.
    engine: Option<Engine>,
    worker: Option<Worker<VsockWorker>>,
}

impl Vsock {
    /// Starts listening on the base path. Who connects waits until the device is active.
    pub fn new(config: VsockConfig) -> Result<Vsock, VsockError> {
        let VsockConfig { guest_cid, socket, listener } = config;
        if !(3..u64::from(u32::MAX)).contains(&guest_cid) {
            return Err(VsockError::GuestCid(guest_cid));
        }
        if socket.as_os_str().len() + PORT_SUFFIX_BYTES > unix::MAX_PATH_BYTES {
            return Err(VsockError::PathTooLong(socket));
        }
        let (listener, bound) = match listener {
            Some(listener) => (listener, None),
            None => (bind(&socket)?, Some(socket.clone())),
        };
        listener.set_nonblocking(true).map_err(|source| VsockError::Listen { path: socket.clone(), source })?;
        let table = Table::new(guest_cid, socket);
        let counters = table.counters.clone();
        let engine = Some(Engine { table, listener, reset_due: false });
        Ok(Vsock { guest_cid, bound, counters, engine, worker: None })
    }

    /// The way to the device for its owner.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle(self.counters.clone())
    }
}

fn bind(path: &Path) -> Result<UnixListener, VsockError> {
    let error = |source| VsockError::Listen { path: path.into(), source };
    match UnixListener::bind(path) {
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {}
        result => return result.map_err(error),
    }
    // Left by a monitor that was killed, if nobody listens.
    match unix::connect(path) {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(error)?;
            UnixListener::bind(path).map_err(error)
        }
        _ => Err(VsockError::Busy(path.into())),
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        if let Some(path) = &self.bound {
            // What is left is found and removed by the next monitor.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn device_features(&self) -> u64 {
        // Without any, streams are what there is (virtio 1.2 §5.10.3).
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = data.len().min(config.len() - start);
        data[..count].copy_from_slice(&config[start..start + count]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let host_error = |what: &str| {
            let what = what.to_owned();
            move |source| ActivateError::Host { what, source }
        };
        let mut rings = Vec::new();
        let mut queues = queues.into_iter();
        for index in [RX, TX, EVENT] {
            let queue = queues.next().filter(|queue| queue.index == index).ok_or(ActivateError::MissingQueue(index))?;
            let kick = queue.kick.try_clone().map_err(host_error("cannot duplicate an eventfd"))?;
            rings.push(RingWithKick { ring: Ring::new(queue, features, &memory)?, kick });
        }
        let Ok(rings) = <[RingWithKick; 3]>::try_from(rings) else { return Err(ActivateError::MissingQueue(EVENT)) };
        let timer =
            TimerFd::new().map_err(|error| ActivateError::Host { what: "cannot make a timer".into(), source: error.into() })?;
        let Some(engine) = self.engine.take() else {
            return Err(ActivateError::Backend("the socket device is active already, or lost its worker".into()));
        };
        let worker = VsockWorker {
            memory,
            interrupt,
            engine,
            rings,
            timer,
            ticking: false,
            failed: false,
            deaf: false,
            segments: VecDeque::new(),
        };
        let worker = Worker::spawn(ThreadKind::Vsock, "vsock".into(), worker)
            .map_err(host_error("cannot start the thread of the socket device"))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        let Some(worker) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        self.engine = Some(worker.engine);
        (RX..).zip(worker.rings).map(|(index, ring)| (index, ring.ring.into_queue())).collect()
    }

    fn reset(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.table.clear();
            engine.reset_due = false;
        }
    }

    fn save(&self) -> Vec<u8> {
        VsockState { guest_cid: self.guest_cid }.encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let _ = state::restore(state)?;
        if let Some(engine) = &mut self.engine {
            engine.table.clear();
            engine.reset_due = true;
        }
        Ok(())
    }
}
