//! The directory that all hosts of a lab share, as virtio-fs: QEMU has the device, this process answers it.
//!
//! ```text
//!   kernel of a host ─ virtio-fs queue (in the host's memory) ─► thread of this process ─► directory
//! ```
//!
//! Hosts cache nothing of it, neither data nor names, so that each sees at once what another has written. A host that loses its
//! power takes only its own open files along. The lab's user owns what hosts make: without root here, only root there can.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::FsOptions;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::api::{Vfs, VfsOptions};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// By which hosts find it.
pub const TAG: &str = "shared";
/// Entries of a queue.
pub const QUEUE_SIZE: usize = 1024;
/// One for requests, and one for what must not wait behind them.
const QUEUES: usize = 2;
/// `VIRTIO_F_VERSION_1`, virtio 1.2 §6.
const VERSION_1: u64 = 1 << 32;

/// What answers one host, from before its QEMU starts until after that has ended.
#[derive(Debug)]
pub struct Service {
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Waits at `socket` for one QEMU, and gives its host `directory`.
    ///
    /// # Errors
    /// When the socket or the directory cannot be used.
    pub fn start(socket: PathBuf, directory: &Path) -> io::Result<Self> {
        let mut listener = Listener::new(&socket, true).map_err(io::Error::other)?;
        let device = Device::new(directory)?;
        let stop = device.stop.1.try_clone()?;
        let serve = move || {
            // The file system clears the umask of its thread, which is that of the whole process until they are parted.
            // SAFETY: no pointers.
            if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                return;
            }
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let Ok(mut daemon) = VhostUserDaemon::new("shared".into(), Arc::new(Mutex::new(device)), memory) else { return };
            // However QEMU ends, and whether it ever came, is told by whoever waits for the host.
            let _ = daemon.start(&mut listener).and_then(|()| daemon.wait());
            let _ = stop.notify();
        };
        let thread = thread::Builder::new().name("shared".into()).spawn(serve)?;
        Ok(Service { socket, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // If QEMU never came, this is what it waits for.
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The device as `vhost-user-backend` drives it.
struct Device {
    server: Server<Vfs>,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    stop: (EventConsumer, EventNotifier),
}

impl Device {
    fn new(directory: &Path) -> io::Result<Self> {
        let config = Config {
            root_dir: directory.display().to_string(),
            cache_policy: CachePolicy::Never,
            attr_timeout: Duration::ZERO,
            entry_timeout: Duration::ZERO,
            // A file has the same number on all hosts.
            use_host_ino: true,
            // A host goes around its own cache. That of this machine does not end with it, and has no rules for how requests are aligned.
            allow_direct_io: false,
            // It is done here, before it is mounted.
            do_import: false,
            ..Config::default()
        };
        // By itself the file system takes 4 KiB in one request.
        let requests = FsOptions::BIG_WRITES | FsOptions::MAX_PAGES;
        let options = VfsOptions {
            no_open: false,
            no_opendir: false,
            no_writeback: true,
            out_opts: requests | FsOptions::DO_READDIRPLUS | FsOptions::READDIRPLUS_AUTO,
            ..VfsOptions::default()
        };
        let (vfs, files) = (Vfs::new(options), PassthroughFs::<()>::new(config)?);
        files.import()?;
        vfs.mount(Box::new(files), "/").map_err(io::Error::other)?;
        let server = Server::new(vfs);
        Ok(Device { server, memory: None, stop: new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)? })
    }

    fn answer(&self, ring: &VringRwLock) -> io::Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let memory = memory.memory();
        let requests: Vec<_> = ring.get_mut().get_queue_mut().iter(memory.clone()).map_err(io::Error::other)?.collect();
        for request in requests {
            let head = request.head_index();
            let reader = Reader::from_descriptor_chain(&*memory, request.clone());
            let writer = VirtioFsWriter::new(&*memory, request);
            // To a request that is none, the kernel gets an answer without content, which is an error to it.
            let written = match (reader, writer) {
                (Ok(reader), Ok(writer)) => self.server.handle_message(reader, writer.into(), None, None).unwrap_or(0),
                _ => 0,
            };
            ring.add_used(head, written as u32).map_err(io::Error::other)?;
            ring.signal_used_queue()?;
        }
        Ok(())
    }
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.stop.0.try_clone().ok()?, self.stop.1.try_clone().ok()?))
    }

    fn handle_event(&mut self, queue: u16, _events: EventSet, rings: &[VringRwLock], _thread: usize) -> io::Result<()> {
        let Some(ring) = rings.get(usize::from(queue)) else { return Ok(()) };
        loop {
            ring.disable_notification().map_err(io::Error::other)?;
            self.answer(ring)?;
            // What came in between did not kick.
            if !ring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}
