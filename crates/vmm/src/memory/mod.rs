//! Guest memory: one memfd, mapped below and above the hole for devices, and KVM's view of it.
//!
//! The memfd can be handed to other processes (vhost-user back ends). Memory for hot add is part of it from the start, as
//! a hole in the file that costs nothing until the guest plugs it.

pub mod dirty;
pub mod layout;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::virtio::GuestMemory;
use layout::{FOUR_GIB, HOLE_START};

/// The smallest and the default alignment of sizes: hot add works in such blocks, and so do huge pages.
pub const BLOCK: u64 = 2 << 20;

/// How much memory a VM has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes at start: a multiple of 2 MiB, at least 64 MiB.
    pub size: u64,
    /// Bytes that can be added while it runs, a multiple of 2 MiB; 0 for none.
    #[serde(default)]
    pub hotplug_size: u64,
    /// Whether to use 2 MiB pages (`hugetlbfs`), which must be free on the host.
    #[serde(default)]
    pub huge_pages: bool,
}

/// Why there is no memory for the VM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size cannot be used.
    #[error("memory size {0} bytes: must be a multiple of 2 MiB and at least 64 MiB")]
    Size(u64),
    /// More than the host has.
    #[error("{wanted} MiB of memory wanted, but this host has only {available} MiB that it could give; choose a smaller size")]
    TooMuch {
        /// MiB asked for.
        wanted: u64,
        /// MiB that could be given.
        available: u64,
    },
    /// Not enough huge pages.
    #[error(
        "{wanted} huge pages of 2 MiB wanted, {free} are free; write a larger number to /proc/sys/vm/nr_hugepages or do without huge pages"
    )]
    HugePages {
        /// Pages asked for.
        wanted: u64,
        /// Pages that are free.
        free: u64,
    },
    /// The host refused.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The mapping failed.
    #[error("mapping guest memory: {0}")]
    Map(String),
}

/// The memory of a VM.
pub struct Memory {
    /// All regions, those for hot add included.
    pub guest: Arc<GuestMemory>,
    /// Where memory for hot add starts (guest address), and its length; length 0 if there is none.
    pub hotplug: (u64, u64),
    config: MemoryConfig,
}

impl Memory {
    /// Allocates guest memory; nothing of it is touched.
    pub fn new(config: &MemoryConfig) -> Result<Memory, MemoryError> {
        if config.size < 64 << 20 || !config.size.is_multiple_of(BLOCK) {
            return Err(MemoryError::Size(config.size));
        }
        if !config.hotplug_size.is_multiple_of(BLOCK) {
            return Err(MemoryError::Size(config.hotplug_size));
        }
        check_host_memory(config)?;
        let total = config.size + config.hotplug_size;
        let file = memfd(total, config.huge_pages)?;

        let low = config.size.min(HOLE_START);
        let high = config.size - low;
        // Linux adds memory in blocks of 128 MiB to 2 GiB.
        let hotplug_start = (FOUR_GIB + high).next_multiple_of(2 << 30);
        let mut offset = 0;
        let mut regions = Vec::new();
        for (start, size) in [(0, low), (FOUR_GIB, high), (hotplug_start, config.hotplug_size)] {
            if size > 0 {
                regions.push(map(&file, offset, start, size, config.huge_pages)?);
                offset += size;
            }
        }
        let guest = GuestMemory::from_regions(regions).map_err(|e| MemoryError::Map(e.to_string()))?;
        Ok(Memory { guest: Arc::new(guest), hotplug: (hotplug_start, config.hotplug_size), config: config.clone() })
    }

    /// Tells KVM about all regions. With `log_dirty`, KVM notes from now on which pages vCPUs write.
    pub fn register(&self, vm: &VmFd, log_dirty: bool) -> Result<(), MemoryError> {
        for (slot, region) in (0u32..).zip(self.guest.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a live mapping of guest memory, which outlives the VM's file descriptor: both are held by
            // the machine, and KVM takes references of its own to the pages.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|e| MemoryError::Host { what: "giving memory to KVM", source: e.into() })?;
        }
        Ok(())
    }

    /// First address behind all memory, that for hot add included, aligned to 1 GiB.
    pub fn end(&self) -> u64 {
        (self.hotplug.0 + self.hotplug.1).next_multiple_of(1 << 30)
    }

    /// What it was made from.
    pub fn config(&self) -> &MemoryConfig {
        &self.config
    }

    /// The size of the pages behind guest memory.
    pub fn page_size(&self) -> u64 {
        if self.config.huge_pages { BLOCK } else { layout::PAGE }
    }
}

fn map(file: &Arc<File>, offset: u64, start: u64, size: u64, huge: bool) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
    let page = std::num::NonZeroUsize::new(layout::PAGE as usize).expect("a page is not empty");
    let region = MmapRegionBuilder::new_with_bitmap(size as usize, AtomicBitmap::new(size as usize, page))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        // Huge pages are reserved at once: running out of them later would kill the VM.
        .with_mmap_flags(libc::MAP_SHARED | if huge { 0 } else { libc::MAP_NORESERVE })
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .with_hugetlbfs(huge)
        .build()
        .map_err(|e| MemoryError::Map(e.to_string()))?;
    // Not in core dumps: guest memory is the guest's secret, and large.
    let advise = |advice| {
        // SAFETY: the range is the mapping made above; neither advice changes what it holds.
        unsafe { libc::madvise(region.as_ptr().cast(), size as usize, advice) };
    };
    advise(libc::MADV_DONTDUMP);
    // Large pages where the host has them (`shmem_enabled`): a page table walk is two-dimensional in a guest, and each page that it touches
    // first costs an exit. Measured at boot: 31,000 exits without, 300 with them.
    advise(libc::MADV_HUGEPAGE);
    GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(|| MemoryError::Map("the address space overflows".into()))
}

fn memfd(size: u64, huge: bool) -> Result<Arc<File>, MemoryError> {
    let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { libc::MFD_ALLOW_SEALING };
    // SAFETY: the name is a NUL-terminated string, and the result is checked.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(MemoryError::Host { what: "creating the file behind guest memory", source: io::Error::last_os_error() });
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).map_err(|source| MemoryError::Host { what: "sizing guest memory", source })?;
    if !huge {
        // Nobody who gets the file may change its length under us: that would turn accesses into SIGBUS.
        // SAFETY: a plain fcntl on our own descriptor.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL) };
    }
    Ok(Arc::new(file))
}

fn check_host_memory(config: &MemoryConfig) -> Result<(), MemoryError> {
    let meminfo =
        std::fs::read_to_string("/proc/meminfo").map_err(|source| MemoryError::Host { what: "reading /proc/meminfo", source })?;
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    if config.huge_pages {
        let free = field("HugePages_Free").unwrap_or(0);
        let wanted = config.size / BLOCK;
        return if wanted > free { Err(MemoryError::HugePages { wanted, free }) } else { Ok(()) };
    }
    // The host's total is the limit, not what is free right now: pages are taken as the guest touches them.
    let total = field("MemTotal").unwrap_or(u64::MAX / 1024) * 1024;
    if config.size > total {
        return Err(MemoryError::TooMuch { wanted: config.size >> 20, available: total >> 20 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(size: u64, hotplug_size: u64) -> MemoryConfig {
        MemoryConfig { size, hotplug_size, huge_pages: false }
    }

    #[test]
    fn memory_leaves_the_hole_below_four_gib_free() {
        let total = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
        let size = (5u64 << 30).min((kib * 1024) / BLOCK * BLOCK);
        let memory = Memory::new(&config(size, 1 << 30)).unwrap();
        for address in [HOLE_START, HOLE_START + (FOUR_GIB - HOLE_START) / 2, FOUR_GIB - 1] {
            assert!(!memory.guest.address_in_range(GuestAddress(address)));
        }
        assert!(memory.guest.address_in_range(GuestAddress(memory.hotplug.0)));
        assert!(memory.end() >= memory.hotplug.0 + memory.hotplug.1);
        let total: u64 = memory.guest.iter().map(|r| r.len()).sum();
        assert_eq!(total, size + (1 << 30));
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_reason() {
        for size in [0, 63 << 20, (64 << 20) + 4096] {
            assert!(matches!(Memory::new(&config(size, 0)), Err(MemoryError::Size(s)) if s == size));
        }
        let error = Memory::new(&config(1 << 50, 0)).err().unwrap();
        assert!(error.to_string().contains("this host has only"), "{error}");
    }
}
