//! The lease under which this host may run VMs, if it is one of a cluster.
//!
//! `maru-guard` ends the VMs of a host whose lease is over. What a disk is about to be written in the moments before that, or after the whole
//! host stood still for a while, must not reach it either: another host may have the VM by then. So each write asks first.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use guard::page::Lease;

/// The exit status of a VM that ended with its host's lease.
pub const EXIT_STATUS: u8 = 5;

/// A process is one VM, and belongs to one host.
static LEASE: OnceLock<Lease> = OnceLock::new();

/// From now on this VM runs under the lease in this page of `maru-guard`.
///
/// # Errors
/// When the file is no such page, or the lease is over.
pub fn take(page: &Path) -> io::Result<()> {
    let lease = Lease::of(&File::open(page)?)?;
    if !lease.holds() {
        return Err(io::Error::other("the lease of this host is over: the VM may run on another one"));
    }
    LEASE.set(lease).map_err(|_| io::Error::other("there is a lease already"))
}

/// Ends the process if the lease is over. Costs a look at the clock; nothing without a lease.
pub fn check() {
    if LEASE.get().is_some_and(|lease| !lease.holds()) {
        eprintln!("maru-vmm: the lease of this host is over: the VM ends before it writes anything more");
        // SAFETY: ends the process at once, without running anything of it: nothing may be written any more.
        unsafe { libc::_exit(EXIT_STATUS.into()) };
    }
}
