//! What the first program of a machine does: mounting, loading modules, setting up NICs, reaping, power.
//!
//! Shared by `maru-init` (the appliance) and `maru-guest` (test guests). Nothing here is fatal by itself: the callers
//! report a failure on the console and go on, because a host that can still be asked what is wrong is worth more than
//! one that stopped.

mod cmdline;
pub mod dhcp;
mod modules;
mod mounts;
mod net;
mod power;

pub use cmdline::CommandLine;
pub use modules::{load_boot_modules, load_module};
pub use mounts::{enter_root, mount_system, mount_when_there};
pub use net::{Ipv4Net, NetError, Nic, add_default_route, bring_up, nics, set_address, set_hostname};
pub use power::{PowerAction, power, reap_until};

/// Seconds since the kernel started.
pub fn uptime_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0)
}
