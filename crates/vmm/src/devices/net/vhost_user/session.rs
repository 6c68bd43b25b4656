//! What is said to a back end: negotiation, set-up of rings, stopping.

use std::os::fd::AsRawFd;
use std::path::Path;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserU64,
    VhostUserVirtioFeatures, VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::log::DirtyLog;
use super::protocol::{Connection, ProtocolError};
use crate::virtio::GuestMemory;

const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const VERSION_1: u64 = 1 << 32;

/// Device status: acknowledged, driver, features OK, driver OK (virtio 1.2 §2.1).
const STATUS_RUNNING: u64 = 1 | 2 | 8 | 4;
/// A table holds eight regions unless the back end is asked for more in another way.
const MAX_REGIONS: usize = 8;

/// A data queue, with the events both sides share.
pub(super) struct DataQueue {
    pub index: u16,
    /// Its positions are those from before the back end had it.
    pub queue: Queue,
    pub kick: EventFd,
    pub call: EventFd,
}

/// A back end that has said what it can do.
#[derive(Debug)]
pub(super) struct Session {
    pub connection: Connection,
    /// Features of virtio and vhost.
    pub features: u64,
    protocol: VhostUserProtocolFeatures,
    /// How many queue pairs it serves at most.
    pub pairs: u64,
}

/// What a device asks of a back end.
pub(super) struct Plan<'a> {
    pub memory: &'a GuestMemory,
    /// What the driver agreed on, as far as the first back end had offered it.
    pub features: u64,
    pub queues: &'a [DataQueue],
    pub mtu: Option<u16>,
    pub log: Option<&'a DirtyLog>,
    /// Queues below this are enabled.
    pub enabled: u16,
}

impl Session {
    /// Connects and negotiates.
    pub fn open(path: &Path) -> Result<Session, ProtocolError> {
        let mut connection = Connection::open(path)?;
        connection.limit_setup();
        let features = get_u64(&connection, FrontendReq::GET_FEATURES)?;
        if features & PROTOCOL_FEATURES == 0 {
            return Err(ProtocolError::Unsupported("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        if features & VERSION_1 == 0 {
            return Err(ProtocolError::Unsupported("VIRTIO_F_VERSION_1"));
        }
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::STATUS;
        let offered = get_u64(&connection, FrontendReq::GET_PROTOCOL_FEATURES)?;
        let protocol = VhostUserProtocolFeatures::from_bits_truncate(offered) & known;
        connection.set(FrontendReq::SET_PROTOCOL_FEATURES, VhostUserU64::new(protocol.bits()).as_slice(), &[])?;
        connection.confirms = protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        // Network back ends count pairs here, whatever the name says (DPDK, QEMU).
        let pairs =
            if protocol.contains(VhostUserProtocolFeatures::MQ) { get_u64(&connection, FrontendReq::GET_QUEUE_NUM)? } else { 1 };
        connection.set(FrontendReq::SET_OWNER, &[], &[])?;
        connection.end_limit();
        Ok(Session { connection, features, protocol, pairs })
    }

    /// Whether it can log the pages that it writes.
    pub fn can_log(&self) -> bool {
        self.features & LOG_ALL != 0 && self.protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD)
    }

    /// Hands the rings over and starts them.
    pub fn start(&mut self, plan: &Plan<'_>) -> Result<(), ProtocolError> {
        self.connection.limit_setup();
        let lost = plan.features & !self.features;
        if lost != 0 {
            return Err(ProtocolError::LostFeatures(lost));
        }
        let pairs = plan.queues.iter().map(|queue| u64::from(queue.index / 2) + 1).max().unwrap_or(0);
        if pairs > self.pairs {
            return Err(ProtocolError::Unsupported("as many queue pairs as the driver uses"));
        }
        self.set_log(plan)?;
        if let Some(mtu) = plan.mtu.filter(|_| self.protocol.contains(VhostUserProtocolFeatures::MTU)) {
            self.connection.set(FrontendReq::NET_SET_MTU, VhostUserU64::new(u64::from(mtu)).as_slice(), &[])?;
        }
        self.set_memory(plan.memory)?;
        for queue in plan.queues {
            let state = |number: u16| VhostUserVringState::new(u32::from(queue.index), u32::from(number));
            let index = VhostUserU64::new(u64::from(queue.index));
            let connection = &self.connection;
            connection.set(FrontendReq::SET_VRING_NUM, state(queue.queue.size()).as_slice(), &[])?;
            connection.set(FrontendReq::SET_VRING_BASE, state(queue.queue.next_avail()).as_slice(), &[])?;
            self.set_address(plan, queue)?;
            connection.set(FrontendReq::SET_VRING_CALL, index.as_slice(), &[queue.call.as_raw_fd()])?;
            connection.set(FrontendReq::SET_VRING_KICK, index.as_slice(), &[queue.kick.as_raw_fd()])?;
        }
        self.enable(plan.queues, plan.enabled)?;
        self.set_status(STATUS_RUNNING)?;
        if !self.connection.confirms {
            // All requests before this one are done when it is answered.
            get_u64(&self.connection, FrontendReq::GET_FEATURES)?;
        }
        self.connection.end_limit();
        Ok(())
    }

    /// Switches the log on or off while the rings run.
    pub fn change_log(&mut self, plan: &Plan<'_>) -> Result<(), ProtocolError> {
        self.connection.limit_setup();
        self.set_log(plan)?;
        plan.queues.iter().try_for_each(|queue| self.set_address(plan, queue))?;
        get_u64(&self.connection, FrontendReq::GET_FEATURES)?;
        self.connection.end_limit();
        Ok(())
    }

    fn set_log(&self, plan: &Plan<'_>) -> Result<(), ProtocolError> {
        let mut features = plan.features | PROTOCOL_FEATURES;
        if let Some(log) = plan.log {
            if !self.can_log() {
                return Err(ProtocolError::Unsupported("a log of dirty pages"));
            }
            let body = VhostUserLog::new(log.size(), 0);
            // The reply has no body in the standard, eight bytes from some back ends and sixteen from others.
            self.connection.get_any(FrontendReq::SET_LOG_BASE, body.as_slice(), &[log.fd()])?;
            features |= LOG_ALL;
        }
        self.connection.set(FrontendReq::SET_FEATURES, VhostUserU64::new(features).as_slice(), &[])
    }

    fn set_memory(&self, memory: &GuestMemory) -> Result<(), ProtocolError> {
        let count = memory.num_regions();
        if count > MAX_REGIONS {
            return Err(ProtocolError::Local(format!("the guest's memory has {count} regions, a back end takes {MAX_REGIONS}")));
        }
        let mut body = VhostUserMemory::new(count as u32).as_slice().to_vec();
        let mut fds = Vec::new();
        for region in memory.iter() {
            let start = region.start_addr();
            let Some(file) = region.file_offset() else {
                return Err(ProtocolError::Local(format!(
                    "the guest's memory at {:#x} cannot be shared: it has no file",
                    start.0
                )));
            };
            let host = region.as_ptr() as u64;
            body.extend_from_slice(VhostUserMemoryRegion::new(start.raw_value(), region.len(), host, file.start()).as_slice());
            fds.push(file.file().as_raw_fd());
        }
        self.connection.set(FrontendReq::SET_MEM_TABLE, &body, &fds)
    }

    fn set_address(&self, plan: &Plan<'_>, queue: &DataQueue) -> Result<(), ProtocolError> {
        let host = |address: u64| {
            plan.memory
                .get_host_address(GuestAddress(address))
                .map(|pointer| pointer as u64)
                .map_err(|error| ProtocolError::Local(format!("queue {} is not in guest memory: {error}", queue.index)))
        };
        let used = queue.queue.used_ring();
        let flags =
            if plan.log.is_some() { VhostUserVringAddrFlags::VHOST_VRING_F_LOG } else { VhostUserVringAddrFlags::empty() };
        let body = VhostUserVringAddr::new(
            u32::from(queue.index),
            flags,
            host(queue.queue.desc_table())?,
            host(used)?,
            host(queue.queue.avail_ring())?,
            if plan.log.is_some() { used } else { 0 },
        );
        self.connection.set(FrontendReq::SET_VRING_ADDR, body.as_slice(), &[])
    }

    /// Enables the queues below `enabled` and disables the others: a back end drops what a disabled queue sends.
    pub fn enable(&self, queues: &[DataQueue], enabled: u16) -> Result<(), ProtocolError> {
        for queue in queues {
            let on = u32::from(queue.index < enabled);
            let body = VhostUserVringState::new(u32::from(queue.index), on);
            self.connection.set(FrontendReq::SET_VRING_ENABLE, body.as_slice(), &[])?;
        }
        Ok(())
    }

    /// Stops the rings and returns the positions to continue from, in the order of `queues`.
    pub fn stop(&mut self, queues: &[DataQueue]) -> Result<Vec<u16>, ProtocolError> {
        self.connection.limit_setup();
        self.enable(queues, 0)?;
        let mut positions = Vec::new();
        for queue in queues {
            let body = VhostUserVringState::new(u32::from(queue.index), 0);
            let reply: [u8; 8] = self.connection.get(FrontendReq::GET_VRING_BASE, body.as_slice())?;
            let mut state = VhostUserVringState::default();
            state.as_mut_slice().copy_from_slice(&reply);
            let (index, number) = (state.index, state.num);
            let position = u16::try_from(number).ok().filter(|_| index == u32::from(queue.index));
            positions.push(position.ok_or_else(|| ProtocolError::Malformed {
                request: "GET_VRING_BASE",
                reason: format!("position {number} of queue {index} when asked for queue {}", queue.index),
            })?);
        }
        self.set_status(0)?;
        self.connection.end_limit();
        Ok(positions)
    }

    fn set_status(&self, status: u64) -> Result<(), ProtocolError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::STATUS) {
            return Ok(());
        }
        self.connection.set(FrontendReq::SET_STATUS, VhostUserU64::new(status).as_slice(), &[])
    }

    /// Has the back end broadcast the address, if it can.
    pub fn announce(&self, mac: [u8; 6]) -> Result<(), ProtocolError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::RARP) {
            tracing::warn!("neither the driver nor the back end can announce the network device's address");
            return Ok(());
        }
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac);
        self.connection.set(FrontendReq::SEND_RARP, &body, &[])
    }
}

fn get_u64(connection: &Connection, request: FrontendReq) -> Result<u64, ProtocolError> {
    connection.get(request, &[]).map(u64::from_le_bytes)
}
