//! The machine's virtio devices: made from the configuration, added and removed while it runs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use disk::{Disk, OpenError, ResizeError};

use super::events::{EventSender, MachineEvent};
use super::{Machine, RunState};
use crate::config::{
    BUILT_IN_IDS, ConfigError, ConsoleConfig, DiskConfig, DiskLimits, NetBackend, NetConfig, NetLimits, check_id, check_net_name,
};
use crate::devices::balloon::{Balloon, BalloonConfig, BalloonHandle};
use crate::devices::block::{Block, BlockConfig, BlockError, ErrorPolicy};
use crate::devices::console::host::ConsoleOutput;
use crate::devices::console::{Console, ConsoleHandle};
use crate::devices::mem::{Mem, MemConfig, MemConfigError, MemHandle};
use crate::devices::net::vhost_user::{LogError, VhostUserConfig, VhostUserHandle, VhostUserNet, VhostUserNetError};
use crate::devices::net::{Net, NetConfig as NetDeviceConfig, NetError, NetHandle, TapBackend};
use crate::devices::rng::Rng;
use crate::devices::vsock::{Vsock, VsockConfig, VsockError, VsockHandle};
use crate::memory::BLOCK as MEMORY_BLOCK;
use crate::memory::layout::{HIGH_MEMORY_START, PCI_WINDOW_32, RESERVED_START};
use crate::pci::SlotError;
use crate::pci::virtio::{BAR_SIZE, PlugError, VirtioPci};
use crate::virtio::VirtioDevice;

/// Slots that the monitor's own devices have, so that those of the user keep theirs whatever is switched on.
const RNG_SLOT: u8 = 31;
const CONSOLE_SLOT: u8 = 30;
const BALLOON_SLOT: u8 = 29;
const MEMORY_SLOT: u8 = 28;
const VSOCK_SLOT: u8 = 27;
const AGENT_SLOT: u8 = 26;
/// The last slot for disks and network cards.
const LAST_USER_SLOT: u8 = 25;
/// Where the agent in the guest looks for its port.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";
/// More queues than this help no disk.
const MAX_DISK_QUEUES: u16 = 4;

/// Why a device could not be made, added or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk's file.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// A disk's device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A disk's new size.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// A network card.
    #[error("network card '{id}': {source}")]
    Net {
        /// Which one.
        id: String,
        /// Why.
        source: NetError,
    },
    /// A network card on a virtual switch.
    #[error("network card '{id}': {source}")]
    VhostUser {
        /// Which one.
        id: String,
        /// Why.
        source: VhostUserNetError,
    },
    /// The socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The memory device.
    #[error(transparent)]
    Memory(#[from] MemConfigError),
    /// The transport.
    #[error("device '{id}': {source}")]
    Plug {
        /// Which one.
        id: String,
        /// Why.
        source: PlugError,
    },
    /// No place on the bus.
    #[error("device '{id}': {source}")]
    Slot {
        /// Which one.
        id: String,
        /// Why.
        source: SlotError,
    },
    /// The host refused.
    #[error("device '{id}': {what}")]
    Host {
        /// Which one.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The dirty log of a virtual switch.
    #[error("network card '{id}': {error}")]
    DirtyLog {
        /// Which one.
        id: String,
        /// Why.
        error: LogError,
    },
    /// A name that cannot be used.
    #[error(transparent)]
    Id(#[from] ConfigError),
    /// No such device.
    #[error("there is no device '{0}'; `status` lists them")]
    Unknown(String),
    /// A name that is taken.
    #[error("there is a device '{0}' already")]
    Exists(String),
    /// A device of another kind.
    #[error("device '{id}' is not {wanted}")]
    Kind {
        /// Which one.
        id: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A device that the machine was made with.
    #[error("device '{0}' is part of the machine and cannot be removed")]
    BuiltIn(String),
    /// Descriptors that do not match.
    #[error("device '{id}': {wanted} open descriptor(s) must come with the request, there are {found}")]
    Descriptors {
        /// Which one.
        id: String,
        /// How many are needed.
        wanted: usize,
        /// How many came.
        found: usize,
    },
}

/// What can be asked of a device by its kind.
pub enum DeviceHandle {
    /// A disk.
    Block(Arc<Mutex<Block>>),
    /// A network card.
    Net(NetHandle),
    /// A network card on a virtual switch.
    VhostUser(VhostUserHandle),
    /// The virtio console.
    Console(ConsoleHandle),
    /// The port of the guest agent: what is said to it, and what it says.
    Agent(ConsoleHandle, ConsoleOutput),
    /// The entropy device.
    Rng,
    /// The balloon.
    Balloon(BalloonHandle),
    /// Memory for hot add.
    Memory(MemHandle),
    /// The socket device.
    Vsock(VsockHandle),
}

impl DeviceHandle {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            DeviceHandle::Block(_) => "disk",
            DeviceHandle::Net(_) | DeviceHandle::VhostUser(_) => "net",
            DeviceHandle::Console(_) => "console",
            DeviceHandle::Agent(..) => "guest-agent",
            DeviceHandle::Rng => "rng",
            DeviceHandle::Balloon(_) => "balloon",
            DeviceHandle::Memory(_) => "memory",
            DeviceHandle::Vsock(_) => "vsock",
        }
    }

    /// The files that the device is made of: a disk's own, then those of its parents.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            DeviceHandle::Block(block) => block.lock().expect("device lock").disk().chain().map(PathBuf::from).collect(),
            _ => Vec::new(),
        }
    }

    /// The device's counters by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let list: Vec<(&str, u64)> = match self {
            DeviceHandle::Block(block) => {
                let values = block.lock().expect("device lock").counters().read();
                vec![
                    ("reads", values.reads),
                    ("writes", values.writes),
                    ("read-bytes", values.read_bytes),
                    ("written-bytes", values.written_bytes),
                    ("flushes", values.flushes),
                    ("discards", values.discards),
                    ("errors", values.errors),
                ]
            }
            DeviceHandle::Net(net) => {
                let counters = net.counters();
                let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
                vec![
                    ("rx-packets", get(&counters.rx_packets)),
                    ("rx-bytes", get(&counters.rx_bytes)),
                    ("rx-drops", get(&counters.rx_drops)),
                    ("tx-packets", get(&counters.tx_packets)),
                    ("tx-bytes", get(&counters.tx_bytes)),
                    ("tx-drops", get(&counters.tx_drops)),
                ]
            }
            DeviceHandle::Balloon(balloon) => {
                let info = balloon.info();
                vec![
                    ("target-bytes", u64::from(info.target_pages) * 4096),
                    ("actual-bytes", u64::from(info.actual_pages) * 4096),
                    ("discarded-bytes", info.discarded_bytes),
                ]
            }
            DeviceHandle::Memory(memory) => {
                vec![("requested-bytes", memory.requested_size()), ("plugged-bytes", memory.plugged_size())]
            }
            DeviceHandle::Agent(port, _) => vec![("open", port.is_open().into())],
            DeviceHandle::VhostUser(_) | DeviceHandle::Console(_) | DeviceHandle::Rng | DeviceHandle::Vsock(_) => Vec::new(),
        };
        list.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }
}

/// A device in its slot.
pub struct DeviceSlot {
    /// The device's name.
    pub id: String,
    /// PCI slot.
    pub slot: u8,
    /// The device behind its transport.
    pub transport: Arc<Mutex<VirtioPci>>,
    /// Its own controls.
    pub handle: DeviceHandle,
}

type Made = (Arc<Mutex<dyn VirtioDevice>>, DeviceHandle);

impl Machine {
    /// Makes all devices of the configuration.
    pub(super) fn create_devices(&mut self) -> Result<(), DeviceError> {
        let mut disks = std::mem::take(&mut self.config.disks);
        for disk in &mut disks {
            let made = self.make_disk(disk, Disk::open(&disk.path, disk.open_options())?)?;
            disk.slot = Some(self.plug(&disk.id, disk.slot, made)?);
        }
        self.config.disks = disks;
        let mut nets = std::mem::take(&mut self.config.nets);
        for net in &mut nets {
            net.slot = Some(self.plug_net(net, make_net(net, None)?)?);
        }
        self.config.nets = nets;
        if self.config.console == ConsoleConfig::Virtio {
            let device = Console::new(self.console.clone()).map_err(host("console"))?;
            let handle = DeviceHandle::Console(device.handle());
            self.plug("console", Some(CONSOLE_SLOT), (Arc::new(Mutex::new(device)), handle))?;
        }
        if self.config.guest_agent {
            let (output, events) = (ConsoleOutput::new(), self.events.clone());
            let listener = Box::new(move || events.send(MachineEvent::GuestAgent));
            let device = Console::with_name(AGENT_PORT, output.clone(), listener).map_err(host("guest-agent"))?;
            let handle = DeviceHandle::Agent(device.handle(), output);
            self.plug("guest-agent", Some(AGENT_SLOT), (Arc::new(Mutex::new(device)), handle))?;
        }
        if self.config.rng {
            self.plug("rng", Some(RNG_SLOT), (Arc::new(Mutex::new(Rng::new())), DeviceHandle::Rng))?;
        }
        if self.config.balloon {
            let device = Balloon::new(BalloonConfig {
                page_size: self.memory.page_size(),
                protected: std::iter::once(RESERVED_START..HIGH_MEMORY_START).collect(),
                deflate_on_oom: true,
                reporting: true,
            })
            .map_err(host("balloon"))?;
            let handle = DeviceHandle::Balloon(device.handle());
            self.plug("balloon", Some(BALLOON_SLOT), (Arc::new(Mutex::new(device)), handle))?;
        }
        if let Some(vsock) = &self.config.vsock {
            let (guest_cid, socket) = (u64::from(vsock.cid), vsock.path.clone());
            let device = Vsock::new(VsockConfig { guest_cid, socket, listener: None })?;
            let handle = DeviceHandle::Vsock(device.handle());
            self.plug("vsock", Some(VSOCK_SLOT), (Arc::new(Mutex::new(device)), handle))?;
        }
        let (address, region_size) = self.memory.hotplug;
        if region_size > 0 {
            let config = MemConfig { address, region_size, block_size: MEMORY_BLOCK, requested_size: 0 };
            let device = Mem::new(config)?;
            let handle = DeviceHandle::Memory(device.handle());
            self.plug("memory", Some(MEMORY_SLOT), (Arc::new(Mutex::new(device)), handle))?;
        }
        Ok(())
    }

    fn make_disk(&self, config: &DiskConfig, disk: Disk) -> Result<Made, DeviceError> {
        disk.set_limits(config.limits.into());
        let events: EventSender = self.events.clone();
        let id = config.id.clone();
        let queues = match config.queues {
            0 => (self.kvm.topology.max as u16).min(MAX_DISK_QUEUES),
            queues => queues,
        };
        let block_config = BlockConfig {
            queues,
            serial: config.serial.clone().unwrap_or_else(|| config.id.clone()),
            listener: Some(Arc::new(move |failure| {
                let pause = failure.policy == ErrorPolicy::Pause;
                events.send(MachineEvent::DiskFailed { id: id.clone(), reason: failure.error.to_string(), pause });
            })),
            ..BlockConfig::new(disk, config.id.clone())
        };
        // It tries io_uring, which this thread may not do once it is confined.
        let made = self.platform.spawner.run(move || Block::new(block_config));
        let block = made.ok_or_else(|| host(&config.id)(std::io::Error::other("the thread that starts devices failed")))??;
        let block = Arc::new(Mutex::new(block));
        Ok((block.clone(), DeviceHandle::Block(block)))
    }

    /// Puts a device on the bus, in the wanted or the lowest free slot.
    fn plug(&mut self, id: &str, slot: Option<u8>, made: Made) -> Result<u8, DeviceError> {
        let (device, handle) = made;
        let no_place = |source| DeviceError::Slot { id: id.into(), source };
        let mut pci = self.pci.lock().expect("PCI lock");
        let slot = match slot {
            Some(slot) => slot,
            None => pci.free_slot().ok().filter(|slot| *slot <= LAST_USER_SLOT).ok_or_else(|| no_place(SlotError::Full))?,
        };
        let bar = PCI_WINDOW_32.0 as u32 + u32::from(slot) * BAR_SIZE;
        let transport =
            VirtioPci::new(id, device, bar, &self.platform).map_err(|source| DeviceError::Plug { id: id.into(), source })?;
        pci.plug(slot, transport.clone()).map_err(no_place)?;
        self.slots.push(DeviceSlot { id: id.into(), slot, transport, handle });
        Ok(slot)
    }

    fn plug_net(&mut self, config: &NetConfig, made: Made) -> Result<u8, DeviceError> {
        let slot = self.plug(&config.id, config.slot, made)?;
        if let Some(name) = &config.name {
            self.acpi.lock().expect("device lock").name_slot(slot, &config.id, name);
        }
        Ok(slot)
    }

    /// All devices.
    pub fn devices(&self) -> &[DeviceSlot] {
        &self.slots
    }

    /// The device of this name.
    pub fn device(&self, id: &str) -> Result<&DeviceSlot, DeviceError> {
        self.slots.iter().find(|slot| slot.id == id).ok_or_else(|| DeviceError::Unknown(id.into()))
    }

    /// Adds a disk while the guest runs, and tells it. `files` are the disk's own, then those of its parents.
    pub fn add_disk(&mut self, mut config: DiskConfig, files: Vec<(PathBuf, OwnedFd)>) -> Result<(), DeviceError> {
        self.check_new(&config.id)?;
        let disk = Disk::from_files(files, config.open_options())?;
        let made = self.make_disk(&config, disk)?;
        let slot = self.plug(&config.id, config.slot, made)?;
        config.slot = Some(slot);
        self.config.disks.push(config);
        self.announce_slot(slot);
        Ok(())
    }

    /// Adds a network card while the guest runs, and tells it. `files` are the TAP's queues; a virtual switch needs none.
    pub fn add_net(&mut self, mut config: NetConfig, files: Vec<OwnedFd>) -> Result<(), DeviceError> {
        self.check_new(&config.id)?;
        if let Some(name) = &config.name {
            check_net_name(name)?;
        }
        let made = make_net(&config, Some(files))?;
        let slot = self.plug_net(&config, made)?;
        config.slot = Some(slot);
        self.config.nets.push(config);
        self.announce_slot(slot);
        Ok(())
    }

    /// The port of the guest agent: what is said to it, and what it says.
    pub fn agent(&self) -> Option<(&ConsoleHandle, &ConsoleOutput)> {
        self.slots.iter().find_map(|slot| match &slot.handle {
            DeviceHandle::Agent(port, output) => Some((port, output)),
            _ => None,
        })
    }

    fn announce_slot(&self, slot: u8) {
        self.acpi.lock().expect("device lock").slot_added(slot);
    }

    fn check_new(&self, id: &str) -> Result<(), DeviceError> {
        check_id(id)?;
        match self.device(id).is_ok() || BUILT_IN_IDS.contains(&id) {
            true => Err(DeviceError::Exists(id.into())),
            false => Ok(()),
        }
    }

    /// Asks the guest to give a disk or network card back. It is gone when the guest has done so (an event says so).
    pub fn request_removal(&mut self, id: &str) -> Result<(), DeviceError> {
        let device = self.device(id)?;
        if BUILT_IN_IDS.contains(&id) {
            return Err(DeviceError::BuiltIn(id.into()));
        }
        self.acpi.lock().expect("device lock").slot_leaving(device.slot);
        Ok(())
    }

    /// Takes away the device in a slot after the guest gave it back. Returns its name.
    pub fn remove_slot(&mut self, slot: u8) -> Option<String> {
        let index = self.slots.iter().position(|device| device.slot == slot)?;
        // A guest may eject anything; what it was not asked for, it merely loses, but the machine's own devices stay.
        if BUILT_IN_IDS.contains(&self.slots[index].id.as_str()) {
            return None;
        }
        self.pci.lock().expect("PCI lock").unplug(slot);
        self.acpi.lock().expect("device lock").forget_name(slot);
        let id = self.slots.remove(index).id;
        self.config.disks.retain(|disk| disk.id != id);
        self.config.nets.retain(|net| net.id != id);
        Some(id)
    }

    /// Grows a disk, and tells the guest.
    pub fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), DeviceError> {
        match &self.device(id)?.handle {
            DeviceHandle::Block(block) => Ok(block.lock().expect("device lock").set_capacity(bytes)?),
            _ => Err(DeviceError::Kind { id: id.into(), wanted: "a disk" }),
        }
    }

    /// Limits what a disk may do, from now on.
    pub fn set_disk_limits(&mut self, id: &str, limits: DiskLimits) -> Result<(), DeviceError> {
        match &self.device(id)?.handle {
            DeviceHandle::Block(block) => block.lock().expect("device lock").disk().set_limits(limits.into()),
            _ => return Err(DeviceError::Kind { id: id.into(), wanted: "a disk" }),
        }
        self.config.disks.iter_mut().filter(|disk| disk.id == id).for_each(|disk| disk.limits = limits);
        Ok(())
    }

    /// Limits what a network card may carry, from now on.
    pub fn set_net_limits(&mut self, id: &str, limits: NetLimits) -> Result<(), DeviceError> {
        match &self.device(id)?.handle {
            DeviceHandle::Net(net) => net.set_limits(limits),
            _ => return Err(DeviceError::Kind { id: id.into(), wanted: "a network card on a TAP" }),
        }
        self.config.nets.iter_mut().filter(|net| net.id == id).for_each(|net| net.limits = limits);
        Ok(())
    }

    /// Plugs a network card's cable in or out.
    pub fn set_link(&self, id: &str, up: bool) -> Result<(), DeviceError> {
        match &self.device(id)?.handle {
            DeviceHandle::Net(net) => net.set_link(up),
            DeviceHandle::VhostUser(net) => net.net().set_link(up),
            _ => return Err(DeviceError::Kind { id: id.into(), wanted: "a network card" }),
        }
        Ok(())
    }

    /// Makes the network learn where the VM is now.
    pub(super) fn announce_nets(&self) {
        for slot in &self.slots {
            match &slot.handle {
                DeviceHandle::Net(net) => net.announce(),
                DeviceHandle::VhostUser(net) => net.net().announce(),
                _ => {}
            }
        }
    }

    /// A reset of the machine takes hot-added memory back, which a reset of its device alone must not.
    pub(super) fn reset_memory_device(&self) {
        debug_assert!(self.state == RunState::Paused, "reset while running");
        for slot in &self.slots {
            if let DeviceHandle::Memory(memory) = &slot.handle {
                memory.system_reset(&self.memory.guest);
            }
        }
    }
}

fn host(id: &str) -> impl FnOnce(std::io::Error) -> DeviceError {
    let id = id.to_string();
    move |source| DeviceError::Host { id, what: "the host refused", source }
}

/// A network card. `files`: opened queues of a TAP; `None` opens the TAP by its name.
fn make_net(config: &NetConfig, files: Option<Vec<OwnedFd>>) -> Result<Made, DeviceError> {
    let id = || config.id.clone();
    match &config.backend {
        NetBackend::Tap(name) => {
            let wanted = usize::from(config.queue_pairs);
            let backend = match files {
                None => TapBackend::Name(name.clone()),
                Some(files) if files.len() == wanted => TapBackend::Taps(files),
                Some(files) => return Err(DeviceError::Descriptors { id: id(), wanted, found: files.len() }),
            };
            let device =
                Net::new(NetDeviceConfig { mac: config.mac.0, mtu: config.mtu, queue_pairs: config.queue_pairs, backend })
                    .map_err(|source| DeviceError::Net { id: id(), source })?;
            device.handle().set_limits(config.limits);
            let handle = DeviceHandle::Net(device.handle());
            Ok((Arc::new(Mutex::new(device)), handle))
        }
        NetBackend::VhostUser(socket) => {
            let device = VhostUserNet::new(VhostUserConfig {
                mac: config.mac.0,
                mtu: config.mtu,
                queue_pairs: config.queue_pairs,
                socket: socket.clone(),
            })
            .map_err(|source| DeviceError::VhostUser { id: id(), source })?;
            let handle = DeviceHandle::VhostUser(device.handle());
            Ok((Arc::new(Mutex::new(device)), handle))
        }
    }
}
