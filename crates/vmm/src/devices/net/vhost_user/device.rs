//! A network device on vhost-user.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::log::{DirtyLog, LogError};
use super::protocol::ProtocolError;
use super::session::{DataQueue, Session};
use super::worker::{BackendStatus, BackendWorker, Exchange, State};
use crate::devices::net::control::ControlQueue;
use crate::devices::net::device::{CONTROL_SIZE, NetError, NetHandle, QUEUE_SIZE, shared};
use crate::devices::net::features::{self, GUEST_OFFLOADS, HOST_OFFLOADS, MRG_RXBUF};
use crate::devices::net::queue::Common;
use crate::devices::net::ring::Ring;
use crate::devices::net::shared::{Shared, lock};
use crate::devices::net::state;
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, ActiveQueue, DeviceType, GuestMemory, RestoreError, VirtioDevice};

/// `VIRTIO_RING_F_INDIRECT_DESC`, `VIRTIO_RING_F_EVENT_IDX` and `VIRTIO_F_VERSION_1`.
const RING_FEATURES: u64 = 1 << 28 | 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Longer than a back end may take to switch its log.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// How a network device on vhost-user is to be.
#[derive(Clone, Debug)]
pub struct VhostUserConfig {
    /// The address that the guest finds; not a group's.
    pub mac: [u8; 6],
    /// The MTU that the guest is told, at least 68.
    pub mtu: Option<u16>,
    /// Receive and transmit queues.
    pub queue_pairs: u16,
    /// The socket on which the back end listens.
    pub socket: PathBuf,
}

/// Why a network device on vhost-user could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserNetError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] NetError),
    /// Its back end.
    #[error(transparent)]
    Backend(#[from] ProtocolError),
    /// The back end serves fewer queues.
    #[error("{wanted} queue pairs, but the back end serves {served}: ask for fewer")]
    QueuePairs {
        /// As configured.
        wanted: u16,
        /// As the back end says.
        served: u64,
    },
}

/// A network device whose data queues are served by another process.
pub struct VhostUserNet {
    shared: Arc<Shared>,
    exchange: Arc<Exchange>,
    config: VhostUserConfig,
    /// All features that the back end had when the device was made.
    backend_features: u64,
    can_log: bool,
    configured: bool,
    /// The connection, while idle.
    session: Option<Session>,
    active: Option<Active>,
}

struct Active {
    worker: Worker<BackendWorker>,
    parked: Vec<(u16, Queue)>,
}

/// What the owner of a device does with it while the transport has it.
#[derive(Clone)]
pub struct VhostUserHandle {
    net: NetHandle,
    exchange: Arc<Exchange>,
    can_log: bool,
}

impl VhostUserHandle {
    /// What all network devices have. The counters stay zero: the back end counts.
    pub fn net(&self) -> &NetHandle {
        &self.net
    }

    /// How it is with the back end.
    pub fn backend_status(&self) -> BackendStatus {
        lock(&self.exchange.status).clone()
    }

    /// Has the back end log the pages that it writes from now on; returns when it does. A back end that takes its place
    /// logs too. Not to be called from a thread that the device waits for in `quiesce`.
    pub fn start_dirty_log(&self, memory: &GuestMemory) -> Result<(), LogError> {
        if !self.can_log {
            return Err(LogError::Unsupported);
        }
        let log = Arc::new(DirtyLog::new(memory)?);
        let before = lock(&self.exchange.log).replace(log);
        self.switch_log().inspect_err(|_| *lock(&self.exchange.log) = before)
    }

    /// Takes the pages logged since the last call: bit `n % 64` of word `n / 64` stands for the 4096 bytes from guest address
    /// `n * 4096`. `None` when there is no log.
    pub fn fetch_dirty_log(&self) -> Option<Vec<u64>> {
        lock(&self.exchange.log).as_ref().map(|log| log.take())
    }

    /// Ends the log and returns what was logged last. Without a log, nothing.
    pub fn stop_dirty_log(&self) -> Result<Vec<u64>, LogError> {
        let Some(log) = lock(&self.exchange.log).take() else { return Ok(Vec::new()) };
        // A back end that does not stop is replaced by the worker, and its successor has no log.
        self.switch_log()?;
        Ok(log.take())
    }

    fn switch_log(&self) -> Result<(), LogError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        match lock(&self.exchange.log_requests).as_mut() {
            // The next set-up knows what to do.
            None => return Ok(()),
            Some(requests) => requests.push(sender),
        }
        self.net.0.wake();
        match receiver.recv_timeout(LOG_PATIENCE) {
            Ok(result) => result.map_err(LogError::Backend),
            // It was quiesced in between: as above.
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(LogError::Backend("it did not answer in time".into())),
        }
    }
}

impl VhostUserNet {
    /// Connects to the back end, whose features the driver is to be offered.
    pub fn new(config: VhostUserConfig) -> Result<VhostUserNet, VhostUserNetError> {
        let shared = shared(config.mac, config.mtu, config.queue_pairs)?;
        let session = Session::open(&config.socket)?;
        if session.pairs < u64::from(config.queue_pairs) {
            return Err(VhostUserNetError::QueuePairs { wanted: config.queue_pairs, served: session.pairs });
        }
        let exchange = Exchange { status: Mutex::default(), log: Mutex::default(), log_requests: Mutex::default() };
        Ok(VhostUserNet {
            shared,
            exchange: Arc::new(exchange),
            config,
            backend_features: session.features,
            can_log: session.can_log(),
            configured: false,
            session: Some(session),
            active: None,
        })
    }

    /// The way to the device for its owner.
    pub fn handle(&self) -> VhostUserHandle {
        VhostUserHandle { net: NetHandle(self.shared.clone()), exchange: self.exchange.clone(), can_log: self.can_log }
    }

    /// What the back end decides: how frames and rings look.
    fn data_features(&self) -> u64 {
        self.backend_features & (GUEST_OFFLOADS | HOST_OFFLOADS | 1 << MRG_RXBUF)
    }

    fn start(&mut self, activation: Activation) -> Result<Active, ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let host_error = |what: &str| {
            let what = what.to_owned();
            move |source| ActivateError::Host { what, source }
        };
        let clone = |event: &EventFd| event.try_clone().map_err(host_error("cannot duplicate an eventfd"));
        let mut queues: BTreeMap<u16, ActiveQueue> = queues.into_iter().map(|queue| (queue.index, queue)).collect();
        let control = match self.shared.control_index(features).and_then(|index| queues.remove(&index)) {
            None => None,
            Some(queue) => {
                let (index, kick) = (queue.index, clone(&queue.kick)?);
                Some((ControlQueue { index, ring: Ring::new(queue, features, &memory)?, shared: self.shared.clone() }, kick))
            }
        };
        if let Some(missing) = (0..2).find(|index| !queues.contains_key(index)) {
            return Err(ActivateError::MissingQueue(missing));
        }
        let mut relays = false;
        let mut data = Vec::new();
        let mut parked = Vec::new();
        for (index, active) in queues {
            if index >= 2 * self.config.queue_pairs {
                parked.push((index, active.queue));
                continue;
            }
            if !active.queue.is_valid(&*memory) {
                return Err(ActivateError::InvalidQueue(index));
            }
            let call = match interrupt.used_event(index) {
                Some(event) => event,
                None => {
                    relays = true;
                    EventFd::new(EFD_NONBLOCK).map_err(host_error("cannot make an eventfd"))?
                }
            };
            let mut queue = active.queue;
            queue.set_event_idx(features & (1 << 29) != 0);
            data.push(DataQueue { index, queue, kick: active.kick, call });
        }
        let wake = EventFd::new(EFD_NONBLOCK).map_err(host_error("cannot make an eventfd"))?;
        let timer =
            TimerFd::new().map_err(|error| ActivateError::Host { what: "cannot make a timer".into(), source: error.into() })?;
        let wakes = vec![clone(&wake)?];
        let agreed = features & (self.data_features() | (self.backend_features & RING_FEATURES) | VERSION_1);
        let worker = BackendWorker {
            common: Common { memory, interrupt: interrupt.clone(), shared: self.shared.clone() },
            exchange: self.exchange.clone(),
            path: self.config.socket.clone(),
            mtu: self.config.mtu,
            features: agreed,
            queues: data,
            relays,
            control,
            wake,
            timer,
            session: self.session.take(),
            state: State::default(),
        };
        *lock(&self.exchange.log_requests) = Some(Vec::new());
        self.shared.activated(features, interrupt, wakes);
        let worker = Worker::spawn(ThreadKind::VhostUser, "net-vhost-user".into(), worker)
            .map_err(host_error("cannot start a thread of the network device"))?;
        Ok(Active { worker, parked })
    }

    fn ended(&self) {
        self.shared.quiesced();
        // Dropping the senders tells who waits that the next set-up does what they want.
        *lock(&self.exchange.log_requests) = None;
    }
}

impl VirtioDevice for VhostUserNet {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.config.queue_pairs)];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn device_features(&self) -> u64 {
        self.shared.own_features() | self.data_features()
    }

    fn withheld_features(&self) -> u64 {
        RING_FEATURES & !self.backend_features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.read_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        self.shared.set_offloads(features & GUEST_OFFLOADS);
        if features & (1 << features::MQ) == 0 {
            self.shared.set_active_pairs(1);
        }
        match self.start(activation) {
            Ok(active) => {
                self.active = Some(active);
                self.configured = true;
                Ok(())
            }
            Err(error) => {
                self.ended();
                Err(error)
            }
        }
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        let Some(active) = self.active.take() else { return Vec::new() };
        let mut queues = active.parked;
        if let Some(worker) = active.worker.stop() {
            self.session = worker.session;
            queues.extend(worker.control.map(|(control, _)| (control.index, control.ring.into_queue())));
            queues.extend(worker.queues.into_iter().map(|queue| (queue.index, queue.queue)));
        }
        self.ended();
        queues.sort_by_key(|(index, _)| *index);
        queues
    }

    fn reset(&mut self) {
        self.shared.reset(self.config.mac);
        self.configured = false;
    }

    fn save(&self) -> Vec<u8> {
        state::save(&self.shared, self.configured)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.configured = state::restore(&self.shared, state)?;
        Ok(())
    }
}
