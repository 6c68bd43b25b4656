//! The appliance: a stock kernel and an initramfs with the Maru programs as its only user space.
//!
//! ```text
//!   apt-get download ─► build/kernel/PACKAGE/   (unpacked, never installed)
//!        programs, modules, files ─► newc archive ─► build/initramfs/NAME-FINGERPRINT.cpio
//! ```
//!
//! Everything is kept in the build directory ([`build_dir`]) and made again only when an input has changed. Two
//! processes that build at the same time wait for each other.

pub mod cpio;
mod fetch;
mod initramfs;
mod modules;
mod qemu;

pub use fetch::{Etcd, FetchError, Kernel, busybox, etcd, guest_agent, kernel};
pub use initramfs::{Initramfs, InitramfsError};
pub use modules::{Module, ModuleError, ModuleTree, canonical_name};
pub use qemu::{QEMU, QEMU_ROMS, QemuError, qemu, with_qemu};

use std::path::{Path, PathBuf};

/// Where the module files and their lists are inside an initramfs.
pub const MODULE_DIR: &str = "/lib/modules/maru";
/// Names of the modules to load at boot, one per line.
pub const BOOT_LIST: &str = "/lib/modules/maru/boot";
/// One line `NAME: NEED NEED...` per module, in an order in which they can be loaded, then `@NAME` for each wanted one
/// that is built into the kernel.
pub const MODULE_LIST: &str = "/lib/modules/maru/list";

/// Maru's programs, which hosts have in `/bin`.
pub const PROGRAMS: &[&str] = &["maru", "marud", "maru-vmm", "maru-switch", "maru-guard", "maru-guest"];

/// Modules a host loads before its services start.
pub const HOST_BOOT_MODULES: &[&str] =
    &["virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "virtio_rng", "af_packet", "kvm_amd", "kvm_intel"];

/// Modules a host carries and loads by name when something needs them.
pub const HOST_MODULES: &[&str] = &[
    "tun",
    "bridge",
    "vhost_net",
    "vhost_vsock",
    "virtio_balloon",
    "softdog",
    "xfs",
    "ext4",
    "vfat",
    "nls_ascii",
    "loop",
    "nbd",
    "fuse",
    "virtiofs",
    "qemu_fw_cfg",
    "nvme",
    "sd_mod",
    "ahci",
    "dm_mod",
    "dm_flakey",
    "configfs",
];

/// Modules of a test guest, loaded by its init: whatever virtual devices our monitor and QEMU offer.
pub const GUEST_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "virtio_scsi",
    "vmw_vsock_virtio_transport",
    "pvpanic_mmio",
    "af_packet",
    "button",
    "evdev",
    "qemu_fw_cfg",
];

/// Modules of a test guest that is to need little memory.
const SMALL_GUEST_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "button", "evdev"];

/// Modules that a test guest carries for `maru.modules`.
const GUEST_OPTIONAL_MODULES: &[&str] = &["ext4", "isofs"];

/// A kernel and an initramfs that boot into `maru-guest` with busybox beside it.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Why a test guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// A package could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The initramfs could not be made.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// `maru-guest` is not there.
    #[error("cannot find maru-guest: build it with `cargo build --release -p maru-lab`, or name its directory in MARU_BIN_DIR")]
    Program,
}

/// The image of test guests, made unless it is there.
///
/// # Errors
/// When an input is missing or the build directory cannot be written.
pub fn guest_image() -> Result<GuestImage, GuestImageError> {
    make_guest_image(Initramfs::new("guest"))
}

/// The same with the guest agent of QEMU.
///
/// # Errors
/// As [`guest_image`], and when a library of the agent is not on this machine.
pub fn agent_image() -> Result<GuestImage, GuestImageError> {
    let (agent, libraries) = guest_agent()?;
    let image = Initramfs::new("agent").program(agent, "/bin/qemu-ga");
    let add = |image: Initramfs, library: PathBuf| image.program(&library, library.to_string_lossy());
    make_guest_image(libraries.into_iter().fold(image, add))
}

fn make_guest_image(image: Initramfs) -> Result<GuestImage, GuestImageError> {
    let kernel = kernel()?;
    let init = program("maru-guest").ok_or(GuestImageError::Program)?;
    let image = image.program(init, "/init").busybox(busybox()?);
    let image = image.boot_modules(GUEST_MODULES).modules(GUEST_OPTIONAL_MODULES);
    Ok(GuestImage { initramfs: image.build(&kernel)?, kernel: kernel.vmlinuz })
}

/// The same with few modules and without busybox: it boots in 64 MiB of memory.
///
/// # Errors
/// As [`guest_image`].
pub fn small_guest_image() -> Result<GuestImage, GuestImageError> {
    let kernel = kernel()?;
    let init = program("maru-guest").ok_or(GuestImageError::Program)?;
    let image = Initramfs::new("small-guest").program(init, "/init").boot_modules(SMALL_GUEST_MODULES);
    Ok(GuestImage { initramfs: image.build(&kernel)?, kernel: kernel.vmlinuz })
}

/// Where fetched packages and made images are kept: `MARU_BUILD_DIR`, else `build/` in the workspace this program was
/// built in, else the user's cache directory.
pub fn build_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("MARU_BUILD_DIR") {
        return dir.into();
    }
    let program = std::env::current_exe().unwrap_or_default();
    if let Some(workspace) = program.ancestors().find(|dir| dir.join("Cargo.lock").is_file()) {
        return workspace.join("build");
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| Path::new("/tmp").to_owned());
    std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| home.join(".cache")).join("maru")
}

/// Finds one of our own programs: in `MARU_BIN_DIR`, beside this program, or, for a test program, one directory up.
pub fn program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("MARU_BIN_DIR").map(PathBuf::from);
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent);
    let above = beside.and_then(Path::parent);
    [named.as_deref(), beside, above].into_iter().flatten().map(|dir| dir.join(name)).find(|path| path.is_file())
}
