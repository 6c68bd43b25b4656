//! What a network device's threads and its owner share: its identity, its status, its counters.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use disk::limits::{Limiter, Limits};
use vmm_sys_util::eventfd::EventFd;

use super::features::{self, S_ANNOUNCE, S_LINK_UP};
use crate::config::NetLimits;
use crate::virtio::Interrupt;

/// A device's counters since it was created. Towards the guest is `rx`, from the guest `tx`.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub rx_packets: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Frames that no buffer could take, and buffers that made no sense.
    pub rx_drops: AtomicU64,
    pub tx_packets: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Frames that the host refused, and buffers that made no sense.
    pub tx_drops: AtomicU64,
}

/// How the driver says it wants frames filtered. Frames that come are for this port already, so nothing is done with it but
/// keeping it across moves.
pub type RxMode = u64;

/// State that both the configuration space and the workers reach.
pub struct Shared {
    /// The address in the configuration space; the driver may change it.
    mac: Mutex<[u8; 6]>,
    mtu: Option<u16>,
    max_pairs: u16,
    status: AtomicU16,
    active_pairs: AtomicU16,
    offloads: AtomicU64,
    rx_mode: AtomicU64,
    /// Features agreed on while active, zero while idle.
    features: AtomicU64,
    announce_wanted: AtomicBool,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    /// Written when workers should look at status, pairs and wishes again.
    wakes: Mutex<Vec<EventFd>>,
    /// Counters of all queues together.
    pub counters: Counters,
    /// How much may pass towards the guest.
    pub(super) receive_limiter: Arc<Limiter>,
    /// How much may pass from the guest.
    pub(super) transmit_limiter: Arc<Limiter>,
}

impl Shared {
    pub(super) fn new(mac: [u8; 6], mtu: Option<u16>, max_pairs: u16) -> Shared {
        Shared {
            mac: Mutex::new(mac),
            mtu,
            max_pairs,
            status: AtomicU16::new(S_LINK_UP),
            active_pairs: AtomicU16::new(1),
            offloads: AtomicU64::new(0),
            rx_mode: AtomicU64::new(0),
            features: AtomicU64::new(0),
            announce_wanted: AtomicBool::new(false),
            interrupt: Mutex::new(None),
            wakes: Mutex::new(Vec::new()),
            counters: Counters::default(),
            receive_limiter: unlimited(),
            transmit_limiter: unlimited(),
        }
    }

    /// Limits how much may pass, from now on.
    pub fn set_limits(&self, limits: NetLimits) {
        let now = Instant::now();
        let bytes = |rate: Option<crate::config::RateConfig>| Limits { operations: None, bandwidth: rate.map(Into::into) };
        self.receive_limiter.set(bytes(limits.receive), now);
        self.transmit_limiter.set(bytes(limits.transmit), now);
        self.wake();
    }

    /// The device's address.
    pub fn mac(&self) -> [u8; 6] {
        *lock(&self.mac)
    }

    pub(super) fn set_mac(&self, mac: [u8; 6]) {
        *lock(&self.mac) = mac;
    }

    pub(super) fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    pub(super) fn max_pairs(&self) -> u16 {
        self.max_pairs
    }

    /// How many queue pairs the driver uses.
    pub fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Ordering::Acquire)
    }

    pub(super) fn set_active_pairs(&self, pairs: u16) {
        self.active_pairs.store(pairs, Ordering::Release);
    }

    /// Which offloads the driver takes now.
    pub(super) fn offloads(&self) -> u64 {
        self.offloads.load(Ordering::Acquire)
    }

    pub(super) fn set_offloads(&self, offloads: u64) {
        self.offloads.store(offloads, Ordering::Release);
    }

    pub(super) fn rx_mode(&self) -> RxMode {
        self.rx_mode.load(Ordering::Relaxed)
    }

    pub(super) fn set_rx_mode(&self, mode: RxMode) {
        self.rx_mode.store(mode, Ordering::Relaxed);
    }

    pub(super) fn features(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    pub(super) fn has_feature(&self, bit: u32) -> bool {
        self.features() & (1 << bit) != 0
    }

    pub(super) fn status(&self) -> u16 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::Release);
    }

    /// Whether the link is up.
    pub fn is_link_up(&self) -> bool {
        self.status() & S_LINK_UP != 0
    }

    /// Plugs the cable in or out. While it is out, frames of both directions are dropped.
    pub fn set_link(&self, up: bool) {
        let before = if up {
            self.status.fetch_or(S_LINK_UP, Ordering::AcqRel)
        } else {
            self.status.fetch_and(!S_LINK_UP, Ordering::AcqRel)
        };
        if (before & S_LINK_UP != 0) != up {
            self.config_changed();
            self.wake();
        }
    }

    /// Makes the network learn where the device is now: the driver announces itself, or, if it cannot, the device does
    /// so for it. While idle, this is done as soon as the device is active.
    pub fn announce(&self) {
        self.announce_wanted.store(true, Ordering::Release);
        if self.features() != 0 {
            self.wake();
        }
    }

    /// Whether the driver must be asked, or the worker must announce in its place.
    pub(super) fn take_announcement(&self) -> Announcement {
        if !self.announce_wanted.swap(false, Ordering::AcqRel) {
            return Announcement::None;
        }
        if !self.has_feature(features::GUEST_ANNOUNCE) {
            return Announcement::ByDevice;
        }
        self.status.fetch_or(S_ANNOUNCE, Ordering::AcqRel);
        self.config_changed();
        Announcement::ByDriver
    }

    pub(super) fn acknowledge_announcement(&self) {
        self.status.fetch_and(!S_ANNOUNCE, Ordering::AcqRel);
    }

    pub(super) fn activated(&self, features: u64, interrupt: Arc<dyn Interrupt>, wakes: Vec<EventFd>) {
        self.features.store(features, Ordering::Release);
        *lock(&self.interrupt) = Some(interrupt);
        *lock(&self.wakes) = wakes;
    }

    pub(super) fn quiesced(&self) {
        self.features.store(0, Ordering::Release);
        *lock(&self.interrupt) = None;
        lock(&self.wakes).clear();
    }

    /// Back to what the driver finds after a reset.
    pub(super) fn reset(&self, mac: [u8; 6]) {
        self.set_mac(mac);
        self.set_active_pairs(1);
        self.set_offloads(0);
        self.set_rx_mode(0);
        self.acknowledge_announcement();
    }

    pub(super) fn wake(&self) {
        for event in lock(&self.wakes).iter() {
            // An eventfd can only refuse when it is full, and then it is readable.
            let _ = event.write(1);
        }
    }

    fn config_changed(&self) {
        // Not under the lock: the transport may do what it likes.
        let interrupt = lock(&self.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// Reads from `struct virtio_net_config` (virtio 1.2 §5.1.4).
    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0u8; 12];
        config[..6].copy_from_slice(&self.mac());
        config[6..8].copy_from_slice(&self.status().to_le_bytes());
        config[8..10].copy_from_slice(&self.max_pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = data.len().min(config.len() - start);
        data[..count].copy_from_slice(&config[start..start + count]);
    }

    /// The features that follow from the configuration, whatever the back end.
    pub(super) fn own_features(&self) -> u64 {
        let mut mask = features::bits(&[
            features::MAC,
            features::STATUS,
            features::CTRL_VQ,
            features::CTRL_RX,
            features::CTRL_RX_EXTRA,
            features::CTRL_MAC_ADDR,
            features::GUEST_ANNOUNCE,
        ]);
        if self.mtu.is_some() {
            mask |= 1 << features::MTU;
        }
        if self.max_pairs > 1 {
            mask |= 1 << features::MQ;
        }
        mask
    }

    /// The index of the control queue: it comes after all pairs if the driver knows of several (virtio 1.2 §5.1.2).
    pub(super) fn control_index(&self, features: u64) -> Option<u16> {
        if features & (1 << features::CTRL_VQ) == 0 {
            None
        } else if features & (1 << features::MQ) != 0 {
            Some(2 * self.max_pairs)
        } else {
            Some(2)
        }
    }
}

fn unlimited() -> Arc<Limiter> {
    Arc::new(Limiter::new(Limits::default(), Instant::now()))
}

/// What is to be done about a wish to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcement {
    None,
    ByDriver,
    ByDevice,
}

/// A broadcast from `mac` that teaches switches where it is: a reverse ARP request as QEMU sends it, with its empty header.
pub(super) fn rarp_frame(mac: [u8; 6]) -> [u8; features::HEADER_BYTES + 60] {
    let mut frame = [0u8; features::HEADER_BYTES + 60];
    let packet = &mut frame[features::HEADER_BYTES..];
    packet[..6].fill(0xff);
    packet[6..12].copy_from_slice(&mac);
    // Ethertype RARP, hardware Ethernet, protocol IPv4, address lengths 6 and 4, operation 3 (request reverse).
    packet[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    packet[22..28].copy_from_slice(&mac);
    packet[32..38].copy_from_slice(&mac);
    frame
}

/// A lock whose holder panicked still guards plain values.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
