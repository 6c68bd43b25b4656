//! Direct kernel boot: puts kernel, initrd and command line into guest memory and says how the first vCPU starts.
//!
//! Two protocols: the Linux 64-bit entry of a bzImage (Linux `Documentation/arch/x86/boot.rst`, "64-bit boot protocol") and the PVH entry of
//! an ELF kernel (Xen `docs/misc/pvh.pandoc`). Everything is loaded anew on each reset of the VM, from files that stay open.

mod registers;
mod unpack;

use std::fs::File;
use std::io::{self, Cursor};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

pub use registers::set_registers;

use crate::acpi::controller;
use crate::memory::Memory;
use crate::memory::layout::{ACPI_PORT, ACPI_START, HIGH_MEMORY_START, PAGE, RESERVED_START};
use crate::virtio::GuestMemory;

const PVH_START_INFO: u64 = 0x6000;
const PVH_MODULES: u64 = 0x6040;
const PVH_MEMORY_MAP: u64 = 0x6100;
const ZERO_PAGE: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
/// From `COMMAND_LINE` to well below the reserved area; Linux itself takes 2 KiB.
const COMMAND_LINE_MAX: usize = 0x1_0000;
/// Where a PC's firmware is entered in real mode (f000:fff0).
const RESET_VECTOR: u64 = 0xf_fff0;
/// `mov dx, RESET; mov al, 1; out dx, al`, then `hlt` for ever. Linux takes a machine with hardware-reduced ACPI for one with EFI; without
/// EFI it restarts through the firmware's entry, whatever the ACPI tables say.
const RESET_CODE: [u8; 9] = {
    let port = ((ACPI_PORT + controller::RESET) as u16).to_le_bytes();
    [0xba, port[0], port[1], 0xb0, controller::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
};
/// Type of usable memory in the memory maps of both protocols.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// What to boot, with its files open.
pub struct BootFiles {
    kernel: File,
    kernel_path: PathBuf,
    initrd: Option<(File, PathBuf)>,
    command_line: String,
}

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode, with the address of the zero page.
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// In 32-bit mode without paging, with the address of the start info.
    Pvh {
        /// First instruction.
        rip: u64,
    },
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened or read.
    #[error("{role} {path}: {source}")]
    File {
        /// Kernel or initrd.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no kernel.
    #[error("kernel {path}: {reason}; a bzImage (vmlinuz) or an ELF kernel (vmlinux) with a PVH entry is needed")]
    NotAKernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel is cut short.
    #[error("kernel {path}: truncated: its header promises {promised} bytes, the file has {actual}")]
    Truncated {
        /// Its path.
        path: PathBuf,
        /// Bytes that should be there.
        promised: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// It does not fit.
    #[error("{role} {path} does not fit: it needs {needed} MiB, the VM has {memory} MiB; give the VM more memory")]
    TooLarge {
        /// Kernel or initrd.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// MiB needed in all.
        needed: u64,
        /// MiB of the VM.
        memory: u64,
    },
    /// The command line is too long or has a NUL byte in it.
    #[error("command line: {0}")]
    CommandLine(String),
    /// Guest memory could not be written: a bug, as all addresses are checked before.
    #[error("writing boot data to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

impl BootFiles {
    /// Opens the files and looks at the kernel's header, so that mistakes are found before the VM starts.
    pub fn open(kernel: &Path, initrd: Option<&Path>, command_line: &str) -> Result<BootFiles, BootError> {
        let open = |role: &'static str, path: &Path| {
            let error = |source| BootError::File { role, path: path.into(), source };
            let file = File::open(path).map_err(error)?;
            match file.metadata().map_err(error)?.is_file() {
                true => Ok(file),
                false => Err(error(io::Error::other("not a regular file"))),
            }
        };
        if command_line.contains('\0') {
            return Err(BootError::CommandLine("contains a NUL byte".into()));
        }
        let files = BootFiles {
            kernel: open("kernel", kernel)?,
            kernel_path: kernel.into(),
            initrd: initrd.map(|path| Ok::<_, BootError>((open("initrd", path)?, path.into()))).transpose()?,
            command_line: command_line.into(),
        };
        files.kind()?;
        Ok(files)
    }

    fn not_a_kernel(&self, reason: impl Into<String>) -> BootError {
        BootError::NotAKernel { path: self.kernel_path.clone(), reason: reason.into() }
    }

    fn kind(&self) -> Result<Kind, BootError> {
        let error = |source| BootError::File { role: "kernel", path: self.kernel_path.clone(), source };
        let length = self.kernel.metadata().map_err(error)?.len();
        let mut head = [0; 0x300];
        let read = self.kernel.read_at(&mut head, 0).map_err(error)?;
        let head = &head[..read];
        if head.starts_with(b"\x7fELF") {
            return Ok(Kind::Elf);
        }
        let Some(bytes) = head.get(0x1f1..0x1f1 + size_of::<setup_header>()) else {
            return Err(self.not_a_kernel(if read == 0 { "the file is empty" } else { "no known format" }));
        };
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(bytes);
        if header.header != 0x5372_6448 {
            return Err(self.not_a_kernel("no known format"));
        }
        if header.version < 0x20c || header.xloadflags & 1 == 0 {
            return Err(self.not_a_kernel("it has no 64-bit entry (Linux for x86-64, 3.8 or newer, has one)"));
        }
        // syssize counts the protected-mode code in 16-byte units.
        let promised = (u64::from(header.setup_sects.max(1)) + 1) * 512 + u64::from(header.syssize) * 16;
        if length < promised {
            return Err(BootError::Truncated { path: self.kernel_path.clone(), promised, actual: length });
        }
        Ok(Kind::BzImage(Box::new(header)))
    }

    /// Puts everything into guest memory.
    pub fn load(&self, memory: &Memory) -> Result<Entry, BootError> {
        let guest = &*memory.guest;
        guest.write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))?;
        match self.kind()? {
            Kind::BzImage(header) => self.load_bzimage(guest, memory, &header),
            Kind::Elf => self.load_elf(guest, memory),
        }
    }

    fn load_bzimage(&self, guest: &GuestMemory, memory: &Memory, header: &setup_header) -> Result<Entry, BootError> {
        // The kernel unpacks itself to its preferred address (16 MiB) or where it is loaded, whichever is higher.
        let unpacked_end = header.pref_address.max(HIGH_MEMORY_START).saturating_add(u64::from(header.init_size));
        let mut file = self.reopen()?;
        let (entry, kernel) = if unpacked_end <= low_memory(memory) {
            let loaded = BzImage::load(guest, Some(GuestAddress(HIGH_MEMORY_START)), &mut file, None)
                .map_err(|e| self.not_a_kernel(e.to_string()))?;
            (loaded.kernel_load.0 + 0x200, HIGH_MEMORY_START..unpacked_end)
        } else {
            // Unpacking in place takes room that a small VM lacks: unpack it here. What is lost is the random place in memory, for
            // which such a VM has no room either.
            let elf = unpack::kernel(&self.kernel, header);
            let load = |elf| Elf::load(guest, None, &mut Cursor::new(elf), Some(GuestAddress(HIGH_MEMORY_START))).ok();
            match elf.and_then(load) {
                // Linux's entry is its lowest address.
                Some(loaded) => (loaded.kernel_load.0, loaded.kernel_load.0..loaded.kernel_end),
                None => return Err(self.too_large("kernel", &self.kernel_path, unpacked_end, memory)),
            }
        };
        let limit = u64::from(header.initrd_addr_max).saturating_add(1);
        let initrd = self.load_initrd(guest, memory, kernel, limit)?;
        self.write_command_line(guest, header.cmdline_size as usize)?;

        let mut params = boot_params { hdr: *header, ..Default::default() };
        params.hdr.code32_start = HIGH_MEMORY_START as u32;
        params.hdr.type_of_loader = 0xff;
        params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
        if let Some((address, size)) = initrd {
            params.hdr.ramdisk_image = address as u32;
            params.hdr.ramdisk_size = size as u32;
        }
        params.acpi_rsdp_addr = ACPI_START;
        let map = memory_map(memory);
        params.e820_entries = map.len() as u8;
        for (entry, (start, size, kind)) in params.e820_table.iter_mut().zip(map) {
            (entry.addr, entry.size, entry.r#type) = (start, size, kind);
        }
        guest.write_obj(params, GuestAddress(ZERO_PAGE))?;
        Ok(Entry::Linux64 { rip: entry })
    }

    fn load_elf(&self, guest: &GuestMemory, memory: &Memory) -> Result<Entry, BootError> {
        let mut file = self.reopen()?;
        let loaded = Elf::load(guest, None, &mut file, Some(GuestAddress(HIGH_MEMORY_START)))
            .map_err(|e| self.not_a_kernel(e.to_string()))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(self.not_a_kernel("it has no PVH entry (CONFIG_PVH)"));
        };
        let initrd = self.load_initrd(guest, memory, HIGH_MEMORY_START..loaded.kernel_end, u64::MAX)?;
        self.write_command_line(guest, COMMAND_LINE_MAX)?;
        let map = memory_map(memory);
        let mut info = hvm_start_info {
            magic: 0x336e_c578,
            version: 1,
            cmdline_paddr: COMMAND_LINE,
            rsdp_paddr: ACPI_START,
            memmap_paddr: PVH_MEMORY_MAP,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        if let Some((paddr, size)) = initrd {
            guest.write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(PVH_MODULES))?;
            (info.nr_modules, info.modlist_paddr) = (1, PVH_MODULES);
        }
        for (index, (addr, size, type_)) in (0u64..).zip(map) {
            let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
            guest.write_obj(entry, GuestAddress(PVH_MEMORY_MAP + index * size_of::<hvm_memmap_table_entry>() as u64))?;
        }
        guest.write_obj(info, GuestAddress(PVH_START_INFO))?;
        Ok(Entry::Pvh { rip: entry.0 })
    }

    /// The loaders seek; the shared file position of a duplicate is nobody else's business here.
    fn reopen(&self) -> Result<File, BootError> {
        self.kernel.try_clone().map_err(|source| BootError::File { role: "kernel", path: self.kernel_path.clone(), source })
    }

    fn too_large(&self, role: &'static str, path: &Path, end: u64, memory: &Memory) -> BootError {
        BootError::TooLarge { role, path: path.into(), needed: end.div_ceil(1 << 20), memory: low_memory(memory) >> 20 }
    }

    /// Puts the initrd as high as it may be, or below the kernel if there is no room above it; returns its address and size.
    fn load_initrd(
        &self,
        guest: &GuestMemory,
        memory: &Memory,
        kernel: Range<u64>,
        limit: u64,
    ) -> Result<Option<(u64, u64)>, BootError> {
        let Some((file, path)) = &self.initrd else { return Ok(None) };
        let error = |source| BootError::File { role: "initrd", path: path.clone(), source };
        let size = file.metadata().map_err(error)?.len();
        if size == 0 {
            return Err(error(io::Error::other("the file is empty")));
        }
        let below = |end: u64| end.checked_sub(size).map(|start| start & !(PAGE - 1));
        let above_kernel = below(low_memory(memory).min(limit)).filter(|address| *address >= kernel.end);
        let below_kernel = || below(kernel.start.min(limit)).filter(|address| *address >= HIGH_MEMORY_START);
        let Some(address) = above_kernel.or_else(below_kernel) else {
            return Err(self.too_large("initrd", path, kernel.end.saturating_add(size).saturating_add(PAGE), memory));
        };
        let mut file = file.try_clone().map_err(error)?;
        io::Seek::rewind(&mut file).map_err(error)?;
        guest.read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)?;
        Ok(Some((address, size)))
    }

    fn write_command_line(&self, guest: &GuestMemory, kernel_limit: usize) -> Result<(), BootError> {
        let limit = kernel_limit.min(COMMAND_LINE_MAX - 1);
        if self.command_line.len() > limit {
            let length = self.command_line.len();
            return Err(BootError::CommandLine(format!("{length} bytes long, the kernel takes {limit}")));
        }
        guest.write_slice(self.command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
        guest.write_obj(0u8, GuestAddress(COMMAND_LINE + self.command_line.len() as u64))?;
        Ok(())
    }
}

enum Kind {
    BzImage(Box<setup_header>),
    Elf,
}

fn low_memory(memory: &Memory) -> u64 {
    memory.guest.iter().next().map_or(0, |region| region.len())
}

/// Usable and reserved ranges. Memory for hot add is not in it: the guest learns of that from its device.
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, RESERVED_START, USABLE), (RESERVED_START, HIGH_MEMORY_START - RESERVED_START, RESERVED)];
    for region in memory.guest.iter() {
        let start = region.start_addr().0;
        if start == 0 {
            map.push((HIGH_MEMORY_START, region.len() - HIGH_MEMORY_START, USABLE));
        } else if start != memory.hotplug.0 || memory.hotplug.1 == 0 {
            map.push((start, region.len(), USABLE));
        }
    }
    map.push((crate::memory::layout::ECAM_START, crate::memory::layout::ECAM_SIZE, RESERVED));
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::MemoryConfig;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn memory() -> Memory {
        Memory::new(&MemoryConfig { size: 64 << 20, hotplug_size: 0, huge_pages: false }).unwrap()
    }

    /// A header that passes for Linux, with `code` bytes behind it.
    fn bzimage(syssize: u32, code: usize) -> Vec<u8> {
        let mut image = vec![0; 1024 + code];
        let header = setup_header {
            setup_sects: 1,
            header: 0x5372_6448,
            version: 0x20f,
            loadflags: 1,
            xloadflags: 1,
            syssize,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 0x10_0000,
            ..Default::default()
        };
        image[0x1f1..0x1f1 + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        image
    }

    #[test]
    fn foreign_and_damaged_kernels_are_refused_with_the_reason() {
        let cases: [(&[u8], &str); 4] = [
            (b"", "the file is empty"),
            (&[0x5a; 4096], "no known format"),
            (b"#!/bin/sh\n", "no known format"),
            (&bzimage(0x1000, 100), "truncated"),
        ];
        for (content, reason) in cases {
            let kernel = file(content);
            let error = BootFiles::open(kernel.path(), None, "").err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let error = BootFiles::open(Path::new("/nonexistent/vmlinuz"), None, "").err().unwrap().to_string();
        assert!(error.contains("/nonexistent/vmlinuz") && error.contains("No such file"), "{error}");
        let error = BootFiles::open(Path::new("/"), None, "").err().unwrap().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn an_elf_file_without_pvh_entry_or_with_lying_headers_is_no_kernel() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        for length in [64, 4096, own.len()] {
            let kernel = file(&own[..length]);
            let files = BootFiles::open(kernel.path(), None, "").unwrap();
            assert!(matches!(files.load(&memory()), Err(BootError::NotAKernel { .. })));
        }
        let mut lying = own[..4096].to_vec();
        for seed in 0..2000usize {
            lying[(seed * 7) % 512] = (seed * 31) as u8;
            lying[..4].copy_from_slice(b"\x7fELF");
            let kernel = file(&lying);
            let files = BootFiles::open(kernel.path(), None, "").unwrap();
            let _ = files.load(&memory());
        }
    }

    #[test]
    fn an_initrd_that_does_not_fit_says_how_much_memory_it_needs() {
        let kernel = file(&bzimage(0x10, 0x100));
        let initrd = file(b"");
        initrd.as_file().set_len(60 << 20).unwrap();
        let files = BootFiles::open(kernel.path(), Some(initrd.path()), "").unwrap();
        let error = files.load(&memory()).err().unwrap().to_string();
        assert!(error.contains("initrd") && error.contains("78 MiB") && error.contains("64 MiB"), "{error}");
    }

    #[test]
    fn a_kernel_is_loaded_with_its_initrd_and_command_line() {
        let kernel = file(&bzimage(0x10, 0x100));
        let initrd = file(b"initrd content");
        let files = BootFiles::open(kernel.path(), Some(initrd.path()), "console=ttyS0").unwrap();
        let memory = memory();
        assert_eq!(files.load(&memory).unwrap(), Entry::Linux64 { rip: 0x10_0200 });
        let params: boot_params = memory.guest.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let mut text = [0; 14];
        memory.guest.read_slice(&mut text, GuestAddress(u64::from(params.hdr.ramdisk_image))).unwrap();
        assert_eq!(&text, b"initrd content");
        memory.guest.read_slice(&mut text, GuestAddress(u64::from(params.hdr.cmd_line_ptr))).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
        let long = BootFiles::open(kernel.path(), None, &"x".repeat(2048)).unwrap();
        assert!(matches!(long.load(&memory), Err(BootError::CommandLine(_))));
    }
}
