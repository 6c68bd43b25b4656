//! A network device on a TAP.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::control::ControlQueue;
use super::features::{self, GUEST_OFFLOADS, HOST_OFFLOADS};
use super::queue::{Common, ControlWorker, Flow, PairWorker, TapActions};
use super::receive::Receiver;
use super::ring::Ring;
use super::shared::{Counters, Shared};
use super::state;
use super::tap::{self, FrameQueue, TapError};
use super::throttle::Throttle;
use super::transmit::Transmitter;
use crate::config::NetLimits;
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, ActiveQueue, DeviceType, RestoreError, VirtioDevice};

/// Entries of each data queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
pub(super) const CONTROL_SIZE: u16 = 64;
/// The most queue pairs. The standard allows 32768; a TAP has at most 256 queues, and each pair costs a thread.
pub const MAX_QUEUE_PAIRS: u16 = 64;
/// The smallest MTU of the standard (virtio 1.2 §5.1.4.1).
const MIN_MTU: u16 = 68;

/// How a network device is to be.
#[derive(Debug)]
pub struct NetConfig {
    /// The address that the guest finds; not a group's.
    pub mac: [u8; 6],
    /// The MTU that the guest is told, at least 68.
    pub mtu: Option<u16>,
    /// Receive and transmit queues, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// What carries the frames.
    pub backend: TapBackend,
}

/// What carries the frames of a network device that serves its own queues.
#[derive(Debug)]
pub enum TapBackend {
    /// An existing TAP, by its name.
    Name(String),
    /// Open queues of a TAP, one for each pair, opened with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    Taps(Vec<OwnedFd>),
    /// Descriptors, one for each pair, that pass one frame with its 12 byte header in each datagram (`SOCK_SEQPACKET` tells
    /// when the other end is gone).
    Datagrams(Vec<OwnedFd>),
}

/// Why a network device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A number out of its range.
    #[error("{0} queue pairs: a network device has 1 to {MAX_QUEUE_PAIRS}")]
    QueuePairs(u16),
    /// A number out of its range.
    #[error("an MTU of {0}: the smallest is {MIN_MTU}")]
    Mtu(u16),
    /// The address is of a group.
    #[error("the MAC address is one of a group: its first byte must be even")]
    GroupMac,
    /// The TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
}

/// Checks what every kind of network device is told, and makes the shared part of it.
pub(super) fn shared(mac: [u8; 6], mtu: Option<u16>, queue_pairs: u16) -> Result<Arc<Shared>, NetError> {
    if !(1..=MAX_QUEUE_PAIRS).contains(&queue_pairs) {
        return Err(NetError::QueuePairs(queue_pairs));
    }
    if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Err(NetError::Mtu(mtu));
    }
    if mac[0] & 1 != 0 {
        return Err(NetError::GroupMac);
    }
    Ok(Arc::new(Shared::new(mac, mtu, queue_pairs)))
}

/// What the owner of a device does with it while the transport has it.
#[derive(Clone)]
pub struct NetHandle(pub(super) Arc<Shared>);

impl NetHandle {
    /// Makes the network learn where the device is now, after a restore or a move. The driver announces itself if it agreed on
    /// `VIRTIO_NET_F_GUEST_ANNOUNCE`; otherwise the device sends a broadcast from its address. While idle, it is remembered.
    pub fn announce(&self) {
        self.0.announce();
    }

    /// Plugs the cable in or out.
    pub fn set_link(&self, up: bool) {
        self.0.set_link(up);
    }

    /// Whether the cable is in.
    pub fn is_link_up(&self) -> bool {
        self.0.is_link_up()
    }

    /// The address, as configured or as the driver changed it.
    pub fn mac(&self) -> [u8; 6] {
        self.0.mac()
    }

    /// How many queue pairs the driver uses.
    pub fn active_pairs(&self) -> u16 {
        self.0.active_pairs()
    }

    /// Limits how much may pass, from now on.
    pub fn set_limits(&self, limits: NetLimits) {
        self.0.set_limits(limits);
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }
}

/// A network device on a TAP.
pub struct Net {
    shared: Arc<Shared>,
    configured_mac: [u8; 6],
    hosts: Vec<FrameQueue>,
    offered: u64,
    /// Whether a driver has chosen the offloads since the last reset.
    configured: bool,
    active: Option<Active>,
}

struct Active {
    pairs: Vec<Worker<PairWorker>>,
    control: Option<Worker<ControlWorker>>,
    /// Queues that nobody serves: a pair of which the driver enabled only one half.
    parked: Vec<(u16, Queue)>,
}

impl Net {
    /// Opens the back end.
    pub fn new(config: NetConfig) -> Result<Net, NetError> {
        let shared = shared(config.mac, config.mtu, config.queue_pairs)?;
        let pairs = config.queue_pairs;
        let counted = |fds: Vec<OwnedFd>| {
            let given = fds.len();
            if given == usize::from(pairs) { Ok(fds) } else { Err(TapError::Count { given, pairs }) }
        };
        let hosts = match config.backend {
            TapBackend::Name(name) => tap::open(&name, pairs)?,
            TapBackend::Taps(fds) => {
                counted(fds)?.into_iter().enumerate().map(|(n, fd)| FrameQueue::from_tap(fd, n)).collect::<Result<_, _>>()?
            }
            TapBackend::Datagrams(fds) => {
                counted(fds)?.into_iter().map(FrameQueue::from_datagram).collect::<Result<Vec<_>, _>>()?
            }
        };
        let mut offered = shared.own_features()
            | GUEST_OFFLOADS
            | HOST_OFFLOADS
            | features::bits(&[features::MRG_RXBUF, features::CTRL_GUEST_OFFLOADS]);
        if !hosts[0].has_ufo() {
            offered &= !features::bits(&[features::GUEST_UFO, features::HOST_UFO]);
        }
        Ok(Net { shared, configured_mac: config.mac, hosts, offered, configured: false, active: None })
    }

    /// The way to the device for its owner.
    pub fn handle(&self) -> NetHandle {
        NetHandle(self.shared.clone())
    }

    fn start(&self, activation: Activation) -> Result<Active, ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let host_error = |what: &str| {
            let what = what.to_owned();
            move |source| ActivateError::Host { what, source }
        };
        let event = || EventFd::new(EFD_NONBLOCK).map_err(host_error("cannot make an eventfd"));
        let common = || Common { memory: memory.clone(), interrupt: interrupt.clone(), shared: self.shared.clone() };
        let mut queues: std::collections::BTreeMap<u16, ActiveQueue> =
            queues.into_iter().map(|queue| (queue.index, queue)).collect();
        let mut pair_workers = Vec::new();
        let mut wakes = Vec::new();
        let mut parked = Vec::new();
        let control_index = self.shared.control_index(features);
        let control = control_index.and_then(|index| queues.remove(&index));
        for (pair, host) in (0u16..).zip(&self.hosts) {
            let (rx, tx) = match (queues.remove(&(2 * pair)), queues.remove(&(2 * pair + 1))) {
                (Some(rx), Some(tx)) => (rx, tx),
                (None, _) if pair == 0 => return Err(ActivateError::MissingQueue(0)),
                (_, None) if pair == 0 => return Err(ActivateError::MissingQueue(1)),
                (rx, tx) => {
                    parked.extend(rx.into_iter().chain(tx).map(|queue| (queue.index, queue.queue)));
                    continue;
                }
            };
            let wake = event()?;
            wakes.push(wake.try_clone().map_err(host_error("cannot duplicate an eventfd"))?);
            let clone = |event: &EventFd| event.try_clone().map_err(host_error("cannot duplicate an eventfd"));
            pair_workers.push(PairWorker {
                pair,
                common: common(),
                host: host.try_clone().map_err(host_error("cannot duplicate the TAP's descriptor"))?,
                rx_kick: clone(&rx.kick)?,
                tx_kick: clone(&tx.kick)?,
                receiver: Receiver::new(Ring::new(rx, features, &memory)?, features, Throttle::new(&self.shared.receive_limiter)),
                transmitter: Transmitter::new(Ring::new(tx, features, &memory)?, Throttle::new(&self.shared.transmit_limiter)),
                wake,
                flow: Flow::default(),
            });
        }
        let control_worker = match control {
            None => None,
            Some(queue) => Some(ControlWorker {
                common: common(),
                kick: queue.kick.try_clone().map_err(host_error("cannot duplicate an eventfd"))?,
                control: ControlQueue {
                    index: queue.index,
                    ring: Ring::new(queue, features, &memory)?,
                    shared: self.shared.clone(),
                },
                actions: TapActions {
                    host: self.hosts[0].try_clone().map_err(host_error("cannot duplicate the TAP's descriptor"))?,
                },
                failed: false,
            }),
        };
        parked.extend(queues.into_values().map(|queue| (queue.index, queue.queue)));
        // From here on vCPUs and the owner reach the workers; what is wished for in between is seen when they start.
        self.shared.activated(features, interrupt.clone(), wakes);
        let spawn = |worker: PairWorker| {
            Worker::spawn(ThreadKind::Tap, format!("net-pair{}", worker.pair), worker)
                .map_err(host_error("cannot start a thread of the network device"))
        };
        let pairs = pair_workers.into_iter().map(spawn).collect::<Result<Vec<_>, _>>()?;
        let control = control_worker
            .map(|worker| Worker::spawn(ThreadKind::Tap, "net-control".into(), worker))
            .transpose()
            .map_err(host_error("cannot start a thread of the network device"))?;
        Ok(Active { pairs, control, parked })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * self.hosts.len()];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn device_features(&self) -> u64 {
        self.offered
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.read_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let agreed = features & GUEST_OFFLOADS;
        self.shared.set_offloads(if self.configured { self.shared.offloads() & agreed } else { agreed });
        if features & (1 << features::MQ) == 0 {
            self.shared.set_active_pairs(1);
        }
        self.hosts[0]
            .set_offloads(self.shared.offloads())
            .map_err(|source| ActivateError::Host { what: "cannot set the offloads of the TAP".into(), source })?;
        match self.start(activation) {
            Ok(active) => {
                self.active = Some(active);
                self.configured = true;
                Ok(())
            }
            Err(error) => {
                self.shared.quiesced();
                Err(error)
            }
        }
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        let Some(active) = self.active.take() else { return Vec::new() };
        let mut queues = active.parked;
        // The control queue first: it is the one that gives the others something to do.
        if let Some(worker) = active.control.and_then(Worker::stop) {
            queues.push((worker.control.index, worker.control.ring.into_queue()));
        }
        for worker in active.pairs.into_iter().filter_map(Worker::stop) {
            queues.extend(worker.into_queues());
        }
        self.shared.quiesced();
        queues.sort_by_key(|(index, _)| *index);
        queues
    }

    fn reset(&mut self) {
        self.shared.reset(self.configured_mac);
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
