//! What one front end has set up.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
    VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::vhost_user::raw;
use super::virtio::{Format, Mode, Queue, VirtioPort};
use super::vnet::Offloads;
use crate::pipeline::PortNumber;
use crate::ring::memory::{DirtyLog, Memory, RegionPlace};
use crate::ring::split::{Ring, RingPlace};
use crate::worker::Handle;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Buffers are used in the order in which they were made available. Drivers that know it go through their rings from end to end, which
/// is fewer lines of memory to bring from core to core.
const IN_ORDER: u64 = 1 << 35;
/// What the front end answers itself, if it wants to: MTU, address, status, control queue, announcements, several queues.
const FRONT_END: u64 = 1 << 3 | 1 << 5 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23;
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const OFFERED: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | INDIRECT_DESC
    | EVENT_IDX
    | VERSION_1
    | IN_ORDER
    | FRONT_END
    | LOG_ALL
    | PROTOCOL_FEATURES;

/// As of the standard's message for a memory table.
const MAX_REGIONS: usize = 32;

/// A ring as the front end has described it.
#[derive(Debug, Default)]
struct Vring {
    place: RingPlace,
    /// Front-end addresses: they are looked up again with each memory table.
    user: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
    mode: Mode,
    running: bool,
}

/// A connection's state.
#[derive(Debug)]
pub(super) struct Session {
    worker: Handle,
    port: PortNumber,
    features: u64,
    memory: Option<Arc<Memory>>,
    log: Option<Arc<DirtyLog>>,
    vrings: Vec<Vring>,
}

fn refused(reason: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(reason.to_string()))
}

impl Session {
    pub fn new(worker: Handle, port: PortNumber, pairs: u16) -> Session {
        let vrings = (0..2 * pairs).map(|_| Vring::default()).collect();
        Session { worker, port, features: 0, memory: None, log: None, vrings }
    }

    fn vring(&mut self, index: impl TryInto<usize>) -> Result<&mut Vring> {
        index.try_into().ok().and_then(|index| self.vrings.get_mut(index)).ok_or(Error::InvalidParam)
    }

    fn call<R: Send + 'static>(&self, work: impl FnOnce(&mut VirtioPort) -> R + Send + 'static) -> Result<R> {
        let port = self.port;
        let result = self.worker.call(move |worker| worker.virtio(port).map(work)).map_err(refused)?;
        result.ok_or_else(|| refused("the port is gone"))
    }

    fn format(&self) -> Format {
        let has = |feature| self.features & feature != 0;
        let offloads = Offloads { checksum: has(GUEST_CSUM), tcp4: has(GUEST_TSO4), tcp6: has(GUEST_TSO6), ecn: has(GUEST_ECN) };
        Format { is_long: has(VERSION_1) || has(MRG_RXBUF), mergeable: has(MRG_RXBUF), offloads }
    }

    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.features & LOG_ALL != 0)
    }

    /// Gives a ring to the worker.
    fn start(&mut self, index: usize) -> Result<()> {
        let memory = self.memory.clone().ok_or_else(|| refused("a ring without a memory table"))?;
        let (log, format, event_idx) = (self.active_log(), self.format(), self.features & EVENT_IDX != 0);
        let vring = self.vring(index)?;
        let found = vring.user.map(|address| memory.guest_address(address));
        let [Some(descriptors), Some(available), Some(used)] = found else {
            return Err(refused(format!("ring {index} is not in the memory table")));
        };
        vring.place = RingPlace { descriptors, available, used, event_idx, ..vring.place };
        let call = vring.call.as_ref().map(File::try_clone).transpose().map_err(refused)?;
        let mut ring = Ring::new(memory, &vring.place, call).map_err(refused)?;
        ring.log = log;
        // A receiving ring has nothing to tell; a sending one is asked before the worker sleeps.
        ring.want_kicks(false);
        vring.running = true;
        let queue = Queue { ring, mode: vring.mode, failed: None, held: false, target: None };
        let kick = raw(vring.kick.as_ref());
        let (port, is_sender) = (self.port, index % 2 == 1);
        let placed = self.worker.call(move |worker| {
            let Some(device) = worker.virtio(port) else { return Err(io::Error::other("the port is gone")) };
            device.format = format;
            if device.queues.len() <= index {
                device.queues.resize_with(index + 1, || None);
            }
            device.queues[index] = Some(queue);
            kick.filter(|_| is_sender).map_or(Ok(()), |kick| worker.listen(kick))
        });
        placed.map_err(refused)?.map_err(refused)
    }

    /// Takes a ring back; its position is then in `place`.
    fn stop(&mut self, index: usize) -> Result<()> {
        if !self.vring(index)?.running {
            return Ok(());
        }
        let kick = raw(self.vring(index)?.kick.as_ref());
        let port = self.port;
        let queue = self.worker.call(move |worker| {
            kick.into_iter().for_each(|kick| worker.ignore(kick));
            worker.virtio(port).and_then(|device| device.queues.get_mut(index)?.take())
        });
        let vring = self.vring(index)?;
        vring.running = false;
        if let Some(queue) = queue.map_err(refused)? {
            vring.place.position = queue.ring.position();
        }
        Ok(())
    }

    /// Has the running rings know of a change.
    fn restart(&mut self) -> Result<()> {
        let running: Vec<usize> = (0..self.vrings.len()).filter(|index| self.vrings[*index].running).collect();
        running.iter().try_for_each(|index| self.stop(*index))?;
        running.iter().try_for_each(|index| self.start(*index))
    }

    /// Takes all back: the front end is gone.
    pub fn end(&mut self) {
        for index in 0..self.vrings.len() {
            // The worker has ended if this fails, and then it has no rings.
            let _ = self.stop(index);
        }
        let port = self.port;
        let _ = self.worker.call(move |worker| worker.virtio(port).map(|device| *device = VirtioPort::default()));
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        (0..self.vrings.len()).try_for_each(|index| self.stop(index))
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_owner()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(OFFERED)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !OFFERED != 0 {
            return Err(refused(format!("features {:#x} were not offered", features & !OFFERED)));
        }
        let before = std::mem::replace(&mut self.features, features);
        if features & PROTOCOL_FEATURES == 0 {
            self.vrings.iter_mut().for_each(|vring| vring.mode = Mode::On);
        }
        if before == features { Ok(()) } else { self.restart() }
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        if regions.len() != files.len() || regions.len() > MAX_REGIONS {
            return Err(Error::InvalidParam);
        }
        let place = |region: &VhostUserMemoryRegion| RegionPlace {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            length: region.memory_size,
            offset: region.mmap_offset,
        };
        let memory = Memory::new(regions.iter().map(place).zip(files)).map_err(refused)?;
        self.memory = Some(Arc::new(memory));
        self.restart()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Error::InvalidParam);
        }
        vring.place.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let vring = self.vring(index)?;
        let user = [descriptors, available, used];
        let log_used = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let is_changed = (vring.user, vring.place.log_used) != (user, log_used);
        (vring.user, vring.place.log_used) = (user, log_used);
        if vring.running && is_changed {
            self.stop(index as usize)?;
            self.start(index as usize)?;
        }
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Error::InvalidParam);
        }
        vring.place.position = base.try_into().map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        self.stop(index as usize)?;
        let position = self.vring(index)?.place.position;
        Ok(VhostUserVringState::new(index, position.into()))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        self.vring(index)?;
        // A new one while it runs replaces the old one.
        self.stop(index.into())?;
        self.vring(index)?.kick = kick;
        self.start(index.into())
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        let vring = self.vring(index)?;
        vring.call = call;
        if !vring.running {
            return Ok(());
        }
        let call = vring.call.as_ref().map(File::try_clone).transpose().map_err(refused)?;
        self.call(move |device| {
            if let Some(Some(queue)) = device.queues.get_mut(usize::from(index)) {
                queue.ring.set_call(call);
            }
        })
    }

    fn set_vring_err(&mut self, index: u8, _: Option<File>) -> Result<()> {
        self.vring(index).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    /// Of network devices, front ends take this as the number of pairs.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64 / 2)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        let mode = if enable { Mode::On } else { Mode::Off };
        vring.mode = mode;
        if !vring.running {
            return Ok(());
        }
        self.call(move |device| {
            if let Some(Some(queue)) = device.queues.get_mut(index as usize) {
                queue.mode = mode;
            }
        })?;
        let (port, is_first) = (self.port, index == 1 && enable);
        if is_first {
            self.worker.call(move |worker| worker.announce(port)).map_err(refused)?;
        }
        Ok(())
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        self.log = Some(DirtyLog::new(&file, log.mmap_offset, log.mmap_size).map_err(refused)?);
        let log = self.active_log();
        self.call(move |device| device.queues.iter_mut().flatten().for_each(|queue| queue.ring.log = log.clone()))
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("the front end has the configuration"))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the front end has the configuration"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("no display"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("frames are used in order"))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("frames are used in order"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidOperation("memory comes in tables"))
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("memory comes in tables"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no device state"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no device state"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory of the device"))
    }
}
