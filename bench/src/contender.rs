//! The monitors that are compared, and how each is started for the same VM.
//!
//! QEMU is given its fastest documented form, not its defaults: no devices that nobody asked for, no option ROMs,
//! and its default memory, private and in huge pages where the host gives them. Nothing that it needs for the same VM is left out.

use lab::appliance::{QEMU, QEMU_ROMS};
use serde_json::json;

/// A monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// Ours.
    Maru,
    /// QEMU's `microvm` machine as its manual recommends for fast boots (`docs/system/i386/microvm.rst`): virtio-mmio, qboot
    /// as firmware, neither option ROMs nor legacy timers and interrupt controllers. ACPI stays on, because Debian's
    /// kernel finds neither virtio-mmio devices nor a second vCPU without it, and so does the clock, for which the kernel
    /// would wait ten seconds.
    QemuMicrovm,
    /// QEMU's `q35` machine with virtio over PCI.
    QemuQ35,
}

impl Contender {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Maru => "maru-vmm",
            Contender::QemuMicrovm => "QEMU microvm",
            Contender::QemuQ35 => "QEMU q35",
        }
    }
}

/// How a disk reaches its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Around the host's page cache.
    Direct,
    /// Through it.
    Buffered,
}

/// The VM that all run. Paths are the lab host's.
#[derive(Debug, Clone)]
pub struct Vm {
    /// vCPUs.
    pub cpus: u32,
    /// MiB.
    pub memory_mib: u32,
    /// Kernel command line.
    pub command_line: String,
    /// Raw file of its disk.
    pub disk: String,
    /// How the disk reaches the file.
    pub caching: Caching,
    /// Queues of the disk.
    pub queues: u32,
    /// TAP of its network card, if it has one.
    pub tap: Option<String>,
    /// Whether QEMU serves the disk from a thread of its own, as its manual recommends for speed, or from its main loop.
    pub qemu_iothread: bool,
    /// Whether QEMU's guest memory is a shared memfd, as ours always is and as vhost-user needs, or private.
    pub qemu_shared_memory: bool,
}

/// The kernel in the lab host.
pub const KERNEL: &str = "/bench/vmlinuz";
/// The guest's initramfs in the lab host.
pub const INITRD: &str = "/bench/guest.cpio";
const MAC: &str = "52:54:00:12:34:56";

impl Vm {
    /// The command line that runs it on `contender`, console on standard input and output.
    pub fn argv(&self, contender: Contender) -> Vec<String> {
        match contender {
            Contender::Maru => self.maru(),
            Contender::QemuMicrovm => self.qemu(
                &["-M", "microvm,acpi=on,pcie=off,x-option-roms=off,pit=off,pic=off,rtc=on", "-bios", "qboot.rom"],
                "device",
            ),
            Contender::QemuQ35 => self.qemu(&["-M", "q35,usb=off,smbus=off,sata=off,vmport=off,graphics=off"], "pci"),
        }
    }

    fn maru(&self) -> Vec<String> {
        vec!["/bin/maru-vmm".into(), "--config".into(), self.maru_config_path()]
    }

    /// Where [`Vm::maru_config`] has to be for [`Vm::argv`].
    pub fn maru_config_path(&self) -> String {
        format!("/bench/vm-{}-{:?}.json", self.cpus, self.caching).to_lowercase()
    }

    /// The configuration of our monitor.
    pub fn maru_config(&self) -> String {
        let nets: Vec<_> = self.tap.iter().map(|tap| json!({ "id": "net0", "mac": MAC, "backend": { "tap": tap } })).collect();
        json!({
            "cpus": { "count": self.cpus },
            "memory": { "size": u64::from(self.memory_mib) << 20 },
            "boot": { "kernel": KERNEL, "initrd": INITRD, "command_line": self.command_line },
            "disks": [{
                "id": "disk0",
                "path": self.disk,
                "direct": self.caching == Caching::Direct,
                "queues": self.queues,
            }],
            "nets": nets,
            "rng": false,
            "on_reset": "exit",
        })
        .to_string()
    }

    fn qemu(&self, machine: &[&str], transport: &str) -> Vec<String> {
        let mut argv = vec![QEMU.to_owned()];
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["-L", QEMU_ROMS, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        add(machine);
        add(&["-accel", "kvm", "-cpu", "host", "-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory_mib)]);
        if self.qemu_shared_memory {
            let memory = format!("memory-backend-memfd,id=ram,size={}M,share=on", self.memory_mib);
            add(&["-object", &memory, "-machine", "memory-backend=ram"]);
        }
        add(&["-kernel", KERNEL, "-initrd", INITRD, "-append", &self.command_line]);
        let caching = match self.caching {
            Caching::Direct => "cache=none,aio=io_uring",
            Caching::Buffered => "cache=writeback,aio=io_uring",
        };
        // Locking off: the monitors that are compared run at the same time on one file, and take turns in using it.
        add(&["-drive", &format!("if=none,id=disk0,format=raw,file={},file.locking=off,{caching}", self.disk)]);
        let iothread = if self.qemu_iothread {
            add(&["-object", "iothread,id=io0"]);
            ",iothread=io0"
        } else {
            ""
        };
        add(&["-device", &format!("virtio-blk-{transport},drive=disk0,num-queues={}{iothread}", self.queues)]);
        if let Some(tap) = &self.tap {
            let rom = if transport == "pci" { ",romfile=" } else { "" };
            add(&["-netdev", &format!("tap,id=net0,ifname={tap},script=no,downscript=no")]);
            add(&["-device", &format!("virtio-net-{transport},netdev=net0,mac={MAC}{rom}")]);
        }
        argv
    }
}
