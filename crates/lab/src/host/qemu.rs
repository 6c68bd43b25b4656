//! QEMU's command line for one host.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use super::Accelerator;
use super::share::{QUEUE_SIZE, TAG};

/// Where hosts have the directory that they share.
pub const SHARED_DIR: &str = "/shared";
/// Where a host keeps its state: what a state disk is mounted at.
pub const STATE_DIR: &str = "/var/lib/maru";

/// A host's disk as QEMU opens it.
#[derive(Debug, Clone)]
pub struct DiskFile {
    /// The raw file.
    pub path: PathBuf,
    /// Whether other hosts have it open too: then nothing may be cached or locked here.
    pub sharing: Sharing,
}

/// Who uses a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One host.
    Private,
    /// Several hosts, like a shared LUN.
    Shared,
}

/// Everything a host is made of. Fixed while the lab lives; the machine is built from it at every power-on.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// `h1`, `h2`...
    pub name: String,
    /// Counted from 0.
    pub index: usize,
    /// Memory in MiB; taken from this machine only as the host touches it.
    pub memory_mib: u32,
    /// Processors for programs and VMs.
    pub cpus: u32,
    /// Disks in order; the host sees them as `/dev/vda`, `/dev/vdb`...
    pub disks: Vec<DiskFile>,
    /// Whether the last disk has an ext4 file system for the host's state.
    pub state_disk: bool,
    /// A directory of this machine that the host shares with others.
    pub shared_dir: Option<PathBuf>,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// Logs and disks.
    pub state_dir: PathBuf,
    /// What executes the processors.
    pub accelerator: Accelerator,
    /// Whether it runs `marud`.
    pub managed: bool,
    /// Words added to the kernel's command line.
    pub kernel_words: String,
    /// QEMU program.
    pub qemu: String,
    /// Arguments added to QEMU's.
    pub qemu_arguments: Vec<String>,
}

impl HostSpec {
    /// The exec agent's socket.
    pub fn exec_socket(&self) -> PathBuf {
        self.runtime_dir.join(format!("{}.exec", self.name))
    }

    /// QEMU's control socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.runtime_dir.join(format!("{}.qmp", self.name))
    }

    /// QEMU's second control socket, on which it tells what happens.
    pub fn events_socket(&self) -> PathBuf {
        self.runtime_dir.join(format!("{}.events", self.name))
    }

    /// Where this process answers QEMU's virtio-fs device.
    pub fn shared_socket(&self) -> PathBuf {
        self.runtime_dir.join(format!("{}.fs", self.name))
    }

    /// What the host's kernel and PID 1 print.
    pub fn serial_log(&self) -> PathBuf {
        self.state_dir.join("serial.log")
    }

    /// What QEMU itself complains about.
    pub fn qemu_log(&self) -> PathBuf {
        self.state_dir.join("qemu.log")
    }

    /// MAC address of the management NIC.
    pub fn management_mac(&self) -> String {
        format!("52:54:00:6d:00:{:02x}", self.index + 1)
    }

    /// MAC address of the NIC on cable net `cable`.
    pub fn cable_mac(&self, cable: usize) -> String {
        format!("52:54:00:6d:{:02x}:{:02x}", cable + 1, self.index + 1)
    }

    /// Address of the NIC on cable net `cable`: `10.10.CABLE.HOST`.
    pub fn cable_address(&self, cable: usize) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(10, 10, cable as u8, self.index as u8 + 1)
    }

    fn kernel_command_line(&self) -> String {
        let mut line = format!(
            "console=ttyS0 panic=1 {} random.trust_cpu=on maru.lab=1 maru.hostname={} \
             maru.nic=mgmt,{},10.0.2.15/24 maru.gateway=10.0.2.2 maru.nameserver=10.0.2.3",
            self.accelerator.kernel_words(self.cpus),
            self.name,
            self.management_mac(),
        );
        for cable in 0..2 {
            line += &format!(" maru.nic=cable{cable},{},{}/24", self.cable_mac(cable), self.cable_address(cable));
        }
        if self.shared_dir.is_some() {
            line += &format!(" maru.mount=virtiofs,{TAG},{SHARED_DIR}");
        }
        if self.state_disk {
            let letter = char::from(b'a' + self.disks.len().saturating_sub(1) as u8);
            line += &format!(" maru.mount=ext4,/dev/vd{letter},{STATE_DIR}");
        }
        if self.managed {
            line += &format!(" maru.marud=1 maru.volume=local={STATE_DIR}/volumes/local");
            if self.shared_dir.is_some() {
                line += &format!(" maru.volume=shared={SHARED_DIR}");
            }
        }
        format!("{line} {}", self.kernel_words)
    }

    /// The machine, with its cable NICs on the given sockets.
    pub fn command(&self, cables: &[OwnedFd]) -> Command {
        let mut command = Command::new(&self.qemu);
        let mut add = |words: &[&str]| {
            command.args(words);
        };
        add(&["-name", &self.name, "-nodefaults", "-no-user-config", "-display", "none"]);
        add(&["-machine", "q35,usb=off,smbus=off,sata=off,vmport=off,graphics=off"]);
        add(&self.accelerator.arguments());
        add(&["-m", &format!("{}M", self.memory_mib), "-smp", &self.accelerator.processors(self.cpus).to_string()]);
        if self.shared_dir.is_some() {
            // The service reads requests in the host's memory, and writes answers there.
            add(&["-object", &format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib)]);
            add(&["-machine", "memory-backend=memory"]);
            add(&["-chardev", &format!("socket,id=shared,path={}", path(&self.shared_socket()))]);
            add(&["-device", &format!("vhost-user-fs-pci,chardev=shared,tag={TAG},queue-size={QUEUE_SIZE}")]);
        }
        add(&["-kernel", &path(&self.kernel), "-initrd", &path(&self.initramfs)]);
        add(&["-append", &self.kernel_command_line()]);
        add(&["-chardev", &format!("file,id=serial,path={},append=on", path(&self.serial_log())), "-serial", "chardev:serial"]);
        for socket in [self.qmp_socket(), self.events_socket()] {
            add(&["-qmp", &format!("unix:{},server=on,wait=off", path(&socket))]);
        }
        add(&["-device", "virtio-rng-pci"]);
        add(&["-device", "virtio-serial-pci"]);
        add(&["-chardev", &format!("socket,id=exec,path={},server=on,wait=off", path(&self.exec_socket()))]);
        add(&["-device", &format!("virtserialport,chardev=exec,name={}", crate::agent::PORT_NAME)]);
        add(&["-netdev", "user,id=mgmt"]);
        add(&["-device", &format!("virtio-net-pci,netdev=mgmt,mac={},romfile=", self.management_mac())]);
        for (cable, socket) in cables.iter().enumerate() {
            add(&["-netdev", &format!("stream,id=cable{cable},server=off,addr.type=fd,addr.str={}", socket.as_raw_fd())]);
            let mac = self.cable_mac(cable);
            add(&["-device", &format!("virtio-net-pci,netdev=cable{cable},mac={mac},romfile=")]);
        }
        for (n, disk) in self.disks.iter().enumerate() {
            let (file, serial, shared) = match disk.sharing {
                Sharing::Private => ("discard=unmap,detect-zeroes=unmap", "disk", ""),
                Sharing::Shared => ("cache.direct=on,locking=off", "shared", ",share-rw=on"),
            };
            // A host that loses its power loses what it has not written; this machine goes on, and so does what it has in its cache. Flushing
            // that, too, would let each host wait for all that the others write.
            let file = format!("{file},cache.no-flush=on");
            // The filter between file and device is where a fault or a limit goes later, see disk.rs.
            add(&["-blockdev", &format!("driver=file,node-name=disk{n}-file,filename={},{file}", path(&disk.path))]);
            add(&["-object", &format!("throttle-group,id=disk{n}-limit")]);
            add(&["-blockdev", &format!("driver=throttle,node-name=disk{n},throttle-group=disk{n}-limit,file=disk{n}-file")]);
            // Errors go to the host, as from a real disk, instead of stopping the machine.
            let device = format!("virtio-blk-pci,drive=disk{n},serial={serial}{n},werror=report,rerror=report{shared}");
            add(&["-device", &device]);
        }
        command.args(&self.qemu_arguments);
        command
    }
}

/// A path inside one of QEMU's comma-separated options, where a comma is written twice.
fn path(path: &std::path::Path) -> String {
    path.display().to_string().replace(',', ",,")
}
